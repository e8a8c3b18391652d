"""The socket device, worked as a driver would: connections both ways, credit, ends, and guests that do not behave."""

from __future__ import annotations

import random
import struct
import threading
from dataclasses import dataclass

import pytest
from virtio_driver import BASE, FULL, Driver

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import vsock as v
from polyvisor.devices.virtio.queue import DESC_F_WRITE
from polyvisor.devices.virtio.stream import BUFFER
from polyvisor.devices.virtio.vsock import HEADER, Stream, VsockDevice, VsockState
from polyvisor.vm.snapshot.codec import from_plain, to_plain

CID = 3
ROOM = 64 << 10
BUFFERS = BASE + 0x10000
BUFFER_SIZE = 4096
ENTRIES = 16


@dataclass
class Packet:
    """A packet, as the guest sees it."""

    operation: int
    source_port: int
    port: int
    data: bytes
    flags: int
    room: int
    taken: int


class Guest(Driver):
    """A driver with all three queues: ``send`` packets, ``packets`` that were received since the last call."""

    def start(self, features: int) -> None:
        self.negotiate(features)
        self.memory.write(BASE, bytes(0x10000))
        self.rings = [BASE + 0x2000 * queue for queue in range(3)]
        for queue, ring in enumerate(self.rings):
            self.set(t.QUEUE_SEL, queue)
            self.set(t.QUEUE_NUM, ENTRIES)
            for low, address in (
                (t.QUEUE_DESC_LOW, ring), (t.QUEUE_DRIVER_LOW, ring + 0x800), (t.QUEUE_DEVICE_LOW, ring + 0x1000)
            ):  # fmt: skip
                self.set(low, address)
                self.set(low + 4, 0)
            self.set(t.QUEUE_READY, 1)
        self.given = [0, 0, 0]
        self.taken = [0, 0, 0]
        self.set(t.STATUS, 15)

    def give(self, queue: int, address: int, length: int, writable: bool) -> None:
        ring = self.rings[queue]
        slot = self.given[queue] % ENTRIES
        self.put(ring + 16 * slot, "QIHH", address, length, DESC_F_WRITE if writable else 0, 0)
        self.put(ring + 0x804 + 2 * slot, "H", slot)
        self.given[queue] = (self.given[queue] + 1) & 0xFFFF
        self.put(ring + 0x802, "H", self.given[queue])
        self.set(t.QUEUE_NOTIFY, queue)

    def give_buffers(self, count: int = ENTRIES, size: int = BUFFER_SIZE) -> None:
        for _ in range(count):
            self.give(0, BUFFERS + BUFFER_SIZE * (self.given[0] % ENTRIES), size, True)

    def packets(self, again: bool = True) -> list[Packet]:
        """What has come; ``again``: the buffers are given back, and what comes then is taken too."""
        found = []
        while self.taken[0] != self.get(self.rings[0] + 0x1002, "H"):
            slot, length = struct.unpack(
                "<II", self.memory.read(self.rings[0] + 0x1004 + 8 * (self.taken[0] % ENTRIES), 8)
            )
            raw = self.memory.read(self.get(self.rings[0] + 16 * slot, "Q"), length)
            assert length >= HEADER.size, "an empty buffer"
            source, to, source_port, port, size, kind, operation, flags, room, taken = HEADER.unpack_from(raw)
            assert (source, to, kind) == (2, CID, 1) and size == length - HEADER.size
            found.append(Packet(operation, source_port, port, raw[HEADER.size :], flags, room, taken))
            self.taken[0] = (self.taken[0] + 1) & 0xFFFF
            if again:
                self.give_buffers(1)
        return found

    def send(
        self, operation: int, port: int, to: int, data: bytes = b"", flags: int = 0, room: int = ROOM, taken: int = 0,
        kind: int = 1, source: int = CID, destination: int = 2, length: int | None = None,
    ) -> None:  # fmt: skip
        head = HEADER.pack(
            source, destination, port, to, len(data) if length is None else length, kind, operation, flags, room, taken
        )
        address = BUFFERS + 0x20000
        self.memory.write(address, head + data)
        self.give(1, address, len(head + data), False)

    def sent(self) -> int:
        """How many of the sent packets the device has taken."""
        return self.get(self.rings[1] + 0x1002, "H")


@pytest.fixture
def device() -> VsockDevice:
    return VsockDevice(CID)


