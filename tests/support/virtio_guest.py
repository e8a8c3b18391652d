"""A virtio driver of all queues of a device, in memory that notices what the device should not touch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from polyvisor.devices.lines import NullLine
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import transport
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.mmio import VirtioMmio
from polyvisor.devices.virtio.queue import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Chain, VirtQueue
from polyvisor.engine.memory import Memory, Ram

# Two areas of RAM that the driver uses, at numbers not met by chance and whose pages have 32-bit numbers; and canaries
# at numbers unlike them, which no descriptor names.
AREA = 0x1_0000
RINGS = 0x6B5_A3C0_0000
TABLES = RINGS + 0xA000
DATA = 0x6B5_A3E0_0000
CANARIES = (0x1D2_7E96_0000, 0xE91_384D_0000)
RING_STRIDE = 0x1000
AVAIL_AT = 0x400
USED_AT = 0x500
MOST_QUEUES = 10
MOST_ENTRIES = 64

_DESCRIPTOR = struct.Struct("<QIHH")
_PATTERN = bytes(range(1, 252))


class HungDevice(AssertionError):  # noqa: N818
    """The device did more with memory in one operation than any operation should need."""


class WatchedMemory(Memory):
    """Counts accesses and looks at rings, of which there may be ``most_steps`` while ``steps`` is not set to 0."""

    steps = 0
    most_steps = 2_000_000

    def count(self) -> None:
        self.steps += 1
        if self.steps > self.most_steps:
            raise HungDevice(f"{self.steps} accesses to memory in one operation")

    def _find(self, address: int, length: int) -> tuple[Ram, int]:
        self.count()
        return super()._find(address, length)


class Guest:
    """A device on virtio-mmio, its memory, and what a driver does. Rings are at their usual places after :meth:`start`.

    For another transport override what is under "Transport".
    """

    def __init__(self, device: VirtioDevice, size: int = 16) -> None:
        """``size``: entries of each queue."""
        assert len(device.queue_sizes) <= MOST_QUEUES and size <= MOST_ENTRIES
        self.device = device
        self.size = size
        self.memory = WatchedMemory()
        self.areas = {base: self.memory.add_ram(base, AREA) for base in (RINGS, DATA, *CANARIES)}
        self._canary = (_PATTERN * (AREA // len(_PATTERN) + 1))[:AREA]
        for base in CANARIES:
            self.areas[base].buffer[:] = self._canary
        self.written: list[tuple[int, int]] = []
        self.memory.on_write = lambda address, length: self.written.append((address, length))
        self.connect()
        self.forget()

    def check_canaries(self) -> None:
        """Nothing was written where no buffer is."""
        for base in CANARIES:
            assert self.areas[base].buffer[:] == self._canary, f"the device wrote into {base:#x}"

    def watch_writes(
        self, popped: Callable[[int, Chain], None], may_write: Callable[[int, int], bool]
    ) -> None:
        """From now on, writing elsewhere than in used rings and the writable parts of buffers is an AssertionError.

        ``popped(queue, chain)`` is told of each buffer when the device takes it; ``may_write(address, length)`` says
        what else the device may change.
        """
        named: dict[tuple[int, int], list[tuple[int, int]]] = {}

        def watch(index: int, queue: VirtQueue) -> None:
            pop = queue.pop

            def watched() -> Chain | None:
                self.memory.count()
                chain = pop()
                if chain is not None:
                    named[index, chain.head] = chain.writable
                    popped(index, chain)
                return chain

            queue.pop = watched  # type: ignore[method-assign]

        def check(address: int, length: int) -> None:
            self.written.append((address, length))
            for queue in queues:
                state = queue.state
                if state.device <= address and address + length <= state.device + 6 + 8 * state.size:
                    return
            for parts in reversed(named.values()):
                for start, size in parts:
                    if start <= address and address + length <= start + size:
                        return
            text = f"the device wrote {length:#x} bytes at {address:#x}, where there is no buffer"
            assert may_write(address, length), text

        queues = self.mmio.queues
        for index, queue in enumerate(queues):
            watch(index, queue)
        self.memory.on_write = check

    def close(self) -> None:
        self.device.close()
        self.memory.close()

    # Transport

    def connect(self) -> None:
        self.mmio = VirtioMmio(self.memory, NullLine(), self.device)

    def reg(self, offset: int) -> int:
        return self.mmio.read(offset, 4)

    def set(self, offset: int, value: int) -> None:
        self.memory.steps = 0
        self.mmio.write(offset, 4, value)

    def set_status(self, value: int) -> None:
        self.set(t.STATUS, value)

    def status(self) -> int:
        return self.reg(t.STATUS)

    def offered(self) -> int:
        features = 0
        for word in range(2):
            self.set(t.DEVICE_FEATURES_SEL, word)
            features |= self.reg(t.DEVICE_FEATURES) << 32 * word
        return features

    def set_features(self, features: int) -> None:
        for word in range(2):
            self.set(t.DRIVER_FEATURES_SEL, word)
            self.set(t.DRIVER_FEATURES, features >> 32 * word & 0xFFFFFFFF)

    def set_queue(self, index: int, size: int, desc: int, avail: int, used: int) -> None:
        """Set up and enable a queue."""
        self.set(t.QUEUE_SEL, index)
        self.set(t.QUEUE_NUM, size)
        for low, address in ((t.QUEUE_DESC_LOW, desc), (t.QUEUE_DRIVER_LOW, avail), (t.QUEUE_DEVICE_LOW, used)):
            self.set(low, address & 0xFFFFFFFF)
            self.set(low + 4, address >> 32)
        self.set(t.QUEUE_READY, 1)

    def kick(self, queue: int) -> None:
        self.set(t.QUEUE_NOTIFY, queue)

    def ack(self) -> int:
        """Acknowledge all interrupts; returns which there were."""
        status = self.reg(t.INTERRUPT_STATUS)
        self.set(t.INTERRUPT_ACK, status)
        return status

    def config(self, offset: int, size: int) -> int:
        return self.mmio.read(t.CONFIG + offset, size)

    def set_config(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(t.CONFIG + offset, size, value)

    # A driver's life

    @property
    def needs_reset(self) -> bool:
        return bool(self.status() & transport.DEVICE_NEEDS_RESET)

    def negotiate(self, features: int) -> bool:
        self.set_status(0)
        self.set_status(transport.ACKNOWLEDGE)
        self.set_status(transport.ACKNOWLEDGE | transport.DRIVER)
        self.set_features(features)
        self.set_status(transport.ACKNOWLEDGE | transport.DRIVER | transport.FEATURES_OK)
        return bool(self.status() & transport.FEATURES_OK)

    def forget(self) -> None:
        """The rings are empty."""
        count = len(self.device.queue_sizes)
        self.avail = [0] * count
        self.seen = [0] * count
        self._free = [0] * count
        self._next_data = 0
        self._next_own = [0] * count

    def start(self, features: int | None = None, size: int | None = None) -> None:
        """Reset, negotiate (None: all that is offered), set up all queues and go."""
        assert self.negotiate(self.offered() if features is None else features)
        self.set_up_queues(size)
        self.set_status(transport.ACKNOWLEDGE | transport.DRIVER | transport.FEATURES_OK | transport.DRIVER_OK)

    def set_up_queues(self, size: int | None = None) -> None:
        self.size = size or self.size
        self.poke(RINGS, bytes(TABLES - RINGS))
        self.forget()
        for index, most in enumerate(self.device.queue_sizes):
            at = self.ring(index)
            self.set_queue(index, min(self.size, most), at, at + AVAIL_AT, at + USED_AT)

    def ring(self, queue: int) -> int:
        """The address of a queue's descriptors."""
        return RINGS + queue * RING_STRIDE

    # Memory and rings; no notice is taken of these writes

    def poke(self, address: int, data: bytes) -> None:
        """Write, where there is an area for the guest to use."""
        for base in (RINGS, DATA):
            offset = address - base
            if 0 <= offset < AREA:
                data = data[: AREA - offset]
                self.areas[base].buffer[offset : offset + len(data)] = data

    def peek(self, address: int, length: int) -> bytes:
        base = RINGS if RINGS <= address < RINGS + AREA else DATA
        return self.areas[base].buffer[address - base : address - base + length]

    def _u16(self, address: int) -> int:
        return int.from_bytes(self.peek(address, 2), "little")

    def space(self, length: int) -> int:
        """An address for a buffer, another one each time."""
        if self._next_data + length > AREA:
            self._next_data = 0
        address = DATA + self._next_data
        self._next_data += -(-length // 16) * 16
        return address

    def own_space(self, queue: int, length: int) -> int:
        """The same in a part of the area that is the queue's own, so that a buffer that waits long is left alone."""
        part = AREA // MOST_QUEUES & ~15
        if length > part:
            return self.space(length)
        if self._next_own[queue] + length > part:
            self._next_own[queue] = 0
        address = DATA + queue * part + self._next_own[queue]
        self._next_own[queue] += -(-length // 16) * 16
        return address

    def chain(self, queue: int, segments: Sequence[tuple[int, int, bool]], first: int) -> None:
        """Descriptors for (address, length, writable) from entry ``first`` on, round the table."""
        at = self.ring(queue)
        last = len(segments) - 1
        for i, (address, length, writable) in enumerate(segments):
            flags = writable * DESC_F_WRITE | (i < last) * DESC_F_NEXT
            index = (first + i) % self.size
            following = (index + 1) % self.size
            self.poke(at + 16 * index, _DESCRIPTOR.pack(address, length, flags, following))

    def indirect(self, queue: int, segments: Sequence[tuple[int, int, bool]], head: int, table: int) -> None:
        """A table of descriptors at ``table``, and the descriptor ``head`` that leads to it."""
        last = len(segments) - 1
        data = b"".join(
            _DESCRIPTOR.pack(address, length, writable * DESC_F_WRITE | (i < last) * DESC_F_NEXT, i + 1 & 0xFFFF)
            for i, (address, length, writable) in enumerate(segments)
        )
        self.poke(table, data)
        self.poke(self.ring(queue) + 16 * head, _DESCRIPTOR.pack(table, len(data), DESC_F_INDIRECT, 0))

    def offer(self, queue: int, head: int) -> None:
        at = self.ring(queue) + AVAIL_AT
        index = self.avail[queue]
        self.poke(at + 4 + 2 * (index % self.size), head.to_bytes(2, "little"))
        self.avail[queue] = index = index + 1 & 0xFFFF
        self.poke(at + 2, index.to_bytes(2, "little"))

    def used(self, queue: int) -> list[tuple[int, int]]:
        """The entries used since the last call: (head, written)."""
        at = self.ring(queue) + USED_AT
        found = []
        while self.seen[queue] != self._u16(at + 2):
            raw = self.peek(at + 4 + 8 * (self.seen[queue] % self.size), 8)
            found.append((int.from_bytes(raw[:4], "little"), int.from_bytes(raw[4:], "little")))
            self.seen[queue] = self.seen[queue] + 1 & 0xFFFF
        return found

    # Whole requests

    def post(self, queue: int, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> tuple[int, list[int]]:
        """Make a buffer available, without a notification; gives its head and where its writable parts are."""
        segments = []
        for data in readable:
            segments.append((self.own_space(queue, len(data)), len(data), False))
            self.poke(segments[-1][0], data)
        places = [self.own_space(queue, length) for length in writable]
        segments += [(place, length, True) for place, length in zip(places, writable, strict=True)]
        head = self._free[queue]
        self._free[queue] = (head + len(segments)) % self.size
        self.chain(queue, segments, head)
        self.offer(queue, head)
        return head, places

    def request(self, queue: int, readable: Sequence[bytes] = (), writable: Sequence[int] = ()) -> bytes:
        """One buffer there and back; gives what the device wrote, from the start of the writable part."""
        head, places = self.post(queue, readable, writable)
        self.kick(queue)
        ((found, written),) = self.used(queue)
        assert found == head
        data = b"".join(self.peek(place, length) for place, length in zip(places, writable, strict=True))
        return data[:written]
