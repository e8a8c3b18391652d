"""What is particular to virtio over PCI (VIRTIO 1.2, section 4.1)."""

from __future__ import annotations

import copy
import random
import struct
from itertools import pairwise

import pytest
from pci_registers import BAR, WINDOW, PciRegisters
from virtio_driver import AVAIL, DATA, DESC, FULL, USED, Driver, Wire, Wiring, new_memory

from polyvisor.devices.pci import function as f
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import pci as p
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.rng import RngDevice, RngState
from polyvisor.devices.virtio.transport import DEVICE_NEEDS_RESET, INTERRUPT_CONFIG, INTERRUPT_USED

over_pci = pytest.mark.parametrize("wiring", [Wiring("pci")], ids=str, indirect=True)
pytestmark = over_pci


class Probe(VirtioDevice):
    """Three queues and a configuration space of 10 bytes."""

    device_id = 2

    def __init__(self) -> None:
        super().__init__(0, (8, 4, 4), RngState())
        self.bytes = bytearray(range(1, 11))
        self.kicks: list[int] = []

    def config(self) -> bytes:
        return bytes(self.bytes)

    def write_config(self, offset: int, data: bytes) -> None:
        self.bytes[offset : offset + len(data)] = data

    def notify(self, index: int) -> None:
        self.kicks.append(index)


def probe() -> tuple[Driver, PciRegisters]:
    driver = Driver(Probe(), size=4)
    return driver, driver.mmio


def common(pci: PciRegisters, at: int, size: int) -> int:
    return pci.bar_read(p.CAP_COMMON, at, size)


def test_identity() -> None:
    _, pci = probe()
    assert pci.read_config(0, 4) == 0x1042_1AF4
    assert pci.read_config(f.REVISION, 4) == 0x010000_01
    assert pci.read_config(f.SUBSYSTEM_ID, 2) >= 0x40
    assert pci.read_config(f.INTERRUPT_PIN, 1) == 1
    assert PciRegisters(new_memory(), Wire(), RngDevice(), False).read_config(0, 4) == 0x1044_1AF4


def test_capabilities_say_where_registers_are() -> None:
    _, pci = probe()
    assert set(pci.parts) == {1, 2, 3, 4, 5}
    ranges = []
    for kind in (1, 2, 3, 4):
        at = pci.capabilities[kind]
        assert at % 4 == 0 and pci.read_config(at + 2, 1) == (20 if kind == 2 else 16)
        ranges.append((pci.parts[kind], pci.read_config(at + 12, 4)))
    ranges.sort()
    assert all(low + size <= high for (low, size), (high, _) in pairwise(ranges))
    assert ranges[-1][0] + ranges[-1][1] <= p.BAR_SIZE


def test_common_configuration_after_reset() -> None:
    pci = PciRegisters(new_memory(), Wire(), Probe(), False)
    assert common(pci, p.NUM_QUEUES, 2) == 3
    assert common(pci, p.CONFIG_MSIX_VECTOR, 2) == 0xFFFF
    for index, size in enumerate((8, 4, 4, 0)):
        pci.bar_write(p.CAP_COMMON, p.QUEUE_SELECT, 2, index)
        assert common(pci, p.QUEUE_SELECT, 2) == index
        assert common(pci, p.QUEUE_SIZE, 2) == size
        assert common(pci, p.QUEUE_ENABLE, 2) == 0
        assert common(pci, p.QUEUE_NOTIFY_OFF, 2) == (index if size else 0)
    pci.bar_write(p.CAP_COMMON, p.QUEUE_SELECT, 2, 1)
    pci.bar_write(p.CAP_COMMON, p.QUEUE_MSIX_VECTOR, 2, 0)
    assert common(pci, p.QUEUE_MSIX_VECTOR, 2) == 0xFFFF


def test_queue_addresses_have_two_halves() -> None:
    driver, pci = probe()
    assert [common(pci, at, 8) for at in (p.QUEUE_DESC, p.QUEUE_DRIVER, p.QUEUE_DEVICE)] == [DESC, AVAIL, USED]
    pci.bar_write(p.CAP_COMMON, p.QUEUE_DESC, 8, 0)  # it is enabled
    assert common(pci, p.QUEUE_DESC, 4) == DESC
    driver.set(t.QUEUE_SEL, 1)
    pci.bar_write(p.CAP_COMMON, p.QUEUE_DRIVER, 8, 0x1234_5678_9ABC_DEF0)
    assert [common(pci, p.QUEUE_DRIVER + i, 4) for i in (0, 4)] == [0x9ABC_DEF0, 0x1234_5678]
    pci.bar_write(p.CAP_COMMON, p.QUEUE_DRIVER + 4, 4, 1)
    assert driver.mmio.state.queues[1].driver == 0x1_9ABC_DEF0


