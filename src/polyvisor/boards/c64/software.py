"""What people do at a Commodore 64: wait for the prompt, type, load programs and start them, read the screen.

It knows of the KERNAL what the Commodore 64 Programmer's Reference Guide and "Mapping the Commodore 64" say: the buffer
of keys, the cursor, where the screen is, and where BASIC keeps its program.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from polyvisor.devices.c64 import keyboard, memory
from polyvisor.storage.commodore.cartridge import Cartridge
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.files import FileType
from polyvisor.storage.commodore.petscii import from_unicode, screen_text
from polyvisor.storage.commodore.tape import Tape, check_program

from .machine import Commodore64

COLUMNS, LINES = 40, 25
BASIC_START = 0x0801
_TEXT_START = 0x2B
# Where variables begin and end, arrays begin, and strings: all at the program's end after CLR.
_ENDS = 0x2D, 0x2F, 0x31
_LOADED_END = 0xAE
_KEYS_WAITING, _KEY_BUFFER, _MOST_KEYS = 0xC6, 0x0277, 10
_BUFFER_SIZE = 0x289
_CURSOR_OFF, _CURSOR_COLUMN, _CURSOR_ROW, _SCREEN_PAGE = 0xCC, 0xD3, 0xD6, 0x288
_PATIENCE = 1000
"""Frames that the prompt, or a taker of keys, may take: some twenty seconds."""
_LOADING = 30_000
HOLD = 3
"""Frames that a key is held: the KERNAL looks at the keyboard sixty times a second."""


class NotReadyError(TimeoutError):
    """The machine did not come to where something can be done; the message is a line for the user."""


# The screen


def screen(machine: Commodore64) -> list[str]:
    """The lines of the text screen, wherever the VIC-II has it; reversed characters as the plain ones."""
    state = machine.state
    pointers = int(state.vic_registers[0x18])
    lower = bool(pointers & 2)
    codes = machine.memory.read(memory.RAM + int(state.vic_bank) + (pointers >> 4) * 0x400, COLUMNS * LINES)
    text = screen_text(codes, lower)
    return [text[at : at + COLUMNS].rstrip() for at in range(0, len(text), COLUMNS)]


def at_prompt(machine: Commodore64) -> bool:
    """Whether BASIC's prompt waits: READY. above the cursor, which blinks at the beginning of its line."""
    peek = machine.peek
    row = peek(_CURSOR_ROW)
    if machine.cycles < machine.model.frame:
        return False  # after a reset, what is on the screen is of the time before
    if peek(_CURSOR_OFF) or peek(_KEYS_WAITING) or peek(_CURSOR_COLUMN) or not 1 <= row < LINES:
        return False
    where = memory.RAM + peek(_SCREEN_PAGE) * 0x100 + (row - 1) * COLUMNS
    return screen_text(machine.memory.read(where, COLUMNS)).rstrip().upper() == "READY."


def _waited(machine: Commodore64, condition: Callable[[], bool], frames: int) -> bool:
    """Run until a condition holds, or the run ends by itself, which is left to be seen by whoever runs on."""
    return machine.run_until(condition, frames) or machine.unseen is not None


def wait_for_prompt(machine: Commodore64, frames: int = _PATIENCE) -> None:
    """Run until BASIC's prompt is there. Raises NotReadyError."""
    if not _waited(machine, lambda: at_prompt(machine), frames):
        seconds = frames * machine.model.frame / machine.model.clock
        raise NotReadyError(f"there is no prompt after {seconds:.0f} seconds; the screen says:\n{_text(machine)}")


def _text(machine: Commodore64) -> str:
    return "\n".join(screen(machine)).strip("\n")


# Keys


def type_text(machine: Commodore64, text: str) -> None:
    """Type through the KERNAL's buffer of keys, faster than hands.

    ``text`` is letters, digits, signs and new lines; ``{f1}``, ``{home}``, ``{shift down}`` and the like are keys by
    their names, which are pressed on the keyboard. Raises ValueError for what no key has, and NotReadyError if nobody
    takes them.
    """
    parts = list(_parts(text))
    for key, codes in parts:
        if key:
            press(machine, *key)
            continue
        for at in range(0, len(codes), _MOST_KEYS):
            _wait_for_taker(machine)
            some = codes[at : at + _MOST_KEYS]
            machine.poke(_KEY_BUFFER, some)
            machine.poke(_KEYS_WAITING, len(some))
    if parts:
        _wait_for_taker(machine)


def _wait_for_taker(machine: Commodore64) -> None:

    def ready() -> bool:
        # After a reset, the buffer's size is 0 until the KERNAL has prepared keyboard and screen.
        return machine.cycles >= machine.model.frame and machine.peek(_KEYS_WAITING) == 0 != machine.peek(_BUFFER_SIZE)

    if not _waited(machine, ready, _PATIENCE):
        raise NotReadyError("nobody takes what is typed: is a program running that does not read the keyboard so?")


