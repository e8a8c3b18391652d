"""What requests of each virtio device look like, for `device_fuzz`.

A new device is a subclass of `Grammar` with ``name``, `device`, `request` and `works`; the rest where it helps to reach
more of the device. Contents are a little wrong in the end: that is `device_fuzz`'s part.
"""

from __future__ import annotations

import os
import random
import struct
from contextlib import suppress
from typing import Any, ClassVar

from polyvisor.devices.virtio import balloon, console, vsock
from polyvisor.devices.virtio import block as blk
from polyvisor.devices.virtio.balloon import BalloonDevice
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.devices.virtio.console import ConsoleDevice, Port, PortClosed
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, gather, length_of
from polyvisor.devices.virtio.rng import RngDevice
from polyvisor.devices.virtio.vsock import Stream, VsockDevice
from polyvisor.storage.raw import RawFile

from .virtio_guest import AREA, DATA, RINGS, TABLES, Guest

EDGES = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 64, 127, 128, 255, 256, 511, 512, 4096, 0x7FFF, 0x8000, 0xFFFF, 0x10000),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**32, 2**63 - 1, 2**63, 2**64 - 1, DATA, DATA + 64, TABLES, RINGS),
)

Request = tuple[int, list[bytes], list[int]]
"""A queue, the contents of what the device reads, and the lengths of what it writes."""


class Grammar:
    """One device type."""

    name: ClassVar[str]
    fields: ClassVar[tuple[tuple[int, int], ...]] = ()
    """Offset and size of fields of the configuration space."""
    def begin(self, rng: random.Random) -> None:
        self.rng = rng
        self.random = rng.random

    def pick(self, values: Any) -> Any:
        return values[int(self.random() * len(values))]

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def device(self) -> VirtioDevice:
        """A device to attack."""
        raise NotImplementedError

    def request(self, guest: Guest) -> Request:
        """A request that makes sense."""
        raise NotImplementedError

    def works(self, guest: Guest) -> None:
        """AssertionError unless plain requests succeed; the driver has just started, with all features."""
        raise NotImplementedError

    def started(self, guest: Guest, polite: bool) -> None:
        """The driver has started; if ``polite``, do what drivers do first. The queues may be anywhere."""

    def host(self) -> None:
        """Something that the host does with the device."""

    def popped(self, queue: int, chain: Chain) -> None:
        """The device takes this buffer."""

    def may_write(self, address: int, length: int) -> bool:
        """Whether the device may change memory where no buffer to write to is, because it was told in another way."""
        return False

    def check(self) -> None:
        """AssertionError if something outside the device is not as it should be."""

    def field(self) -> tuple[int, int] | None:
        """Offset and size of a field of the configuration space."""
        return self.pick(self.fields) if self.fields else None

    def end(self) -> None:
        """The device was closed."""


class Rng(Grammar):
    name = "rng"

    def device(self) -> VirtioDevice:
        # Bytes that make no address of RAM, should they get into a descriptor.
        return RngDevice(lambda count: b"\x11" * count)

    def request(self, guest: Guest) -> Request:
        return 0, [], [self.pick((1, 16, 64, 256, 5000))]

    def works(self, guest: Guest) -> None:
        assert guest.request(0, [], [32, 8]) == b"\x11" * 40


class Block(Grammar):
    name = "block"
    fields = ((0, 8), (8, 4), (12, 4), (20, 4), (32, 1), (36, 4))
    sectors = 64
    read_only = False

    def device(self) -> VirtioDevice:
        self.fd = os.memfd_create("polyvisor-fuzz")
        os.truncate(self.fd, self.sectors * 512)
        self.first = os.pread(self.fd, self.sectors * 512, 0)
        return BlockDevice(RawFile(os.dup(self.fd), self.sectors * 512, self.read_only), "serial")

    def request(self, guest: Guest) -> Request:
        kind = self.pick((0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 2, 99))
        sector = self.below(self.sectors)
        count = min(self.pick((1, 1, 2, 8)), self.sectors - sector)
        header = struct.pack("<IIQ", kind, 0, sector)
        if kind == blk.T_IN:
            return 0, [header], [count * 512, 1]
        if kind == blk.T_OUT:
            return 0, [header, b"\x22" * 512 * count], [1]
        if kind == blk.T_GET_ID:
            return 0, [header], [20, 1]
        if kind in (blk.T_DISCARD, blk.T_WRITE_ZEROES):
            ranges = self.pick((1, 1, 1, 2, 16, 17)) if kind == blk.T_DISCARD else 1
            flags = self.pick((0, 0, 1))
            data = b"".join(struct.pack("<QII", self.below(self.sectors), count, flags) for _ in range(ranges))
            return 0, [header, data], [1]
        return 0, [header], [1]

    def works(self, guest: Guest) -> None:
        assert guest.request(0, [struct.pack("<IIQ", blk.T_IN, 0, self.sectors - 1)], [512, 1])[-1:] == b"\0"
        # The status alone counts as written.
        flushed = guest.request(0, [struct.pack("<IIQ", blk.T_FLUSH, 0, 0)], [1])
        assert flushed == b"\0"

    def check(self) -> None:
        assert os.fstat(self.fd).st_size == self.sectors * 512
        if self.read_only:
            assert os.pread(self.fd, self.sectors * 512, 0) == self.first

    def end(self) -> None:
        os.close(self.fd)


