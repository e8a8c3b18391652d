"""A Commodore 64 in a terminal: its picture as half blocks or as characters, and keys as bytes come from a terminal."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from operator import itemgetter

from polyvisor.boards.c64.machine import Commodore64
from polyvisor.devices.c64 import keyboard, memory
from polyvisor.devices.c64.palette import COLOURS
from polyvisor.devices.c64.picture import Picture
from polyvisor.storage.commodore.petscii import screen_text

ENTER = "\x1b[?1049h\x1b[?25l\x1b[2J"
"""Begin: the terminal's other screen, without a cursor."""
LEAVE = "\x1b[0m\x1b[?25h\x1b[?1049l"
"""End: what was there before."""
COLUMNS, LINES = 40, 25
_INNER = 320, 200
# Below so many columns and half lines, the VIC-II's characters cannot be read any more.
_LEGIBLE = 310, 190
_ESCAPE = "\x1b"

Cell = tuple[str, int, int]
"""What a place of the terminal shows: a character, its colour, and that behind it, as 0xRRGGBB."""


_SINGLE = [COLOURS[value & 15] for value in range(256)]

# The picture


def is_text(machine: Commodore64) -> bool:
    """Whether the VIC-II shows text with the characters of its ROM, and nothing else: no graphics, no sprites."""
    registers = machine.state.vic_registers
    mode = int(registers[0x11]) & 0x70, int(registers[0x16]) & 0x10
    bank, pointers = int(machine.state.vic_bank), int(registers[0x18])
    return mode == (0x10, 0) and bank in (0, 0x8000) and pointers & 0x0C == 4 and int(registers[0x15]) == 0


def text_cells(machine: Commodore64, columns: int, lines: int) -> list[list[Cell]]:
    """The text screen as cells, with as much of the border as there is room for.

    Where there are not enough lines for all, those around the cursor are shown.
    """
    state = machine.state
    pointers = int(state.vic_registers[0x18])
    border, behind = (COLOURS[int(state.vic_registers[register]) & 15] for register in (0x20, 0x21))
    codes = machine.memory.read(memory.RAM + int(state.vic_bank) + (pointers >> 4) * 0x400, COLUMNS * LINES)
    colours = machine.memory.read(memory.COLOUR_RAM, COLUMNS * LINES)
    shown = screen_text(codes, bool(pointers & 2))
    rows: list[list[Cell]] = []
    for row in range(LINES):
        cells: list[Cell] = []
        for at in range(row * COLUMNS, (row + 1) * COLUMNS):
            colour = COLOURS[colours[at] & 15]
            cells.append((shown[at], behind, colour) if codes[at] & 0x80 else (shown[at], colour, behind))
        rows.append(cells)
    if lines < LINES:
        first = min(max(machine.peek(0xD6) - lines + 1, 0), LINES - lines)
        rows = rows[first : first + lines]
    blank: Cell = (" ", border, border)
    side = (columns - COLUMNS) // 2
    framed = [[blank] * side + cells[: columns - max(side, 0)] + [blank] * (columns - side - COLUMNS) for cells in rows]
    above = (lines - len(framed)) // 2
    return [[blank] * columns] * above + framed + [[blank] * columns] * (lines - above - len(framed))


