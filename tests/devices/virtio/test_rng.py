"""The entropy device."""

from __future__ import annotations

import pytest
from virtio_driver import BASE, DATA, FULL, PLAIN, SIZE, Driver, every_wiring

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.rng import MAX_BYTES, RngDevice

pytestmark = every_wiring


def test_fills_buffers() -> None:
    asked = []

    def source(count: int) -> bytes:
        asked.append(count)
        return bytes(i & 0xFF for i in range(1, count + 1))

    driver = Driver(RngDevice(source))
    assert driver.reg(t.DEVICE_ID) == 4
    driver.written.clear()
    driver.offer(driver.chain([(DATA, 3, True), (DATA + 8, 2, True)]))
    driver.kick()
    assert driver.used() == [(0, 5)] and asked == [5]
    assert driver.memory.read(DATA, 11) == b"\1\2\3\0\0\0\0\0\4\5\0"
    assert {(DATA, 3), (DATA + 8, 2)} <= set(driver.written)


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_the_engine_is_told_of_all_that_is_written(features: int) -> None:
    driver = Driver(RngDevice(lambda count: b"x" * count), features)
    driver.offer(driver.chain([(DATA, 3, True), (DATA + 8, 2, True)]))
    driver.written.clear()
    before = driver.memory.read(BASE, SIZE)
    driver.kick()
    after = driver.memory.read(BASE, SIZE)
    changed = {BASE + i for i in range(SIZE) if before[i] != after[i]}
    told = {address + i for address, length in driver.written for i in range(length)}
    assert len(changed) > 5 and changed <= told


def test_system_entropy_differs() -> None:
    driver = Driver(RngDevice(), PLAIN)
    driver.offer(driver.chain([(DATA, 32, True)]))
    driver.offer(driver.chain([(DATA + 32, 32, True)], first=1))
    driver.kick()
    assert driver.used() == [(0, 32), (1, 32)]
    assert driver.memory.read(DATA, 32) != driver.memory.read(DATA + 32, 32)


def test_limits() -> None:
    driver = Driver(RngDevice(bytes))
    driver.offer(driver.chain([(DATA, MAX_BYTES, True), (DATA, 8, True)]))
    driver.offer(driver.chain([(DATA, 8, False)], first=2))
    driver.kick()
    assert driver.used() == [(0, MAX_BYTES), (2, 0)]
