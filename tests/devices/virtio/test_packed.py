"""Packed virtqueues: buffers, wrapping, event suppression, rules not to be broken (VIRTIO 1.2, section 2.8)."""

from __future__ import annotations

import pytest
from virtio_driver import AVAIL, BASE, DATA, DESC, FULL, PLAIN, SIZE, TABLES, USED, Driver, Wiring, new_memory

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, VirtioDevice
from polyvisor.devices.virtio.packed import EVENT_DESC, EVENT_DISABLE, PackedQueue
from polyvisor.devices.virtio.queue import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Chain, QueueError, length_of
from polyvisor.devices.virtio.rng import RngDevice, RngState
from polyvisor.devices.virtio.split import SplitQueue
from polyvisor.devices.virtio.transport import INTERRUPT_CONFIG, INTERRUPT_USED

pytestmark = pytest.mark.parametrize("wiring", [Wiring("mmio", True)], ids=str, indirect=True)

PARTS = [(DATA, 16, False), (DATA + 100, 3, False), (DATA + 512, 512, True), (DATA + 2000, 1, True)]
EXPECTED = ([(DATA, 16), (DATA + 100, 3)], [(DATA + 512, 512), (DATA + 2000, 1)])
ONE = [(DATA, 1, True)]


class Collect(VirtioDevice):
    """Keeps the chains it gets and writes nothing."""

    device_id = 43

    def __init__(self) -> None:
        super().__init__(0, (64,), RngState())
        self.chains: list[Chain] = []

    def notify(self, index: int) -> None:
        self.serve(index, self._take)

    def _take(self, chain: Chain) -> int:
        self.chains.append(chain)
        return length_of(chain.writable)


def collector(features: int = FULL, size: int = 16) -> tuple[Driver, list[Chain]]:
    device = Collect()
    return Driver(device, features, size), device.chains


def event(driver: Driver, position: int, flags: int = EVENT_DESC) -> None:
    """Ask to be interrupted when the descriptor at ``position`` is used."""
    wrap = position // driver.size % 2 == 0
    driver.put(AVAIL, "HH", position % driver.size | wrap << 15, flags)


def test_chain() -> None:
    driver, chains = collector()
    driver.offer(driver.chain(PARTS, first=5))
    driver.kick()
    assert [(c.head, c.readable, c.writable, c.slots) for c in chains] == [(5, *EXPECTED, 4)]
    assert driver.used() == [(5, 513)]
    assert driver.ack() == INTERRUPT_USED
    assert (DESC, 16 * 16) in driver.written


def test_indirect() -> None:
    driver, chains = collector()
    driver.offer(driver.indirect(PARTS, index=7))
    driver.kick()
    assert [(c.head, c.readable, c.writable, c.slots) for c in chains] == [(7, *EXPECTED, 1)]


def test_only_the_write_flag_counts_in_an_indirect_table() -> None:
    driver, chains = collector()
    for i, flags in enumerate((DESC_F_NEXT | DESC_F_INDIRECT, DESC_F_WRITE | 0x8080, DESC_F_WRITE | DESC_F_NEXT)):
        driver.put(TABLES + 16 * i, "QIHH", DATA + 16 * i, 16, 99, flags)
    driver.publish([(TABLES, 48, 3, DESC_F_INDIRECT | DESC_F_WRITE)])
    driver.kick()
    assert (chains[0].readable, chains[0].writable) == ([(DATA, 16)], [(DATA + 16, 16), (DATA + 32, 16)])


def test_direct_then_indirect() -> None:
    driver, chains = collector()
    driver.indirect(PARTS[1:])
    driver.publish([(DATA, 16, 0, DESC_F_NEXT), (TABLES, 48, 6, DESC_F_INDIRECT)])
    driver.kick()
    assert [(c.head, c.readable, c.writable, c.slots) for c in chains] == [(6, *EXPECTED, 2)]


@pytest.mark.parametrize("features", [PLAIN, FULL])
@pytest.mark.parametrize("size", [1, 5, 8])
def test_wraps(features: int, size: int) -> None:
    driver, chains = collector(features, size)
    for i in range(60):
        parts = [(DATA + i, 1, False)] * (i % min(3, size)) + [(DATA + i, 2, True)]
        driver.offer(driver.chain(parts, first=i % 8))
        driver.kick()
        assert driver.used() == [(i % 8, 2)], i
    assert [(c.writable[0], len(c.readable)) for c in chains] == [((DATA + i, 2), i % min(3, size)) for i in range(60)]


