"""The 65C02: what is different from NMOS, but for cycles, which are in `forms`.

Source: W65C02S data sheet, Western Design Center.
"""

from functools import partial

from polyvisor.adl import READ, function, i8, u8, u16, u64

from . import forms
from .architecture import mos6502
from .bus import fetch, read, read_word
from .instructions import add, bit, branch, combine, compare, load, pull_register, push_register, step, store
from .undocumented import ignore

# All that is inherited is there by now; what follows replaces some of it.
wdc65c02 = mos6502.variant("wdc65c02", features=frozenset({"cmos"}))
instruction = partial(forms.instruction, on=wdc65c02)

for name, opcodes, operation, *constants in (
    ("ora", "12:(zp)", combine, "or"), ("and", "32:(zp)", combine, "and"), ("eor", "52:(zp)", combine, "xor"),
    ("adc", "72:(zp)", add, False), ("sbc", "f2:(zp)", add, True), ("cmp", "d2:(zp)", compare, "a"),
    ("lda", "b2:(zp)", load, "a"), ("sta", "92:(zp)", store, "a"), ("stz", "64:zp 74:zp,x 9c:abs 9e:abs,x", store, ""),
    ("bit", "34:zp,x 3c:abs,x", bit, False), ("bit", "89:#", bit, True), ("bra", "80:rel", branch),
    ("inc", "1a:a", step, 1), ("dec", "3a:a", step, 0xFF), ("phx", "da", push_register, "x"),
    ("phy", "5a", push_register, "y"), ("plx", "fa", pull_register, "x"), ("ply", "7a", pull_register, "y"),
):  # fmt: skip
    instruction(name, opcodes, *constants)(operation)


@instruction("tsb", "04:zp 0c:abs", True)
@instruction("trb", "14:zp 1c:abs", False)
def test_bits(cpu, value: u8, wanted) -> u8:
    cpu.z = cpu.a & value
    return value | cpu.a if wanted else value & ~cpu.a


@instruction("jmp", "7c:(abs,x)")
def jmp_indexed(cpu, address: u16) -> None:
    fetch(cpu, 2)
    pointer = address + u16(cpu.x)
    cpu.next_pc = u64(read_word(cpu, pointer, pointer + 1))


@function
def change_bit(cpu, value: u8, mask, wanted) -> u8:
    return value | mask if wanted else value & (0xFF ^ mask)


def branch_if_bit(opcode: int, name: str, mask: int, wanted: bool) -> None:
    """Add a branch by a bit in memory."""

    @wdc65c02.instruction(f"{opcode:08b} / place:8 / target:8", f"{name} {{place:byte}},{{target:farther}}")
    def instruction(cpu, place: u8, target: i8):
        fetch(cpu, 0)
        fetch(cpu, 1)
        value = read(cpu, u16(place))
        cpu.cycle(READ, u64(place))
        fetch(cpu, 2)
        if (value & mask != 0) == wanted:
            fetch(cpu, 3)
            there = cpu.next_pc + u64(target)
            if (u16(there) ^ u16(cpu.next_pc)) & 0xFF00 != 0:
                fetch(cpu, 3)
            cpu.next_pc = there


for number in range(8):
    row, mask = number << 4, 1 << number
    instruction(f"rmb{number}", f"{row | 0x07:02x}:zp", mask, False)(change_bit)
    instruction(f"smb{number}", f"{row | 0x87:02x}:zp", mask, True)(change_bit)
    branch_if_bit(row | 0x0F, f"bbr{number}", mask, False)
    branch_if_bit(row | 0x8F, f"bbs{number}", mask, True)


@instruction("wai", "cb")
def wai(cpu) -> None:
    """Wait until an interrupt line is down, whether interrupts are enabled or not."""
    fetch(cpu, 1)
    if cpu.irq_lines == 0 and cpu.nmi_pending == 0:
        cpu.next_pc = cpu.pc


@instruction("stp", "db")
def stp(cpu) -> None:
    """Stop until a reset."""
    fetch(cpu, 1)
    cpu.next_pc = cpu.pc
    cpu.leave("jam")


# The rest does nothing, in different times.
instruction("nop", "02:# 22:# 42:# 62:# 82:# c2:# e2:# 44:zp 54:zp,x d4:zp,x f4:zp,x dc:abs fc:abs")(ignore)


@instruction("nop", "5c:abs")
def nop_long(cpu, address: u16) -> None:
    for _ in range(5):
        cpu.cycle(READ, u64(0xFF00 | address & 0xFF))


@function
def nop_short(cpu) -> None:
    fetch(cpu, 0)


for opcode in {column | row << 4 for column in (0x03, 0x0B) for row in range(16)} - {0xCB, 0xDB}:
    wdc65c02.instruction(f"{opcode:08b}", "nop")(nop_short)
