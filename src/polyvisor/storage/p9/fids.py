"""What a client has open: the fids of a session (intro(5)), and how they are saved."""

from __future__ import annotations

import contextlib
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
    root: tuple[int, int] = (0, 0)
    """st_dev and st_ino of the shared directory."""
    fids: dict[int, FidState] = field(default_factory=dict)
    waiting: dict[int, Waiting] = field(default_factory=dict)
    """By their tags."""
    locks: list[tuple[tuple[int, int], Range]] = field(default_factory=list)
    """Ranges that are locked, and of which file, as :attr:`FidState.inode` names it."""
    stale: list[int] = field(default_factory=list)
    """Fids that are known, but whose files were not there any more when they were to be opened again."""


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
        self._stale: set[int] = set()
        self._attributes = 0

    def __setitem__(self, number: int, fid: Fid) -> None:
        self._table[number] = fid

    def __len__(self) -> int:
        return len(self._table)

    def any(self, number: int) -> Fid:
        """A fid of any kind. EBADF if there is none, ESTALE if its file was gone after a restore."""
        fid = self._table.get(number)
        if fid is None:
            raise fail(errno.ESTALE if number in self._stale else errno.EBADF)
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
        if number == m.NO_FID or number in self._table or number in self._stale:
            raise fail(errno.EBADF)
        if len(self._table) >= MAX_FIDS:
            raise fail(errno.ENFILE)

    def hold(self, fid: Fid, attribute: Attribute) -> None:
        """Let a fid stand for an extended attribute from now on. ENOSPC if there are too many."""
        if self._attributes >= MAX_ATTRIBUTES:
            raise fail(errno.ENOSPC)
        self._attributes += 1
        fid.attribute = attribute

    def forget_stale(self, number: int) -> bool:
        """Forget a fid whose file is gone; gives whether it was one."""
        known = number in self._stale
        self._stale.discard(number)
        return known

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
        self._stale.clear()
        self._attributes = 0
        self.locks.close()

    def save(self, into: SessionState) -> None:
        """Note what they are, by names, and the locks."""
        into.root = _inode(self._tree.root)
        into.stale = sorted(self._stale)
        into.locks = self.locks.save()
        for number, fid in self._table.items():
            try:
                path: tuple[bytes, ...] | None = self._tree.names(fid.fd)
            except OSError:
                path = None
            held = fid.attribute
            attribute = (held.name, bytes(held.value), held.size, held.flags, held.writing) if held else None
            into.fids[number] = FidState(fid.uid, path, _inode(fid.fd), fid.flags, attribute)

    def restore(self, state: SessionState) -> None:
        """Open again what was saved, in place of what is there, and lock it; those whose files are gone are stale.

        In another directory than the one that was shared, which may be a copy of it, names alone tell.
        """
        self.clear()
        self._stale.update(state.stale)
        same = state.root == _inode(self._tree.root)
        opened: dict[tuple[int, int], Fid] = {}
        for number, saved in state.fids.items():
            fid = self._reopened(saved, same)
            if fid is None:
                self._stale.add(number)
                continue
            self._table[number] = fid
            if fid.flags is not None:
                opened.setdefault(saved.inode, fid)
        for inode, held in state.locks:
            # One that another program of the host has taken meanwhile is lost.
            if inode in opened:
                with contextlib.suppress(OSError):
                    self.locks.lock(opened[inode].fd, _inode(opened[inode].fd), held)

    def _reopened(self, saved: FidState, same: bool) -> Fid | None:
        if saved.path is None:
            return None
        try:
            fid = Fid(self._tree.find(saved.path), saved.uid)
        except OSError:
            return None
        try:
            if same and _inode(fid.fd) != saved.inode:
                raise fail(errno.ENOENT)
            if saved.flags is not None:
                self.open(fid, saved.flags & ~m.OPEN_TRUNCATE)
            if saved.attribute is not None:
                name, value, size, flags, writing = saved.attribute
                self.hold(fid, Attribute(name, bytearray(value), size, flags, writing))
        except OSError:
            give(fid.fd)
            return None
        return fid


def _inode(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino
