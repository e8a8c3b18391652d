"""Registers, negotiation, interrupts (VIRTIO 1.2, sections 2.1, 3.1, 4.2)."""

from __future__ import annotations

import copy

import pytest
from virtio_driver import BASE, DATA, FULL, PLAIN, SIZE, Driver, Wire, Wiring, every_wiring, new_memory

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.device import F_VERSION_1, VirtioDevice
from polyvisor.devices.virtio.mmio import EmptySlot, VirtioMmio
from polyvisor.devices.virtio.rng import RngDevice, RngState
from polyvisor.devices.virtio.transport import DRIVER_OK, INTERRUPT_CONFIG, TransportState
from polyvisor.engine.memory import BusError


class Probe(VirtioDevice):
    """Two queues and a configuration space of 10 bytes."""

    device_id = 42

    def __init__(self) -> None:
        super().__init__(1 << 3 | 1 << 40, (8, 4), RngState())
        self.bytes = bytearray(range(1, 11))
        self.kicks: list[int] = []
        self.resets = 0

    def config(self) -> bytes:
        return bytes(self.bytes)

    def write_config(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data

    def notify(self, index: int) -> None:
        self.kicks.append(index)

    def reset(self) -> None:
        self.resets += 1


def test_identity() -> None:
    mmio = VirtioMmio(new_memory(), Wire(), Probe())
    assert [mmio.read(offset, 4) for offset in (0, 4, 8)] == [0x74726976, 2, 42]
    assert mmio.read(t.VENDOR_ID, 4)
    assert [mmio.read(offset, 4) for offset in range(0xB0, 0xC0, 4)] == [0xFFFFFFFF] * 4


def test_empty_slot() -> None:
    mmio = EmptySlot()
    assert [mmio.read(offset, 4) for offset in (0, 4, 8)] == [0x74726976, 2, 0]
    for offset in range(0, 0x200, 4):
        mmio.write(offset, 4, 0xFFFFFFFF)
    assert all(mmio.read(offset, 4) == 0 for offset in range(8, 0x200, 4))


def test_access_sizes() -> None:
    mmio = VirtioMmio(new_memory(), Wire(), Probe())
    for offset, size in ((0, 1), (0, 2), (0, 8), (2, 4), (0xFC, 8), (0x1000, 4), (0xFFC, 8), (0x100, 3), (-4, 4)):
        with pytest.raises(BusError):
            mmio.read(offset, size)
        with pytest.raises(BusError):
            mmio.write(offset, size, 0)


@every_wiring
def test_config_space() -> None:
    mmio = Driver(Probe(), own=0, size=4).mmio
    assert mmio.read(0x100, 1) == 1
    assert mmio.read(0x102, 2) == 0x0403
    assert mmio.read(0x104, 4) == 0x08070605
    assert mmio.read(0x100, 8) == 0x0807060504030201
    assert mmio.read(0x108, 4) == 0x0A09
    assert mmio.read(0x800, 4) == 0
    mmio.write(0x102, 2, 0xBBAA)
    assert mmio.read(0x100, 8) == 0x08070605BBAA0201
    mmio.write(0x108, 4, 0)
    assert mmio.read(0x108, 4) == 0x0A09


def test_config_generation() -> None:
    driver = Driver(Probe(), own=0, size=4)
    before = driver.reg(t.CONFIG_GENERATION)
    with driver.device.guard():
        driver.device.link.config_changed()
    assert driver.reg(t.CONFIG_GENERATION) != before
    assert driver.reg(t.INTERRUPT_STATUS) == INTERRUPT_CONFIG and driver.wire.level
    assert driver.ack() == INTERRUPT_CONFIG and not driver.wire.level
    driver.set(t.STATUS, 0)
    with driver.device.guard():
        driver.device.link.config_changed()
    assert not driver.wire.level


@every_wiring
def test_offered_features(wiring: Wiring) -> None:
    mmio = Driver(Probe(), own=0, size=4).mmio
    words = []
    for word in range(3):
        mmio.write(t.DEVICE_FEATURES_SEL, 4, word)
        words.append(mmio.read(t.DEVICE_FEATURES, 4))
    assert words == [1 << 3 | 3 << 28, 1 | 1 << 8 | (4 if wiring.packed else 0), 0]


@every_wiring
@pytest.mark.parametrize(
    ("features", "good"),
    [(FULL, True), (PLAIN, True), (PLAIN | 8, True), (8, False), (PLAIN | 1, False), (PLAIN | 1 << 41, False)],
)
def test_negotiation(features: int, good: bool) -> None:
    driver = Driver(Probe(), own=0, size=4)
    assert driver.negotiate(features) is good
    assert driver.device.link.features == (features if good else 0)
    driver.set(t.STATUS, 15)
    assert bool(driver.reg(t.STATUS) & DRIVER_OK) is good
    driver.set(t.DRIVER_FEATURES, 0)
    assert driver.device.link.features == (features if good else 0)


@every_wiring
def test_features_beyond_64_are_refused() -> None:
    driver = Driver(Probe(), own=0, size=4)
    driver.set(t.STATUS, 0)
    driver.set(t.DRIVER_FEATURES_SEL, 1)
    driver.set(t.DRIVER_FEATURES, F_VERSION_1 >> 32)
    driver.set(t.DRIVER_FEATURES_SEL, 2)
    driver.set(t.DRIVER_FEATURES, 1)
    driver.set(t.STATUS, 11)
    assert driver.reg(t.STATUS) == 3


@every_wiring
def test_status_bits_stay_until_reset() -> None:
    driver = Driver(Probe(), own=0, size=4)
    driver.set(t.STATUS, 1)
    assert driver.reg(t.STATUS) == 15
    driver.set(t.STATUS, 128 | 64)
    assert driver.reg(t.STATUS) == 15 | 128


def test_queue_registers() -> None:
    driver = Driver(Probe(), own=0, size=4)
    assert [driver.reg(t.QUEUE_READY), driver.reg(t.QUEUE_NUM_MAX)] == [1, 8]
    driver.set(t.QUEUE_SEL, 1)
    assert [driver.reg(t.QUEUE_READY), driver.reg(t.QUEUE_NUM_MAX)] == [0, 4]
    for select in (2, 0xFFFFFFFF):
        driver.set(t.QUEUE_SEL, select)
        driver.set(t.QUEUE_READY, 1)
        driver.set(t.QUEUE_NUM, 4)
        assert [driver.reg(t.QUEUE_READY), driver.reg(t.QUEUE_NUM_MAX)] == [0, 0]
    driver.set(t.QUEUE_SEL, 0)
    driver.set(t.QUEUE_DESC_LOW, 0)
    assert driver.mmio.state.queues[0].descriptors == BASE + 0x1000
    driver.set(t.QUEUE_READY, 0)
    assert driver.reg(t.QUEUE_READY) == 0
    driver.set(t.QUEUE_DESC_HIGH, 0x12)
    assert driver.mmio.state.queues[0].descriptors == BASE + 0x1000 | 0x12 << 32


@every_wiring
def test_notify_reaches_ready_queues_of_a_running_device() -> None:
    device = Probe()
    driver = Driver(device, own=0, size=4)
    for index in (0, 1, 2, 0xFFFFFFFF):
        driver.set(t.QUEUE_NOTIFY, index)
    assert device.kicks == [0]
    driver.negotiate(PLAIN)
    driver.set_up_queue()
    driver.kick()
    assert device.kicks == [0]


@every_wiring
def test_reset() -> None:
    device = Probe()
    driver = Driver(device, own=0, size=4)
    driver.device.link.interrupt()
    assert driver.wire.level
    resets = device.resets
    driver.set(t.STATUS, 0)
    assert device.resets == resets + 1 and not driver.wire.level
    state = driver.mmio.state
    assert [state.status, state.interrupt_status, state.driver_features, state.queues[0].ready] == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("size", "desc", "avail", "used"),
    [
        (3, 0, 0, 0),
        (0, 0, 0, 0),
        (16, 0, 0, 0),
        (4, 8, 0, 0),
        (4, 0, 1, 0),
        (4, 0, 0, 2),
        (4, SIZE, 0, 0),
        (4, 0, SIZE, 0),
        (4, 0, 0, SIZE - 8),
        (4, 1 << 63, 0, 0),
    ],
)
def test_bad_rings_need_reset(size: int, desc: int, avail: int, used: int) -> None:
    driver = Driver(Probe(), own=0, size=4)
    driver.negotiate(PLAIN)
    driver.size = size
    if size <= 8:
        driver.set_up_queue(BASE + desc, BASE + avail, BASE + used)
    else:
        driver.set(t.QUEUE_NUM, size)
        driver.set(t.QUEUE_READY, 1)
    assert driver.needs_reset and driver.reg(t.QUEUE_READY) == 0
    assert not driver.wire.level
    driver.set(t.STATUS, 15)
    assert driver.reg(t.INTERRUPT_STATUS) == INTERRUPT_CONFIG and driver.wire.level
    driver.size = 4
    driver.start(PLAIN)
    assert not driver.needs_reset and not driver.wire.level


def test_one_transport_for_each_device() -> None:
    device = Probe()
    with pytest.raises(ValueError, match="not connected"):
        _ = device.link
    VirtioMmio(new_memory(), Wire(), device)
    with pytest.raises(ValueError, match="connected already"):
        VirtioMmio(new_memory(), Wire(), device)


@every_wiring
def test_state_can_move_to_another_transport() -> None:
    first = Driver(RngDevice(lambda count: b"a" * count))
    first.offer(first.chain([(DATA, 4, True)]))
    first.kick()
    state = copy.deepcopy(first.mmio.state)
    second = Driver(RngDevice(lambda count: b"b" * count))
    second.memory.write(BASE, first.memory.read(BASE, SIZE))
    second.set(t.STATUS, 0)
    second.mmio.state = state
    second.avail_idx = second.seen = 1
    second.offer(second.chain([(DATA + 4, 4, True)]))
    second.kick()
    assert second.memory.read(DATA, 8) == b"aaaabbbb"
    assert second.used() == [(0, 4)]
    with pytest.raises(ValueError, match="queues"):
        second.mmio.state = TransportState()
