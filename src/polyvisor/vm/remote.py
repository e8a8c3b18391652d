"""A machine that runs in another process of the user, by its name."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from polyvisor.guest.client import GuestClient

from . import running
from .errors import StoppedError, VMError

_BUFFER = 256 << 10
_LONGEST_ANSWER = 1 << 20  # an error has the console's last lines


def exchange(connection: socket.socket, op: str, **values: Any) -> dict[str, Any]:
    """Send a request to the process of a machine (see :mod:`polyvisor.vm.control`), and give its answer.

    Raises VMError with what that process says, EOFError if it ends first, OSError.
    """
    connection.sendall(json.dumps({"op": op, **values}).encode() + b"\n")
    line = running.read_line(connection, _LONGEST_ANSWER)
    if line is None:
        raise EOFError
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise VMError(answer["error"])
    return answer


class RemoteVM:
    """What other processes can do with a running machine. Raises VMError if there is none of that name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._path = running.socket_path(name)
        if not running.is_alive(self._path):
            there = ", ".join(running.names())
            raise VMError(f"no machine {name!r} is running" + (f"; there are: {there}" if there else ""))
        self.client = GuestClient(self._agent)
        """Commands and files in the guest."""

    def ask(self, op: str, **values: Any) -> dict[str, Any]:
        """One request and its answer. Raises VMError with what the machine's process says."""
        connection, answer = self.open(op, **values)
        connection.close()
        return answer

    def open(self, op: str, **values: Any) -> tuple[socket.socket, dict[str, Any]]:
        """The same, for requests after which the connection goes on."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(self._path))
            return connection, exchange(connection, op, **values)
        except EOFError as error:
            connection.close()
            raise StoppedError(f"{self.name} has ended") from error
        except OSError as error:
            connection.close()
            raise StoppedError(f"{self.name} cannot be reached: {error.strerror}") from error
        except VMError:
            connection.close()
            raise

    def log(self) -> bytes:
        """What the console has shown."""
        connection, answer = self.open("log")
        pieces: list[bytes] = []
        with connection:
            while data := connection.recv(_BUFFER):
                pieces.append(data)
        return b"".join(pieces)[: answer["length"]]

    def _agent(self, timeout: float | None) -> SocketConnection:
        connection, _ = self.open("agent", timeout=60.0 if timeout is None else timeout)
        return SocketConnection(connection)


class SocketConnection:
    """A socket as :class:`polyvisor.guest.connection.Connection`, read by a thread of its own."""

    def __init__(self, connection: socket.socket) -> None:
        self.on_change: Callable[[], None] | None = None
        self.lock = threading.RLock()
        self._socket = connection
        self._taken = threading.Condition(self.lock)
        self._incoming = bytearray()
        self._ended = False
        self._closed = False
        threading.Thread(target=self._read, name="agent connection", daemon=True).start()

    def _read(self) -> None:
        data = b"x"
        while data:
            try:
                data = self._socket.recv(_BUFFER)
            except OSError:
                data = b""
            with self.lock:
                self._incoming += data
                self._ended = not data
                if self.on_change is not None:
                    self.on_change()
                # Whoever sends is held up when nobody takes it.
                self._taken.wait_for(lambda: len(self._incoming) < _BUFFER or self._ended or self._closed)

    @property
    def at_end(self) -> bool:
        """Whether nothing more will come."""
        return self._ended and not self._incoming

    def take_received(self, count: int = _BUFFER) -> bytes:
        """What has come; with the lock held."""
        data = bytes(memoryview(self._incoming)[:count])
        del self._incoming[:count]
        self._taken.notify_all()
        return data

    def send(self, data: bytes, timeout: float | None = None) -> None:
        """Send all. Raises BrokenPipeError and TimeoutError."""
        end = None if timeout is None else time.monotonic() + timeout
        view = memoryview(data)
        room = select.poll()
        try:
            room.register(self._socket, select.POLLOUT)
            while len(view):
                left = None if end is None else max(0.0, end - time.monotonic()) * 1000
                if not room.poll(left):
                    raise TimeoutError(f"the guest did not take the data within {timeout:g} seconds")
                # The socket itself stays blocking, for the thread that reads.
                with contextlib.suppress(BlockingIOError):
                    view = view[self._socket.send(view, socket.MSG_DONTWAIT) :]
        except TimeoutError:
            raise
        except (OSError, ValueError) as error:
            raise BrokenPipeError("the guest has closed the connection") from error

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self.lock:
            self._closed = True
            self._taken.notify_all()

    def abort(self) -> None:
        """The same: the other side ends what was asked for."""
        self.close()
