"""Runs the harts of a machine in virtual time, one after the other on one thread, so that every run is the same.

Time is the number of instructions that the harts have executed together, in nanoseconds, and what was skipped while all
of them waited. A *turn* is what one hart executes before it is the next one's turn. It ends after a number of
instructions, at the first jump (see :meth:`polyvisor.engine.cpu.Cpu.run_turn`); sooner where a timer is due, a device
interrupts the hart, or the hart waits. Nothing else but the hart changes anything during a turn: what comes from
outside (:mod:`polyvisor.engine.outside`) and timers of devices are served between turns.

Several machines can have one time: then somebody else (:class:`Leader`) runs their conductors, so that none is ahead of
another by more than a *step*. No turn goes beyond the step that it began in.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Protocol

from polyvisor.dataclass import replace

from .hart import Hart
from .outside import Outside, Plain
from .timing import NEVER, ConductorState, Timing

# The longest that a machine in which everybody waits sleeps before it looks again, in seconds; only a safety net.
_LONGEST_WAIT = 10.0
# How far in front of an instruction that is looked for single steps begin: no run overshoots by more.
_APPROACH = 2600
# Instructions from one time that all translations are forgotten to the next.
_SETTLE = 1 << 27


class Leader(Protocol):
    """Who runs the conductors of machines that have one time, in one thread."""

    @property
    def time(self) -> int:
        """The common time, in nanoseconds: all that is before that is over."""
        ...

    def enter(self, conductor: Conductor) -> None:
        """A conductor's machine may run from now on."""

    def join(self, conductor: Conductor, timeout: float | None) -> None:
        """Wait until it does not run any more."""