@pytest.fixture
def guest(device: VsockDevice) -> Guest:
    guest = Guest(device, FULL)
    guest.give_buffers()
    return guest


def connected(device: VsockDevice, guest: Guest, port: int = 7, room: int = ROOM) -> Stream:
    """A stream that the host opened to ``port``."""
    stream = device.open(port)
    (request,) = guest.packets()
    assert (request.operation, request.port, request.room) == (v.OP_REQUEST, port, BUFFER)
    guest.send(v.OP_RESPONSE, port, request.source_port, room=room)
    stream.wait_open(0)
    return stream


def test_the_configuration_space_has_the_address(device: VsockDevice, guest: Guest) -> None:
    assert guest.mmio.read(t.CONFIG, 4) == CID and guest.mmio.read(t.CONFIG + 4, 4) == 0


@pytest.mark.parametrize("cid", [0, 1, 2, 2**32 - 1, 2**40])
def test_addresses_that_no_guest_has_are_refused(cid: int) -> None:
    with pytest.raises(ValueError, match="CID"):
        VsockDevice(cid)


def test_the_host_connects_and_data_goes_both_ways(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    stream.send(b"to the guest")
    (packet,) = guest.packets()
    assert (packet.operation, packet.data) == (v.OP_RW, b"to the guest")
    guest.send(v.OP_RW, 7, stream.port, b"to the host")
    assert stream.receive(6, 0) == b"to the"
    assert stream.receive(100, 0) == b" host"
    with pytest.raises(TimeoutError):
        stream.receive(timeout=0.01)


def test_the_guest_connects(device: VsockDevice, guest: Guest) -> None:
    accepted: list[Stream] = []
    device.listen(80, accepted.append)
    with pytest.raises(ValueError, match="taken"):
        device.listen(80, accepted.append)
    guest.send(v.OP_REQUEST, 1000, 80)
    (stream,) = accepted
    (packet,) = guest.packets()
    assert (packet.operation, packet.source_port, packet.port) == (v.OP_RESPONSE, 80, 1000)
    guest.send(v.OP_RW, 1000, 80, b"hello")
    assert stream.receive(timeout=0) == b"hello"


def test_nobody_listens(device: VsockDevice, guest: Guest) -> None:
    guest.send(v.OP_REQUEST, 1000, 81)
    assert [p.operation for p in guest.packets()] == [v.OP_RST]
    stream = device.open(9)
    (request,) = guest.packets()
    guest.send(v.OP_RST, 9, request.source_port)
    with pytest.raises(ConnectionRefusedError, match="port 9"):
        stream.wait_open(1)


def test_no_answer_is_a_timeout_and_the_guest_is_told(device: VsockDevice, guest: Guest) -> None:
    with pytest.raises(TimeoutError, match="port 9"):
        device.connect_to(9, 0.01)
    assert [p.operation for p in guest.packets()] == [v.OP_REQUEST, v.OP_RST]


def test_no_more_is_sent_than_the_guest_has_room_for(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest, room=10)
    stream.send(b"0123456789abcdef")
    assert b"".join(p.data for p in guest.packets()) == b"0123456789"
    guest.send(v.OP_CREDIT_UPDATE, 7, stream.port, room=10, taken=4)
    assert b"".join(p.data for p in guest.packets()) == b"abcd"
    # A buffer that shrank below what is on its way is no room at all, not a great deal.
    guest.send(v.OP_CREDIT_UPDATE, 7, stream.port, room=1, taken=4)
    assert guest.packets() == []
    guest.send(v.OP_CREDIT_UPDATE, 7, stream.port, room=10, taken=14)
    assert b"".join(p.data for p in guest.packets()) == b"ef"


def test_the_host_says_what_it_took(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    guest.send(v.OP_RW, 7, stream.port, b"x" * 100)
    guest.send(v.OP_CREDIT_REQUEST, 7, stream.port)
    (packet,) = guest.packets()
    assert (packet.operation, packet.room, packet.taken) == (v.OP_CREDIT_UPDATE, BUFFER, 0)
    assert stream.receive(60, 0) == b"x" * 60
    guest.send(v.OP_CREDIT_REQUEST, 7, stream.port)
    assert guest.packets()[0].taken == 60
    # By itself, once it is worth it.
    piece = bytes(BUFFER // 4)
    for _ in range(3):
        guest.send(v.OP_RW, 7, stream.port, piece)
        stream.receive(BUFFER, 0)
    assert any(p.operation == v.OP_CREDIT_UPDATE and p.taken > BUFFER // 2 for p in guest.packets())


def test_who_sends_more_than_there_is_room_for_is_cut_off(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    for _ in range(4):
        guest.send(v.OP_RW, 7, stream.port, bytes(BUFFER // 4))
    assert guest.packets() == [] and not stream.broken
    guest.send(v.OP_RW, 7, stream.port, b"x")
    assert [p.operation for p in guest.packets()] == [v.OP_RST] and stream.broken
    assert len(stream.receive(2 * BUFFER, 0)) == BUFFER  # what came before
    with pytest.raises(ConnectionResetError):
        stream.receive(timeout=1)


def test_the_host_ends_after_its_data(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest, room=3)
    stream.send(b"abcdef")
    stream.end()
    assert [(p.operation, p.data) for p in guest.packets()] == [(v.OP_RW, b"abc")]
    guest.send(v.OP_CREDIT_UPDATE, 7, stream.port, room=3, taken=3)
    data, shutdown = guest.packets()
    assert data.data == b"def" and (shutdown.operation, shutdown.flags) == (v.OP_SHUTDOWN, v.NO_MORE_SENT)
    with pytest.raises(BrokenPipeError):
        stream.send(b"more")
    guest.send(v.OP_RW, 7, stream.port, b"answer")
    assert stream.receive(timeout=0) == b"answer"


def test_closing_sends_what_was_sent_and_forgets_the_stream(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    stream.send(b"last words")
    stream.close()
    stream.close()
    data, shutdown = guest.packets()
    assert data.data == b"last words"
    assert (shutdown.operation, shutdown.flags) == (v.OP_SHUTDOWN, v.NO_MORE_SENT | v.NO_MORE_RECEIVED)
    guest.send(v.OP_RW, 7, stream.port, b"too late")
    assert [p.operation for p in guest.packets()] == [v.OP_RST]


@pytest.mark.parametrize("by_guest", [False, True])
def test_closing_is_told_when_one_direction_has_ended_before(
    device: VsockDevice, guest: Guest, by_guest: bool
) -> None:
    """A guest that goes on sending hears that nobody wants it, instead of being let send for ever."""
    stream = connected(device, guest)
    if by_guest:
        guest.send(v.OP_SHUTDOWN, 7, stream.port, flags=v.NO_MORE_RECEIVED)
    else:
        stream.end()
        assert [p.flags for p in guest.packets()] == [v.NO_MORE_SENT]
    guest.send(v.OP_RW, 7, stream.port, b"going on")
    stream.close()
    (shutdown,) = guest.packets()
    assert (shutdown.operation, shutdown.flags) == (v.OP_SHUTDOWN, v.NO_MORE_SENT | v.NO_MORE_RECEIVED)
    guest.send(v.OP_RW, 7, stream.port, b"too late")
    assert [p.operation for p in guest.packets()] == [v.OP_RST]


def test_a_closed_stream_takes_what_the_guest_still_sends(device: VsockDevice, guest: Guest) -> None:
    """A guest that has to send before it reads must get there, or it never takes what was sent before the close."""
    stream = connected(device, guest, room=4)
    guest.send(v.OP_RW, 7, stream.port, bytes(BUFFER // 2 + 1), room=4)
    stream.send(b"12345678")
    stream.close()
    sent = taken = BUFFER // 2 + 1
    assert guest.packets()[-1].taken == taken
    for _ in range(20):
        piece = min(BUFFER // 4, BUFFER - (sent - taken))
        assert piece > 0, "no room again, ever"
        guest.send(v.OP_RW, 7, stream.port, bytes(piece), room=4)
        sent += piece
        for packet in guest.packets():
            assert packet.operation != v.OP_RST
            taken = packet.taken
    guest.send(v.OP_CREDIT_UPDATE, 7, stream.port, room=4, taken=4)
    assert [p.operation for p in guest.packets()] == [v.OP_RW, v.OP_SHUTDOWN]


def test_the_guest_ends_its_half(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    guest.send(v.OP_RW, 7, stream.port, b"all")
    guest.send(v.OP_SHUTDOWN, 7, stream.port, flags=v.NO_MORE_SENT)
    assert not stream.at_end
    assert stream.receive(timeout=0) == b"all" and stream.receive(timeout=0) == b""
    assert stream.at_end and not stream.broken
    stream.send(b"still")
    assert guest.packets()[-1].data == b"still"
    # The other half, in a packet of its own: now both are shut down, and the guest waits for a reset.
    guest.send(v.OP_SHUTDOWN, 7, stream.port, flags=v.NO_MORE_RECEIVED)
    assert [p.operation for p in guest.packets()] == [v.OP_RST]
    with pytest.raises(BrokenPipeError):
        stream.send(b"more")


def test_a_guest_that_takes_no_more_may_go_on_sending(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    guest.send(v.OP_SHUTDOWN, 7, stream.port, flags=v.NO_MORE_RECEIVED)
    with pytest.raises(BrokenPipeError):
        stream.send(b"x")
    guest.send(v.OP_RW, 7, stream.port, b"y")
    assert stream.receive(timeout=0) == b"y" and guest.packets() == []


def test_sending_after_saying_that_nothing_comes_breaks_the_connection(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    guest.send(v.OP_SHUTDOWN, 7, stream.port, flags=v.NO_MORE_SENT)
    guest.send(v.OP_RW, 7, stream.port, b"liar")
    assert [p.operation for p in guest.packets()] == [v.OP_RST]
    assert stream.receive(timeout=0) == b""


def test_a_reset_breaks_the_stream_and_who_waits_hears_of_it(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest, room=1)
    errors: list[type] = []
    changes: list[bool] = []
    stream.on_change = lambda: changes.append(stream.broken)

    def attempt(call: object, *arguments: object) -> None:
        try:
            call(*arguments)  # type: ignore[operator]
        except ConnectionError as error:
            errors.append(type(error))

    threads = [
        threading.Thread(target=attempt, args=(stream.send, bytes(2 * BUFFER), 30)),
        threading.Thread(target=attempt, args=(stream.receive, 1, 30)),
    ]
    for thread in threads:
        thread.start()
    guest.send(v.OP_RST, 7, stream.port)
    for thread in threads:
        thread.join(30)
    assert set(errors) == {BrokenPipeError, ConnectionResetError} and changes[-1]


def test_a_reset_of_the_device_breaks_everything(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    guest.start(FULL | device.features)
    assert stream.broken
    guest.give_buffers()
    assert guest.packets() == []
    connected(device, guest).send(b"x")
    assert guest.packets()[0].data == b"x"


def test_nothing_happens_after_the_end(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    device.close()
    assert stream.broken
    with pytest.raises(ConnectionError, match="ended"):
        device.open(7)


def test_a_stream_opened_before_the_driver_is_there_breaks_when_it_comes() -> None:
    device = VsockDevice(CID)
    stream = device.open(7)
    Guest(device, FULL)
    with pytest.raises(ConnectionRefusedError):
        stream.wait_open(1)


def test_a_stream_that_broke_uses_up_no_buffer(device: VsockDevice) -> None:
    guest = Guest(device, FULL)
    guest.give_buffers(1)
    stream = device.open(7)
    guest.send(v.OP_RESPONSE, 7, stream.port)
    stream.send(b"never sent")
    guest.send(v.OP_RST, 7, stream.port)
    guest.packets(again=False)
    guest.give_buffers(4)
    assert guest.packets(again=False) == []
    device.open(8)
    assert [p.port for p in guest.packets(again=False)] == [8]


def test_streams_share_the_buffers(device: VsockDevice, guest: Guest) -> None:
    streams = [connected(device, guest, port) for port in (10, 11)]
    while guest.get(guest.rings[0] + 0x1002, "H") != guest.given[0]:  # use up the buffers that wait
        device.open(99)
    for stream in streams:
        stream.send(bytes(ROOM))
    order = [p.port for p in guest.packets() if p.operation == v.OP_RW]
    assert order[:4] == [10, 11, 10, 11] and len(order) >= 2 * (ROOM // BUFFER_SIZE)


def test_sending_waits_for_the_guest_and_no_longer(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest, room=100)
    with pytest.raises(TimeoutError):
        stream.send(bytes(2 * BUFFER), timeout=0.01)
    assert len(stream._outgoing) <= BUFFER


# Guests that do not behave


def test_packets_that_pretend_are_dropped(device: VsockDevice, guest: Guest) -> None:
    accepted: list[Stream] = []
    device.listen(80, accepted.append)
    guest.send(v.OP_REQUEST, 1000, 80, source=99)
    guest.send(v.OP_REQUEST, 1000, 80, destination=99)
    assert not accepted and guest.packets() == []


@pytest.mark.parametrize(
    "broken",
    [{"kind": 2}, {"operation": 0}, {"operation": 8}, {"operation": 999}, {"length": 5}, {"length": 2**32 - 1}],
    ids=str,
)
def test_packets_that_make_no_sense_break_their_stream(
    device: VsockDevice, guest: Guest, broken: dict[str, int]
) -> None:
    stream = connected(device, guest)
    guest.send(**{"operation": v.OP_RW, "port": 7, "to": stream.port, "data": b"1234", **broken})  # type: ignore[arg-type]
    assert [p.operation for p in guest.packets()] == [v.OP_RST] and stream.broken


@pytest.mark.parametrize("operation", [v.OP_RESPONSE, v.OP_REQUEST])
def test_a_stream_is_opened_once(device: VsockDevice, guest: Guest, operation: int) -> None:
    device.listen(7, lambda stream: None)
    stream = connected(device, guest)
    guest.send(operation, 7, stream.port)
    assert guest.packets()[-1].operation == v.OP_RST and stream.broken


def test_data_before_the_answer_breaks_the_stream(device: VsockDevice, guest: Guest) -> None:
    stream = device.open(7)
    guest.packets()
    guest.send(v.OP_RW, 7, stream.port, b"early")
    with pytest.raises(ConnectionRefusedError):
        stream.wait_open(1)


def test_a_reset_is_not_answered(device: VsockDevice, guest: Guest) -> None:
    guest.send(v.OP_RST, 1, 2)
    assert guest.packets() == []
    guest.send(v.OP_RW, 1, 2, b"x")
    assert [p.operation for p in guest.packets()] == [v.OP_RST]


def test_a_header_that_is_cut_off_is_ignored(device: VsockDevice, guest: Guest) -> None:
    guest.give(1, BUFFERS, HEADER.size - 1, False)
    assert guest.sent() == 1 and guest.packets() == [] and not guest.needs_reset


def test_a_receive_buffer_without_room_for_a_header_needs_a_reset(device: VsockDevice) -> None:
    guest = Guest(device, FULL)
    guest.give_buffers(1, HEADER.size - 1)
    device.open(7)
    assert guest.needs_reset


def test_buffers_of_a_header_alone_carry_no_data_and_lose_none(device: VsockDevice, guest: Guest) -> None:
    stream = connected(device, guest)
    guest.start(FULL | device.features)
    guest.give_buffers(1)
    stream = connected(device, guest)
    guest.packets(again=False)
    guest.taken[0] = guest.get(guest.rings[0] + 0x1002, "H")
    while guest.taken[0] != guest.given[0]:
        device.open(99)
        guest.packets(again=False)
    stream.send(b"data")
    guest.give_buffers(1, HEADER.size)
    guest.taken[0] = guest.given[0]
    guest.give_buffers(1)
    assert [p.data for p in guest.packets(again=False)] == [b"data"]


def test_a_guest_that_asks_and_never_listens_has_to_wait(device: VsockDevice) -> None:
    guest = Guest(device, FULL)
    for _ in range(10 * v._MAX_REPLIES):
        if (guest.given[1] - guest.sent()) & 0xFFFF >= ENTRIES:
            break
        guest.send(v.OP_REQUEST, 1, 2)
    else:
        pytest.fail("replies pile up")
    assert len(device._replies) <= 2 * v._MAX_REPLIES and not guest.needs_reset
    found = 0
    for _ in range(200):
        guest.give_buffers(min(ENTRIES, ENTRIES - ((guest.given[0] - guest.taken[0]) & 0xFFFF)))
        found += len(guest.packets(again=False))
        guest.mmio.write(t.INTERRUPT_ACK, 4, 3)
    assert found >= v._MAX_REPLIES and guest.sent() == guest.given[1]


def test_a_guest_cannot_have_connections_without_end(device: VsockDevice, guest: Guest) -> None:
    device.listen(80, lambda stream: None)
    answers = []
    for port in range(v._MAX_CONNECTIONS + 5):
        guest.send(v.OP_REQUEST, port, 80)
        answers += [p.operation for p in guest.packets()]
    assert answers == [v.OP_RESPONSE] * v._MAX_CONNECTIONS + [v.OP_RST] * 5
    with pytest.raises(ConnectionError, match="too many"):
        device.open(7)


def test_attempts_that_no_guest_answers_do_not_pile_up() -> None:
    device = VsockDevice(CID)
    with pytest.raises(ConnectionError):
        for _ in range(10 * v._MAX_REPLIES):
            device.open(7).abort()
    assert len(device._replies) <= 3 * v._MAX_REPLIES


def test_any_packets_at_all(device: VsockDevice) -> None:
    rng = random.Random(4)
    guest = Guest(device, FULL)
    device.listen(80, lambda stream: None)
    streams: list[Stream] = []
    for turn in range(3000):
        if guest.needs_reset:
            guest.start(FULL | device.features)
        if turn % 50 == 0 and len(streams) < 40:
            streams.append(device.open(7))
        ports = [stream.port for stream in streams[-5:]] + [80, 81]
        guest.send(
            rng.choice([*range(10), rng.getrandbits(16)]), rng.choice([7, 7, 80, rng.getrandbits(32)]),
            rng.choice(ports), bytes(rng.choice([0, 1, 100, 4000])), rng.choice([0, 1, 2, 3, rng.getrandbits(32)]),
            rng.choice([0, 10, ROOM, rng.getrandbits(32)]), rng.choice([0, 10, rng.getrandbits(32)]),
            rng.choice([1, 1, 1, 1, 2]), length=rng.choice([None, None, None, rng.getrandbits(32)]),
        )  # fmt: skip
        if rng.random() < 0.5:
            guest.give_buffers(1, rng.choice([BUFFER_SIZE, BUFFER_SIZE, 100, HEADER.size, 10]))
            guest.taken[0] = guest.get(guest.rings[0] + 0x1002, "H")
        for stream in rng.sample(streams, min(2, len(streams))):
            if not stream._stuck and len(stream._outgoing) < 1000:
                stream.send(bytes(10), 0)
            with stream.lock:
                stream.take_received()
    guest.start(FULL | device.features)
    guest.give_buffers()
    connected(device, guest).send(b"works")
    assert guest.packets()[-1].data == b"works"


def test_a_restored_device_tells_that_connections_are_gone(device: VsockDevice, guest: Guest) -> None:
    events = [BUFFERS + 0x30000 + 8 * n for n in range(3)]
    stream = connected(device, guest)

    def restore() -> None:
        with device.guard():
            device.restored()
            device.reconnected()

    port = stream.port
    device.state = from_plain(VsockState, to_plain(device.state))
    restore()
    assert device.state.last_port == port
    assert stream.broken and guest.get(guest.rings[2] + 0x1002, "H") == 0
    # A driver that has no buffer for it hears of it by resets.
    guest.send(v.OP_RW, 7, stream.port, b"lost")
    assert [packet.operation for packet in guest.packets()] == [v.OP_RST]
    guest.memory.write(events[0], b"\xff" * 24)
    guest.give(2, events[0], 8, True)
    assert guest.get(guest.rings[2] + 0x1002, "H") == 1 and guest.get(guest.rings[2] + 0x1008, "I") == 4
    assert guest.memory.read(events[0], 8) == bytes(4) + b"\xff" * 4
    # Until it has, which shows in its giving the buffer again, nothing new begins.
    new = device.open(9)
    guest.send(v.OP_RW, 7, stream.port, b"lost")
    assert not guest.packets() and guest.sent() == 2
    guest.give(2, events[1], 8, True)
    assert [packet.operation for packet in guest.packets()] == [v.OP_REQUEST, v.OP_RST]
    assert not new.broken and new.port == port + 1 and guest.memory.read(events[1], 8) == b"\xff" * 8
    # With several buffers one is used.
    guest.give(2, events[2], 8, True)
    restore()
    assert guest.get(guest.rings[2] + 0x1002, "H") == 2 and device.state.reset == 2
    guest.set(t.QUEUE_NOTIFY, 0)
    assert device.state.reset == 2
    guest.give(2, events[0], 8, True)
    assert device.state.reset == 0
    restore()
    guest.set(t.STATUS, 0)
    assert device.state.reset == 0
