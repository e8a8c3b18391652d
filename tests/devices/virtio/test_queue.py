"""Split virtqueues: buffers, suppression, rules that drivers must not break (VIRTIO 1.2, section 2.7)."""

from __future__ import annotations

import pytest
from virtio_driver import AVAIL, BASE, DATA, DESC, FULL, PLAIN, SIZE, TABLES, USED, Driver, every_wiring, new_memory

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, VirtioDevice
from polyvisor.devices.virtio.queue import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    Chain,
    QueueError,
    gather,
    length_of,
    scatter,
    split,
)
from polyvisor.devices.virtio.rng import RngState
from polyvisor.devices.virtio.split import SplitQueue
from polyvisor.devices.virtio.transport import INTERRUPT_CONFIG, INTERRUPT_USED


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


PARTS = [(DATA, 16, False), (DATA + 100, 3, False), (DATA + 512, 512, True), (DATA + 2000, 1, True)]
EXPECTED = ([(DATA, 16), (DATA + 100, 3)], [(DATA + 512, 512), (DATA + 2000, 1)])


def test_chain() -> None:
    driver, chains = collector()
    driver.offer(driver.chain(PARTS, first=5))
    driver.kick()
    assert [(c.head, c.readable, c.writable) for c in chains] == [(5, *EXPECTED)]
    assert driver.used() == [(5, 513)]
    assert driver.ack() == INTERRUPT_USED


def test_indirect() -> None:
    driver, chains = collector()
    driver.offer(driver.indirect(PARTS, index=7))
    driver.kick()
    assert [(c.head, c.readable, c.writable) for c in chains] == [(7, *EXPECTED)]


def test_direct_then_indirect() -> None:
    driver, chains = collector()
    driver.indirect(PARTS[1:], index=3)
    driver.desc(2, DATA, 16, DESC_F_NEXT, 3)
    driver.offer(2)
    driver.kick()
    assert (chains[0].readable, chains[0].writable) == EXPECTED


def test_indirect_ignores_write_flag_and_may_be_longer_than_the_drivers_size() -> None:
    driver, chains = collector(size=4)
    driver.indirect([(DATA + i, 1, False) for i in range(40)])
    driver.desc(0, TABLES, 16 * 40, DESC_F_INDIRECT | DESC_F_WRITE)
    driver.offer(0)
    driver.kick()
    assert len(chains[0].readable) == 40


def test_empty_segments_are_dropped() -> None:
    driver, chains = collector()
    driver.offer(driver.chain([(0, 0, False), (DATA, 1, True), (0, 0, False), (0, 0, True)]))
    driver.kick()
    assert (chains[0].readable, chains[0].writable) == ([], [(DATA, 1)])


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_indices_wrap(features: int) -> None:
    driver, chains = collector(features, size=8)
    driver.used_event(-1)
    state = driver.mmio.state.queues[0]
    state.next_avail = state.next_used = driver.avail_idx = driver.seen = 0xFFF0
    driver.put(USED + 2, "H", 0xFFF0)
    for i in range(40):
        driver.offer(driver.chain([(DATA + i, 1, True)], first=i % 8))
        driver.kick()
        assert driver.used() == [(i % 8, 1)]
    assert [c.writable for c in chains] == [[(DATA + i, 1)] for i in range(40)]
    assert driver.get(USED + 2, "H") == 0x18


def test_flag_suppresses_interrupts() -> None:
    driver, _ = collector(PLAIN)
    driver.put(AVAIL, "H", 1)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.used() and driver.ack() == 0 and driver.wire.changes == []
    driver.put(AVAIL, "H", 0)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.wire.level and driver.ack() == 1 and not driver.wire.level


def test_event_index_suppresses_interrupts() -> None:
    driver, _ = collector()
    driver.put(AVAIL, "H", 1)  # has no meaning with EVENT_IDX
    driver.used_event(2)
    interrupts = []
    for _ in range(5):
        driver.offer(driver.chain(PARTS))
        driver.kick()
        interrupts.append(driver.ack())
    assert interrupts == [0, 0, 1, 0, 0]
    driver.used_event(6)
    for i in range(3):
        driver.offer(driver.chain([(DATA, 1, True)], first=i))
    driver.kick()
    assert driver.ack() == 1


