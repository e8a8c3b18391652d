"""In which order workers compile, and who waits for whom."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from polyvisor.engine import workers as module
from polyvisor.engine.regions.backend import FULL, NONE, SOME, WorkerBackend
from polyvisor.engine.regions.region import Request
from polyvisor.engine.workers import NEEDED, SOMETIME, SOON, Workers
from polyvisor.isa.riscv import rv64


class Slow(Workers):
    """Workers that compile nothing, but note what they are asked for; each takes as long as the test lets it."""

    def __init__(self) -> None:
        super().__init__(rv64)
        self.order: list[Any] = []
        self.go = threading.Semaphore(0)

    def _ask(self, process: Any, kind: str, payload: Any) -> Any:
        self.order.append(payload)
        assert self.go.acquire(timeout=30)
        return None, payload


def eventually(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_the_most_urgent_comes_first(monkeypatch):
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    workers = Slow()
    done: list[Any] = []
    workers.submit("test", "first", done.append)
    eventually(lambda: workers.order)
    for name, urgency in (("sometime", SOMETIME), ("soon", SOON), ("needed", NEEDED)):
        workers.submit("test", name, done.append, urgency=urgency)
    for _ in range(4):
        workers.go.release()
    eventually(lambda: len(done) == 4)
    assert workers.order == done == ["first", "needed", "soon", "sometime"]


def test_what_may_be_done_sometime_waits_until_it_is_quiet(monkeypatch):
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    monkeypatch.setattr(module, "_QUIET", 0.5)
    workers = Slow()
    done: list[Any] = []
    for _ in range(20):
        workers.go.release()
    workers.submit("test", "sometime", done.append, urgency=SOMETIME)
    for number in range(5):  # there is a pause behind each, but a short one
        workers.submit("test", number, done.append, urgency=SOON)
        eventually(lambda number=number: number in done)
    eventually(lambda: len(done) == 6)
    assert done == [0, 1, 2, 3, 4, "sometime"]


@pytest.mark.parametrize("cores", [2, 8])
def test_the_load_says_whether_a_core_is_left(monkeypatch, cores):
    monkeypatch.setenv("POLYVISOR_WORKERS", "3")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)))
    workers = Slow()
    backend = WorkerBackend(workers)
    assert backend.pressure == NONE
    found: list[Any] = []
    backend.submit(Request(0, {}, quick=True), found.append)
    assert backend.room(quick=True) > 0
    assert backend.pressure == (FULL if cores == 2 else SOME)
    workers.go.release()
    eventually(lambda: found)
    assert backend.pressure == NONE
    backend.submit(Request(0, {}), found.append)
    assert backend.pressure == SOME
    workers.go.release()
    eventually(lambda: len(found) == 2)
