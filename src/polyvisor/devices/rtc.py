"""The goldfish real-time clock: wall time with an alarm.

Android emulator, "Goldfish virtual hardware", section "Goldfish real-time clock"; device tree ``google,goldfish-rtc``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

from polyvisor.dataclass import dataclass
from polyvisor.devices.lines import Line
from polyvisor.engine.memory import BusError

WINDOW_SIZE = 0x1000

TIME_LOW = 0x00
TIME_HIGH = 0x04
ALARM_LOW = 0x08
ALARM_HIGH = 0x0C
IRQ_ENABLED = 0x10
CLEAR_ALARM = 0x14
ALARM_STATUS = 0x18
CLEAR_INTERRUPT = 0x1C

_U32 = 2**32 - 1
_U64 = 2**64 - 1
# The host's clock may be set meanwhile, so look at it now and then, in seconds.
_LONGEST_SLEEP = 60.0
_SHORTEST_SLEEP = 0.0005


@dataclass
class GoldfishRtcState:
    """Times are nanoseconds since 1970-01-01 UTC."""

    offset: int = 0
    """What the guest's clock is ahead of the host's, modulo 2^64."""
    read_high: int = 0
    """Upper half of the time whose lower half was read last."""
    write_high: int = 0
    """Upper half of the time that a write of TIME_LOW will set."""
    alarm_high: int = 0
    """Upper half of the alarm that a write of ALARM_LOW will arm."""
    alarm: int = 0
    """When the alarm goes off, if armed."""
    armed: int = 0
    irq_enabled: int = 0
    interrupt: int = 0
    """1 from when the alarm went off until CLEAR_INTERRUPT."""
    asserted: int = 0
    """1 while the line is asserted."""


class Timers(Protocol):
    """Who calls at a time, in nanoseconds of virtual time."""

    @property
    def now(self) -> int:
        """What time it is."""

    def call_at(self, when: int, callback: Callable[[], None]) -> object:
        """Gives what `cancel` takes."""

    def cancel(self, timer: object) -> None:
        """Forget it; nothing happens if it is over."""


class GoldfishRtc:
    """``now()`` gives the host's wall time in nanoseconds since 1970-01-01 UTC; ``line`` is the alarm's interrupt.
    With ``timers``, these run the alarm, and not the host's clock.

    A read of TIME_LOW keeps the matching TIME_HIGH for the next read of that; a write of TIME_LOW sets the time
    and one of ALARM_LOW arms the alarm, each with the upper half written before. An alarm that is due goes off at once.
    Registers are 32 bits wide: other sizes and offsets raise BusError.
    """

    def __init__(self, line: Line, now: Callable[[], int], timers: Timers | None = None) -> None:
        self.state = GoldfishRtcState()
        self._timers = timers
        self._line = line
        self._now = now
        self.lock = threading.Lock()
        """Held while registers and state change."""
        self._timer: object | None = None
        self._closed = False

    def read(self, offset: int, size: int) -> int:
        """Raises BusError as the class says."""
        self._check(offset, size)
        with self.lock:
            state = self.state
            if offset == TIME_LOW:
                time = self._time()
                state.read_high = time >> 32
                return time & _U32
            if offset == TIME_HIGH:
                return state.read_high
            if offset == ALARM_LOW:
                return state.alarm & _U32
            if offset == ALARM_HIGH:
                return state.alarm >> 32
            if offset == IRQ_ENABLED:
                return state.irq_enabled
            if offset == ALARM_STATUS:
                return state.armed
            return 0  # CLEAR_ALARM and CLEAR_INTERRUPT can only be written

    def write(self, offset: int, size: int, value: int) -> None:
        """Raises BusError as the class says."""
        self._check(offset, size)
        with self.lock:
            state = self.state
            if offset == TIME_LOW:
                state.offset = (state.write_high << 32 | value) - self._now() & _U64
                self._look()
            elif offset == TIME_HIGH:
                state.write_high = value
            elif offset == ALARM_LOW:
                state.alarm = state.alarm_high << 32 | value
                state.armed = 1
                self._look()
            elif offset == ALARM_HIGH:
                state.alarm_high = value
            elif offset == IRQ_ENABLED:
                state.irq_enabled = value & 1
                self._drive()
            elif offset == CLEAR_ALARM:
                state.armed = 0
                self._look()
            elif offset == CLEAR_INTERRUPT:
                state.interrupt = 0
                self._drive()

    def close(self) -> None:
        """Stop the alarm's host timer; the registers still work, and :meth:`rearm` starts it again."""
        with self.lock:
            self._closed = True
            self._cancel()

    def rearm(self) -> None:
        """Start the host timer of an alarm that is armed: after :meth:`close`, or after ``state`` was replaced."""
        with self.lock:
            self._closed = False
            self._look()

    def revive(self) -> None:
        """In a copy of the process (``os.fork``), which has no host timer: :meth:`rearm` starts one."""
        self._timer = None

    def _check(self, offset: int, size: int) -> None:
        if size != 4 or offset % 4 or not 0 <= offset <= CLEAR_INTERRUPT:
            raise BusError(offset, size)

    def _time(self) -> int:
        return self._now() + self.state.offset & _U64

    def _cancel(self) -> None:
        if isinstance(self._timer, threading.Timer):
            self._timer.cancel()
        elif self._timer is not None and self._timers is not None:
            self._timers.cancel(self._timer)
        self._timer = None

    def _look(self) -> None:
        """Let the alarm go off if it is due, else wait for it. With the lock held."""
        self._cancel()
        state = self.state
        if not state.armed or self._closed:
            return
        remaining = state.alarm - self._time()
        if remaining <= 0:
            state.armed = 0
            state.interrupt = 1
            self._drive()
            return
        if self._timers is not None:
            self._timer = self._timers.call_at(self._timers.now + remaining, self._woken)
            return
        delay = min(max(remaining / 1e9, _SHORTEST_SLEEP), _LONGEST_SLEEP)
        timer = self._timer = threading.Timer(delay, self._woken)
        timer.name = "rtc-alarm"
        timer.daemon = True
        timer.start()

    def _woken(self) -> None:
        with self.lock:
            self._look()

    def _drive(self) -> None:
        state = self.state
        asserted = state.interrupt & state.irq_enabled
        if asserted != state.asserted:
            state.asserted = asserted
            self._line.set(bool(asserted))