def block_cells(picture: Picture, columns: int, lines: int) -> list[list[Cell]]:
    """The picture in half blocks: two of its points in each cell, one above the other."""
    width, height, pixels = picture.width, picture.height, picture.pixels
    left = top = 0
    if columns < width or 2 * lines < height:
        # The border is left out before points are.
        left, top = (width - _INNER[0]) // 2, picture.above
        width, height = _INNER
    scale = max(width / columns, height / (2 * lines))
    if scale < 1:
        scale = 1 / int(1 / scale)
    across, down = min(columns, int(width / scale)), min(2 * lines, int(height / scale)) // 2 * 2
    parts = (0.25, 0.75) if scale > 1.3 else (0.5,)
    xs = [tuple(left + int((x + part) * width / across) for x in range(across)) for part in parts]
    pick = [itemgetter(*each) if len(each) > 1 else (lambda row, at=each[0]: (row[at],)) for each in xs]
    points: list[list[int]] = []
    for y in range(down):
        found = []
        for part in parts:
            start = (top + int((y + part) * height / down)) * picture.width
            row = pixels[start : start + picture.width]
            found += [each(row) for each in pick]
        points.append(list(map(_SINGLE.__getitem__, found[0])) if len(found) == 1 else list(map(mean, *found)))
    side, above = (columns - across) // 2, (lines - down // 2) // 2
    blank: Cell = (" ", 0, 0)
    rows: list[list[Cell]] = [[blank] * columns] * above
    for upper, lower in zip(points[::2], points[1::2], strict=True):
        rows.append([blank] * side + list(map(_halves, upper, lower)) + [blank] * (columns - side - across))
    return rows + [[blank] * columns] * (lines - len(rows))


@lru_cache(maxsize=1 << 16)
def _halves(upper: int, lower: int) -> Cell:
    """A cell whose upper and lower half have these colours."""
    return "▀", upper, lower


