"""Messages of 9P2000.L: numbers, layouts, and reading what a client sent.

Sources: intro(5) and the pages beside it in the Plan 9 manual for the framing and the messages of 9P2000; the
protocol description of diod (protocol.md) for those of 9P2000.L. All integers are little-endian.
"""

from __future__ import annotations

import struct
from enum import IntEnum

VERSION = b"9P2000.L"
NO_FID = 0xFFFFFFFF
NO_UID = 0xFFFFFFFF
"""The n_uname of a client that gives none; as a uid or gid of chown: leave it alone."""
MAX_WALK = 16
"""Names in one Twalk, walk(5)."""
MAX_NAME = 255
"""Bytes in one name; what Linux allows."""


class Type(IntEnum):
    """Requests; the reply to one has the next number."""

    RLERROR = 7
    TSTATFS = 8
    TLOPEN = 12
    TLCREATE = 14
    TSYMLINK = 16
    TMKNOD = 18
    TRENAME = 20
    TREADLINK = 22
    TGETATTR = 24
    TSETATTR = 26
    TXATTRWALK = 30
    TXATTRCREATE = 32
    TREADDIR = 40
    TFSYNC = 50
    TLOCK = 52
    TGETLOCK = 54
    TLINK = 70
    TMKDIR = 72
    TRENAMEAT = 74
    TUNLINKAT = 76
    TVERSION = 100
    TAUTH = 102
    TATTACH = 104
    TFLUSH = 108
    TWALK = 110
    TREAD = 116
    TWRITE = 118
    TCLUNK = 120
    TREMOVE = 122


HEADER = struct.Struct("<IBH")
"""size, type, tag"""
ERROR = struct.Struct("<IBHI")
QID = struct.Struct("<BIQ")
"""type, version, path"""
READ = struct.Struct("<IQI")
"""Tread, Twrite, Treaddir: fid, offset, count"""
DATA_HEADER = struct.Struct("<IBHI")
"""The header of a reply with data, and the data's length."""
GETATTR = struct.Struct("<Q13sIIIQQQQQ2Q2Q2Q2QQQ")
SETATTR = struct.Struct("<IIIIIQ2Q2Q")
STATFS = struct.Struct("<IIQQQQQQI")
DIRENT = struct.Struct("<13sQBH")
"""qid, offset of the next entry, d_type, length of the name"""

QID_DIRECTORY = 0x80
QID_SYMLINK = 0x02
QID_FILE = 0x00

GETATTR_BASIC = 0x7FF
"""All that stat(2) gives."""

# Tsetattr's valid
SET_MODE = 0x1
SET_UID = 0x2
SET_GID = 0x4
SET_SIZE = 0x8
SET_ATIME = 0x10
SET_MTIME = 0x20
SET_ATIME_GIVEN = 0x80
SET_MTIME_GIVEN = 0x100

# Tlopen's and Tlcreate's flags: Linux's, whatever machine the client runs on
OPEN_ACCESS = 0o3
OPEN_CREATE = 0o100
OPEN_EXCLUSIVE = 0o200
OPEN_TRUNCATE = 0o1000
OPEN_DSYNC = 0o10000
OPEN_DIRECTORY = 0o200000
OPEN_SYNC = 0o4000000

REMOVE_DIRECTORY = 0x200
"""Tunlinkat's flag"""

LOCK_READ = 0
LOCK_WRITE = 1
LOCK_NONE = 2
LOCK_WAIT = 1
"""Tlock's flag: the client would wait"""
LOCK_SUCCESS = 0
LOCK_BLOCKED = 1


class MalformedError(Exception):
    """A message that does not have the fields of its type."""


class Fields:
    """Reads the fields of a message's body in order. All raise MalformedError where it ends too early."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def _take(self, count: int) -> bytes:
        piece = self._data[self._at : self._at + count]
        if len(piece) < count:
            raise MalformedError(f"{count - len(piece)} bytes are missing")
        self._at += count
        return piece

    def _int(self, size: int) -> int:
        return int.from_bytes(self._take(size), "little")

    def u8(self) -> int:
        """An integer of one byte."""
        return self._int(1)

    def u16(self) -> int:
        """An integer of two bytes."""
        return self._int(2)

    def u32(self) -> int:
        """An integer of four bytes."""
        return self._int(4)

    def u64(self) -> int:
        """An integer of eight bytes."""
        return self._int(8)

    def string(self) -> bytes:
        """A string: its length in two bytes, then that many bytes, of any encoding."""
        return self._take(self._int(2))

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """Several integers at once."""
        return layout.unpack(self._take(layout.size))

    @property
    def more(self) -> bool:
        """Whether there are bytes left."""
        return self._at < len(self._data)

    def end(self) -> None:
        """Raises MalformedError unless all was read."""
        if self.more:
            raise MalformedError(f"{len(self._data) - self._at} bytes too many")


def string(data: bytes) -> bytes:
    """``data``, up to 65535 bytes, as a string of the protocol."""
    return len(data).to_bytes(2, "little") + data
