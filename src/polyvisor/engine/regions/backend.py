"""What compiles regions for a machine: the workers of its architecture."""

from __future__ import annotations

from collections.abc import Callable

from ..workers import Workers
from .compile import Missing, Region, Request

# Handlers come first: without them the guest waits.
_URGENCY = 5


class WorkerBackend:
    """Has regions compiled by worker processes."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def room(self) -> int:
        """How many requests it would begin with at once."""
        return self._workers.room()

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        """Compile; ``done`` is called from any thread."""
        self._workers.submit("region", request, done, urgency=_URGENCY)
