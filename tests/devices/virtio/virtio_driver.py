"""A virtio driver for tests: it builds rings in guest memory and works the registers as section 3.1.1 says."""

from __future__ import annotations

import struct
from collections import defaultdict
from dataclasses import dataclass

import pytest
from pci_registers import PciRegisters

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.device import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
    VirtioDevice,
)
from polyvisor.devices.virtio.mmio import VirtioMmio
from polyvisor.devices.virtio.packed import DESC_F_AVAIL, DESC_F_USED
from polyvisor.devices.virtio.queue import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE
from polyvisor.devices.virtio.transport import DEVICE_NEEDS_RESET
from polyvisor.engine.memory import Memory

BASE = 0x8000_0000
SIZE = 1 << 20
DESC = BASE + 0x1000
AVAIL = BASE + 0x3000
USED = BASE + 0x4000
TABLES = BASE + 0x8000
DATA = BASE + 0x10000

PLAIN = F_VERSION_1
FULL = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC


@dataclass(frozen=True)
class Wiring:
    """The transport, and whether the rings are packed."""

    bus: str = "mmio"
    packed: bool = False

    def __str__(self) -> str:
        return f"{self.bus}-{'packed' if self.packed else 'split'}"


wiring = Wiring()
"""Of all drivers that are made; the fixture of this name sets it."""

WIRINGS = [Wiring(bus, packed) for bus in ("mmio", "pci") for packed in (False, True)]
every_wiring = pytest.mark.parametrize("wiring", WIRINGS, ids=str, indirect=True)


class Wire:
    """An interrupt line that remembers."""

    def __init__(self) -> None:
        self.level = False
        self.changes: list[bool] = []

    def set(self, level: bool) -> None:
        self.level = level
        self.changes.append(level)


def new_memory() -> Memory:
    memory = Memory()
    memory.add_ram(BASE, SIZE)
    return memory


