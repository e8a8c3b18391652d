"""The opcodes of NMOS that the manual does not list (see `operations` for the source)."""

from functools import partial

from polyvisor.adl import Function, function, u8, u16, u64, unlikely

from . import operations as op
from .architecture import mos6502
from .bus import fetch, idle, read, read_word, write
from .forms import add, changes, implied, reads, writes
from .memory import x, y
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
)
from .registers import nothing

for name, operation, base in (
    ("slo", op.slo, 0x00), ("rla", op.rla, 0x20), ("sre", op.sre, 0x40), ("rra", op.rra, 0x60), ("dcp", op.dcp, 0xC0),
    ("isc", op.isc, 0xE0),
):  # fmt: skip
    modes = INDIRECT_X, ZERO_PAGE, ABSOLUTE, INDIRECT_Y, ZERO_PAGE_X, ABSOLUTE_Y, ABSOLUTE_X
    places = 0x03, 0x07, 0x0F, 0x13, 0x17, 0x1B, 0x1F
    changes(mos6502, name, operation, {base + place: mode for place, mode in zip(places, modes, strict=True)})


@function
def a_and_x(cpu) -> u8:
    return cpu.a & cpu.x


writes(mos6502, "sax", a_and_x, {0x83: INDIRECT_X, 0x87: ZERO_PAGE, 0x8F: ABSOLUTE, 0x97: ZERO_PAGE_Y})

read_by = partial(reads, mos6502)
read_by(
    "lax", op.lax,
    {0xA3: INDIRECT_X, 0xA7: ZERO_PAGE, 0xAF: ABSOLUTE, 0xB3: INDIRECT_Y, 0xB7: ZERO_PAGE_Y, 0xBF: ABSOLUTE_Y},
)  # fmt: skip
read_by("las", op.las, {0xBB: ABSOLUTE_Y})
read_by("anc", op.anc, {0x0B: IMMEDIATE, 0x2B: IMMEDIATE})
read_by("alr", op.alr, {0x4B: IMMEDIATE})
read_by("arr", op.arr, {0x6B: IMMEDIATE})
read_by("ane", op.ane, {0x8B: IMMEDIATE})
read_by("lxa", op.lxa, {0xAB: IMMEDIATE})
read_by("sbx", op.sbx, {0xCB: IMMEDIATE})
read_by("usbc", op.sbc, {0xEB: IMMEDIATE})
read_by(
    "nop", op.nop,
    dict.fromkeys((0x80, 0x82, 0x89, 0xC2, 0xE2), IMMEDIATE) | dict.fromkeys((0x04, 0x44, 0x64), ZERO_PAGE)
    | dict.fromkeys((0x14, 0x34, 0x54, 0x74, 0xD4, 0xF4), ZERO_PAGE_X) | {0x0C: ABSOLUTE}
    | dict.fromkeys((0x1C, 0x3C, 0x5C, 0x7C, 0xDC, 0xFC), ABSOLUTE_X),
)  # fmt: skip
implied(mos6502, "nop", nothing, 0x1A, 0x3A, 0x5A, 0x7A, 0xDA, 0xFA)


# Stores of a value and the address's high byte, plus one: where the address crosses a page, that value becomes its high
# byte.


@function
def store_high(cpu, base: u16, index: u8, value: u8) -> None:
    target = base + u16(index)
    wrong = base & 0xFF00 | target & 0xFF
    read(cpu, wrong)
    value = value & u8(base >> 8) + 1
    if unlikely(wrong != target):
        target = u16(value) << 8 | target & 0xFF
    write(cpu, target, value)


def high(opcode: int, name: str, stored: Function, index: str) -> None:
    """Add such a store, with an address of two bytes."""

    @function
    def execute(cpu, operand: u16) -> None:
        fetch(cpu, 0)
        fetch(cpu, 1)
        fetch(cpu, 2)
        store_high(cpu, operand, getattr(cpu, index), stored(cpu))
        if name == "tas":
            cpu.s = cpu.a & cpu.x

    add(mos6502, opcode, f"{name} {{operand:word}},{index}", execute, 2)


@function
def sha_indirect(cpu, operand: u8) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    store_high(cpu, read_word(cpu, u16(operand), u16(operand + 1)), cpu.y, a_and_x(cpu))


high(0x9F, "sha", a_and_x, "y")
high(0x9E, "shx", x, "y")
high(0x9C, "shy", y, "x")
high(0x9B, "tas", a_and_x, "y")
add(mos6502, 0x93, "sha ({operand:byte}),y", sha_indirect, 1)


# The CPU hangs until it is reset.


@function
def jam(cpu) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    idle(cpu, u16(0xFFFF))
    cpu.next_pc = u64(cpu.pc)
    cpu.leave("jam")


for opcode in (0x02, 0x12, 0x22, 0x32, 0x42, 0x52, 0x62, 0x72, 0x92, 0xB2, 0xD2, 0xF2):
    add(mos6502, opcode, "jam", jam)
