"""The SiFive test finisher: lets the guest end or reset the machine.

Device tree ``sifive,test0`` with ``syscon`` (the bindings ``syscon-poweroff`` and ``syscon-reboot`` write to it).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from polyvisor.dataclass import dataclass
from polyvisor.engine.memory import BusError

WINDOW_SIZE = 0x1000

FINISHER = 0x0

FAIL = 0x3333
PASS = 0x5555
RESET = 0x7777


@dataclass
class TestState:
    """``finisher``: what the guest wrote last, 32 bits."""

    __test__ = False

    finisher: int = 0


class Test:
    """One 32-bit register; its low 16 bits say what to do, the others are an exit code.

    ``power_off(code)`` gets 0 for a pass and 0..65535 for a failure; ``reset()`` restarts the machine.
    Both are called on the thread of the hart that wrote, without a lock held. Other values do nothing.
    The register reads as 0.
    """

    __test__ = False

    def __init__(self, power_off: Callable[[int], None], reset: Callable[[], None]) -> None:
        self.state = TestState()
        self._power_off = power_off
        self._reset = reset
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> int:
        """Raises BusError unless 4 bytes at offset 0 are meant."""
        if offset != FINISHER or size != 4:
            raise BusError(offset, size)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Raises BusError unless 4 bytes at offset 0 are meant."""
        if offset != FINISHER or size != 4:
            raise BusError(offset, size)
        with self._lock:
            self.state.finisher = value
        status = value & 0xFFFF
        if status == PASS:
            self._power_off(0)
        elif status == FAIL:
            self._power_off(value >> 16 & 0xFFFF)
        elif status == RESET:
            self._reset()
