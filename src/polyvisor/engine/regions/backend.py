"""Worker processes that compile regions beside the guest.

A worker is a process of its own, so that neither the interpreter lock nor LLVM's is shared with the CPUs, and what goes wrong
in the compiler ends the worker and not the machine.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from polyvisor.adl import Architecture

from .compile import Missing, Region, Request

Done = Callable[[Region | Missing | None], None]
_HEAD = struct.Struct("<Q")
# A worker that dies is replaced, up to so many times.
_MAX_DEATHS = 8


def worker_count() -> int:
    """How many workers there are: POLYVISOR_WORKERS, or all host cores but one, at most 3."""
    given = os.environ.get("POLYVISOR_WORKERS", "")
    if given.isdigit():
        return int(given)
    return max(1, min(3, len(os.sched_getaffinity(0)) - 1))


def architecture_name(architecture: Architecture) -> str | None:
    """Where a worker can import the architecture from, as ``module:name``; None if it cannot."""
    for name, module in list(sys.modules.items()):
        if name.startswith("polyvisor.isa.") and getattr(module, architecture.name, None) is architecture:
            return f"{name}:{architecture.name}"
    return None


class Workers:
    """Compile workers for one architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self.name = architecture_name(architecture)
        self.count = worker_count() if self.name else 0
        self.deaths = 0
        self._queue: queue.Queue[tuple[Request, Done] | None] = queue.Queue()
        self._waiting = 0
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def room(self) -> int:
        """How many requests would be begun with at once, or wait for a moment only."""
        return 0 if self.deaths >= _MAX_DEATHS else max(0, self.count + 1 - self._waiting)

    def submit(self, request: Request, done: Done) -> None:
        """Compile; ``done`` is called from any thread, with None where that failed."""
        with self._lock:
            self._waiting += 1
            if len(self._threads) < min(self.count, self._waiting):
                thread = threading.Thread(target=self._serve, name="compile worker", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._queue.put((request, done))

    def close(self) -> None:
        """End the workers."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for process in list(self._processes):
            process.kill()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", "from polyvisor.engine.regions.worker import main; main()", str(self.name)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self._processes.add(process)
        return process

    def _serve(self) -> None:
        """Hand requests to one worker, which is started when there is one."""
        process: subprocess.Popen[bytes] | None = None
        while (job := self._queue.get()) is not None and not self._closed:
            request, done = job
            result: Any = None
            try:
                if process is None or process.poll() is not None:
                    process = self._start()
                assert process.stdin is not None and process.stdout is not None
                send(process.stdin, request)
                result = receive(process.stdout)
            except (OSError, EOFError, pickle.UnpicklingError):
                self.deaths += 1
                if process is not None:
                    self._end(process)
                    process = None
            if result is None and os.environ.get('PVDBG'): open(f'/tmp/rj/fail{id(request)}.pkl','wb').write(pickle.dumps(request))
            with self._lock:
                self._waiting -= 1
            done(result)
        if process is not None:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        self._processes.discard(process)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        process.kill()
        process.wait()


def send(stream: Any, value: object) -> None:
    """Write a value to a pipe."""
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
    return pickle.loads(data)
