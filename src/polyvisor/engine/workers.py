"""Worker processes that compile beside the guest: handlers of the interpreter, and regions.

A worker is a process of its own, so that neither the interpreter lock nor LLVM's is shared with the CPUs, and what goes
wrong in the compiler ends the worker and not the machine.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import queue
import struct
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from polyvisor.adl import Architecture

from .objectcode import cache_key

if TYPE_CHECKING:  # imported when a worker starts, beside the guest
    import subprocess

Done = Callable[[Any], None]
# Urgency, number, kind, payload, what is called with the result, what is asked before.
_Job = tuple[int, int, str, Any, Done, Callable[[], bool] | None]
_HEAD = struct.Struct("<Q")
# A worker that dies is replaced, up to so many times; one that has nothing to do ends after so many seconds.
MAX_DEATHS = 8
_IDLE = 10.0
# What is to be done sometime waits until nobody has wanted anything else for so many seconds: who does want something
# then need not wait for it.
_QUIET = 0.25
# How urgent requests are. Those for good regions may take some tenths of a second.
NEEDED, SOON, WELL_BEGUN, WELL, SOMETIME = range(5)
_SLOW = (WELL_BEGUN, WELL, SOMETIME)


def worker_count() -> int:
    """How many workers there are: POLYVISOR_WORKERS, or all host cores but one, at least 2 and at most 3.

    With two, what is ready soon need not wait for what takes long, even where both share a core.
    """
    given = os.environ.get("POLYVISOR_WORKERS", "")
    if given.isdigit():
        return int(given)
    return max(2, min(3, len(os.sched_getaffinity(0)) - 1))


def architecture_name(architecture: Architecture) -> str | None:
    """Where a worker can import the architecture from, as ``module:name``; None if it cannot."""
    for name, module in list(sys.modules.items()):
        described = name.startswith(("polyvisor.isa.", "polyvisor.boards."))
        if described and getattr(module, architecture.name, None) is architecture:
            return f"{name}:{architecture.name}"
    return None


class Workers:
    """Compile workers for one architecture, shared by its machines; they start when there is something to do.

    ``key`` is that of the code cache: what was compiled from other sources than this process's would be of no use.
    """

    def __init__(self, architecture: Architecture, key: str | None = None) -> None:
        self.name = architecture_name(architecture)
        self.key = key or cache_key(architecture)
        self.count = worker_count() if self.name else 0
        self._begin()

    def revive(self, count: int) -> None:
        """In a copy of the process (``os.fork``), which has none of the threads: begin anew, with ``count`` workers.

        Nothing that was asked for is done there.
        """
        self.count = min(self.count, count)
        self._begin()

    def _begin(self) -> None:
        self.deaths = 0
        self._queue: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._later: deque[_Job] = deque()  # of those that are to be done sometime
        self._numbers = itertools.count()
        self._waiting: Counter[int] = Counter()  # by urgency
        self._serving = 0
        self._slow = 0  # requests under way that may take long
        self.processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def room(self, urgency: int) -> int:
        """How many requests of an urgency would be begun with at once, or wait for a moment only."""
        if self.deaths >= MAX_DEATHS:
            return 0
        with self._lock:
            before = sum(count for other, count in self._waiting.items() if other <= urgency)
        return max(0, self.count + 1 - before)

    def ready(self) -> None:
        """Start a worker now, if there is none: soon it will have something to do."""
        with self._lock:
            if self.count and not self._serving:
                self._serving += 1
                threading.Thread(target=self._serve, args=(True,), name="compile worker", daemon=True).start()

    def submit(
        self, kind: str, payload: Any, done: Done, *, urgency: int = NEEDED, begin: Callable[[], bool] | None = None
    ) -> None:
        """Have something compiled; ``done`` is called from any thread, with None where that failed.

        The lowest ``urgency`` comes first.  ``begin`` is asked just before, whether it still is to be done.
        """
        if self.count == 0 or self.deaths >= MAX_DEATHS:
            done(None)
            return
        with self._lock:
            self._waiting[urgency] += 1
            job = urgency, next(self._numbers), kind, payload, done, begin
            if urgency == SOMETIME:
                self._later.append(job)
            else:
                self._queue.put(job)
            # The last one is for what would have to wait for others that take long.
            enough = self.count if self._slow else max(1, self.count - 1)
            if self._serving < min(enough, self._waiting.total()):
                self._serving += 1
                threading.Thread(target=self._serve, name="compile worker", daemon=True).start()

    def _serve(self, at_once: bool = False) -> None:
        """Hand requests to one worker, until there are none for a while; start it ``at_once`` or with the first."""
        process: subprocess.Popen[bytes] | None = None
        try:
            if at_once and self.deaths < MAX_DEATHS:
                with contextlib.suppress(OSError):
                    process = self._start()
            while True:
                job = self._next()
                if job is None:
                    return
                urgency, _, kind, payload, done, begin = job
                result: Any = None
                slow = urgency in _SLOW
                with self._lock:
                    self._slow += slow
                if self.deaths < MAX_DEATHS and (begin is None or begin()):
                    process, result = self._ask(process, kind, payload)
                with self._lock:
                    self._slow -= slow
                    self._waiting[urgency] -= 1
                done(result)
        finally:
            if process is not None:
                self._end(process)

    def _next(self) -> _Job | None:
        """What is to be done now; None if there was nothing for a while: then the one who asks ends."""
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_QUIET if self._later else _IDLE)
            with self._lock:
                if self._later:
                    return self._later.popleft()
                if self._queue.empty():
                    self._serving -= 1
                    return None

    def _ask(
        self, process: subprocess.Popen[bytes] | None, kind: str, payload: Any
    ) -> tuple[subprocess.Popen[bytes] | None, Any]:
        import pickle

        try:
            if process is None or process.poll() is not None:
                if process is not None:
                    self._end(process)
                process = self._start()
            assert process.stdin is not None and process.stdout is not None
            send(process.stdin, (kind, payload))
            return process, receive(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):
            self.deaths += 1
            if process is not None:
                self._end(process)
            return None, None

    def _start(self) -> subprocess.Popen[bytes]:
        import subprocess

        # A process group of its own keeps it from the terminal's signals; in a session of its own, the host's scheduler
        # would take its low priority for nothing (autogroups).
        process = subprocess.Popen(
            [sys.executable, "-c", "from polyvisor.engine.worker import main; main()", str(self.name), self.key],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self.processes.add(process)
        return process

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self.processes.discard(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.kill()
        process.wait()


def send(stream: Any, value: object) -> None:
    """Write a value to a pipe."""
    import pickle

    data = pickle.dumps(value)
    stream.write(_HEAD.pack(len(data)) + data)
    stream.flush()


def receive(stream: Any) -> Any:
    """Read a value from a pipe. Raises EOFError."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        raise EOFError
    (size,) = _HEAD.unpack(head)
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    import pickle

    return pickle.loads(data)
