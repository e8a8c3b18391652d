"""A small driver for virtio devices on the MMIO transport, for tests."""

from __future__ import annotations

import struct

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.transport import VirtioMmio
from polyvisor.engine.memory import Memory

RAM, RAM_SIZE = 0x8000_0000, 1 << 20
DESCRIPTORS, AVAILABLE, USED, BUFFERS = RAM, RAM + 0x1000, RAM + 0x2000, RAM + 0x10000
NEXT, WRITE, INDIRECT = 1, 2, 4


class FakeLine:
    """An interrupt line that remembers its level."""

    level = False

    def set(self, level: bool) -> None:
        self.level = level


class Driver:
    """Sets a device up and gives it requests on queue 0."""

    def __init__(self, device: VirtioDevice | None, size: int = 8) -> None:
        self.memory = Memory()
        self.memory.add_ram(RAM, RAM_SIZE)
        self.line = FakeLine()
        self.mmio = VirtioMmio(self.memory, self.line, device)
        self.size = size
        self.available = self.used = 0

    def write(self, register: int, value: int) -> None:
        self.mmio.write(register, 4, value)

    def read(self, register: int) -> int:
        return self.mmio.read(register, 4)

    def features(self) -> int:
        value = 0
        for half in (0, 1):
            self.write(0x014, half)
            value |= self.read(0x010) << (32 * half)
        return value

    def start(self, features: int | None = None) -> None:
        """Negotiate (all offered features, by default) and set up the queue."""
        for status in (0, 1, 3):
            self.write(0x070, status)
        wanted = self.features() if features is None else features
        for half in (0, 1):
            self.write(0x024, half)
            self.write(0x020, wanted >> (32 * half) & 0xFFFF_FFFF)
        self.write(0x070, 11)
        assert self.read(0x070) == 11
        self.write(0x030, 0)
        self.write(0x038, self.size)
        for register, address in ((0x080, DESCRIPTORS), (0x090, AVAILABLE), (0x0A0, USED)):
            self.write(register, address & 0xFFFF_FFFF)
            self.write(register + 4, address >> 32)
        self.write(0x044, 1)
        self.write(0x070, 15)

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(DESCRIPTORS + 16 * index, struct.pack("<QIHH", address, length, flags, following))

    def offer(self, head: int) -> None:
        """Make a chain available, and notify."""
        self.memory.write(AVAILABLE + 4 + 2 * (self.available % self.size), head.to_bytes(2, "little"))
        self.available = self.available + 1 & 0xFFFF
        self.memory.write(AVAILABLE + 2, self.available.to_bytes(2, "little"))
        self.write(0x050, 0)

    def request(self, outgoing: list[bytes], incoming: list[int]) -> tuple[int, list[bytes]]:
        """A whole request: what was written by the device, and the buffers it could write to."""
        places, at = [], BUFFERS
        buffers = [(data, len(data), 0) for data in outgoing] + [(b"", n, WRITE) for n in incoming]
        for i, (data, length, flags) in enumerate(buffers):
            if data:
                self.memory.write(at, data)
            last = i == len(buffers) - 1
            self.describe(i, at, length, flags | (0 if last else NEXT), i + 1)
            places.append((at, length))
            at += (length + 15) & ~15
        self.offer(0)
        entry = USED + 4 + 8 * (self.used % self.size)
        self.used = self.used + 1 & 0xFFFF
        assert int.from_bytes(self.memory.read(USED + 2, 2), "little") == self.used, "the device did not answer"
        head, written = struct.unpack("<II", self.memory.read(entry, 8))
        assert head == 0
        return written, [self.memory.read(a, n) for a, n in places[len(outgoing) :]]
