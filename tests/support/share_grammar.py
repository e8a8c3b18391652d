"""What drivers of shared directories send: the requests of `p9_messages`, over a virtqueue."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import tempfile
from collections import deque
from pathlib import Path

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.p9 import P9Device
from polyvisor.devices.virtio.queue import Chain, Segment
from polyvisor.storage.p9 import descriptors

from .grammar import Grammar, Request
from .p9_messages import FIDS, Messages, string
from .virtio_guest import Guest

# The directory is made anew after so many proofs that the device works.
_FRESH = 20
_LOCKERS = (100, 101, 102)


class Share(Grammar):
    name = "9p"
    fields = ((0, 2), (2, 2), (2, 4), (4, 1))

    def device(self) -> VirtioDevice:
        self.held = descriptors.held()
        shm = Path("/dev/shm")
        self.base = Path(tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None))
        self.messages = Messages(random.Random(self.rng.random()), self.base, self.known)
        self.made = P9Device.open(self.messages.shared, "fuzz")
        self.proofs = 0
        self.recent: deque[list[Segment]] = deque(maxlen=256)
        return self.made

    def known(self) -> list[int]:
        return list(self.made._server._fids._table)

    def popped(self, queue: int, chain: Chain) -> None:
        # The answers to these may come now.
        self.recent += [chain.writable for chain in self.made._waiting.values()]

    def may_write(self, address: int, length: int) -> bool:
        return any(at <= address and address + length <= at + size for parts in self.recent for at, size in parts)

    def request(self, guest: Guest) -> Request:
        chance = self.random()
        if chance < 0.75:
            data = self.messages.message()
        elif chance < 0.78:
            data = self.pick(self.messages.beginning())
        else:
            data = self.lock()
        pieces = [data[:23], data[23:]] if self.random() < 0.4 and len(data) > 23 else [data]
        return 0, pieces, [self.pick((4096, 4096, 4096, 200, 11, 30, 9000)) for _ in range(self.pick((1, 1, 2)))]

    def started(self, guest: Guest, polite: bool) -> None:
        if polite:
            self.messages.replace_file()
            opening = [part for fid in _LOCKERS for part in (self.walk(fid), self.message("<BHII", 12, 0, fid, 2))]
            for message in (*self.messages.beginning(), *opening):
                guest.post(0, [message], [200])
                guest.kick(0)

    def message(self, form: str, *fields: int, more: bytes = b"") -> bytes:
        body = struct.pack(form, *fields) + more
        return struct.pack("<I", 4 + len(body)) + body

    def walk(self, fid: int) -> bytes:
        return self.message("<BHIIH", 110, 0, 0, fid, 1, more=string(b"file"))

    def lock(self) -> bytes:
        """Owners lock the same file, and wait for each other; or that is given up."""
        fid, tag, chance = self.pick(_LOCKERS), self.below(40), self.random()
        if chance < 0.05:
            return self.message("<BHH", 108, tag, self.below(40))
        if chance < 0.08:
            return self.message("<BHI", 120, tag, fid)
        lock = (self.pick((1, 1, 1, 2, 0)), 1, self.pick((0, 5)), self.pick((0, 3)), fid)
        return self.message("<BHIBIQQI", 52, tag, fid, *lock, more=string(b"guest"))

    def host(self) -> None:
        self.messages.traps()

    def works(self, guest: Guest) -> None:
        assert not self.known() and not self.made._waiting, "something is left from before the reset"
        self.proofs += 1
        if self.proofs % _FRESH == 0:
            for path in self.messages.shared.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            self.messages.fill()
        for message in self.messages.beginning()[:2]:
            answer = guest.request(0, [message], [200])
            assert answer[4] == message[4] + 1 and len(answer) == int.from_bytes(answer[:4], "little")
        walk = struct.pack("<BHIIH", 110, 7, 0, 2, 1) + string(b"nothing there")
        answer = guest.request(0, [struct.pack("<I", 4 + len(walk)) + walk], [200])
        assert answer == struct.pack("<IBHI", 11, 7, 7, errno.ENOENT)

    def check(self) -> None:
        self.messages.check()
        assert descriptors.held() - self.held <= 2 * (FIDS + len(_LOCKERS)) + 8

    def end(self) -> None:
        shutil.rmtree(self.base)
        assert descriptors.held() == self.held
