"""Requests of 9P2000.L, most of them nearly right, for a directory with traps in it."""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import struct
from collections.abc import Callable, Collection
from pathlib import Path

NO_FID = 0xFFFFFFFF
FIDS = 12
NAMES = [
    *(b"a", b"b", b"c", b"d", b"dir", b"link", b"out", b"fifo", b"socket", b"file", b"\xff"),
    *(b"", b".", b"..", b"../outside", b"/etc/passwd", b"x\0y", b"n" * 255, b"n" * 256),
]
ATTRIBUTES = [b"", b"user.a", b"user.b", b"x", b"user.polyvisor.owner", b"security.capability", b"trusted.a"]
OPEN_FLAGS_TRIED = 2**32 - 1 - 0o4010000
"""All but O_SYNC and O_DSYNC, which only make it slow."""
U32, U64 = 2**32 - 1, 2**64 - 1

# The fields of each request: i a fid, n a new fid, s a name, t a target, x an attribute's name, c a client's name,
# 1 2 4 8 integers, f open flags, m a mode, o an offset, k a count.
LAYOUTS = {
    8: "i", 12: "if", 14: "isfm4", 16: "ist4", 18: "ism444", 20: "iis", 22: "i", 24: "i8", 26: "iSm44o8888",
    30: "inx", 32: "ixe4", 40: "iok", 50: "i4", 52: "iL4oo4c", 54: "iLoo4c", 70: "iis", 72: "ism4", 74: "isis",
    76: "ir", 100: "kv", 102: "icc4", 104: "nNcpU", 108: "2", 110: "inw", 116: "iok", 118: "iod", 120: "i", 122: "i",
}
WEIGHTS = {
    110: 12, 12: 6, 14: 6, 104: 3, 116: 6, 118: 6, 40: 4, 50: 1, 100: 0.4, 120: 3, 122: 0.5, 52: 4, 26: 4, 72: 3,
}


def string(text: bytes) -> bytes:
    return struct.pack("<H", len(text)) + text


