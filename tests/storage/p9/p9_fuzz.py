"""Random requests, most of them nearly right. For a long campaign: python -m tests.storage.p9.p9_fuzz COUNT [SEED]"""

from __future__ import annotations

import random
import shutil
import struct
import sys
import tempfile
from pathlib import Path

if not __package__:
    from support.p9_messages import FIDS, Messages
else:
    from tests.support.p9_messages import FIDS, Messages

from polyvisor.storage.p9 import descriptors
from polyvisor.storage.p9.server import Server
from polyvisor.storage.p9.tree import Tree


class Fuzz:
    """Requests for one server over a directory with traps in it."""

    def __init__(self, seed: int, base: Path, owner: str, read_only: bool = False) -> None:
        self.rng = random.Random(seed)
        self.messages = Messages(self.rng, base, lambda: self.server._fids._table)
        self.server = Server(Tree.at(self.messages.shared, read_only, owner))
        self.answers = {"good": 0, "error": 0}
        self.waited = 0
        self.kinds: set[int] = set()

    def pieces(self, data: bytearray) -> list[memoryview]:
        view = memoryview(data)
        cut = self.rng.randrange(len(data) + 1)
        return [piece for piece in (view[:cut], view[cut:]) if len(piece)]

    def begin(self) -> None:
        for message in self.messages.beginning():
            self.server.handle(self.pieces(bytearray(message)), [memoryview(bytearray(200))])

    def step(self) -> None:
        request = bytearray(self.messages.message())
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
                self.messages.traps()
            self.step()
            assert descriptors.held() - before <= 2 * FIDS + 8
        self.messages.check()

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
