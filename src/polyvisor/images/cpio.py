"""The "newc" cpio archive, which Linux unpacks as an initramfs.

Format: cpio(5), "New ASCII Format", and the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. A
header of 13 eight-digit hexadecimal numbers after the magic "070701", the name with a terminating NUL, padding to four
bytes, the data, padding to four bytes; the archive ends with an entry named "TRAILER!!!".
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from polyvisor.dataclass import dataclass

_MAGIC = b"070701"
_HEADER_SIZE = 110
_TRAILER = "TRAILER!!!"
_BLOCK = 512


@dataclass(frozen=True)
class Entry:
    """One member of an archive.

    ``name`` has no leading slash; ``mode`` holds the file type and the permissions as in stat(2); ``data`` is the
    contents of a file or the target of a symbolic link; ``device`` is the (major, minor) of a device node.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str, permissions: int = 0o755) -> Entry:
    """A directory."""
    return Entry(name, stat.S_IFDIR | permissions)


def file(name: str, data: bytes, permissions: int = 0o644) -> Entry:
    """A regular file."""
    return Entry(name, stat.S_IFREG | permissions, data)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def character_device(name: str, major: int, minor: int, permissions: int) -> Entry:
    """A character device node."""
    return Entry(name, stat.S_IFCHR | permissions, device=(major, minor))


def write(stream: BinaryIO, entries: Iterable[Entry]) -> int:
    """Write an archive of ``entries`` to ``stream``; return its size in bytes.

    The same entries always give the same bytes: they are sorted by name (which also puts a directory before what it
    holds), belong to user 0, and carry no time. Missing parent directories are added. Raises ValueError for two
    entries of one name.
    """
    members: dict[str, Entry] = {}
    for entry in entries:
        if entry.name in members:
            raise ValueError(f"two entries named {entry.name!r}")
        members[entry.name] = entry
    for name in list(members):
        for end in (i for i, letter in enumerate(name) if letter == "/"):
            members.setdefault(name[:end], directory(name[:end]))
    size = 0
    for inode, name in enumerate(sorted(members), start=1):
        size += _write_entry(stream, members[name], inode)
    size += _write_entry(stream, Entry(_TRAILER, 0), 0)
    # The kernel does not need it, but cpio(1) and QEMU's loader both like whole blocks.
    padding = -size % _BLOCK
    stream.write(bytes(padding))
    return size + padding


def _write_entry(stream: BinaryIO, entry: Entry, inode: int) -> int:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    #         inode  mode        uid gid links mtime size             dev     rdev          namesize  check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    header += bytes(-len(header) % 4)
    stream.write(header)
    stream.write(entry.data)
    padding = -len(entry.data) % 4
    stream.write(bytes(padding))
    return len(header) + len(entry.data) + padding


def read(data: bytes) -> Iterator[Entry]:
    """The entries of an uncompressed archive. Raises ValueError when it is not one or is cut short."""
    offset = 0
    while True:
        header = data[offset : offset + _HEADER_SIZE]
        if len(header) < _HEADER_SIZE or not header.startswith(_MAGIC):
            raise ValueError(f"no cpio header at byte {offset}")
        fields = [int(header[i : i + 8], 16) for i in range(6, _HEADER_SIZE, 8)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        start = offset + _HEADER_SIZE
        name = data[start : start + name_size - 1].decode()
        if name == _TRAILER:
            return
        start = (start + name_size + 3) & ~3
        if start + size > len(data):
            raise ValueError(f"{name!r} is cut short")
        yield Entry(name, mode, data[start : start + size], (fields[9], fields[10]))
        offset = (start + size + 3) & ~3
