"""Addressing modes, and the forms of instructions: which cycles, in which order, whatever is computed.

An instruction is an operation in some addressing modes. What the operation takes and gives says what is done::

    (cpu)                 nothing with memory; further cycles, as of the stack, are the operation's
    (cpu) -> u8           a value is written
    (cpu, value)          it is read, or the operand itself
    (cpu, value) -> u8    it is read, and another one written back; or that of the accumulator
    (cpu, address)        where the operand leads to is known, and the rest the operation's
    (cpu, operand)        only the first byte of the operand was fetched
"""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

from polyvisor.adl import READ, Architecture, Function, function, u8, u16, u64, unlikely

from .architecture import mos6502
from .bus import fetch, read, read_word, write


class Mode(NamedTuple):
    """How an operand of ``size`` bytes is written, and how it leads to an address.

    In this order: an index is added ``within`` zero page, a ``pointer`` followed, an index added ``across`` pages.
    """

    syntax: str
    size: int = 0
    within: str = ""
    pointer: bool = False
    across: str = ""


MODES = {
    "": Mode(""),
    "a": Mode(" a"),
    "#": Mode(" #{operand:byte}", 1),
    "zp": Mode(" {operand:byte}", 1),
    "zp,x": Mode(" {operand:byte},x", 1, within="x"),
    "zp,y": Mode(" {operand:byte},y", 1, within="y"),
    "(zp,x)": Mode(" ({operand:byte},x)", 1, within="x", pointer=True),
    "(zp),y": Mode(" ({operand:byte}),y", 1, pointer=True, across="y"),
    "(zp)": Mode(" ({operand:byte})", 1, pointer=True),
    "abs": Mode(" {operand:word}", 2),
    "abs,x": Mode(" {operand:word},x", 2, across="x"),
    "abs,y": Mode(" {operand:word},y", 2, across="y"),
    "(abs)": Mode(" ({operand:word})", 2, pointer=True),
    "(abs,x)": Mode(" ({operand:word},x)", 2),  # the index is the operation's
    "rel": Mode(" {operand:target}", 1),
}


@function
def resolve(cpu, mode, operand, always) -> u16:
    """The cycles after the operand's first byte was fetched until the address is known.

    ``always``: an indexed access takes the cycle that corrects the address's high byte even where that needs none.
    """
    address = u16(operand)
    if mode.size == 2:
        fetch(cpu, 2)
    if mode.within:
        cpu.cycle(READ, u64(address))
        address = u16(operand + getattr(cpu, mode.within))
    if mode.pointer:
        second = address & 0xFF00 | u16(u8(address) + 1)  # in the same page, for which JMP is notorious
        if cpu.has("cmos") and mode.size == 2:
            fetch(cpu, 2)
            second = address + 1
        address = read_word(cpu, address, second)
    if mode.across:
        base, address = address, address + u16(getattr(cpu, mode.across))
        wrong = base & 0xFF00 | address & 0xFF
        if always or unlikely(wrong != address):
            if cpu.has("cmos"):
                fetch(cpu, mode.size)
            else:
                read(cpu, wrong)
    return address


@function
def execute(cpu, operation, constants, mode, operand) -> None:
    """All cycles of an instruction. The byte after the opcode is fetched even where it is no operand."""
    fetch(cpu, 0)
    fetch(cpu, 1)
    if mode is MODES[""]:
        operation(cpu, *constants)
    elif mode is MODES["a"]:
        cpu.a = operation(cpu, cpu.a, *constants)
    elif mode is MODES["#"] or "operand" in operation.parameters:
        operation(cpu, operand, *constants)
    elif "address" in operation.parameters:
        operation(cpu, resolve(cpu, mode, operand, True), *constants)
    elif "value" not in operation.parameters:
        write(cpu, resolve(cpu, mode, operand, True), operation(cpu, *constants))
    elif operation.hints["return"] is not u8:
        operation(cpu, read(cpu, resolve(cpu, mode, operand, False)), *constants)
    else:
        address = resolve(cpu, mode, operand, not cpu.has("cmos") or operation.name == "step")  # INC, DEC
        value = read(cpu, address)
        if cpu.has("cmos"):
            read(cpu, address)
        else:
            write(cpu, address, value)
        write(cpu, address, operation(cpu, value, *constants))


def instruction(name: str, opcodes: str, *constants: Any, on: Architecture = mos6502) -> Callable[[Any], Function]:
    """Decorator: this operation is the instruction ``name``, in modes, by their opcodes: ``"0a:a 06:zp"``, ``"ea"``.

    The operation's further parameters are ``constants``.
    """

    def register(python: Any) -> Function:
        operation = python if isinstance(python, Function) else Function(python)
        for each in opcodes.split():
            opcode, _, key = each.partition(":")
            mode = MODES[key]
            pattern = f"{int(opcode, 16):08b}" + (f" / operand:{8 * mode.size}" if mode.size else "")
            on.instruction(pattern, name + mode.syntax)(_in_mode(operation, constants, mode))
        return operation

    return register


@cache
def _in_mode(operation: Function, constants: tuple[Any, ...], mode: Mode) -> Function:
    """The instruction's function, which all its opcodes in that mode share."""
    kind: Any = operation.hints.get("operand", u8 if mode.size == 1 else u16)

    def alone(cpu):
        execute(cpu, operation, constants, mode, None)

    def with_operand(cpu, operand: kind):
        execute(cpu, operation, constants, mode, operand)

    return Function(with_operand if mode.size else alone)
