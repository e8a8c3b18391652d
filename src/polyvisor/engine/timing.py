"""How virtual time passes, as it is asked for, and how far it is: what :mod:`.conductor` works by.

In a module of its own, because machines in real time do without the rest.
"""

from __future__ import annotations

from polyvisor.dataclass import dataclass, field, replace

NEVER = 2**64 - 1
"""A time that does not come, in nanoseconds."""
# Instructions in a turn. Alone, a hart only lets the outside wait.
_ALONE, _AMONG_OTHERS = 400_000, 100_000
# For schedules that differ: turns are from an eighth of the usual length to twice that.
_SHORTEST, _LONGEST = 8, 2


@dataclass(frozen=True)
class Timing:
    """``turn``: instructions in a turn; None: 100,000, or more if there is one hart only. ``schedule``: a seed by which
    turns are longer and shorter, None: all alike.

    ``pace``: while all harts wait, time goes on as the host's does, so that the outside has time to say something; else
    it skips to the next timer at once. ``start``: the wall time at virtual time 0, in nanoseconds since 1970-01-01 UTC;
    None: what the host's is.

    For a machine that has its time in common with others, ``step``: nanoseconds that none is ahead, None: it has a time
    of its own; ``epoch``: the common time at its time 0.
    """

    turn: int | None = None
    schedule: int | None = None
    pace: bool = False
    start: int | None = None
    step: int | None = None
    epoch: int = 0

    def __post_init__(self) -> None:
        """Raises ValueError for an impossible turn."""
        if self.turn is not None and not 100 <= self.turn <= 10**9:
            raise ValueError(f"turns of {self.turn} instructions; 100 to 1,000,000,000 are possible")
        if self.step is not None and not 1000 <= self.step <= 10**9:
            raise ValueError(f"steps of {self.step} nanoseconds; 1,000 to 1,000,000,000 are possible")

    def of(self, harts: int) -> Timing:
        """With a definite ``turn``, for so many harts."""
        alone = harts == 1 and self.step is None
        return self if self.turn is not None else replace(self, turn=_ALONE if alone else _AMONG_OTHERS)

    def horizon(self, time: int) -> int:
        """The end of the step that ``time``, in nanoseconds, is in."""
        if self.step is None:
            return NEVER
        return ((time + self.epoch) // self.step + 1) * self.step - self.epoch

    def length(self, turn: int) -> int:
        """The instructions in a turn, by its number; see :meth:`of`."""
        assert self.turn is not None
        if self.schedule is None:
            return self.turn
        # splitmix64, of the seed and the number.
        z = (self.schedule * 0x9E3779B97F4A7C15 + turn * 0xD1B54A32D192ED03) & NEVER
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & NEVER
        z = (z ^ z >> 27) * 0x94D049BB133111EB & NEVER
        shortest = self.turn // _SHORTEST
        return shortest + (z ^ z >> 31) % (self.turn * _LONGEST - shortest)


@dataclass
class ConductorState:
    """``time`` in nanoseconds and ``executed`` instructions are those at the beginning of the turn."""

    time: int = 0
    executed: int = 0
    turn: int = 0
    """Turns so far, and times that all harts waited."""
    following: int = 0
    """The hart whose turn it is next, if it wants one."""
    current: int | None = None
    """The hart whose turn it is."""
    began: int = 0
    """What it had executed when the turn began."""
    ends: int = 0
    """What it will have executed when the turn ends; only in a state that was saved in the midst of one."""
    between: bool = False
    """Likewise, whether it stands where it would not have looked around."""
    settles: int = 0
    """How many instructions are executed when translations are forgotten the next time."""
    waiting: list[bool] = field(default_factory=list)
    """Harts that wait for an interrupt."""
