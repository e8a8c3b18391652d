"""Addressing modes: the cycles from the operand's fetch until the last byte's address is known.

``always`` says that an indexed access takes the cycle in which the address's high byte is corrected even where it needs
no correction: writes do, reads do not.
"""

from dataclasses import dataclass

from polyvisor.adl import Function, function, u8, u16, unlikely

from .bus import fetch, idle, read, read_word


@function
def zero_page(cpu, operand: u8, always) -> u16:
    fetch(cpu, 1)
    return u16(operand)


@function
def zero_page_x(cpu, operand: u8, always) -> u16:
    fetch(cpu, 1)
    idle(cpu, u16(operand))
    return u16(operand + cpu.x)


@function
def zero_page_y(cpu, operand: u8, always) -> u16:
    fetch(cpu, 1)
    idle(cpu, u16(operand))
    return u16(operand + cpu.y)


@function
def absolute(cpu, operand: u16, always) -> u16:
    fetch(cpu, 1)
    fetch(cpu, 2)
    return operand


@function
def absolute_x(cpu, operand: u16, always) -> u16:
    fetch(cpu, 1)
    fetch(cpu, 2)
    return indexed(cpu, operand, cpu.x, 2, always)


@function
def absolute_y(cpu, operand: u16, always) -> u16:
    fetch(cpu, 1)
    fetch(cpu, 2)
    return indexed(cpu, operand, cpu.y, 2, always)


@function
def indirect_x(cpu, operand: u8, always) -> u16:
    fetch(cpu, 1)
    idle(cpu, u16(operand))
    pointer = operand + cpu.x
    return read_word(cpu, u16(pointer), u16(pointer + 1))


@function
def indirect_y(cpu, operand: u8, always) -> u16:
    fetch(cpu, 1)
    base = read_word(cpu, u16(operand), u16(operand + 1))
    return indexed(cpu, base, cpu.y, 1, always)


@function
def indirect(cpu, operand: u8, always) -> u16:
    """(CMOS)"""
    fetch(cpu, 1)
    return read_word(cpu, u16(operand), u16(operand + 1))


@function
def indexed(cpu, base: u16, index: u8, last, always) -> u16:
    """The sum, after a read where it would be without carry; CMOS reads the instruction's last byte instead."""
    target = base + u16(index)
    wrong = base & 0xFF00 | target & 0xFF
    if always or unlikely(wrong != target):
        corrected(cpu, wrong, last)
    return target


@function
def corrected(cpu, wrong: u16, last) -> None:
    if cpu.has("cmos"):
        fetch(cpu, last)
    else:
        read(cpu, wrong)


@dataclass(frozen=True)
class Mode:
    """How an operand is encoded (bytes), written, and made an address."""

    size: int
    syntax: str
    address: Function | None = None


IMMEDIATE = Mode(1, " #{operand:byte}")
ZERO_PAGE = Mode(1, " {operand:byte}", zero_page)
ZERO_PAGE_X = Mode(1, " {operand:byte},x", zero_page_x)
ZERO_PAGE_Y = Mode(1, " {operand:byte},y", zero_page_y)
ABSOLUTE = Mode(2, " {operand:word}", absolute)
ABSOLUTE_X = Mode(2, " {operand:word},x", absolute_x)
ABSOLUTE_Y = Mode(2, " {operand:word},y", absolute_y)
INDIRECT_X = Mode(1, " ({operand:byte},x)", indirect_x)
INDIRECT_Y = Mode(1, " ({operand:byte}),y", indirect_y)
INDIRECT = Mode(1, " ({operand:byte})", indirect)
