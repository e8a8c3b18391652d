"""One connection to a vhost-user back end: what is negotiated, the memory it gets, its rings, and their events."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

from polyvisor.devices.virtio import vhost_messages as m
from polyvisor.devices.virtio.device import F_VERSION_1
from polyvisor.devices.virtio.queue import Chain
from polyvisor.devices.virtio.vhost_messages import Connection, Refused, VhostUserError
from polyvisor.devices.virtio.vhost_ring import ShadowMemory, ShadowRing, ring_bytes
from polyvisor.engine.memory import Memory

PATIENCE = 10.0
"""Seconds that a back end may take for an answer."""

# Device types' own feature bits (VIRTIO 1.2, section 2.2); those between are about rings and transports.
DEVICE_FEATURES = (1 << 24) - 1 | (1 << 64) - (1 << 50)

# Shadow rings are behind guest memory, on a boundary of so many bytes.
_ALIGNMENT = 1 << 30


class Session:
    """A connection over ``connected``, which is the session's now, to a back end with one queue for each of
    ``queue_sizes``. All calls are made with the device's lock held, but :meth:`watch`'s thread's.
    """

    def __init__(self, connected: socket.socket, queue_sizes: Sequence[int], config_size: int) -> None:
        """Negotiate. ``config_size``: bytes of the configuration space that the back end provides.

        Raises VhostUserError; the connection is closed then.
        """
        self.alive = True
        self.started = False
        self._socket = connected
        self._sizes = tuple(queue_sizes)
        self._config_size = config_size
        self._shadow: ShadowMemory | None = None
        self._shadow_at = 0
        self._thread: threading.Thread | None = None
        self._descriptors: list[int] = []
        self._channel: socket.socket | None = None
        self.rings: list[ShadowRing | None] = [None] * len(self._sizes)
        self.waiting: list[deque[Chain]] = [deque() for _ in self._sizes]
        """Buffers that have no room in their ring yet."""
        self._connection = Connection(connected, PATIENCE)
        try:
            self._call, self._error = self._eventfd(), self._eventfd()
            self._kicks = [self._eventfd() for _ in self._sizes]
            self._negotiate()
            self.config = self.read_config() if config_size else b""
        except BaseException:
            self._release()
            raise

    def _eventfd(self) -> int:
        self._descriptors.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        return self._descriptors[-1]

    # Set-up

    def _negotiate(self) -> None:
        connection = self._connection
        offered = connection.ask_u64(m.GET_FEATURES)
        if not offered & F_VERSION_1:
            raise VhostUserError("does not offer VIRTIO 1")
        self.features = offered & DEVICE_FEATURES
        """The device type's features that the back end offers."""
        self._protocol = offered & m.F_PROTOCOL_FEATURES
        wanted = m.PROTOCOL_F_MQ | m.PROTOCOL_F_REPLY_ACK
        if self._config_size:
            wanted |= m.PROTOCOL_F_CONFIG | m.PROTOCOL_F_BACKEND_REQ
        chosen = connection.ask_u64(m.GET_PROTOCOL_FEATURES) & wanted if self._protocol else 0
        if self._config_size and not chosen & m.PROTOCOL_F_CONFIG:
            raise VhostUserError("does not offer its configuration space")
        if self._protocol:
            connection.tell(m.SET_PROTOCOL_FEATURES, m.U64.pack(chosen))
        connection.acknowledged = bool(chosen & m.PROTOCOL_F_REPLY_ACK)
        connection.tell(m.SET_OWNER)
        if chosen & m.PROTOCOL_F_MQ:
            queues = connection.ask_u64(m.GET_QUEUE_NUM)
            if queues < len(self._sizes):
                raise VhostUserError(f"has {queues} queues; {len(self._sizes)} are needed")
        if chosen & m.PROTOCOL_F_BACKEND_REQ:
            self._channel, theirs = socket.socketpair()
            with theirs:
                connection.tell(m.SET_BACKEND_REQ_FD, fds=(theirs.fileno(),))

    def start(self, memory: Memory, features: int) -> None:
        """Give the back end guest ``memory`` and the ``features`` that the driver accepted. Raises VhostUserError."""
        agreed = features & self.features | F_VERSION_1 | self._protocol
        self._connection.tell(m.SET_FEATURES, m.U64.pack(agreed))
        if self._shadow is None:
            self._shadow = ShadowMemory(sum(map(ring_bytes, self._sizes)))
            end = max(ram.end for ram in memory.ram)
            self._shadow_at = -(-end // _ALIGNMENT) * _ALIGNMENT
        if any(ram.fd < 0 for ram in memory.ram):
            raise VhostUserError("the memory of a restored machine is private and cannot be shared with a back end")
        regions = [(ram.base, ram.size, ram.fd) for ram in memory.ram]
        regions.append((self._shadow_at, self._shadow.size, self._shadow.fd))
        if len(regions) > m.MAX_REGIONS:
            raise VhostUserError(f"cannot be given {len(regions)} ranges of memory")
        table = m.VRING_STATE.pack(len(regions), 0)
        for base, size, _ in regions:
            # User addresses are only names here: guest addresses serve, and tell nothing of this process.
            table += m.MEMORY_REGION.pack(base, size, base, 0)
        self._connection.tell(m.SET_MEM_TABLE, table, [fd for _, _, fd in regions])
        self.started = True

    def start_queue(self, index: int) -> ShadowRing:
        """Let the back end serve queue ``index``, whose ring is empty. Raises VhostUserError."""
        assert self._shadow is not None
        offset = sum(map(ring_bytes, self._sizes[:index]))
        size = self._sizes[index]
        view = self._shadow.view[offset : offset + ring_bytes(size)]
        ring = ShadowRing(view, self._shadow_at + offset, size)
        tell, number = self._connection.tell, m.U64.pack(index)
        tell(m.SET_VRING_NUM, m.VRING_STATE.pack(index, size))
        tell(m.SET_VRING_BASE, m.VRING_STATE.pack(index, 0))
        addresses = (ring.descriptors, ring.used, ring.available, 0)
        tell(m.SET_VRING_ADDR, m.VRING_ADDRESS.pack(index, 0, *addresses))
        tell(m.SET_VRING_CALL, number, (self._call,))
        tell(m.SET_VRING_ERR, number, (self._error,))
        tell(m.SET_VRING_KICK, number, (self._kicks[index],))
        if self._protocol:
            tell(m.SET_VRING_ENABLE, m.VRING_STATE.pack(index, 1))
        self.rings[index] = ring
        return ring

    def stop(self) -> None:
        """Have all queues stopped: afterwards the back end touches no memory. Raises VhostUserError."""
        self.started = False
        for waiting in self.waiting:
            waiting.clear()
        for index, ring in enumerate(self.rings):
            if ring is not None:
                answer = self._connection.ask(m.GET_VRING_BASE, m.VRING_STATE.pack(index, 0))
                if len(answer) != m.VRING_STATE.size or m.VRING_STATE.unpack(answer)[0] != index:
                    raise VhostUserError("answers GET_VRING_BASE with nonsense")
        self.rings = [None] * len(self._sizes)

    # While it runs

    def held(self, index: int) -> list[Chain]:
        """The buffers of queue ``index`` that were taken from the guest and not given back, oldest first."""
        ring = self.rings[index]
        return [*(ring.held if ring is not None else ()), *self.waiting[index]]

    def kick(self, index: int) -> None:
        """Tell the back end that there are buffers."""
        with contextlib.suppress(BlockingIOError):  # it was told very often and looked at none
            os.eventfd_write(self._kicks[index], 1)

    def read_config(self) -> bytes:
        """The configuration space now. Raises VhostUserError."""
        size = self._config_size
        answer = self._connection.ask(m.GET_CONFIG, m.CONFIG.pack(0, size, 0) + bytes(size))
        if len(answer) != m.CONFIG.size + size:
            raise VhostUserError(f"gives no configuration space of {size} bytes")
        return answer[m.CONFIG.size :]

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration space; the back end may ignore it. Raises VhostUserError."""
        with contextlib.suppress(Refused):
            self._connection.tell(m.SET_CONFIG, m.CONFIG.pack(offset, len(data), 0) + data)

    def watch(
        self, called: Callable[[], None], reconfigured: Callable[[], None], ended: Callable[[VhostUserError], None],
        lock: threading.RLock,
    ) -> None:
        """Start the thread that calls ``called`` when buffers came back, ``reconfigured`` when the configuration space
        changed, and at last ``ended``, each without ``lock``, which is the device's.
        """
        def main() -> None:
            error = VhostUserError("ended the connection")
            try:
                self._listen(called, reconfigured)
            except VhostUserError as raised:
                error = raised
            finally:
                ended(error)
                with lock:
                    self._release()

        self._thread = threading.Thread(target=main, name="vhost-user", daemon=True)
        self._thread.start()

    def _listen(self, called: Callable[[], None], reconfigured: Callable[[], None]) -> None:
        """Until the connection ends. Raises VhostUserError if the back end says that something is wrong."""
        poll = select.poll()
        for fd in (self._call, self._error):
            poll.register(fd, select.POLLIN)
        poll.register(self._socket, select.POLLRDHUP)  # answers are read by who asked
        if self._channel is not None:
            poll.register(self._channel, select.POLLIN)
        while self.alive:
            ready = {fd for fd, _ in poll.poll()}
            if self._call in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._call)
                called()
            if self._error in ready:
                raise VhostUserError("reports an error of a queue")
            if self._channel is not None and self._channel.fileno() in ready:
                self._back_end_request(self._channel, reconfigured)
            if self._socket.fileno() in ready:
                return

    def _back_end_request(self, channel: socket.socket, reconfigured: Callable[[], None]) -> None:
        """Do what the back end asks for ("Back-end message types"). Raises VhostUserError."""
        try:
            channel.settimeout(PATIENCE)
            data = channel.recv(m.HEADER.size, socket.MSG_WAITALL)
            if len(data) < m.HEADER.size:
                raise VhostUserError("ended the connection")
            kind, flags, length = m.HEADER.unpack(data)
            if kind != m.BACKEND_CONFIG_CHANGE or flags & 3 != m.VERSION or length:
                raise VhostUserError(f"asks for what was not negotiated (message {kind})")
            if flags & m.FLAG_NEED_REPLY:
                # Before the lock is taken: who holds it may wait for this back end.
                reply = m.HEADER.pack(kind, m.VERSION | m.FLAG_REPLY, m.U64.size) + m.U64.pack(0)
                channel.sendall(reply)
        except OSError as error:
            if isinstance(error, VhostUserError):
                raise
            raise VhostUserError("ended the connection") from error
        reconfigured()

    # The end

    def end(self) -> None:
        """Close the connection; the thread lets go of everything else."""
        self.alive = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread is None:
            self._release()

    def join(self) -> None:
        """Wait for the thread. To be called without the lock."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _release(self) -> None:
        self.alive = False
        self.rings = [None] * len(self._sizes)
        self._socket.close()
        if self._channel is not None:
            self._channel.close()
        while self._descriptors:
            os.close(self._descriptors.pop())
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None