@lru_cache(maxsize=1 << 16)
def mean(*colours: int) -> int:
    """The mean of some of the sixteen colours."""
    found = [COLOURS[colour & 15] for colour in colours]
    channels = (sum(colour >> shift & 0xFF for colour in found) // len(found) << shift for shift in (16, 8, 0))
    return sum(channels)


class Screen:
    """What a terminal shows, so that only what is different is sent."""

    def __init__(self) -> None:
        self._shown: list[list[Cell]] = []

    def forget(self) -> None:
        """Send everything the next time: the terminal has another size, or something else was printed."""
        self._shown = []

    def draw(self, cells: Sequence[list[Cell]]) -> str:
        """The bytes, as text, by which a terminal comes to show these cells."""
        out = []
        if [len(row) for row in cells] != [len(row) for row in self._shown]:
            out.append("\x1b[0m\x1b[2J")
            self._shown = [[("", -1, -1)] * len(row) for row in cells]
        front = back = -1
        for line, (row, before) in enumerate(zip(cells, self._shown, strict=True), 1):
            if row == before:
                continue
            at = -1
            for column, (cell, old) in enumerate(zip(row, before, strict=True), 1):
                if cell == old:
                    continue
                if column != at:
                    out.append(f"\x1b[{line};{column}H")
                character, colour, behind = cell
                if colour != front and character != " ":
                    out.append(f"\x1b[38;2;{colour >> 16};{colour >> 8 & 0xFF};{colour & 0xFF}m")
                    front = colour
                if behind != back:
                    out.append(f"\x1b[48;2;{behind >> 16};{behind >> 8 & 0xFF};{behind & 0xFF}m")
                    back = behind
                out.append(character)
                at = column + 1
        self._shown = [list(row) for row in cells]
        return "".join(out)


def cells_of(machine: Commodore64, columns: int, lines: int) -> list[list[Cell]]:
    """What a terminal of that size shows best: characters where they could not be read as points."""
    small = columns < _LEGIBLE[0] or 2 * lines < _LEGIBLE[1]
    if small and columns >= COLUMNS and is_text(machine):
        return text_cells(machine, columns, lines)
    return block_cells(machine.picture(), columns, lines)


# Keys

_SEQUENCES = {
    "[A": "up", "[B": "down", "[C": "right", "[D": "left", "OA": "up", "OB": "down", "OC": "right", "OD": "left",
    "[H": "home", "OH": "home", "[1~": "home", "[7~": "home", "[2~": "insert", "[3~": "delete", "[5~": "pageup",
    "[F": "end", "OF": "end", "[4~": "end", "[Z": "backtab",
    "OP": "f1", "OQ": "f2", "OR": "f3", "OS": "f4", "[11~": "f1", "[12~": "f2", "[13~": "f3", "[14~": "f4",
    "[15~": "f5", "[17~": "f6", "[18~": "f7", "[19~": "f8",
    "[[A": "f1", "[[B": "f2", "[[C": "f3", "[[D": "f4", "[[E": "f5",
}  # fmt: skip
_NAMED = {
    "up": "shift down", "down": "down", "right": "right", "left": "shift right", "home": "home", "end": "shift home",
    "insert": "shift delete", "delete": "delete", "pageup": "restore", "backtab": "shift commodore",
    "f1": "f1", "f2": "shift f1", "f3": "f3", "f4": "shift f3", "f5": "f5", "f6": "shift f5", "f7": "f7",
    "f8": "shift f7",
}  # fmt: skip
_CONTROL = {"\x03": "stop", "\t": "commodore", "\r": "return", "\n": "return", "\x7f": "delete", "\b": "delete"}
DIRECTIONS = ("up", "down", "left", "right")
_TOKENS = re.compile(r"\x1b(?:\[\[[A-E]|\[[0-9;]*[A-Za-z~]|O[A-Za-z])|.", re.DOTALL)


def strokes(text: str) -> list[str]:
    """What was pressed, from what a terminal sends: names of its special keys, or characters."""
    found = []
    for token in _TOKENS.findall(text):
        if token[0] == _ESCAPE and len(token) > 1:
            # Modifiers, as in "[1;2A", are left out.
            name = _SEQUENCES.get(re.sub(r"1;\d+(?=[A-Z])|;\d+(?=~)", "", token[1:]))
            if name is not None:
                found.append(name)
        else:
            found.append(token)
    return found


def keys_of(stroke: str) -> tuple[str, ...]:
    """The keys of the machine that are pressed for a stroke; none for one that it has not."""
    if stroke == _ESCAPE:
        return ("stop",)
    if stroke in _NAMED or stroke in _CONTROL:
        names = (_NAMED.get(stroke) or _CONTROL[stroke]).split()
        return tuple("leftshift" if name == "shift" else name for name in names)
    found = keyboard.CHARACTERS.get(stroke)
    if found is None:
        return ()
    return ("leftshift", found[0]) if found[1] else (found[0],)


class Typist:
    """Presses what comes from a terminal, which does not say when a key is let go: each for some frames.

    With a ``joystick`` (1 or 2), the cursor keys are that, and Tab is its button.
    """

    HOLD, GAP = 3, 2
    STICK_HOLD = 8

    def __init__(self, machine: Commodore64, joystick: int | None = None) -> None:
        self._machine = machine
        self._joystick = joystick
        self._waiting: deque[tuple[str, ...]] = deque()
        self._held: tuple[str, ...] = ()
        self._left = 0
        self._stick: dict[str, int] = {}

    def take(self, found: Sequence[str]) -> None:
        """Press these, one after the other."""
        for stroke in found:
            if self._joystick is not None and (stroke in DIRECTIONS or stroke == "\t"):
                self._stick["fire" if stroke == "\t" else stroke] = self.STICK_HOLD
                self._move()
                continue
            keys = keys_of(stroke)
            if keys and keys == self._held and len(found) == 1 and not self._waiting and self._left > 0:
                self._left = self.HOLD  # the terminal repeats it, because it is held
            elif keys:
                self._waiting.append(keys)

    def frame(self) -> None:
        """A frame has passed."""
        if self._stick:
            before = set(self._stick)
            self._stick = {name: left - 1 for name, left in self._stick.items() if left > 1}
            if set(self._stick) != before:
                self._move()
        self._left -= 1
        if self._held and self._left <= 0:
            for key in reversed(self._held):
                self._machine.key(key, False)
            self._held, self._left = (), self.GAP
        elif not self._held and self._left <= 0 and self._waiting:
            self._held, self._left = self._waiting.popleft(), self.HOLD
            for key in self._held:
                self._machine.key(key)

    def _move(self) -> None:
        assert self._joystick is not None
        self._machine.joystick(self._joystick, **dict.fromkeys(self._stick, True))