def test_event_index_asks_for_the_next_notification() -> None:
    driver, _ = collector()
    for i in range(3):
        driver.offer(driver.chain([(DATA, 1, True)], first=i))
    driver.kick()
    assert driver.avail_event() == 3
    assert driver.get(USED, "H") == 0


def test_flag_suppresses_notifications_while_serving() -> None:
    seen = []

    class Look(Collect):
        def _take(self, chain: Chain) -> int:
            seen.append(driver.get(USED, "H"))
            return 0

    driver = Driver(Look(), PLAIN)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert seen == [1] and driver.get(USED, "H") == 0


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_buffers_added_meanwhile_are_served(features: int) -> None:
    class Refill(Collect):
        def _take(self, chain: Chain) -> int:
            if len(self.chains) < 20:
                driver.offer(0)
            return super()._take(chain)

    device = Refill()
    driver = Driver(device, features)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert len(device.chains) == 21


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_endless_refills_wait_for_the_driver(features: int) -> None:
    class Refill(Collect):
        def _take(self, chain: Chain) -> int:
            driver.offer(0)
            return super()._take(chain)

    device = Refill()
    driver = Driver(device, features, size=4)
    driver.put(AVAIL, "H", 1)
    driver.used_event(0x8000)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert len(device.chains) == 16 and driver.mmio.state.resume == 1
    assert driver.ack() == 1
    assert len(device.chains) == 32 and driver.wire.level
    driver.set(t.STATUS, 0)
    assert driver.mmio.state.resume == 0


@every_wiring
@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_calls_outside_of_serve_tell_the_engine_too(features: int) -> None:
    class Hold(Collect):
        def notify(self, index: int) -> None:
            queue = self.link.queues[index]
            calls = (queue.suppress_notifications, lambda: queue.push(queue.pop(), 1), queue.request_notification)
            for call in calls:
                driver.written.clear()
                before = driver.memory.read(DESC, 0x4000)
                call()
                after = driver.memory.read(DESC, 0x4000)
                changed = {DESC + i for i in range(0x4000) if before[i] != after[i]}
                assert changed <= {at + i for at, length in driver.written for i in range(length)}
                counts.append(len(changed))

    counts: list[int] = []
    driver = Driver(Hold(), features)
    for i in range(2):
        driver.offer(driver.chain([(DATA, 1, True)], first=i + 1))
    driver.kick()
    assert counts[1] and counts[2] and bool(counts[0]) == (features == PLAIN)


def nested(driver: Driver) -> None:
    driver.put(TABLES, "QIHH", TABLES + 64, 16, DESC_F_INDIRECT, 0)
    driver.desc(0, TABLES, 16, DESC_F_INDIRECT)


BAD = {
    "loop": lambda d: [d.desc(i, DATA, 1, DESC_F_NEXT, (i + 1) % 4) for i in range(4)],
    "self": lambda d: d.desc(0, DATA, 1, DESC_F_NEXT, 0),
    "next out of table": lambda d: d.desc(0, DATA, 1, DESC_F_NEXT, 16),
    "outside": lambda d: d.desc(0, 0x1000, 4),
    "across the end": lambda d: d.desc(0, BASE + SIZE - 4, 5, DESC_F_WRITE),
    "wraps": lambda d: d.desc(0, 2**64 - 1, 2, DESC_F_WRITE),
    "before": lambda d: d.desc(0, BASE - 1, 2),
    "order": lambda d: d.chain([(DATA, 1, True), (DATA, 1, False)]),
    "indirect in indirect": nested,
    "indirect and next": lambda d: d.desc(0, TABLES, 16, DESC_F_INDIRECT | DESC_F_NEXT, 1),
    "indirect odd length": lambda d: d.desc(0, TABLES, 17, DESC_F_INDIRECT),
    "indirect empty": lambda d: d.desc(0, TABLES, 0, DESC_F_INDIRECT),
    "indirect outside": lambda d: d.desc(0, BASE + SIZE - 16, 32, DESC_F_INDIRECT),
    "indirect huge": lambda d: d.desc(0, TABLES, 0xFFFFFFF0, DESC_F_INDIRECT),
    "indirect too long": lambda d: d.indirect([(DATA, 1, False)] * 65),
    "indirect next out of table": lambda d: [
        d.put(TABLES, "QIHH", DATA, 1, DESC_F_NEXT, 1),
        d.desc(0, TABLES, 16, DESC_F_INDIRECT),
    ],
}


