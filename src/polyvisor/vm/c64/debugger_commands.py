"""What a debugger's `monitor` command does with a Commodore 64."""

from __future__ import annotations

from polyvisor.adl import Field
from polyvisor.vm.errors import VMError

from .machine import C64

HELP = """\
disassemble [ADDRESS [COUNT]]  instructions, from pc on; addresses are hexadecimal
registers [BEGIN]              registers of CPU and chips: vic_, cia_, sid_
screen                         the text on the screen
time                           clock cycles since the power came, and where the raster beam is
rewind SECONDS                 back in time
reset                          as by a button
"""


def obey(c64: C64, text: str) -> str:
    """Do what a command says; gives what to show, also where something is wrong."""
    try:
        return _obey(c64, text.split())
    except (ValueError, VMError) as error:
        return f"{error}\n"


def _obey(c64: C64, words: list[str]) -> str:
    match words:
        case [] | ["help"]:
            return HELP
        case ["disassemble" | "d", *where] if len(where) <= 2:
            address = _address(where[0]) if where else None
            count = _count(where[1]) if len(where) > 1 else 10
            return "".join(f"{line}\n" for line in c64.disassemble(address, count))
        case ["registers", *begin] if len(begin) <= 1:
            return _registers(c64, begin[0] if begin else "")
        case ["screen"]:
            return f"{c64.text}\n"
        case ["time"]:
            return _time(c64)
        case ["rewind", seconds]:
            c64.rewind(float(seconds))
            return f"{c64!r}\n"
        case ["reset"]:
            c64.reset()
            return f"{c64!r}\n"
    return f"no command {' '.join(words)!r}; help lists them\n"


def _address(text: str) -> int:
    """An address, also with $ or 0x. Raises ValueError."""
    try:
        address = int(text.removeprefix("$"), 16)
    except ValueError:
        raise ValueError(f"{text!r} is no address") from None
    if not 0 <= address <= 0xFFFF:
        raise ValueError(f"${address:x}: addresses are $0 to $ffff")
    return address


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1000:
        raise ValueError(f"{text!r} instructions; 1 to 1000 are possible")
    return int(text)


def _time(c64: C64) -> str:
    """Cycles, and where the beam is. The VIC-II's registers may be of some cycles ago: it is run when it matters."""
    state, cycles, frame = c64.cpu, c64.machine.model.vic.cycles, c64.machine.model.frame
    behind = c64.machine.cycles - int(state.vic_clock)
    line, cycle = divmod((int(state.vic_line) * cycles + int(state.vic_cycle) - 1 + behind) % frame, cycles)
    return f"{c64.elapsed} cycles, {c64.seconds:.6f} seconds; raster line {line}, cycle {cycle + 1}\n"


def _registers(c64: C64, begin: str) -> str:
    """Lines of registers whose names begin so."""
    state, lines = c64.cpu, []
    for name, member in type(state).members.items():
        if name.startswith(begin):
            value = getattr(state, name)
            values = [value] if isinstance(member, Field) else list(value)
            lines.append(f"{name} = {' '.join(f'{int(each):x}' for each in values)}\n")
    return "".join(lines) or f"no register begins with {begin!r}\n"
