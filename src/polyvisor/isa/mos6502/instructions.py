"""The instructions that the manual lists: what they compute, and their opcodes.

The most used come first, because the interpreter's handlers are compiled in the order in which they are described.
"""

from polyvisor.adl import FETCH, READ, function, i8, u8, u16, u64, unlikely

from .architecture import nz, set_status, status
from .bus import STACK, fetch, pull, push, stack_idle
from .forms import instruction
from .interrupts import enter


@instruction("lda", "a9:# a5:zp b5:zp,x ad:abs bd:abs,x b9:abs,y a1:(zp,x) b1:(zp),y", "a")
@instruction("ldx", "a2:# a6:zp b6:zp,y ae:abs be:abs,y", "x")
@instruction("ldy", "a0:# a4:zp b4:zp,x ac:abs bc:abs,x", "y")
def load(cpu, value: u8, register) -> None:
    setattr(cpu, register, value if register == "s" else nz(cpu, value))


@instruction("sta", "85:zp 95:zp,x 8d:abs 9d:abs,x 99:abs,y 81:(zp,x) 91:(zp),y", "a")
@instruction("stx", "86:zp 96:zp,y 8e:abs", "x")
@instruction("sty", "84:zp 94:zp,x 8c:abs", "y")
def store(cpu, register) -> u8:
    return getattr(cpu, register) if register else u8(0)  # STZ, of CMOS


@instruction("and", "29:# 25:zp 35:zp,x 2d:abs 3d:abs,x 39:abs,y 21:(zp,x) 31:(zp),y", "and")
@instruction("ora", "09:# 05:zp 15:zp,x 0d:abs 1d:abs,x 19:abs,y 01:(zp,x) 11:(zp),y", "or")
@instruction("eor", "49:# 45:zp 55:zp,x 4d:abs 5d:abs,x 59:abs,y 41:(zp,x) 51:(zp),y", "xor")
def combine(cpu, value: u8, how) -> None:
    cpu.a = nz(cpu, cpu.a & value if how == "and" else cpu.a | value if how == "or" else cpu.a ^ value)


@instruction("bit", "24:zp 2c:abs", False)
def bit(cpu, value: u8, immediate) -> None:
    cpu.z = cpu.a & value
    if not immediate:
        cpu.n, cpu.v = value, value >> 6 & 1


@instruction("cmp", "c9:# c5:zp d5:zp,x cd:abs dd:abs,x d9:abs,y c1:(zp,x) d1:(zp),y", "a")
@instruction("cpx", "e0:# e4:zp ec:abs", "x")
@instruction("cpy", "c0:# c4:zp cc:abs", "y")
def compare(cpu, value: u8, register) -> None:
    cpu.c = u8(getattr(cpu, register) >= value)
    nz(cpu, getattr(cpu, register) - value)


@instruction("adc", "69:# 65:zp 75:zp,x 6d:abs 7d:abs,x 79:abs,y 61:(zp,x) 71:(zp),y", False)
@instruction("sbc", "e9:# e5:zp f5:zp,x ed:abs fd:abs,x f9:abs,y e1:(zp,x) f1:(zp),y", True)
def add(cpu, value: u8, negated) -> None:
    # In decimal mode NMOS sets Z as in binary mode, and N and V from what is there before the high digit is corrected
    # (Bruce Clark, "Decimal Mode in NMOS 6500 series", appendix A); CMOS sets N and Z by the result, in a cycle more.
    if cpu.d == 0:
        add_binary(cpu, ~value if negated else value)
    else:
        decimal = subtract_decimal if negated else add_decimal
        decimal(cpu, value)
        if cpu.has("cmos"):
            fetch(cpu, 0)


@function
def add_binary(cpu, value: u8) -> None:
    total = u16(cpu.a) + u16(value) + u16(cpu.c)
    result = u8(total)
    cpu.v = ((cpu.a ^ result) & (value ^ result) & 0x80) >> 7
    cpu.c = u8(total >> 8)
    cpu.a = nz(cpu, result)


@function(inline=False)
def add_decimal(cpu, value: u8) -> None:
    before, carry = cpu.a, u16(cpu.c)
    add_binary(cpu, value)
    low = (u16(before) & 0x0F) + (u16(value) & 0x0F) + carry
    if low >= 0x0A:
        low = (low + 0x06 & 0x0F) + 0x10
    result = (u16(before) & 0xF0) + (u16(value) & 0xF0) + low
    cpu.v = ((before ^ u8(result)) & ~(before ^ value) & 0x80) >> 7
    cpu.n = u8(result)
    if result >= 0xA0:
        result = result + 0x60
    cpu.c = u8(result >= 0x100)
    cpu.a = nz(cpu, u8(result)) if cpu.has("cmos") else u8(result)


@function(inline=False)
def subtract_decimal(cpu, value: u8) -> None:
    before, borrow = cpu.a, 1 - cpu.c
    add_binary(cpu, ~value)
    low = (before & 0x0F) - (value & 0x0F) - borrow
    if low >= 0x80:  # it is negative
        low = low - 0x06 if cpu.has("cmos") else (low - 0x06 & 0x0F) - 0x10
    result = (before & 0xF0) - (value & 0xF0) + low
    if cpu.c == 0:
        result = result - 0x60
    cpu.a = nz(cpu, result) if cpu.has("cmos") else result