def test_registers_have_one_width() -> None:
    driver, pci = probe()
    for at, size in ((p.DEVICE_STATUS, 2), (p.DEVICE_STATUS, 4), (p.QUEUE_SIZE, 4), (p.QUEUE_SIZE + 1, 1), (60, 4)):
        assert common(pci, at, size) == 0
        pci.bar_write(p.CAP_COMMON, at, size, 0)
    assert driver.reg(t.STATUS) == 15 and common(pci, p.QUEUE_SIZE, 2) == 4


def test_queues_stay_enabled_until_reset() -> None:
    driver, pci = probe()
    for value in (0, 2):
        pci.bar_write(p.CAP_COMMON, p.QUEUE_ENABLE, 2, value)
        assert common(pci, p.QUEUE_ENABLE, 2) == 1
    driver.set(t.STATUS, 0)
    assert common(pci, p.QUEUE_ENABLE, 2) == 0 and common(pci, p.QUEUE_SIZE, 2) == 8


def test_bad_rings_need_reset() -> None:
    driver, pci = probe()
    driver.set(t.QUEUE_SEL, 1)
    pci.bar_write(p.CAP_COMMON, p.QUEUE_SIZE, 2, 3)
    pci.bar_write(p.CAP_COMMON, p.QUEUE_ENABLE, 2, 1)
    assert driver.needs_reset and common(pci, p.QUEUE_ENABLE, 2) == 0


def test_reading_the_interrupt_status_acknowledges() -> None:
    driver, pci = probe()
    with driver.device.guard():
        driver.device.link.interrupt()
        driver.device.link.config_changed()
    assert driver.wire.level
    assert pci.read_config(f.STATUS, 2) & f.STATUS_INTERRUPT
    assert pci.bar_read(p.CAP_ISR, 0, 1) == INTERRUPT_USED | INTERRUPT_CONFIG
    assert not driver.wire.level and pci.bar_read(p.CAP_ISR, 0, 1) == 0
    assert not pci.read_config(f.STATUS, 2) & f.STATUS_INTERRUPT


def test_notifications_go_to_the_queue_of_their_address() -> None:
    driver, pci = probe()
    device = driver.device
    assert isinstance(device, Probe)
    assert pci.multiplier == 4
    for where in (4, 8, 12, 0, 0xFFC):
        pci.bar_write(p.CAP_NOTIFY, where, 2, 0)
    assert device.kicks == [0]  # the only one that is enabled


def test_resumed_when_the_interrupt_is_acknowledged() -> None:
    class Refill(RngDevice):
        served = 0

        def _fill(self, chain: object) -> int:
            self.served += 1
            driver.offer(0)
            return 0

    device = Refill()
    driver = Driver(device, size=4)
    driver.offer(driver.chain([(DATA, 1, True)]))
    driver.kick()
    assert device.served == 16 and driver.wire.level
    assert driver.ack() == INTERRUPT_USED
    assert device.served == 32


def test_a_bad_ring_met_while_acknowledging() -> None:
    class Refill(RngDevice):
        def _fill(self, chain: object) -> int:
            driver.offer(0)
            return 0

    driver = Driver(Refill(), size=4)
    driver.offer(driver.chain([(DATA, 1, True)]))
    driver.kick()
    driver.desc(0, 0, 1)
    assert driver.ack() == INTERRUPT_USED
    assert driver.needs_reset and driver.wire.level and driver.ack() == INTERRUPT_CONFIG


def test_no_buffers_are_taken_without_bus_mastering() -> None:
    driver = Driver(RngDevice(lambda count: b"x" * count))
    pci = driver.mmio
    pci.write_config(f.COMMAND, 2, f.COMMAND_MEMORY)
    driver.offer(driver.chain([(DATA, 4, True)]))
    driver.kick()
    assert driver.used() == [] and driver.memory.read(DATA, 4) == bytes(4)
    pci.write_config(f.COMMAND, 2, f.COMMAND_MEMORY | f.COMMAND_MASTER)
    assert driver.used() == [(0, 4)] and driver.memory.read(DATA, 4) == b"xxxx"


