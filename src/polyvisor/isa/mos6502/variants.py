"""The 6510, and the 65C02.

Source of the latter: W65C02S data sheet, Western Design Center.
"""

from polyvisor.adl import READ, function, i8, u8, u16, u64

from . import operations as op
from .architecture import mos6502
from .bus import fetch, read, read_word
from .control import branch
from .forms import add, changes, implied, reads, writes
from .memory import a
from .modes import ABSOLUTE, ABSOLUTE_X, IMMEDIATE, INDIRECT, ZERO_PAGE, ZERO_PAGE_X
from .port import Port
from .registers import pull_register, push_register
from .state import Mos6502

mos6510 = mos6502.variant("mos6510", features=frozenset({"port"}))


@mos6510.state
class Mos6510(Mos6502, Port):
    """A 6502 with a port."""


wdc65c02 = mos6502.variant("wdc65c02", features=frozenset({"cmos"}))


@function
def zero(cpu) -> u8:
    return u8(0)


@function
def tsb(cpu, value: u8) -> u8:
    cpu.z = cpu.a & value
    return value | cpu.a


@function
def trb(cpu, value: u8) -> u8:
    cpu.z = cpu.a & value
    return value & ~cpu.a


@function
def bit_immediate(cpu, value: u8) -> None:
    cpu.z = cpu.a & value  # only this flag can tell something


@wdc65c02.instruction("10000000 / target:8", "bra {target:target}")
def bra(cpu, target: i8):
    branch(cpu, True, target)


writes(wdc65c02, "stz", zero, {0x64: ZERO_PAGE, 0x74: ZERO_PAGE_X, 0x9C: ABSOLUTE, 0x9E: ABSOLUTE_X})
changes(wdc65c02, "tsb", tsb, {0x04: ZERO_PAGE, 0x0C: ABSOLUTE})
changes(wdc65c02, "trb", trb, {0x14: ZERO_PAGE, 0x1C: ABSOLUTE})
reads(wdc65c02, "bit", op.bit, {0x34: ZERO_PAGE_X, 0x3C: ABSOLUTE_X})
reads(wdc65c02, "bit", bit_immediate, {0x89: IMMEDIATE})
for opcode, (name, operation) in {
    0x12: ("ora", op.ora), 0x32: ("and", op.and_), 0x52: ("eor", op.eor), 0x72: ("adc", op.adc), 0xB2: ("lda", op.lda),
    0xD2: ("cmp", op.cmp), 0xF2: ("sbc", op.sbc),
}.items():  # fmt: skip
    reads(wdc65c02, name, operation, {opcode: INDIRECT})
writes(wdc65c02, "sta", a, {0x92: INDIRECT})


@function
def increment(cpu) -> None:
    op.lda(cpu, cpu.a + 1)


@function
def decrement(cpu) -> None:
    op.lda(cpu, cpu.a - 1)


implied(wdc65c02, "inc a", increment, 0x1A)
implied(wdc65c02, "dec a", decrement, 0x3A)


push_register(wdc65c02, 0xDA, "phx", "x")
push_register(wdc65c02, 0x5A, "phy", "y")
pull_register(wdc65c02, 0xFA, "plx", "x")
pull_register(wdc65c02, 0x7A, "ply", "y")


@function
def jmp_indexed(cpu, operand: u16) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    fetch(cpu, 2)
    fetch(cpu, 2)
    place = operand + u16(cpu.x)
    cpu.next_pc = u64(read_word(cpu, place, place + 1))


add(wdc65c02, 0x7C, "jmp ({operand:word},x)", jmp_indexed, 2)


# Single bits of zero page


def bit_instructions(number: int) -> None:
    """Add those of one bit."""
    mask = 1 << number

    @function
    def clear(cpu, value: u8) -> u8:
        return value & (0xFF ^ mask)

    @function
    def set(cpu, value: u8) -> u8:
        return value | mask

    changes(wdc65c02, f"rmb{number}", clear, {0x07 | number << 4: ZERO_PAGE})
    changes(wdc65c02, f"smb{number}", set, {0x87 | number << 4: ZERO_PAGE})
    bit_branch(number, 0x0F | number << 4, f"bbr{number}", False)
    bit_branch(number, 0x8F | number << 4, f"bbs{number}", True)


def bit_branch(number: int, opcode: int, name: str, wanted: bool) -> None:
    """Add a branch by a bit in memory."""
    mask = 1 << number

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

    instruction.__name__ = name
    wdc65c02.instruction(f"{opcode:08b} / place:8 / target:8", f"{name} {{place:byte}},{{target:farther}}")(instruction)


for bit_number in range(8):
    bit_instructions(bit_number)


# The rest does nothing, in different times.


@function
def one_cycle(cpu) -> None:
    fetch(cpu, 0)


for opcode in {column | row << 4 for column in (0x03, 0x0B) for row in range(16)} - {0xCB, 0xDB}:
    add(wdc65c02, opcode, "nop", one_cycle)
for opcode in (0x02, 0x22, 0x42, 0x62, 0x82, 0xC2, 0xE2):
    reads(wdc65c02, "nop", op.nop, {opcode: IMMEDIATE})
reads(wdc65c02, "nop", op.nop, {0x44: ZERO_PAGE})
reads(wdc65c02, "nop", op.nop, dict.fromkeys((0x54, 0xD4, 0xF4), ZERO_PAGE_X))
reads(wdc65c02, "nop", op.nop, dict.fromkeys((0xDC, 0xFC), ABSOLUTE))


@function
def nop_long(cpu, operand: u16) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    fetch(cpu, 2)
    for _ in range(5):
        cpu.cycle(READ, u64(0xFF00 | operand & 0xFF))


add(wdc65c02, 0x5C, "nop {operand:word}", nop_long, 2)


@function
def wai(cpu) -> None:
    """Wait until an interrupt line is down, whether interrupts are enabled or not."""
    fetch(cpu, 0)
    fetch(cpu, 1)
    fetch(cpu, 1)
    if cpu.irq_lines == 0 and cpu.nmi_pending == 0:
        cpu.next_pc = cpu.pc


@function
def stp(cpu) -> None:
    """Stop until a reset."""
    fetch(cpu, 0)
    fetch(cpu, 1)
    fetch(cpu, 1)
    cpu.next_pc = cpu.pc
    cpu.leave("jam")


add(wdc65c02, 0xCB, "wai", wai)
add(wdc65c02, 0xDB, "stp", stp)
