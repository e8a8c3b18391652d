"""The opcodes of NMOS that the manual does not list: mostly two operations at once.

Source: C. Meisl and others, "No More Secrets", NMOS 6510 Unintended Opcodes.
"""

from polyvisor.adl import READ, u8, u16, u64, unlikely

from .architecture import nz
from .bus import write
from .forms import instruction
from .instructions import add, combine, compare, nop, shift_left, shift_right, step

# What ANE and LXA, whose outcome depends on the chip, mix in.
MAGIC = 0xEE


@instruction("slo", "07:zp 17:zp,x 0f:abs 1f:abs,x 1b:abs,y 03:(zp,x) 13:(zp),y", shift_left, False, combine, "or")
@instruction("rla", "27:zp 37:zp,x 2f:abs 3f:abs,x 3b:abs,y 23:(zp,x) 33:(zp),y", shift_left, True, combine, "and")
@instruction("sre", "47:zp 57:zp,x 4f:abs 5f:abs,x 5b:abs,y 43:(zp,x) 53:(zp),y", shift_right, False, combine, "xor")
@instruction("rra", "67:zp 77:zp,x 6f:abs 7f:abs,x 7b:abs,y 63:(zp,x) 73:(zp),y", shift_right, True, add, False)
@instruction("dcp", "c7:zp d7:zp,x cf:abs df:abs,x db:abs,y c3:(zp,x) d3:(zp),y", step, 0xFF, compare, "a")
@instruction("isc", "e7:zp f7:zp,x ef:abs ff:abs,x fb:abs,y e3:(zp,x) f3:(zp),y", step, 1, add, True)
def both(cpu, value: u8, change, how, use, what) -> u8:
    changed = change(cpu, value, how)
    use(cpu, changed, what)
    return changed


@instruction("lax", "a7:zp b7:zp,y af:abs bf:abs,y a3:(zp,x) b3:(zp),y")
def lax(cpu, value: u8) -> None:
    cpu.x = value
    cpu.a = nz(cpu, value)


@instruction("sax", "87:zp 97:zp,y 8f:abs 83:(zp,x)")
def sax(cpu) -> u8:
    return cpu.a & cpu.x


@instruction("las", "bb:abs,y")
def las(cpu, value: u8) -> None:
    cpu.s = value & cpu.s
    lax(cpu, cpu.s)


@instruction("anc", "0b:# 2b:#")
def anc(cpu, value: u8) -> None:
    combine(cpu, value, "and")
    cpu.c = cpu.a >> 7


@instruction("alr", "4b:#")
def alr(cpu, value: u8) -> None:
    cpu.a = shift_right(cpu, cpu.a & value, False)


@instruction("arr", "6b:#")
def arr(cpu, value: u8) -> None:
    both = cpu.a & value
    result = nz(cpu, both >> 1 | cpu.c << 7)
    cpu.v = (result ^ result << 1) >> 6 & 1
    cpu.c = result >> 6 & 1
    if cpu.d != 0:
        if (both & 0x0F) + (both & 0x01) > 5:
            result = result & 0xF0 | result + 6 & 0x0F
        cpu.c = u8(u16(both & 0xF0) + u16(both & 0x10) > 0x50)
        if cpu.c != 0:
            result = result + 0x60
    cpu.a = result


@instruction("sbx", "cb:#")
def sbx(cpu, value: u8) -> None:
    both = cpu.a & cpu.x
    cpu.c = u8(both >= value)
    cpu.x = nz(cpu, both - value)


@instruction("ane", "8b:#")
def ane(cpu, value: u8) -> None:
    cpu.a = nz(cpu, (cpu.a | MAGIC) & cpu.x & value)


@instruction("lxa", "ab:#")
def lxa(cpu, value: u8) -> None:
    lax(cpu, (cpu.a | MAGIC) & value)


@instruction("sha", "9f:abs,y 93:(zp),y", "ax", "y")
@instruction("shx", "9e:abs,y", "x", "y")
@instruction("shy", "9c:abs,x", "y", "x")
@instruction("tas", "9b:abs,y", "s", "y")
def store_high(cpu, address: u16, stored, index) -> None:
    """Store a value and the high byte plus one, which becomes the high byte where the index crosses a page."""
    if stored == "s":
        cpu.s = sax(cpu)
    base = address - u16(getattr(cpu, index))
    value = (sax(cpu) if stored == "ax" else getattr(cpu, stored)) & u8(base >> 8) + 1
    if unlikely(base & 0xFF00 != address & 0xFF00):
        address = u16(value) << 8 | address & 0xFF
    write(cpu, address, value)


instruction("usbc", "eb:#", True)(add)
instruction("nop", "1a 3a 5a 7a da fa")(nop)


@instruction("nop", "0c:abs 1c:abs,x 3c:abs,x 5c:abs,x 7c:abs,x dc:abs,x fc:abs,x")
@instruction("nop", "80:# 82:# 89:# c2:# e2:# 04:zp 44:zp 64:zp 14:zp,x 34:zp,x 54:zp,x 74:zp,x d4:zp,x f4:zp,x")
def ignore(cpu, value: u8) -> None:
    pass


@instruction("jam", "02 12 22 32 42 52 62 72 92 b2 d2 f2")
def jam(cpu) -> None:
    """The CPU hangs until it is reset."""
    cpu.cycle(READ, u64(0xFFFF))
    cpu.next_pc = u64(cpu.pc)
    cpu.leave("jam")