def access(pci: PciRegisters, bar: int, offset: int, length: int) -> int:
    at = pci.capabilities[p.CAP_PCI]
    pci.write_config(at + 4, 1, bar)
    pci.write_config(at + 8, 4, offset)
    pci.write_config(at + 12, 4, length)
    return at + 16


def test_registers_through_configuration_space() -> None:
    driver, pci = probe()
    pci.write_config(f.COMMAND, 2, 0)  # works without a memory range, too
    data = access(pci, 0, pci.parts[p.CAP_COMMON] + p.DEVICE_STATUS, 1)
    assert pci.read_config(data, 1) == 15
    data = access(pci, 0, pci.parts[p.CAP_DEVICE] + 4, 4)
    assert pci.read_config(data, 4) == 0x08070605
    pci.write_config(data, 4, 0xAABBCCDD)
    assert driver.device.config()[4:8] == b"\xdd\xcc\xbb\xaa"
    data = access(pci, 0, pci.parts[p.CAP_COMMON] + p.DEVICE_STATUS, 1)
    pci.write_config(data, 1, 0)
    assert pci.transport.state.status == 0


@pytest.mark.parametrize(
    ("bar", "offset", "length"),
    [(1, 0, 4), (0, 2, 4), (0, p.BAR_SIZE, 4), (0, 2**32 - 4, 4), (0, 0, 0), (0, 0, 8), (0, 0, 3), (0, 0, 2**32 - 1)],
)
def test_bad_accesses_through_configuration_space(bar: int, offset: int, length: int) -> None:
    driver, pci = probe()
    data = access(pci, bar, offset, length)
    for at in range(data, data + 4):
        for size in (1, 2, 4):
            pci.write_config(at, size, 0)
            pci.read_config(at, size)
    assert driver.reg(t.STATUS) == 15 and pci.transport.state.device_features_sel == 0


def test_moving_the_range_does_not_disturb() -> None:
    _, pci = probe()
    pci.write_config(f.BARS, 4, BAR + 0x10_0000)
    assert pci.bar_read(p.CAP_COMMON, p.DEVICE_STATUS, 1) == 0xFF
    assert pci.host.memory.read(BAR + 0x10_0000 - WINDOW + p.DEVICE_STATUS, 1) == 15


def test_state_holds_the_configuration_space() -> None:
    driver, pci = probe()
    state = copy.deepcopy(pci.state)
    fresh = PciRegisters(driver.memory, Wire(), Probe(), False)
    fresh.write_config(f.BARS, 4, BAR + 0x20_0000)
    fresh.state = state
    assert fresh.bar_read(p.CAP_COMMON, p.DEVICE_STATUS, 1) == 15
    fresh.write(t.QUEUE_NOTIFY, 4, 0)
    assert fresh.transport.device.kicks == [0]


def test_random_accesses() -> None:
    rng = random.Random(9)
    driver = Driver(RngDevice(), FULL)
    pci = driver.mmio
    for _ in range(20000):
        size = rng.choice([1, 2, 4, 8])
        if rng.random() < 0.2:
            at = rng.randrange(0x40, 0x100)
            pci.write_config(at, rng.choice([1, 2, 4]), rng.choice([0, 1, 4, rng.getrandbits(32)]))
            pci.read_config(at, rng.choice([1, 2, 4]))
            continue
        offset = rng.choice([rng.randrange(64), rng.randrange(p.BAR_SIZE - 8), 0x1000, 0x2000, 0x3000])
        value = rng.choice([0, 1, 2, 3, 11, 15, DESC, AVAIL, USED, rng.getrandbits(64)]) & (1 << 8 * size) - 1
        pci.host.memory.write(BAR - WINDOW + offset, size, value)
        assert 0 <= pci.host.memory.read(BAR - WINDOW + offset, size) < 1 << 8 * size
    assert pci.transport.state.status & ~(0x8F | DEVICE_NEEDS_RESET) == 0
    assert struct.pack("<I", pci.read_config(0, 4)) == b"\xf4\x1a\x44\x10"
