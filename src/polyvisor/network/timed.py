"""The virtual time that a switch can have in common with the machines at it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class VirtualTime(Protocol):
    """Machines' time, in nanoseconds."""

    @property
    def step(self) -> int:
        """The least time that a frame must be on its way."""
        ...

    @property
    def now(self) -> int:
        """The time of the machine, or of the event, that this thread is about."""
        ...

    @property
    def is_inside(self) -> bool:
        """Whether this is the thread that runs the machines."""
        ...

    def call_at(self, when: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` at a time."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """For other threads: call ``callback`` where machines run, as soon as may be."""
