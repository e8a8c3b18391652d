"""Machine timer and software interrupts of every hart, in the layout of the SiFive CLINT.

RISC-V ACLINT specification 1.0: section 1.1 (the SiFive CLINT as an MSWI at 0 and an MTIMER at 0x4000),
section 2 (MTIMER), section 3 (MSWI).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from polyvisor.dataclass import dataclass
from polyvisor.devices.lines import Line
from polyvisor.engine.memory import BusError

WINDOW_SIZE = 0x10000

MSIP = 0x0000
MTIMECMP = 0x4000
MTIME = 0xBFF8
MTIMER_END = 0xC000
MAX_HARTS = 4095

_U32 = 2**32 - 1


class TimerHart(Protocol):
    """What the device needs of a hart."""

    @property
    def mtimecmp(self) -> int:
        """The time (ticks, 64 bits) from which on the machine timer interrupt is pending."""
        ...

    @mtimecmp.setter
    def mtimecmp(self, ticks: int) -> None:
        """Set it, from any thread; the hart looks at its timer again even if the value is the same."""
        ...

    def line(self, name: str) -> Line:
        """The interrupt input ``name``; ``msip`` is used here."""
        ...


class Clock(Protocol):
    """The platform's time counter, which every hart's ``time`` shows."""

    def ticks(self) -> int:
        """The counter now, in ticks of the time base, 64 bits."""
        ...

    def set_ticks(self, value: int) -> None:
        """Let the counter go on from ``value``."""
        ...


@dataclass
class AclintState:
    """``msip[h]``: 0 or 1, the software interrupt of hart ``h``. (MTIMECMP is the harts', MTIME the clock's.)"""

    msip: list[int]


class Aclint:
    """MSIP, MTIMECMP and MTIME for ``harts``, which are numbered from 0 in their order.

    MSIP is 32 bits wide, MTIMECMP and MTIME 64; each answers aligned accesses of 4 and 8 bytes. Registers of harts
    that do not exist read as 0 and ignore writes; other offsets, sizes and unaligned accesses raise BusError.
    """

    def __init__(self, harts: Sequence[TimerHart], clock: Clock) -> None:
        """Raises ValueError for more harts than the layout has room for."""
        if len(harts) > MAX_HARTS:
            raise ValueError(f"{len(harts)} harts: at most {MAX_HARTS} fit")
        self._state = AclintState([0] * len(harts))
        self._harts = list(harts)
        self._msip_lines = [hart.line("msip") for hart in harts]
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def state(self) -> AclintState:
        """All that the guest can change, but for what is the harts' and the clock's."""
        return self._state

    @state.setter
    def state(self, state: AclintState) -> None:
        """Raises ValueError for the state of another number of harts."""
        if len(state.msip) != len(self._harts):
            raise ValueError(f"state of {len(state.msip)} harts for {len(self._harts)}")
        self._state = state

    def read(self, offset: int, size: int) -> int:
        """Raises BusError as the class says."""
        self._check(offset, size)
        with self._lock:
            if offset < MTIMECMP:
                value = self._msip(offset // 4)
                return value if size == 4 else value | self._msip(offset // 4 + 1) << 32
            value = self._load(offset & ~7)
            return value if size == 8 else value >> 8 * (offset & 4) & _U32

    def write(self, offset: int, size: int, value: int) -> None:
        """Raises BusError as the class says."""
        self._check(offset, size)
        with self._lock:
            if offset < MTIMECMP:
                self._set_msip(offset // 4, value & 1)
                if size == 8:
                    self._set_msip(offset // 4 + 1, value >> 32 & 1)
                return
            register = offset & ~7
            if size == 4:
                shift = 8 * (offset & 4)
                value = self._load(register) & ~(_U32 << shift) | value << shift
            self._store(register, value)

    def _check(self, offset: int, size: int) -> None:
        if size not in (4, 8) or offset % size or not 0 <= offset < MTIMER_END:
            raise BusError(offset, size)

    def _msip(self, hart: int) -> int:
        return self._state.msip[hart] if hart < len(self._harts) else 0

    def _set_msip(self, hart: int, level: int) -> None:
        if hart < len(self._harts) and self._state.msip[hart] != level:
            self._state.msip[hart] = level
            self._msip_lines[hart].set(bool(level))

    def _load(self, register: int) -> int:
        if register == MTIME:
            return self._clock.ticks()
        hart = (register - MTIMECMP) // 8
        return self._harts[hart].mtimecmp if hart < len(self._harts) else 0

    def _store(self, register: int, value: int) -> None:
        if register == MTIME:
            self._clock.set_ticks(value)
            # A hart may sleep until a tick that comes sooner now.
            for each in self._harts:
                each.mtimecmp = each.mtimecmp
            return
        hart = (register - MTIMECMP) // 8
        if hart < len(self._harts):
            self._harts[hart].mtimecmp = value
