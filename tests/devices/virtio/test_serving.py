"""What devices do with buffers that they do not give back at once, whatever the format of the rings."""

from __future__ import annotations

import pytest
from virtio_driver import DATA, DESC, Driver, Wiring, every_wiring

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, QueueError
from polyvisor.devices.virtio.rng import RngState
from polyvisor.devices.virtio.transport import INTERRUPT_USED

pytestmark = every_wiring


class Holder(VirtioDevice):
    """Holds what it gets, while it has room."""

    device_id = 43

    def __init__(self, room: int = 99) -> None:
        super().__init__(0, (16,), RngState())
        self.held: list[Chain] = []
        self.room = room
        self.events: list[str] = []

    def notify(self, index: int) -> None:
        self.events.append("notify")
        self.serve(index, self._hold, lambda: len(self.held) < self.room)

    def _hold(self, chain: Chain) -> int | None:
        self.held.append(chain)
        return None

    def unlocked(self) -> None:
        assert not self.guard()._depth
        self.events.append("unlocked")


def holder(room: int = 99, size: int = 16) -> tuple[Driver, Holder]:
    device = Holder(room)
    return Driver(device, size=size), device


def offer(driver: Driver, *lengths: int) -> None:
    """A buffer of two writable parts for each of ``lengths``, which are of all but one byte and of one."""
    for i, length in enumerate(lengths):
        parts = [(DATA + 4096 * i, length - 1, True), (DATA, 1, True)] if length > 1 else [(DATA, 1, True)]
        driver.offer(driver.chain(parts, first=2 * i))


def test_buffers_are_kept_and_given_back_later() -> None:
    driver, device = holder()
    offer(driver, 5, 6, 7)
    driver.kick()
    assert driver.used() == [] and driver.ack() == 0 and len(device.held) == 3
    queue = device.link.queues[0]
    with device.guard():
        for chain in device.held[::-1]:
            queue.push(chain, 3)
        assert queue.should_interrupt()
        device.link.interrupt()
    if not driver.packed:  # the driver of packed rings here knows sizes by their order
        assert driver.used() == [(4, 3), (2, 3), (0, 3)]
    assert driver.ack() == INTERRUPT_USED


def test_no_buffer_is_taken_that_is_not_wanted() -> None:
    driver, device = holder(2)
    offer(driver, 1, 1, 1, 1)
    driver.kick()
    assert [chain.head for chain in device.held] == [0, 2]
    device.held.clear()
    driver.kick()
    assert [chain.head for chain in device.held] == [4, 6]


def test_several_are_given_back_at_once() -> None:
    driver, device = holder()
    offer(driver, 5, 1, 7)
    driver.kick()
    queue = device.link.queues[0]
    driver.written.clear()
    queue.push_all((chain, number) for number, chain in enumerate(device.held))
    assert driver.used() == [(0, 0), (2, 1), (4, 2)] and driver.written
    queue.push_all([])
    assert driver.used() == []


def test_the_driver_sees_none_before_all_are_there() -> None:
    driver, device = holder()
    offer(driver, 1, 1, 1)
    driver.kick()

    def watched() -> object:
        for chain in device.held:
            assert driver.used() == []
            yield chain, 1

    device.link.queues[0].push_all(watched())
    assert len(driver.used()) == 3


def test_taking_room_and_leaving_it() -> None:
    driver, device = holder(0, size=8)
    queue = device.link.queues[0]
    for _ in range(5):  # more than once around the ring
        offer(driver, 100, 1, 50)
        chains = queue.pop_room(101)
        assert [chain.head for chain in chains] == [0, 2]
        assert [chain.head for chain in queue.pop_room(51)] == [4] and queue.pop_room(1) == []
        device.room = 0
        queue.unpop(reversed([*chains, Chain(4, slots=2)]))
        assert queue.has_more()
        chains = queue.pop_room(10000)
        assert [chain.head for chain in chains] == [0, 2, 4]
        queue.push_all((chain, 1) for chain in chains)
        assert driver.used() == [(0, 1), (2, 1), (4, 1)]
    assert queue.pop_room(0) == []


def test_a_bad_buffer_among_those_that_make_room() -> None:
    driver, device = holder(0)
    driver.offer(driver.chain([(DATA, 8, True)]))
    driver.offer(driver.chain([(8, 8, True)], first=1))
    with pytest.raises(QueueError, match="not in RAM"):
        device.link.queues[0].pop_room(100)


def test_nothing_is_done_to_queues_that_are_not_enabled() -> None:
    driver, device = holder()
    offer(driver, 1)
    driver.kick()
    queue = device.link.queues[0]
    driver.set(t.STATUS, 0)
    before = driver.memory.read(DESC, 0x4000)
    for each in (queue, device.link.queues[0]):
        each.push_all([(device.held[0], 1)])
        each.unpop(device.held)
        assert each.pop_room(1) == [] and not each.should_interrupt()
        each.announce()
    assert driver.memory.read(DESC, 0x4000) == before and device.link.queues[0].state.next_avail == 0


def test_the_device_is_called_without_the_lock_after_each_access(wiring: Wiring) -> None:
    driver, device = holder()
    device.events.clear()
    driver.kick()
    assert device.events == ["notify", "unlocked"]
    driver.desc(0, 0, 1)
    driver.offer(0)
    driver.kick()
    assert driver.needs_reset and "unlocked" in device.events[2:]
    with device.guard(), device.guard():
        device.events.clear()
    assert device.events == ["unlocked"]
