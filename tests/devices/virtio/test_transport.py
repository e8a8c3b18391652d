"""The MMIO transport and the split queue, by the specification, and with drivers that break its rules."""

from __future__ import annotations

import random
import struct

import pytest

from polyvisor.devices.virtio.rng import RngDevice
from polyvisor.engine.memory import BusError
from support.virtio import AVAILABLE, BUFFERS, DESCRIPTORS, INDIRECT, NEXT, RAM, RAM_SIZE, USED, WRITE, Driver

NEEDS_RESET = 64


def entropy(count: int) -> bytes:
    return bytes(i & 0xFF for i in range(1, count + 1))


def driver() -> Driver:
    made = Driver(RngDevice(entropy))
    made.start()
    return made


def test_an_empty_slot_has_device_0() -> None:
    empty = Driver(None)
    assert [empty.read(r) for r in (0x000, 0x004, 0x008)] == [0x74726976, 2, 0]
    empty.write(0x070, 1)
    assert empty.read(0x070) == 0


def test_a_device_needs_version_1() -> None:
    made = Driver(RngDevice(entropy))
    for status in (1, 3):
        made.write(0x070, status)
    made.write(0x070, 11)
    assert made.read(0x070) == 3


def test_features_that_are_not_offered_are_refused() -> None:
    made = Driver(RngDevice(entropy))
    made.write(0x024, 1)
    made.write(0x020, 1 | 1 << 20)
    made.write(0x070, 11)
    assert not made.read(0x070) & 8


def test_a_request_is_served_and_interrupts() -> None:
    made = driver()
    written, (data,) = made.request([], [10])
    assert (written, data) == (10, entropy(10))
    assert made.line.level
    assert made.read(0x060) == 1
    made.write(0x064, 1)
    assert not made.line.level


def test_many_requests_wrap_the_indices() -> None:
    made = driver()
    made.mmio.device.queues[0].state.next_available = made.mmio.device.queues[0].state.next_used = 0xFFF0  # type: ignore[union-attr]
    made.available = made.used = 0xFFF0
    for _ in range(40):
        assert made.request([], [4])[1] == [entropy(4)]


def test_interrupts_can_be_suppressed() -> None:
    made = Driver(RngDevice(entropy))
    made.start(1 << 32)  # without the event index
    made.memory.write(AVAILABLE, b"\x01\0")
    made.request([], [4])
    assert not made.line.level


def test_the_event_index_says_when_to_interrupt() -> None:
    made = driver()
    made.memory.write(AVAILABLE + 4 + 2 * made.size, (2).to_bytes(2, "little"))
    for expected in (False, False, True):
        made.request([], [4])
        assert made.line.level == expected


def test_an_indirect_table_is_followed() -> None:
    made = driver()
    table = BUFFERS + 0x1000
    made.memory.write(table, struct.pack("<QIHH", BUFFERS, 4, WRITE | NEXT, 1))
    made.memory.write(table + 16, struct.pack("<QIHH", BUFFERS + 64, 4, WRITE, 0))
    made.describe(0, table, 32, INDIRECT)
    made.offer(0)
    assert made.memory.read(BUFFERS, 4) == entropy(4) == made.memory.read(BUFFERS + 64, 4)


def test_registers_take_whole_words_only() -> None:
    with pytest.raises(BusError):
        driver().mmio.read(0x070, 1)


@pytest.mark.parametrize(
    "descriptors",
    [
        [(BUFFERS, 4, WRITE | NEXT, 0)],  # a loop
        [(BUFFERS, 4, WRITE | NEXT, 99)],  # no such descriptor
        [(RAM - 4096, 4, WRITE, 0)],  # outside RAM
        [(RAM + RAM_SIZE - 2, 4, WRITE, 0)],
        [(2**64 - 2, 4, WRITE, 0)],
        [(BUFFERS, 0xFFFF_FFFF, WRITE, 0)],
        [(BUFFERS, 4, WRITE | NEXT, 1), (BUFFERS, 4, 0, 0)],  # readable after writable
        [(BUFFERS, 16, INDIRECT | NEXT, 1), (BUFFERS, 4, WRITE, 0)],
        [(BUFFERS, 17, INDIRECT, 0)],
        [(BUFFERS, 0, INDIRECT, 0)],
        [(DESCRIPTORS, 16, INDIRECT, 0)],  # an indirect table inside itself
    ],
)
def test_broken_chains_ask_for_a_reset(descriptors: list[tuple[int, int, int, int]]) -> None:
    made = driver()
    for i, descriptor in enumerate(descriptors):
        made.describe(i, *descriptor)
    made.offer(0)
    assert made.read(0x070) & NEEDS_RESET
    assert made.read(0x060) & 2
    made.start()
    made.available = made.used = 0
    made.memory.write(AVAILABLE, bytes(64))
    made.memory.write(USED, bytes(64))
    assert made.request([], [4])[1] == [entropy(4)], "a reset makes it work again"


@pytest.mark.parametrize(
    ("register", "value"), [(0x038, 0), (0x038, 3), (0x038, 4096), (0x080, 8), (0x090, 1), (0x0A0, 2), (0x084, 1)]
)
def test_impossible_queues_are_refused(register: int, value: int) -> None:
    made = driver()
    made.write(0x044, 0)
    made.write(register, value)
    made.write(0x044, 1)
    assert made.read(0x070) & NEEDS_RESET
    assert made.read(0x044) == 0


def test_hostile_drivers_do_no_harm() -> None:
    dice = random.Random(1)
    made = driver()
    interesting = [0, 1, 2, 4, 15, 16, 17, 255, 4096, BUFFERS, RAM, RAM + RAM_SIZE - 1, DESCRIPTORS, 2**32 - 1, 2**63]
    for _ in range(6000):
        match dice.randrange(8):
            case 0 | 1 | 2:
                made.describe(
                    dice.randrange(8), dice.choice(interesting), dice.choice(interesting) & 0xFFFF_FFFF,
                    dice.randrange(8), dice.randrange(10),
                )
            case 3 | 4:
                made.offer(dice.randrange(10))
            case 5:
                made.memory.write(AVAILABLE + 2, dice.randbytes(2))
            case 6:
                register = 4 * dice.randrange(0x40)
                made.write(register, dice.choice([*interesting, dice.randrange(16)]) & 0xFFFF_FFFF)
            case _:
                made.start()
                made.memory.write(AVAILABLE, bytes(64))
                made.available = 0
    made.start()
    made.memory.write(AVAILABLE, bytes(64))
    made.memory.write(USED, bytes(64))
    made.available = made.used = 0
    assert made.request([], [4])[1] == [entropy(4)]
