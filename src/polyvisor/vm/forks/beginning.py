"""Forks begin some at a time: all at once, each would get so little of the host that none answers for long."""

from __future__ import annotations

import contextlib
import os
import select
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .fork import Fork

AT_ONCE = 2 * len(os.sched_getaffinity(0))
"""So many forks may be beginning at the same time."""
# Seconds after which one more may, though none of those has said that it is done.
_PATIENCE = 1.0


class Beginning:
    """Made before the process is copied; by it copies report, and the parent gives the next one room."""

    def __init__(self) -> None:
        self._done, self._report = os.pipe()
        self._lock = threading.Lock()

    # In a copy

    def is_copy(self) -> None:
        """This is one of the copies."""
        os.close(self._done)
        self._done = -1

    def report(self) -> None:
        """It has begun; only the first call counts."""
        with self._lock:
            report, self._report = self._report, -1
        if report >= 0:
            with contextlib.suppress(OSError):
                os.write(report, b".")
            os.close(report)

    # In the parent

    def let_begin(self, forks: Sequence[Fork]) -> None:
        """Let forks begin after others that have been told to, in this order; does not wait for that."""
        os.close(self._report)
        self._report = -1
        if forks:
            # Nobody keeps a fork alive but who uses it.
            waiting = [weakref.ref(fork) for fork in forks]
            threading.Thread(target=self._main, args=(waiting,), name="forks begin", daemon=True).start()
        else:
            self._close()

    def _main(self, waiting: Sequence[weakref.ref[Fork]]) -> None:
        reports = select.poll()
        reports.register(self._done, select.POLLIN)
        room = 0
        try:
            for reference in waiting:
                if not room:
                    done = os.read(self._done, 4096) if reports.poll(_PATIENCE * 1000) else b"."
                    if not done:  # all have ended
                        return
                    room = len(done)
                fork = reference()
                if fork is not None:
                    room -= 1
                    fork.begin()
                del fork
        finally:
            self._close()

    def _close(self) -> None:
        done, self._done = self._done, -1
        os.close(done)

    def give_up(self) -> None:
        """Nobody is to begin."""
        for end in (self._done, self._report):
            if end >= 0:
                os.close(end)
        self._done = self._report = -1
