"""Indirect tables, looked at as a whole, mean what their single descriptors mean (VIRTIO 1.2, 2.7.5.3, 2.8.7)."""

from __future__ import annotations

import random

import pytest
from virtio_driver import BASE, DATA, FULL, SIZE, TABLES, Driver, Wiring, every_wiring

from polyvisor.devices.virtio import packed, split
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, MANY, Chain, Segment, split_last
from polyvisor.devices.virtio.rng import RngState

ENTRIES = 40
QUEUE_SIZE = 64


class Collect(VirtioDevice):
    """Keeps the chains it gets and writes nothing."""

    device_id = 43

    def __init__(self) -> None:
        super().__init__(0, (QUEUE_SIZE,), RngState())
        self.chains: list[Chain] = []

    def notify(self, index: int) -> None:
        self.serve(index, self._take)

    def _take(self, chain: Chain) -> int:
        self.chains.append(chain)
        return 0


def table(rng: random.Random, is_packed: bool) -> list[list[int]]:
    """Address, length, flags and next of each descriptor; most often as drivers make them, else nearly so."""
    count = rng.randrange(1, ENTRIES)
    readable = rng.choice([0, 1, 1, count - 1, count, rng.randrange(count + 1)])
    entries = [
        [DATA + 16 * rng.randrange(1000), rng.randrange(1, 5000), DESC_F_WRITE if place >= readable else 0, 0]
        for place in range(count)
    ]
    for place, entry in enumerate(entries[:-1]):
        if not is_packed:
            entry[2] |= DESC_F_NEXT
            entry[3] = place + 1
    entries[-1][3] = rng.choice([0, 0, rng.getrandbits(16)])
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        entry = rng.choice(entries)
        match rng.randrange(6):
            case 0:
                entry[0] = rng.choice([0, BASE - 8, BASE, BASE + SIZE - 4, 2**64 - 1, 2**64 - 4096])
            case 1:
                entry[1] = rng.choice([0, 0, 2**32 - 1, SIZE])
            case 2:
                entry[2] ^= rng.choice([1, 2, 2, 4, 8, 1 << 8, 1 << 15])
            case 3:
                entry[3] = rng.choice([0, 1, count - 1, count, rng.randrange(count), 2**16 - 1])
            case 4:
                entry[0], entry[1] = BASE + SIZE - 64, rng.choice([64, 65])
            case 5:
                entries.append(list(entries[-1]))
    return entries


def outcome(entries: list[list[int]], odd: int) -> tuple[bool, list[tuple[int, list[Segment], list[Segment], int]]]:
    """Whether the device needs a reset, and what it got."""
    device = Collect()
    driver = Driver(device, FULL)
    for place, (address, length, flags, following) in enumerate(entries):
        fields = (following, flags) if driver.packed else (flags, following)
        driver.put(TABLES + 16 * place, "QIHH", address, length, *fields)
    driver.desc(3, TABLES, 16 * len(entries) + odd, DESC_F_INDIRECT)
    driver.offer(3)
    driver.kick()
    return driver.needs_reset, [(c.head, c.readable, c.writable, c.slots) for c in device.chains]


@every_wiring
def test_at_once_and_one_by_one(wiring: Wiring, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(5)
    wholes = []
    for queue in (split.SplitQueue, packed.PackedQueue):
        whole = queue._sorted_at_once

        def counted(self, *arguments, whole=whole):  # type: ignore[no-untyped-def]
            wholes.append(whole(self, *arguments))
            return wholes[-1]

        monkeypatch.setattr(queue, "_sorted_at_once", counted)
    resets = 0
    for _ in range(400):
        entries, odd = table(rng, wiring.packed), rng.choice([0] * 20 + [1, 8])
        found = outcome(entries, odd)
        with monkeypatch.context() as patch:
            patch.setattr(split, "MANY", 1 << 20)
            patch.setattr(packed, "MANY", 1 << 20)
            assert outcome(entries, odd) == found
        resets += found[0]
    assert 20 < resets < 300 and sum(chain is not None for chain in wholes) > 100


@every_wiring
def test_longest_table(wiring: Wiring) -> None:
    for count in (MANY - 1, MANY, QUEUE_SIZE, QUEUE_SIZE + 1):
        flags = 0 if wiring.packed else DESC_F_NEXT
        entries = [[DATA + 16 * place, 16, flags, place + 1] for place in range(count)]
        entries[-1][2] = 0
        needs_reset, chains = outcome(entries, 0)
        assert needs_reset == (count > QUEUE_SIZE)
        assert needs_reset or chains[0][1] == [(DATA + 16 * place, 16) for place in range(count)]


def test_last_byte() -> None:
    assert split_last([(10, 4), (20, 1)]) == ([(10, 4)], (20, 1))
    assert split_last([(10, 4), (20, 3)]) == ([(10, 4), (20, 2)], (22, 1))
    assert split_last([(10, 1)]) == ([], (10, 1))
