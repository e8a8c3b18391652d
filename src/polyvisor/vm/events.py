"""What happens to a machine, told to whoever wants to know."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .errors import VMTimeoutError
from .forkable import Forkable

KINDS = ("started", "ready", "reset", "stopped", "failed")
"""In the order of a life: it runs; its agent answers; the guest restarts it; it ended; it broke (``data`` says why)."""


class Event(NamedTuple):
    """``kind`` is one of :data:`KINDS`; ``time`` is in seconds since the machine was first started."""

    kind: str
    time: float
    data: Any = None


class Events(Forkable):
    """All events so far, and those to come. Any thread may ask."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[Event] = []
        self._callbacks: list[tuple[str, Callable[[Event], None]]] = []
        self._start = time.monotonic()

    def revive(self) -> None:
        """In a copy of the process: it has no events yet, and those who listen are with the other one."""
        super().revive()
        self._events.clear()
        self._callbacks.clear()

    def emit(self, kind: str, data: Any = None) -> Event:
        """Note an event, and tell those who listen, in this thread."""
        event = Event(kind, time.monotonic() - self._start, data)
        with self._changed:
            self._events.append(event)
            listeners = [call for wanted, call in self._callbacks if wanted == kind]
            self._changed.notify_all()
        for call in listeners:
            call(event)
        return event

    def on(self, kind: str, callback: Callable[[Event], None]) -> None:
        """Call ``callback`` at each event of a kind, on a thread of the machine's. Raises ValueError for no kind."""
        _check(kind)
        with self._changed:
            self._callbacks.append((kind, callback))

    def wait(self, kind: str, timeout: float | None = None, *, count: int = 1) -> Event:
        """The ``count``-th event of a kind, when it has happened. Raises VMTimeoutError, and ValueError for no kind."""
        _check(kind)

        def found() -> Event | None:
            matching = [e for e in self._events if e.kind == kind]
            return matching[count - 1] if len(matching) >= count else None

        with self._changed:
            if not self._changed.wait_for(found, timeout):
                raise VMTimeoutError(f"no event {kind!r} within {timeout:g} seconds")
            event = found()
            assert event is not None
            return event

    def __iter__(self) -> Iterator[Event]:
        with self._changed:
            return iter(list(self._events))


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"there are no events {kind!r}; there are {', '.join(KINDS)}")
