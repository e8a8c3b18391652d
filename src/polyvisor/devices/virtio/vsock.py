"""The socket device (VIRTIO 1.2, section 5.10): byte streams between programs of the guest and the host's Python.

The host's end of a stream is a :class:`~polyvisor.devices.virtio.stream.Stream`. Addresses are a context identifier
and a port; the host is CID 2.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from polyvisor.dataclass import dataclass
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, QueueError, gather, length_of, scatter, split
from polyvisor.devices.virtio.stream import BUFFER, Stream

if TYPE_CHECKING:
    from polyvisor.engine.outside import Plain

__all__ = ["HOST_CID", "Stream", "VsockDevice", "VsockState"]

QUEUE_SIZE = 256
RX, TX, EVENT = 0, 1, 2

HOST_CID = 2
FIRST_GUEST_CID = 3

F_STREAM = 1 << 0

# struct virtio_vsock_hdr: source and destination CID, source and destination port, length, type, operation, flags,
# space for data at the sender, how much of it has been taken (5.10.6).
HEADER = struct.Struct("<QQIIIHHIII")
TYPE_STREAM = 1
OP_REQUEST, OP_RESPONSE, OP_RST, OP_SHUTDOWN, OP_RW, OP_CREDIT_UPDATE, OP_CREDIT_REQUEST = range(1, 8)
NO_MORE_RECEIVED, NO_MORE_SENT = 1, 2

_MAX_CONNECTIONS = 1024
# Replies that wait for room in the guest's receive queue; with more, its transmit queue has to wait (5.10.6.1.2).
_MAX_REPLIES = 1024
# Receive buffers filled at one go are at most this many times the queue size.
_TURN = 4
_U32 = 2**32 - 1


_FIRST_PORT = 1 << 30  # of connections that the host makes
# struct virtio_vsock_event (5.10.6.7): that all connections are gone.
EVENT_TRANSPORT_RESET = struct.pack("<I", 0)
_DUE, _TOLD = 1, 2


@dataclass
class VsockState:
    """Connections are the host's and do not outlive it."""

    reset: int = 0
    """1: the driver is to be told that all connections are gone; 2: it was, and has not given the buffer again."""
    last_port: int = _FIRST_PORT
    """Of the last connection that the host opened. The guest may know old ones for a while when they are gone, so their
    ports are not to be used again soon."""


