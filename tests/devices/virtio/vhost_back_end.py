"""A vhost-user back end for tests, which serves a trivial device on a thread; it can be told to misbehave.

It shares no code with the front end but the numbers' names: messages and rings are read here as the specification says.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from virtio_driver import DATA, Driver

from polyvisor.devices.virtio.vhost_backend import ListeningBackEnd
from polyvisor.devices.virtio.vhost_user import VhostUserDevice

VERSION_1 = 1 << 32
PROTOCOL_FEATURES = 1 << 30
MQ, REPLY_ACK, BACKEND_REQ, CONFIG = 1 << 0, 1 << 3, 1 << 5, 1 << 9


@dataclass
class Region:
    guest: int
    size: int
    user: int
    memory: mmap.mmap


@dataclass
class Ring:
    size: int = 0
    base: int = -1
    descriptors: int = 0
    used: int = 0
    available: int = 0
    kick: int = -1
    call: int = -1
    error: int = -1
    enabled: bool = False
    taken: int = 0
    done: int = 0


@dataclass
class Request:
    """A buffer: host memory that can be read, and that can be written."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]

    def fill(self, data: bytes) -> int:
        at = 0
        for part in self.writable:
            piece = data[at : at + len(part)]
            part[: len(piece)] = piece
            at += len(piece)
        return at


