"""A virtio driver of all queues of a device, in memory that notices what the device should not touch."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

from polyvisor.devices.lines import NullLine
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import transport
from polyvisor.devices.virtio.device import F_RING_PACKED, VirtioDevice
from polyvisor.devices.virtio.mmio import VirtioMmio
from polyvisor.devices.virtio.packed import DESC_F_AVAIL, DESC_F_USED
from polyvisor.devices.virtio.queue import (
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    Chain,
    QueueState,
    Segment,
    VirtQueue,
)
from polyvisor.devices.virtio.transport import Transport
from polyvisor.engine.memory import Memory, Ram

from .pci_registers import PciRegisters

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
# A packed ring lies behind the table of descriptors that chains are written to before they are offered.
PACKED_AT = 0x800
DRIVER_EVENT_AT = 0xC00
DEVICE_EVENT_AT = 0xC10
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


class _WatchedQueues(list[VirtQueue]):
    """A transport's queues; ``watch`` is told of those that take the place of others."""

    def __init__(self, queues: Sequence[VirtQueue], watch: Callable[[int, VirtQueue], None]) -> None:
        super().__init__(queues)
        self._watch = watch
        for index, queue in enumerate(queues):
            watch(index, queue)

    def __setitem__(self, index: int, queue: VirtQueue) -> None:  # type: ignore[override]
        super().__setitem__(index, queue)
        self._watch(index, queue)