class Conductor:
    """Runs ``harts``: in a thread of its own (:meth:`start`), in that of a leader, or step by step by whoever calls
    :meth:`advance`.

    ``failed`` is told of errors of ours, or of a device.
    """

    def __init__(
        self, harts: Sequence[Hart], timing: Timing, failed: Callable[[BaseException], None]
    ) -> None:
        self.timing = timing.of(len(harts))
        self.outside = Outside()
        self.outside.arrived = self._arrived
        self.state = ConductorState(waiting=[False] * len(harts))
        self.before_turn: list[Callable[[], None]] = []
        """Called between turns, before anything from outside gets in."""
        self.on_settled: list[Callable[[], None]] = []
        """Called between turns where the harts' state is all there is of them."""
        self.on_break: Callable[[Hart], None] | None = None
        self._harts = list(harts)
        self.failed = failed
        self._leader: Leader | None = None
        self._rests: int | None = None
        self._idle = self.outside.source("time", self._skip)
        self._skipped: int | None = None
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()
        self._passing = False
        self._halted = self._pausing = self._standing = self._disturbed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._revived = False
        for hart in harts:
            hart.conductor = self

    # Time

    @property
    def now(self) -> int:
        """Virtual time, in nanoseconds."""
        state = self.state
        return state.time + (self.running.cpu.retired - state.began if self.running is not None else 0)

    @property
    def executed(self) -> int:
        """Instructions that all harts together have executed."""
        state = self.state
        return state.executed + (self.running.cpu.retired - state.began if self.running is not None else 0)

    def call_at(self, when: int, callback: Callable[[], None]) -> object:
        """Call ``callback`` between turns when it is ``when``, in nanoseconds; gives what :meth:`cancel` takes."""
        entry = (when, next(self._numbers), callback)
        heapq.heappush(self._timers, entry)
        running = self.running
        if running is not None:
            running.cpu.end_turn_soon()
        return entry

    def cancel(self, timer: object) -> None:
        """Forget a timer; nothing happens if it is over."""
        if timer in self._timers:
            self._timers.remove(timer)
            heapq.heapify(self._timers)

    # For the harts

    @property
    def running(self) -> Hart | None:
        """The hart whose turn it is."""
        current = self.state.current
        return None if current is None else self._harts[current]

    def kicked(self, hart: Hart) -> None:
        """A hart has something to look at. If it is its turn, that ends: it looks in the next one."""
        if self._thread is not None and self._thread is not threading.current_thread():
            # A device that does not keep to turns.
            with self._changed:
                self._disturbed = True
                self._changed.notify_all()
        elif hart is self.running:
            hart.cpu.end_turn_soon()

    def waits(self, hart: Hart) -> None:
        """A hart waits for an interrupt."""
        self.state.waiting[hart.hart_id] = True

    def begins(self, hart: Hart) -> None:
        """A hart starts to execute."""
        self.state.waiting[hart.hart_id] = False

    # Turns

    def advance(self) -> None:
        """Run a turn, or the rest of one that was interrupted, or let time pass while all harts wait.

        With a leader time only passes with the next call, which must not come before :attr:`due`.
        """
        hart = self.running
        if hart is not None and hart.execute != hart.cpu.run:
            self.step()  # traced, instruction by instruction
            return
        hart = hart or self._begin()
        if hart is None:
            return
        cpu, passing = hart.cpu, self._passing
        self._passing = False
        while True:
            before = cpu.retired
            found = cpu.run_turn(passing)
            if found.kind == "stop" and cpu.retired == before:
                self._passing = passing
            passing = False
            if found.kind == "limit":
                self._end(hart)
            elif found.kind == "breakpoint":
                self._passing = self._pausing = True
                if self.on_break is not None:
                    self.on_break(hart)
            elif found.kind == "leave":
                self._handle(hart, found)
                if self.running is hart and not self._halted:
                    continue
            return

    def advance_before(self, executed: int) -> bool:
        """:meth:`advance`, but not to more than so many executed instructions; False if that is too close by."""
        if self.executed + _APPROACH >= executed:
            return False
        hart = self.running or self._begin()
        if hart is not None:
            hart.cpu.break_at(hart.cpu.retired + executed - self.executed - _APPROACH)
            self.advance()
            hart.cpu.break_at(None)
        return True

    def step(self, breaking: bool = False) -> Hart | None:
        """Execute one instruction, or take a trap, of the hart whose turn it is; None if time only passed.

        ``breaking``: a breakpoint that has not been seen is reported instead.
        """
        hart = self.running
        if hart is not None and hart.cpu.turn_is_over:
            self._end(hart)
            hart = None
        hart = hart or self._begin()
        if hart is None:
            return None
        passing, self._passing = self._passing, False
        if breaking and not passing and int(hart.state.pc) in hart.cpu.breakpoints:
            self._passing = self._pausing = True
            return hart
        step = hart.cpu.step if hart.execute == hart.cpu.run else hart.execute
        found = step()
        while found.kind == "stop":  # left over from making it stand still
            found = step()
        if found.kind == "leave":
            self._handle(hart, found)
        while self._halted and self.running is hart and not hart.cpu.turn_is_over:
            hart.cpu.step()  # to where :meth:`advance` would have come
        return hart

    def _handle(self, hart: Hart, found: object) -> None:
        hart.handle(found)  # type: ignore[arg-type]
        if self.state.waiting[hart.hart_id] or not hart.started:
            self._end(hart)

    def _begin(self) -> Hart | None:
        """Begin the next turn; gives whose it is. None if all wait: then time has passed, or will."""
        state = self.state
        if self._rests is not None:
            self._go_on(self._rests)
            return None
        if state.executed >= state.settles:
            self._settle()
        for call in self.before_turn:
            call()
        self._skipped = None
        self.outside.enter(state.turn, state.time)
        timers = self._timers
        while timers and timers[0][0] <= state.time:
            heapq.heappop(timers)[2]()
        if self._halted:
            return None
        soonest = timers[0][0] if timers else NEVER
        chosen: Hart | None = None
        harts, first = self._harts, state.following
        for hart in harts[first:] + harts[:first] if first else harts:
            if not hart.started:
                continue
            number = hart.hart_id
            if state.waiting[number]:
                when = hart.cpu.wakes_at(state.time - hart.cpu.retired)
                if when > state.time:
                    soonest = min(soonest, when)
                    continue
                state.waiting[number] = False
            if chosen is None:
                chosen = hart
        if chosen is None:
            if self._leader is None:
                self._wait(soonest)
            else:
                self._rests = soonest
            return None
        state.current, state.began = chosen.hart_id, chosen.cpu.retired
        length = min(self.timing.length(state.turn), soonest - state.time, self.timing.horizon(state.time) - state.time)
        chosen.cpu.begin_turn(state.began + length, state.time - state.began)
        return chosen

    def _settle(self) -> None:
        """Let the harts have nothing that is not in their state.

        What they know of page tables may be older than these, and then decides what the guest sees. Of a machine that
        is put into the state that this one is in now it would not be known.
        """
        self.state.settles = self.state.executed + _SETTLE
        for hart in self._harts:
            hart.cpu.flush()
        for call in self.on_settled:
            call()

    def _end(self, hart: Hart) -> None:
        """The turn is over."""
        state = self.state
        executed = hart.cpu.retired - state.began
        state.time += executed
        state.executed += executed
        state.turn += 1
        state.following = (hart.hart_id + 1) % len(self._harts)
        state.current = None

    # While all harts wait

    def _wait(self, until: int) -> None:
        """Let time pass until then, or until something comes from outside."""
        state = self.state
        repeats = self._idle.repeats
        if self._skipped is not None:
            passed = self._skipped
        elif until != NEVER and (repeats or not self.timing.pace):
            passed = until - state.time
        elif repeats:
            raise RuntimeError("the machine waits for something that is not in the recording")
        else:
            slept = self._sleep(until)
            passed = slept if self.timing.pace else 0
            if until != NEVER and passed >= until - state.time:
                passed = until - state.time
            else:
                # Not as long as the machine itself would have it.
                self.outside.note(state.turn, self._idle, "skip", passed)
        state.time += passed
        state.turn += 1

    def _go_on(self, until: int) -> None:
        """The leader found that it is time: so long have all waited."""
        state, due = self.state, self.due - self.timing.epoch
        if due >= NEVER - self.timing.epoch:
            return
        self._rests, self._disturbed = None, False
        passed = max(0, due - state.time)
        if due != until:
            self.outside.note(state.turn, self._idle, "skip", passed)
        state.time += passed
        state.turn += 1

    @property
    def due(self) -> int:
        """When, in the common time, there is something to do next: now if a hart executes; 2^64 - 1 for never."""
        epoch = self.timing.epoch
        if self._rests is None or self._leader is None:
            return self.now + epoch
        when = min(self._rests, self.outside.next_arrival)
        if self.disturbed:
            when = min(when, max(self.state.time, self._leader.time - epoch))
        return min(when + epoch, NEVER)

    @property
    def disturbed(self) -> bool:
        """Whether something came from outside, for which no time was set."""
        return self._disturbed or self.outside.waiting

    @property
    def rests(self) -> bool:
        """With a leader: whether all harts wait."""
        return self._rests is not None

    def _skip(self, operation: str, arguments: Sequence[Plain]) -> None:
        """What was written down: so long did the harts wait."""
        if self._idle.repeats:
            self._skipped = int(arguments[0])  # type: ignore[arg-type]

    def _sleep(self, until: int) -> int:
        """Sleep as long in the host's time; gives how many nanoseconds it was."""
        began = time.monotonic_ns()
        with self._changed:
            while not (self._halted or self._pausing or self._disturbed or self.outside.waiting):
                left = _LONGEST_WAIT
                if until != NEVER:
                    left = (until - self.state.time - (time.monotonic_ns() - began)) / 1e9
                    if left <= 0:
                        break
                self._changed.wait(min(left, _LONGEST_WAIT))
            self._disturbed = False
        return time.monotonic_ns() - began

    def _arrived(self) -> None:
        with self._changed:
            self._changed.notify_all()

    # Control, from any thread

    def follow(self, leader: Leader, changed: threading.Condition, step: int, epoch: int) -> None:
        """Let ``leader`` run it, when it is started. ``changed`` is notified when it should look."""
        self._leader, self._changed = leader, changed
        self.timing = replace(self.timing, step=step, epoch=epoch)

    def led_by(self, thread: threading.Thread) -> None:
        """For the leader: this is the thread that calls :meth:`advance` from now on."""
        self._thread = thread

    def stand(self, standing: bool) -> None:
        """For the leader, holding ``changed``: whether it calls :meth:`advance` for anybody, or waits."""
        self._standing = standing

    @property
    def pausing(self) -> bool:
        """Whether it should stand still."""
        return self._pausing

    def start(self) -> None:
        """Run in a thread of its own, or let the leader run it."""
        if self._leader is not None:
            self._leader.enter(self)
            return
        self._thread = threading.Thread(target=self._main, name="conductor", daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            while not self._halted:
                if self._pausing:
                    self._stand_still()
                else:
                    self.advance()
        except BaseException as error:
            self.failed(error)
        finally:
            with self._changed:
                self._standing = True
                self._changed.notify_all()

    def _stand_still(self) -> None:
        with self._changed:
            self._standing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._halted or not self._pausing)
            self._standing = self._halted

    def saved(self) -> ConductorState:
        """The state, for :meth:`restore`. While all stand still."""
        found = replace(self.state, waiting=list(self.state.waiting))
        running = self.running
        if running is not None:
            found.ends, found.between = running.cpu.turn_state
        return found

    def restore(self, state: ConductorState) -> None:
        """Go on from ``state``; the harts have theirs already. Timers of devices are the devices' to set.

        While all stand still. Raises ValueError for what makes no sense.
        """
        if state.current is not None and not 0 <= state.current < len(self._harts):
            raise ValueError(f"it is the turn of hart {state.current}")
        if not 0 <= state.following < len(self._harts):
            raise ValueError(f"the next turn is of hart {state.following}")
        self.state = replace(state, waiting=list(state.waiting))
        self._passing, self._rests = False, None
        self._timers.clear()
        running = self.running
        if running is not None:
            running.cpu.begin_turn(state.ends, state.time - state.began)
            running.cpu.turn_state = state.ends, state.between

    def revive(self) -> None:
        """In a copy of the process (``os.fork``), which has none of its threads: stand still there, as it did."""
        self._changed = threading.Condition()
        self._timers.clear()  # the devices have them set again
        self._pausing = self._standing = True
        self._revived = self._thread is not None

    def undo_halt(self) -> None:
        """:meth:`halt` was not meant; for those who call :meth:`advance`."""
        self._halted = False

    def pass_breakpoint(self) -> None:
        """A breakpoint where the machine is has been seen; for those who call :meth:`advance`."""
        self._passing = True

    def take_break(self) -> bool:
        """Whether :meth:`advance` ended at a breakpoint; for those who call it."""
        found, self._pausing = self._pausing, False
        return found

    @property
    def halted(self) -> bool:
        """Whether it was told to end."""
        return self._halted

    def halt(self) -> None:
        """End the thread, wherever the guest is."""
        running = self.running
        if running is not None and self._thread in (None, threading.current_thread()):
            # The guest ends it: always at the same place.
            running.cpu.end_turn_soon()
        with self._changed:
            self._halted = True
            self._changed.notify_all()
        self._interrupt()

    @property
    def is_still(self) -> bool:
        """Whether no hart executes, and none will before :meth:`start` or :meth:`resume`."""
        return self._standing or self._thread is None or not self._thread.is_alive()

    def pause(self) -> None:
        """Stop executing, even in the midst of a turn; returns when all harts stand still. Not from the own thread."""
        with self._changed:
            self._pausing = True
            self._changed.notify_all()
        if self._thread is None:
            return
        while True:
            self._interrupt()
            with self._changed:
                if self._changed.wait_for(lambda: self._standing, 0.05):
                    return

    def _interrupt(self) -> None:
        for hart in self._harts:
            hart.cpu.stop()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        with self._changed:
            self._pausing = False
            self._changed.notify_all()
        if self._revived:
            self._revived = False
            self.start()

    def join(self, timeout: float | None = None) -> None:
        """Wait until it runs no more."""
        if self._leader is not None:
            self._leader.join(self, timeout)
        elif self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