class ReadOnlyBlock(Block):
    name = "read-only block"
    read_only = True


class Console(Grammar):
    name = "console"
    fields = ((0, 2), (2, 2), (4, 4), (8, 4), (8, 1))

    def device(self) -> VirtioDevice:
        self.echo = Port("echo", on_data=self.send_back, on_open=lambda is_open: None, limit=600)
        self.cross = Port("cross", on_data=self.pass_on, limit=1000)
        self.plain = Port("plain", limit=500)
        self.made = ConsoleDevice([self.echo, self.cross, self.plain], Port(console=True, limit=700))
        return self.made

    def send_back(self, data: bytes) -> None:
        with suppress(PortClosed):
            self.echo.write(data)

    def pass_on(self, data: bytes) -> None:
        with suppress(PortClosed):
            self.plain.write(data[:50])

    def message(self, port: int, event: int, value: int = 1) -> bytes:
        return struct.pack("<IHH", port, event, value)

    def started(self, guest: Guest, polite: bool) -> None:
        if polite and guest.device.link.features & console.F_MULTIPORT:
            for data in self.greeting():
                guest.post(console.CONTROL_TRANSMIT, [data])
                guest.kick(console.CONTROL_TRANSMIT)

    def greeting(self) -> list[bytes]:
        found = [self.message(0xFFFFFFFF, console.DEVICE_READY)]
        for index in range(len(self.made.ports)):
            found += [self.message(index, console.PORT_READY), self.message(index, console.PORT_OPEN)]
        return found

    def request(self, guest: Guest) -> Request:
        queue = self.pick((0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 5, 6, 7, 7, 8, 9, 9))
        if queue == console.CONTROL_TRANSMIT:
            event = self.pick((0, 3, 3, 6, 6, 6, self.below(9)))
            return queue, [self.message(self.below(5), event, self.pick((1, 1, 1, 0)))], []
        if queue % 2:
            return queue, [b"\x33" * self.pick((1, 10, 100, 1000)) for _ in range(1 + self.below(2))], []
        return queue, [], [self.pick((4, 64, 300, 4096))]

    def host(self) -> None:
        chance = self.random()
        port = self.pick(self.made.ports)
        with suppress(TimeoutError, PortClosed):
            if chance < 0.4:
                port.write(b"\x44" * self.pick((1, 20, 300, 2000)), 0)
            elif chance < 0.7:
                self.pick((self.made.console, self.plain)).read(0, self.pick((-1, 10)))
            elif chance < 0.8:
                self.made.resize(self.below(300), self.below(100))
            elif chance < 0.9:
                port.close()
            else:
                port.open()

    def works(self, guest: Guest) -> None:
        for port in self.made.ports:
            port.open()
        # All input that is there from before has to be taken first.
        for data in self.greeting():
            guest.request(console.CONTROL_TRANSMIT, [data])
        for port in (self.made.console, self.plain):
            self.empty(port)
        for index, port in enumerate(self.made.ports):
            queue = 2 * index + 2 if index else 0
            for _ in range(200):
                if not port.waiting:
                    break
                guest.request(queue, [], [4096])
                guest.ack()
            assert not port.waiting
        self.empty(self.plain)
        guest.request(9, [b"from the guest"])
        assert self.plain.read(0) == b"from the guest"
        head, (place,) = guest.post(8, [], [64])
        guest.kick(8)
        self.plain.write(b"from the host", 0)
        assert guest.used(8) == [(head, 13)] and guest.peek(place, 13) == b"from the host"
        guest.post(5, [b"echo"])
        guest.kick(5)
        assert guest.request(4, [], [64]) == b"echo"

    def empty(self, port: Port) -> None:
        with suppress(TimeoutError):
            while True:
                port.read(0)

    def check(self) -> None:
        for port in self.made.ports:
            state = self.made.state.ports[port._index]
            assert len(state.output) <= port.limit and len(state.opens) <= 2
            assert len(state.input) <= 10 * port.limit


