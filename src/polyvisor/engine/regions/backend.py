"""What compiles regions for a machine: the workers of its architecture."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from ..workers import Workers
from .compile import Missing, Region, Request

# Handlers come first: without them the guest waits.
_URGENCY = 5


class WorkerBackend:
    """Has regions compiled by worker processes; ``harts`` are left a host core each, if there are enough."""

    def __init__(self, workers: Workers, harts: int = 1) -> None:
        self._workers = workers
        self._most = max(1, len(os.sched_getaffinity(0)) - harts)
        self._lock = threading.Lock()
        self._busy = 0

    def room(self) -> int:
        """How many requests it would begin with at once, or soon."""
        # One more than are at work, so that none has to wait for the next.
        return min(self._workers.room(_URGENCY), self._most + 1 - self._busy)

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        """Compile; ``done`` is called from any thread."""
        with self._lock:
            self._busy += 1

        def finished(result: Region | Missing | None) -> None:
            with self._lock:
                self._busy -= 1
            done(result)

        self._workers.submit("region", request, finished, urgency=_URGENCY)
