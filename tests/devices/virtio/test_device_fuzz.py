"""Each virtio device with hostile drivers for a short while, and what the fuzzer itself must notice."""

from __future__ import annotations

import pytest

from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.devices.virtio.queue import Chain
from polyvisor.devices.virtio.rng import RngDevice
from polyvisor.devices.virtio.split import SplitQueue
from support.device_fuzz import Failure, fuzz
from support.device_grammars import GRAMMARS

OPERATIONS = 8000


@pytest.mark.parametrize("name", sorted(GRAMMARS))
def test_hostile_drivers(name: str) -> None:
    result = fuzz(name, OPERATIONS, seed=3)
    assert result.operations == OPERATIONS and result.proofs > 5
    # Most of it reaches the device.
    assert result.answered > OPERATIONS // 4 and result.resets < OPERATIONS // 5


def test_the_same_seed_does_the_same() -> None:
    assert fuzz("block", 2000, 7) == fuzz("block", 2000, 7) != fuzz("block", 2000, 8)


def test_it_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyvisor.devices.virtio.block.length_of", lambda segments: 1)
    with pytest.raises(Failure, match="block: "):
        fuzz("block", OPERATIONS, 1)


def test_it_notices_a_write_where_no_buffer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: RngDevice, chain: Chain) -> int:
        for address, length in chain.writable:
            if self.link.memory.is_ram(address, length + 1):
                self.link.memory.write(address, bytes(length + 1))
        return 0

    monkeypatch.setattr(RngDevice, "_fill", fill)
    with pytest.raises(Failure, match="where there is no buffer"):
        fuzz("rng", OPERATIONS, 1)


def test_it_notices_a_silent_write(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(self: BlockDevice, sector: int, segments: list[tuple[int, int]]) -> int:
        for address, length in segments:
            self.link.memory.view(address, length)[:] = b"\x77" * length
        return sum(length for _, length in segments)

    monkeypatch.setattr(BlockDevice, "_read", read)
    with pytest.raises(Failure, match="without a word"):
        fuzz("block", OPERATIONS, 1)


def test_it_notices_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.virtio_guest.WatchedMemory.most_steps", 10_000)
    monkeypatch.setattr(SplitQueue, "request_notification", lambda self, tell=True: True)
    monkeypatch.setattr("polyvisor.devices.virtio.device._TURN", 1 << 40)
    with pytest.raises(Failure, match="accesses to memory in one operation"):
        fuzz("rng", OPERATIONS, 1)


def test_it_notices_a_device_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RngDevice, "reset", lambda self: setattr(self, "_source", bytes))
    with pytest.raises(Failure, match="in operation 0"):
        fuzz("rng", OPERATIONS, 1)
