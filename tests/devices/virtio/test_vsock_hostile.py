"""Guests that break their rings, never stop, or send more than they may: the host goes on."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable

import pytest

from polyvisor.devices.virtio import vsock
from polyvisor.devices.virtio.queue import Chain
from polyvisor.devices.virtio.vsock import Stream, VsockDevice
from support.virtio_guest import AREA, AVAIL_AT, DATA, TABLES, Guest


def packet(operation: int, data: bytes = b"") -> bytes:
    return vsock.HEADER.pack(3, vsock.HOST_CID, 99, 10, len(data), vsock.TYPE_STREAM, operation, 0, 1 << 16, 0)


def add_again(guest: Guest, index: int) -> None:
    """What the device gives back is available again at once, as if another hart of the guest saw to it."""
    ring = guest.transport.queues[index]
    give = ring.push_all

    def again(chains: Iterable[tuple[Chain, int]], tell: bool = True) -> None:
        chains = list(chains)
        give(chains, tell)
        for chain, _ in chains:
            guest.offer(index, chain.head)

    ring.push_all = again  # type: ignore[method-assign]


def test_what_was_received_stays_readable_when_the_receive_queue_is_broken() -> None:
    device = VsockDevice()
    streams: list[Stream] = []
    device.listen(10, streams.append)
    guest = Guest(device)
    guest.start()
    guest.post(vsock.RX, [], [64])
    guest.request(vsock.TX, [packet(vsock.OP_REQUEST)])
    data = bytes(6000)
    for _ in range(30):
        guest.request(vsock.TX, [packet(vsock.OP_RW, data), data])
    guest.poke(guest.ring(vsock.RX) + AVAIL_AT + 2, b"\x77\x77")
    assert streams[0].receive(timeout=0) == bytes(180_000)
    assert guest.needs_reset


def test_a_packet_of_the_same_memory_many_times_takes_none_of_the_host() -> None:
    device = VsockDevice()
    streams: list[Stream] = []
    device.listen(10, streams.append)
    guest = Guest(device)
    guest.start()
    guest.post(vsock.RX, [], [64])
    guest.request(vsock.TX, [packet(vsock.OP_REQUEST)])
    count = 200
    header = vsock.HEADER.pack(
        3, vsock.HOST_CID, 99, 10, count * AREA, vsock.TYPE_STREAM, vsock.OP_RW, 0, 1 << 16, 0
    )
    guest.poke(DATA, header)
    guest.indirect(vsock.TX, [(DATA, 44, False), *[(DATA, AREA, False)] * count], 0, TABLES)
    tracemalloc.start()
    guest.offer(vsock.TX, 0)
    guest.kick(vsock.TX)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert guest.used(vsock.TX)[-1] == (0, 0) and peak < 1 << 20
    assert streams[0].broken


@pytest.mark.parametrize("queue", [vsock.RX, vsock.TX])
def test_a_driver_that_adds_buffers_all_the_time_gets_its_hart_back(queue: int) -> None:
    device = VsockDevice()
    guest = Guest(device)
    guest.start()
    for index in (vsock.RX, vsock.TX):
        add_again(guest, index)
    for _ in range(guest.size // 2):
        guest.post(vsock.TX, [packet(vsock.OP_RW, b"nobody listens")])
        guest.post(vsock.RX, [], [64])
    for _ in range(200):
        guest.kick(queue)
        guest.ack()
    assert not guest.needs_reset and len(device._replies) <= 2 * vsock._MAX_REPLIES