def check_failed(driver: Driver) -> None:
    assert driver.needs_reset and driver.wire.level
    assert driver.ack() & INTERRUPT_CONFIG
    before = driver.memory.read(USED, 0x1000)
    driver.kick()
    assert driver.memory.read(USED, 0x1000) == before
    driver.start(driver.features)
    driver.offer(driver.chain(PARTS))
    driver.kick()
    assert driver.used() == [(0, 513)]


@pytest.mark.parametrize("name", BAD)
def test_bad_chain_needs_reset(name: str) -> None:
    driver, chains = collector()
    BAD[name](driver)
    driver.offer(0)
    driver.kick()
    assert chains == [] and driver.used() == []
    check_failed(driver)


def test_chain_of_more_than_4_gib_needs_reset() -> None:
    driver, _ = collector()
    driver.memory.add_ram(1 << 40, 1 << 31)
    driver.offer(driver.chain([(1 << 40, 1 << 31, True)] * 2))
    driver.kick()
    assert driver.used() == [(0, 0)] and not driver.needs_reset
    driver.offer(driver.chain([(1 << 40, 1 << 31, True)] * 2 + [(DATA, 1, True)]))
    driver.kick()
    check_failed(driver)


@pytest.mark.parametrize("head", [16, 0xFFFF])
def test_bad_head_needs_reset(head: int) -> None:
    driver, _ = collector()
    driver.offer(head)
    driver.kick()
    check_failed(driver)


@pytest.mark.parametrize("idx", [17, 0x8000, 0xFFFF])
def test_bad_available_index_needs_reset(idx: int) -> None:
    driver, _ = collector()
    driver.put(AVAIL + 2, "H", idx)
    driver.kick()
    check_failed(driver)


def test_indirect_must_be_negotiated() -> None:
    driver, _ = collector(PLAIN | F_EVENT_IDX)
    driver.offer(driver.indirect(PARTS))
    driver.kick()
    check_failed(driver)
    driver, _ = collector(PLAIN | F_INDIRECT_DESC)
    driver.offer(driver.indirect(PARTS))
    driver.kick()
    assert driver.used() == [(0, 513)]


def test_good_buffers_before_a_bad_one_are_reported() -> None:
    driver, chains = collector()
    driver.offer(driver.chain(PARTS))
    driver.offer(99)
    driver.kick()
    assert len(chains) == 1 and driver.used() == [(0, 513)] and driver.needs_reset
    assert driver.ack() == INTERRUPT_USED | INTERRUPT_CONFIG


def test_buffers_held_count_against_the_size() -> None:
    memory = new_memory()
    queue = SplitQueue(memory, 4)
    queue.state.size, queue.state.descriptors, queue.state.driver, queue.state.device = 4, DESC, AVAIL, USED
    queue.enable()
    memory.write(DESC, bytes(0x4000))
    memory.write(AVAIL + 2, b"\x03\0")
    held = [queue.pop() for _ in range(3)]
    assert queue.pop() is None and not queue.has_more()
    memory.write(AVAIL + 2, b"\x04\0")
    assert queue.has_more()
    memory.write(AVAIL + 2, b"\x05\0")  # only two more than taken, but three are held
    with pytest.raises(QueueError, match="ahead"):
        queue.pop()
    memory.write(AVAIL + 2, b"\x02\0")
    with pytest.raises(QueueError, match="back"):
        queue.pop()
    memory.write(AVAIL + 2, b"\x04\0")
    for chain in reversed(held):
        assert chain is not None
        queue.push(chain, 0)
    assert queue.should_interrupt() and not queue.should_interrupt()
    queue.disable()
    assert queue.pop() is None and not queue.has_more() and not queue.request_notification()
    assert not queue.should_interrupt()


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_impossible_size(size: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        SplitQueue(new_memory(), size)


def test_segments() -> None:
    segments = [(100, 4), (200, 6)]
    assert split(segments, 0) == ([], segments)
    assert split(segments, 4) == ([(100, 4)], [(200, 6)])
    assert split(segments, 5) == ([(100, 4), (200, 1)], [(201, 5)])
    assert split(segments, 99) == (segments, [])
    memory = new_memory()
    places = [(BASE + 2, 2), (BASE + 10, 3)]
    assert scatter(memory, places, b"abcd") == 4
    assert scatter(memory, places, b"123456") == 5
    assert gather(memory, places) == b"12345"
