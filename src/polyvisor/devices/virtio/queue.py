"""Split virtqueues, the device's side (VIRTIO 1.2, section 2.7).

All that lies in guest memory is the guest's and may be nonsense, or change while it is looked at: every value is read
once and checked before use. Whatever is wrong raises :class:`QueueError`, and nothing else.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from polyvisor.engine.memory import BusError, Memory

MAX_QUEUE_SIZE = 32768

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4
AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

_DESCRIPTOR_SIZE = 16
_DESCRIPTOR = struct.Struct("<QIHH")
# 2.7.5.2: a chain has at most 2^32 bytes.
_MAX_CHAIN_BYTES = 2**32

Segment = tuple[int, int]
"""Guest physical address and length in bytes."""


class QueueError(Exception):
    """The driver broke a rule of the virtqueue: the device needs a reset (2.1.2)."""


@dataclass(slots=True)
class Chain:
    """A buffer the driver made available. All segments are RAM and none is empty."""

    head: int
    """Index of its first descriptor, which names it when it is given back."""
    readable: list[Segment] = field(default_factory=list)
    """What the device may read, in order."""
    writable: list[Segment] = field(default_factory=list)
    """What the device may write, in order."""


@dataclass
class QueueState:
    """What the driver set up (4.2.2) and how far the device got; indices count modulo 2^16."""

    size: int = 0
    """Entries, as the driver wrote it; checked when the queue is enabled."""
    ready: int = 0
    descriptors: int = 0
    """Guest physical address of the descriptor table (2.7.5)."""
    driver: int = 0
    """Guest physical address of the available ring (2.7.6)."""
    device: int = 0
    """Guest physical address of the used ring (2.7.8)."""
    event_idx: int = 0
    """1 if VIRTIO_F_EVENT_IDX was negotiated."""
    indirect: int = 0
    """1 if VIRTIO_F_INDIRECT_DESC was negotiated."""
    next_avail: int = 0
    """The available ring's entry that is taken next."""
    next_used: int = 0
    """The used ring's entry that is written next, its ``idx``."""
    signalled: int = 0
    """``next_used`` when it was last decided whether to interrupt."""


def length_of(segments: Iterable[Segment]) -> int:
    """Bytes in ``segments``."""
    return sum(length for _, length in segments)


def split(segments: Iterable[Segment], count: int) -> tuple[list[Segment], list[Segment]]:
    """The first ``count`` bytes of ``segments`` (fewer if there are fewer), and the rest."""
    first: list[Segment] = []
    rest: list[Segment] = []
    for address, length in segments:
        here = min(length, count)
        if here:
            first.append((address, here))
        if length > here:
            rest.append((address + here, length - here))
        count -= here
    return first, rest


def gather(memory: Memory, segments: Iterable[Segment]) -> bytes:
    """The bytes in ``segments``."""
    return b"".join(memory.read(address, length) for address, length in segments)


def scatter(memory: Memory, segments: Iterable[Segment], data: bytes) -> int:
    """Write ``data`` to the start of ``segments``; returns how many bytes there was room for."""
    done = 0
    for address, length in segments:
        piece = data[done : done + length]
        if not piece:
            break
        memory.write(address, piece)
        done += len(piece)
    return done


class _Rings:
    """Views of the three parts of a queue, for the state they were made of. 16-bit accesses of them are atomic."""

    def __init__(self, memory: Memory, state: QueueState) -> None:
        """Raises BusError."""
        self.state = state
        size = state.size
        self.table = memory.view(state.descriptors, _DESCRIPTOR_SIZE * size)
        self.avail = memory.view(state.driver, 6 + 2 * size).cast("H")
        self.used = memory.view(state.device, 6 + 8 * size).cast("H")
        self.elements = memory.view(state.device, 4 + 8 * size).cast("I")
        self.avail_event = 2 + 4 * size
        # Most buffers are in the largest.
        ram = max(memory.ram, key=lambda ram: ram.size)
        self.low = ram.base
        self.high = ram.end


