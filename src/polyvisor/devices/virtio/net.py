"""The network device (VIRTIO 1.2, section 5.1)."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.net_control import (
    F_CTRL_GUEST_OFFLOADS,
    F_CTRL_MAC_ADDR,
    F_CTRL_RX,
    F_CTRL_RX_EXTRA,
    F_CTRL_VLAN,
    F_CTRL_VQ,
    F_GUEST_ANNOUNCE,
    Filter,
    control,
)
from polyvisor.devices.virtio.queue import Chain, QueueError, Segment, gather, length_of, split
from polyvisor.engine.outside import Plain
from polyvisor.network.frame import (
    CSUM,
    ECN,
    ETHERNET_HEADER,
    MAX_FRAME,
    TSO4,
    TSO6,
    USO4,
    USO6,
    Frame,
    FrameError,
    parse_mac,
    random_mac,
)
from polyvisor.network.offload import adapted
from polyvisor.network.port import Port

RX = 0
TX = 1
CONTROL = 2
QUEUE_SIZE = 256
CONTROL_QUEUE_SIZE = 64

# Feature bits (5.1.3).
F_CSUM = 1 << 0
F_GUEST_CSUM = 1 << 1
F_MTU = 1 << 3
F_MAC = 1 << 5
F_GUEST_TSO4 = 1 << 7
F_GUEST_TSO6 = 1 << 8
F_GUEST_ECN = 1 << 9
F_HOST_TSO4 = 1 << 11
F_HOST_TSO6 = 1 << 12
F_HOST_ECN = 1 << 13
F_MRG_RXBUF = 1 << 15
F_STATUS = 1 << 16
F_GUEST_USO4 = 1 << 54
F_GUEST_USO6 = 1 << 55
F_HOST_USO = 1 << 56

# Status bits (5.1.4).
S_LINK_UP = 1
S_ANNOUNCE = 2

MIN_MTU = 68
MAX_MTU = 65535
MAX_BACKLOG = 512
"""Frames that wait while the driver has no buffers; more are dropped."""
MAX_BACKLOG_BYTES = 4 << 20

# struct virtio_net_hdr (5.1.6), and its flags.
_HEADER = struct.Struct("<BBHHHHH")
_NEEDS_CSUM = 1
_DATA_VALID = 2
_PLAIN = _HEADER.pack(0, 0, 0, 0, 0, 0, 1)
_PLAIN_VALID = _HEADER.pack(_DATA_VALID, 0, 0, 0, 0, 0, 1)
_NUM_BUFFERS = 10
# Two VLAN tags in front of what the MTU counts.
_TAGS = 8
# Frames up to this are copied when they are sent; of longer ones, that much of the start, where all headers are.
_COPIED = 2048
_HEAD = 256
# Frames are sent in turns of so many, and after so many turns the driver's next ones wait for an interrupt.
_TURN = 64
_TURNS = 16
# Nor does a turn have frames that make more segments than this: cutting them takes long. 64 of 64 KiB have fewer.
_PIECES = 4096

_GUEST_OFFLOADS = {
    F_GUEST_CSUM: CSUM, F_GUEST_TSO4: TSO4, F_GUEST_TSO6: TSO6, F_GUEST_ECN: ECN, F_GUEST_USO4: USO4,
    F_GUEST_USO6: USO6,
}
_HOST_OFFLOADS = {F_CSUM: CSUM, F_HOST_TSO4: TSO4, F_HOST_TSO6: TSO6, F_HOST_ECN: ECN, F_HOST_USO: USO4 | USO6}


@dataclass
class WaitingFrame:
    """A received frame, with what is left to be done on it; see :class:`~polyvisor.network.frame.Frame`."""

    data: bytes
    valid: bool
    csum: bool
    csum_start: int
    csum_offset: int
    gso_type: int
    gso_size: int

    @classmethod
    def of(cls, frame: Frame) -> WaitingFrame:
        """What there is to ``frame``."""
        return cls(
            bytes(frame), frame.valid, bool(frame.needs), frame.csum_start, frame.csum_offset, frame.gso_type,
            frame.gso_size,
        )

    def frame(self) -> Frame:
        """The frame. Raises FrameError, a ValueError, if that is none."""
        frame = Frame(self.data, valid=self.valid)
        if self.csum:
            frame.offload(self.csum_start, self.csum_offset, self.gso_type, self.gso_size)
        return frame


@dataclass
class NetState:
    """What the driver set over the control queue (5.1.6.5), and what waits for it."""

    filter: Filter = field(default_factory=Filter)
    offloads: int | None = None
    """Feature bits of the offloads that the driver takes now; None: all that were negotiated."""
    announce: int = 0
    """1 while the driver is asked to announce itself, and has not acknowledged that."""
    waiting: list[WaitingFrame] = field(default_factory=list)
    """Received frames that the driver had no buffers for, oldest first."""


class NetDevice(VirtioDevice):
    """A network card plugged into ``port``, which the device closes; ``mac``: a random one if None.

    ``mtu`` is told to the driver unless it is None; longer frames for it are dropped, but for those it has cut itself.

    Frames are sent by the thread of the hart that notifies, after it released the device's lock (:meth:`unlocked`), so
    two machines that send to each other never wait for each other; the buffers are given back when all in a turn were
    sent. Received frames are put into the driver's buffers with the lock held, on the thread that brings them.
    """

    device_id = 1

    def __init__(self, port: Port, mac: str | None = None, mtu: int | None = None) -> None:
        """Raises ValueError for an impossible ``mac`` or ``mtu``."""
        self.mac = parse_mac(mac or random_mac())
        if mtu is not None and not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"MTU {mtu}: must be from {MIN_MTU} to {MAX_MTU}")
        features = F_CSUM | F_GUEST_CSUM | F_MAC | F_MRG_RXBUF | F_STATUS
        features |= F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_ECN | F_GUEST_USO4 | F_GUEST_USO6
        features |= F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_ECN | F_HOST_USO
        features |= F_CTRL_VQ | F_CTRL_RX | F_CTRL_RX_EXTRA | F_CTRL_VLAN | F_CTRL_MAC_ADDR
        features |= F_CTRL_GUEST_OFFLOADS | F_GUEST_ANNOUNCE
        if mtu is not None:
            features |= F_MTU
        self._state = NetState()
        self._backlog: deque[Frame] = deque()
        self._backlog_bytes = 0
        super().__init__(features, (QUEUE_SIZE, QUEUE_SIZE, CONTROL_QUEUE_SIZE), self._state)
        self._state.filter.mac = self.mac
        self.mtu = mtu or 0
        self._longest = ETHERNET_HEADER + _TAGS + mtu if mtu else MAX_FRAME
        self._to_send = False
        self._sending = False
        self._epoch = 0
        self._closed = False
        self._known_features = -1
        self._takes = 0
        self._allowed = 0
        self.dropped_sent = 0
        """Frames from the driver that were impossible."""
        self.dropped_received = 0
        """Frames for the driver that it had no buffers for."""
        # In virtual time: as the driver sees the link, and how many frames wait for the end of a turn.
        self.link_up = port.up
        self._posted = 0
        self.plug(port)

    def plug(self, port: Port) -> None:
        """Plug the card into ``port``; what it was plugged into is left alone."""
        self.port = port
        port.receive = self.receive
        port.link_changed = self._link_changed

    @property
    def state(self) -> Any:
        """What the driver set, and what waits for it."""
        self._state.waiting = [WaitingFrame.of(frame) for frame in self._backlog]
        return self._state

    @state.setter
    def state(self, state: NetState) -> None:
        """Raises ValueError if what waits are no frames."""
        self._backlog = deque(each.frame() for each in state.waiting)
        self._backlog_bytes = sum(frame.length for frame in self._backlog)
        self._state = state

    def is_settled(self) -> bool:
        """Whether no thread has taken frames of the driver and not given the buffers back."""
        return not self._sending

    def restored(self) -> None:
        """What was negotiated is looked at anew."""
        self._known_features = -1
        self._to_send = False
        self._epoch += 1

    def reconnected(self) -> None:
        """Have the driver tell the network where the machine is now."""
        if self.link.running:
            self.announce()

    # Configuration

    def config(self) -> bytes:
        """struct virtio_net_config up to ``mtu`` (5.1.4)."""
        up = self.port.up if self.source is None else self.link_up
        status = (S_LINK_UP if up else 0) | (S_ANNOUNCE if self._state.announce else 0)
        return self.mac + struct.pack("<HHH", status, 1, self.mtu)

    def _link_changed(self, up: bool) -> None:
        if self.source is not None:
            self.source.post("link", int(up))
            return
        self._set_link()

    def _set_link(self) -> None:
        with self.guard():
            if self._link is not None and not self._closed:
                self.link.config_changed()

    def announce(self) -> None:
        """Ask the driver to tell the network where it is, as after it moved; nothing happens if it cannot."""
        if self.source is not None:
            self.source.post("announce")
            return
        self._announce()

    def _announce(self) -> None:
        with self.guard():
            if self._link is not None and self.link.features & F_GUEST_ANNOUNCE:
                self._state.announce = 1
                self.link.config_changed()

    def reset(self) -> None:
        """Forget what the driver set, and what waited for it."""
        self._state = NetState()
        self._state.filter.mac = self.mac
        self._known_features = -1
        self._to_send = False
        self._epoch += 1
        self._drop_backlog()

    def close(self) -> None:
        """Unplug the card and close the port."""
        with self.lock:
            self._closed = True
            self._drop_backlog()
        self.port.close()  # not with the lock: it may wait for a thread that delivers

    def _drop_backlog(self) -> None:
        self._backlog.clear()
        self._backlog_bytes = 0

    def _look_at_features(self) -> None:
        """Work out what is negotiated."""
        features = self._known_features = self.link.features
        offloads = self._state.offloads
        accepted = features if offloads is None else features & offloads
        self._takes = _kinds(_GUEST_OFFLOADS, accepted)
        self._allowed = _kinds(_HOST_OFFLOADS, features)

    def notify(self, index: int) -> None:
        """The driver has frames, room for frames, or commands. Raises QueueError."""
        if index == TX:
            self._to_send = True
        elif index == RX:
            self._deliver_backlog()
        else:
            self.serve(CONTROL, self._control)

    def _control(self, chain: Chain) -> int:
        written = control(self.link.memory, chain, self._state, self.link.features)
        self._known_features = -1
        return written

    # Frames from the driver

    def unlocked(self) -> None:
        """Send what the driver notified of."""
        if not self._to_send:
            return
        with self.lock:
            if self._sending:
                return  # who sends will see that there is more
            self._sending = True
        try:
            turns = 0
            while turns < _TURNS and self._send_some():
                turns += 1
        finally:
            with self.lock:  # not the guard, whose end would begin anew
                self._sending = False
                if self._to_send and self.link.running:
                    self.link.resume_later(TX)

    def _send_some(self) -> bool:
        """One turn; gives whether there may be more to send."""
        chains: list[tuple[Chain, int]] = []
        frames: list[Frame] = []
        pieces = 0
        with self.guard():
            self._to_send = False
            if not self.link.running or self._closed:
                return False
            epoch = self._epoch
            queue = self.link.queues[TX]
            queue.suppress_notifications()
            if self._known_features != self.link.features:
                self._look_at_features()
            while len(chains) < _TURN and pieces < _PIECES and (chain := queue.pop()) is not None:
                chains.append((chain, 0))
                try:
                    frame = self._frame(chain.readable)
                except FrameError:
                    self.dropped_sent += 1
                    continue
                frames.append(frame)
                if frame.gso_type:
                    pieces += frame.length // frame.gso_size
        for frame in frames:
            self.port.send(frame)
        with self.guard():
            # What was popped before a reset is not the queue's any more.
            if epoch != self._epoch or not self.link.running:
                return self._to_send
            if chains:
                queue.push_all(chains)
                if queue.should_interrupt():
                    self.link.interrupt()
            if len(chains) == _TURN or pieces >= _PIECES or queue.request_notification():
                self._to_send = True
            return self._to_send
        return False  # the driver made a mistake

    def _frame(self, segments: list[Segment]) -> Frame:
        """The frame that a buffer holds. Raises FrameError."""
        memory = self.link.memory
        length = length_of(segments) - _HEADER.size
        if not ETHERNET_HEADER <= length <= MAX_FRAME:
            raise FrameError(f"a frame of {length} bytes")
        if length <= _COPIED:
            data = gather(memory, segments)
            frame = Frame(data[_HEADER.size :])
        else:
            first, rest = split(segments, _HEADER.size + _HEAD)
            data = gather(memory, first)
            frame = Frame(data[_HEADER.size :], memory.views(rest))
        flags, gso_type, _, gso_size, csum_start, csum_offset, _ = _HEADER.unpack_from(data)
        if flags & _NEEDS_CSUM:
            frame.offload(csum_start, csum_offset, gso_type, gso_size)
            if frame.needs & ~self._allowed:
                raise FrameError("an offload that was not negotiated")
        elif gso_type:
            raise FrameError("segmentation without a checksum")
        return frame

    # Frames for the driver

    def receive(self, frame: Frame) -> None:
        """Give a frame to the driver; may be called on any thread that does not hold another device's lock."""
        if self.source is None:
            self._receive(frame)
        elif self._posted >= MAX_BACKLOG:
            self.dropped_received += 1
        else:
            # The count is for this only, so it need not be exact.
            self._posted += 1
            self.source.post(
                "frame", bytes(frame), int(frame.valid), frame.needs, frame.csum_start, frame.csum_offset,
                frame.gso_type, frame.gso_size,
            )

    def enter(self, operation: str, arguments: Sequence[Plain]) -> None:
        """Do what the network did, in virtual time."""
        if operation == "link":
            self.link_up = bool(arguments[0])
            self._set_link()
        elif operation == "announce":
            self._announce()
        else:
            self._posted = max(0, self._posted - 1)
            data, valid, *rest = arguments
            assert isinstance(data, bytes)
            frame = Frame(data, valid=bool(valid))
            frame.needs, frame.csum_start, frame.csum_offset, frame.gso_type, frame.gso_size = rest  # type: ignore[assignment]
            self._receive(frame)

    def _receive(self, frame: Frame) -> None:
        with self.lock:
            if self._link is None or self._closed or not self.link.running or len(frame.head) < ETHERNET_HEADER:
                return
            if self._known_features != self.link.features:
                self._look_at_features()
            if not self._state.filter.passes(frame.head, self._known_features):
                return
            try:
                for part in adapted(frame, self._takes):
                    self._accept(part)
                if self.link.queues[RX].should_interrupt():
                    self.link.interrupt()
            except FrameError:
                self.dropped_received += 1
            except QueueError:
                self.link.fail()

    def _accept(self, frame: Frame) -> None:
        """Put a frame into buffers, or let it wait for some. Raises QueueError."""
        if frame.length > self._longest and not frame.gso_type:
            self.dropped_received += 1
            return
        if self._is_full(frame) and self._backlog and self.link.queues[RX].has_more():
            # The oldest needs more room than the driver has given by now, and may ever give: it blocks the others.
            self._drop_oldest()
            self._deliver_backlog()
        if not self._backlog and self._put(frame):
            return
        if self._is_full(frame):
            self.dropped_received += 1
            return
        self._backlog.append(frame.kept())
        self._backlog_bytes += frame.length

    def _is_full(self, frame: Frame) -> bool:
        """Whether there is no place for ``frame`` to wait."""
        return len(self._backlog) >= MAX_BACKLOG or self._backlog_bytes + frame.length > MAX_BACKLOG_BYTES

    def _drop_oldest(self) -> None:
        self._backlog_bytes -= self._backlog.popleft().length
        self.dropped_received += 1

    def _deliver_backlog(self) -> None:
        """Put what waits into buffers. Raises QueueError."""
        queue = self.link.queues[RX]
        if self._known_features != self.link.features:
            self._look_at_features()
        while self._backlog:
            frame = self._backlog[0]
            # The driver may have changed what it takes.
            if not frame.needs & ~self._takes and not self._put(frame):
                break
            self._backlog.popleft()
            self._backlog_bytes -= frame.length
        else:
            queue.suppress_notifications()
        if queue.should_interrupt():
            self.link.interrupt()

    def _buffers(self, frame: Frame) -> list[Chain] | None:
        """Take the buffers a frame fits in; None if it fits in none.

        If there are not enough yet, takes none, gives [], and asks to be notified of more. Raises QueueError.
        """
        queue = self.link.queues[RX]
        mergeable = self._known_features & F_MRG_RXBUF
        needed = _HEADER.size + frame.length
        chains: list[Chain] = []
        room = 0
        while room < needed:
            # Without mergeable buffers a frame is in one.
            more = queue.pop_room(needed - room if mergeable else 1)
            if more:
                chains += more
                room += sum([length_of(chain.writable) for chain in more])
                if not mergeable:
                    break
            elif not queue.request_notification():
                queue.unpop(chains)
                return [] if len(chains) < queue.state.size else None
        if room < needed or length_of(chains[0].writable) < _HEADER.size:
            queue.unpop(chains)
            return None
        return chains

    def _put(self, frame: Frame) -> bool:
        """Put a frame into buffers, or drop it if it does not fit in any; False if it must wait. Raises QueueError."""
        chains = self._buffers(frame)
        if not chains:
            if chains is None:
                self.dropped_received += 1
            return chains is None
        if not frame.needs:
            header = _PLAIN_VALID if frame.valid and self._takes & CSUM else _PLAIN
        else:
            header_length = frame.header_length() if frame.gso_type else 0
            header = _HEADER.pack(
                _NEEDS_CSUM, frame.gso_type, header_length, frame.gso_size, frame.csum_start, frame.csum_offset, 1
            )
        if len(chains) > 1:
            header = header[:_NUM_BUFFERS] + len(chains).to_bytes(2, "little")
        self.link.queues[RX].push_all(self._fill(chains, header, frame))
        return True

    def _fill(self, chains: list[Chain], header: bytes, frame: Frame) -> list[tuple[Chain, int]]:
        """Write a frame into buffers that it fits in; gives them with the bytes in each."""
        memory = self.link.memory
        left = len(header) + frame.length
        filled: list[tuple[Chain, int]] = []
        runs: list[tuple[int, int]] = []
        start = end = 0
        for chain in chains:
            before = left
            for address, size in chain.writable:
                size = min(size, left)
                left -= size
                # Buffers often lie one behind the other.
                if address != end:
                    if end > start:
                        runs.append((start, end - start))
                    start = address
                end = address + size
            filled.append((chain, before - left))
        runs.append((start, end - start))
        if not frame.body and len(runs) == 1:
            memory.write(start, header + frame.head)
            return filled
        sources = [memoryview(header + frame.head), *frame.body]
        sources.reverse()
        source = sources.pop()
        for address, size in runs:
            target = memory.view(address, size)
            at = 0
            while at < size:
                count = min(len(source), size - at)
                target[at : at + count] = source[:count]
                at += count
                if count < len(source):
                    source = source[count:]
                elif sources:
                    source = sources.pop()
        memory.wrote_all(runs)
        return filled


def _kinds(table: dict[int, int], features: int) -> int:
    kinds = 0
    for feature, kind in table.items():
        if features & feature:
            kinds |= kind
    return kinds
