"""The input device (VIRTIO 1.2, section 5.8): it passes on what a keyboard, a tablet or a mouse does."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from polyvisor.devices.input import EV_KEY, EV_SYN, Event, InputSource, Profile
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, QueueError, gather, length_of, scatter, split
from polyvisor.engine.outside import Plain

EVENT_QUEUE, STATUS_QUEUE = 0, 1
QUEUE_SIZES = (64, 64)
MAX_WAITING = 512
"""How many events wait for buffers of the driver before more are refused."""
MAX_STATUS = 64
"""How many events of one buffer of the driver are looked at."""

# What the driver can ask for (5.8.4).
CFG_ID_NAME = 0x01
CFG_ID_SERIAL = 0x02
CFG_ID_DEVIDS = 0x03
CFG_PROP_BITS = 0x10
CFG_EV_BITS = 0x11
CFG_ABS_INFO = 0x12

_SELECT, _SUBSEL = 0, 1
_CONFIG_HEADER = struct.Struct("<3B5x")
_DATA_SIZE = 128
_EVENT = struct.Struct("<HHi")
_IDS = struct.Struct("<4H")
_ABS = struct.Struct("<5i")
_BUS_VIRTUAL = 0x06
_VENDOR = 0x504C
_VERSION = 1
_SYN = Event(EV_SYN, 0, 0)


@dataclass
class InputState:
    """What the driver asks for, and the events that wait for its buffers."""

    select: int = 0
    subsel: int = 0
    waiting: deque[Event] = field(default_factory=deque)
    held: set[int] = field(default_factory=set)
    """Keys and buttons that are down, as the driver was told."""


class InputDevice(VirtioDevice):
    """Passes on what ``source`` does. It takes no events while no driver runs."""

    device_id = 18

    def __init__(self, source: InputSource) -> None:
        """Raises ValueError if ``source`` belongs to another device."""
        super().__init__(0, QUEUE_SIZES, InputState())
        self._source = source
        self._posted = 0  # in virtual time, events that wait for the end of a turn
        self._unplug = source.plug(self._deliver)

    @property
    def profile(self) -> Profile:
        """What the guest is told of it."""
        return self._source.profile

    def config(self) -> bytes:
        """struct virtio_input_config: the answer to what was selected; its size is 0 if there is none."""
        data = self._answer(self.state.select, self.state.subsel)[:_DATA_SIZE]
        return _CONFIG_HEADER.pack(self.state.select, self.state.subsel, len(data)) + data.ljust(_DATA_SIZE, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """Only ``select`` and ``subsel`` can be written."""
        for at, value in enumerate(data, offset):
            if at == _SELECT:
                self.state.select = value
            elif at == _SUBSEL:
                self.state.subsel = value

    def reset(self) -> None:
        """Forget what was selected, and events that nobody took."""
        self.state = InputState()

    def reconnected(self) -> None:
        """Nobody's hands are on the keys any more. May raise QueueError."""
        if self.state.held:
            self._deliver([Event(EV_KEY, code, 0) for code in sorted(self.state.held)], True)

    def close(self) -> None:
        """Leave the source."""
        self._unplug()

    def notify(self, index: int) -> None:
        """Fill new buffers, or read what the driver says. Raises QueueError."""
        if index == STATUS_QUEUE:
            self.serve(index, self._status)
        else:
            self._drain()
            self._source.room()

    def _answer(self, select: int, subsel: int) -> bytes:
        profile = self._source.profile
        if select == CFG_EV_BITS and subsel in profile.events:
            return _bitmap(profile.events[subsel])
        if select == CFG_ABS_INFO and subsel in profile.axes:
            axis = profile.axes[subsel]
            return _ABS.pack(axis.minimum, axis.maximum, 0, 0, 0)
        if subsel == 0 and select == CFG_ID_NAME:
            return profile.name.encode()
        if subsel == 0 and select == CFG_ID_DEVIDS:
            return _IDS.pack(_BUS_VIRTUAL, _VENDOR, profile.product, _VERSION)
        return b""  # there are no serial numbers and no properties

    def _deliver(self, events: Sequence[Event], must: bool) -> bool:
        """Send events; gives False if no driver listens or, unless they ``must`` be sent, it is far behind."""
        with self.guard():
            if self._link is None or not self.link.running or not self.link.queues[EVENT_QUEUE].state.ready:
                return False
            if len(self.state.waiting) + self._posted >= MAX_WAITING and not must:
                return False
            if self.source is not None:
                self._posted += len(events) + 1
                self.source.post("events", b"".join(_EVENT.pack(*event) for event in events))
            else:
                self._accept(events)
        return True

    def enter(self, operation: str, arguments: Sequence[Plain]) -> None:
        """Take events, in virtual time."""
        data = arguments[0]
        assert isinstance(data, bytes)
        events = [Event(*each) for each in _EVENT.iter_unpack(data)]
        with self.guard():
            self._posted = max(0, self._posted - len(events) - 1)
            if self.link.running and self.link.queues[EVENT_QUEUE].state.ready:
                self._accept(events)

    def _accept(self, events: Sequence[Event]) -> None:
        self.state.waiting.extend((*events, _SYN))
        for event in events:
            if event.type == EV_KEY:
                (self.state.held.add if event.value else self.state.held.discard)(event.code)
        self._drain()

    def _drain(self) -> None:
        """Put what waits into the driver's buffers, one event each (5.8.6). Raises QueueError."""
        waiting = self.state.waiting
        queue = self.link.queues[EVENT_QUEUE]
        try:
            more = True
            while waiting and more:
                while waiting and (chain := queue.pop()) is not None:
                    if length_of(chain.writable) < _EVENT.size:
                        raise QueueError("an input buffer that is smaller than an event")
                    queue.push(chain, scatter(self.link.memory, chain.writable, _EVENT.pack(*waiting.popleft())))
                # New buffers are worth a notification only while something waits for them.
                more = bool(waiting) and queue.request_notification()
        finally:
            if queue.should_interrupt():
                self.link.interrupt()
        if not waiting:
            queue.suppress_notifications()

    def _status(self, chain: Chain) -> int:
        data = gather(self.link.memory, split(chain.readable, MAX_STATUS * _EVENT.size)[0])
        for kind, code, value in _EVENT.iter_unpack(data[: len(data) // _EVENT.size * _EVENT.size]):
            self._source.status(Event(kind, code, value))
        return 0


def _bitmap(codes: Iterable[int]) -> bytes:
    """Bit ``n`` for each code ``n`` (5.8.4)."""
    bits = sum(1 << code for code in codes)
    return bits.to_bytes(-(-bits.bit_length() // 8), "little")