class Messages:
    """Makes requests. ``known`` gives the fids that there are, ``base`` has the shared directory and one outside."""

    def __init__(self, rng: random.Random, base: Path, known: Callable[[], Collection[int]]) -> None:
        self.rng = rng
        self.base = base
        self.shared = base / "shared"
        self.outside = base / "outside"
        self._known = known
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(b"secret")
        self.fill()

    def fill(self) -> None:
        """Make the shared directory, or what is missing in it."""
        (self.shared / "dir" / "d").mkdir(parents=True, exist_ok=True)
        self.replace_file()
        self.traps()

    def replace_file(self) -> None:
        """Have a regular file where one may have been, or something else."""
        file = self.shared / "file"
        if file.is_symlink() or not file.is_file():
            if os.path.lexists(file):
                shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
            file.write_bytes(b"contents")

    def traps(self) -> None:
        for name, target in (("link", "dir"), ("out", self.outside)):
            if not os.path.lexists(self.shared / name):
                (self.shared / name).symlink_to(target)
        if not os.path.lexists(self.shared / "fifo"):
            os.mkfifo(self.shared / "fifo")
        if not os.path.lexists(self.shared / "socket"):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.bind(str(self.shared / "socket"))

    def integer(self, size: int) -> bytes:
        value = self.rng.choice([0, 0, 0, 1, 2, 5, 1000, self.rng.getrandbits(8 * size), 2 ** (8 * size) - 1])
        return (value & 2 ** (8 * size) - 1).to_bytes(size, "little")

    def field(self, kind: str) -> bytes:
        rng = self.rng
        if kind in "in":
            known = self._known()
            if rng.random() < 0.9:
                fids = [fid for fid in range(FIDS) if (fid in known) == (kind == "i")]
                return struct.pack("<I", rng.choice(fids or [0]))
            return struct.pack("<I", rng.choice([NO_FID, 99, *range(FIDS)]))
        if kind == "N":
            return struct.pack("<I", NO_FID if rng.random() < 0.95 else rng.randrange(FIDS))
        if kind == "s":
            return string(rng.choice(NAMES) if rng.random() < 0.2 else rng.choice(NAMES[:11]))
        if kind == "t":
            targets = [os.fsencode(self.outside), b"..", b"../outside/secret", b"", b"a\0", b"dir", b"x" * 5000]
            return string(rng.choice(targets))
        if kind == "x":
            return string(rng.choice(ATTRIBUTES))
        if kind == "c":
            return string(rng.choice([b"", b"guest", b"x" * 300]))
        if kind == "U":
            return struct.pack("<I", rng.choice([0, 0, 5, U32]))
        if kind == "v":
            return string(rng.choice([b"9P2000.L", b"9P2000.L", b"9P2000.L", b"9P2000", b""]))
        if kind == "p":
            return string(rng.choice([b"", b"", b"", b"dir", b"/dir/d", b"..", b"out", b"link/d"]))
        if kind == "f":
            flags = rng.choice([0, 0, 1, 2, 2]) | rng.choice([0, 0, 0, 0o1000, 0o200, 0o200000, 0o2000])
            return struct.pack("<I", flags if rng.random() < 0.95 else rng.getrandbits(32) & OPEN_FLAGS_TRIED)
        if kind == "m":
            kinds = [0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFLNK, 0o170000]
            return struct.pack("<I", rng.choice(kinds) | rng.choice([0o777, 0o777, 0o644, 0o400, 0, 0o7777]))
        if kind == "S":
            return struct.pack("<I", rng.choice([1, 2, 4, 8, 0x10, 0x20, 0xB0, 0x1B0, rng.getrandbits(9)]))
        if kind == "L":
            return bytes([rng.choice([0, 1, 2, 2, 3, 255])])
        if kind == "r":
            return string(rng.choice(NAMES[:11])) + struct.pack("<I", rng.choice([0, 0, 0x200, 0x200, 1]))
        if kind == "o":
            offset = rng.choice([0, 0, rng.randrange(100), rng.randrange(1 << 33), 2**63 - 1, 2**63, U64])
            return struct.pack("<Q", offset)
        if kind == "k":
            return struct.pack("<I", rng.choice([0, 8, 100, 4096, 70000, U32]))
        if kind == "e":
            return struct.pack("<Q", rng.choice([0, 1, 20, 300, 1 << 40]))
        if kind == "d":
            data = rng.randbytes(rng.choice([0, 1, 20, 300]))
            return struct.pack("<I", len(data) if rng.random() < 0.97 else rng.getrandbits(32)) + data
        if kind == "w":
            names = [self.field("s") for _ in range(rng.choice([0, 0, 0, 1, 1, 1, 2, 3, 16, 17]))]
            return struct.pack("<H", len(names)) + b"".join(names)
        return self.integer(int(kind))

    def message(self) -> bytes:
        rng = self.rng
        kind = rng.choices(list(LAYOUTS), [WEIGHTS.get(each, 2) for each in LAYOUTS])[0]
        layout = LAYOUTS[kind]
        body = b"".join(map(self.field, layout))
        chance = rng.random()
        if chance < 0.02:
            body = body[: rng.randrange(len(body) + 1)]
        elif chance < 0.03:
            body += rng.randbytes(3)
        elif chance < 0.05 and body:
            at = rng.randrange(len(body))
            body = body[:at] + rng.randbytes(1) + body[at + 1 :]
        length = 7 + len(body)
        if rng.random() < 0.01:
            length = rng.choice([0, 6, 7, length + 1, length - 1, U32, rng.getrandbits(32)])
        if rng.random() < 0.01:
            kind = rng.randrange(256)
        return struct.pack("<IBH", length & U32, kind, rng.choice([0, 1, 65535])) + body

    def beginning(self) -> list[bytes]:
        """A session with some fids, so that there is something to aim at."""
        messages = (
            struct.pack("<BHI", 100, 65535, 1 << 17) + string(b"9P2000.L"),
            struct.pack("<BHIIHHI", 104, 0, 0, NO_FID, 0, 0, 0),
            struct.pack("<BHIIH", 110, 0, 0, 1, 1) + string(b"dir"),
        )
        return [struct.pack("<I", 4 + len(message)) + message for message in messages]

    def check(self) -> None:
        """AssertionError if something outside the shared directory was changed."""
        assert (self.outside / "secret").read_bytes() == b"secret"
        assert [path.name for path in self.outside.iterdir()] == ["secret"]
        assert (self.outside / "secret").stat().st_nlink == 1
        assert sorted(path.name for path in self.base.iterdir()) == ["outside", "shared"]
