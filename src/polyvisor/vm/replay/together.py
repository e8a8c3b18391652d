"""Runs the recording of a group again: all its machines, in their common virtual time."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import TracebackType

from .format import Reader
from .replay import Replay


class GroupReplay:
    """The machines of a recording, each a :class:`Replay`, at the beginning. They run while a method does.

    What each got from the others is in its own part of the recording, so it can also be replayed alone, and looked at,
    run and turned back by itself: :meth:`goto` brings all to one time again. Options are those of Replay;
    ``on_output`` is called with a machine's name and what its console printed. Raises RecordingError.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, tier: str = "jit",
        on_output: Callable[[str, bytes], None] | None = None, check: bool = True, backwards: bool = True,
    ) -> None:
        reader = Reader(path)
        reader.close()
        self.machines: dict[str, Replay] = {}
        """By their names."""
        try:
            for name in reader.names:
                self.machines[name] = Replay(
                    path, tier=tier, on_output=None if on_output is None else partial(on_output, name), check=check,
                    backwards=backwards, machine=name,
                )
        except BaseException:
            self.close()
            raise

    @property
    def time(self) -> int:
        """The common virtual time, in nanoseconds: that of the machine that is last, of those that have not ended."""
        running = [_time(each) for each in self.machines.values() if not each.ended]
        return min(running) if running else max(map(_time, self.machines.values()))

    @property
    def ended(self) -> bool:
        """Whether all have come to their ends."""
        return all(each.ended for each in self.machines.values())

    @property
    def checked(self) -> int:
        """How many checkpoints were found to be the same, of all machines."""
        return sum(each.checked for each in self.machines.values())

    def run(self, until: int | None = None) -> None:
        """Go on to the end, or to the end of the turns in which the time is ``until``. Breakpoints are passed.

        One turn after the other, always of the machine that is last. Raises DivergenceError.
        """
        while running := [each for each in self.machines.values() if not each.ended]:
            last = min(running, key=_time)
            if until is not None and _time(last) >= until:
                break
            last.advance()

    def goto(self, when: int) -> None:
        """Bring all machines to a time, in nanoseconds, forwards or backwards; what ended before stays at its end.

        Raises ValueError if that is not in the
        recording of any.
        """
        if when < 0 or not any([_goes_to(each, when) for each in self.machines.values()]):
            raise ValueError(f"the recording has no such time, {when:,}: it is now at {self.time:,}")

    def close(self) -> None:
        """Give back what it holds."""
        for each in self.machines.values():
            each.close()

    def __enter__(self) -> GroupReplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _time(machine: Replay) -> int:
    return machine.epoch + machine.time


def _goes_to(machine: Replay, when: int) -> bool:
    life = max((life for life, epoch in enumerate(machine.epochs) if epoch <= when), default=0)
    try:
        if life != machine.life:
            machine.goto_life(life)
        machine.goto_time(when - machine.epoch)
    except ValueError:
        return False
    return True


def replay_group(
    path: str | os.PathLike[str], *, tier: str = "jit", on_output: Callable[[str, bytes], None] | None = None,
    check: bool = True, backwards: bool = True,
) -> GroupReplay:
    """The machines of a recording, at their beginning; see :class:`GroupReplay`. Raises RecordingError."""
    return GroupReplay(path, tier=tier, on_output=on_output, check=check, backwards=backwards)
