"""Compiled code that can be kept and be linked at any address: bytes, and the places that need an address."""

from __future__ import annotations

import ctypes
import io
import struct
from dataclasses import dataclass
from typing import Any

from elftools.elf.elffile import ELFFile

# Relocations of the ELF supplements for x86-64 and AArch64, as far as the large code model needs them.
_X86_64, _AARCH64 = "EM_X86_64", "EM_AARCH64"
_ABSOLUTE_64 = {(_X86_64, 1), (_AARCH64, 257)}
_MOVW = {263: 0, 264: 0, 265: 16, 266: 16, 267: 32, 268: 32, 269: 48}  # R_AARCH64_MOVW_UABS_G0 ... G3: the shift


@dataclass(frozen=True)
class Relocation:
    """At ``place``, put the address of ``symbol`` (the unit itself, if empty) plus ``addend``.

    ``shift`` is -1 for a 64-bit word, else the immediate of an AArch64 ``movz`` or ``movk`` takes 16 bits from there.
    """

    place: int
    symbol: str
    addend: int
    shift: int = -1


@dataclass(frozen=True)
class Unit:
    """Machine code: ``entry`` is the offset of its function."""

    code: bytes
    entry: int
    relocations: tuple[Relocation, ...]

    def symbols(self) -> set[str]:
        """The symbols whose addresses it needs."""
        return {r.symbol for r in self.relocations if r.symbol}

    def link(self, address: int, symbols: dict[str, int]) -> bytes:
        """The bytes to put at ``address``."""
        code = bytearray(self.code)
        for r in self.relocations:
            value = ((symbols[r.symbol] if r.symbol else address) + r.addend) & (2**64 - 1)
            if r.shift < 0:
                struct.pack_into("<Q", code, r.place, value)
            else:
                (word,) = struct.unpack_from("<I", code, r.place)
                struct.pack_into("<I", code, r.place, word & ~(0xFFFF << 5) | ((value >> r.shift) & 0xFFFF) << 5)
        return bytes(code)


class UnlinkableError(Exception):
    """An object file has something this module does not know."""


def unit_from_object(data: bytes, function: str) -> Unit:
    """Take an object file's code and constants apart. Raises UnlinkableError."""
    elf: Any = ELFFile(io.BytesIO(data))
    machine = elf["e_machine"]
    code = bytearray()
    places: dict[int, int] = {}
    for number, section in enumerate(elf.iter_sections()):
        # SHF_ALLOC, and bytes in the file: code and constants. Unwind tables are of no use here.
        if section["sh_flags"] & 2 and section["sh_type"] == "SHT_PROGBITS" and section.name != ".eh_frame":
            align = max(section["sh_addralign"], 16)
            code += bytes(-len(code) % align)
            places[number] = len(code)
            code += section.data()
    table = elf.get_section_by_name(".symtab")
    entry = None
    for symbol in table.iter_symbols():
        if symbol.name == function and symbol["st_shndx"] in places:
            entry = places[symbol["st_shndx"]] + symbol["st_value"]
    if entry is None:
        raise UnlinkableError(f"the object file has no function {function}")
    relocations = []
    for section in elf.iter_sections():
        if section["sh_type"] not in ("SHT_RELA", "SHT_REL") or section["sh_info"] not in places:
            continue
        for r in section.iter_relocations():
            kind = (machine, r["r_info_type"])
            shift = _MOVW.get(kind[1], -1) if machine == _AARCH64 else -1
            if kind not in _ABSOLUTE_64 and shift < 0:
                raise UnlinkableError(f"relocation {kind[1]} of {machine}")
            symbol = table.get_symbol(r["r_info_sym"])
            place = places[section["sh_info"]] + r["r_offset"]
            addend = r["r_addend"]
            if symbol["st_shndx"] in places:
                inside = places[symbol["st_shndx"]] + symbol["st_value"] + addend
                relocations.append(Relocation(place, "", inside, shift))
            elif symbol["st_shndx"] == "SHN_UNDEF":
                relocations.append(Relocation(place, symbol.name, addend, shift))
            else:
                raise UnlinkableError(f"symbol {symbol.name} is in a section that is not kept")
    return Unit(bytes(code), entry, tuple(relocations))


def address_of_buffer(buffer: Any) -> int:
    """The host address of a writable buffer."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
