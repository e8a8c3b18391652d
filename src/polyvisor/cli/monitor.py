"""The monitor behind Ctrl-A c: a few commands about the running machine."""

from __future__ import annotations

from collections.abc import Callable

from polyvisor.engine.memory import BusError
from polyvisor.vm.machine import Machine

HELP = """\
cont, c           back to the console (so does an empty line)
info              harts, instructions executed, memory
regs [HART]       registers of a hart
mem ADDRESS [N]   N bytes of physical memory (64)
pause, resume     make the machine stand still; let it go on
reset             restart it
quit, q           cut the power
"""


def run_monitor(machine: Machine, read: Callable[[str], str], write: Callable[[str], None]) -> str:
    """Take commands until one leads back: gives ``cont``, ``quit`` or ``reset``.

    ``read(prompt)`` gives a line, and raises EOFError at the end of input; ``write`` prints.
    """
    while True:
        try:
            words = read("(polyvisor) ").split()
        except (EOFError, KeyboardInterrupt):
            return "cont"
        match words:
            case [] | ["cont" | "c" | "continue"]:
                return "cont"
            case ["quit" | "q"]:
                return "quit"
            case ["reset"]:
                return "reset"
            case ["pause"]:
                machine.pause()
            case ["resume"]:
                machine.resume()
            case ["info"]:
                write(_info(machine))
            case ["regs"] | ["regs", _]:
                write(_registers(machine, words[1] if len(words) > 1 else "0"))
            case ["mem", address] | ["mem", address, _]:
                write(_memory(machine, address, words[2] if len(words) > 2 else "64"))
            case ["help" | "?"]:
                write(HELP)
            case _:
                write(f"no command {' '.join(words)!r}; help lists them\n")


def _info(machine: Machine) -> str:
    lines = []
    for hart in machine.board.harts:
        state = hart.state
        running = "started" if hart.started else "stopped"
        lines.append(
            f"hart {hart.hart_id}: {running}, pc {int(state.pc):#x}, privilege {int(state.privilege)}, "
            f"{hart.cpu.retired:,} instructions"
        )
    pages = machine.board.pages
    if pages is not None:
        lines.append(f"decoded pages: {pages.activations:,} activations, {pages.discards} discards")
    lines.append(f"memory: {machine.board.config.memory >> 20} MiB")
    return "\n".join(lines) + "\n"


def _registers(machine: Machine, number: str) -> str:
    try:
        hart = machine.board.harts[int(number)]
    except (ValueError, IndexError):
        return f"no hart {number!r}; there are 0 to {len(machine.board.harts) - 1}\n"
    state = hart.state
    names = type(state).x.names
    cells = [f"{name:>4} {int(value):016x}" for name, value in zip(names, state.x, strict=True)]
    rows = ["  ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
    others = ("pc", "mstatus", "satp", "sepc", "scause", "stval", "mcause")
    special = "  ".join(f"{name} {int(getattr(state, name)):x}" for name in others)
    return "\n".join([*rows, special]) + "\n"


def _memory(machine: Machine, address: str, count: str) -> str:
    try:
        start, length = int(address, 0), int(count, 0)
        data = machine.board.memory.read(start, length)
    except ValueError:
        return "mem takes numbers, for example: mem 0x80000000 64\n"
    except BusError as error:
        return f"{error}\n"
    rows = []
    for offset in range(0, len(data), 16):
        row = data[offset : offset + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        rows.append(f"{start + offset:#010x}  {row.hex(' '):<47}  {text}")
    return "\n".join(rows) + "\n"