def _parts(text: str) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """Names of keys that are pressed together, or PETSCII that is typed. Raises ValueError."""
    for part in re.split(r"(\{[^{}]+\})", text):
        if part.startswith("{") and part.endswith("}"):
            names = tuple(key_name(name) for name in part[1:-1].split())
            yield names, b""
        elif part:
            yield (), from_unicode(part)


_OTHER_NAMES = {"shift": "leftshift", "enter": "return", "cbm": "commodore", "c=": "commodore", "runstop": "stop"}


def key_name(name: str) -> str:
    """The name of a key in :mod:`polyvisor.devices.c64.keyboard`, by that or by another. Raises ValueError."""
    found = _OTHER_NAMES.get(name.lower(), name.lower())
    if found != "restore" and found not in keyboard.POSITIONS:
        character = keyboard.CHARACTERS.get(name)
        if character is None:
            raise ValueError(f"there is no key {name!r}; keys are restore {' '.join(keyboard.POSITIONS)}")
        return character[0]
    return found


def press(machine: Commodore64, *keys: str, frames: int = HOLD) -> None:
    """Press keys together for some frames, and let them go. Raises ValueError for a key that there is not."""
    names = [key_name(key) for key in keys]
    for name in names:
        machine.key(name)
    machine.run_frames(frames)
    for name in reversed(names):
        machine.key(name, False)
    machine.run_frames(HOLD)


# Programs


def load(machine: Commodore64, program: bytes) -> int:
    """Put a PRG file (its address, two bytes, then its contents) into RAM, as LOAD"…",8,1 does; gives the address.

    Raises ValueError if it does not fit.
    """
    check_program(program)
    address, content = int.from_bytes(program[:2], "little"), program[2:]
    machine.poke(address, content)
    end = min(address + len(content), 0xFFFF).to_bytes(2, "little")
    machine.poke(_LOADED_END, end)
    if address == machine.peek(_TEXT_START) | machine.peek(_TEXT_START + 1) << 8:
        for pointer in _ENDS:
            machine.poke(pointer, end)
    return address


def start(machine: Commodore64, program: bytes) -> None:
    """Wait for the prompt, load a PRG file, and start it: by RUN where BASIC's programs begin, else by SYS.

    Raises NotReadyError, and ValueError if it does not fit.
    """
    check_program(program)
    wait_for_prompt(machine)
    address = load(machine, program)
    type_text(machine, "RUN\n" if address == BASIC_START else f"SYS{address}\n")


def first_instruction(medium: D64 | Tape | Cartridge) -> int | None:
    """Where the program that :func:`autostart` starts begins, as far as its file says.

    That is its address, or in a BASIC program what the first line has behind SYS. None where ROMs are, or nothing is.
    """
    program = b""
    if isinstance(medium, Tape):
        program = medium.programs[0][1]
    elif isinstance(medium, D64):
        found = next((entry for entry in medium.entries() if entry.type is FileType.PRG), None)
        program = medium.read(found) if found is not None else b""
    if len(program) < 3:
        return None
    address = int.from_bytes(program[:2], "little")
    if address == BASIC_START:
        sys = re.match(rb"....[ :]*\x9e[ (]*([0-9]{1,5})", program[2:], re.DOTALL)
        if sys is None:
            return None
        address = int(sys[1])
    return address if address < 0xA000 or 0xC000 <= address < 0xD000 else None


def start_from_drive(machine: Commodore64, name: str = "*") -> None:
    """Wait for the prompt, load a program from the drive by its name, and RUN it. Raises NotReadyError, ValueError."""
    wait_for_prompt(machine)
    type_text(machine, f'LOAD"{name}",8,1\n')
    # Programs that load elsewhere often start themselves, and never come back to the prompt.
    machine.run_frames(5)
    loaded = _waited(machine, lambda: at_prompt(machine) or _runs_itself(machine), _LOADING)
    if not loaded:
        raise NotReadyError(f"LOAD does not end; the screen says:\n{_text(machine)}")
    if not at_prompt(machine):
        return
    lines = [line.upper() for line in screen(machine)]
    errors = [line for line in lines if line.startswith("?") and line.endswith("ERROR")]
    if errors:
        raise NotReadyError(f"LOAD: {errors[-1]}")
    type_text(machine, "RUN\n")


def _runs_itself(machine: Commodore64) -> bool:
    """Whether it executes RAM outside of what the ROMs use: a loaded program."""
    address = int(machine.state.pc)
    return 0x0400 <= address < 0xA000 or 0xC000 <= address < 0xD000


def autostart(machine: Commodore64, medium: D64 | Tape | Cartridge) -> None:
    """Start what a medium has: the program, or the first of a tape's; what a disk has first is loaded from the drive.

    A cartridge starts by itself; with a disk that has no programs there is nothing to do. Raises NotReadyError,
    ValueError.
    """
    if isinstance(medium, Tape):
        start(machine, medium.programs[0][1])
    elif isinstance(medium, D64) and any(entry.type is FileType.PRG for entry in medium.entries()):
        start_from_drive(machine)
