"""Compiled code that can be kept and be linked at any address: bytes, and the places that need an address."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Units start at multiples of this; so do they inside a joined one.
ALIGN = 64
WORD = struct.Struct("<Q")
_MASK = 2**64 - 1


class Relocation(NamedTuple):
    """At ``place``, put the address of ``symbol`` (the unit itself, if empty) plus ``addend``.

    ``shift`` is -1 for a 64-bit word, else the immediate of an AArch64 ``movz`` or ``movk`` takes 16 bits from there.
    """

    place: int
    symbol: str
    addend: int
    shift: int = -1


class Unit(NamedTuple):
    """Machine code: ``symbols`` are the functions it defines, by their offsets.

    ``inside`` are runs (place, count) of 64-bit words that hold an offset in the unit, to which its address is added:
    nearly all relocations, so these are kept compactly.
    """

    code: bytes
    symbols: Mapping[str, int]
    inside: tuple[tuple[int, int], ...]
    relocations: tuple[Relocation, ...]

    def link(self, address: int, symbols: Mapping[str, int]) -> bytearray:
        """The bytes to put at ``address``. Raises KeyError for a symbol that it needs and ``symbols`` has not."""
        code = bytearray(self.code)
        _move(code, self.inside, address)
        for r in self.relocations:
            value = ((symbols[r.symbol] if r.symbol else address) + r.addend) & _MASK
            if r.shift < 0:
                WORD.pack_into(code, r.place, value)
            else:
                (word,) = struct.unpack_from("<I", code, r.place)
                struct.pack_into("<I", code, r.place, word & ~(0xFFFF << 5) | ((value >> r.shift) & 0xFFFF) << 5)
        return code


def _move(code: bytearray, runs: Iterable[tuple[int, int]], distance: int) -> None:
    """Add to words of ``code``."""
    unpack, pack = WORD.unpack_from, WORD.pack_into
    for place, count in runs:
        if count == 1:
            pack(code, place, unpack(code, place)[0] + distance)
        else:
            words = struct.Struct(f"<{count}Q")
            words.pack_into(code, place, *[word + distance for word in words.unpack_from(code, place)])


class UnlinkableError(Exception):
    """An object file has something this module does not know."""


def join(units: Iterable[Unit]) -> Unit:
    """One unit of several, in which what they need of each other is resolved."""
    code = bytearray()
    symbols: dict[str, int] = {}
    inside: list[int] = []
    needs: list[Relocation] = []
    for unit in units:
        code += bytes(-len(code) % ALIGN)
        start = len(code)
        piece = bytearray(unit.code)
        _move(piece, unit.inside, start)
        code += piece
        symbols.update((name, start + offset) for name, offset in unit.symbols.items())
        inside += [start + place + 8 * i for place, count in unit.inside for i in range(count)]
        needs += [
            Relocation(start + r.place, r.symbol, r.addend if r.symbol else start + r.addend, r.shift)
            for r in unit.relocations
        ]
    relocations = []
    for r in needs:
        if r.symbol not in symbols:
            relocations.append(r)
        elif r.shift < 0:
            WORD.pack_into(code, r.place, symbols[r.symbol] + r.addend)
            inside.append(r.place)
        else:
            relocations.append(Relocation(r.place, "", symbols[r.symbol] + r.addend, r.shift))
    return Unit(bytes(code), symbols, runs_of(inside), tuple(relocations))


def runs_of(places: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Places of words as runs of words that follow each other."""
    found: list[tuple[int, int]] = []
    for place in sorted(places):
        if found and place == found[-1][0] + 8 * found[-1][1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((place, 1))
    return tuple(found)
