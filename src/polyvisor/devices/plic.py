"""The platform-level interrupt controller.

RISC-V PLIC specification 1.0.0: section "Interrupt Gateways"; chapters "Memory Map", "Interrupt Priorities",
"Interrupt Pending Bits", "Interrupt Enables", "Priority Thresholds", "Interrupt Claim Process" and
"Interrupt Completion". Priorities have 3 bits, as in SiFive's parts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from polyvisor.dataclass import dataclass
from polyvisor.devices.lines import Line
from polyvisor.engine.memory import BusError

WINDOW_SIZE = 0x600000

PRIORITY = 0x000000
PENDING = 0x001000
ENABLE = 0x002000
THRESHOLD = 0x200000
CLAIM = 0x200004

ENABLE_STRIDE = 0x80
CONTEXT_STRIDE = 0x1000
MAX_SOURCES = 1023
MAX_CONTEXTS = (WINDOW_SIZE - THRESHOLD) // CONTEXT_STRIDE
MAX_PRIORITY = 7

_U32 = 2**32 - 1


@dataclass
class PlicState:
    """Bit ``n`` of an integer is source ``n``; lists of sources start with the source 0 that does not exist."""

    priority: list[int]
    """Of each source, 0 (never) to 7."""
    enable: list[int]
    """The sources each context listens to."""
    threshold: list[int]
    """Of each context: only higher priorities interrupt it."""
    notified: list[int]
    """1 where the context's line is asserted."""
    level: int = 0
    """Sources whose wire is asserted."""
    pending: int = 0
    """Requests waiting for a claim."""
    in_service: int = 0
    """Sources claimed and not completed: their gateways forward nothing."""


class Plic:
    """Routes ``sources`` level-triggered wires, numbered from 1, to ``contexts`` (a line each, for MEIP or SEIP).

    Registers are 32 bits wide and answer aligned accesses of 4 bytes; others raise BusError. Reserved registers,
    and those of sources and contexts that do not exist, read as 0 and ignore writes.
    """

    def __init__(self, sources: int, contexts: Sequence[Line]) -> None:
        """Raises ValueError for more sources or contexts than the layout has room for."""
        if not 1 <= sources <= MAX_SOURCES:
            raise ValueError(f"{sources} interrupt sources: 1 to {MAX_SOURCES} are possible")
        if len(contexts) > MAX_CONTEXTS:
            raise ValueError(f"{len(contexts)} contexts: at most {MAX_CONTEXTS} fit")
        count = len(contexts)
        self._state = PlicState([0] * (sources + 1), [0] * count, [0] * count, [0] * count)
        self._sources = sources
        self._existing = (1 << sources + 1) - 2
        self._contexts = list(contexts)
        self._lock = threading.Lock()

    @property
    def state(self) -> PlicState:
        """All that the guest can change, and the wires."""
        return self._state

    @state.setter
    def state(self, state: PlicState) -> None:
        """Raises ValueError for the state of another number of sources or contexts."""
        lengths = [len(each) for each in (state.priority, state.enable, state.threshold, state.notified)]
        if lengths != [self._sources + 1] + 3 * [len(self._contexts)]:
            raise ValueError("state of an interrupt controller with other sources or contexts")
        self._state = state

    def line(self, source: int) -> Line:
        """The wire of ``source`` (1 ...). Raises ValueError if there is no such source."""
        if not 1 <= source <= self._sources:
            raise ValueError(f"no interrupt source {source}: there are 1 to {self._sources}")
        return _SourceLine(self, source)

    def read(self, offset: int, size: int) -> int:
        """A read of a claim register claims. Raises BusError as the class says."""
        self._check(offset, size)
        with self._lock:
            state = self._state
            if offset < PENDING:
                source = offset // 4
                return state.priority[source] if source <= self._sources else 0
            if offset < ENABLE:
                return state.pending >> 8 * (offset - PENDING) & _U32
            if offset < THRESHOLD:
                context, byte = divmod(offset - ENABLE, ENABLE_STRIDE)
                return state.enable[context] >> 8 * byte & _U32 if context < len(self._contexts) else 0
            context, register = divmod(offset - THRESHOLD, CONTEXT_STRIDE)
            if context < len(self._contexts):
                if register == 0:
                    return state.threshold[context]
                if register == CLAIM - THRESHOLD:
                    return self._claim(context)
            return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A write of a claim register completes. Raises BusError as the class says."""
        self._check(offset, size)
        with self._lock:
            state = self._state
            if offset < PENDING:
                source = offset // 4
                if 1 <= source <= self._sources:
                    state.priority[source] = value & MAX_PRIORITY
                    self._notify()
            elif offset < ENABLE:
                pass  # pending bits are read-only
            elif offset < THRESHOLD:
                context, byte = divmod(offset - ENABLE, ENABLE_STRIDE)
                if context < len(self._contexts):
                    others = state.enable[context] & ~(_U32 << 8 * byte)
                    state.enable[context] = (others | value << 8 * byte) & self._existing
                    self._notify()
            else:
                context, register = divmod(offset - THRESHOLD, CONTEXT_STRIDE)
                if context < len(self._contexts):
                    if register == 0:
                        state.threshold[context] = value & MAX_PRIORITY
                        self._notify()
                    elif register == CLAIM - THRESHOLD:
                        self._complete(context, value)

    def _check(self, offset: int, size: int) -> None:
        if size != 4 or offset % 4 or not 0 <= offset < WINDOW_SIZE:
            raise BusError(offset, size)

    def _drive(self, source: int, level: bool) -> None:
        """The gateway's input: a request is forwarded at once unless one is on its way, and never taken back."""
        bit = 1 << source
        with self._lock:
            state = self._state
            if bool(state.level & bit) == level:
                return
            state.level ^= bit
            self._forward(bit)

    def _forward(self, bit: int) -> None:
        state = self._state
        if state.level & bit and not (state.pending | state.in_service) & bit:
            state.pending |= bit
            self._notify()

    def _best(self, context: int) -> tuple[int, int]:
        """The pending source of highest priority for a context, and the priority; (0, 0) for none."""
        state = self._state
        best, priority = 0, 0
        waiting = state.pending & state.enable[context]
        while waiting:
            source = (waiting & -waiting).bit_length() - 1
            waiting &= waiting - 1
            if state.priority[source] > priority:
                best, priority = source, state.priority[source]
        return best, priority

    def _claim(self, context: int) -> int:
        # The threshold has no say here ("Interrupt Claim Process").
        source, _ = self._best(context)
        if source:
            self._state.pending &= ~(1 << source)
            self._state.in_service |= 1 << source
            self._notify()
        return source

    def _complete(self, context: int, source: int) -> None:
        # Ignored unless the source is enabled for the context ("Interrupt Completion").
        if 1 <= source <= self._sources and self._state.enable[context] >> source & 1:
            self._state.in_service &= ~(1 << source)
            self._forward(1 << source)

    def _notify(self) -> None:
        state = self._state
        for context, line in enumerate(self._contexts):
            notified = int(self._best(context)[1] > state.threshold[context])
            if notified != state.notified[context]:
                state.notified[context] = notified
                line.set(bool(notified))


class _SourceLine:
    def __init__(self, plic: Plic, source: int) -> None:
        self._plic = plic
        self._source = source

    def set(self, level: bool) -> None:
        self._plic._drive(self._source, bool(level))