def test_empty_buffers_and_nothing_written() -> None:
    driver, chains = collector()
    driver.offer(driver.chain([(0, 0, False), (DATA, 1, False), (0, 0, True)]))
    driver.kick()
    assert (chains[0].readable, chains[0].writable) == ([(DATA, 1)], [])
    assert driver.used() == [(0, 0)]


def queue_of(size: int = 4) -> tuple[PackedQueue, Driver]:
    """A queue without a device, and a driver that only knows how to write its ring."""
    driver = Driver(Collect(), size=size)
    queue = PackedQueue(driver.memory, 64)
    state = queue.state
    state.size, state.descriptors, state.driver, state.device, state.event_idx = size, DESC, AVAIL, USED, 1
    queue.enable()
    return queue, driver


def test_buffers_are_given_back_in_any_order() -> None:
    queue, driver = queue_of(4)
    driver.offer(driver.chain([*ONE, (DATA, 1, True)], first=0))
    driver.offer(driver.chain(ONE, first=2))
    driver.offer(driver.chain(ONE, first=3))
    held = [queue.pop() for _ in range(3)]
    assert queue.pop() is None and not queue.has_more()
    for chain, written in zip(reversed(held), (3, 2, 1), strict=True):
        assert chain is not None
        queue.push(chain, written)
    # Each is where the one before ended, by the slots of what is given back: 3 and 2 take one, 0 takes two.
    assert [driver.get(DESC + 16 * i + 12, "H") for i in range(3)] == [3, 2, 0]
    assert [driver.get(DESC + 16 * i + 8, "I") for i in range(3)] == [3, 2, 1]
    assert queue.state.next_used == queue.state.next_avail == 4
    chain = held[0]
    assert chain is not None
    queue.push(chain, 0)  # nobody is owed anything
    assert queue.state.next_used == 4


def test_buffers_held_count_against_the_size() -> None:
    queue, driver = queue_of(2)
    driver.offer(driver.chain(ONE))
    driver.offer(driver.chain(ONE, first=1))
    assert queue.pop() and queue.pop()
    driver.offer(driver.chain(ONE))
    with pytest.raises(QueueError, match="more than 2"):
        queue.pop()
    queue, driver = queue_of(4)
    driver.offer(driver.chain(ONE))
    assert queue.pop()
    driver.publish([(DATA, 1, 0, DESC_F_NEXT)] * 4)
    with pytest.raises(QueueError, match="longer than 3"):
        queue.pop()
    queue.disable()
    assert queue.pop() is None and not queue.has_more() and not queue.request_notification()
    assert not queue.should_interrupt()


def test_flags_suppress_interrupts() -> None:
    for features in (PLAIN, FULL):
        driver, _ = collector(features)
        event(driver, 0, EVENT_DISABLE)
        driver.offer(driver.chain(PARTS))
        driver.kick()
        assert driver.used() and driver.ack() == 0 and driver.wire.changes == []
        event(driver, 99 if features == PLAIN else 0, 0)
        driver.offer(driver.chain(PARTS))
        driver.kick()
        assert driver.ack() == 1 and not driver.wire.level


