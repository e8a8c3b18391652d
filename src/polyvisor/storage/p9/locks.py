"""Locks of ranges of files: between the owners that clients name, and against programs of the host.

On the host all owners of one share are one: for each file with locks there is one more open descriptor, whose locks
(fcntl(2), F_OFD_SETLK) cover each range as strongly as the strongest of them needs. Nothing here waits.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass, field

from . import descriptors
from .owners import proc_path

END = 2**63 - 1
"""Behind the last byte that a file can have."""
MAX_LOCKS = 4096
"""Ranges held at a time in one share."""

# struct flock: l_type, l_whence, l_start, l_len, l_pid
_FLOCK = "hhqqi0q"

Inode = tuple[int, int]
Owner = tuple[bytes, int]
"""What a client calls the owner of a lock: its own name and a process."""


@dataclass(frozen=True)
class Range:
    """A lock of the bytes ``start`` to ``end - 1``."""

    start: int
    end: int
    exclusive: bool
    owner: Owner

    def meets(self, start: int, end: int) -> bool:
        """Whether it shares bytes with another range."""
        return self.start < end and start < self.end

    def blocks(self, wanted: Range) -> bool:
        """Whether it stands in the way of ``wanted``."""
        if self.owner == wanted.owner or not (self.exclusive or wanted.exclusive):
            return False
        return self.meets(wanted.start, wanted.end)


@dataclass
class _File:
    fd: int
    writable: bool
    ranges: list[Range] = field(default_factory=list)


class Locks:
    """The locks of one share. All methods raise OSError where the host fails."""

    def __init__(self) -> None:
        self._files: dict[Inode, _File] = {}

    def __bool__(self) -> bool:
        return bool(self._files)

    def save(self) -> list[tuple[Inode, Range]]:
        """All ranges that are held."""
        return [(inode, held) for inode, file in self._files.items() for held in file.ranges]

    def holds(self, inode: Inode) -> bool:
        """Whether there are locks of this file."""
        return inode in self._files

    def blocked(self, inode: Inode, wanted: Range) -> Range | None:
        """A lock of another owner of this share that stands in the way of ``wanted``."""
        file = self._files.get(inode)
        return next((held for held in file.ranges if held.blocks(wanted)), None) if file else None

    def conflict(self, fd: int, inode: Inode, wanted: Range) -> Range | None:
        """A lock that stands in the way of ``wanted``; one of the host's has the owner (b"", its process or -1)."""
        held = self.blocked(inode, wanted)
        if held is not None:
            return held
        file = self._files.get(inode)
        there = file or _open(fd)
        try:
            kind = fcntl.F_WRLCK if wanted.exclusive and there.writable else fcntl.F_RDLCK
            request = struct.pack(_FLOCK, kind, os.SEEK_SET, wanted.start, _length(wanted.start, wanted.end), 0)
            answer = fcntl.fcntl(there.fd, fcntl.F_OFD_GETLK, request)
        finally:
            if file is None:
                descriptors.give(there.fd)
        kind, _, start, length, process = struct.unpack(_FLOCK, answer)
        if kind == fcntl.F_UNLCK:
            return None
        return Range(start, start + length if length else END, kind == fcntl.F_WRLCK, (b"", process))

    def lock(self, fd: int, inode: Inode, wanted: Range) -> bool:
        """Take a lock, or change one the owner has; False if another is in the way."""
        if self.blocked(inode, wanted) is not None:
            return False
        file = self._files.get(inode)
        if sum(len(each.ranges) for each in self._files.values()) >= MAX_LOCKS:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        if file is None:
            file = _open(fd)
        # A file that cannot be written, here, is protected from being written by others; that is all the host offers.
        kind = fcntl.F_WRLCK if wanted.exclusive and file.writable else fcntl.F_RDLCK
        try:
            _set(file.fd, kind, wanted.start, wanted.end)
        except OSError as error:
            if inode not in self._files:
                descriptors.give(file.fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._files[inode] = file
        file.ranges = [*_without(file.ranges, wanted.owner, wanted.start, wanted.end), wanted]
        return True

    def unlock(self, inode: Inode, owner: Owner, start: int, end: int) -> None:
        """Release what ``owner`` has of a range; ranges that others hold too stay locked on the host."""
        file = self._files.get(inode)
        if file is None:
            return
        before = file.ranges
        file.ranges = _without(before, owner, start, end)
        if not file.ranges:
            self.forget(inode)
            return
        for held in before:
            if held.owner == owner and held.meets(start, end):
                gaps = [(max(start, held.start), min(end, held.end))]
                for kept in file.ranges:
                    gaps = [
                        part
                        for low, high in gaps
                        for part in ((low, min(high, kept.start)), (max(low, kept.end), high))
                        if part[0] < part[1]
                    ]
                for low, high in gaps:
                    _set(file.fd, fcntl.F_UNLCK, low, high)

    def forget(self, inode: Inode) -> None:
        """Release all locks of a file."""
        file = self._files.pop(inode, None)
        if file is not None:
            descriptors.give(file.fd)

    def close(self) -> None:
        """Release everything."""
        for inode in list(self._files):
            self.forget(inode)


def _open(fd: int) -> _File:
    """A description of our own of the regular file ``fd``, for writing if that is allowed."""
    flags = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        return _File(descriptors.take(lambda: os.open(proc_path(fd), flags | os.O_RDWR)), True)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ETXTBSY):
            raise
    return _File(descriptors.take(lambda: os.open(proc_path(fd), flags | os.O_RDONLY)), False)


def _length(start: int, end: int) -> int:
    """l_len, where 0 means without an end."""
    return 0 if end == END else end - start


def _set(fd: int, kind: int, start: int, end: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, start, _length(start, end), 0))


def _without(ranges: list[Range], owner: Owner, start: int, end: int) -> list[Range]:
    """``ranges`` without what ``owner`` has of ``start`` to ``end``."""
    found = []
    for held in ranges:
        if held.owner != owner or not held.meets(start, end):
            found.append(held)
            continue
        if held.start < start:
            found.append(Range(held.start, start, held.exclusive, owner))
        if end < held.end:
            found.append(Range(end, held.end, held.exclusive, owner))
    return found
