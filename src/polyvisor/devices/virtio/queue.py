"""The split virtqueue (Virtual I/O Device 1.2, section 2.7), with every number from the guest checked."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from polyvisor.engine.memory import BusError, Memory

MAX_SIZE = 256

_DESCRIPTOR = struct.Struct("<QIHH")
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_NO_INTERRUPT = 1  # in avail.flags
_MASK = 0xFFFF


class QueueError(Exception):
    """The driver broke the queue's rules; the device needs a reset."""


@dataclass
class QueueState:
    """What the driver set up, and how far the device is."""

    size: int = MAX_SIZE
    ready: bool = False
    descriptors: int = 0
    available: int = 0
    used: int = 0
    next_available: int = 0
    next_used: int = 0
    event_index: bool = False
    indirect: bool = False


@dataclass(frozen=True)
class Chain:
    """One request: buffers (address, length) that the device reads, and those it writes."""

    head: int
    readable: tuple[tuple[int, int], ...]
    writable: tuple[tuple[int, int], ...]

    @property
    def writable_length(self) -> int:
        return sum(length for _, length in self.writable)


class Queue:
    """One virtqueue of a device, in the memory of its machine."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.state = QueueState()

    def reset(self) -> None:
        self.state = QueueState()

    def enable(self) -> None:
        """Check what the driver set up. Raises QueueError."""
        state = self.state
        size = state.size
        if not 1 <= size <= MAX_SIZE or size & (size - 1):
            raise QueueError(f"queue size {size}")
        areas = (
            (state.descriptors, 16, 16 * size),
            (state.available, 2, 6 + 2 * size),
            (state.used, 4, 6 + 8 * size),
        )
        for address, alignment, length in areas:
            if address % alignment or not self.memory.is_ram(address, length):
                raise QueueError(f"queue area of {length} bytes at {address:#x}")
        state.ready = True

    def _u16(self, address: int) -> int:
        try:
            return int.from_bytes(self.memory.read(address, 2), "little")
        except BusError as error:
            raise QueueError(str(error)) from None

    def pop(self) -> Chain | None:
        """The next request, if there is one. Raises QueueError."""
        state = self.state
        if not state.ready:
            return None
        index = self._u16(state.available + 2)
        waiting = (index - state.next_available) & _MASK
        if waiting == 0:
            if not state.event_index:
                return None
            # Ask to be told of the next one, and look once more: it may have come in between.
            self._write_u16(state.used + 4 + 8 * state.size, state.next_available)
            if self._u16(state.available + 2) == state.next_available:
                return None
            waiting = (self._u16(state.available + 2) - state.next_available) & _MASK
        if waiting > state.size:
            raise QueueError(f"{waiting} requests in a queue of {state.size}")
        head = self._u16(state.available + 4 + 2 * (state.next_available % state.size))
        state.next_available = (state.next_available + 1) & _MASK
        return self._chain(head)

    def _chain(self, head: int) -> Chain:
        state = self.state
        table, count, index, inside = state.descriptors, state.size, head, False
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        for _ in range(MAX_SIZE + 1):
            if index >= count:
                raise QueueError(f"descriptor {index} of {count}")
            address, length, flags, following = self._descriptor(table + 16 * index)
            if flags & _INDIRECT:
                if inside or not state.indirect or flags & _NEXT:
                    raise QueueError("an indirect table where none may be")
                if length == 0 or length % 16 or length // 16 > MAX_SIZE or not self.memory.is_ram(address, length):
                    raise QueueError(f"an indirect table of {length} bytes at {address:#x}")
                table, count, index, inside = address, length // 16, 0, True
                continue
            if length and not self.memory.is_ram(address, length):
                raise QueueError(f"a buffer of {length} bytes at {address:#x}")
            if flags & _WRITE:
                writable.append((address, length))
            elif writable:
                raise QueueError("a readable buffer after a writable one")
            else:
                readable.append((address, length))
            if not flags & _NEXT:
                return Chain(head, tuple(readable), tuple(writable))
            index = following
        raise QueueError("a chain longer than the queue")

    def _descriptor(self, address: int) -> tuple[int, int, int, int]:
        try:
            found: tuple[int, int, int, int] = _DESCRIPTOR.unpack(self.memory.read(address, 16))
            return found
        except BusError as error:
            raise QueueError(str(error)) from None

    def _write_u16(self, address: int, value: int) -> None:
        self.memory.write(address, value.to_bytes(2, "little"))

    def push(self, chain: Chain, written: int) -> bool:
        """Give a request back with so many bytes written; gives whether the driver wants an interrupt."""
        state = self.state
        entry = state.used + 4 + 8 * (state.next_used % state.size)
        self.memory.write(entry, struct.pack("<II", chain.head, written))
        before = state.next_used
        state.next_used = (before + 1) & _MASK
        self._write_u16(state.used + 2, state.next_used)
        if state.event_index:
            # 2.7.10: interrupt if the index passed what the driver waits for.
            event = self._u16(state.available + 4 + 2 * state.size)
            return (state.next_used - event - 1) & _MASK < (state.next_used - before) & _MASK
        return not self._u16(state.available) & _NO_INTERRUPT
