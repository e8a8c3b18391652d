"""The forms that instructions have, whatever they compute: which cycles, in which order.

Each adds instructions of one operation, by opcode and addressing mode, to an architecture.
"""

from collections.abc import Callable
from typing import Any

from polyvisor.adl import Architecture, Function, function, u8, u16

from .bus import fetch, read, write
from .modes import Mode

Opcodes = dict[int, Mode]


def _type(size: int) -> Any:
    """Of an operand of so many bytes."""
    return u8 if size == 1 else u16


def add(architecture: Architecture, opcode: int, text: str, execute: Function, size: int = 0) -> None:
    """Add an instruction, written as ``text``, with an operand of ``size`` bytes."""
    kind: Any = _type(size)

    def plain(cpu):
        execute(cpu)

    def instruction(cpu, operand: kind):
        execute(cpu, operand)

    described = instruction if size else plain
    described.__name__ = text.partition(" ")[0]
    pattern = f"{opcode:08b}" + (f" / operand:{8 * size}" if size else "")
    architecture.instruction(pattern, text)(described)


def _in_all_modes(
    architecture: Architecture, name: str, opcodes: Opcodes, make: Callable[[Mode], Function]
) -> None:
    for opcode, mode in opcodes.items():
        add(architecture, opcode, name + mode.syntax, make(mode), mode.size)


def reads(architecture: Architecture, name: str, operation: Function, opcodes: Opcodes) -> None:
    """Instructions that read a value."""
    _in_all_modes(architecture, name, opcodes, lambda mode: _reading(name, operation, mode))


def _reading(name: str, operation: Function, mode: Mode) -> Function:
    kind: Any = _type(mode.size)
    address: Any = mode.address

    @function
    def execute(cpu, operand: kind) -> None:
        fetch(cpu, 0)
        if address is None:
            fetch(cpu, 1)
            operation(cpu, operand)
        else:
            operation(cpu, read(cpu, address(cpu, operand, False)))
        if cpu.has("cmos"):
            if name in ("adc", "sbc"):
                if cpu.d != 0:
                    fetch(cpu, 0)  # decimal sums take longer

    return execute


def writes(architecture: Architecture, name: str, value: Function, opcodes: Opcodes) -> None:
    """Instructions that write: what ``value(cpu)`` gives."""
    _in_all_modes(architecture, name, opcodes, lambda mode: _writing(value, mode))


def _writing(value: Function, mode: Mode) -> Function:
    kind: Any = _type(mode.size)
    address: Any = mode.address

    @function
    def execute(cpu, operand: kind) -> None:
        fetch(cpu, 0)
        write(cpu, address(cpu, operand, True), value(cpu))

    return execute


def changes(architecture: Architecture, name: str, operation: Function, opcodes: Opcodes) -> None:
    """Instructions that read a value and write another one back; NMOS writes the old one first, CMOS reads twice."""
    _in_all_modes(architecture, name, opcodes, lambda mode: _changing(operation, mode))


def _changing(operation: Function, mode: Mode) -> Function:
    kind: Any = _type(mode.size)
    address: Any = mode.address

    @function
    def execute(cpu, operand: kind) -> None:
        fetch(cpu, 0)
        if cpu.has("cmos") and operation.name not in ("inc", "dec"):
            target = address(cpu, operand, False)
        else:
            target = address(cpu, operand, True)
        value = read(cpu, target)
        if cpu.has("cmos"):
            read(cpu, target)
        else:
            write(cpu, target, value)
        write(cpu, target, operation(cpu, value))

    return execute


def implied(architecture: Architecture, name: str, operation: Function, *opcodes: int) -> None:
    """Instructions of two cycles without an operand in memory."""

    @function
    def execute(cpu) -> None:
        fetch(cpu, 0)
        fetch(cpu, 1)
        operation(cpu)

    for opcode in opcodes:
        add(architecture, opcode, name, execute)
