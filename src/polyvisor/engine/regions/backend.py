"""Where regions are compiled: in a thread of this process."""

from __future__ import annotations

import queue
import threading
import traceback
from collections.abc import Callable

from ..native import NativeCode
from .compile import Missing, Region, RegionCompiler, Request


def region_compiler(code: NativeCode) -> RegionCompiler:
    """The compiler for an architecture's regions."""
    return RegionCompiler(code.architecture, code.layout, code.runtime, code.handler_function, code.fixed)


class LocalBackend:
    """Compiles in a thread of this process."""

    def __init__(self, code: NativeCode) -> None:
        self.compiler = region_compiler(code)
        self._queue: queue.Queue[tuple[Request, Callable[[Region | Missing | None], None]]] = queue.Queue()
        self._busy = 0
        threading.Thread(target=self._main, name="region compiler", daemon=True).start()

    def room(self) -> int:
        """How many requests it would begin with at once."""
        return max(0, 2 - self._busy)

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        """Compile; ``done`` is called from its thread."""
        self._busy += 1
        self._queue.put((request, done))

    def _main(self) -> None:
        while True:
            request, done = self._queue.get()
            result: Region | Missing | None = None
            try:
                result = self.compiler.compile(request)
            except Exception:
                traceback.print_exc()
            self._busy -= 1
            done(result)
