"""Compiled code that can be kept and be linked at any address: bytes, and the places that need an address."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Machines of ELF, and relocations of their supplements, as far as the large code model needs them.
_X86_64, _AARCH64 = 62, 183
_ABSOLUTE_64 = {(_X86_64, 1), (_AARCH64, 257)}
_MOVW = {263: 0, 264: 0, 265: 16, 266: 16, 267: 32, 268: 32, 269: 48}  # R_AARCH64_MOVW_UABS_G0 ... G3: the shift
# Units start at multiples of this; so do they inside a joined one.
ALIGN = 64
_WORD = struct.Struct("<Q")
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
                _WORD.pack_into(code, r.place, value)
            else:
                (word,) = struct.unpack_from("<I", code, r.place)
                struct.pack_into("<I", code, r.place, word & ~(0xFFFF << 5) | ((value >> r.shift) & 0xFFFF) << 5)
        return code


def _move(code: bytearray, runs: Iterable[tuple[int, int]], distance: int) -> None:
    """Add to words of ``code``."""
    unpack, pack = _WORD.unpack_from, _WORD.pack_into
    for place, count in runs:
        if count == 1:
            pack(code, place, unpack(code, place)[0] + distance)
        else:
            words = struct.Struct(f"<{count}Q")
            words.pack_into(code, place, *[word + distance for word in words.unpack_from(code, place)])


class UnlinkableError(Exception):
    """An object file has something this module does not know."""


class _Section(NamedTuple):
    """A section header of an ELF file (System V ABI, chapter 4)."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


_SECTION, _SYMBOL, _RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_PROGBITS, _SYMTAB, _RELA = 1, 2, 4
_ALLOC, _GLOBAL, _UNDEFINED = 2, 1, 0


def unit_from_object(data: bytes) -> Unit:
    """Take an object file's code and constants apart. Raises UnlinkableError."""
    # Read here, and not by the ELF library: that takes a fifth as long as LLVM does to compile a region.
    if data[:6] != b"\x7fELF\x02\x01":
        raise UnlinkableError("this is no ELF file of 64 bits, little-endian")
    (machine,) = struct.unpack_from("<H", data, 0x12)
    (start,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    sections = [_Section(*_SECTION.unpack_from(data, start + size * i)) for i in range(count)]

    def content(section: _Section) -> bytes:
        return data[section.offset : section.offset + section.size]

    def name_at(table: _Section, place: int) -> str:
        first = table.offset + place
        return data[first : data.index(b"\0", first)].decode()

    code = bytearray()
    places: dict[int, int] = {}
    for number, section in enumerate(sections):
        # What has bytes in the file: code and constants. Unwind tables are of no use here.
        if section.flags & _ALLOC and section.type == _PROGBITS:
            if name_at(sections[names], section.name) == ".eh_frame":
                continue
            code += bytes(-len(code) % max(section.align, 16))
            places[number] = len(code)
            code += content(section)
    table = next(s for s in sections if s.type == _SYMTAB)
    # Of each: its name, whether it is global, its section, its place there.
    known = [
        (name, info >> 4 == _GLOBAL, index, value)
        for name, info, _, index, value, _ in _SYMBOL.iter_unpack(content(table))
    ]
    texts = sections[table.link]
    symbols = {
        name_at(texts, name): places[index] + value for name, is_global, index, value in known
        if is_global and index in places
    }
    inside: list[int] = []
    relocations = []
    for section in sections:
        if section.type != _RELA or section.info not in places:
            continue
        for offset, what, addend in _RELOCATION.iter_unpack(content(section)):
            kind = what & 0xFFFFFFFF
            shift = _MOVW.get(kind, -1) if machine == _AARCH64 else -1
            if (machine, kind) not in _ABSOLUTE_64 and shift < 0:
                raise UnlinkableError(f"relocation {kind} of machine {machine}")
            name, _, index, value = known[what >> 32]
            place = places[section.info] + offset
            if index in places:
                target = places[index] + value + addend
                if shift < 0:
                    _WORD.pack_into(code, place, target)
                    inside.append(place)
                else:
                    relocations.append(Relocation(place, "", target, shift))
            elif index == _UNDEFINED:
                relocations.append(Relocation(place, name_at(texts, name), addend, shift))
            else:
                raise UnlinkableError(f"symbol {name_at(texts, name)} is in a section that is not kept")
    return Unit(bytes(code), symbols, _runs(inside), tuple(relocations))


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
            _WORD.pack_into(code, r.place, symbols[r.symbol] + r.addend)
            inside.append(r.place)
        else:
            relocations.append(Relocation(r.place, "", symbols[r.symbol] + r.addend, r.shift))
    return Unit(bytes(code), symbols, _runs(inside), tuple(relocations))


def _runs(places: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Places of words as runs of words that follow each other."""
    found: list[tuple[int, int]] = []
    for place in sorted(places):
        if found and place == found[-1][0] + 8 * found[-1][1]:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((place, 1))
    return tuple(found)
