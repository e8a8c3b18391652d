"""A driver of the network device: three queues of the driver of the other tests, and a wire to send and listen on."""

from __future__ import annotations

import struct
from itertools import pairwise

from virtio_driver import BASE, FULL, Driver

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.net import NetDevice
from polyvisor.devices.virtio.queue import DESC_F_NEXT, DESC_F_WRITE
from polyvisor.network.frame import EVERYTHING, Frame
from polyvisor.network.port import Port

MAC = "52:54:00:00:00:01"
HEADER = struct.Struct("<BBHHHHH")
RX, TX, CONTROL = range(3)
BUFFERS = BASE + 0x40000
SPACE = 0x40000


class Wire(Port):
    """Remembers what the machine sends."""

    takes = EVERYTHING

    def __init__(self) -> None:
        super().__init__("wire")
        self.frames: list[Frame] = []
        self.closed = False

    def _send(self, frame: Frame) -> None:
        self.frames.append(frame.kept())

    def close(self) -> None:
        super().close()
        self.closed = True


class Ring:
    """One queue's rings, in direct descriptors."""

    def __init__(self, driver: NetDriver, index: int, size: int) -> None:
        self.driver, self.index, self.size = driver, index, size
        self.table = BASE + 0x1000 + index * 0x8000
        self.avail = self.table + 0x3000
        self.used_ring = self.table + 0x4000
        self.avail_idx = self.seen = self.next = 0
        driver.memory.write(self.table, bytes(0x6000))
        driver.set(t.QUEUE_SEL, index)
        driver.set(t.QUEUE_NUM, size)
        for low, address in (
            (t.QUEUE_DESC_LOW, self.table), (t.QUEUE_DRIVER_LOW, self.avail), (t.QUEUE_DEVICE_LOW, self.used_ring)
        ):
            driver.set(low, address & 0xFFFFFFFF)
            driver.set(low + 4, address >> 32)
        driver.set(t.QUEUE_READY, 1)

    def offer(self, parts: list[tuple[int, int, bool]]) -> int:
        """Make a buffer of (address, length, writable) available; gives its head."""
        head = self.next
        for i, (address, length, writable) in enumerate(parts):
            slot = (head + i) % self.size
            more = i + 1 < len(parts)
            flags = (DESC_F_WRITE if writable else 0) | (DESC_F_NEXT if more else 0)
            self.driver.put(self.table + 16 * slot, "QIHH", address, length, flags, (slot + 1) % self.size)
        self.next = (head + len(parts)) % self.size
        self.driver.put(self.avail + 4 + 2 * (self.avail_idx % self.size), "H", head)
        self.avail_idx = (self.avail_idx + 1) & 0xFFFF
        self.driver.put(self.avail + 2, "H", self.avail_idx)
        return head

    def kick(self) -> None:
        self.driver.set(t.QUEUE_NOTIFY, self.index)

    def used(self) -> list[tuple[int, int]]:
        found = []
        while self.seen != self.driver.get(self.used_ring + 2, "H"):
            at = self.used_ring + 4 + 8 * (self.seen % self.size)
            found.append((self.driver.get(at, "I"), self.driver.get(at + 4, "I")))
            self.seen = (self.seen + 1) & 0xFFFF
        return found

    def wants_kick(self) -> bool:
        """Whether the device wants to hear of the buffer made available last (2.7.10, with EVENT_IDX)."""
        return self.driver.get(self.used_ring + 4 + 8 * self.size, "H") == (self.avail_idx - 1) & 0xFFFF


class NetDriver(Driver):
    """``own``: the features to accept, all by default."""

    def __init__(self, own: int | None = None, size: int = 64, **options: object) -> None:
        self.port = Wire()
        device = NetDevice(self.port, MAC, **options)  # type: ignore[arg-type]
        self.net = device
        self.ring_size = size
        super().__init__(device, FULL, size, own)

    def set_up_queue(self, *places: int) -> None:
        self.rings = [Ring(self, index, min(self.ring_size, 64 if index == CONTROL else 256)) for index in range(3)]
        self.avail_idx = self.seen = 0
        self.place = 0

    def room(self, length: int, *, kick: bool = False) -> tuple[int, int]:
        """Offer a receive buffer; gives its address and length."""
        address = BUFFERS + self.place
        self.place = (self.place + length + 64) % (SPACE - 0x12000)
        self.rings[RX].offer([(address, length, True)])
        if kick:
            self.rings[RX].kick()
        return address, length

    def transmit(self, frame: bytes, header: bytes = bytes(12), cuts: tuple[int, ...] = ()) -> None:
        data = header + frame
        address = BUFFERS + SPACE
        self.memory.write(address, data)
        bounds = [0, *cuts, len(data)]
        self.rings[TX].offer([(address + a, b - a, False) for a, b in pairwise(bounds)])
        self.rings[TX].kick()

    def command(self, kind: int, command: int, data: bytes) -> int:
        address = BUFFERS + SPACE
        self.memory.write(address, bytes([kind, command]) + data + b"\xee")
        length = 2 + len(data)
        self.rings[CONTROL].offer([(address, length, False), (address + length, 1, True)])
        self.rings[CONTROL].kick()
        assert self.rings[CONTROL].used()[-1][1] == 1
        return self.memory.read(address + length, 1)[0]
