"""Virtqueues, the device's side: what both ring formats have in common (VIRTIO 1.2, sections 2.6, 2.7, 2.8).

All that lies in guest memory is the guest's and may be nonsense, or change while it is looked at: every value is read
once and checked before use. Whatever is wrong raises :class:`QueueError`, and nothing else.

Rings are reached through views of exactly their bytes, made when the queue is enabled. Views of 16 and 32 bits are in
the host's byte order, which is little-endian like the guest's on all hosts the engine runs on; one access to one is one
load or store of the host, so a hart never sees half of it.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from operator import add, itemgetter
from typing import NamedTuple

from polyvisor.dataclass import dataclass, field
from polyvisor.engine.memory import Memory

MAX_QUEUE_SIZE = 32768

DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

DESCRIPTOR_SIZE = 16
# Where in a descriptor address and length end, in both formats.
_REST = 12
PAIR_SIZE = 16
"""Bytes of each of :attr:`LongChain.pairs`."""
# An indirect table of so many entries or more is looked at as a whole before it is as single descriptors.
MANY = 6

# 2.7.5.2: a chain has at most 2^32 bytes.
_MAX_CHAIN_BYTES = 2**32

# Whether the host keeps loads in order, and stores, as x86 does; a store and a later load are never kept in order.
ORDERED_HOST = os.uname().machine == "x86_64"

Segment = tuple[int, int]
"""Guest physical address and length in bytes."""

Part = tuple[int, int, int]
"""A descriptor: guest physical address, length in bytes, flags."""


class QueueError(Exception):
    """The driver broke a rule of the virtqueue: the device needs a reset (2.1.2)."""


@dataclass
class Chain:
    """A buffer the driver made available. All segments are RAM and none is empty."""

    head: int
    """What names it when it is given back: the index of its first descriptor, or in a packed ring its buffer ID."""
    readable: list[Segment] = field(default_factory=list)
    """What the device may read, in order."""
    writable: list[Segment] = field(default_factory=list)
    """What the device may write, in order."""
    slots: int = 1
    """Entries it takes in a packed ring."""


class LongChain(Chain):
    """One of many segments, all in the RAM that the queue is in."""

    def __init__(self, head: int, readable: list[Segment], writable: list[Segment], pairs: bytes) -> None:
        super().__init__(head, readable, writable)
        # Not a field: it says nothing new, and chains are saved.
        self.pairs = pairs
        """Address and length of all segments in order, 64 bits each."""


@dataclass
class QueueState:
    """What the driver set up (4.1.4.3, 4.2.2) and how far the device got.

    Positions count modulo 2^16 in a split ring. In a packed one they count modulo twice its size: the index, plus the
    size when the wrap counter (2.8.1) is 0.
    """

    size: int = 0
    """Entries, as the driver wrote it; checked when the queue is enabled."""
    ready: int = 0
    descriptors: int = 0
    """Guest physical address of the descriptor area: the table (2.7.5) or the packed ring (2.8)."""
    driver: int = 0
    """Guest physical address of the driver area: the available ring (2.7.6) or the event suppression (2.8.10)."""
    device: int = 0
    """Guest physical address of the device area: the used ring (2.7.8) or the event suppression (2.8.10)."""
    packed: int = 0
    """1 if VIRTIO_F_RING_PACKED was negotiated."""
    event_idx: int = 0
    """1 if VIRTIO_F_EVENT_IDX was negotiated."""
    indirect: int = 0
    """1 if VIRTIO_F_INDIRECT_DESC was negotiated."""
    next_avail: int = 0
    """The position that is taken next."""
    next_used: int = 0
    """The position that is given back next."""
    unsignalled: int = 0
    """Positions given back since it was last decided whether to interrupt."""


class Area(NamedTuple):
    """One of the three places in guest memory that make a queue; all in bytes."""

    name: str
    address: int
    alignment: int
    length: int


_length = itemgetter(1)


def length_of(segments: Iterable[Segment]) -> int:
    """Bytes in ``segments``."""
    return sum(map(_length, segments))


def split_last(segments: list[Segment]) -> tuple[list[Segment], Segment]:
    """``segments``, which have at least one byte, without their last byte, and that byte."""
    address, length = segments[-1]
    rest = segments[:-1]
    if length > 1:
        rest.append((address, length - 1))
    return rest, (address + length - 1, 1)


def split(segments: Sequence[Segment], count: int) -> tuple[list[Segment], list[Segment]]:
    """The first ``count`` bytes of ``segments`` (fewer if there are fewer), and the rest."""
    for place, (address, length) in enumerate(segments):
        if count < length:
            first, rest = list(segments[:place]), list(segments[place:])
            if count:
                first.append((address, count))
                rest[0] = (address + count, length - count)
            return first, rest
        count -= length
    return list(segments), []


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


class VirtQueue(ABC):
    """One virtqueue of at most ``max_size`` entries in ``memory``; a subclass for each ring format.

    The caller serialises calls. A queue that is not enabled has no buffers and takes none back. Telling the engine
    what was written to guest memory takes longer than writing it: who makes many calls has them leave it
    (``tell`` False), and calls :meth:`announce` at the end.
    """

    def __init__(self, memory: Memory, max_size: int) -> None:
        """Raises ValueError unless ``max_size`` is a power of two up to 32768."""
        if not 0 < max_size <= MAX_QUEUE_SIZE or max_size & (max_size - 1):
            raise ValueError(f"queue size {max_size}: must be a power of two up to {MAX_QUEUE_SIZE}")
        self.max_size = max_size
        self._memory = memory
        # Taking it orders all accesses before and after against those of the harts: it is an atomic operation.
        self._fence = threading.Lock()
        self._state = QueueState()
        self.reset()

    # Set-up

    @property
    def state(self) -> QueueState:
        """All that the guest can change; the queue may be given another, to go on from. Raises QueueError then."""
        return self._state

    @state.setter
    def state(self, state: QueueState) -> None:
        self._release()
        self._state = state
        if state.ready:
            state.ready = 0
            self._attach()
            state.ready = 1

    def reset(self) -> None:
        """Forget all the driver set up; the size is the greatest until it says another (4.1.4.3.1)."""
        self._release()
        self._state = QueueState(size=self.max_size)

    def enable(self) -> None:
        """Start with empty rings. Raises QueueError if size, alignment or place of the rings is wrong."""
        state = self._state
        state.next_avail = state.next_used = state.unsignalled = 0
        self._attach()
        state.ready = 1

    def disable(self) -> None:
        """Take no more buffers; the driver's settings stay readable."""
        self._state.ready = 0
        self._release()

    def _attach(self) -> None:
        """Check the areas and keep views of them. Raises QueueError."""
        self._check_size(self._state.size)
        views = []
        for name, address, alignment, length in self._areas():
            if address % alignment:
                raise QueueError(f"{name} at {address:#x}: not aligned to {alignment} bytes")
            if not self._memory.is_ram(address, length):
                raise QueueError(f"{name} at {address:#x}: not in RAM")
            views.append(self._memory.view(address, length))
        self._map(*views)
        # Buffers are most often in the same RAM as the descriptors.
        descriptors = self._state.descriptors
        ram = next(ram for ram in self._memory.ram if ram.base <= descriptors < ram.end)
        self._ram, self._low, self._high, self._shift = ram.view, ram.base, ram.end, ram.host - ram.base

    def _release(self) -> None:
        """Keep no views, so that the memory can go."""
        self._ram, self._low, self._high, self._shift = memoryview(b""), 0, 0, 0
        self._unmap()

    @abstractmethod
    def _check_size(self, size: int) -> None:
        """Raise QueueError unless the ring may have ``size`` entries."""

    @abstractmethod
    def _areas(self) -> tuple[Area, Area, Area]:
        """The descriptor, driver and device areas."""

    @abstractmethod
    def _map(self, descriptors: memoryview, driver: memoryview, device: memoryview) -> None:
        """Keep what is needed of views of the areas."""

    @abstractmethod
    def _unmap(self) -> None:
        """Forget the views."""

    # Buffers

    @abstractmethod
    def has_more(self) -> bool:
        """Whether a buffer is available now. Raises QueueError if what the ring says is impossible."""

    @abstractmethod
    def pop(self) -> Chain | None:
        """Take the next available buffer, or None. Raises QueueError."""

    def pop_room(self, needed: int) -> list[Chain]:
        """Take buffers until their writable parts hold ``needed`` bytes, or there are no more. Raises QueueError."""
        chains: list[Chain] = []
        while needed > 0 and (chain := self.pop()) is not None:
            chains.append(chain)
            needed -= length_of(chain.writable)
        return chains

    @abstractmethod
    def unpop(self, chains: Iterable[Chain]) -> None:
        """Leave the buffers that were taken last, and not given back, to be taken again."""

    def push(self, chain: Chain, written: int, tell: bool = True) -> None:
        """Give ``chain`` back; ``written`` bytes of its writable part were written, from its start.

        Does nothing if the queue is not enabled any more.
        """
        self.push_all(((chain, written),), tell)

    @abstractmethod
    def push_all(self, chains: Iterable[tuple[Chain, int]], tell: bool = True) -> None:
        """As :meth:`push` for each of ``chains``, which the driver sees all at once."""

    @abstractmethod
    def announce(self) -> None:
        """Tell the engine, as Memory.wrote does, of what was written to the rings by calls with ``tell`` False."""

    def _sorted(self, head: int, parts: Iterable[Part], slots: int = 1) -> Chain:
        """A buffer of ``parts``, each of which is checked (2.6.5.2 to 2.6.5.4). Raises QueueError."""
        readable: list[Segment] = []
        writable: list[Segment] = []
        low, high = self._low, self._high
        total = 0
        for address, length, flags in parts:
            if not length:
                continue
            if (address < low or address + length > high) and not self._memory.is_ram(address, length):
                raise QueueError(f"buffer of {length:#x} bytes at {address:#x}: not in RAM")
            total += length
            if flags & DESC_F_WRITE:
                writable.append((address, length))
            elif writable:
                raise QueueError("device-readable descriptor after a device-writable one")
            else:
                readable.append((address, length))
        if total > _MAX_CHAIN_BYTES:
            raise QueueError("descriptor chain has more than 2^32 bytes")
        return Chain(head, readable, writable, slots)

    def _sorted_at_once(self, head: int, table: bytes, readable: int) -> LongChain | None:
        """As :meth:`_sorted`, of whole descriptors of which the first ``readable`` are device-readable, all others not.

        None if one is empty, or not in the RAM that the queue is in, or all are too long: for :meth:`_sorted` to judge.
        """
        pairs = bytearray(table)
        nothing = bytes(len(table) // DESCRIPTOR_SIZE)
        for at in range(_REST, DESCRIPTOR_SIZE):
            pairs[at::DESCRIPTOR_SIZE] = nothing  # what follows the 32 bits of the length
        words = array("Q", pairs)
        addresses, lengths = words[::2].tolist(), words[1::2].tolist()
        high = self._high
        # The exact sums are looked at only if need be.
        if max(addresses) + max(lengths) > high and max(map(add, addresses, lengths)) > high:
            return None
        if min(addresses) < self._low or not all(lengths) or sum(lengths) > _MAX_CHAIN_BYTES:
            return None
        segments = list(zip(addresses, lengths, strict=True))
        return LongChain(head, segments[:readable], segments[readable:], bytes(pairs))

    def vector(self, pairs: bytes) -> array[int]:
        """A ``struct iovec`` for each of ``pairs``, which are some of a :class:`LongChain` of this queue.

        It is good while the queue is enabled, so with the device's lock held.
        """
        words = array("Q", pairs)
        shift = self._shift
        words[::2] = array("Q", [address + shift for address in words[::2].tolist()])
        return words

    def _indirect_table(self, address: int, length: int, flags: int) -> tuple[memoryview, int, int]:
        """The table an indirect descriptor refers to (2.7.5.3, 2.8.7): RAM, where in it, entries. Raises QueueError."""
        if not self._state.indirect:
            raise QueueError("indirect descriptor, which was not negotiated")
        if flags & DESC_F_NEXT:
            raise QueueError("indirect descriptor with a next one")
        entries, odd = divmod(length, DESCRIPTOR_SIZE)
        if odd or not entries:
            raise QueueError(f"indirect table of {length} bytes")
        if self._low <= address and address + length <= self._high:
            return self._ram, address - self._low, entries
        if not self._memory.is_ram(address, length):
            raise QueueError(f"indirect table at {address:#x}: not in RAM")
        return self._memory.view(address, length), 0, entries

    # Notifications

    @abstractmethod
    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was given back since the last call. Raises QueueError."""

    @abstractmethod
    def suppress_notifications(self, tell: bool = True) -> None:
        """Tell the driver that it need not notify; with EVENT_IDX an old position says so."""

    @abstractmethod
    def request_notification(self, tell: bool = True) -> bool:
        """Ask to be notified of the next buffer; True if there is one already. Raises QueueError."""
