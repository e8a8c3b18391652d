"""What a conversation with the agent needs of the connection under it, whatever carries it."""

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
