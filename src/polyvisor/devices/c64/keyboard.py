"""The keyboard: switches where 8 lines of port A of CIA 1 cross 8 of port B.

Source: Commodore 64 Programmer's Reference Guide, appendix "Commodore 64 keyboard"; what the ports do to each other was
measured with test programs.
"""

from __future__ import annotations

from typing import Any

from polyvisor.adl import Registers, function, u8

from ..keys import KEYS

# The keys by row (line of port A) and column (line of port B).
_MATRIX = (
    "delete return right f7 f1 f3 f5 down",
    "3 w a 4 z s e leftshift",
    "5 r d 6 c f t x",
    "7 y g 8 b h u v",
    "9 i j 0 m k o n",
    "+ p l - . : @ ,",
    "pound * ; home rightshift = uparrow /",
    "1 leftarrow ctrl 2 space commodore q stop",
)

POSITIONS = {name: (row, column) for row, names in enumerate(_MATRIX) for column, name in enumerate(names.split())}
"""Row and column of each key, by what is written on it. RESTORE is none of them: it pulls the NMI line."""

_CHARACTERS = {
    **{" ": "space", "\n": "return", "\r": "return", "£": "pound", "^": "uparrow", "↑": "uparrow", "←": "leftarrow"},
    **{"_": "leftarrow", "\\": "pound", "\b": "delete", "\x7f": "delete"},
}
_SHIFTED = dict(zip("!\"#$%&'()", "123456789", strict=True)) | {"<": ",", ">": ".", "?": "/", "[": ":", "]": ";"}


def _characters() -> dict[str, tuple[str, bool]]:
    plain = {name: (name, False) for name in POSITIONS if len(name) == 1}
    plain |= {name.upper(): (name, True) for name in POSITIONS if len(name) == 1 and name.isalpha()}
    plain |= {character: (name, False) for character, name in _CHARACTERS.items()}
    return plain | {character: (name, True) for character, name in _SHIFTED.items()}


CHARACTERS = _characters()
"""For each character that can be typed: the key, and whether with shift. Lower case letters are plain."""

_HOST = {
    # Where the host's keyboard has what is written on the key, or something like it.
    **{"backspace": "delete", "delete": "delete", "enter": "return", "kpenter": "return", "home": "home"},
    **{"insert": "shift delete", "leftshift": "leftshift", "rightshift": "rightshift", "leftctrl": "commodore"},
    **{"tab": "ctrl", "rightctrl": "commodore", "esc": "stop", "space": "space", "grave": "leftarrow"},
    **{"right": "right", "left": "shift right", "down": "down", "up": "shift down"},
    **{"f1": "f1", "f2": "shift f1", "f3": "f3", "f4": "shift f3", "f5": "f5", "f6": "shift f5", "f7": "f7"},
    **{"f8": "shift f7", "minus": "+", "equal": "-", "leftbrace": "@", "rightbrace": "*", "backslash": "uparrow"},
    **{"semicolon": ":", "apostrophe": ";", "end": "pound", "102nd": "=", "comma": ",", "dot": ".", "slash": "/"},
}


def _host_keys() -> dict[int, tuple[str, bool]]:
    found = {KEYS[name]: (name, False) for name in POSITIONS if len(name) == 1 and name in KEYS}
    for host, key in _HOST.items():
        found[KEYS[host]] = (key.split()[-1], key.startswith("shift "))
    return found


HOST_KEYS = _host_keys()
"""The key for each of the host's, by Linux's number (`devices.keys.KEYS`), and whether with shift: by place.

Page up is RESTORE, which the board knows.
"""


class Keyboard:
    """What belongs to the state."""

    keyboard_rows = Registers(u8, 8, doc="for each line of port A, a bit for each of port B: 1 while a key joins them")


@function(inline=False)
def keyboard_low(cpu, a: u8, b: u8, held: u8) -> tuple[u8, u8]:
    """The lines of ports A and B that are low if those in ``a`` and ``b`` are pulled low, as bits that are 1.

    Keys pass a low level on both ways, so three of them make a fourth that nobody presses. Lines of port B in ``held``
    are driven high, which is stronger than what comes through a key.
    """
    more = True
    while more:
        before_a, before_b = a, b
        for row in range(8):
            keys = cpu.keyboard_rows[row]
            if a & (1 << row) != 0:
                b = b | keys & ~held
            if b & keys != 0:
                a = a | (1 << row)
        more = a != before_a or b != before_b
    return a, b


def press(cpu: Any, key: str, down: bool = True) -> None:
    """Press a key in the state of a CPU, or let it go, by its name in `POSITIONS`.

    Raises ValueError if there is none of that name.
    """
    if key not in POSITIONS:
        raise ValueError(f"there is no key {key!r}; keys are {' '.join(POSITIONS)}")
    row, column = POSITIONS[key]
    rows = cpu.keyboard_rows
    rows[row] = int(rows[row]) & ~(1 << column) | down << column
