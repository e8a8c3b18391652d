from __future__ import annotations

import io
import lzma
import struct
import tarfile
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from fake_mirror import module

from polyvisor.images.strip import strip_module


def relocatable() -> bytes:
    """One section of code with two relocations, to the label .L1 and to a global; .L0 and .L2 are used by nothing."""
    strings = b"\0.L0\0.L1\0.L2\0helper\0outside\0"
    symbols = [(0, 0, 0, 0), (1, 0, 1, 0), (5, 0, 1, 4), (9, 0, 1, 8), (13, 2, 1, 12), (20, 0x10, 0, 0)]
    names = b"\0.text\0.symtab\0.strtab\0.rela.text\0.shstrtab\0"
    contents = [
        (1, 1, 0, 0, bytes(16)),
        (7, 2, 3, 5, b"".join(struct.pack("<IBBHQQ", n, i, 0, s, v, 0) for n, i, s, v in symbols)),
        (15, 3, 0, 0, strings),
        (23, 4, 2, 1, struct.pack("<QQqQQq", 0, 2 << 32 | 16, 0, 4, 5 << 32 | 18, 7)),
        (34, 3, 0, 0, names),
    ]
    body, table = bytes(64), bytes(64)
    for name, kind, link, info, data in contents:
        body += bytes(-len(body) % 8)
        size = 24 if kind in (2, 4) else 0
        table += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, len(body), len(data), link, info, 8, size)
        body += data
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 243, 1, 0, 0, len(body), 0, 64, 0, 0, 64, 6, 5)
    return header + body[64:] + table


def relocations(data: bytes) -> list[tuple[str, int, int, int, str, int, object]]:
    elf = ELFFile(io.BytesIO(data))
    found = []
    for section in elf.iter_sections(type="SHT_RELA"):
        symbols = elf.get_section(section["sh_link"])
        for entry in section.iter_relocations():
            symbol = symbols.get_symbol(entry["r_info_sym"])
            name = "" if symbol.name.startswith(".L") else symbol.name
            found.append(
                (
                    section.name,
                    entry["r_offset"],
                    entry["r_info_type"],
                    entry["r_addend"],
                    name,
                    symbol["st_value"],
                    symbol["st_shndx"],
                )
            )
    return found


def test_made_up_module() -> None:
    data = relocatable()
    stripped = strip_module(data + b"signature~Module signature appended~\n")
    assert relocations(stripped) == relocations(data)
    table = ELFFile(io.BytesIO(stripped)).get_section_by_name(".symtab")
    assert [symbol.name for symbol in table.iter_symbols()] == ["", "", "helper", "outside"]
    assert table["sh_info"] == 3
    assert b"signature" not in stripped
    assert strip_module(stripped) == stripped


@pytest.mark.parametrize("data", [b"", b"text", module(), b"\x7fELF\x02\x01" + bytes(20), relocatable()[:-100]])
def test_what_is_odd_is_left_alone(data: bytes) -> None:
    assert strip_module(data) == data


def test_frozen_module(guests: Path) -> None:
    (archive,) = guests.glob("*.tar")
    with tarfile.open(archive) as tar:
        (member,) = (member for member in tar if member.name.endswith("/virtio_mmio.ko.xz"))
        stream = tar.extractfile(member)
        assert stream is not None
        data = lzma.decompress(stream.read())
    stripped = strip_module(data)
    assert len(stripped) < len(data)
    assert relocations(stripped) == relocations(data)
    before, after = ELFFile(io.BytesIO(data)), ELFFile(io.BytesIO(stripped))
    assert [section.name for section in after.iter_sections()] == [section.name for section in before.iter_sections()]
    for old, new in zip(before.iter_sections(), after.iter_sections(), strict=True):
        if old["sh_type"] not in ("SHT_SYMTAB", "SHT_RELA", "SHT_NOBITS") and old.name != ".strtab":
            assert new.data() == old.data(), old.name
