"""A fork as its parent sees it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import threading
import time
import weakref
from typing import Any

from polyvisor.vm.commands import DEFAULT, GuestCommands
from polyvisor.vm.errors import StoppedError, VMError, VMTimeoutError
from polyvisor.vm.remote import SocketConnection, exchange

from .remote_object import Client, RemoteObject

BEGIN, _CONNECTION = b"b", b"c"
"""What is sent to a fork's process; with the latter comes a descriptor."""
_STOP_TIME = 10.0
_END_TIME, _SHORT = 10.0, 0.0005  # seconds until a process that does not end is killed, and between looks
_LOOK = 1.0  # seconds that one waits for a word at a time: another thread may have closed the channel


class Fork(GuestCommands):
    """A machine that is a copy of another one, in a process of its own, which ends when this object or we do.

    Commands and files are as those of a VM. Every other attribute of the VM is the one of the machine in its process:
    ``fork.memory[address:address + 8]``, ``fork.cpu[0].pc``, ``fork.console.expect("login:")``, ``fork.snapshot("a")``.
    What is not plain data stays there, and is used from here.
    """

    _kept_connections = 1  # there may be a thousand forks

    def __init__(self, name: str, number: int, pid: int, channel: socket.socket, timeout: float | None) -> None:
        self.name = name
        self.number = number
        """Which of the forks made together it is, from 0."""
        self.pid = pid
        """Its process."""
        self.timeout = timeout
        self.exit_code: int | None = None
        self._channel = channel
        self._said = b""
        self._over: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._forgotten: list[int] = []
        self._end = weakref.finalize(self, _end, channel, pid)

    # Its life

    def begin(self) -> None:
        """Let it go on, if it does not yet: of many that are made at once, some have to wait for the others."""
        with contextlib.suppress(OSError):
            self._channel.send(BEGIN)

    def has_ended(self, timeout: float | None = 0) -> bool:
        """Whether it has ended, within ``timeout`` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while self._over is None:
            # Without the lock: others may end it meanwhile.
            left = _LOOK if end is None else min(_LOOK, max(0.0, end - time.monotonic()))
            with contextlib.suppress(ValueError):  # the channel is closed
                ready = select.poll()
                ready.register(self._channel, select.POLLIN)
                ready.poll(left * 1000)
            with self._lock:
                self._listen()
            if end is not None and time.monotonic() >= end:
                return self._over is not None
        return True

    def _listen(self) -> None:
        """Take what its process has said; does not wait. With the lock held."""
        if self._over is not None:
            return
        data: bytes | None = b""
        try:
            data = self._channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            data = None
        except OSError:
            pass  # as if it had ended
        self._said += data or b""
        if self._said.endswith(b"\n"):
            self._over = json.loads(self._said)
            self.exit_code = self._over.get("exit_code")
        elif not self._end.alive:  # somebody here has ended it
            self._over = {}
        elif data == b"":
            self._over = {"error": "its process died"}

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it has ended; gives its exit code. Raises VMTimeoutError, and VMError for what it failed of."""
        if not self.has_ended(timeout):
            raise VMTimeoutError(f"{self.name} did not end within {timeout:g} seconds")
        self._end()
        if self._over and self._over.get("error"):
            raise VMError(f"{self.name}: {self._over['error']}")
        return self.exit_code

    def last_words(self, machine: str) -> dict[str, Any]:
        """What is known of one of several machines when the process has ended: ``exit_code``, ``console``, ``error``.
        """
        self.has_ended(_STOP_TIME)
        over = self._over or {}
        found: dict[str, Any] = over.get("machines", {}).get(machine, over)
        return found

    def stop(self, timeout: float | object | None = DEFAULT) -> int | None:
        """Ask the guest to power off, and cut the power if it has not in time; gives the exit code."""
        if not self.has_ended():
            with contextlib.suppress(VMError):
                limit = {} if timeout is DEFAULT else {"timeout": timeout}
                connection = self._open("stop", **limit)
                connection.close()
                self.has_ended(_STOP_TIME)
        self.kill()
        return self.exit_code

    def finish(self) -> None:
        """Cut the power, and wait until what it wrote is complete, such as its recording."""
        with contextlib.suppress(VMError):
            self._remote.kill()
        self.has_ended(_STOP_TIME)
        self.kill()

    def kill(self) -> None:
        """Cut the power, and end its process. May be repeated."""
        with contextlib.suppress(OSError, ValueError):
            self.has_ended(0)
        self._end()

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._end.alive and not self.has_ended()

    def boot(self, timeout: float | object | None = DEFAULT) -> Fork:
        """Wait until its agent answers. Raises VMTimeoutError, StoppedError."""
        self._remote.boot(self._limit(timeout))
        return self

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *reason: object) -> None:
        self.kill()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"a fork has no attribute {name!r}")
        return getattr(self._remote, name)

    def __repr__(self) -> str:
        return f"<Fork {self.name}: process {self.pid}, {'running' if self.running else 'ended'}>"

    # Connections

    @property
    def _remote(self) -> RemoteObject:
        """The VM there. Not kept: this object ends when nobody has it, or anything that came of it."""
        return Client(lambda: self._open("object"), self._forgotten).root

    def _open(self, op: str, **values: Any) -> socket.socket:
        """A connection to its process, with which it will do ``op``. Raises StoppedError, VMError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._channel, [_CONNECTION], [theirs.fileno()])
            exchange(ours, op, **values)
        except (EOFError, OSError) as error:
            ours.close()
            raise StoppedError(f"{self.name} has ended{self._circumstances()}") from error
        except VMError:
            ours.close()
            raise
        return ours

    def _circumstances(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            if self.has_ended(0.2) and self._over and self._over.get("console"):
                return f"; the console ends:\n{self._over['console']}"
        return ""

    def open_agent(self, timeout: float | None = None, **machine: str) -> SocketConnection:
        """A new connection to the guest's agent; waits until there is one. ``machine``: whose, of several."""
        limit = threading.TIMEOUT_MAX if timeout is None else timeout
        return SocketConnection(self._open("agent", timeout=limit, **machine))


def _end(channel: socket.socket, pid: int) -> None:
    """End the process, which does so when nobody can reach it any more."""
    with contextlib.suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)
    channel.close()
    reap(pid)


def reap(pid: int) -> None:
    """Wait until a child has ended that has been given every reason to; one that does not is killed."""
    end = time.monotonic() + _END_TIME
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(_SHORT)
