"""A disk kept byte for byte in a file of the host."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
from array import array
from pathlib import Path
from typing import Self

from polyvisor.storage.disk import SECTOR, DiskError

__all__ = ["SECTOR", "DiskError", "RawFile", "lock_file", "open_file", "reason"]

# fallocate(2)
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
_ZERO_RANGE = 16
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV)

MAX_FILE_BYTES = 2**63 - 1
"""No file can be larger: its size has the type off_t."""
_IOV_MAX = 1024
_ZEROES = bytes(1 << 20)

_preadv = ctypes.CDLL(None).preadv
_preadv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64)
_preadv.restype = ctypes.c_ssize_t


def open_file(name: str, read_only: bool, lock: bool) -> int:
    """Open a regular file or block device and give its descriptor.

    ``lock``: keep others from writing it and, unless ``read_only``, from locking it at all. Raises DiskError.
    """
    try:
        # Looked at first, because opening a pipe would wait.
        _check_kind(name, Path(name).stat().st_mode)
        fd = os.open(name, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
    except DiskError:
        raise
    except (OSError, ValueError) as error:
        raise DiskError(f"{name}: cannot open the disk: {reason(error)}") from error
    try:
        _check_kind(name, os.fstat(fd).st_mode)
        if lock:
            lock_file(fd, name, read_only)
    except DiskError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        raise DiskError(f"{name}: cannot use the disk: {reason(error)}") from error
    return fd


def _check_kind(name: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise DiskError(f"{name}: is a directory, not a disk")
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise DiskError(f"{name}: is neither a file nor a block device")


class RawFile:
    """``size`` bytes of the open file ``fd``, which this object owns, as a :class:`polyvisor.storage.disk.Disk`."""

    def __init__(self, fd: int, size: int, read_only: bool) -> None:
        self.fd = fd
        self.size = size
        self.read_only = read_only
        self._lost: OSError | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], read_only: bool, shared: bool = False) -> Self:
        """Open a regular file or block device; unless ``read_only``, lock it against other users that write.

        With ``shared`` a file that is only read is locked too: against being written meanwhile. Raises DiskError if it
        is missing, of another kind, not accessible, in use, or not of whole 512-byte sectors.
        """
        name = os.fspath(path)
        fd = open_file(name, read_only, shared or not read_only)
        try:
            size = os.lseek(fd, 0, os.SEEK_END)
            if size == 0:
                raise DiskError(f"{name}: the disk is empty")
            if size % SECTOR:
                raise DiskError(f"{name}: the size of the disk ({size} bytes) is not a multiple of {SECTOR}")
        except DiskError:
            os.close(fd)
            raise
        except OSError as error:
            os.close(fd)
            raise DiskError(f"{name}: cannot use the disk: {reason(error)}") from error
        return cls(fd, size, read_only)

    def close(self) -> None:
        """Close the file, which unlocks it; may be repeated."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError, also if the file ended meanwhile."""
        count = os.preadv(self.fd, views[:_IOV_MAX], offset)
        if count == sum(map(len, views)):
            return  # nearly always
        views = list(reversed(views))
        offset += count
        _advance(views, count)
        while views:
            count = os.preadv(self.fd, views[: -_IOV_MAX - 1 : -1], offset)
            if count == 0:
                raise OSError(errno.EIO, "the file became shorter")
            offset += count
            _advance(views, count)

    def read_vector(self, vector: array[int], length: int, offset: int) -> bool:
        """Fill the memory that the ``struct iovec``'s in ``vector`` name, ``length`` bytes in all, from ``offset`` on.

        False if that was not done, or not to the end: :meth:`read` does it then, or says why not. Many pieces are read
        faster like this; whoever calls keeps their memory.
        """
        address, words = vector.buffer_info()
        return int(_preadv(self.fd, address, words // 2, offset)) == length

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError."""
        views = list(reversed(views))
        while views:
            count = os.pwritev(self.fd, views[: -_IOV_MAX - 1 : -1], offset)
            if count == 0:
                raise OSError(errno.EIO, "nothing could be written")
            offset += count
            _advance(views, count)

    def extent(self, offset: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on may be other than zero, and for how many bytes that holds."""
        try:
            data = os.lseek(self.fd, offset, os.SEEK_DATA)
            if data > offset:
                return False, min(data, self.size) - offset
            return True, max(1, min(os.lseek(self.fd, offset, os.SEEK_HOLE), self.size) - offset)
        except OSError as error:
            return error.errno != errno.ENXIO, self.size - offset

    def flush(self) -> None:
        """Make all that was written survive a crash of the host. Raises OSError, for ever after the first time.

        The kernel reports once that it could not write, and then takes what is in its cache for written.
        """
        if self._lost is not None:
            raise self._lost
        try:
            os.fdatasync(self.fd)
        except OSError as error:
            self._lost = error
            raise

    def resize(self, size: int) -> None:
        """Let the disk have ``size`` bytes; what is new reads as zeroes. Raises OSError, also if it would shrink."""
        if size < self.size:
            raise DiskError(f"the disk has {self.size} bytes; making it smaller is not supported")
        if size > MAX_FILE_BYTES:
            raise DiskError(f"{size} bytes are too large for a file")
        if size > self.size and stat.S_ISBLK(os.fstat(self.fd).st_mode):
            raise DiskError("a block device cannot be made larger")
        os.ftruncate(self.fd, size)
        os.fsync(self.fd)
        self.size = size

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


def reason(error: Exception) -> str:
    """What ``error`` says, without its number and file."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _advance(views: list[memoryview], count: int) -> None:
    """Drop the first ``count`` bytes of ``views``, which is in reverse order."""
    while count:
        view = views.pop()
        if len(view) > count:
            views.append(view[count:])
            return
        count -= len(view)


def lock_file(fd: int, name: str, shared: bool) -> None:
    """Lock the whole file. The lock is the open file's, so a second one of this process fails too. Raises DiskError."""
    request = struct.pack("hhqqi0q", fcntl.F_RDLCK if shared else fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    try:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            fcntl.lockf(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise DiskError(f"{name}: the disk is in use by another virtual machine or process") from error
        if not shared:
            raise DiskError(f"{name}: cannot lock the disk: {reason(error)}") from error


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
