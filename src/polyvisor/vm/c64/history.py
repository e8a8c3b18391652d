"""The past of a machine: copies of it, one for each second, and all that reached it from outside between them.

The machine's only time is its own clock cycles, so a copy and what reached it later, each at its cycle, make the same
run again: any moment can be gone back to, exactly.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from polyvisor.boards.c64.machine import Commodore64, Saved, Stop

# In cycles: no instruction takes so long, even where the VIC-II has the bus for lines on end.
_LONGEST = 600
# How far back to look for the last stop at first: a frame, and some.
_WINDOWS = 20_000, 160_000


class Change(NamedTuple):
    """Something that reached the machine; the arguments are those of `Commodore64.change`."""

    elapsed: int
    what: str
    arguments: tuple[Any, ...]


class History:
    """What a machine was in the last ``seconds`` of its own time. A copy takes some 400 KB, with a disk 600 KB."""

    def __init__(self, machine: Commodore64, seconds: float) -> None:
        self._machine = machine
        self._copies: deque[Saved] = deque(maxlen=int(seconds) + 2)
        self._changes: deque[Change] = deque()
        self._repeating = False
        machine.on_change = self._changed
        machine.after_run.append(self._ran)
        self.begin()

    def begin(self) -> None:
        """Forget what was: the past begins now, such as after something was changed by other means."""
        self._copies.clear()
        self._changes.clear()
        self._copies.append(self._machine.save())

    @property
    def start(self) -> int:
        """The earliest moment that can be gone back to, in cycles since the power came."""
        return self._copies[0].elapsed

    @property
    def next_copy(self) -> int:
        """When the next copy is to be made, likewise."""
        return self._copies[-1].elapsed + self._machine.model.clock

    def _changed(self, what: str, arguments: tuple[Any, ...]) -> None:
        if not self._repeating:
            self._changes.append(Change(self._machine.elapsed, what, arguments))

    def _ran(self) -> None:
        if self._repeating or self._machine.elapsed < self.next_copy:
            return
        self._copies.append(self._machine.save())
        while self._changes and self._changes[0].elapsed < self.start:
            self._changes.popleft()

    def go_to(self, elapsed: int) -> None:
        """Let the machine be what it was at the end of the first instruction at or after a moment; what came later is
        forgotten.

        A disk's file gets what the disk had then. Raises ValueError for a moment that is not kept, ImageError if the
        file cannot be saved.
        """
        machine = self._machine
        if not self.start <= elapsed <= machine.elapsed:
            raise ValueError(
                f"cycle {elapsed} is not kept; there are {self.start} to {machine.elapsed},"
                f" of {machine.model.clock} a second"
            )
        with self._travels() as arrive:
            arrive(elapsed)

    def step_back(self, count: int = 1) -> bool:
        """Go to where the last ``count`` instructions, or entries of interrupts, began; False if that is not kept, and
        it is at the beginning of what is.

        Raises as :meth:`go_to`.
        """
        with self._travels() as arrive:
            return self._begin_of(self._machine.elapsed, count, arrive)

    def back_to_stop(self) -> Stop | None:
        """Go to where a run would last have ended by a breakpoint, or to the beginning of an instruction with a
        watched access; None: there was none, and it is at the beginning of what is kept.

        Raises as :meth:`go_to`.
        """
        end, breakpoints = self._machine.elapsed, self._machine.cpu.breakpoints
        found: tuple[int, Stop] | None = None
        with self._travels() as arrive:
            for first, last in self._spans(end):
                for each in self._stops(first, last, breakpoints):
                    found = each
                if found is not None:
                    break
            if found is None:
                arrive(self.start)
                return None
            where, stop = found
            if stop.access is None:
                arrive(where)
            else:
                self._begin_of(where, 1, arrive)
        return stop

    def _spans(self, end: int) -> Iterator[tuple[int, int]]:
        """Where to look for what came before ``end``, one after the other: from when, and up to when.

        There may be stops by the thousand, so that it is worth while to begin with a little.
        """
        for window in _WINDOWS:
            if self.start < end - window:
                yield end - window, end
        for copied in reversed(self._copies):
            if copied.elapsed < end:
                yield copied.elapsed, end
                end = copied.elapsed

    def _stops(self, first: int, end: int, breakpoints: Iterable[int]) -> Iterator[tuple[int, Stop]]:
        """What would have ended runs from a moment on, and when: breakpoints before ``end``, accesses up to it."""
        machine = self._machine
        self._again(first)
        machine.cpu.set_breakpoints(breakpoints)
        for moment in self._moments(first, end):
            if machine.elapsed < end and int(machine.state.pc) in machine.cpu.breakpoints:
                yield machine.elapsed, Stop("breakpoint")
            for stop in machine.stops_to(moment):
                if stop.access is not None or machine.elapsed < end:
                    yield machine.elapsed, stop
        machine.cpu.set_breakpoints(())

    def _begin_of(self, elapsed: int, count: int, arrive: Callable[[int], None]) -> bool:
        """Arrive where the ``count`` instructions began that had ended at a moment, or at the beginning; gives whether
        there are so many.
        """
        machine, start = self._machine, self.start
        window = _LONGEST + 4 * count
        while True:
            first = max(start, elapsed - window)
            self._again(first)
            began = []
            for moment in self._moments(first, elapsed):
                while machine.elapsed < moment:
                    began.append(machine.elapsed)
                    machine.step()
                    if machine.elapsed == began[-1]:
                        break
            if len(began) >= count or first == start:
                break
            window *= 2
        arrive(began[-count] if len(began) >= count else start)
        return len(began) >= count

    # Repeating

    @contextmanager
    def _travels(self) -> Iterator[Callable[[int], None]]:
        """What the machine does meanwhile is known already: it is not noted, and not saved to a disk's file.

        Gives a function that goes to a moment, for good. Where something goes wrong, the machine goes on from where it
        was.
        """
        machine = self._machine
        now, before = machine.elapsed, self._disk()
        breakpoints, saves = machine.cpu.breakpoints, machine.drive.saves
        if breakpoints:
            machine.cpu.set_breakpoints(())
        self._repeating, machine.drive.saves = True, False
        reached = now
        try:
            def arrive(elapsed: int) -> None:
                nonlocal reached
                self._again(elapsed)
                reached = elapsed

            try:
                yield arrive
            except BaseException:
                self._again(now)
                raise
        finally:
            self._repeating, machine.drive.saves = False, saves
            if breakpoints:
                machine.cpu.set_breakpoints(breakpoints)
        while self._copies[-1].elapsed > reached:
            self._copies.pop()
        while self._changes and self._changes[-1].elapsed > reached:
            self._changes.pop()
        if before != self._disk():
            machine.drive.save()

    def _disk(self) -> tuple[bytes, object]:
        return bytes(self._machine.drive.state.sectors), self._machine.drive.path

    def _again(self, elapsed: int) -> None:
        """Be what the machine was at a moment, by the copy before it, and with all that reached the machine since."""
        copied = next(each for each in reversed(self._copies) if each.elapsed <= elapsed)
        self._machine.restore(copied)
        # A copy is made when a run ends, so what was changed at its moment came after it.
        for moment in self._moments(copied.elapsed - 1, elapsed):
            self._machine.run_to(moment)

    def _moments(self, after: int, elapsed: int) -> Iterator[int]:
        """To where whoever asks is to run: to each change later than ``after``, which is made then, and to the end."""
        for change in list(self._changes):
            if after < change.elapsed <= elapsed:
                yield change.elapsed
                self._machine.change(change.what, *change.arguments)
        yield elapsed
