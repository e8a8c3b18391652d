"""The past of a machine: copies of it, one for each second, and all that reached it from outside between them.

The machine's only time is its own clock cycles, so a copy and what reached it later, each at its cycle, make the same
run again: any moment can be gone back to, exactly.
"""

from __future__ import annotations

from collections import deque
from typing import Any, NamedTuple

from polyvisor.boards.c64.machine import Commodore64, Saved


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
        while self._copies[-1].elapsed > elapsed:
            self._copies.pop()
        before = bytes(machine.drive.state.sectors), machine.drive.path
        breakpoints, saves = machine.cpu.breakpoints, machine.drive.saves
        if breakpoints:
            machine.cpu.set_breakpoints(())
        self._repeating, machine.drive.saves = True, False
        try:
            copied = self._copies[-1]
            machine.restore(copied)
            # A copy is made when a run ends, so what was changed at its moment came after it.
            for change in [each for each in self._changes if copied.elapsed <= each.elapsed <= elapsed]:
                machine.run_to(change.elapsed)
                machine.change(change.what, *change.arguments)
            machine.run_to(elapsed)
        finally:
            self._repeating, machine.drive.saves = False, saves
            if breakpoints:
                machine.cpu.set_breakpoints(breakpoints)
        while self._changes and self._changes[-1].elapsed > elapsed:
            self._changes.pop()
        if before != (bytes(machine.drive.state.sectors), machine.drive.path):
            machine.drive.save()
