"""The Supervisor Binary Interface (RISC-V SBI Specification 2.0), served by the platform instead of firmware.

A hart that executes ECALL in supervisor mode leaves its code; :meth:`Sbi.handle` then serves the call on that
hart's thread. What kernels ask for all the time (timer, interrupts, remote fences) never gets here: that is described
in :mod:`polyvisor.isa.riscv.sbi`, and served where it was called. Section names below are those of the specification.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any, Literal, NamedTuple, Protocol

from polyvisor.engine.memory import BusError, Memory
from polyvisor.isa.riscv import sbi

SPEC_VERSION = 2 << 24
IMPLEMENTATION_ID = 0x70766D
IMPLEMENTATION_VERSION = 0x0000_0100

_MASK = 2**64 - 1
_XLEN = 64
# The longest debug console transfer in one call, in bytes; the call is allowed to do less than it was asked for.
_CONSOLE_CHUNK = 1 << 16

HartStatus = Literal["started", "stopped", "start_pending", "suspended"]


class Error(IntEnum):
    """Standard SBI errors ("Binary Encoding")."""

    SUCCESS = 0
    FAILED = -1
    NOT_SUPPORTED = -2
    INVALID_PARAM = -3
    DENIED = -4
    INVALID_ADDRESS = -5
    ALREADY_AVAILABLE = -6
    ALREADY_STARTED = -7
    ALREADY_STOPPED = -8


class Extension(IntEnum):
    """Extension identifiers (EID); 0 to 8 are the legacy calls."""

    BASE = 0x10
    TIME = sbi.TIME
    IPI = sbi.IPI
    RFENCE = sbi.RFENCE
    HSM = 0x48534D
    SRST = 0x53525354
    DBCN = 0x4442434E


class SbiHart(Protocol):
    """What the interface asks of a hart. Every method may be called from any hart's thread."""

    @property
    def hart_id(self) -> int:
        """The number that the SBI and the guest know it by."""

    @property
    def state(self) -> Any:
        """``state.x[n]`` reads and writes integer register n, as an unsigned number of 64 bits."""

    @property
    def status(self) -> HartStatus:
        """Its state, as hart state management names them."""

    def start(self, pc: int, opaque: int) -> None:
        """Leave the stopped state: supervisor mode at ``pc``, satp 0, interrupts off, a0 the id, a1 ``opaque``."""

    def stop_self(self) -> None:
        """Enter the stopped state; called on the hart's own thread."""

    def suspend(self) -> None:
        """Wait for an interrupt as WFI does, keeping all state; called on the hart's own thread."""

    def set_timer(self, ticks: int) -> None:
        """The supervisor timer interrupt is pending from time ``ticks`` on, and is not before."""

    def raise_ssip(self) -> None:
        """Make the supervisor software interrupt pending."""

    def clear_ssip(self) -> bool:
        """Make the supervisor software interrupt not pending; whether it was."""

    def flush_remote(self) -> None:
        """Forget all translations and decoded code; return once that has taken effect."""


class SbiError(Exception):
    """An SBI function answers with an error code."""

    def __init__(self, code: Error) -> None:
        super().__init__(code.name)
        self.code = code


class _Call(NamedTuple):
    """One call: the calling hart, the function (a6) and the arguments (a0 to a5)."""

    hart: SbiHart
    function: int
    a: tuple[int, ...]