class Driver:
    """Drives queue 0 of ``device``; ``size`` is the queue size it asks for.

    ``mmio`` has the registers of the MMIO transport, whatever the transport. With packed rings, descriptors are kept
    aside by :meth:`desc`, and written to the ring when their chain is offered.
    """

    def __init__(
        self, device: VirtioDevice, features: int = FULL, size: int = 16, own: int | None = None, queue: int = 0
    ) -> None:
        """``own``: the device type's features to accept; None accepts all."""
        self.queue = queue
        self.memory = new_memory()
        self.written: list[tuple[int, int]] = []
        self.memory.on_write = lambda address, length: self.written.append((address, length))
        self.wire = Wire()
        self.device = device
        self.packed = wiring.packed
        connect = PciRegisters if wiring.bus == "pci" else VirtioMmio
        self.mmio = connect(self.memory, self.wire, device, wiring.packed)
        self.size = size
        self.start(features | (device.features if own is None else own))

    def reg(self, offset: int) -> int:
        return self.mmio.read(offset, 4)

    def set(self, offset: int, value: int) -> None:
        self.mmio.write(offset, 4, value)

    def start(self, features: int) -> None:
        self.negotiate(features | (F_RING_PACKED if self.packed else 0))
        self.set_up_queue()
        self.set(t.STATUS, 15)
        assert self.reg(t.STATUS) == 15

    def negotiate(self, features: int) -> bool:
        self.set(t.STATUS, 0)
        assert self.reg(t.STATUS) == 0
        self.set(t.STATUS, 1)
        self.set(t.STATUS, 3)
        for word in range(2):
            self.set(t.DRIVER_FEATURES_SEL, word)
            self.set(t.DRIVER_FEATURES, features >> 32 * word & 0xFFFFFFFF)
        self.set(t.STATUS, 11)
        self.features = features
        return self.reg(t.STATUS) == 11

    def set_up_queue(self, desc: int = DESC, avail: int = AVAIL, used: int = USED) -> None:
        self.memory.write(DESC, bytes(0x6000))
        self.set(t.QUEUE_SEL, self.queue)
        assert self.reg(t.QUEUE_NUM_MAX) >= self.size
        self.set(t.QUEUE_NUM, self.size)
        for low, address in ((t.QUEUE_DESC_LOW, desc), (t.QUEUE_DRIVER_LOW, avail), (t.QUEUE_DEVICE_LOW, used)):
            self.set(low, address & 0xFFFFFFFF)
            self.set(low + 4, address >> 32)
        self.set(t.QUEUE_READY, 1)
        self.avail_idx = 0
        self.seen = 0
        self.aside: dict[int, tuple[int, int, int, int]] = {}
        self.offered: dict[int, list[int]] = defaultdict(list)

    # Rings

    def put(self, address: int, form: str, *values: int) -> None:
        self.memory.write(address, struct.pack("<" + form, *values))

    def get(self, address: int, form: str) -> int:
        value: int = struct.unpack("<" + form, self.memory.read(address, struct.calcsize("<" + form)))[0]
        return value

    def desc(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        if self.packed:
            self.aside[index] = (address, length, flags, following)
        else:
            self.put(DESC + 16 * index, "QIHH", address, length, flags, following)

    def chain(self, parts: list[tuple[int, int, bool]], first: int = 0) -> int:
        """Descriptors from ``first`` on for (address, length, writable); returns the head."""
        for i, (address, length, writable) in enumerate(parts):
            last = i == len(parts) - 1
            flags = (DESC_F_WRITE if writable else 0) | (0 if last else DESC_F_NEXT)
            self.desc(first + i, address, length, flags, 0 if last else first + i + 1)
        return first

    def indirect(self, parts: list[tuple[int, int, bool]], index: int = 0, table: int = TABLES) -> int:
        for i, (address, length, writable) in enumerate(parts):
            last = i == len(parts) - 1
            flags = (DESC_F_WRITE if writable else 0) | (0 if last else DESC_F_NEXT)
            fields = (0, flags) if self.packed else (flags, 0 if last else i + 1)
            self.put(table + 16 * i, "QIHH", address, length, *fields)
        self.desc(index, table, 16 * len(parts), DESC_F_INDIRECT)
        return index

    def offer(self, head: int) -> None:
        if self.packed:
            chain = [self.aside[head]]
            while chain[-1][2] & DESC_F_NEXT:
                chain.append(self.aside[chain[-1][3]])
            self.offered[head].append(len(chain))
            self.publish([(address, length, head, flags) for address, length, flags, _ in chain])
            return
        self.put(AVAIL + 4 + 2 * (self.avail_idx % self.size), "H", head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.put(AVAIL + 2, "H", self.avail_idx)

    def mark(self, position: int) -> int:
        """What makes a descriptor available."""
        return DESC_F_USED if position // self.size % 2 else DESC_F_AVAIL

    def publish(self, descriptors: list[tuple[int, int, int, int]]) -> None:
        """Put address, length, ID and flags of a buffer's descriptors into the packed ring, the first one last."""
        positions = range(self.avail_idx, self.avail_idx + len(descriptors))
        for position, (address, length, ident, flags) in reversed(list(zip(positions, descriptors, strict=True))):
            where = DESC + 16 * (position % self.size)
            self.put(where, "QIH", address, length, ident)
            self.put(where + 14, "H", flags | self.mark(position))
        self.avail_idx += len(descriptors)

    def kick(self) -> None:
        self.set(t.QUEUE_NOTIFY, self.queue)

    def used(self) -> list[tuple[int, int]]:
        """The entries used since the last call: (head, written)."""
        found = []
        while self.packed:
            where = DESC + 16 * (self.seen % self.size)
            flags = self.get(where + 14, "H")
            both = DESC_F_AVAIL | DESC_F_USED
            if flags & both != (0 if self.seen // self.size % 2 else both) or self.seen == self.avail_idx:
                return found
            head = self.get(where + 12, "H")
            found.append((head, self.get(where + 8, "I")))
            assert bool(flags & DESC_F_WRITE) == bool(found[-1][1])
            self.seen += self.offered[head].pop(0)
        while self.seen != self.get(USED + 2, "H"):
            at = USED + 4 + 8 * (self.seen % self.size)
            found.append((self.get(at, "I"), self.get(at + 4, "I")))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def used_event(self, index: int) -> None:
        self.put(AVAIL + 4 + 2 * self.size, "H", index & 0xFFFF)

    def avail_event(self) -> int:
        return self.get(USED + 4 + 8 * self.size, "H")

    def ack(self) -> int:
        """Acknowledge all interrupts; returns what InterruptStatus was."""
        status = self.reg(t.INTERRUPT_STATUS)
        self.set(t.INTERRUPT_ACK, status)
        return status

    @property
    def needs_reset(self) -> bool:
        return bool(self.reg(t.STATUS) & DEVICE_NEEDS_RESET)
