"""What a client has open: the fids of a session (intro(5)), and how they are saved."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field

from . import messages as m
from .locks import Locks, Range
from .tree import Tree, fail, give

MAX_FIDS = 1 << 16
MAX_ATTRIBUTES = 256
"""Fids that stand for an extended attribute, of which each keeps up to 64 KiB here."""


@dataclass
class Attribute:
    """An extended attribute that is read, or collected until it is clunked."""

    name: bytes
    value: bytearray
    size: int
    flags: int
    writing: bool


@dataclass
class Fid:
    """A client's handle of a file."""

    fd: int
    uid: int
    """Whoever attached: the owner of what is made by way of it."""
    flags: int | None = None
    """How it is open, as Tlopen says it; None while it is not."""
    attribute: Attribute | None = None


@dataclass
class FidState:
    """What a fid was, so that it can be found again."""

    uid: int
    path: tuple[bytes, ...] | None
    """Names from the shared directory; None for a file that has no name any more."""
    inode: tuple[int, int]
    """st_dev and st_ino of the file, so that it is not mistaken for another."""
    flags: int | None = None
    attribute: tuple[bytes, bytes, int, int, bool] | None = None
    """Name, value so far, size, flags, and whether it is written."""


@dataclass
class Waiting:
    """A Tlock that waits for another owner of the same share."""

    fid: int
    wanted: Range
    flushed: bool = False
    """The client gave it up."""


@dataclass
class SessionState:
    """All that the client can change of the server, other than files."""

    message_size: int = 0
    """The msize agreed on; 0 before Tversion."""
    fids: dict[int, FidState] = field(default_factory=dict)
    waiting: dict[int, Waiting] = field(default_factory=dict)
    """By their tags."""


def open_modes(flags: int) -> tuple[int, bool, int]:
    """Access, whether to truncate, and how to sync, of Tlopen's flags. Raises OSError.

    O_APPEND is left out on purpose: a client says where it writes, and may write back cached pages before the end.
    """
    access = {0: os.O_RDONLY, 1: os.O_WRONLY, 2: os.O_RDWR}.get(flags & m.OPEN_ACCESS)
    if access is None:
        raise fail(errno.EINVAL)
    sync = os.O_SYNC if flags & m.OPEN_SYNC else os.O_DSYNC if flags & m.OPEN_DSYNC else 0
    return access, bool(flags & m.OPEN_TRUNCATE), sync


class Fids:
    """The fids of one session by their numbers, and the locks of its files. Methods raise OSError."""

    def __init__(self, tree: Tree) -> None:
        self.locks = Locks()
        self._tree = tree
        self._table: dict[int, Fid] = {}
        self._attributes = 0

    def __setitem__(self, number: int, fid: Fid) -> None:
        self._table[number] = fid

    def __len__(self) -> int:
        return len(self._table)

    def any(self, number: int) -> Fid:
        """A fid of any kind. EBADF if there is none."""
        fid = self._table.get(number)
        if fid is None:
            raise fail(errno.EBADF)
        return fid

    def file(self, number: int) -> Fid:
        """A fid that stands for a file."""
        fid = self.any(number)
        if fid.attribute is not None:
            raise fail(errno.EBADF)
        return fid

    def opened(self, number: int) -> Fid:
        """The fid of a file that was opened."""
        fid = self.file(number)
        if fid.flags is None:
            raise fail(errno.EBADF)
        return fid

    def check_new(self, number: int) -> None:
        """That ``number`` can be given to a new fid."""
        if number == m.NO_FID or number in self._table:
            raise fail(errno.EBADF)
        if len(self._table) >= MAX_FIDS:
            raise fail(errno.ENFILE)

    def hold(self, fid: Fid, attribute: Attribute) -> None:
        """Let a fid stand for an extended attribute from now on. ENOSPC if there are too many."""
        if self._attributes >= MAX_ATTRIBUTES:
            raise fail(errno.ENOSPC)
        self._attributes += 1
        fid.attribute = attribute

    def pop(self, number: int) -> Fid:
        """Take a fid of any kind out of the table."""
        fid = self.any(number)
        del self._table[number]
        return fid

    def open(self, fid: Fid, flags: int) -> None:
        """Open the file of a fid, in place of its O_PATH descriptor."""
        access, truncate, sync = open_modes(flags)
        if flags & m.OPEN_DIRECTORY and not stat.S_ISDIR(os.fstat(fid.fd).st_mode):
            raise fail(errno.ENOTDIR)
        fd = self._tree.open(fid.fd, access, truncate, sync)
        give(fid.fd)
        fid.fd, fid.flags = fd, flags

    def release(self, fid: Fid) -> None:
        """Close a fid that is no longer in the table; locks end with the last one open on their file."""
        if fid.attribute is not None:
            self._attributes -= 1
        try:
            if fid.flags is not None and self.locks:
                inode = _inode(fid.fd)
                if self.locks.holds(inode) and not any(
                    other.flags is not None and _inode(other.fd) == inode for other in self._table.values()
                ):
                    self.locks.forget(inode)
        finally:
            give(fid.fd)

    def clear(self) -> None:
        """Close everything."""
        for fid in self._table.values():
            give(fid.fd)
        self._table.clear()
        self._attributes = 0
        self.locks.close()

    def save(self) -> dict[int, FidState]:
        """What they are, by names; without the locks."""
        state = {}
        for number, fid in self._table.items():
            try:
                path: tuple[bytes, ...] | None = self._tree.names(fid.fd)
            except OSError:
                path = None
            held = fid.attribute
            attribute = (held.name, bytes(held.value), held.size, held.flags, held.writing) if held else None
            state[number] = FidState(fid.uid, path, _inode(fid.fd), fid.flags, attribute)
        return state

    def restore(self, state: dict[int, FidState]) -> None:
        """Open again what was saved, in place of what is there; those whose files are gone are left out."""
        self.clear()
        for number, saved in state.items():
            if saved.path is None:
                continue
            try:
                fid = Fid(self._tree.find(saved.path), saved.uid)
            except OSError:
                continue
            try:
                if _inode(fid.fd) != saved.inode:
                    raise fail(errno.ENOENT)
                if saved.flags is not None:
                    self.open(fid, saved.flags & ~m.OPEN_TRUNCATE)
                if saved.attribute is not None:
                    name, value, size, flags, writing = saved.attribute
                    self.hold(fid, Attribute(name, bytearray(value), size, flags, writing))
            except OSError:
                give(fid.fd)
                continue
            self._table[number] = fid


def _inode(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
