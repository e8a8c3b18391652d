"""Object files, as LLVM writes them, taken apart: what is left is what can be linked."""

from __future__ import annotations

import struct
from typing import NamedTuple

from .objects import WORD, Relocation, Unit, UnlinkableError, runs_of

# Machines of ELF, and relocations of their supplements, as far as the large code model needs them.
_X86_64, _AARCH64 = 62, 183
_ABSOLUTE_64 = {(_X86_64, 1), (_AARCH64, 257)}
_MOVW = {263: 0, 264: 0, 265: 16, 266: 16, 267: 32, 268: 32, 269: 48}  # R_AARCH64_MOVW_UABS_G0 ... G3: the shift


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
                    WORD.pack_into(code, place, target)
                    inside.append(place)
                else:
                    relocations.append(Relocation(place, "", target, shift))
            elif index == _UNDEFINED:
                relocations.append(Relocation(place, name_at(texts, name), addend, shift))
            else:
                raise UnlinkableError(f"symbol {name_at(texts, name)} is in a section that is not kept")
    return Unit(bytes(code), symbols, runs_of(inside), tuple(relocations))
