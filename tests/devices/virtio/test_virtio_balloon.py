"""The balloon, as a driver sees it."""

from __future__ import annotations

import os
import struct
import threading

import pytest

from polyvisor.devices.virtio import balloon as b
from polyvisor.devices.virtio import transport
from polyvisor.devices.virtio.balloon import BalloonDevice
from polyvisor.devices.virtio.device import F_VERSION_1
from support.virtio_guest import AREA, DATA, Guest

PAGE = 4096
PAGES = DATA + 8 * PAGE
"""Four pages with data, away from where buffers are."""


def start(features: int | None = None) -> tuple[BalloonDevice, Guest]:
    device = BalloonDevice()
    guest = Guest(device)
    guest.start(features)
    guest.poke(DATA, bytes(AREA))
    guest.poke(PAGES, b"\xaa" * 4 * PAGE)
    return device, guest


def blocks(guest: Guest) -> int:
    """Bytes of the host's memory that the area of the pages has. (Reading a page takes one, too.)"""
    return os.fstat(guest.areas[DATA].fd).st_blocks * 512


def contents(guest: Guest) -> bytes:
    """The first byte of each page."""
    data = guest.peek(PAGES, 4 * PAGE)
    assert all(data[i * PAGE : i * PAGE + PAGE].count(data[i * PAGE]) == PAGE for i in range(4))
    return data[::PAGE]


def numbers(*addresses: int) -> bytes:
    return b"".join(struct.pack("<I", address // PAGE) for address in addresses)


def test_inflating_gives_pages_back() -> None:
    _, guest = start()
    before = blocks(guest)
    guest.written.clear()
    guest.request(b.INFLATE, [numbers(PAGES + PAGE, PAGES + 3 * PAGE), numbers(PAGES)])
    assert blocks(guest) == before - 3 * PAGE
    assert contents(guest) == b"\0\0\xaa\0"
    assert {(PAGES, 2 * PAGE), (PAGES + 3 * PAGE, PAGE)} <= set(guest.written)  # the engine was told
    guest.request(b.DEFLATE, [numbers(PAGES)])
    guest.poke(PAGES, b"\xbb" * PAGE)
    assert contents(guest) == b"\xbb\0\xaa\0"


def test_numbers_that_name_no_ram_are_ignored() -> None:
    _, guest = start()
    end = DATA + AREA
    guest.request(b.INFLATE, [numbers(0, 2**44 - PAGE, DATA - PAGE, end, end + PAGE, PAGES) + b"\1\2\3"])
    assert contents(guest) == b"\0\xaa\xaa\xaa" and not guest.needs_reset
    guest.check_canaries()


def test_too_many_numbers_at_once() -> None:
    _, guest = start()
    for _ in range(5):
        guest.chain(0, [(DATA, AREA // 2, False)] * 3, 0)
    guest.offer(0, 0)
    guest.kick(0)
    assert guest.needs_reset


def test_the_target() -> None:
    device, guest = start()
    device.target = 3 * PAGE
    assert guest.ack() == 2 and guest.config(0, 4) == 3 and device.target == 3 * PAGE
    assert not device.wait(0)
    guest.set_config(4, 4, 3)
    assert device.actual == 3 * PAGE and device.wait(0)
    guest.set_config(0, 4, 99)  # not the driver's to write
    assert device.target == 3 * PAGE
    guest.set_status(0)
    assert device.actual == 0 and guest.config(0, 4) == 3
    for wrong in (1, -PAGE, 2**44):
        with pytest.raises(ValueError, match="multiple of 4096"):
            device.target = wrong


def test_statistics() -> None:
    device, guest = start()
    with pytest.raises(TimeoutError):
        device.statistics(0)

    def put(value: int) -> None:
        guest.post(b.STATS, [struct.pack("<HQHQHQ", 5, value, 4, 7, 99, 1)])

    put(1)
    guest.kick(b.STATS)
    assert guest.used(b.STATS) == []  # it is kept
    found: list[dict[str, int]] = []
    asking = threading.Thread(target=lambda: found.append(device.statistics(30)))
    asking.start()
    while not guest.used(b.STATS):
        pass
    put(2)
    guest.kick(b.STATS)
    asking.join(30)
    assert found == [{"free_memory": 7, "total_memory": 2}] and list(found[0]) == ["free_memory", "total_memory"]


def test_statistics_put_there_before_the_driver_ran() -> None:
    device = BalloonDevice()
    guest = Guest(device)
    assert guest.negotiate(guest.offered())
    guest.set_up_queues()
    guest.post(b.STATS, [struct.pack("<HQ", 5, 1)])
    guest.kick(b.STATS)
    guest.set_status(15)
    with pytest.raises(TimeoutError):
        device.statistics(0)
    assert len(guest.used(b.STATS)) == 1  # it was asked


@pytest.mark.parametrize(
    ("features", "queue"),
    [(None, 4), (None, 3), (F_VERSION_1 | b.F_PAGE_REPORTING, 4), (F_VERSION_1 | b.F_PAGE_REPORTING, 2)],
)
def test_reported_pages_are_given_back(features: int | None, queue: int) -> None:
    _, guest = start(features)
    before = blocks(guest)
    # The second part has one whole page and the halves of two.
    guest.chain(queue, [(PAGES, PAGE, True), (PAGES + PAGE + 2048, 2 * PAGE, True)], 0)
    guest.offer(queue, 0)
    guest.kick(queue)
    assert guest.used(queue) == [(0, 0)]
    assert blocks(guest) == before - 2 * PAGE
    assert contents(guest) == b"\0\xaa\0\xaa"


def test_reported_pages_stay_if_they_are_poisoned() -> None:
    _, guest = start()
    guest.set_config(12, 4, 0xAAAAAAAA)
    assert guest.config(12, 4) == 0xAAAAAAAA
    guest.chain(4, [(PAGES, 2 * PAGE, True)], 0)
    guest.offer(4, 0)
    guest.kick(4)
    assert guest.used(4) == [(0, 0)] and contents(guest) == b"\xaa" * 4
    guest.request(b.INFLATE, [numbers(PAGES)])
    assert contents(guest) == b"\0\xaa\xaa\xaa"


def test_without_the_feature_nothing_is_reported() -> None:
    _, guest = start(F_VERSION_1)
    guest.chain(4, [(PAGES, 2 * PAGE, True)], 0)
    guest.offer(4, 0)
    guest.kick(4)
    assert contents(guest) == b"\xaa" * 4


def test_much_work_is_done_in_pieces() -> None:
    """So that the hart comes back to the guest meanwhile."""
    _, guest = start()
    table = [(DATA, AREA // 4, False)]
    for i in range(12):
        guest.chain(0, table, i)
        guest.offer(0, i)
    guest.poke(DATA, bytes(AREA // 4))
    guest.kick(0)
    done = len(guest.used(0))
    assert 0 < done < 12
    while guest.ack() & transport.INTERRUPT_USED:
        done += len(guest.used(0))
    assert done == 12
