"""Instructions that access memory: those that are documented."""

from functools import partial

from polyvisor.adl import function, u8

from . import operations as op
from .architecture import mos6502
from .forms import changes, reads, writes
from .modes import (
    ABSOLUTE,
    ABSOLUTE_X,
    ABSOLUTE_Y,
    IMMEDIATE,
    INDIRECT_X,
    INDIRECT_Y,
    ZERO_PAGE,
    ZERO_PAGE_X,
    ZERO_PAGE_Y,
    Mode,
)


@function
def a(cpu) -> u8:
    return cpu.a


@function
def x(cpu) -> u8:
    return cpu.x


@function
def y(cpu) -> u8:
    return cpu.y


def eight(base: int) -> dict[int, Mode]:
    """The opcodes of an operation with the accumulator, in all its modes, from the one with (zero page,x)."""
    modes = INDIRECT_X, ZERO_PAGE, IMMEDIATE, ABSOLUTE, INDIRECT_Y, ZERO_PAGE_X, ABSOLUTE_Y, ABSOLUTE_X
    return {base + 4 * i: mode for i, mode in enumerate(modes)}


read = partial(reads, mos6502)
read("lda", op.lda, eight(0xA1))
read("ora", op.ora, eight(0x01))
read("and", op.and_, eight(0x21))
read("eor", op.eor, eight(0x41))
read("adc", op.adc, eight(0x61))
read("cmp", op.cmp, eight(0xC1))
read("sbc", op.sbc, eight(0xE1))
read("ldx", op.ldx, {0xA2: IMMEDIATE, 0xA6: ZERO_PAGE, 0xB6: ZERO_PAGE_Y, 0xAE: ABSOLUTE, 0xBE: ABSOLUTE_Y})
read("ldy", op.ldy, {0xA0: IMMEDIATE, 0xA4: ZERO_PAGE, 0xB4: ZERO_PAGE_X, 0xAC: ABSOLUTE, 0xBC: ABSOLUTE_X})
read("cpx", op.cpx, {0xE0: IMMEDIATE, 0xE4: ZERO_PAGE, 0xEC: ABSOLUTE})
read("cpy", op.cpy, {0xC0: IMMEDIATE, 0xC4: ZERO_PAGE, 0xCC: ABSOLUTE})
read("bit", op.bit, {0x24: ZERO_PAGE, 0x2C: ABSOLUTE})

write = partial(writes, mos6502)
write("sta", a, {opcode: mode for opcode, mode in eight(0x81).items() if mode is not IMMEDIATE})
write("stx", x, {0x86: ZERO_PAGE, 0x96: ZERO_PAGE_Y, 0x8E: ABSOLUTE})
write("sty", y, {0x84: ZERO_PAGE, 0x94: ZERO_PAGE_X, 0x8C: ABSOLUTE})

for name, operation, base in (
    ("asl", op.asl, 0x00), ("rol", op.rol, 0x20), ("lsr", op.lsr, 0x40), ("ror", op.ror, 0x60), ("dec", op.dec, 0xC0),
    ("inc", op.inc, 0xE0),
):  # fmt: skip
    modes = {base + 0x06: ZERO_PAGE, base + 0x0E: ABSOLUTE, base + 0x16: ZERO_PAGE_X, base + 0x1E: ABSOLUTE_X}
    changes(mos6502, name, operation, modes)
