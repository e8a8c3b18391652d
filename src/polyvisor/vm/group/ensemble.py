"""Runs several machines in one virtual time, on one thread.

Time goes on in *steps* of the same length. In each, every machine runs to the step's end, one after the other; one in
which all harts wait only if its timer is due, or something arrives. What a machine sends takes a step at least, so it
arrives in a later one, wherever the receiver is by then: so the order in which machines run within a step does not
matter, and every run is the same.

What is to happen at a time, such as the arrival of a frame, is an *event*. Before a step all its events are served, in
the order of their times: they all are known by then, as none comes sooner than a step after what caused it.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count

from polyvisor.engine.conductor import Conductor

STEP = 100_000
"""Nanoseconds."""
_NEVER = 2**64 - 1
# The longest that machines in which all wait sleep before they look again, in seconds; only a safety net.
_LONGEST_WAIT = 10.0


class Seat:
    """A machine's place in an ensemble, also for those that follow it after resets."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.epoch = 0
        """The common time at which the machine of now began."""
        self.conductor: Conductor | None = None
        self.returns: Callable[[], bool] = lambda: False
        """Asked when a machine has ended: whether there will be another, for which all others wait."""
        self.awaited = False
        """Whether all wait for it."""
        self._ensemble = ensemble

    def take(self, conductor: Conductor) -> None:
        """Give the machine's conductor to the ensemble, before the machine starts."""
        self._ensemble._seat(self, conductor)

    def leave(self) -> None:
        """No machine will follow. May be repeated."""
        self._ensemble._leave(self)