@dataclass
class TestBackEnd:
    """``serve(index, request)`` gives the bytes it wrote, or None to keep it, to be given to :meth:`give_back`."""

    __test__ = False

    path: Path
    serve: Callable[[int, Request], int | None]
    queues: int = 2
    features: int = VERSION_1 | PROTOCOL_FEATURES
    protocol: int = MQ | REPLY_ACK
    config: bytearray = field(default_factory=bytearray)
    spoil: Callable[[int, bytes], bytes | None] = lambda kind, answer: answer
    """What to answer instead of ``answer`` to a message of ``kind``, whole; None: nothing."""
    log: list[tuple[int, int, bytes]] = field(default_factory=list)
    """The messages: kind, flags, payload."""

    def __post_init__(self) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(4)
        self.lock = threading.RLock()
        self.connected = threading.Event()
        self.connection: socket.socket | None = None
        self.channel: socket.socket | None = None
        self.rings: list[Ring] = []
        self.regions: list[Region] = []
        self.closed = False
        self.errors: list[BaseException] = []
        self.thread = threading.Thread(target=self.main, daemon=True)
        self.thread.start()

    # Its life

    def main(self) -> None:
        try:
            while not self.closed:
                try:
                    self.connection, _ = self.listener.accept()
                except OSError:
                    return
                self.rings = [Ring() for _ in range(self.queues)]
                self.connected.set()
                with self.connection:
                    self.session(self.connection)
                self.connected.clear()
                self.drop()
        except BaseException as error:
            self.errors.append(error)
            raise

    def drop(self) -> None:
        for ring in self.rings:
            for fd in (ring.kick, ring.call, ring.error):
                if fd >= 0:
                    os.close(fd)
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        self.rings, self.regions = [], []

    def die(self) -> None:
        """End the connection; the next one is accepted."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.closed = True
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.die()
        self.thread.join(20)
        assert not self.thread.is_alive() and not self.errors, self.errors

    def session(self, connection: socket.socket) -> None:
        while True:
            kicks = {ring.kick: i for i, ring in enumerate(self.rings) if ring.kick >= 0 and ring.enabled}
            ready, _, _ = select.select([connection, *kicks], [], [])
            for fd in ready:
                if fd in kicks:
                    os.eventfd_read(fd)
                    with self.lock:
                        self.run(kicks[fd])
            if connection in ready:
                try:
                    data, fds, _, _ = socket.recv_fds(connection, 12, 8)
                except ConnectionResetError:
                    return
                while data and len(data) < 12:
                    data += connection.recv(12 - len(data))
                if not data:
                    return
                kind, flags, size = struct.unpack("=III", data)
                payload = connection.recv(size, socket.MSG_WAITALL) if size else b""
                with self.lock:
                    self.log.append((kind, flags, payload))
                    answer = self.message(kind, payload, fds)
                if answer is None and flags & 8:
                    answer = bytes(8)
                if answer is not None:
                    whole = struct.pack("=III", kind, 5, len(answer)) + answer
                    spoiled = self.spoil(kind, whole)
                    if spoiled is not None:
                        try:
                            connection.sendall(spoiled)
                        except OSError:
                            return

    def message(self, kind: int, payload: bytes, fds: list[int]) -> bytes | None:
        """Gives the answer of a message that has one."""
        number = struct.unpack("=Q", payload)[0] if len(payload) == 8 else 0
        pair = struct.unpack("=II", payload) if len(payload) == 8 else (0, 0)
        if kind == 1:
            return struct.pack("=Q", self.features)
        if kind == 2:
            self.agreed = number
            if not number & PROTOCOL_FEATURES:
                for ring in self.rings:
                    ring.enabled = True
        elif kind == 5:
            self.regions = []
            count = pair[0] if len(payload) == 8 else struct.unpack_from("=I", payload)[0]
            assert len(fds) == count and len(payload) == 8 + 32 * count
            for i, fd in enumerate(fds):
                guest, size, user, offset = struct.unpack_from("=QQQQ", payload, 8 + 32 * i)
                self.regions.append(Region(guest, size, user, mmap.mmap(fd, size, offset=offset)))
                os.close(fd)
        elif kind == 8:
            self.rings[pair[0]].size = pair[1]
        elif kind == 9:
            index, flags, descriptors, used, available, _ = struct.unpack("=IIQQQQ", payload)
            assert not flags and not descriptors % 16 and not used % 4 and not available % 2
            ring = self.rings[index]
            ring.descriptors, ring.used, ring.available = descriptors, used, available
        elif kind == 10:
            ring = self.rings[pair[0]]
            ring.base = ring.taken = pair[1]
            ring.done = pair[1]
        elif kind == 11:
            ring = self.rings[pair[0]]
            if ring.kick >= 0:
                os.close(ring.kick)
            ring.kick = -1
            return struct.pack("=II", pair[0], ring.taken)
        elif kind in (12, 13, 14):
            name = {12: "kick", 13: "call", 14: "error"}[kind]
            ring = self.rings[number & 0xFF]
            if getattr(ring, name) >= 0:
                os.close(getattr(ring, name))
            [fd] = fds
            setattr(ring, name, fd)
        elif kind == 15:
            return struct.pack("=Q", self.protocol)
        elif kind == 16:
            assert not number & ~self.protocol
        elif kind == 17:
            return struct.pack("=Q", self.queues)
        elif kind == 18:
            self.rings[pair[0]].enabled = bool(pair[1])
        elif kind == 21:
            [fd] = fds
            self.channel = socket.socket(fileno=fd)
        elif kind == 24:
            offset, size, _ = struct.unpack_from("=III", payload)
            return payload[:12] + bytes(self.config[offset : offset + size])
        elif kind == 25:
            offset, size, _ = struct.unpack_from("=III", payload)
            self.config[offset : offset + size] = payload[12:]
        else:
            assert kind == 3, kind
        return None

    # Rings

    def at(self, address: int, length: int, user: bool = False) -> memoryview:
        for region in self.regions:
            start = region.user if user else region.guest
            if start <= address and address + length <= start + region.size:
                return memoryview(region.memory)[address - start : address - start + length]
        raise AssertionError(f"{length} bytes at {address:#x} are in no region")

    def word(self, address: int, value: int | None = None) -> int:
        view = self.at(address, 2, user=True).cast("H")
        if value is not None:
            view[0] = value & 0xFFFF
        return view[0]

    def run(self, index: int) -> None:
        ring = self.rings[index]
        while ring.taken != self.word(ring.available + 2):
            head = self.word(ring.available + 4 + 2 * (ring.taken % ring.size))
            ring.taken = ring.taken + 1 & 0xFFFF
            request = Request(head, [], [])
            following: int | None = head
            while following is not None:
                where = self.at(ring.descriptors + 16 * following, 16, user=True)
                address, length, flags, after = struct.unpack("<QIHH", where)
                assert length and not flags & ~3
                (request.writable if flags & 2 else request.readable).append(self.at(address, length))
                following = after if flags & 1 else None
            written = self.serve(index, request)
            if written is not None:
                self.give_back(index, request.head, written)

    def give_back(self, index: int, head: int, written: int, count: int = 1, call: bool = True) -> None:
        """An entry in the used ring; the index goes on by ``count``."""
        ring = self.rings[index]
        entry = self.at(ring.used + 4 + 8 * (ring.done % ring.size), 8, user=True)
        entry[:] = struct.pack("<II", head, written)
        ring.done = ring.done + count & 0xFFFF
        self.word(ring.used + 2, ring.done)
        if call:
            self.call(index)

    def call(self, index: int) -> None:
        os.eventfd_write(self.rings[index].call, 1)

    def report_error(self, index: int) -> None:
        os.eventfd_write(self.rings[index].error, 1)

    def change_config(self, config: bytes, need_reply: bool = True) -> bytes:
        """Say that the configuration changed; gives what is replied."""
        assert self.channel is not None
        with self.lock:
            self.config[:] = config
        self.channel.sendall(struct.pack("=III", 2, 9 if need_reply else 1, 0))
        return self.channel.recv(20) if need_reply else b""


class Echo(VhostUserDevice):
    """Its queues do what the back end likes."""

    device_id = 42
    sizes: ClassVar[tuple[int, ...]] = (16, 16)

    def __init__(self, path: Path, config_size: int = 0, sizes: tuple[int, ...] = sizes) -> None:
        super().__init__(ListeningBackEnd(path), sizes, config_size)


def reverse(index: int, request: Request) -> int:
    """Give what was read, backwards."""
    return request.fill(b"".join(bytes(part) for part in request.readable)[::-1])


def eventually(true: Callable[[], object]) -> None:
    """Wait until ``true()`` is; fails after long."""
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.002)


def answers(driver: Driver, count: int = 1) -> list[tuple[int, int]]:
    """Wait for ``count`` used buffers."""
    found: list[tuple[int, int]] = []
    eventually(lambda: len(found) >= count or found.extend(driver.used()) or len(found) >= count)
    return found


Make = Callable[..., TestBackEnd]
"""The fixture ``back_end``."""


def request(driver: Driver, data: bytes, room: int, first: int = 0, at: int = DATA) -> None:
    """Offer ``data`` in two parts, and room in two."""
    driver.memory.write(at, data)
    half = len(data) // 2
    parts = [(at, half, False), (at + half, len(data) - half, False)]
    driver.offer(driver.chain([*parts, (at + 0x800, 1, True), (at + 0x900, room - 1, True)], first))


def reply(driver: Driver, length: int, at: int = DATA) -> bytes:
    """What was written in the room of :func:`request`."""
    return (driver.memory.read(at + 0x800, 1) + driver.memory.read(at + 0x900, length))[:length]


def kinds(server: TestBackEnd) -> list[int]:
    """Of all messages."""
    return [kind for kind, _, _ in server.log]
