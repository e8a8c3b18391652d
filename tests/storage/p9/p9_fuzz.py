"""Random requests, most of them nearly right. For a long campaign: python tests/storage/p9/p9_fuzz.py COUNT [SEED]"""

from __future__ import annotations

import os
import random
import shutil
import socket
import stat
import struct
import sys
import tempfile
from pathlib import Path

from p9_client import NO_FID, s, serve

from polyvisor.storage.p9 import descriptors
from polyvisor.storage.p9.server import Server

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


class Fuzz:
    """Requests for one server over a directory with traps in it."""

    def __init__(self, seed: int, base: Path, owner: str, read_only: bool = False) -> None:
        self.rng = random.Random(seed)
        self.base = base
        self.shared = base / "shared"
        self.outside = base / "outside"
        for path in (self.shared / "dir" / "d", self.outside):
            path.mkdir(parents=True)
        (self.outside / "secret").write_bytes(b"secret")
        (self.shared / "file").write_bytes(b"contents")
        self.traps()
        self.server: Server = serve(self.shared, read_only, owner)
        self.answers = {"good": 0, "error": 0}
        self.waited = 0
        self.kinds: set[int] = set()

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
            known = list(self.server._fids._table)
            if rng.random() < 0.9:
                fids = [fid for fid in range(FIDS) if (fid in known) == (kind == "i")]
                return struct.pack("<I", rng.choice(fids or [0]))
            return struct.pack("<I", rng.choice([NO_FID, 99, *range(FIDS)]))
        if kind == "N":
            return struct.pack("<I", NO_FID if rng.random() < 0.95 else rng.randrange(FIDS))
        if kind == "s":
            return s(rng.choice(NAMES) if rng.random() < 0.2 else rng.choice(NAMES[:11]))
        if kind == "t":
            targets = [os.fsencode(self.outside), b"..", b"../outside/secret", b"", b"a\0", b"dir", b"x" * 5000]
            return s(rng.choice(targets))
        if kind == "x":
            return s(rng.choice(ATTRIBUTES))
        if kind == "c":
            return s(rng.choice([b"", b"guest", b"x" * 300]))
        if kind == "U":
            return struct.pack("<I", rng.choice([0, 0, 5, U32]))
        if kind == "v":
            return s(rng.choice([b"9P2000.L", b"9P2000.L", b"9P2000.L", b"9P2000", b""]))
        if kind == "p":
            return s(rng.choice([b"", b"", b"", b"dir", b"/dir/d", b"..", b"out", b"link/d"]))
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
            return s(rng.choice(NAMES[:11])) + struct.pack("<I", rng.choice([0, 0, 0x200, 0x200, 1]))
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

    def pieces(self, data: bytearray) -> list[memoryview]:
        view = memoryview(data)
        cut = self.rng.randrange(len(data) + 1)
        return [piece for piece in (view[:cut], view[cut:]) if len(piece)]

    def begin(self) -> None:
        """A session with some fids, so that there is something to aim at."""
        for message in (
            struct.pack("<IBHI", 21, 100, 65535, 1 << 17) + s("9P2000.L"),
            struct.pack("<IBHIIHHI", 23, 104, 0, 0, NO_FID, 0, 0, 0),
            struct.pack("<IBHIIH", 20, 110, 0, 0, 1, 1) + s("dir"),
        ):
            whole = struct.pack("<I", len(message)) + message[4:]
            self.server.handle(self.pieces(bytearray(whole)), [memoryview(bytearray(200))])

    def step(self) -> None:
        request = bytearray(self.message())
        room = self.rng.choice([11, 30, 200, 1 << 17]) if self.rng.random() < 0.1 else 4096
        reply = bytearray(b"\xaa" * room)
        done = self.server.handle(self.pieces(request), self.pieces(reply))
        for _, answer in self.server.ready():
            assert struct.unpack_from("<I", answer)[0] == len(answer)
        if done.waiting is not None:
            self.waited += 1
            return
        length, kind, tag = struct.unpack_from("<IBH", reply)
        assert 7 <= done.length == length <= done.touched <= room
        assert kind == 7 or kind == request[4] + 1
        assert tag == request[5] | request[6] << 8
        assert reply[done.touched :] == b"\xaa" * (room - done.touched)
        if kind != 7:
            self.kinds.add(request[4])
        self.answers["error" if kind == 7 else "good"] += 1

    def run(self, count: int) -> None:
        before = descriptors.held()
        for i in range(count):
            if i % 100 == 0:
                self.begin()
                self.traps()
            self.step()
            assert descriptors.held() - before <= 2 * FIDS + 8
        self.check()

    def check(self) -> None:
        assert (self.outside / "secret").read_bytes() == b"secret"
        assert [path.name for path in self.outside.iterdir()] == ["secret"]
        assert (self.outside / "secret").stat().st_nlink == 1
        assert sorted(path.name for path in self.base.iterdir()) == ["outside", "shared"]

    def close(self) -> None:
        self.server.close()


def main() -> None:
    """A campaign: each 20000 requests in a new directory, with both kinds of owners."""
    count = int(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    done = 0
    while done < count:
        part = min(20_000, count - done)
        before = descriptors.held()
        base = Path(tempfile.mkdtemp(dir="/dev/shm"))
        try:
            fuzz = Fuzz(seed, base, "host" if seed % 2 else "guest")
            try:
                fuzz.run(part)
            except BaseException:
                print(f"seed {seed} failed", file=sys.stderr)
                raise
            fuzz.close()
        finally:
            shutil.rmtree(base)
        assert descriptors.held() == before
        done += part
        seed += 1
        print(f"{done} requests, {fuzz.answers}", flush=True)


if __name__ == "__main__":
    main()
