"""The 9P device: configuration, requests in scattered buffers, hostile drivers."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from virtio_driver import BASE, DATA, FULL, PLAIN, SIZE, Driver

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.p9 import F_MOUNT_TAG, P9Device, ShareError
from polyvisor.storage.p9 import descriptors

ROOM = DATA + 0x20000


def text(value: bytes) -> bytes:
    return struct.pack("<H", len(value)) + value


VERSION = struct.pack("<I", 1 << 16) + text(b"9P2000.L")
ATTACH = struct.pack("<II", 0, 0xFFFFFFFF) + text(b"") + text(b"") + struct.pack("<I", 0)


class Guest(Driver):
    """Sends 9P requests."""

    def send(self, kind: int, body: bytes, reply: list[tuple[int, int]] | None = None, step: int = 5000) -> bytes:
        """The reply; the request is cut into buffers of ``step`` bytes, ``reply`` says where it may go."""
        message = struct.pack("<IBH", 7 + len(body), kind, 9) + body
        self.memory.write(DATA, message)
        parts = [(DATA + at, min(step, len(message) - at), False) for at in range(0, len(message), step)]
        room = reply or [(ROOM, 4096)]
        self.offer(self.chain([*parts, *((at, size, True) for at, size in room)]))
        self.kick()
        [(_, length)] = self.used()
        return b"".join(self.memory.read(at, size) for at, size in room)[:length]

    def attach(self) -> None:
        assert self.send(100, VERSION)[4] == 101
        assert self.send(104, ATTACH)[4] == 105


def guest(path: Path, features: int = FULL) -> Guest:
    return Guest(P9Device.open(path, "work"), features)


def test_configuration(tmp_path: Path) -> None:
    driver = guest(tmp_path)
    assert driver.reg(t.DEVICE_ID) == 9
    assert driver.features & F_MOUNT_TAG
    config = bytes(driver.mmio.read(t.CONFIG + i, 1) for i in range(8))
    assert config == b"\x04\0work\0\0"
    for tag in ("", "a/b", "a b", "x" * 65, "-x", ".", "ä"):
        before = descriptors.held()
        with pytest.raises(ShareError, match="tag"):
            P9Device.open(tmp_path, tag)
        assert descriptors.held() == before


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_data_goes_to_and_from_scattered_buffers(tmp_path: Path, features: int) -> None:
    data = random.Random(1).randbytes(20000)
    driver = guest(tmp_path, features)
    driver.attach()
    assert driver.send(14, struct.pack("<I", 0) + text(b"f") + struct.pack("<III", 2, 0o644, 0), step=8)[4] == 15
    reply = driver.send(118, struct.pack("<IQI", 0, 100, len(data)) + data, step=3000)
    assert struct.unpack("<I", reply[7:])[0] == len(data)
    assert (tmp_path / "f").read_bytes() == bytes(100) + data
    driver.written.clear()
    places = [(ROOM + 0x100, 11), (ROOM + 0x2000, 4096), (ROOM + 0x5000, 1), (ROOM + 0x6000, 8000)]
    reply = driver.send(116, struct.pack("<IQI", 0, 50, 10_000), places)
    assert reply == struct.pack("<IBHI", 10_011, 117, 9, 10_000) + (bytes(50) + data)[:10_000]
    # What was written is told, and no more than that.
    told = [each for each in driver.written if ROOM <= each[0] < ROOM + 0x10000]
    assert told == [(ROOM + 0x100, 11), (ROOM + 0x2000, 4096), (ROOM + 0x5000, 1), (ROOM + 0x6000, 10_011 - 4108)]
    # No more is read than there is room for.
    reply = driver.send(116, struct.pack("<IQI", 0, 100, 10_000), [(ROOM, 111)])
    assert reply[11:] == data[:100]


def test_a_lock_is_answered_when_it_is_free(tmp_path: Path) -> None:
    driver = guest(tmp_path)
    driver.attach()
    driver.send(14, struct.pack("<I", 0) + text(b"f") + struct.pack("<III", 2, 0o644, 0))

    def lock(kind: int, process: int) -> bytes:
        return struct.pack("<IBIQQI", 0, kind, 1, 0, 0, process) + text(b"")

    assert driver.send(52, lock(1, 1))[7:] == b"\0"
    message = struct.pack("<IBH", 7 + len(lock(1, 2)), 52, 1) + lock(1, 2)
    driver.memory.write(DATA + 0x8000, message)
    driver.offer(driver.chain([(DATA + 0x8000, len(message), False), (ROOM + 0x8000, 100, True)], 8))
    driver.kick()
    assert driver.used() == []
    assert driver.mmio.state.device.waiting[1].head == 8
    message = struct.pack("<IBH", 7 + len(lock(2, 1)), 52, 2) + lock(2, 1)
    driver.memory.write(DATA, message)
    driver.offer(driver.chain([(DATA, len(message), False), (ROOM, 100, True)]))
    driver.kick()
    assert driver.used() == [(8, 8), (0, 8)]
    assert driver.memory.read(ROOM + 0x8000, 8) == struct.pack("<IBHB", 8, 53, 1, 0)


def test_a_buffer_that_is_no_request_fails_the_queue(tmp_path: Path) -> None:
    driver = guest(tmp_path)
    for parts in ([(DATA, 6, False), (ROOM, 100, True)], [(DATA, 20, False), (ROOM, 10, True)], [(ROOM, 100, True)]):
        driver.start(driver.features)
        driver.attach()
        driver.offer(driver.chain(parts))
        driver.kick()
        assert driver.needs_reset


def test_reset_and_close_give_files_back(tmp_path: Path) -> None:
    before = descriptors.held()
    driver = guest(tmp_path)
    driver.attach()
    assert driver.send(14, struct.pack("<I", 0) + text(b"f") + struct.pack("<III", 2, 0o644, 0))[4] == 15
    assert driver.send(104, ATTACH)[4] == 7
    assert descriptors.held() == before + 2
    driver.start(driver.features)
    assert descriptors.held() == before + 1
    assert driver.send(104, ATTACH)[4] == 7, "no session before Tversion"
    driver.device.close()
    assert descriptors.held() == before


def test_state_is_saved_and_restored(tmp_path: Path) -> None:
    driver = guest(tmp_path)
    driver.attach()
    driver.send(14, struct.pack("<I", 0) + text(b"f") + struct.pack("<III", 2, 0o644, 0))
    state = driver.mmio.state
    assert state.device.session.fids[0].path == (b"f",)
    other = P9Device.open(tmp_path, "work")
    other.state = state.device
    driver.device.close()
    driver.device = other
    assert other.state == state.device
    other.close()


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_hostile_driver(tmp_path: Path, features: int) -> None:
    from test_hostile import attack

    rng = random.Random(4)
    (tmp_path / "f").write_bytes(b"contents")
    before = descriptors.held()
    driver = guest(tmp_path, features)
    failures = 0
    for _ in range(2000):
        for at in range(DATA, DATA + 0x1000, 512):
            if rng.random() < 0.3:
                kind = rng.choice([100, 104, 110, 12, 24, 116, 118, 40, 120, rng.randrange(256)])
                body = {100: VERSION, 104: ATTACH}.get(kind, struct.pack("<IQI", 0, 0, rng.getrandbits(32)))
                message = struct.pack("<IBH", rng.choice([16, 512, 7 + len(body)]), kind, 1) + body
                driver.memory.write(at, message)
        attack(driver, rng)
        failures += driver.needs_reset
        assert all(at >= BASE and at + size <= BASE + SIZE for at, size in driver.written)
        driver.written.clear()
    assert 100 < failures < 2000
    driver.size = 16
    driver.start(features)
    driver.attach()
    driver.device.close()
    assert descriptors.held() == before
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
