"""A 9P2000.L client for tests: it packs requests itself, and checks the form of every reply."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

from polyvisor.storage.p9.server import Server
from polyvisor.storage.p9.tree import Tree

ROOT = 1
NO_FID = 0xFFFFFFFF


class P9Error(Exception):
    """The server answered Rlerror."""

    def __init__(self, number: int) -> None:
        super().__init__(f"{number} ({os.strerror(number)})")
        self.errno = number


class WaitingError(Exception):
    """The server answers later."""


@dataclass(frozen=True)
class Stat:
    """The reply to Tgetattr."""

    qid: tuple[int, int, int]
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    blocks: int
    atime: tuple[int, int]
    mtime: tuple[int, int]


def s(text: bytes | str) -> bytes:
    data = os.fsencode(text)
    return struct.pack("<H", len(data)) + data


def qid(data: bytes) -> tuple[int, int, int]:
    kind, version, path = struct.unpack("<BIQ", data)
    return kind, version, path


class Client:
    """Talks to a server; ``pieces``: into how many parts a message is cut, as if its pages lay apart."""

    def __init__(
        self, server: Server, pieces: int = 1, msize: int = 1 << 20, attach: bool = True, uid: int = 0
    ) -> None:
        self.server = server
        self.pieces = pieces
        self.tag = 0
        self.next = 100
        if attach:
            self.version(msize)
            self.attach(ROOT, uid)

    def cut(self, data: bytearray) -> list[memoryview]:
        step = -(-len(data) // self.pieces)
        view = memoryview(data)
        return [view[i : i + step] for i in range(0, len(data), step)] if data else []

    def raw(self, message: bytes, room: int = 1 << 16) -> bytes:
        """Send any bytes; gives the reply."""
        request, reply = bytearray(message), bytearray(b"\xaa" * room)
        done = self.server.handle(self.cut(request), self.cut(reply))
        if done.waiting is not None:
            assert done == (0, 0, message[5] | message[6] << 8) and reply == b"\xaa" * room
            raise WaitingError
        assert 7 <= done.length <= done.touched <= room
        assert request == message
        assert reply[done.touched :] == b"\xaa" * (room - done.touched), "written beyond what was said"
        length, kind, tag = struct.unpack("<IBH", reply[:7])
        assert length == done.length
        assert (kind, tag) == (message[4] + 1, message[5] | message[6] << 8) or (kind == 7 and length == 11)
        return bytes(reply[: done.length])

    def call(self, kind: int, body: bytes, room: int = 1 << 16) -> bytes:
        """One request; the body of the reply, or P9Error."""
        self.tag = (self.tag + 1) & 0x7FFF
        reply = self.raw(struct.pack("<IBH", 7 + len(body), kind, self.tag) + body, room)
        assert struct.unpack("<H", reply[5:7])[0] == self.tag
        if reply[4] == 7:
            raise P9Error(struct.unpack("<I", reply[7:])[0])
        return reply[7:]

    def fid(self) -> int:
        self.next += 1
        return self.next

    # Messages

    def version(self, msize: int = 1 << 20, name: bytes = b"9P2000.L") -> tuple[int, bytes]:
        body = self.call(100, struct.pack("<I", msize) + s(name))
        return struct.unpack("<I", body[:4])[0], body[6:]

    def attach(self, fid: int, uid: int = 0, aname: str = "") -> tuple[int, int, int]:
        return qid(self.call(104, struct.pack("<II", fid, NO_FID) + s("root") + s(aname) + struct.pack("<I", uid)))

    def walk_to(self, fid: int, new: int, *names: bytes | str) -> list[tuple[int, int, int]]:
        body = self.call(110, struct.pack("<IIH", fid, new, len(names)) + b"".join(map(s, names)))
        count = struct.unpack("<H", body[:2])[0]
        assert len(body) == 2 + 13 * count
        return [qid(body[2 + 13 * i : 15 + 13 * i]) for i in range(count)]

    def walk(self, *names: bytes | str, base: int = ROOT) -> int:
        """A new fid for a path; P9Error ENOENT if it goes only part of the way."""
        new = self.fid()
        if len(self.walk_to(base, new, *names)) < len(names):
            raise P9Error(2)
        return new

    def clunk(self, fid: int) -> None:
        assert self.call(120, struct.pack("<I", fid)) == b""

    def lopen(self, fid: int, flags: int = os.O_RDONLY) -> None:
        assert len(self.call(12, struct.pack("<II", fid, flags))) == 17

    def open(self, *names: bytes | str, flags: int = os.O_RDONLY) -> int:
        fid = self.walk(*names)
        try:
            self.lopen(fid, flags)
        except P9Error:
            self.clunk(fid)
            raise
        return fid

    def create(
        self, name: bytes | str, flags: int = 2, mode: int = 0o644, gid: int = 0, base: int = ROOT
    ) -> int:
        fid = self.walk(base=base)
        self.call(14, struct.pack("<I", fid) + s(name) + struct.pack("<III", flags | 0o100, mode, gid))
        return fid

    def read(self, fid: int, offset: int, count: int) -> bytes:
        body = self.call(116, struct.pack("<IQI", fid, offset, count), 11 + count)
        assert struct.unpack("<I", body[:4])[0] == len(body) - 4
        return body[4:]

    def write(self, fid: int, offset: int, data: bytes) -> int:
        count: int = struct.unpack("<I", self.call(118, struct.pack("<IQI", fid, offset, len(data)) + data))[0]
        return count

    def getattr(self, fid: int) -> Stat:
        v = struct.unpack("<Q13sIII15Q", self.call(24, struct.pack("<IQ", fid, 0x3FFF)))
        assert v[0] == 0x7FF
        return Stat(qid(v[1]), v[2], v[3], v[4], v[5], v[6], v[7], v[9], (v[10], v[11]), (v[12], v[13]))

    def stat(self, *names: bytes | str) -> Stat:
        fid = self.walk(*names)
        try:
            return self.getattr(fid)
        finally:
            self.clunk(fid)

    def setattr(
        self, fid: int, *, mode: int | None = None, uid: int | None = None, gid: int | None = None,
        size: int | None = None, atime: tuple[int, int] | None = None, mtime: tuple[int, int] | None = None,
        now: int = 0,
    ) -> None:
        given = (mode, uid, gid, size, atime, mtime)
        valid = sum(1 << i for i, value in enumerate(given) if value is not None) | now
        valid |= (0x80 if atime else 0) | (0x100 if mtime else 0)
        values = (mode or 0, uid or 0, gid or 0, size or 0, *(atime or (0, 0)), *(mtime or (0, 0)))
        assert self.call(26, struct.pack("<IIIIIQ4Q", fid, valid, *values)) == b""

    def readdir(
        self, fid: int, offset: int = 0, count: int = 1 << 16
    ) -> list[tuple[tuple[int, int, int], int, int, bytes]]:
        """(qid, following, d_type, name) of what one message holds."""
        body = self.call(40, struct.pack("<IQI", fid, offset, count), 11 + count)
        assert struct.unpack("<I", body[:4])[0] == len(body) - 4
        found, at = [], 4
        while at < len(body):
            q, following, kind, length = struct.unpack_from("<13sQBH", body, at)
            found.append((qid(q), following, kind, body[at + 24 : at + 24 + length]))
            at += 24 + length
        assert at == len(body)
        return found

    def names(self, *names: bytes | str, count: int = 1 << 16) -> list[bytes]:
        """What is in a directory, without the dots."""
        fid = self.open(*names)
        found: list[bytes] = []
        offset = 0
        while entries := self.readdir(fid, offset, count):
            found += [entry[3] for entry in entries]
            offset = entries[-1][1]
        self.clunk(fid)
        assert found.count(b".") == found.count(b"..") == 1
        return sorted(set(found) - {b".", b".."})

    def mkdir(self, name: bytes | str, mode: int = 0o755, gid: int = 0, base: int = ROOT) -> tuple[int, int, int]:
        return qid(self.call(72, struct.pack("<I", base) + s(name) + struct.pack("<II", mode, gid)))

    def symlink(self, name: bytes | str, target: bytes | str, base: int = ROOT) -> tuple[int, int, int]:
        return qid(self.call(16, struct.pack("<I", base) + s(name) + s(target) + struct.pack("<I", 0)))

    def readlink(self, fid: int) -> bytes:
        return self.call(22, struct.pack("<I", fid))[2:]

    def mknod(self, name: str, mode: int, major: int = 0, minor: int = 0, base: int = ROOT) -> tuple[int, int, int]:
        return qid(self.call(18, struct.pack("<I", base) + s(name) + struct.pack("<IIII", mode, major, minor, 0)))

    def link(self, fid: int, name: bytes | str, base: int = ROOT) -> None:
        assert self.call(70, struct.pack("<II", base, fid) + s(name)) == b""

    def rename(self, fid: int, name: bytes | str, base: int = ROOT) -> None:
        assert self.call(20, struct.pack("<II", fid, base) + s(name)) == b""

    def renameat(self, old: bytes | str, new: bytes | str, base: int = ROOT, new_base: int = ROOT) -> None:
        assert self.call(74, struct.pack("<I", base) + s(old) + struct.pack("<I", new_base) + s(new)) == b""

    def unlinkat(self, name: bytes | str, flags: int = 0, base: int = ROOT) -> None:
        assert self.call(76, struct.pack("<I", base) + s(name) + struct.pack("<I", flags)) == b""

    def remove(self, fid: int) -> None:
        assert self.call(122, struct.pack("<I", fid)) == b""

    def getxattr(self, fid: int, name: str) -> bytes:
        new = self.fid()
        size = struct.unpack("<Q", self.call(30, struct.pack("<II", fid, new) + s(name)))[0]
        value = self.read(new, 0, size)
        self.clunk(new)
        return value

    def setxattr(self, fid: int, name: str, value: bytes, flags: int = 0) -> None:
        new = self.walk(base=fid)
        self.call(32, struct.pack("<I", new) + s(name) + struct.pack("<QI", len(value), flags))
        half = len(value) // 2
        for at, piece in ((0, value[:half]), (half, value[half:])):
            if piece:
                assert self.write(new, at, piece) == len(piece)
        self.clunk(new)

    def lock(
        self, fid: int, kind: int, start: int = 0, length: int = 0, process: int = 1, *, wait: bool = False
    ) -> int:
        body = struct.pack("<IBIQQI", fid, kind, int(wait), start, length, process) + s("guest")
        return self.call(52, body)[0]

    def getlock(
        self, fid: int, kind: int, start: int = 0, length: int = 0, process: int = 1
    ) -> tuple[int, int, int, int]:
        body = self.call(54, struct.pack("<IBQQI", fid, kind, start, length, process) + s("guest"))
        kind, start, length, process = struct.unpack("<BQQI", body[:21])
        return kind, start, length, process


def serve(path: Path, read_only: bool = False, owner: str = "guest") -> Server:
    return Server(Tree.at(path, read_only, owner))