class Sbi:
    """Serves the calls of all harts of a machine.

    ``output`` receives console bytes; ``read_input(n)`` returns at most n bytes that have been typed, without
    waiting. ``power(action, reason)`` ends the guest: action is "off" or "reset", reason 0 (none) or 1 (system
    failure); it must see to it that no hart goes on. ``load_virtual(hart, address, length)`` reads memory as the
    hart's supervisor mode does, for the legacy calls, and raises BusError; without it, addresses are physical.
    """

    def __init__(
        self,
        harts: Sequence[SbiHart],
        memory: Memory,
        output: Callable[[bytes], None],
        read_input: Callable[[int], bytes],
        power: Callable[[str, int], None],
        load_virtual: Callable[[SbiHart, int, int], bytes] | None = None,
    ) -> None:
        self._harts = {hart.hart_id: hart for hart in harts}
        self._memory = memory
        self._output = output
        self._read_input = read_input
        self._power = power
        self._load_virtual = load_virtual
        # Between looking at a hart's status and starting it. Never held while waiting for a hart.
        self._starting = threading.Lock()
        self._extensions: dict[int, Callable[[_Call], int | None]] = {
            Extension.BASE: self._base,
            # What the description does not serve, nobody does.
            Extension.TIME: _not_supported,
            Extension.IPI: _not_supported,
            Extension.RFENCE: _not_supported,
            Extension.HSM: self._hsm,
            Extension.SRST: self._srst,
            Extension.DBCN: self._dbcn,
        }
        self._legacy: tuple[Callable[[_Call], int | None], ...] = (
            self._legacy_set_timer,
            self._legacy_putchar,
            self._legacy_getchar,
            self._legacy_clear_ipi,
            self._legacy_send_ipi,
            self._legacy_fence,
            self._legacy_fence,
            self._legacy_fence,
            self._legacy_shutdown,
        )

    def handle(self, hart: SbiHart) -> None:
        """Serve the call in ``hart``'s registers, and put the answer there ("Binary Encoding").

        Nothing the guest passes makes it raise; only the callbacks can, and their OSError is SBI_ERR_FAILED.
        """
        x = hart.state.x
        extension = int(x[17])
        call = _Call(hart, int(x[16]), tuple(int(x[n]) for n in range(10, 16)))
        if extension < len(self._legacy):
            # Legacy calls have no function number, and leave a1 alone.
            try:
                result = self._legacy[extension](call)
            except SbiError as error:
                result = error.code
            except OSError:
                result = Error.FAILED
            if result is not None:
                x[10] = int(result) & _MASK
            return
        try:
            value = self._extensions.get(extension, _not_supported)(call)
        except SbiError as error:
            _answer(hart, error.code, 0)
        except OSError:
            _answer(hart, Error.FAILED, 0)
        else:
            if value is not None:
                _answer(hart, Error.SUCCESS, value)

    # Handlers return the value for a1, or None where they have written the registers themselves: after a hart has
    # stopped or the machine is going down, they are no longer the caller's.

    def _base(self, call: _Call) -> int:
        """Base Extension."""
        match call.function:
            case 0:
                return SPEC_VERSION
            case 1:
                return IMPLEMENTATION_ID
            case 2:
                return IMPLEMENTATION_VERSION
            case 3:
                return int(call.a[0] in self._extensions or call.a[0] < len(self._legacy))
            case 4 | 5 | 6:
                return 0
        raise SbiError(Error.NOT_SUPPORTED)

    def _hsm(self, call: _Call) -> int | None:
        """Hart State Management Extension."""
        match call.function:
            case 0:
                self._start(*call.a[:3])
                return 0
            case 1:
                # Once stopped, another hart may start this one, with registers of its own.
                call.hart.stop_self()
                return None
            case 2:
                return _STATES[self._hart(call.a[0]).status]
            case 3:
                self._suspend(call.hart, call.a[0] & 0xFFFF_FFFF)
                return None
        raise SbiError(Error.NOT_SUPPORTED)

    def _start(self, hart_id: int, address: int, opaque: int) -> None:
        target = self._hart(hart_id)
        with self._starting:
            if target.status != "stopped":
                raise SbiError(Error.ALREADY_AVAILABLE)
            if address % 2 or not self._memory.is_ram(address, 2):
                raise SbiError(Error.INVALID_ADDRESS)
            target.start(address, opaque)

    def _suspend(self, hart: SbiHart, kind: int) -> None:
        if kind == 0x8000_0000:
            raise SbiError(Error.NOT_SUPPORTED)
        if kind != 0:
            raise SbiError(Error.INVALID_PARAM)
        _answer(hart, Error.SUCCESS, 0)
        hart.suspend()

    def _srst(self, call: _Call) -> None:
        """System Reset Extension. Both parameters are 32 bits wide."""
        if call.function != 0:
            raise SbiError(Error.NOT_SUPPORTED)
        kind, reason = call.a[0] & 0xFFFF_FFFF, call.a[1] & 0xFFFF_FFFF
        if kind > 2 or reason > 1:
            raise SbiError(Error.INVALID_PARAM)
        self._power("off" if kind == 0 else "reset", reason)

    def _dbcn(self, call: _Call) -> int:
        """Debug Console Extension."""
        match call.function:
            case 0:
                return self._console_write(*call.a[:3])
            case 1:
                return self._console_read(*call.a[:3])
            case 2:
                self._output(bytes([call.a[0] & 0xFF]))
                return 0
        raise SbiError(Error.NOT_SUPPORTED)

    def _console_write(self, length: int, low: int, high: int) -> int:
        self._check_memory(length, low, high)
        try:
            data = self._memory.read(low, min(length, _CONSOLE_CHUNK))
        except BusError:
            raise SbiError(Error.INVALID_PARAM) from None
        if data:
            self._output(data)
        return len(data)

    def _console_read(self, length: int, low: int, high: int) -> int:
        # Checked first: input that was taken cannot be put back.
        self._check_memory(length, low, high)
        length = min(length, _CONSOLE_CHUNK)
        data = self._read_input(length)[:length] if length else b""
        try:
            self._memory.write(low, data)
        except BusError:
            raise SbiError(Error.INVALID_PARAM) from None
        return len(data)

    def _check_memory(self, length: int, low: int, high: int) -> None:
        """ "Shared memory physical address range parameter"."""
        if high or not self._memory.is_ram(low, length):
            raise SbiError(Error.INVALID_PARAM)

    # Harts

    def _hart(self, hart_id: int) -> SbiHart:
        if hart_id not in self._harts:
            raise SbiError(Error.INVALID_PARAM)
        return self._harts[hart_id]

    def _interrupt(self, targets: Sequence[SbiHart]) -> None:
        for hart in targets:
            if hart.status != "stopped":
                hart.raise_ssip()

    # Legacy Extensions

    def _legacy_set_timer(self, call: _Call) -> int:
        call.hart.set_timer(call.a[0])
        return 0

    def _legacy_putchar(self, call: _Call) -> int:
        self._output(bytes([call.a[0] & 0xFF]))
        return 0

    def _legacy_getchar(self, call: _Call) -> int:
        data = self._read_input(1)
        return data[0] if data else -1

    def _legacy_clear_ipi(self, call: _Call) -> int:
        return int(call.hart.clear_ssip())

    def _legacy_send_ipi(self, call: _Call) -> int:
        self._interrupt(self._legacy_targets(call))
        return 0

    def _legacy_fence(self, call: _Call) -> int:
        _flush(self._legacy_targets(call))
        return 0

    def _legacy_shutdown(self, call: _Call) -> None:
        self._power("off", 0)

    def _legacy_targets(self, call: _Call) -> list[SbiHart]:
        """The harts of a bit vector in memory; all harts where the pointer is null.

        The specification would have page faults taken by the caller; here they are SBI_ERR_INVALID_ADDRESS.
        """
        address = call.a[0]
        if address == 0:
            return list(self._harts.values())
        words = max(self._harts) // _XLEN + 1
        try:
            if self._load_virtual is not None:
                data = self._load_virtual(call.hart, address, words * 8)
            else:
                data = self._memory.read(address, words * 8)
        except BusError:
            raise SbiError(Error.INVALID_ADDRESS) from None
        mask = int.from_bytes(data, "little")
        if mask & ~sum(1 << hart_id for hart_id in self._harts):
            raise SbiError(Error.INVALID_PARAM)
        return [hart for hart_id, hart in self._harts.items() if mask >> hart_id & 1]


_STATES: dict[str, int] = {"started": 0, "stopped": 1, "start_pending": 2, "suspended": 4}


def _not_supported(call: _Call) -> int:
    raise SbiError(Error.NOT_SUPPORTED)


def _answer(hart: SbiHart, error: int, value: int) -> None:
    hart.state.x[10] = int(error) & _MASK
    hart.state.x[11] = value & _MASK


def _flush(targets: Sequence[SbiHart]) -> None:
    for hart in targets:
        hart.flush_remote()