class VirtQueue:
    """One split virtqueue of at most ``max_size`` entries in ``memory``. The caller serialises calls."""

    def __init__(self, memory: Memory, max_size: int) -> None:
        """Raises ValueError unless ``max_size`` is a power of two up to 32768."""
        if not 0 < max_size <= MAX_QUEUE_SIZE or max_size & (max_size - 1):
            raise ValueError(f"queue size {max_size}: must be a power of two up to {MAX_QUEUE_SIZE}")
        self.max_size = max_size
        self.state = QueueState()
        self._memory = memory
        self._barrier = threading.Lock()
        self._rings: _Rings | None = None

    # Set-up

    def reset(self) -> None:
        """Forget all the driver set up."""
        self.state = QueueState()

    def enable(self) -> None:
        """Start with empty rings. Raises QueueError if size, alignment (2.7, table) or place of the rings is wrong."""
        state = self.state
        size = state.size
        if not 0 < size <= self.max_size or size & (size - 1):
            raise QueueError(f"queue size {size}: not a power of two up to {self.max_size}")
        for name, address, alignment, length in (
            ("descriptor table", state.descriptors, 16, _DESCRIPTOR_SIZE * size),
            ("available ring", state.driver, 2, 6 + 2 * size),
            ("used ring", state.device, 4, 6 + 8 * size),
        ):
            if address % alignment:
                raise QueueError(f"{name} at {address:#x}: not aligned to {alignment} bytes")
            if not self._memory.is_ram(address, length):
                raise QueueError(f"{name} at {address:#x}: not in RAM")
        state.next_avail = state.next_used = state.signalled = 0
        state.ready = 1
        self._rings = None

    def disable(self) -> None:
        """Take no more buffers; the driver's settings stay readable."""
        self.state.ready = 0

    # Buffers

    def has_more(self) -> bool:
        """Whether a buffer is available now. Raises QueueError if the driver's index is impossible."""
        return self.state.ready == 1 and self._available() > 0

    def pop(self) -> Chain | None:
        """Take the next available buffer, or None. Raises QueueError."""
        state = self.state
        if not state.ready or not self._available():
            return None
        self._fence()  # entries are read after the index that published them
        rings = self._open()
        chain = self._walk(rings, rings.avail[2 + state.next_avail % state.size])
        state.next_avail = (state.next_avail + 1) & 0xFFFF
        return chain

    def pop_room(self, needed: int) -> list[Chain]:
        """Take buffers until their writable parts hold ``needed`` bytes, or there are no more. Raises QueueError."""
        state = self.state
        chains: list[Chain] = []
        available = self._available() if state.ready else 0
        if not available:
            return chains
        self._fence()  # entries are read after the index that published them
        rings = self._open()
        avail, table, size, low, high = rings.avail, rings.table, state.size, rings.low, rings.high
        at = state.next_avail
        while needed > 0 and len(chains) < available:
            head = avail[2 + at % size]
            address, length, flags, _ = _DESCRIPTOR.unpack_from(table, _DESCRIPTOR_SIZE * (head % size))
            # Nearly all are like this; what is not is looked at with care.
            if head < size and flags == DESC_F_WRITE and length and low <= address and address + length <= high:
                chains.append(Chain(head, [], [(address, length)]))
                needed -= length
            else:
                chain = self._walk(rings, head)
                chains.append(chain)
                needed -= length_of(chain.writable)
            at += 1
        state.next_avail = at & 0xFFFF
        return chains

    def unpop(self, count: int) -> None:
        """Leave the last ``count`` buffers that were taken, and not given back, to be taken again."""
        self.state.next_avail = (self.state.next_avail - count) & 0xFFFF

    def push(self, chain: Chain, written: int) -> None:
        """Give ``chain`` back; ``written`` bytes of its writable part were written, from its start. Raises QueueError.

        Does nothing if the queue is not enabled any more.
        """
        self.push_all(((chain, written),))

    def push_all(self, chains: Sequence[tuple[Chain, int]]) -> None:
        """As :meth:`push` for each of ``chains``, which the driver sees all at once."""
        state = self.state
        if not state.ready:
            return
        rings = self._open()
        elements = rings.elements
        slot = state.next_used % state.size
        for chain, written in chains:
            elements[1 + 2 * slot] = chain.head
            elements[2 + 2 * slot] = written & 0xFFFFFFFF
            slot = slot + 1 if slot + 1 < state.size else 0
        self._fence()  # the entries, and the data, before the index
        state.next_used = (state.next_used + len(chains)) & 0xFFFF
        rings.used[1] = state.next_used
        self._memory.wrote(state.device, 4 + 8 * state.size)

    def _open(self) -> _Rings:
        """The rings of the current state. Raises QueueError."""
        rings = self._rings
        if rings is None or rings.state is not self.state:
            try:
                rings = self._rings = _Rings(self._memory, self.state)
            except BusError as error:
                raise QueueError(str(error)) from None
        return rings

    def _available(self) -> int:
        state = self.state
        idx = self._open().avail[1]
        # The buffers the device holds already count against the size too.
        if (idx - state.next_used) & 0xFFFF > state.size:
            raise QueueError(f"available index {idx:#x} is more than {state.size} ahead of {state.next_used:#x}")
        count = (idx - state.next_avail) & 0xFFFF
        if count > state.size:
            raise QueueError(f"available index {idx:#x} went back behind {state.next_avail:#x}")
        return count

    def _walk(self, rings: _Rings, head: int) -> Chain:
        """Follow the chain from ``head``; each descriptor is read once (2.7.5, 2.7.5.3)."""
        state = self.state
        memory = self._memory
        chain = Chain(head)
        table: bytes | None = None
        low, high = rings.low, rings.high
        limit = entries = state.size
        index = head
        count = total = 0
        while True:
            if index >= entries:
                raise QueueError(f"descriptor {index} of {entries}")
            count += 1
            if count > limit:
                raise QueueError(f"descriptor chain from {head} is longer than {limit}")
            if table is None:
                address, length, flags, following = _DESCRIPTOR.unpack_from(rings.table, _DESCRIPTOR_SIZE * index)
            else:
                address, length, flags, following = _DESCRIPTOR.unpack_from(table, _DESCRIPTOR_SIZE * index)
            if flags & DESC_F_INDIRECT:
                if table is not None:
                    raise QueueError("indirect descriptor in an indirect table")
                if not state.indirect:
                    raise QueueError("indirect descriptor, which was not negotiated")
                if flags & DESC_F_NEXT:
                    raise QueueError("indirect descriptor with a next one")
                entries, odd = divmod(length, _DESCRIPTOR_SIZE)
                if odd or not entries:
                    raise QueueError(f"indirect table of {length} bytes")
                # `next` has 16 bits, so what is beyond cannot be reached.
                entries = min(entries, 0x10000)
                if not memory.is_ram(address, length):
                    raise QueueError(f"indirect table at {address:#x}: not in RAM")
                table = self._read(address, entries * _DESCRIPTOR_SIZE)
                # 2.7.5.3.1 bounds it by the queue size "of the device", which may be more than the driver's.
                limit, count, index = self.max_size, count - 1, 0
                continue
            if length:
                if not (low <= address and address + length <= high) and not memory.is_ram(address, length):
                    raise QueueError(f"buffer of {length:#x} bytes at {address:#x}: not in RAM")
                total += length
                if total > _MAX_CHAIN_BYTES:
                    raise QueueError("descriptor chain has more than 2^32 bytes")
            if flags & DESC_F_WRITE:
                if length:
                    chain.writable.append((address, length))
            elif length:
                if chain.writable:
                    raise QueueError("device-readable descriptor after a device-writable one")
                chain.readable.append((address, length))
            if not flags & DESC_F_NEXT:
                return chain
            index = following

    # Notifications

    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was pushed since the last call (2.7.7). Raises QueueError."""
        state = self.state
        if not state.ready:
            return False
        self._fence()  # our index is visible before we look whether the driver waits
        old, new = state.signalled, state.next_used
        state.signalled = new
        if old == new:
            return False
        if state.event_idx:
            event = self._open().avail[2 + state.size]
            return (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self._open().avail[0] & AVAIL_F_NO_INTERRUPT

    def suppress_notifications(self) -> None:
        """Tell the driver that it need not notify (2.7.10); with EVENT_IDX an old index says so. Raises QueueError."""
        state = self.state
        if state.ready and not state.event_idx:
            self._open().used[0] = USED_F_NO_NOTIFY
            self._memory.wrote(state.device, 2)

    def request_notification(self) -> bool:
        """Ask to be notified of the next buffer; True if there is one already. Raises QueueError."""
        state = self.state
        if not state.ready:
            return False
        rings = self._open()
        if state.event_idx:
            rings.used[rings.avail_event] = state.next_avail
            self._memory.wrote(state.device + 4 + 8 * state.size, 2)
        else:
            rings.used[0] = 0
            self._memory.wrote(state.device, 2)
        self._fence()  # the driver sees the wish before we look for the last time
        return self._available() > 0

    # Guest memory

    def _fence(self) -> None:
        """Order accesses before and after against those of the harts: taking a lock is an atomic operation."""
        with self._barrier:
            pass

    def _read(self, address: int, length: int) -> bytes:
        try:
            return self._memory.read(address, length)
        except BusError as error:
            raise QueueError(str(error)) from None
