"""A disk kept byte for byte in a file of the host."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from pathlib import Path
from typing import Self

SECTOR = 512

# fallocate(2)
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)

_IOV_MAX = 1024
_ZEROES = bytes(1 << 20)


class DiskError(OSError):
    """A file cannot be used as a disk; the message is one line for the user."""


class RawFile:
    """``size`` bytes of the open file ``fd``, which this object owns. Offsets are in bytes; errors are OSError.

    Callers keep offsets and lengths inside the size. Calls that change bytes need a file opened for writing.
    """

    def __init__(self, fd: int, size: int, read_only: bool) -> None:
        self.fd = fd
        self.size = size
        self.read_only = read_only

    @classmethod
    def open(cls, path: str | os.PathLike[str], read_only: bool) -> Self:
        """Open a regular file or block device; unless ``read_only``, lock it against other users that write.

        Raises DiskError if it is missing, of another kind, not accessible, in use, or not of whole 512-byte sectors.
        """
        name = os.fspath(path)
        try:
            # Looked at first, because opening a pipe would wait.
            cls._check_kind(name, Path(name).stat().st_mode)
            fd = os.open(name, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except DiskError:
            raise
        except (OSError, ValueError) as error:
            raise DiskError(f"{name}: cannot open the disk: {_reason(error)}") from error
        try:
            cls._check_kind(name, os.fstat(fd).st_mode)
            size = os.lseek(fd, 0, os.SEEK_END)
            if size == 0:
                raise DiskError(f"{name}: the disk is empty")
            if size % SECTOR:
                raise DiskError(f"{name}: the size of the disk ({size} bytes) is not a multiple of {SECTOR}")
            if not read_only:
                _lock(fd, name)
        except DiskError:
            os.close(fd)
            raise
        except OSError as error:
            os.close(fd)
            raise DiskError(f"{name}: cannot use the disk: {_reason(error)}") from error
        return cls(fd, size, read_only)

    @staticmethod
    def _check_kind(name: str, mode: int) -> None:
        if stat.S_ISDIR(mode):
            raise DiskError(f"{name}: is a directory, not a disk")
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise DiskError(f"{name}: is neither a file nor a block device")

    def close(self) -> None:
        """Close the file, which unlocks it; may be repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError, also if the file ended meanwhile."""
        views = list(reversed(views))
        while views:
            count = os.preadv(self.fd, views[: -_IOV_MAX - 1 : -1], offset)
            if count == 0:
                raise OSError(errno.EIO, "the file became shorter")
            offset += count
            _advance(views, count)

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError."""
        views = list(reversed(views))
        while views:
            count = os.pwritev(self.fd, views[: -_IOV_MAX - 1 : -1], offset)
            if count == 0:
                raise OSError(errno.EIO, "nothing could be written")
            offset += count
            _advance(views, count)

    def flush(self) -> None:
        """Make all that was written survive a crash of the host. Raises OSError."""
        os.fdatasync(self.fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the blocks of the range back where the file system can, else leave them alone. Raises OSError."""
        _fallocate(self.fd, _PUNCH_HOLE | _KEEP_SIZE, offset, length)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeroes; only with ``unmap`` may its blocks be given back. Raises OSError."""
        mode = _PUNCH_HOLE | _KEEP_SIZE if unmap else _ZERO_RANGE | _KEEP_SIZE
        if _fallocate(self.fd, mode, offset, length):
            return
        zeroes = memoryview(_ZEROES)
        while length:
            piece = min(length, len(zeroes))
            self.write([zeroes[:piece]], offset)
            offset += piece
            length -= piece


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _advance(views: list[memoryview], count: int) -> None:
    """Drop the first ``count`` bytes of ``views``, which is in reverse order."""
    while count:
        view = views.pop()
        if len(view) > count:
            views.append(view[count:])
            return
        count -= len(view)


def _lock(fd: int, name: str) -> None:
    """Lock the whole file for writing. The lock is the open file's, so a second one of this process fails too."""
    request = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise DiskError(f"{name}: the disk is in use by another virtual machine or process") from error
        raise DiskError(f"{name}: cannot lock the disk: {_reason(error)}") from error


def _fallocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """fallocate(2); False if the file system cannot. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if function is None:
        return False
    while function(ctypes.c_int(fd), ctypes.c_int(mode), ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        number = ctypes.get_errno()
        if number in _UNSUPPORTED:
            return False
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))
    return True
