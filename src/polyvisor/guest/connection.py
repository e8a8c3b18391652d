"""What a conversation with the agent needs of the connection under it, whatever carries it; and keeping connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol


class Connection(Protocol):
    """A byte stream in both directions, such as :class:`polyvisor.devices.virtio.stream.Stream`."""

    on_change: Callable[[], None] | None
    """Called with :attr:`lock` held when there is something new to take, or the stream has ended; must not wait."""

    @property
    def lock(self) -> threading.RLock:
        """What guards it, and what is built on it."""
        ...

    @property
    def at_end(self) -> bool:
        """Whether nothing more will come."""
        ...

    def take_received(self, count: int = ...) -> bytes:
        """Up to ``count`` bytes that have come; does not wait. With the lock held."""
        ...

    def send(self, data: bytes, timeout: float | None = None) -> None:
        """Send all; waits for room. Raises BrokenPipeError and TimeoutError."""
        ...

    def close(self) -> None:
        """End it, after what was sent before."""
        ...

    def abort(self) -> None:
        """Break it at once."""
        ...


class IdleConnections:
    """Connections on which the agent waits for a request: at most ``limit``. May be used from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: list[Connection] = []
        self._lock = threading.Lock()  # held for the list only, never while a connection's is waited for

    def take(self) -> Connection | None:
        """One that has not ended, if there is any."""
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            with connection.lock:
                # Nothing may come before it was asked for.
                if not connection.take_received() and not connection.at_end:
                    return connection
            connection.abort()

    def give(self, connection: Connection) -> None:
        """Keep a connection that is of no more use to its owner, or close it. Does not wait."""
        with connection.lock:
            connection.on_change = None
            fit = not connection.take_received() and not connection.at_end
        with self._lock:
            kept = fit and len(self._idle) < self._limit
            if kept:
                self._idle.append(connection)
        if not kept:
            connection.close()
