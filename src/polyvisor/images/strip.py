"""Take out of a kernel module the symbols that nothing refers to, as ``strip --strip-unneeded`` does.

The symbols of riscv modules are nearly all local labels (".L123"), which the assembler leaves in because the linker
might relax code between them: they are half of a module's size. Without them our initramfs is half as large, and ext4
loads three times as fast on an emulated CPU. The price is the module's signature, which covers the whole file: Debian's
kernel loads unsigned modules, but says so once in its log and marks itself tainted (flag E).

Format: ELF-64 relocatable files, System V ABI, chapters 4 (sections, symbol table, relocation).
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_REL, _SHT_GROUP, _SHT_SYMTAB_SHNDX = 2, 4, 8, 9, 17, 18
_STB_LOCAL, _STT_NOTYPE = 0, 0


@dataclass
class _Section:
    fields: list[int]  # as in the file: name, type, flags, address, offset, size, link, info, alignment, entry size
    data: bytes

    @property
    def type(self) -> int:
        return self.fields[1]


def strip_module(data: bytes) -> bytes:
    """The module ``data`` without unneeded symbols and signature; as it is where it is not of the expected form."""
    if not data.startswith(b"\x7fELF\x02\x01"):
        return data
    try:
        header = list(_HEADER.unpack_from(data))
        sections = _read_sections(data, header)
        stripped = _strip(sections, header[13])
    except (struct.error, IndexError, ValueError):
        return data  # whatever is odd about it, it is the kernel's to judge
    return _write(header, sections) if stripped else data


def _read_sections(data: bytes, header: list[int]) -> list[_Section]:
    start, entry_size, count = header[6], header[11], header[12]
    if entry_size != _SECTION.size:
        raise ValueError("odd section headers")
    sections = []
    for index in range(count):
        fields = list(_SECTION.unpack_from(data, start + index * entry_size))
        offset, size = fields[4], fields[5]
        contents = b"" if fields[1] == _SHT_NOBITS else data[offset : offset + size]
        if fields[1] != _SHT_NOBITS and len(contents) != size:
            raise ValueError("a section is cut short")
        sections.append(_Section(fields, contents))
    return sections


def _strip(sections: list[_Section], names_index: int) -> bool:
    """Shrink the symbol table in place and renumber what refers to it; False when there is nothing to do."""
    tables = [index for index, section in enumerate(sections) if section.type == _SHT_SYMTAB]
    kinds = {section.type for section in sections}
    if len(tables) != 1 or kinds & {_SHT_REL, _SHT_SYMTAB_SHNDX}:
        return False
    (table_index,) = tables
    table = sections[table_index]
    strings = sections[table.fields[6]]
    if table.fields[6] == names_index:
        return False  # the sections' names are in the same table

    relocations = {
        index: array("Q", section.data)
        for index, section in enumerate(sections)
        if section.type == _SHT_RELA and section.fields[6] == table_index
    }
    used = {info >> 32 for entries in relocations.values() for info in set(entries[1::3])}
    groups = [section for section in sections if section.type == _SHT_GROUP and section.fields[6] == table_index]
    used.update(section.fields[7] for section in groups)

    number: dict[int, int] = {}
    symbols: list[bytes] = []
    new_strings = bytearray(1)
    new_names: dict[bytes, int] = {b"": 0}
    first_global = 0
    for index, (name, info, other, section, value, size) in enumerate(_SYMBOL.iter_unpack(table.data)):
        local, untyped = info >> 4 == _STB_LOCAL, info & 15 == _STT_NOTYPE
        # Functions and objects stay although nothing refers to them: they are for stack traces.
        if index and local and untyped and index not in used:
            continue
        text = strings.data[name : strings.data.index(b"\0", name)]
        if local and untyped and text.startswith(b".L"):
            text = b""  # a label is needed for its value only
        if text not in new_names:
            new_names[text] = len(new_strings)
            new_strings += text + b"\0"
        number[index] = len(symbols)
        symbols.append(_SYMBOL.pack(new_names[text], info, other, section, value, size))
        if local:
            first_global = len(symbols)

    for index, entries in relocations.items():
        entries[1::3] = array("Q", [number[info >> 32] << 32 | info & 0xFFFFFFFF for info in entries[1::3]])
        sections[index].data = entries.tobytes()
    for group in groups:
        group.fields[7] = number[group.fields[7]]
    table.data, table.fields[7] = b"".join(symbols), first_global
    strings.data = bytes(new_strings)
    return True


def _write(header: list[int], sections: list[_Section]) -> bytes:
    """The file made of ``sections``. A signature is appended behind the ELF file proper, so it is left behind."""
    out = bytearray(_HEADER.size)
    for section in sections:
        if section.type == 0:
            continue
        alignment = max(section.fields[8], 1)
        out += bytes(-len(out) % alignment)
        section.fields[4] = len(out)
        if section.type != _SHT_NOBITS:
            section.fields[5] = len(section.data)
            out += section.data
    out += bytes(-len(out) % 8)
    header[6] = len(out)
    for section in sections:
        out += _SECTION.pack(*section.fields)
    out[: _HEADER.size] = _HEADER.pack(*header)
    return bytes(out)
