"""The outside for machines by passt, a process of its own that has no privileges.

A frame on its socket is preceded by its length, 4 bytes in network order (passt(1), and QEMU's ``-netdev stream``).
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
from collections import deque
from collections.abc import Sequence

from .forward import Forward
from .frame import CSUM, ECN, ETHERNET_HEADER, TSO4, TSO6, Frame, FrameError
from .offload import completed, segments
from .port import Port
from .user import MAX_WAITING, NetworkError

_LENGTH = struct.Struct(">I")
# What it takes, and gives, at most (ETH_MAX_MTU).
_LONGEST = 65535
_CHUNK = 1 << 18
_STOP_SECONDS = 5.0


class PasstNetwork(Port):
    """The host's own network, address and all, as passt gives it to one machine: TCP, UDP, ICMP, DHCP, NDP, DNS.

    The machine gets the host's addresses by DHCP; with ``host_loopback``, the host's gateway's address leads to what
    listens on the host's loopback. Against hostile machines it is the safer choice: what parses their frames is not in
    this process. When passt ends, ``failure`` says so and frames are dropped.
    """

    takes = CSUM | TSO4 | TSO6 | ECN

    def __init__(
        self, *, forwards: Sequence[Forward] = (), host_loopback: bool = True, name: str = "passt"
    ) -> None:
        """Raises NetworkError if passt is not installed or does not start, ValueError for an impossible forward."""
        super().__init__(name)
        program = shutil.which("passt")
        if program is None:
            raise NetworkError("this network needs passt: install the package passt")
        arguments = [program, "--foreground", "--quiet", "--one-off", "--stderr"]
        if not host_loopback:
            arguments.append("--no-map-gw")
        for forward in forwards:
            if forward.guest is not None or not forward.host_port:
                raise ValueError(f"{forward}: passt takes neither a guest's address nor port 0")
            option = "--tcp-ports" if forward.protocol == "tcp" else "--udp-ports"
            arguments += [option, f"{forward.host}/{forward.host_port}:{forward.guest_port}"]
        self.failure: NetworkError | None = None
        """What ended it before it was closed."""
        self._socket, theirs = socket.socketpair()
        with theirs:
            arguments += ["--fd", str(theirs.fileno())]
            try:
                self._process = subprocess.Popen(
                    arguments, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                self._socket.close()
                raise NetworkError(f"passt cannot be started: {error.strerror}") from error
        self._socket.setblocking(False)
        self._waiting: deque[bytes] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._closing = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._main, name="network", daemon=True)
        self._thread.start()
        # It refuses what it cannot do before it looks at the socket.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
            reason = self._complaint()
            self.close()
            raise NetworkError(f"passt does not start: {reason}")

    def _complaint(self) -> str:
        assert self._process.stderr is not None
        lines = self._process.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"status {self._process.returncode}"

    def _send(self, frame: Frame) -> None:
        try:
            parts = segments(frame) if frame.length > _LONGEST else (frame,)
        except FrameError:
            self.dropped += 1
            return
        for part in parts:
            good = ETHERNET_HEADER <= part.length <= _LONGEST
            if not good or self._closing or len(self._waiting) >= MAX_WAITING:
                self.dropped += 1
                continue
            data = bytes(completed(part))
            self._waiting.append(_LENGTH.pack(len(data)) + data)
        with self._lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _main(self) -> None:
        received = bytearray()
        unsent = memoryview(b"")
        poll = select.poll()
        poll.register(self._wake_fd, select.POLLIN)
        fd = self._socket.fileno()
        try:
            while not self._closing:
                if not unsent and self._waiting:
                    unsent = memoryview(self._waiting.popleft())
                poll.register(fd, select.POLLIN | select.POLLOUT if unsent else select.POLLIN)
                ready = dict(poll.poll())
                if self._wake_fd in ready:
                    os.eventfd_read(self._wake_fd)
                with contextlib.suppress(BlockingIOError):
                    while unsent:
                        unsent = unsent[self._socket.send(unsent) :]
                        if not unsent and self._waiting:
                            unsent = memoryview(self._waiting.popleft())
                if ready.get(fd, 0) & ~select.POLLOUT:
                    with contextlib.suppress(BlockingIOError):
                        data = self._socket.recv(_CHUNK)
                        if not data:
                            raise NetworkError("passt ended")
                        received += data
                        self._take(received)
        except OSError as error:
            if not self._closing:
                self.failure = NetworkError(f"the network ended: {error}")
        finally:
            self._closing = True

    def _take(self, received: bytearray) -> None:
        """Deliver the whole frames in ``received``, and leave the rest. Raises NetworkError for a wrong length."""
        at = 0
        while len(received) - at >= _LENGTH.size:
            length = _LENGTH.unpack_from(received, at)[0]
            if not ETHERNET_HEADER <= length <= 2 * _LONGEST:
                raise NetworkError(f"passt sent a frame of {length} bytes")
            end = at + _LENGTH.size + length
            if end > len(received):
                break
            self.deliver(Frame(bytes(received[at + _LENGTH.size : end])))
            at = end
        del received[:at]

    def close(self) -> None:
        """End passt, and the thread. May be repeated."""
        super().close()
        self._closing = True
        with self._lock:
            if self._wake_fd < 0:
                return
            os.eventfd_write(self._wake_fd, 1)
        if threading.current_thread() is not self._thread:
            self._thread.join()
        with self._lock:
            fd, self._wake_fd = self._wake_fd, -1
        if fd < 0:
            return
        os.close(fd)
        self._socket.close()
        self._process.terminate()
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