@instruction("asl", "0a:a 06:zp 16:zp,x 0e:abs 1e:abs,x", False)
@instruction("rol", "2a:a 26:zp 36:zp,x 2e:abs 3e:abs,x", True)
def shift_left(cpu, value: u8, rotates) -> u8:
    carry = cpu.c if rotates else u8(0)
    cpu.c = value >> 7
    return nz(cpu, value << 1 | carry)


@instruction("lsr", "4a:a 46:zp 56:zp,x 4e:abs 5e:abs,x", False)
@instruction("ror", "6a:a 66:zp 76:zp,x 6e:abs 7e:abs,x", True)
def shift_right(cpu, value: u8, rotates) -> u8:
    carry = cpu.c if rotates else u8(0)
    cpu.c = value & 1
    return nz(cpu, value >> 1 | carry << 7)


@instruction("inc", "e6:zp f6:zp,x ee:abs fe:abs,x", 1)
@instruction("dec", "c6:zp d6:zp,x ce:abs de:abs,x", 0xFF)
def step(cpu, value: u8, by) -> u8:
    return nz(cpu, value + by)


@instruction("inx", "e8", "x", "x", 1)
@instruction("iny", "c8", "y", "y", 1)
@instruction("dex", "ca", "x", "x", 0xFF)
@instruction("dey", "88", "y", "y", 0xFF)
@instruction("tax", "aa", "a", "x", 0)
@instruction("tay", "a8", "a", "y", 0)
@instruction("txa", "8a", "x", "a", 0)
@instruction("tya", "98", "y", "a", 0)
@instruction("tsx", "ba", "s", "x", 0)
@instruction("txs", "9a", "x", "s", 0)
def transfer(cpu, source, target, by) -> None:
    load(cpu, getattr(cpu, source) + by, target)


@instruction("clc", "18", "c", 0)
@instruction("sec", "38", "c", 1)
@instruction("cld", "d8", "d", 0)
@instruction("sed", "f8", "d", 1)
@instruction("cli", "58", "i", 0)
@instruction("sei", "78", "i", 1)
@instruction("clv", "b8", "v", 0)
def change_flag(cpu, flag, value) -> None:
    if flag == "i":
        cpu.i_before, cpu.i_changed = cpu.i, cpu.cycles()
    setattr(cpu, flag, u8(value))


@instruction("nop", "ea")
def nop(cpu) -> None:
    pass


@instruction("pha", "48", "a")
@instruction("php", "08", "p")
def push_register(cpu, register) -> None:
    push(cpu, status(cpu) | 0x10 if register == "p" else getattr(cpu, register))


@instruction("pla", "68", "a")
def pull_register(cpu, register) -> None:
    stack_idle(cpu)
    setattr(cpu, register, nz(cpu, pull(cpu)))


@instruction("plp", "28")
def plp(cpu) -> None:
    stack_idle(cpu)
    value = pull(cpu)
    cpu.i_before, cpu.i_changed = cpu.i, cpu.cycles()
    set_status(cpu, value)


@instruction("bpl", "10:rel", "n", 0x80, False)
@instruction("bmi", "30:rel", "n", 0x80, True)
@instruction("bvc", "50:rel", "v", 1, False)
@instruction("bvs", "70:rel", "v", 1, True)
@instruction("bcc", "90:rel", "c", 1, False)
@instruction("bcs", "b0:rel", "c", 1, True)
@instruction("bne", "d0:rel", "z", 0xFF, True)
@instruction("beq", "f0:rel", "z", 0xFF, False)
def branch_if(cpu, operand: i8, flag, mask, wanted) -> None:
    if (getattr(cpu, flag) & mask != 0) == wanted:
        branch(cpu, operand)


@function
def branch(cpu, operand: i8) -> None:
    # Interrupts were looked for before a branch is taken, and are once more before the last cycle if it leaves the page
    # (W. Steil and others, "6502 interrupt polling"; see `interrupts`).
    fetch(cpu, 2)
    target = cpu.next_pc + u64(operand)
    wrong = u16(cpu.next_pc) & 0xFF00 | u16(target) & 0xFF
    if wrong != u16(target):
        cpu.cycle(FETCH, u64(wrong))
    else:
        cpu.branched = cpu.cycles()
    cpu.next_pc = target


@instruction("jmp", "4c:abs 6c:(abs)")
def jmp(cpu, address: u16) -> None:
    cpu.next_pc = u64(address)


@instruction("jsr", "20:abs")
def jsr(cpu, operand: u16) -> None:
    stack_idle(cpu)
    back = u16(cpu.pc) + 2
    push(cpu, u8(back >> 8))
    push(cpu, u8(back))
    fetch(cpu, 2)
    if unlikely(back & 0xFF00 == STACK):
        # The target's high byte is read last: what was pushed may have gone over it.
        operand = operand & 0xFF | u16(cpu.load(u8, u64(back))) << 8
    cpu.next_pc = u64(operand)


@instruction("rts", "60")
def rts(cpu) -> None:
    stack_idle(cpu)
    target = u16(pull(cpu)) | u16(pull(cpu)) << 8
    cpu.cycle(READ, u64(target))
    cpu.next_pc = u64(target + 1)


@instruction("rti", "40")
def rti(cpu) -> None:
    stack_idle(cpu)
    set_status(cpu, pull(cpu))
    cpu.next_pc = u64(u16(pull(cpu)) | u16(pull(cpu)) << 8)


@instruction("brk", "00:#")
def brk(cpu, operand: u8) -> None:
    enter(cpu, u16(cpu.pc) + 2, status(cpu) | 0x10)
