"""Reading a directory of the host with positions to go on at, which Python's own functions do not give."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass
from functools import cache
from typing import Any

# struct linux_dirent64 (getdents64(2)) before its name: d_ino, d_off, d_reclen, d_type
_HEADER = struct.Struct("<QqHB")
_LEAST = 4096
_MOST = 1 << 16
# Where the C library has no getdents64.
_NUMBERS = {"x86_64": 217, "aarch64": 61, "riscv64": 61, "loongarch64": 61, "ppc64le": 202, "s390x": 220}


@dataclass(frozen=True)
class Entry:
    """One entry of a directory."""

    name: bytes
    number: int
    """d_ino"""
    following: int
    """Where to go on behind it."""
    kind: int
    """d_type: the file's S_IFMT shifted right by 12; 0 where the file system does not say."""


@cache
def _getdents() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    function = getattr(libc, "getdents64", None)
    if function is not None:
        function.restype = ctypes.c_ssize_t
        return lambda fd, buffer, size: function(ctypes.c_int(fd), buffer, ctypes.c_size_t(size))
    number = _NUMBERS[platform.machine()]
    libc.syscall.restype = ctypes.c_long
    return lambda fd, buffer, size: libc.syscall(
        ctypes.c_long(number), ctypes.c_long(fd), buffer, ctypes.c_size_t(size)
    )


def entries(fd: int, offset: int, room: int) -> list[Entry]:
    """Entries of the open directory ``fd`` from ``offset`` on, as many as fit ``room`` bytes of the kernel's.

    Raises OSError. Empty at the end. ``offset`` is 0 or the ``following`` of an entry; with others the kernel chooses
    where it begins.
    """
    os.lseek(fd, offset, os.SEEK_SET)
    size = max(_LEAST, min(room, _MOST))
    buffer = ctypes.create_string_buffer(size)
    count = _getdents()(fd, buffer, size)
    if count < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    data = memoryview(buffer)[:count].cast("B")
    found = []
    at = 0
    while at < count:
        inode, following, length, kind = _HEADER.unpack_from(data, at)
        name = bytes(data[at + _HEADER.size : at + length]).split(b"\0", 1)[0]
        found.append(Entry(name, inode, following, kind))
        at += length
    return found
