"""Packed virtqueues (VIRTIO 1.2, section 2.8): one ring that both sides write."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from polyvisor.devices.virtio.queue import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR_SIZE,
    MANY,
    ORDERED_HOST,
    Area,
    Chain,
    LongChain,
    Part,
    QueueError,
    VirtQueue,
)

# A descriptor is available if AVAIL is the wrap counter and USED is not, and used if both are (2.8.1).
DESC_F_AVAIL = 1 << 7
DESC_F_USED = 1 << 15

# Flags of the event suppression areas (2.8.10).
EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2

_MARKS = DESC_F_AVAIL | DESC_F_USED
_EVENT_SIZE = 4
_EVENT_WRAP = 1 << 15
# struct pvirtq_desc (2.8.13) but its buffer ID.
_PART = struct.Struct("<QI2xH")
_part = _PART.unpack_from
_parts = _PART.iter_unpack
_WRITE = bytes([DESC_F_WRITE])
_ONLY_WRITE = bytes(flags & DESC_F_WRITE for flags in range(256))
# Where its fields are, in words of 16 or 32 bits.
_ID = 6
_FLAGS = 7
_LENGTH = 2


class PackedQueue(VirtQueue):
    """One ring of descriptors, and for each side a place that says of which events it wants to hear."""

    def _check_size(self, size: int) -> None:
        if not 0 < size <= self.max_size:
            raise QueueError(f"queue size {size}: not 1 to {self.max_size}")

    def _areas(self) -> tuple[Area, Area, Area]:
        state = self._state
        return (
            Area("descriptor ring", state.descriptors, 16, DESCRIPTOR_SIZE * state.size),
            Area("driver event suppression", state.driver, 4, _EVENT_SIZE),
            Area("device event suppression", state.device, 4, _EVENT_SIZE),
        )

    def _map(self, descriptors: memoryview, driver: memoryview, device: memoryview) -> None:
        self._ring = descriptors
        self._ring16 = descriptors.cast("H")
        self._ring32 = descriptors.cast("I")
        self._driver_event = driver.cast("I")
        self._device_event = device.cast("I")

    def _unmap(self) -> None:
        self._ring = memoryview(b"")
        self._ring16 = self._ring32 = self._driver_event = self._device_event = self._ring

    def has_more(self) -> bool:
        """Whether a buffer is available now."""
        state = self._state
        if not state.ready:
            return False
        at, size = state.next_avail, state.size
        if at < size:
            return self._ring16[8 * at + _FLAGS] & _MARKS == DESC_F_AVAIL
        return self._ring16[8 * (at - size) + _FLAGS] & _MARKS == DESC_F_USED

    def _held(self) -> int:
        """Entries of buffers that were taken and not given back."""
        state = self._state
        return (state.next_avail - state.next_used) % (2 * state.size)

    def pop(self) -> Chain | None:
        """Take the next available buffer, or None. Raises QueueError."""
        if not self.has_more():
            return None
        if not ORDERED_HOST:
            with self._fence:
                pass  # the descriptor is read after the marks that published it
        state = self._state
        size, at = state.size, state.next_avail
        index = at if at < size else at - size
        free = size - self._held()
        if not free:
            raise QueueError(f"more than {size} descriptors are available")
        part = _part(self._ring, DESCRIPTOR_SIZE * index)
        slots = 1
        parts: list[Part] = [part]
        while part[2] & DESC_F_NEXT:
            if part[2] & DESC_F_INDIRECT:
                raise QueueError("indirect descriptor with a next one")
            slots += 1
            if slots > free:
                raise QueueError(f"descriptor chain is longer than {free}")
            index = index + 1 if index + 1 < size else 0
            part = _part(self._ring, DESCRIPTOR_SIZE * index)
            parts.append(part)
        head = self._ring16[8 * index + _ID]
        chain: Chain | None = None
        if part[2] & DESC_F_INDIRECT:
            parts.pop()
            table = self._table(part, self.max_size - len(parts))
            if not parts and len(table) >= MANY * DESCRIPTOR_SIZE:
                chain = self._table_at_once(head, table)
            if chain is None:
                parts += _parts(table)
        if chain is None:
            chain = self._sorted(head, parts, slots)
        state.next_avail = (at + slots) % (2 * size)
        return chain

    def _table(self, indirect: Part, room: int) -> bytes:
        """The descriptors of an indirect table, at most ``room``. Raises QueueError."""
        table, base, entries = self._indirect_table(*indirect)
        if entries > room:
            raise QueueError(f"descriptor chain is longer than {self.max_size}")
        return bytes(table[base : base + DESCRIPTOR_SIZE * entries])

    def _table_at_once(self, head: int, table: bytes) -> LongChain | None:
        """The buffer of an indirect table (2.8.7: only WRITE flags count); None if it is not as most are."""
        marks = table[14::DESCRIPTOR_SIZE].translate(_ONLY_WRITE)
        readable = marks.count(0)
        if marks != bytes(readable) + _WRITE * (len(marks) - readable):
            return None
        return self._sorted_at_once(head, table, readable)

    def unpop(self, chains: Iterable[Chain]) -> None:
        """Leave the buffers taken last to be taken again."""
        state = self._state
        if state.ready:
            state.next_avail = (state.next_avail - sum(chain.slots for chain in chains)) % (2 * state.size)

    def push_all(self, chains: Iterable[tuple[Chain, int]], tell: bool = True) -> None:
        """Give ``chains`` back, in any order (2.8.4)."""
        state = self._state
        if not state.ready:
            return
        ring16, ring32, size = self._ring16, self._ring32, state.size
        held, at = self._held(), state.next_used
        first: tuple[int, int] | None = None
        for chain, written in chains:
            slots = chain.slots
            if slots > held:
                break  # a device gives back what it does not have
            held -= slots
            if at < size:
                index, flags = at, _MARKS
            else:
                index, flags = at - size, 0
            if written:
                flags |= DESC_F_WRITE
            ring16[8 * index + _ID] = chain.head
            ring32[4 * index + _LENGTH] = written & 0xFFFFFFFF
            # The driver looks no further than at the first that is not used.
            if first is None:
                first = index, flags
            else:
                ring16[8 * index + _FLAGS] = flags
            state.unsignalled += slots
            at = at + slots if at + slots < 2 * size else at + slots - 2 * size
        if first is None:
            return
        state.next_used = at
        if not ORDERED_HOST:
            with self._fence:
                pass  # all else before the first one's marks
        ring16[8 * first[0] + _FLAGS] = first[1]
        if tell:
            self._memory.wrote(state.descriptors, DESCRIPTOR_SIZE * size)

    def announce(self) -> None:
        """Tell the engine of what was written."""
        state = self._state
        if state.ready:
            self._memory.wrote(state.descriptors, DESCRIPTOR_SIZE * state.size)
            self._memory.wrote(state.device, _EVENT_SIZE)

    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was given back since the last call (2.8.10). Raises QueueError."""
        state = self._state
        count = state.unsignalled
        if not state.ready or not count:
            return False
        state.unsignalled = 0
        with self._fence:
            pass  # our marks are visible before we look whether the driver waits
        event = self._driver_event[0]
        kind = event >> 16 & 3
        if kind != EVENT_DESC or not state.event_idx:
            return kind != EVENT_DISABLE
        size, at = state.size, event & _EVENT_WRAP - 1
        if at >= size:
            raise QueueError(f"event suppression for descriptor {at} of {size}")
        if not event & _EVENT_WRAP:
            at += size
        return (state.next_used - at - 1) % (2 * size) < count

    def suppress_notifications(self, tell: bool = True) -> None:
        """Tell the driver that it need not notify."""
        state = self._state
        if state.ready and not state.event_idx:
            self._device_event[0] = EVENT_DISABLE << 16
            if tell:
                self._memory.wrote(state.device, _EVENT_SIZE)

    def request_notification(self, tell: bool = True) -> bool:
        """Ask to be notified of the next buffer; True if there is one already."""
        state = self._state
        if not state.ready:
            return False
        if state.event_idx:
            size, at = state.size, state.next_avail
            wish = at | _EVENT_WRAP if at < size else at - size
            self._device_event[0] = wish | EVENT_DESC << 16
        else:
            self._device_event[0] = EVENT_ENABLE << 16
        if tell:
            self._memory.wrote(state.device, _EVENT_SIZE)
        with self._fence:
            pass  # the driver sees the wish before we look for the last time
        return self.has_more()
