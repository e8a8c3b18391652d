"""A Commodore 64 that is run from Python: cycles, frames, programs, keys, pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from polyvisor.devices.c64 import keyboard, memory
from polyvisor.devices.c64.picture import Picture, picture
from polyvisor.engine.bare import BareMachine
from polyvisor.engine.memory import Device, Memory

from .architecture import IO, c64

FRAME = 312 * 63
"""Clock cycles of a frame (PAL)."""
CLOCK = 985_248
"""Clock cycles of a second (PAL)."""
RAM_SIZE = 0x5_8000
SCREEN_COLUMNS, SCREEN_LINES = 40, 25
BASIC_START = 0x0801
# Zero page, as the Programmer's Reference Guide has it: where a BASIC program begins, its variables, and its end.
_PROGRAM_POINTERS = 0x2B, 0x2D, 0x2F, 0x31
_KEYS_WAITING, _KEY_BUFFER, _MOST_KEYS = 0xC6, 0x0277, 10
# RAM and ROM have 1280 pages together, of 256 bytes.
_CODE_PAGES = 1024


class Stop(NamedTuple):
    """Why a run ended: ``limit``, ``debug`` with the byte that was written to $D7FF, or ``jam``."""

    reason: str
    value: int = 0


class _Expansion:
    """The last 512 bytes of the I/O area: nothing is there, or what is plugged in."""

    def __init__(self) -> None:
        self.device: Device | None = None

    def read(self, offset: int, size: int) -> int:
        return 0xFF if self.device is None else self.device.read(offset - 0xE00, size)

    def write(self, offset: int, size: int, value: int) -> None:
        if self.device is not None:
            self.device.write(offset - 0xE00, size, value)


class Commodore64:
    """The machine. ``basic``, ``kernal`` and ``characters`` are its ROMs: 8 KiB, 8 KiB and 4 KiB.

    ``tier``: ``jit``, ``interpreter`` or ``reference``; ``debug``: a write to $D7FF ends a run, as test programs want.
    Raises ValueError for ROMs of another size.
    """

    def __init__(
        self, *, basic: bytes, kernal: bytes, characters: bytes, tier: str = "jit", debug: bool = False,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        sizes = {"BASIC": (basic, 0x2000), "KERNAL": (kernal, 0x2000), "character": (characters, 0x1000)}
        for name, (rom, size) in sizes.items():
            if len(rom) != size:
                raise ValueError(f"the {name} ROM has {len(rom)} bytes; it must have {size}")
        self.memory = Memory()
        self.memory.add_ram(memory.RAM, RAM_SIZE, "ram")
        self.memory.write(memory.BASIC_ROM, basic)
        self.memory.write(memory.KERNAL_ROM, kernal)
        self.memory.write(memory.CHARACTER_ROM, characters)
        self._expansion = _Expansion()
        self.memory.add_device(IO, 0x1000, self._expansion)
        self._bare = BareMachine(c64, self.memory, tier=tier, pages=_CODE_PAGES, progress=progress)
        self.cpu = self._bare.cpu
        self.debug = debug
        self.reset()

    @property
    def state(self) -> Any:
        """Registers and chips, by their declared names."""
        return self.cpu.state

    def reset(self) -> None:
        """Begin anew, as after the power came; memory stays as it is."""
        self.state.reset()
        self.state.c64_debug = self.debug
        self.cpu.retired = 0
        self.state.port_direction, self.state.port_data = 0, 0
        vector = self.memory.read(memory.KERNAL_ROM + 0x1FFC, 2)
        self.state.pc = int.from_bytes(vector, "little")
        self.cpu.flush()

    @property
    def cycles(self) -> int:
        """Clock cycles since the reset."""
        return self.cpu.retired

    @property
    def frames(self) -> int:
        """Frames that were completed since then."""
        return int(self.state.vic_frames)

    # Running

    def run(self, cycles: int) -> Stop:
        """Run for so many clock cycles, and to the next jump."""
        end = self.cycles + cycles
        while self.cycles < end:
            found = self.cpu.run(end - self.cycles)
            if found.kind == "leave" and found.reason == "debug":
                return Stop("debug", int(self.state.c64_debug_value))
            if found.kind == "leave":
                return Stop(found.reason)
            if found.kind in ("stop", "breakpoint"):
                return Stop(found.kind)
        return Stop("limit")

    def run_frames(self, frames: int = 1) -> Stop:
        """Run until about so many frames later."""
        return self.run(frames * FRAME)

    def run_until(self, condition: Callable[[], bool], frames: int = 500) -> bool:
        """Run, frame by frame, until a condition holds; gives whether it did within so many frames."""
        for _ in range(frames):
            if condition():
                return True
            if self.run_frames().reason != "limit":
                break
        return condition()

    # Programs and cartridges

    def load(self, program: bytes) -> int:
        """Put a PRG file (its address, two bytes, then its contents) into RAM, as LOAD"…",8,1 does; gives the address.

        Raises ValueError if it does not fit.
        """
        if len(program) < 3:
            raise ValueError("a PRG file has an address of two bytes, and something to put there")
        address, content = int.from_bytes(program[:2], "little"), program[2:]
        end = address + len(content)
        if end > 0x10000:
            raise ValueError(f"the program would end at ${end:x}; memory ends at $10000")
        self.memory.write(memory.RAM + address, content)
        if address == BASIC_START:
            for pointer in _PROGRAM_POINTERS[1:]:
                self.poke(pointer, end & 0xFF)
                self.poke(pointer + 1, end >> 8)
        return address

    # Looking in

    def peek(self, address: int) -> int:
        """A byte of RAM, whatever is in front of it."""
        return self.memory.read(memory.RAM + address, 1)[0]

    def poke(self, address: int, value: int) -> None:
        """Change a byte of RAM."""
        self.memory.write(memory.RAM + address, bytes([value]))

    def screen(self) -> list[str]:
        """The lines of the text screen at $0400, as far as its characters are letters, digits and signs."""
        codes = self.memory.read(memory.RAM + 0x0400, SCREEN_COLUMNS * SCREEN_LINES)
        text = "".join(_SCREEN_CODES[code & 0x7F] for code in codes)
        return [text[at : at + SCREEN_COLUMNS].rstrip() for at in range(0, len(text), SCREEN_COLUMNS)]

    def picture(self) -> Picture:
        """The picture on the screen."""
        return picture(self.memory)

    # Hands

    def type(self, text: str) -> None:
        """Type letters, digits, signs and newlines, through the KERNAL's buffer of keys."""
        for start in range(0, len(text), _MOST_KEYS):
            keys = bytes(_typed(character) for character in text[start : start + _MOST_KEYS])
            if not self.run_until(lambda: self.peek(_KEYS_WAITING) == 0):
                raise ValueError("nobody takes the keys: is a program running?")
            self.memory.write(memory.RAM + _KEY_BUFFER, keys)
            self.poke(_KEYS_WAITING, len(keys))
        self.run_until(lambda: self.peek(_KEYS_WAITING) == 0)

    def press(self, key: str, down: bool = True) -> None:
        """Press a key of the keyboard, by its name in :mod:`polyvisor.devices.c64.keyboard`, or let it go."""
        if key == "restore":
            self.state.nmi_pending = self.state.nmi_pending | int(down)
            return
        keyboard.press(self.state, key, down)
        self.cpu.poke()

    def joystick(self, port: int, *, up: bool = False, down: bool = False, left: bool = False, right: bool = False,
                 fire: bool = False) -> None:  # fmt: skip
        """Hold the joystick in port 1 or 2 like this."""
        held = up | down << 1 | left << 2 | right << 3 | fire << 4
        inputs = self.state.cia_pb_inputs if port == 1 else self.state.cia_pa_inputs
        inputs[0] = 0xFF & ~held
        self.cpu.poke()

    def close(self) -> None:
        """Give back what it holds of the host."""
        self._bare.close()


_SCREEN_CODES = (
    "@ABCDEFGHIJKLMNOPQRSTUVWXYZ[£]↑← !\"#$%&'()*+,-./0123456789:;<=>?" + "─♠│" + "·" * 61
)  # fmt: skip


def _typed(character: str) -> int:
    """The PETSCII code of a key. Raises ValueError for what no key has."""
    code = 13 if character == "\n" else ord(character.upper())
    if code != 13 and not 0x20 <= code <= 0x5D:
        raise ValueError(f"there is no key for {character!r}")
    return code
