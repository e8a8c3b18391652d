"""Interrupt wires: who drives one calls ``set``, who listens implements it."""

from __future__ import annotations

import threading
from typing import Protocol

from polyvisor.dataclass import dataclass, field


class Line(Protocol):
    """One level-sensitive wire; ``True`` is asserted, whatever the polarity in hardware."""

    def set(self, level: bool) -> None:
        """Drive the wire. May be called from any thread, with the same level again, and does not block."""
        ...


class NullLine:
    """A wire that ends nowhere."""

    def set(self, level: bool) -> None:
        """Forget ``level``."""


@dataclass
class OrLineState:
    """``levels[i]`` is 1 while input ``i`` is asserted."""

    levels: list[int] = field(default_factory=list)


class OrLine:
    """Several wires that share one: ``line`` is asserted while any of them is."""

    def __init__(self, line: Line) -> None:
        self.state = OrLineState()
        self._line = line
        self._lock = threading.Lock()

    def input(self) -> Line:
        """One more wire, not asserted yet."""
        with self._lock:
            self.state.levels.append(0)
            return _OrInput(self, len(self.state.levels) - 1)

    def _drive(self, index: int, level: bool) -> None:
        with self._lock:
            before = any(self.state.levels)
            self.state.levels[index] = int(level)
            after = any(self.state.levels)
            if before != after:
                self._line.set(after)


class _OrInput:
    def __init__(self, gate: OrLine, index: int) -> None:
        self._gate = gate
        self._index = index

    def set(self, level: bool) -> None:
        self._gate._drive(self._index, level)
