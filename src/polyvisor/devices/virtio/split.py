"""Split virtqueues (VIRTIO 1.2, section 2.7)."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from functools import cache

from polyvisor.devices.virtio.queue import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR_SIZE,
    MANY,
    MAX_QUEUE_SIZE,
    ORDERED_HOST,
    Area,
    Chain,
    LongChain,
    Part,
    QueueError,
    VirtQueue,
)

AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1

_descriptor = struct.Struct("<QIHH").unpack_from

# Flags of descriptors.
_NEXT = bytes([DESC_F_NEXT])
_WRITE = bytes([DESC_F_WRITE])
_NEXT_WRITE = bytes([DESC_F_NEXT | DESC_F_WRITE])

# The available and the used ring, as words of 16 bits: flags, index, entries, and the other side's event index.
_FLAGS = 0
_INDEX = 1
_ENTRIES = 2


@cache
def _following() -> array[int]:
    """Where each descriptor of a table goes on that is in order."""
    return array("H", range(1, MAX_QUEUE_SIZE + 1))


class SplitQueue(VirtQueue):
    """A descriptor table, and a ring for each direction."""

    def _check_size(self, size: int) -> None:
        if not 0 < size <= self.max_size or size & (size - 1):
            raise QueueError(f"queue size {size}: not a power of two up to {self.max_size}")

    def _areas(self) -> tuple[Area, Area, Area]:
        state = self._state
        size = state.size
        return (
            Area("descriptor table", state.descriptors, 16, DESCRIPTOR_SIZE * size),
            Area("available ring", state.driver, 2, 6 + 2 * size),
            Area("used ring", state.device, 4, 6 + 8 * size),
        )

    def _map(self, descriptors: memoryview, driver: memoryview, device: memoryview) -> None:
        self._table = descriptors
        self._avail = driver.cast("H")
        self._used = device.cast("H")
        # Behind the flags and the index: pairs of head and length.
        self._used_elements = device[4:-2].cast("I")
        self._used_bytes = len(device)

    def _unmap(self) -> None:
        self._table = memoryview(b"")
        self._avail = self._used = self._used_elements = self._table

    def has_more(self) -> bool:
        """Whether a buffer is available now. Raises QueueError if the driver's index is impossible."""
        return self._state.ready == 1 and self._available() > 0

    def _available(self) -> int:
        state = self._state
        idx = self._avail[_INDEX]
        count = (idx - state.next_avail) & 0xFFFF
        if count:
            # The buffers the device holds already count against the size too.
            if (idx - state.next_used) & 0xFFFF > state.size:
                raise QueueError(f"available index {idx:#x} is more than {state.size} ahead of {state.next_used:#x}")
            if count > state.size:
                raise QueueError(f"available index {idx:#x} went back behind {state.next_avail:#x}")
        return count

    def pop(self) -> Chain | None:
        """Take the next available buffer, or None. Raises QueueError."""
        state = self._state
        if not state.ready or not self._available():
            return None
        if not ORDERED_HOST:
            with self._fence:
                pass  # entries are read after the index that published them
        size = state.size
        next_avail = state.next_avail
        head = self._avail[_ENTRIES + (next_avail & size - 1)]
        if head >= size:
            raise QueueError(f"descriptor {head} of {size}")
        address, length, flags, following = _descriptor(self._table, DESCRIPTOR_SIZE * head)
        chain: Chain | None = None
        if flags == DESC_F_WRITE and length and self._low <= address and address + length <= self._high:
            chain = Chain(head, [], [(address, length)])  # as all buffers for received data are
        elif flags & DESC_F_INDIRECT and length >= MANY * DESCRIPTOR_SIZE:
            chain = self._table_at_once(head, address, length, flags)
        if chain is None:
            chain = self._sorted(head, self._walk(address, length, flags, following))
        state.next_avail = next_avail + 1 & 0xFFFF
        return chain

    def unpop(self, chains: Iterable[Chain]) -> None:
        """Leave the buffers taken last to be taken again."""
        state = self._state
        if state.ready:
            state.next_avail = state.next_avail - len(list(chains)) & 0xFFFF

    def _walk(self, address: int, length: int, flags: int, following: int) -> list[Part]:
        """The descriptors of a chain, from its first one on; each is read once (2.7.5, 2.7.5.3). Raises QueueError."""
        parts: list[Part] = []
        table, base = self._table, 0
        indirect = False
        limit = entries = self._state.size
        while True:
            if flags & DESC_F_INDIRECT:
                if indirect:
                    raise QueueError("indirect descriptor in an indirect table")
                indirect = True
                table, base, entries = self._indirect_table(address, length, flags)
                # 2.7.5.3.1 bounds it by the queue size "of the device", which may be more than the driver's.
                limit, following = self.max_size, 0
            else:
                parts.append((address, length, flags))
                if not flags & DESC_F_NEXT:
                    return parts
                if following >= entries:
                    raise QueueError(f"descriptor {following} of {entries}")
            if len(parts) >= limit:
                raise QueueError(f"descriptor chain is longer than {limit}")
            address, length, flags, following = _descriptor(table, base + DESCRIPTOR_SIZE * following)

    def _table_at_once(self, head: int, address: int, length: int, flags: int) -> LongChain | None:
        """The buffer of an indirect table; None if it is not one entry after the other. Raises QueueError."""
        whole, base, entries = self._indirect_table(address, length, flags)
        if entries > self.max_size:
            return None
        table = bytes(whole[base : base + length])
        marks = table[12::DESCRIPTOR_SIZE]
        if marks[-1]:
            readable = marks.count(_NEXT)
            wanted = _NEXT * readable + _NEXT_WRITE * (entries - readable - 1) + _WRITE
        else:
            readable = entries
            wanted = _NEXT * (entries - 1) + b"\0"
        following = array("H", table)[7::8]
        following[-1] = entries
        if marks != wanted or following != _following()[:entries] or any(table[13::DESCRIPTOR_SIZE]):
            return None
        return self._sorted_at_once(head, table, readable)

    def push_all(self, chains: Iterable[tuple[Chain, int]], tell: bool = True) -> None:
        """Give ``chains`` back."""
        state = self._state
        if not state.ready:
            return
        elements = self._used_elements
        mask = state.size - 1
        before = after = state.next_used
        for chain, written in chains:
            slot = 2 * (after & mask)
            elements[slot] = chain.head
            elements[slot + 1] = written & 0xFFFFFFFF
            after += 1
        if not ORDERED_HOST:
            with self._fence:
                pass  # the entries, and the data, before the index
        state.unsignalled += after - before
        state.next_used = self._used[_INDEX] = after & 0xFFFF
        if tell:
            self.announce()

    def announce(self) -> None:
        """Tell the engine of what was written."""
        if self._state.ready:
            self._memory.wrote(self._state.device, self._used_bytes)

    def should_interrupt(self) -> bool:
        """Whether the driver wants to hear of what was given back since the last call (2.7.7)."""
        state = self._state
        count = state.unsignalled
        if not state.ready or not count:
            return False
        state.unsignalled = 0
        with self._fence:
            pass  # our index is visible before we look whether the driver waits
        if state.event_idx:
            event = self._avail[_ENTRIES + state.size]
            return state.next_used - event - 1 & 0xFFFF < count
        return not self._avail[_FLAGS] & AVAIL_F_NO_INTERRUPT

    def suppress_notifications(self, tell: bool = True) -> None:
        """Tell the driver that it need not notify (2.7.10)."""
        state = self._state
        if state.ready and not state.event_idx:
            self._used[_FLAGS] = USED_F_NO_NOTIFY
            if tell:
                self.announce()

    def request_notification(self, tell: bool = True) -> bool:
        """Ask to be notified of the next buffer; True if there is one already. Raises QueueError."""
        state = self._state
        if not state.ready:
            return False
        if state.event_idx:
            self._used[_ENTRIES + 4 * state.size] = state.next_avail
        else:
            self._used[_FLAGS] = 0
        if tell:
            self.announce()
        with self._fence:
            pass  # the driver sees the wish before we look for the last time
        return self._available() > 0