def test_descriptor_event_suppresses_interrupts() -> None:
    driver, _ = collector(size=4)
    interrupts = []
    event(driver, 6)
    for _ in range(10):
        driver.offer(driver.chain(ONE))
        driver.kick()
        driver.used()
        interrupts.append(driver.ack())
    assert interrupts == [0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    event(driver, 11)
    for i in range(3):
        driver.offer(driver.chain(ONE, first=i))
    driver.kick()
    assert driver.ack() == 1
    event(driver, 12)  # behind: the next lap
    driver.used()
    driver.offer(driver.chain(ONE))
    driver.kick()
    assert driver.ack() == 0


def test_event_within_the_slots_of_a_buffer() -> None:
    driver, _ = collector(size=8)
    event(driver, 2)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.ack() == 1


def test_many_laps_at_one_go_pass_every_event() -> None:
    class Refill(Collect):
        def _take(self, chain: Chain) -> int:
            if len(self.chains) < 15:
                driver.offer(0)
            return super()._take(chain)

    device = Refill()
    driver = Driver(device, size=4)
    event(driver, 3)
    driver.offer(driver.chain(ONE))
    driver.kick()
    assert len(device.chains) == 16 and driver.ack() == 1


def test_notifications_are_asked_for() -> None:
    driver, _ = collector(size=4)
    for i in range(3):
        driver.offer(driver.chain(ONE, first=i))
    driver.kick()
    assert driver.get(USED, "I") == 3 | 1 << 15 | EVENT_DESC << 16
    driver.used()
    for i in range(2):
        driver.offer(driver.chain(ONE, first=i))
    driver.kick()
    assert driver.get(USED, "I") == 1 | EVENT_DESC << 16


def test_flag_suppresses_notifications_while_serving() -> None:
    seen = []

    class Look(Collect):
        def _take(self, chain: Chain) -> int:
            seen.append(driver.get(USED, "I"))
            return 0

    driver = Driver(Look(), PLAIN)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert seen == [EVENT_DISABLE << 16] and driver.get(USED, "I") == 0


BAD = {
    "outside": lambda d: d.publish([(0x1000, 4, 0, 0)]),
    "across the end": lambda d: d.publish([(BASE + SIZE - 4, 5, 0, DESC_F_WRITE)]),
    "wraps": lambda d: d.publish([(2**64 - 1, 2, 0, DESC_F_WRITE)]),
    "order": lambda d: d.publish([(DATA, 1, 0, DESC_F_WRITE | DESC_F_NEXT), (DATA, 1, 0, 0)]),
    "endless": lambda d: d.publish([(DATA, 1, 0, DESC_F_NEXT)] * d.size),
    "indirect and next": lambda d: d.publish([(TABLES, 16, 0, DESC_F_INDIRECT | DESC_F_NEXT), (DATA, 1, 0, 0)]),
    "indirect odd length": lambda d: d.publish([(TABLES, 17, 0, DESC_F_INDIRECT)]),
    "indirect empty": lambda d: d.publish([(TABLES, 0, 0, DESC_F_INDIRECT)]),
    "indirect outside": lambda d: d.publish([(BASE + SIZE - 16, 32, 0, DESC_F_INDIRECT)]),
    "indirect huge": lambda d: d.publish([(TABLES, 0xFFFFFFF0, 0, DESC_F_INDIRECT)]),
    "indirect too long": lambda d: d.publish([(TABLES, 16 * 65, 0, DESC_F_INDIRECT)]),
}


def check_failed(driver: Driver) -> None:
    assert driver.needs_reset and driver.wire.level
    assert driver.ack() & INTERRUPT_CONFIG
    before = driver.memory.read(DESC, 0x4000)
    driver.kick()
    assert driver.memory.read(DESC, 0x4000) == before
    driver.start(driver.features)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.used() == [(0, 513)]


@pytest.mark.parametrize("name", BAD)
def test_bad_chain_needs_reset(name: str) -> None:
    driver, chains = collector()
    BAD[name](driver)
    driver.kick()
    assert chains == []
    check_failed(driver)


def test_impossible_event_needs_reset() -> None:
    driver, _ = collector()
    driver.put(AVAIL, "HH", 16, EVENT_DESC)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.used() == [(0, 513)] and driver.needs_reset


def test_indirect_must_be_negotiated() -> None:
    driver, _ = collector(PLAIN | F_EVENT_IDX)
    driver.offer(driver.indirect(PARTS))
    driver.kick()
    check_failed(driver)
    driver, _ = collector(PLAIN | F_INDIRECT_DESC)
    driver.offer(driver.indirect(PARTS))
    driver.kick()
    assert driver.used() == [(0, 513)]


@pytest.mark.parametrize(
    ("size", "desc", "driver_area", "device_area"),
    [(0, 0, 0, 0), (65, 0, 0, 0), (4, 8, 0, 0), (4, 0, 2, 0), (4, 0, 0, 2), (4, SIZE, 0, 0), (4, 0, SIZE, 0),
     (4, SIZE - 48, 0, 0), (4, 0, 0, 1 << 63)],
)  # fmt: skip
def test_bad_areas(size: int, desc: int, driver_area: int, device_area: int) -> None:
    queue = PackedQueue(new_memory(), 64)
    state = queue.state
    state.size, state.descriptors = size, BASE + desc
    state.driver, state.device = BASE + driver_area, BASE + device_area
    with pytest.raises(QueueError):
        queue.enable()
    assert not state.ready and queue.pop() is None


def test_format_follows_negotiation() -> None:
    driver, _ = collector()
    assert isinstance(driver.mmio.queues[0], PackedQueue)
    driver.packed = False
    driver.start(FULL)
    assert isinstance(driver.mmio.queues[0], SplitQueue)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.used() == [(0, 513)]
    driver.packed = True
    driver.start(FULL)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.used() == [(0, 513)]


def test_not_offered_unless_asked_for() -> None:
    transport = t.VirtioMmio(new_memory(), collector()[0].wire, RngDevice())
    assert not transport.offered & F_RING_PACKED
