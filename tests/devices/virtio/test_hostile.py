"""Drivers that do anything at all: the device must not raise, hang or touch what is not RAM."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest
from virtio_driver import AVAIL, BASE, DATA, DESC, FULL, PLAIN, SIZE, TABLES, USED, Driver, every_wiring

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.rng import RngDevice

GUARD = 0x1000
KICKS = 1500


def address(rng: random.Random) -> int:
    return rng.choice(
        [
            DATA + rng.randrange(0x1000),
            DATA + rng.randrange(0x1000),
            DATA + rng.randrange(0x1000),
            TABLES + 16 * rng.randrange(8),
            rng.choice([DESC, AVAIL, USED]) + rng.randrange(0x100),
            BASE + SIZE - rng.randrange(64),
            BASE - rng.randrange(64),
            rng.getrandbits(64),
            0,
        ]
    )


def length(rng: random.Random) -> int:
    return rng.choice([16, 16, 1, 512, 512, 1024, 0, rng.randrange(64), 16 * rng.randrange(10), rng.getrandbits(32)])


def publish(driver: Driver, rng: random.Random) -> None:
    """Some descriptors in the packed ring, from where the device looks next, most of them available."""
    driver.avail_idx = driver.mmio.state.queues[0].next_avail
    for _ in range(rng.randrange(1, 6)):
        flags = rng.choice([0, 1, 1, 2, 2, 3, 4, 4, 5, rng.getrandbits(16)])
        where, size = address(rng), length(rng)
        if flags & 4 and rng.random() < 0.8:
            where, size = rng.choice([TABLES, TABLES + 64]), 16 * rng.randrange(12)
        driver.publish([(where, size, rng.getrandbits(16), flags)])


def scribble(driver: Driver, rng: random.Random) -> None:
    """Some descriptors, indirect tables and request headers that are close to sensible ones."""
    for place in (DESC, TABLES, TABLES + 64):
        for i in range(driver.size):
            if rng.random() < 0.7:
                following = rng.choice([i + 1, i + 1, i + 1, rng.randrange(driver.size), rng.getrandbits(16)]) & 0xFFFF
                flags = rng.choice([0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 7, rng.getrandbits(16)])
                if flags & 4 and rng.random() < 0.8:
                    where, size = rng.choice([TABLES, TABLES + 64]), 16 * rng.randrange(12)
                else:
                    where, size = address(rng), length(rng)
                fields = (following, flags) if driver.packed else (flags, following)
                driver.put(place + 16 * i, "QIHH", where, size, *fields)
    for i in range(0, 0x1000, 16):
        if rng.random() < 0.2:
            kind = rng.choice([0, 1, 4, 8, 11, 13, rng.getrandbits(32)])
            sector = rng.choice([0, 1, rng.randrange(80), rng.getrandbits(64)])
            driver.put(DATA + i, "IIQ", kind, 0, sector)


def attack(driver: Driver, rng: random.Random) -> None:
    """One hostile kick."""
    if driver.needs_reset or rng.random() < 0.02:
        driver.size = rng.choice([1, 2, 4, 8, 16])
        if rng.random() < 0.1:
            # Rings on top of each other or of the data.
            driver.negotiate(driver.features)
            driver.set_up_queue(address(rng) & ~15, address(rng) & ~1, address(rng) & ~3)
            driver.set(t.STATUS, 15)
        else:
            driver.start(driver.features)
    if rng.random() < 0.4:
        scribble(driver, rng)
    if driver.packed:
        publish(driver, rng)
    else:
        for _ in range(rng.randrange(1, 4)):
            some = rng.randrange(driver.size)
            driver.offer(rng.choice([0, 0, some, rng.randrange(driver.size), rng.getrandbits(16)]))
    if rng.random() < 0.05 and not driver.packed:
        driver.put(AVAIL + 2, "H", rng.getrandbits(16))
        driver.avail_idx = driver.get(AVAIL + 2, "H")
    if rng.random() < 0.1:
        event_at = AVAIL if driver.packed else AVAIL + 4 + 2 * driver.size
        driver.put(event_at, "HH", rng.getrandbits(16), rng.choice([0, 1, 2]))
    driver.kick()
    if rng.random() < 0.5:
        driver.ack()


def hostile(device: VirtioDevice, features: int, seed: int, count: int) -> Driver:
    rng = random.Random(seed)
    driver = Driver(device, features)
    real = (driver.memory.read, driver.memory.write, driver.memory.view)

    def inside(where: int, size: int) -> None:
        assert where >= BASE and where + size <= BASE + SIZE, f"{size} bytes at {where:#x}"

    for name, function in zip(("read", "write", "view"), real, strict=True):

        def checked(where: int, what: int | bytes, function: object = function) -> object:
            inside(where, what if isinstance(what, int) else len(what))
            return function(where, what)  # type: ignore[operator]

        setattr(driver.memory, name, checked)
    failures = 0
    for _ in range(count):
        attack(driver, rng)
        failures += driver.needs_reset
        driver.written.clear()
    assert count // 20 < failures < count
    # It still works.
    driver.size = 16
    driver.start(features)
    driver.put(DATA, "IIQ", 4, 0, 0)
    driver.offer(driver.chain([(DATA, 16, False), (DATA + 16, 1, True)]))
    driver.kick()
    assert driver.used() == [(0, 1)]
    return driver


@every_wiring
@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_hostile_driver_of_rng(features: int) -> None:
    rng = random.Random(5)
    hostile(RngDevice(rng.randbytes), features, 11, KICKS)


@every_wiring
@pytest.mark.parametrize("features", [PLAIN, FULL])
@pytest.mark.parametrize("read_only", [False, True])
def test_hostile_driver_of_block(tmp_path: Path, features: int, read_only: bool) -> None:
    path = tmp_path / "disk"
    path.write_bytes(random.Random(2).randbytes(64 * 512))
    before = path.read_bytes()
    device = BlockDevice.open(path, read_only)
    hostile(device, features | device.features, 12, KICKS)
    assert path.stat().st_size == 64 * 512
    if read_only:
        assert path.read_bytes() == before


@every_wiring
def test_random_register_accesses() -> None:
    rng = random.Random(3)
    driver = Driver(RngDevice())
    offsets = [value for name, value in vars(t).items() if name.isupper() and isinstance(value, int) and value < 0x104]
    offsets = [offset & ~3 for offset in offsets]
    for _ in range(20000):
        offset = rng.choice(offsets)
        if rng.random() < 0.3:
            assert 0 <= driver.reg(offset) < 2**32
        else:
            driver.set(offset, rng.choice([0, 1, 2, 3, 11, 15, 16, BASE, DESC, AVAIL, USED, rng.getrandbits(32)]))


@every_wiring
def test_several_harts(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(64 * 512))
    device = BlockDevice.open(path)
    driver = Driver(device, FULL | device.features)
    driver.put(DATA, "IIQ", 0, 0, 0)
    head = driver.chain([(DATA, 16, False), (DATA + 512, 512, True), (DATA + 16, 1, True)])
    errors: list[BaseException] = []
    producing = threading.Lock()
    offered = done = 0

    def hart() -> None:
        nonlocal offered, done
        try:
            for _ in range(200):
                with producing:
                    done += len(driver.used())
                    if 3 * (offered - done) + 3 <= driver.size:
                        driver.offer(head)
                        offered += 1
                driver.kick()
                driver.ack()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=hart) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)
    assert not driver.needs_reset and done + len(driver.used()) == offered > 100
