"""Lets other processes of the user reach a running machine, by a socket (see :mod:`polyvisor.vm.running`).

A client connects, sends one line of JSON, ``{"op": ...}``, and gets one line back, ``{"ok": true, ...}`` or
``{"error": ...}``. After ``agent`` and ``console`` the connection carries bytes both ways: a connection to the guest's
agent, or the console.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
from typing import Any

from polyvisor.devices.virtio.stream import Stream

from . import running
from .errors import VMError
from .virtual_machine import VM

_LINE = 4096
_CHUNK = 64 << 10
# So much of what is printed waits for a client that watches the console; then it is cut off.
_BEHIND = 4 << 20


class Conversations:
    """What others may ask of a machine, each over a connection of its own."""

    def __init__(self, vm: VM) -> None:
        self._vm = vm
        self._started = time.time()

    def begin(self, connection: socket.socket) -> None:
        """Answer over ``connection``, in a thread of its own."""
        threading.Thread(target=self._converse, args=(connection,), name="control client", daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            line = running.read_line(connection, _LINE)
            if line is None:
                return
            try:
                request = json.loads(line)
                operation = getattr(self, f"_op_{request['op']}", None)
                if operation is None:
                    raise VMError(f"there is no operation {request['op']!r}")
                operation(connection, request)
            except (VMError, OSError) as error:
                self._answer(connection, error=str(error))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                self._answer(connection, error="this is not a request")

    @staticmethod
    def _answer(connection: socket.socket, **values: Any) -> None:
        connection.sendall(json.dumps(values).encode() + b"\n")

    # Operations

    def _op_status(self, connection: socket.socket, request: dict[str, Any]) -> None:
        vm = self._vm
        self._answer(
            connection, ok=True, name=vm.name, pid=os.getpid(), memory=vm.config.memory, cpus=vm.config.cpus,
            started=self._started, ready=vm.ready, what=vm.software.name, agent=vm.software.agent,
        )  # fmt: skip

    def _op_stop(self, connection: socket.socket, request: dict[str, Any]) -> None:
        code = self._vm.stop() if request.get("timeout") is None else self._vm.stop(seconds(request))
        self._answer(connection, ok=True, exit_code=code)

    def _op_kill(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._vm.kill()
        self._answer(connection, ok=True, exit_code=self._vm.exit_code)

    def _op_wait_ready(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._vm.wait_ready(seconds(request))
        self._answer(connection, ok=True)

    def _op_snapshot(self, connection: socket.socket, request: dict[str, Any]) -> None:
        base = request.get("base")
        made = self._vm.snapshot(str(request["path"]), base=base if base is None else str(base))
        self._answer(connection, ok=True, path=str(made.path))

    def _op_log(self, connection: socket.socket, request: dict[str, Any]) -> None:
        log = self._vm.console.log.encode()
        self._answer(connection, ok=True, length=len(log))
        connection.sendall(log)

    def _op_console(self, connection: socket.socket, request: dict[str, Any]) -> None:
        watcher = _Watcher(self._vm, connection, float(request.get("since", 0)))
        self._answer(connection, ok=True)
        watcher.run()

    def _op_agent(self, connection: socket.socket, request: dict[str, Any]) -> None:
        # The machine has its name before it starts.
        if self._vm.software.agent:
            self._vm.wait_ready(seconds(request))
        stream = self._vm.open_agent(seconds(request))
        self._answer(connection, ok=True)
        relays = [
            threading.Thread(target=relay, args=(stream, connection), name="control relay", daemon=True)
            for relay in (_from_guest, _abort_when_left)
        ]
        for relay in relays:
            relay.start()
        with contextlib.suppress(OSError):
            while data := connection.recv(_CHUNK):
                with contextlib.suppress(OSError):  # the guest has said all; the client hears it from the other thread
                    stream.send(data)
        for relay in relays:
            relay.join()


class ControlServer(Conversations):
    """Serves one machine under its name. Raises TakenError if a machine of that name runs already, and VMError."""

    def __init__(self, vm: VM) -> None:
        super().__init__(vm)
        self._path = running.socket_path(vm.name)
        self._listener = running.listen(vm.name)
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="control", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Serve no more."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._path.unlink()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.begin(connection)


def seconds(request: dict[str, Any]) -> float:
    """The timeout of a request, 60 seconds where it has none. Raises ValueError for what nobody can wait for."""
    seconds = float(request.get("timeout", 60.0))
    if not 0 <= seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"a timeout of {seconds} seconds")
    return seconds


def _abort_when_left(stream: Stream, connection: socket.socket) -> None:
    """When whoever asked has gone, what it asked for goes too, also while it has input that nobody takes."""
    left = select.poll()
    left.register(connection, select.POLLRDHUP)
    left.poll()
    stream.abort()


def _from_guest(stream: Stream, connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := stream.receive(_CHUNK):
            connection.sendall(data)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)


class _Watcher:
    """A client on the console: what is printed goes to it, what it sends is typed."""

    def __init__(self, vm: VM, connection: socket.socket, since: float) -> None:
        self._vm = vm
        self._connection = connection
        self._waiting = bytearray()
        self._changed = threading.Condition()
        self._over = False
        self._last = max(0, int(-since))  # of what was printed before

    def run(self) -> None:
        """Until either side ends."""
        end = self._vm.console.listen(self._printed, self._last)
        typing = threading.Thread(target=self._type, name="control typing", daemon=True)
        typing.start()
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._waiting or self._over, 0.2)
                    data, self._waiting = bytes(self._waiting), bytearray()
                    if not data and (self._over or not self._vm.running):
                        break
                if data:
                    self._connection.sendall(data)
        finally:
            end()
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def _printed(self, data: bytes) -> None:
        with self._changed:
            if len(self._waiting) > _BEHIND:
                self._over = True
            else:
                self._waiting += data
            self._changed.notify_all()

    def _type(self) -> None:
        with contextlib.suppress(OSError, VMError):
            while data := self._connection.recv(_CHUNK):
                self._vm.console.send(data, timeout=None)
        with self._changed:
            self._over = True
            self._changed.notify_all()
