"""A guest that breaks its rings does not take what the host has received already."""

from __future__ import annotations

from polyvisor.devices.virtio import vsock
from polyvisor.devices.virtio.vsock import Stream, VsockDevice
from support.virtio_guest import AVAIL_AT, Guest


def packet(operation: int, data: bytes = b"") -> bytes:
    return vsock.HEADER.pack(3, vsock.HOST_CID, 99, 10, len(data), vsock.TYPE_STREAM, operation, 0, 1 << 16, 0)


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
