"""What a tier of the engine offers to whoever runs a CPU, and the reference tier in that shape."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from polyvisor.adl import Architecture

from .cpu import Exit
from .memory import Memory

# The longest a waiting CPU of the reference tier sleeps before it looks again, in seconds; only a safety net.
_LONGEST_WAIT = 10.0
_NEVER = 2**64 - 1


class Executor(Protocol):
    """A CPU that can be run: the native tiers' :class:`~polyvisor.engine.cpu.Cpu`, or :class:`ReferenceExecutor`."""

    state: Any
    memory: Memory
    architecture: Architecture

    @property
    def clock(self) -> int:
        """The time counter, in ticks."""

    @clock.setter
    def clock(self, ticks: int) -> None: ...

    clock_offset: int  # ticks the counter is ahead of the host's clock; the same in all CPUs of a machine

    @property
    def retired(self) -> int:
        """Instructions executed so far; exact while it stands still. May be set then."""

    @retired.setter
    def retired(self, count: int) -> None: ...

    @property
    def view(self) -> Any:
        """The CPU as described functions see it, to evaluate hooks that only look at its state."""

    breakpoints: frozenset[int]

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Make `run` return before instructions at these virtual addresses. While all CPUs stand still."""

    def run(self, instructions: int | None = None) -> Exit: ...

    def step(self) -> Exit: ...

    def begin_turn(self, stop_at: int, base: int) -> None:
        """Prepare `run_turn`: virtual time is ``base`` + `retired`; the turn is over when that is ``stop_at``."""

    def run_turn(self, passing: bool = False) -> Exit:
        """Execute until the turn is over; see :meth:`polyvisor.engine.cpu.Cpu.run_turn`."""

    def break_at(self, retired: int | None) -> None:
        """Let `run_turn` return (`stop`) some hundred instructions after so many at the latest."""

    def end_turn_soon(self) -> None:
        """Called by a device while this CPU accesses it: let the turn end."""

    turn_state: tuple[int, bool]
    """What there is of a turn beside the time: when it ends, and whether it goes on between two instructions."""

    @property
    def turn_is_over(self) -> bool:
        """Whether `run_turn` would return at once."""

    def wakes_at(self, base: int) -> int:
        """When a CPU that waits goes on, in nanoseconds of virtual time: 0 for now, 2**64 - 1 if not by time."""

    def stop(self) -> None: ...

    def stop_behind(self) -> None:
        """Called by a hook's callback for an access: `run` returns (`stop`) behind the instruction that made it."""

    def poke(self) -> None: ...

    def wait(self) -> None:
        """Sleep until the hook `wake` has a reason not to, or someone calls `stop`. Where `run` would be called."""

    def reset(self) -> None: ...

    def revive(self) -> None:
        """In a copy of the process (``os.fork``), of which there may be many: take memory sparingly."""

    def flush(self) -> None:
        """Forget translations before anything else is executed; from any thread, returns when that is certain."""

    def connect(self, executors: Sequence[Any]) -> None:
        """Tell it of the CPUs of its machine, itself among them, in the order of their numbers. Before it runs."""


