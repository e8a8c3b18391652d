"""The free ROMs of the Commodore 64, made from their sources in ``rom``.

The KERNAL and the program in BASIC's place are 6502 assembly, written from what the Commodore 64 Programmer's Reference
Guide and "Mapping the Commodore 64" say that routines and places do; the characters are drawn in ``characters.txt``.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple

from polyvisor.adl.assembler import Program, assemble
from polyvisor.isa.mos6502 import mos6510
from polyvisor.storage.commodore.petscii import from_unicode

BASIC, KERNAL = 0xA000, 0xE000
SIZE = 0x2000
CHARACTERS_SIZE = 0x1000

# In the order of their addresses.
_KERNAL_SOURCES = (
    "memory.s", "screen.s", "input.s", "entries.s", "keyboard.s", "serial.s", "files.s", "start.s",
)  # fmt: skip
_BASIC_SOURCES = ("memory.s", "basic.s", "statements.s", "expressions.s", "show.s", "programs.s")
_ROW = 9
"""Lines of the drawings for each eight characters: their codes, and eight lines of dots."""


class Roms(NamedTuple):
    """The contents of the machine's three ROMs: 8 KiB, 8 KiB and 4 KiB."""

    basic: bytes
    kernal: bytes
    characters: bytes


@cache
def free_roms() -> Roms:
    """Our own ROMs."""
    kernal = kernal_program()
    return Roms(basic_program().bytes.ljust(SIZE, b"\0"), kernal.bytes, draw_characters(_source("characters.txt")))


@cache
def kernal_program() -> Program:
    """The assembled KERNAL with its symbols."""
    return _assembled(_KERNAL_SOURCES, KERNAL)


def with_drive(kernal: bytes) -> bytes:
    """A KERNAL whose serial routines, from $ED09 on, are ours, and so reach drives by the registers of `drive`.

    For any KERNAL that has these routines where Commodore's has them. Raises ValueError for one of another size.
    """
    if len(kernal) != SIZE:
        raise ValueError(f"a KERNAL has {SIZE} bytes, this has {len(kernal)}")
    ours = kernal_program()
    start, end = (ours.symbols[name] - KERNAL for name in ("talk", "serialend"))
    return kernal[:start] + ours.bytes[start:end] + kernal[end:]


@cache
def basic_program() -> Program:
    """The assembled program in BASIC's place with its symbols."""
    return _assembled(_BASIC_SOURCES, BASIC)


def _source(name: str) -> str:
    return (files(__package__) / "rom" / name).read_text(encoding="utf-8")


def _assembled(names: tuple[str, ...], base: int) -> Program:
    made = assemble(mos6510, "".join(map(_source, names)), base, encodings={".text": from_unicode})
    assert len(made.bytes) <= SIZE
    return made


def draw_characters(text: str) -> bytes:
    """The character ROM from drawings; see ``characters.txt`` for their form. Raises ValueError."""
    glyphs: dict[str, bytes] = {}
    sets: list[list[str]] = []
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not line.startswith(";")]
    at = 0
    while at < len(lines):
        words = lines[at].split()
        if words[0] == "set":
            sets.append([])
            at += 1
        elif words[0] == "use":
            sets[-1] += words[1:]
            at += 1
        else:
            rows = [line.split() for line in lines[at + 1 : at + _ROW]]
            if len(rows) != _ROW - 1 or any(len(row) != len(words) for row in rows):
                raise ValueError(f"characters {lines[at]!r}: eight lines with a part for each should follow")
            for column, name in enumerate(words):
                parts = [row[column] for row in rows]
                if name in glyphs or any(len(part) != 8 or set(part) - {".", "#"} for part in parts):
                    raise ValueError(f"character {name!r}: is there twice, or is not eight dots wide")
                glyphs[name] = bytes(int(part.replace(".", "0").replace("#", "1"), 2) for part in parts)
            at += _ROW
    out = b""
    for names in sets:
        half = b"".join(glyphs[name] for name in names)
        if len(half) != 128 * 8:
            raise ValueError(f"a set has {len(names)} characters, not 128")
        out += half + bytes(byte ^ 0xFF for byte in half)
    if len(out) != CHARACTERS_SIZE:
        raise ValueError(f"there are {len(sets)} sets, not 2")
    return out