class Guest:
    """A device on a bus, its memory, and what a driver does. Rings are at their usual places after :meth:`start`.

    ``mmio`` has the registers of the MMIO transport, whatever the transport. Chains are written as for a split ring;
    if the ring is packed, they are put into it when they are offered.
    """

    def __init__(self, device: VirtioDevice, size: int = 16, bus: str = "mmio", packed: bool = False) -> None:
        """``size``: entries of each queue; ``bus``: mmio or pci; ``packed``: the device offers packed rings."""
        self.bus = bus
        self.offers_packed = packed
        self.packed = False
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
        # The buffers that the device has: what it may write to, by queue and name. A driver can use a name twice.
        named: dict[tuple[int, int], list[list[Segment]]] = {}

        def given_back(index: int, chain: Chain) -> None:
            waiting = named.get((index, chain.head), [])
            if waiting:
                waiting.pop(waiting.index(chain.writable) if chain.writable in waiting else 0)

        def watch(index: int, queue: VirtQueue) -> None:
            pop, push_all, unpop, reset = queue.pop, queue.push_all, queue.unpop, queue.reset

            def watched() -> Chain | None:
                self.memory.count()
                chain = pop()
                if chain is not None:
                    named.setdefault((index, chain.head), []).append(chain.writable)
                    popped(index, chain)
                return chain

            def pushed(chains: Iterable[tuple[Chain, int]], tell: bool = True) -> None:
                chains = list(chains)
                push_all(chains, tell)
                for chain, _ in chains:
                    given_back(index, chain)

            def unpopped(chains: Iterable[Chain]) -> None:
                chains = list(chains)
                unpop(chains)
                for chain in chains:
                    given_back(index, chain)

            def forgotten() -> None:
                reset()
                for key in [key for key in named if key[0] == index]:
                    del named[key]

            queue.pop, queue.push_all = watched, pushed  # type: ignore[method-assign]
            queue.unpop, queue.reset = unpopped, forgotten  # type: ignore[method-assign]

        def in_rings(address: int, length: int, state: QueueState) -> bool:
            at, size = state.device, 6 + 8 * state.size
            if state.packed:
                size = 4
                if state.descriptors <= address and address + length <= state.descriptors + 16 * state.size:
                    return True
            return at <= address and address + length <= at + size

        def check(address: int, length: int) -> None:
            self.written.append((address, length))
            if any(in_rings(address, length, queue.state) for queue in queues):
                return
            end = address + length
            parts = sorted(part for buffers in named.values() for buffer in buffers for part in buffer)
            if any(start <= address and end <= start + size for start, size in parts):
                return
            # What was written to neighbours may be told of together.
            at = address
            for start, size in parts:
                if start <= at < start + size:
                    at = start + size
            if at >= end:
                return
            text = f"the device wrote {length:#x} bytes at {address:#x}, where there is no buffer"
            assert may_write(address, length), text

        queues = self.transport._queues = _WatchedQueues(self.transport.queues, watch)
        self.memory.on_write = check

    def close(self) -> None:
        self.device.close()
        self.memory.close()

    # Transport

    def connect(self) -> None:
        self.mmio: VirtioMmio | PciRegisters
        self.transport: Transport
        if self.bus == "pci":
            self.mmio = PciRegisters(self.memory, NullLine(), self.device, self.offers_packed)
            self.transport = self.mmio.transport
        else:
            self.mmio = self.transport = VirtioMmio(self.memory, NullLine(), self.device, self.offers_packed)

    def set_up_bus(self) -> None:
        """Make the registers answer at their usual place."""
        if isinstance(self.mmio, PciRegisters):
            self.memory.steps = 0
            self.mmio.set_up()

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
        self.set_up_bus()
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
        return bool(self.transport._state.status & transport.DEVICE_NEEDS_RESET)

    def negotiate(self, features: int) -> bool:
        self.packed = bool(features & F_RING_PACKED)
        self.set_up_bus()
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
        # Of packed rings: how many entries the buffers with each ID have.
        self._slots: list[dict[int, list[int]]] = [{} for _ in range(count)]

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
            self.set_queue(index, min(self.size, most), *self.places(index))

    def ring(self, queue: int) -> int:
        """The address of the table a queue's chains are written to; of a split ring it is the descriptor area."""
        return RINGS + queue * RING_STRIDE

    def places(self, queue: int) -> tuple[int, int, int]:
        """The usual addresses of the descriptor, driver and device areas."""
        at = self.ring(queue)
        if self.packed:
            return at + PACKED_AT, at + DRIVER_EVENT_AT, at + DEVICE_EVENT_AT
        return at, at + AVAIL_AT, at + USED_AT

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
        data = b""
        for i, (address, length, writable) in enumerate(segments):
            flags = writable * DESC_F_WRITE | (i < last) * DESC_F_NEXT
            fields = (0, flags) if self.packed else (flags, i + 1 & 0xFFFF)
            data += _DESCRIPTOR.pack(address, length, *fields)
        self.poke(table, data)
        self.poke(self.ring(queue) + 16 * head, _DESCRIPTOR.pack(table, len(data), DESC_F_INDIRECT, 0))

    def offer(self, queue: int, head: int) -> None:
        if self.packed:
            self._publish(queue, head)
            return
        at = self.ring(queue) + AVAIL_AT
        index = self.avail[queue]
        self.poke(at + 4 + 2 * (index % self.size), head.to_bytes(2, "little"))
        self.avail[queue] = index = index + 1 & 0xFFFF
        self.poke(at + 2, index.to_bytes(2, "little"))

    def _publish(self, queue: int, head: int) -> None:
        """Put the chain that begins at entry ``head`` of the table into the packed ring, its first descriptor last."""
        table, index = self.ring(queue), head % self.size
        chain: list[tuple[int, int, int]] = []
        while True:
            address, length, flags, index = _DESCRIPTOR.unpack(self.peek(table + 16 * index, 16))
            chain.append((address, length, flags))
            if not flags & DESC_F_NEXT or len(chain) == self.size or index >= self.size:
                break
        first = self.avail[queue]
        for position, (address, length, flags) in reversed(list(enumerate(chain, first))):
            mark = DESC_F_USED if position // self.size % 2 else DESC_F_AVAIL
            flags = flags & ~(DESC_F_AVAIL | DESC_F_USED) | mark
            where = self.places(queue)[0] + 16 * (position % self.size)
            self.poke(where, _DESCRIPTOR.pack(address, length, head & 0xFFFF, flags))
        self._slots[queue].setdefault(head & 0xFFFF, []).append(len(chain))
        self.avail[queue] = (first + len(chain)) % (2 * self.size)

    def _used_packed(self, queue: int) -> list[tuple[int, int]]:
        found = []
        while True:
            position = self.seen[queue]
            where = self.places(queue)[0] + 16 * (position % self.size)
            _, length, head, flags = _DESCRIPTOR.unpack(self.peek(where, 16))
            both = DESC_F_AVAIL | DESC_F_USED
            slots = self._slots[queue].get(head)
            if flags & both != (0 if position >= self.size else both) or not slots:
                return found
            assert bool(flags & DESC_F_WRITE) == bool(length)
            found.append((head, length if flags & DESC_F_WRITE else 0))
            self.seen[queue] = (position + slots.pop(0)) % (2 * self.size)

    def used(self, queue: int) -> list[tuple[int, int]]:
        """The entries used since the last call: (head, written)."""
        if self.packed:
            return self._used_packed(queue)
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