class ReferenceExecutor:
    """Tier 1 as an executor: every instruction is run by CPython."""

    def __init__(
        self, architecture: Architecture, memory: Memory, *, frequency: int = 1_000_000_000, virtual: bool = False
    ) -> None:
        from .reference import reference_cpu  # only here: the native tiers have no use for it

        self.architecture = architecture
        self.memory = memory
        self._frequency, self._virtual, self.clock_offset = frequency, virtual, 0
        self._virtual_base, self._stop_at, self._break_at = 0, _NEVER, _NEVER
        self.view = reference_cpu(architecture, memory, None, lambda: self.clock)
        self.state = self.view
        self.view.on_signal = self.poke
        self._stop = self._stop_behind = False
        self._wake = threading.Event()
        self.breakpoints: frozenset[int] = frozenset()

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        self.breakpoints = frozenset(addresses)

    @property
    def clock(self) -> int:
        base = self.retired + self._virtual_base if self._virtual else time.monotonic_ns()
        return (base * self._frequency // 1_000_000_000 + self.clock_offset) & (2**64 - 1)

    @clock.setter
    def clock(self, ticks: int) -> None:
        self.clock_offset += ticks - self.clock

    @property
    def retired(self) -> int:
        return int(self.view.retired)

    @retired.setter
    def retired(self, count: int) -> None:
        self.view.retired = count

    def reset(self) -> None:
        self.view.reset()
        self.view.retired = 0

    def run(self, instructions: int | None = None) -> Exit:
        self._stop_at = _NEVER if instructions is None else self.retired + instructions
        return self._go_on(instructions is None)

    def _go_on(self, endless: bool) -> Exit:
        while endless or self.retired < self._stop_at:
            if self._stop or self.retired >= self._break_at:
                self._stop = False
                return Exit("stop")
            reason = self.view.step()
            if reason is not None:
                return Exit("leave", reason)
            if self._stop_behind:
                self._stop_behind = False
                return Exit("stop")
            if self.breakpoints and int(self.view.pc) in self.breakpoints:
                return Exit("breakpoint")
        return Exit("limit")

    def begin_turn(self, stop_at: int, base: int) -> None:
        """Prepare :meth:`run_turn`: virtual time is ``base`` + ``retired``."""
        self._virtual_base, self._stop_at = base, stop_at

    def run_turn(self, passing: bool = False) -> Exit:
        """Execute until ``retired`` is what :meth:`begin_turn` said: exactly, so turns end elsewhere than natively."""
        return self._go_on(False)

    def break_at(self, retired: int | None) -> None:
        """Let :meth:`run_turn` return (`stop`) after so many instructions."""
        self._break_at = _NEVER if retired is None else retired

    def end_turn_soon(self) -> None:
        """Let the turn end behind the instruction that is being executed."""
        self._stop_at = min(self._stop_at, self.retired)

    @property
    def turn_state(self) -> tuple[int, bool]:
        """When the turn ends; it is always between two instructions."""
        return self._stop_at, False

    @turn_state.setter
    def turn_state(self, state: tuple[int, bool]) -> None:
        self._stop_at = state[0]

    @property
    def turn_is_over(self) -> bool:
        """Whether :meth:`run_turn` would return at once."""
        return self.retired >= self._stop_at

    def wakes_at(self, base: int) -> int:
        """When it goes on, if it waits, in nanoseconds of virtual time: 0 for now, 2**64 - 1 if not by time."""
        self._virtual_base = base
        hooks = self.architecture.hooks
        if "wake" not in hooks or hooks["wake"](self.view):
            return 0
        deadline = int(hooks["deadline"](self.view)) if "deadline" in hooks else _NEVER
        if deadline == _NEVER:
            return _NEVER
        now = self.retired + base
        ticks = now * self._frequency // 1_000_000_000
        wanted = ticks + max(0, deadline - self.clock)
        return max(now, -(-wanted * 1_000_000_000 // self._frequency)) if wanted > ticks else now

    def step(self) -> Exit:
        reason = self.view.step()
        self._stop_behind = False
        return Exit("step") if reason is None else Exit("leave", reason)

    def stop(self) -> None:
        self._stop = True
        self._wake.set()

    def stop_behind(self) -> None:
        """See :meth:`polyvisor.engine.cpu.Cpu.stop_behind`."""
        self._stop_behind = True

    def poke(self) -> None:
        """End a sleep; while it runs, it polls before every instruction."""
        self._wake.set()

    def wait(self) -> None:
        hooks = self.architecture.hooks
        while True:
            # First: what comes after this is seen below, or ends the sleep.
            self._wake.clear()
            if self._stop or "wake" not in hooks or hooks["wake"](self.view):
                return
            timeout = _LONGEST_WAIT
            deadline = int(hooks["deadline"](self.view)) if "deadline" in hooks else _NEVER
            if deadline != _NEVER:
                timeout = min(timeout, max(0.0, (deadline - self.clock) / self._frequency))
            if timeout:
                self._wake.wait(timeout)

    def revive(self) -> None:
        """There is nothing to do."""

    def flush(self) -> None:
        """Nothing: it keeps no translations."""

    def connect(self, executors: Sequence[Any]) -> None:
        self.view.peers = [executor.view for executor in executors]