class Balloon(Grammar):
    name = "balloon"
    fields = ((0, 4), (4, 4), (8, 4), (12, 4))

    def device(self) -> VirtioDevice:
        self.made = BalloonDevice()
        self.given: set[int] = set()
        return self.made

    def popped(self, queue: int, chain: Chain) -> None:
        if queue == balloon.INFLATE and length_of(chain.readable) <= 4 * balloon.MAX_PAGE_NUMBERS:
            data = gather(self.made.link.memory, chain.readable)
            self.given = {page for (page,) in struct.iter_unpack("<I", data[: len(data) // 4 * 4])}

    def may_write(self, address: int, length: int) -> bool:
        return set(range(address >> 12, address + length >> 12)) <= self.given

    def request(self, guest: Guest) -> Request:
        queue = self.below(5)
        if queue < balloon.STATS:
            page = (DATA >> 12) + self.below(AREA >> 12)
            pages = [page + i for i in range(self.pick((1, 2, 5)))]
            if self.random() < 0.1:
                pages.append(self.pick((0, 2**32 - 1, RINGS >> 12, (DATA + AREA >> 12) + AREA, 12345)))
            return queue, [struct.pack(f"<{len(pages)}I", *pages)], []
        if queue == balloon.STATS:
            tags = range(self.pick((1, 10, 70)))
            return queue, [b"".join(struct.pack("<HQ", tag, self.pick((0, 5, 2**64 - 1))) for tag in tags)], []
        return queue, [], [self.pick((4096, 8192, 100, 5000)) for _ in range(1 + self.below(2))]

    def host(self) -> None:
        if self.random() < 0.5:
            self.made.target = self.below(64) * 4096
        else:
            with suppress(TimeoutError):
                self.made.statistics(0)
        self.made.wait(0)

    def works(self, guest: Guest) -> None:
        page = DATA + AREA - 4096
        guest.poke(page, b"\x55" * 4096)
        guest.request(balloon.INFLATE, [struct.pack("<I", page >> 12)])
        assert guest.peek(page, 4096) == bytes(4096)
        guest.request(balloon.DEFLATE, [struct.pack("<I", page >> 12)])
        guest.post(balloon.STATS, [struct.pack("<HQ", 4, 5)])
        guest.kick(balloon.STATS)
        assert guest.used(balloon.STATS) == []
        with suppress(TimeoutError):
            self.made.statistics(0)
        assert len(guest.used(balloon.STATS)) == 1


class Vsock(Grammar):
    name = "vsock"
    fields = ((0, 8),)
    served = 10

    def device(self) -> VirtioDevice:
        self.made = VsockDevice()
        self.streams: list[Stream] = []
        self.made.listen(self.served, self.streams.append)
        return self.made

    def packet(self, operation: int, port: int, peer_port: int, data: bytes = b"", flags: int = 0) -> bytes:
        room = self.pick((0, 100, 1 << 16, 1 << 18, 2**32 - 1))
        return vsock.HEADER.pack(
            self.made.cid, vsock.HOST_CID, peer_port, port, len(data), vsock.TYPE_STREAM, operation, flags, room, 0
        )

    def request(self, guest: Guest) -> Request:
        queue = self.pick((vsock.RX, vsock.RX, vsock.TX, vsock.TX, vsock.TX, vsock.TX, vsock.EVENT))
        if queue != vsock.TX:
            return queue, [], [self.pick((44, 100, 4096, 20))]
        data = b"\x66" * self.pick((0, 1, 100, 5000)) if self.random() < 0.5 else b""
        port, peer_port = self.served, 50 + self.below(4)
        if self.streams and self.random() < 0.8:
            stream = self.pick(self.streams)
            port, peer_port = stream.port, stream.peer_port
        operation = self.pick((1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 7, self.below(10)))
        header = self.packet(operation, port, peer_port, data, self.below(4))
        return queue, [header, data] if data else [header], []

    def host(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            if len(self.streams) > 8:
                self.streams.pop(0).abort()
            elif self.random() < 0.2 or not self.streams:
                self.streams.append(self.made.open(50 + self.below(4)))
            else:
                stream = self.pick(self.streams)
                self.pick(
                    (
                        lambda: stream.send(b"\x77" * self.pick((1, 500, 5000)), 0),
                        lambda: stream.receive(self.pick((10, 1 << 18)), 0),
                        stream.close,
                    )
                )()

    def works(self, guest: Guest) -> None:
        head, (place,) = guest.post(vsock.RX, [], [64])
        guest.request(vsock.TX, [self.packet(1, self.served, 99)])
        assert guest.used(vsock.RX) == [(head, 44)]
        *_, port, peer_port, length, kind, operation, _, _, _ = vsock.HEADER.unpack(guest.peek(place, 44))
        assert (port, peer_port, length, kind, operation) == (self.served, 99, 0, vsock.TYPE_STREAM, 2)
        guest.request(vsock.TX, [self.packet(5, self.served, 99, b"hello"), b"hello"])
        assert self.streams[-1].receive(10, 0) == b"hello"
        self.streams.clear()


GRAMMARS: dict[str, type[Grammar]] = {
    grammar.name: grammar for grammar in (Rng, Block, ReadOnlyBlock, Console, Balloon, Vsock)
}
