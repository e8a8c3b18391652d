"""What compiles regions for a machine: the workers of its architecture."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Protocol

from ..workers import SOON, WELL, WELL_BEGUN, Workers
from .region import Missing, Region, Request

# How much the compilers have to do: nothing, something, or each core that the harts leave has a quick region for it.
NONE, SOME, FULL = range(3)


class Backend(Protocol):
    """Compiles requests beside the guest."""

    @property
    def pressure(self) -> int:
        """How much there is to do: :data:`NONE`, :data:`SOME` or :data:`FULL`."""

    def room(self, quick: bool) -> int:
        """How many requests, for quick regions or others, it would begin with at once."""

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        """Compile; ``done`` is called from any thread."""


class LateBackend:
    """A backend that is made when ``ripe`` says so: a machine that ends soon gains nothing by compiling."""

    def __init__(self, make: Callable[[], WorkerBackend], ripe: Callable[[], bool]) -> None:
        self._make = make
        self._ripe = ripe
        self._backend: WorkerBackend | None = None

    @property
    def pressure(self) -> int:
        """None, until then."""
        return self._backend.pressure if self._backend is not None else NONE

    def room(self, quick: bool) -> int:
        """None, until then."""
        if self._backend is None and self._ripe():
            self._backend = self._make()
        return self._backend.room(quick) if self._backend is not None else 0

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        """Compile; nothing before that."""
        if self._backend is not None:
            self._backend.submit(request, done)
        else:
            done(None)


class WorkerBackend:
    """Has regions compiled by worker processes; ``harts`` are left a host core each, if there are enough."""

    def __init__(self, workers: Workers, harts: int = 1) -> None:
        self._workers = workers
        self._most = {True: 2, False: max(1, len(os.sched_getaffinity(0)) - harts)}
        self._lock = threading.Lock()
        self._busy = {True: 0, False: 0}

    @property
    def pressure(self) -> int:
        """How much there is to do."""
        if not any(self._busy.values()):
            return NONE
        return FULL if self._busy[True] >= self._most[False] else SOME

    def room(self, quick: bool) -> int:
        """How many requests it would begin with at once, or soon."""
        return min(self._workers.room(SOON if quick else WELL), self._most[quick] - self._busy[quick])

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        """Compile; ``done`` is called from any thread."""
        quick = request.quick
        with self._lock:
            self._busy[quick] += 1

        def finished(result: Region | Missing | None) -> None:
            with self._lock:
                self._busy[quick] -= 1
            done(result)

        # What was begun comes before what was not.
        urgency = SOON if quick else WELL_BEGUN if request.final else WELL
        self._workers.submit("region", request, finished, urgency=urgency)