class Ensemble:
    """Machines in one virtual time. It is a :class:`polyvisor.network.timed.VirtualTime` for their switches."""

    def __init__(self, step: int = STEP) -> None:
        """``step``: nanoseconds that no machine is ahead of another."""
        self.step = step
        self._seats: list[Seat] = []
        self._players: list[Seat] = []  # whose machines run
        self._left: deque[Seat] = deque()  # those of them that are not at the end of this step yet
        self._end = 0
        self._time = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._numbers = count()
        self._entering: deque[Callable[[], None]] = deque()
        self._event_time: int | None = None
        self._current: Conductor | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    # Machines

    def seat(self) -> Seat:
        """A place for a machine; before :meth:`start`."""
        seat = Seat(self)
        self._seats.append(seat)
        return seat

    def _seat(self, seat: Seat, conductor: Conductor) -> None:
        conductor.follow(self, self._changed, self.step, seat.epoch)
        conductor.outside.when = partial(self._arrival, seat.epoch)
        seat.conductor = conductor

    def enter(self, conductor: Conductor) -> None:
        """See :class:`polyvisor.engine.conductor.Leader`."""
        with self._changed:
            seat = next(each for each in self._seats if each.conductor is conductor)
            self._players = [each for each in self._seats if each in self._players or each is seat]
            seat.awaited = False
            if self._thread is not None:
                conductor.led_by(self._thread)
            self._changed.notify_all()

    def join(self, conductor: Conductor, timeout: float | None) -> None:
        """See :class:`polyvisor.engine.conductor.Leader`."""
        if self._thread is None or self.is_inside:
            return
        with self._changed:
            self._changed.wait_for(lambda: all(seat.conductor is not conductor for seat in self._players), timeout)

    def _leave(self, seat: Seat) -> None:
        with self._changed:
            seat.awaited = False
            self._changed.notify_all()

    def _drop_ended(self) -> None:
        """Let those go whose machines have ended."""
        for seat in list(self._players):
            conductor = seat.conductor
            assert conductor is not None
            if conductor.halted:
                seat.epoch += conductor.now
                seat.awaited = seat.returns()
                conductor.stand(True)
                self._players.remove(seat)
                self._changed.notify_all()

    # Time

    @property
    def now(self) -> int:
        """The time in nanoseconds: for who is called by a machine or an event, that of this one."""
        if self._event_time is not None:
            return self._event_time
        current = self._current
        return self._time if current is None else current.now + current.timing.epoch

    @property
    def time(self) -> int:
        """See :class:`polyvisor.engine.conductor.Leader`."""
        return self._time

    @property
    def is_inside(self) -> bool:
        """Whether this is the thread that runs the machines."""
        return self._thread is threading.current_thread()

    def call_at(self, when: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` at a time, in nanoseconds. A machine's must be a step ahead at least."""
        with self._changed:
            heapq.heappush(self._events, (when, next(self._numbers), callback))
            self._changed.notify_all()

    def call_soon(self, callback: Callable[[], None]) -> None:
        """For other threads: call ``callback`` where machines run, between two steps."""
        with self._changed:
            self._entering.append(callback)
            self._changed.notify_all()

    def _arrival(self, epoch: int) -> int | None:
        """When a machine gets what is posted to it now."""
        if self._event_time is None or not self.is_inside:
            return None
        return self._event_time - epoch

    # The thread

    def start(self) -> None:
        """Let all machines run that have entered."""
        self._thread = threading.Thread(target=self._main, name="ensemble", daemon=True)
        with self._changed:
            for seat in self._players:
                assert seat.conductor is not None
                seat.conductor.led_by(self._thread)
        self._thread.start()

    def _main(self) -> None:
        while True:
            with self._changed:
                self._drop_ended()
                if self._is_held:
                    self._stand_still()
                if self._closed or not (self._players or self._is_held):
                    return
            self._advance()

    @property
    def _is_held(self) -> bool:
        """Whether nobody may run now."""
        if any(seat.awaited for seat in self._seats):
            return True
        return any(seat.conductor is not None and seat.conductor.pausing for seat in self._players)

    def _stand_still(self) -> None:
        """Wait while somebody wants all to stand still; holding ``_changed``."""
        self._stand(True)
        while self._is_held and not self._closed:
            self._changed.wait()
            self._drop_ended()
        self._stand(False)

    def _stand(self, standing: bool) -> None:
        for seat in self._players:
            assert seat.conductor is not None
            seat.conductor.stand(standing)
        self._changed.notify_all()

    def _advance(self) -> None:
        """Run a turn of a machine, or begin the next step if all have come to the end of this one."""
        while self._left:
            conductor = self._left[0].conductor
            assert conductor is not None
            if conductor.halted or conductor.due >= self._end:
                self._left.popleft()
                continue
            self._current = conductor
            try:
                conductor.advance()
            except BaseException as error:
                conductor.failed(error)
            finally:
                self._current = None
            return
        self._begin_step()

    def _begin_step(self) -> None:
        conductors = [seat.conductor for seat in self._players if seat.conductor is not None]
        first = min((conductor.due for conductor in conductors), default=_NEVER)
        if self._events:
            first = min(first, self._events[0][0])
        if all(conductor.rests for conductor in conductors):
            first = self._sleep(first, conductors)
        if first == _NEVER:
            return
        self._time = max(self._time, first)
        self._end = (self._time // self.step + 1) * self.step
        for _ in range(len(self._entering)):
            self._serve(self._time, self._entering.popleft())
        while self._events and self._events[0][0] < self._end:
            with self._changed:
                when, _, callback = heapq.heappop(self._events)
            self._serve(when, callback)
        self._left = deque(self._players)

    def _serve(self, when: int, callback: Callable[[], None]) -> None:
        self._event_time = when
        try:
            callback()
        except BaseException as error:
            for seat in self._players:
                assert seat.conductor is not None
                seat.conductor.failed(error)
        finally:
            self._event_time = None

    def _sleep(self, until: int, conductors: list[Conductor]) -> int:
        """While all wait: until when nothing happens. That takes its time on the host if somebody outside may speak."""
        paced = any(conductor.timing.pace for conductor in conductors)
        if until != _NEVER and not paced:
            return until
        began = time.monotonic_ns()
        with self._changed:
            while not self._is_disturbed(conductors, until):
                left = _LONGEST_WAIT
                if until != _NEVER:
                    left = (until - self._time - (time.monotonic_ns() - began)) / 1e9
                    if left <= 0:
                        return until
                self._changed.wait(min(left, _LONGEST_WAIT))
        return min(until, self._time + (time.monotonic_ns() - began if paced else 0))

    def _is_disturbed(self, conductors: list[Conductor], until: int) -> bool:
        """Whether there is something to do before ``until`` that was not known."""
        if self._entering or self._closed or (self._events and self._events[0][0] < until):
            return True
        return any(each.halted or each.pausing or each.disturbed for each in conductors)

    def revive(self) -> None:
        """In a copy of the process, which has none of its threads: be ready to :meth:`start`; all stand still."""
        self._changed, self._thread = threading.Condition(), None
        for seat in self._players:
            assert seat.conductor is not None
            seat.conductor.follow(self, self._changed, self.step, seat.epoch)

    def close(self) -> None:
        """End the thread; all machines have ended. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None and not self.is_inside:
            self._thread.join()
