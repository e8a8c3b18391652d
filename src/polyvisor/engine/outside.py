"""Where the outside gets into a machine in virtual time.

What runs on other threads (networks, terminals, people) may not touch a device while a CPU runs: it posts what it wants
to a :class:`Source`, and that is done between two turns. So all that is not the machine's own is a list of operations,
each with the number of its turn. They can be written down, and done again at the same places.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from polyvisor.dataclass import dataclass

_NEVER = 2**64 - 1

Plain = int | str | bytes | None
"""What an operation is given."""

Enter = Callable[[str, Sequence[Plain]], None]
"""Does an operation, given its name and arguments."""


@dataclass(frozen=True)
class Operation:
    """``name`` is done to ``source`` with ``arguments``, before turn ``turn``."""

    turn: int
    source: str
    name: str
    arguments: tuple[Plain, ...] = ()


class Log(Protocol):
    """Who writes down what comes from outside."""

    def operation(self, operation: Operation) -> None:
        """Something is about to be done."""

    def value(self, source: str, value: tuple[Plain, ...]) -> None:
        """The machine asked for something, on the thread of the CPU that runs, and gets this."""


class Script(Protocol):
    """What was written down, to be done again."""

    def operations(self, turn: int) -> Sequence[Operation]:
        """Those before a turn. Asked for each turn once, in order."""

    def value(self, source: str) -> tuple[Plain, ...]:
        """What the machine gets now. Raises an error if it asked for something else then."""


class Source:
    """One way in. ``enter`` is called on the thread that runs the CPUs, while none runs."""

    def __init__(self, outside: Outside, name: str, enter: Enter) -> None:
        self.name = name
        self.enter = enter
        self._outside = outside

    @property
    def repeats(self) -> bool:
        """Whether the outside is what was written down: there is no host behind the device."""
        return self._outside.script is not None

    def post(self, operation: str, *arguments: Plain) -> None:
        """Have something done before the next turn; from any thread, does not wait."""
        self._outside.post(self, operation, arguments)

    def value(self, produce: Callable[[], tuple[Plain, ...]]) -> tuple[Plain, ...]:
        """What ``produce`` gives, or gave when this was written down. On the thread that runs the CPUs."""
        return self._outside.value(self.name, produce)


class Outside:
    """All sources of a machine, and what waits to be done."""

    def __init__(self) -> None:
        self.log: Log | None = None
        self.script: Script | None = None
        self.arrived: Callable[[], None] = lambda: None
        """Called when something was posted, on the thread that did it."""
        self.when: Callable[[], int | None] = lambda: None
        """When what is posted now arrives, in nanoseconds of the machine's time; None: before the next turn."""
        self._sources: dict[str, Source] = {}
        self._inbox: deque[tuple[Source, str, tuple[Plain, ...]]] = deque()
        # What other machines sent, by when it arrives: only their common thread has to do with it.
        self._coming: list[tuple[int, int, Source, str, tuple[Plain, ...]]] = []
        self._numbers = count()

    def source(self, name: str, enter: Enter) -> Source:
        """A new source. Raises ValueError if there is one of that name."""
        if name in self._sources:
            raise ValueError(f"there is a source {name!r} already")
        source = self._sources[name] = Source(self, name, enter)
        return source

    @property
    def waiting(self) -> bool:
        """Whether something was posted that is to be done before the next turn."""
        return bool(self._inbox)

    @property
    def next_arrival(self) -> int:
        """When the first of what has a time arrives, in nanoseconds; 2^64 - 1 for never."""
        return self._coming[0][0] if self._coming else _NEVER

    def post(self, source: Source, operation: str, arguments: tuple[Plain, ...]) -> None:
        """Keep an operation until it arrives. When a recording is repeated, nothing else comes in."""
        if self.script is not None:
            return
        when = self.when()
        if when is None:
            self._inbox.append((source, operation, arguments))
        else:
            heapq.heappush(self._coming, (when, next(self._numbers), source, operation, arguments))
        self.arrived()

    def enter(self, turn: int, time: int) -> None:
        """Do what comes before this turn, which begins at ``time``."""
        if self.script is not None:
            for each in self.script.operations(turn):
                self._sources[each.source].enter(each.name, each.arguments)
            return
        while self._coming and self._coming[0][0] <= time:
            self._do(turn, *heapq.heappop(self._coming)[2:])
        # What these cause to be posted comes before the next turn.
        for _ in range(len(self._inbox)):
            self._do(turn, *self._inbox.popleft())

    def _do(self, turn: int, source: Source, name: str, arguments: tuple[Plain, ...]) -> None:
        if self.log is not None:
            self.log.operation(Operation(turn, source.name, name, arguments))
        source.enter(name, arguments)

    def note(self, turn: int, source: Source, operation: str, *arguments: Plain) -> None:
        """Write down an operation that has been done."""
        if self.log is not None:
            self.log.operation(Operation(turn, source.name, operation, arguments))

    def value(self, source: str, produce: Callable[[], tuple[Plain, ...]]) -> tuple[Plain, ...]:
        """See :meth:`Source.value`."""
        if self.script is not None:
            return self.script.value(source)
        value = produce()
        if self.log is not None:
            self.log.value(source, value)
        return value
