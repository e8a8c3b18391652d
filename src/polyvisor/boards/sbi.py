"""The supervisor binary interface, served by the platform in place of firmware (RISC-V SBI 2.0).

A call arrives as ``ecall`` from supervisor mode with the extension in a7, the function in a6 and arguments in a0 ...;
it returns an error code in a0 and a value in a1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from polyvisor.engine.memory import BusError, Memory

SUCCESS = 0
FAILED, NOT_SUPPORTED, INVALID_PARAM, DENIED, INVALID_ADDRESS, ALREADY_AVAILABLE, ALREADY_STARTED = range(-1, -8, -1)

BASE, TIME, IPI, RFENCE, HSM, SRST, DBCN = 0x10, 0x54494D45, 0x735049, 0x52464E43, 0x48534D, 0x53525354, 0x4442434E
# Set timer, console, shutdown; IPIs and fences through virtual hart masks are left to the extensions that replaced them.
_LEGACY = (0, 1, 2, 8)
_EVERY = 2**64 - 1
_SPECIFICATION = 2 << 24
_IMPLEMENTATION = 0x70766D  # experimental; not registered
_VERSION = 1
_LONGEST_WRITE = 1 << 20

Result = tuple[int, int]


class SbiHart(Protocol):
    """What the SBI asks of a hart."""

    hart_id: int

    @property
    def state(self) -> Any: ...

    @property
    def status(self) -> str: ...

    def start(self, pc: int, opaque: int) -> None: ...

    def stop_self(self) -> None: ...

    def suspend(self) -> None: ...

    def set_timer(self, ticks: int) -> None: ...

    def raise_ssip(self) -> None: ...

    def flush_remote(self) -> None: ...


class Sbi:
    """Serves the harts of one machine.

    ``output`` and ``read_input(count)`` are the debug console; ``power(kind, code)`` is told of ``off`` and ``reset``.
    """

    def __init__(
        self,
        harts: Sequence[SbiHart],
        memory: Memory,
        output: Callable[[bytes], None],
        read_input: Callable[[int], bytes],
        power: Callable[[str, int], None],
    ) -> None:
        self.harts = harts
        self.memory = memory
        self._output, self._read_input, self._power = output, read_input, power
        self._extensions: dict[int, Callable[[SbiHart, int, list[int]], Result]] = {
            BASE: self._base, TIME: self._time, IPI: self._ipi, RFENCE: self._rfence, HSM: self._hsm, SRST: self._srst,
            DBCN: self._dbcn,
        }

    def handle(self, hart: SbiHart) -> None:
        """Serve the call that ``hart`` stands at, in its own thread."""
        x = hart.state.x
        extension, function = int(x[17]), int(x[16])
        arguments = [int(x[i]) for i in range(10, 16)]
        if extension in _LEGACY:
            x[10] = self._legacy(hart, extension, arguments) & _EVERY
            return
        serve = self._extensions.get(extension)
        error, value = serve(hart, function, arguments) if serve else (NOT_SUPPORTED, 0)
        x[10], x[11] = error & _EVERY, value & _EVERY

    def _targets(self, mask: int, base: int) -> list[SbiHart] | None:
        """The harts of a mask (3.1); None if one of them does not exist."""
        if base == _EVERY:
            return list(self.harts)
        numbers = [base + i for i in range(64) if mask >> i & 1]
        by_id = {h.hart_id: h for h in self.harts}
        if any(n not in by_id for n in numbers):
            return None
        return [by_id[n] for n in numbers]

    # Extensions; the numbers are the SBI's function numbers

    def _base(self, hart: SbiHart, function: int, arguments: list[int]) -> Result:
        """Chapter 4."""
        match function:
            case 0:
                return SUCCESS, _SPECIFICATION
            case 1:
                return SUCCESS, _IMPLEMENTATION
            case 2:
                return SUCCESS, _VERSION
            case 3:
                return SUCCESS, int(arguments[0] in self._extensions or arguments[0] in _LEGACY)
            case 4 | 5 | 6:
                return SUCCESS, 0  # mvendorid, marchid, mimpid
        return NOT_SUPPORTED, 0

    def _time(self, hart: SbiHart, function: int, arguments: list[int]) -> Result:
        """Chapter 6."""
        if function != 0:
            return NOT_SUPPORTED, 0
        hart.set_timer(arguments[0])
        return SUCCESS, 0

    def _ipi(self, hart: SbiHart, function: int, arguments: list[int]) -> Result:
        """Chapter 7."""
        if function != 0:
            return NOT_SUPPORTED, 0
        targets = self._targets(arguments[0], arguments[1])
        if targets is None:
            return INVALID_PARAM, 0
        for target in targets:
            target.raise_ssip()
        return SUCCESS, 0

    def _rfence(self, hart: SbiHart, function: int, arguments: list[int]) -> Result:
        """Chapter 8: fence.i and sfence.vma with and without an address space; not those of a hypervisor."""
        if function > 2:
            return NOT_SUPPORTED, 0
        targets = self._targets(arguments[0], arguments[1])
        if targets is None:
            return INVALID_PARAM, 0
        for target in targets:
            target.flush_remote()
        return SUCCESS, 0

    def _hsm(self, hart: SbiHart, function: int, arguments: list[int]) -> Result:
        """Chapter 9."""
        if function == 1:
            hart.stop_self()
            return SUCCESS, 0
        if function == 3:
            # Retentive suspension, the default one or a platform's; the non-retentive ones have bit 31.
            if arguments[0] & 0x8000_0000:
                return NOT_SUPPORTED, 0
            if arguments[0] != 0:
                return INVALID_PARAM, 0
            hart.suspend()
            return SUCCESS, 0
        if function not in (0, 2):
            return NOT_SUPPORTED, 0
        target = next((h for h in self.harts if h.hart_id == arguments[0]), None)
        if target is None:
            return INVALID_PARAM, 0
        if function == 2:
            return SUCCESS, 0 if target.status == "started" else 1
        if target.status == "started":
            return ALREADY_AVAILABLE, 0
        if arguments[1] & 1 or not self.memory.is_ram(arguments[1], 2):
            return INVALID_ADDRESS, 0
        target.start(arguments[1], arguments[2])
        return SUCCESS, 0

    def _srst(self, hart: SbiHart, function: int, arguments: list[int]) -> Result:
        """Chapter 10: reason 1 is a system failure, which becomes exit status 1."""
        if function != 0:
            return NOT_SUPPORTED, 0
        kind, reason = arguments[0] & 0xFFFF_FFFF, arguments[1] & 0xFFFF_FFFF
        if kind > 2 or reason > 1:
            return INVALID_PARAM, 0
        self._power("off" if kind == 0 else "reset", int(reason == 1))
        return SUCCESS, 0

    def _dbcn(self, hart: SbiHart, function: int, arguments: list[int]) -> Result:
        """Chapter 12."""
        if function == 2:
            self._output(bytes([arguments[0] & 0xFF]))
            return SUCCESS, 0
        if function > 2:
            return NOT_SUPPORTED, 0
        count, low, high = arguments[0], arguments[1], arguments[2]
        count = min(count, _LONGEST_WRITE)
        if high or (count and not self.memory.is_ram(low, count)):
            return INVALID_PARAM, 0
        try:
            if function == 0:
                self._output(self.memory.read(low, count) if count else b"")
                return SUCCESS, count
            data = self._read_input(count)
            if data:
                self.memory.write(low, data)
            return SUCCESS, len(data)
        except BusError:
            return INVALID_PARAM, 0

    def _legacy(self, hart: SbiHart, extension: int, arguments: list[int]) -> int:
        """Chapter 5: the calls of version 0.1, which return a value in a0 alone."""
        match extension:
            case 0:
                hart.set_timer(arguments[0])
            case 1:
                self._output(bytes([arguments[0] & 0xFF]))
            case 2:
                data = self._read_input(1)
                return data[0] if data else -1
            case 8:
                self._power("off", 0)
        return 0
