"""Programs in files of their own (PRG), and the T64 archive of tape programs.

A PRG file is the address of the program's first byte, low byte first, and the program.  T64: M. Ulrich and others, the
format of the C64S emulator's tape images: a header of 64 bytes, then 32 for each entry.  Many T64 files have wrong
counts and end addresses; what the file's size and the other entries say goes before them.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from .files import Entry, FileType, ImageError, blocks_of, naming, read_image
from .petscii import from_unicode

MOST = 2 + (1 << 16)
_MOST_T64 = 64 << 20
_ENTRY = 32


@dataclass(frozen=True)
class Tape:
    """A volume that can only be read: programs by name, in order."""

    title: bytes
    programs: tuple[tuple[bytes, bytes], ...]
    """The name, in PETSCII, and the bytes, the address first, of each."""
    id = b"64 2A"
    free = 0

    def entries(self) -> list[Entry]:
        """What there is."""
        return [Entry(n, name, FileType.PRG, blocks_of(len(data))) for n, (name, data) in enumerate(self.programs)]

    def read(self, entry: Entry) -> bytes:
        """A program, its address first."""
        return self.programs[entry.number][1]


def name_of(path: str | os.PathLike[str]) -> bytes:
    """A file's name on the host as a name of at most 16 characters in PETSCII; ``?`` for what is not there."""
    out = b""
    for character in Path(path).stem[:16]:
        try:
            out += from_unicode(character)
        except ValueError:
            out += b"?"
    return out.translate(bytes.maketrans(b'",:*', b"'..+")) or b"?"


def check_program(data: bytes) -> bytes:
    """``data`` if it is a program with its address. Raises ImageError."""
    if len(data) < 3:
        raise ImageError(f"a program has an address of two bytes and at least one more, this has {len(data)} bytes")
    address = int.from_bytes(data[:2], "little")
    if address + len(data) - 2 > 1 << 16:
        raise ImageError(f"the program at ${address:04x} is {len(data) - 2} bytes long, which goes beyond $ffff")
    return data


def open_prg(path: str | os.PathLike[str]) -> Tape:
    """A volume with the program in a file, under the file's name. Raises ImageError."""
    with naming(path):
        return Tape(name_of(path), ((name_of(path), check_program(read_image(path, MOST))),))


def open_t64(path: str | os.PathLike[str]) -> Tape:
    """The programs of a T64 archive. Raises ImageError."""
    data = read_image(path, _MOST_T64)
    with naming(path):
        return parse_t64(data)


def parse_t64(data: bytes) -> Tape:
    """The programs in the bytes of a T64 archive; what is no program is left out. Raises ImageError."""
    if len(data) < 64 + _ENTRY or not data.startswith(b"C64"):
        raise ImageError("is not a T64 archive: its header is missing")
    places, _ = struct.unpack_from("<HH", data, 0x22)
    title = data[0x28:0x40].rstrip(b" \0\xa0")
    found = []
    # Some writers left the number of places at 0.
    for at in range(64, 64 + _ENTRY * max(1, places), _ENTRY):
        if at + _ENTRY > len(data):
            raise ImageError(f"has room for {places} entries in its header, but ends before them")
        kind, _, start, end, _, offset = struct.unpack_from("<BBHHHI", data, at)
        if kind == 1:
            found.append((offset, start, end, data[at + 16 : at + 32].rstrip(b" \0\xa0")))
    if not found:
        raise ImageError("has no programs")
    programs = []
    for offset, start, end, name in found:
        limit = min([other for other, *_ in found if other > offset] + [len(data)])
        if offset < 64 + _ENTRY or limit <= offset:
            raise ImageError(f"a program begins at byte {offset}, where there is none")
        length = min(limit - offset, (1 << 16) - start)
        if start < end <= start + length:
            length = end - start
        programs.append((name or b"?", struct.pack("<H", start) + data[offset : offset + length]))
    return Tape(title, tuple(programs))


def write_t64(programs: list[tuple[bytes, bytes]], title: bytes = b"") -> bytes:
    """The bytes of a T64 archive with programs, each a name and its bytes, the address first. Raises ImageError."""
    if not 1 <= len(programs) <= 1000:
        raise ImageError(f"a T64 archive holds 1 to 1000 programs, not {len(programs)}")
    header = b"C64 tape image file".ljust(32, b"\0")
    header += struct.pack("<HHHH", 0x0101, len(programs), len(programs), 0) + title[:24].ljust(24)
    entries, contents = b"", b""
    for name, data in programs:
        start = int.from_bytes(check_program(data)[:2], "little")
        offset = len(header) + _ENTRY * len(programs) + len(contents)
        end = (start + len(data) - 2) & 0xFFFF
        entries += struct.pack("<BBHHHII", 1, 0x82, start, end, 0, offset, 0) + name[:16].ljust(16)
        contents += data[2:]
    return header + entries + contents