class VsockDevice(VirtioDevice):
    """Sockets of the guest with address ``cid``. Streams and callbacks share the device's lock.

    Callbacks run with the lock held, on the thread of a hart or of whoever sends: they must not block.
    """

    device_id = 19

    def __init__(self, cid: int = FIRST_GUEST_CID) -> None:
        """Raises ValueError for a CID that no guest can have."""
        if not FIRST_GUEST_CID <= cid < _U32:
            raise ValueError(f"a guest's CID is {FIRST_GUEST_CID} to {_U32 - 1}, not {cid}")
        super().__init__(F_STREAM, (QUEUE_SIZE,) * 3, VsockState())
        self.cid = cid
        self._listeners: dict[int, Callable[[Stream], None]] = {}
        self._streams: dict[tuple[int, int], Stream] = {}  # by the guest's port and the host's
        # In virtual time: who listens, and what is opened, from the next turn on.
        self._accepts: dict[int, Callable[[Stream], None]] = {}
        self._opening: dict[tuple[int, int], Stream] = {}
        self._asked_port = 0  # the host's port that was asked for last
        self._generation = 0
        self._replies: deque[bytes] = deque()
        self._ready: deque[Stream] = deque()  # those that have something to send and may
        self._stalled = False
        self._closed = False

    # For the host

    def listen(self, port: int, accept: Callable[[Stream], None]) -> None:
        """Call ``accept`` with each stream that the guest opens to ``port``. Raises ValueError if it is taken."""
        with self.lock:
            if port in self._listeners or port in self._accepts:
                raise ValueError(f"port {port} is taken")
            if self.source is not None:
                self._accepts[port] = accept
                self.source.post("listen", port)
            else:
                self._listeners[port] = accept

    @property
    def listening(self) -> list[int]:
        """The ports that somebody listens on."""
        return sorted(self._listeners)

    def connect_to(self, port: int, timeout: float | None = None) -> Stream:
        """Open a stream to a port of the guest.

        Raises ConnectionRefusedError if nobody listens there, and TimeoutError.
        """
        stream = self.open(port)
        stream.wait_open(timeout)
        return stream

    def open(self, port: int) -> Stream:
        """Begin to open a stream to a port of the guest; does not wait. Raises ConnectionError."""
        with self.guard():
            if self._closed:
                raise ConnectionError("the machine of these sockets has ended")
            # A guest that gives no buffers could make them wait for ever.
            if len(self._streams) >= _MAX_CONNECTIONS or len(self._replies) >= 2 * _MAX_REPLIES:
                raise ConnectionError("too many connections to the guest are open")
            last = max(self.state.last_port, self._asked_port)
            port_here = last + 1 if _FIRST_PORT <= last < _U32 - 1 else _FIRST_PORT
            stream = Stream(self, port_here, port)
            if self.post(stream, "open"):
                self._asked_port = port_here
                self._opening[port, port_here] = stream
            else:
                self._open(stream)
        return stream

    def _open(self, stream: Stream) -> None:
        self.state.last_port = stream.port
        self._streams[stream.peer_port, stream.port] = stream
        self._reply(stream, OP_REQUEST)
        self.pump()

    def close(self) -> None:
        """Break all streams; there can be no more."""
        with self.lock:
            self._closed = True
            self._break_all()

    # In virtual time

    def enter(self, operation: str, arguments: Sequence[Plain]) -> None:
        """Do what a user of a stream asked for."""
        with self.guard():
            if operation == "listen":
                port = int(arguments[0])  # type: ignore[arg-type]
                self._listeners[port] = self._accepts.pop(port, lambda stream: None)
                return
            peer_port, number, generation, argument = arguments
            key = int(peer_port), int(number)  # type: ignore[arg-type]
            if operation == "open":
                opened = self._opening.pop(key, None) or Stream(self, key[1], key[0])
                if len(self._streams) < _MAX_CONNECTIONS and len(self._replies) < 2 * _MAX_REPLIES:
                    self._open(opened)
                else:
                    self.state.last_port = key[1]
                    opened.was_reset()
                return
            stream = self._streams.get(key)
            if stream is not None and stream.generation == generation:
                stream.do(operation, argument)

    def save_streams(self) -> dict[str, Any]:
        """The connections, as far as the guest sees them: for a replay, in which nobody else does."""
        streams = list(self._streams.values())
        return {
            "streams": [stream.save() for stream in streams], "replies": list(self._replies),
            "ready": [streams.index(stream) for stream in self._ready if stream in streams],
            "listening": self.listening, "stalled": self._stalled, "generation": self._generation,
        }

    def restore_streams(self, saved: dict[str, Any]) -> None:
        """Go back to what :meth:`save_streams` gave."""
        self._break_all()
        streams = [Stream(self, each["port"], each["peer_port"]) for each in saved["streams"]]
        for stream, each in zip(streams, saved["streams"], strict=True):
            stream.restore(each)
            self._streams[stream.peer_port, stream.port] = stream
        self._replies.extend(saved["replies"])
        self._ready.extend(streams[index] for index in saved["ready"])
        self._listeners = {port: self._listeners.get(port, lambda stream: None) for port in saved["listening"]}
        self._stalled, self._generation = saved["stalled"], saved["generation"]

    # For streams, with the lock held

    def post(self, stream: Stream, operation: str, argument: Plain = None) -> bool:
        """Have something done between turns, and give True; in real time it is to be done at once."""
        if self.source is None:
            return False
        self.source.post(operation, stream.peer_port, stream.port, stream.generation, argument)
        return True

    def wants_to_send(self, stream: Stream) -> None:
        """Send what the stream holds as soon as there are buffers."""
        if not stream.queued:
            stream.queued = True
            self._ready.append(stream)

    def send_credit(self, stream: Stream) -> None:
        """Tell the guest how much was taken out of the stream."""
        self._reply(stream, OP_CREDIT_UPDATE)

    def forget(self, stream: Stream, reset: bool) -> None:
        """The stream is over on the host's side: tell the guest, if it does not know, and drop it."""
        if self._streams.pop((stream.peer_port, stream.port), None) is not None and reset:
            self._reply(stream, OP_RST)

    def pump(self) -> None:
        """Move packets into the guest's receive buffers until there are none of either.

        If the guest has broken its queue the device needs a reset, but the caller, who may be the host, goes on.
        """
        if self._closed or self._link is None or not self.link.running or self.state.reset == _TOLD:
            return
        try:
            self._pump()
        except QueueError:
            self.link.fail()

    def _pump(self) -> None:
        """Raises QueueError."""
        queue = self.link.queues[RX]
        if not queue.state.ready:
            return
        budget = _TURN * queue.state.size
        try:
            while budget and self._has_packets():
                chain = queue.pop()
                if chain is None:
                    if not queue.request_notification():
                        break
                    continue
                queue.push(chain, self._fill(chain))
                budget -= 1
        finally:
            if queue.should_interrupt():
                self.link.interrupt()
        # Not at once: a guest that adds buffers all the time would never get its hart back.
        if not budget:
            self.link.resume_later(RX)
        if self._stalled and len(self._replies) < _MAX_REPLIES // 2:
            self._stalled = False
            self.link.resume_later(TX)

    def _has_packets(self) -> bool:
        """Whether there is something to put into a buffer; forgets streams that have nothing to send any more."""
        while self._ready and not self._replies:
            stream = self._ready[0]
            known = self._streams.get((stream.peer_port, stream.port)) is stream
            if known and (stream.can_send or stream.has_ended_sending):
                break
            stream.queued = False
            self._ready.popleft()
        return bool(self._replies or self._ready)

    def _fill(self, chain: Chain) -> int:
        """Put the next packet into a buffer; gives its length. Raises QueueError."""
        room = length_of(chain.writable)
        if room < HEADER.size:
            raise QueueError(f"a receive buffer of {room} bytes for a header of {HEADER.size}")
        if self._replies:
            return scatter(self.link.memory, chain.writable, self._replies.popleft())
        stream = self._ready.popleft()
        stream.queued = False
        data = stream.take(room - HEADER.size)
        packet = self._packet(stream, OP_RW, data) if data else b""
        if stream.can_send:
            self.wants_to_send(stream)
        if stream.has_ended_sending:
            # Only now, behind the last data. A stream closed altogether is over for us: what comes for it is answered
            # by a reset.
            flags = NO_MORE_SENT | (NO_MORE_RECEIVED if stream.closed else 0)
            shutdown = self._packet(stream, OP_SHUTDOWN, flags=flags)
            stream.shutdown_sent = True
            if stream.closed:
                self.forget(stream, reset=False)
            if packet:
                self._replies.append(shutdown)
            else:
                packet = shutdown
        return scatter(self.link.memory, chain.writable, packet) if packet else 0

    def _packet(self, stream: Stream, operation: int, data: bytes = b"", flags: int = 0) -> bytes:
        return HEADER.pack(
            HOST_CID, self.cid, stream.port, stream.peer_port, len(data), TYPE_STREAM, operation, flags, BUFFER,
            stream.advertise(),
        ) + data  # fmt: skip

    def _reply(self, stream: Stream, operation: int) -> None:
        self._replies.append(self._packet(stream, operation))

    def _add(self, peer_port: int, port: int) -> Stream:
        stream = Stream(self, port, peer_port)
        self._streams[peer_port, port] = stream
        return stream

    # For the guest

    def config(self) -> bytes:
        """struct virtio_vsock_config (5.10.4)."""
        return struct.pack("<Q", self.cid)

    def notify(self, index: int) -> None:
        """Take packets, or use new buffers. Raises QueueError."""
        if index == EVENT:
            self._events()
        elif self.state.reset == _TOLD:
            return  # the driver forgets its connections first, or it would take new ones for old ones
        elif index == TX:
            if len(self._replies) >= _MAX_REPLIES:
                self._stalled = True
            else:
                self.serve(TX, self._take)
        if index != EVENT:
            self.pump()

    def _events(self) -> None:
        """Tell the driver that its connections are gone, or see that it knows. Raises QueueError."""
        queue = self.link.queues[EVENT]
        if self.state.reset == _TOLD:
            self.state.reset = 0
            self.notify(TX)
        elif self.state.reset == _DUE:
            # All are taken, so that the next one is notified of; what is not needed is left to be taken again.
            chains: list[Chain] = []
            while chain := queue.pop():
                chains.append(chain)
            queue.request_notification()
            if chains:
                queue.unpop(chains[1:])
                queue.push(chains[0], scatter(self.link.memory, chains[0].writable, EVENT_TRANSPORT_RESET))
                self.state.reset = _TOLD
                if queue.should_interrupt():
                    self.link.interrupt()

    def reset(self) -> None:
        """All connections are gone."""
        self.state.reset = 0
        self._break_all()

    def restored(self) -> None:
        """Connections that this device had are gone."""
        self._break_all()

    def reconnected(self) -> None:
        """Tell the driver that its connections are gone, and answer what it had to send. May raise QueueError."""
        if self.link.running:
            if self.link.queues[EVENT].state.ready:
                self.state.reset = _DUE
                self._events()
            self.notify(TX)

    def _break_all(self) -> None:
        streams = list(self._streams.values())
        self._streams.clear()
        self._replies.clear()
        self._ready.clear()
        self._stalled = False
        for stream in streams:
            stream.was_reset()

    def _take(self, chain: Chain) -> int:
        """Handle one packet of the guest's."""
        head, rest = split(chain.readable, HEADER.size)
        if length_of(head) < HEADER.size:
            return 0
        source, destination, peer_port, port, length, kind, operation, flags, room, taken = HEADER.unpack(
            gather(self.link.memory, head)
        )
        # Whatever pretends to come from elsewhere, or is for elsewhere, is dropped (5.10.6.4).
        if source != self.cid or destination != HOST_CID:
            return 0
        stream = self._streams.get((peer_port, port))
        if kind != TYPE_STREAM or length > length_of(rest) or not OP_REQUEST <= operation <= OP_CREDIT_REQUEST:
            self._refuse(peer_port, port)
        elif operation == OP_REQUEST:
            self._requested(peer_port, port, room, taken)
        elif stream is None:
            if operation != OP_RST:
                self._refuse(peer_port, port)
        elif length > BUFFER:
            self._refuse(peer_port, port)  # more than it can have credit for, however often it names the same memory
        else:
            stream.credit(room, taken)
            self._for_stream(stream, operation, flags, gather(self.link.memory, split(rest, length)[0]))
        return 0

    def _for_stream(self, stream: Stream, operation: int, flags: int, data: bytes) -> None:
        if operation == OP_RST:
            self.forget(stream, reset=False)
            stream.was_reset()
        elif operation == OP_RESPONSE and not stream.is_open:
            stream.was_opened()
        elif not stream.is_open or operation == OP_RESPONSE:
            self._refuse(stream.peer_port, stream.port)
        elif operation == OP_RW:
            if not stream.received(data):
                self._refuse(stream.peer_port, stream.port)  # more than it had credit for
        elif operation == OP_CREDIT_REQUEST:
            self._reply(stream, OP_CREDIT_UPDATE)
        elif stream.peer_ended(bool(flags & NO_MORE_SENT), bool(flags & NO_MORE_RECEIVED)):
            # It has shut down both. What was received stays readable; nothing can be sent any more.
            self.forget(stream, reset=True)

    def _requested(self, peer_port: int, port: int, room: int, taken: int) -> None:
        accept = self._listeners.get(port)
        if accept is None or (peer_port, port) in self._streams or len(self._streams) >= _MAX_CONNECTIONS:
            self._refuse(peer_port, port)
            return
        stream = self._add(peer_port, port)
        self._generation += 1
        stream.generation = self._generation
        stream.credit(room, taken)
        stream.was_opened()
        self._reply(stream, OP_RESPONSE)
        accept(stream)

    def _refuse(self, peer_port: int, port: int) -> None:
        """Answer with a reset; a stream of these ports is broken by it."""
        stream = self._streams.pop((peer_port, port), None)
        packet = HEADER.pack(HOST_CID, self.cid, port, peer_port, 0, TYPE_STREAM, OP_RST, 0, 0, 0)
        self._replies.append(packet)
        if stream is not None:
            stream.was_reset()
