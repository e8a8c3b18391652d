"""A function of the bus: its configuration space, base address registers and interrupt pin.

PCI Local Bus Specification 3.0, chapter 6. Functions are conventional ones behind the host bridge: they have no
PCI Express capability, and the extended configuration space reads as 0.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from polyvisor.dataclass import dataclass, field
from polyvisor.devices.lines import Line, NullLine
from polyvisor.engine.memory import Device

CONFIG_SIZE = 256

# Offsets of the header (6.1, figure 6-1).
VENDOR_ID = 0x00
DEVICE_ID = 0x02
COMMAND = 0x04
STATUS = 0x06
REVISION = 0x08
CACHE_LINE_SIZE = 0x0C
BARS = 0x10
SUBSYSTEM_VENDOR_ID = 0x2C
SUBSYSTEM_ID = 0x2E
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
INTERRUPT_PIN = 0x3D

COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
# Parity and SERR# reporting can be set as drivers expect; there are no such errors to report.
_COMMAND_WRITABLE = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_INTX_DISABLE | 1 << 6 | 1 << 8
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4

MAX_BARS = 6
_LEAST_BAR = 16
_FIRST_CAPABILITY = 0x40

# Bytes that change, though not by being written.
_DERIVED = frozenset((STATUS, STATUS + 1))

_IDENTITY = struct.Struct("<HH")


@dataclass(frozen=True)
class Bar:
    """A range of 32-bit memory space: ``size`` bytes, a power of two from 16, where ``device`` answers."""

    size: int
    device: Device


@dataclass
class FunctionState:
    """The configuration space, of which the guest can change some bits."""

    config: bytearray = field(default_factory=lambda: bytearray(CONFIG_SIZE))
    interrupt: int = 0
    """1 while the function wants to interrupt, whether or not it may."""


class PciFunction:
    """A function with a header of type 0.

    ``class_code`` has 24 bits: class, subclass, programming interface (appendix D). ``pin`` is 1 for INTA# to 4 for
    INTD#, 0 for none. The configuration space is written with ``lock`` held; it may be read at any time. A subclass may
    override :meth:`read_config` and :meth:`write_config` for capabilities that do things.
    """

    def __init__(
        self,
        vendor: int,
        device: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem: tuple[int, int] = (0, 0),
        bars: Sequence[Bar] = (),
        pin: int = 0,
        lock: AbstractContextManager[object] | None = None,
    ) -> None:
        """``subsystem``: vendor and device. Raises ValueError for bars or a pin that cannot be."""
        if len(bars) > MAX_BARS:
            raise ValueError(f"{len(bars)} base address registers: there is room for {MAX_BARS}")
        if any(bar.size < _LEAST_BAR or bar.size & (bar.size - 1) or bar.size > 1 << 31 for bar in bars):
            raise ValueError("the size of a memory range must be a power of two from 16 to 2^31")
        if not 0 <= pin <= 4:
            raise ValueError(f"interrupt pin {pin}: 0 to 4 are possible")
        self.bars = tuple(bars)
        self.pin = pin
        self._state = FunctionState()
        self._writable = bytearray(CONFIG_SIZE)
        self._lock = lock or threading.RLock()
        self._line: Line = NullLine()
        self._moved: Callable[[], None] = lambda: None
        self._capabilities_end = _FIRST_CAPABILITY
        self._last_link = CAPABILITIES
        config = self._state.config
        _IDENTITY.pack_into(config, VENDOR_ID, vendor, device)
        struct.pack_into("<I", config, REVISION, class_code << 8 | revision)
        _IDENTITY.pack_into(config, SUBSYSTEM_VENDOR_ID, *subsystem)
        config[INTERRUPT_PIN] = pin
        struct.pack_into("<H", self._writable, COMMAND, _COMMAND_WRITABLE)
        self._writable[CACHE_LINE_SIZE] = 0xFF
        self._writable[INTERRUPT_LINE] = 0xFF
        for index, bar in enumerate(bars):
            struct.pack_into("<I", self._writable, BARS + 4 * index, 2**32 - bar.size)

    def add_capability(self, kind: int, body: bytes, writable: bytes = b"") -> int:
        """Add to the list of capabilities (6.7); gives its offset.

        ``body`` follows the capability's ID and the link; the bits of ``writable`` are those of ``body`` that the guest
        can change. Raises ValueError if there is no room.
        """
        offset = self._capabilities_end
        end = offset + 2 + len(body)
        if end > CONFIG_SIZE:
            raise ValueError("no room for another capability")
        config = self._state.config
        config[offset] = kind
        config[offset + 2 : end] = body
        self._writable[offset + 2 : offset + 2 + len(writable)] = writable
        config[self._last_link] = offset
        config[STATUS] |= STATUS_CAPABILITIES
        self._last_link = offset + 1
        self._capabilities_end = end + 3 & ~3
        return offset

    def connect(self, line: Line, moved: Callable[[], None]) -> None:
        """Called by the bus: what the interrupt pin drives, and what to call when memory ranges may have moved."""
        self._line = line
        self._moved = moved

    @property
    def state(self) -> FunctionState:
        """All that the guest can change."""
        return self._state

    @state.setter
    def state(self, state: FunctionState) -> None:
        """Raises ValueError for another function's."""
        fixed = [index for index, mask in enumerate(self._writable) if not mask and index not in _DERIVED]
        if len(state.config) != CONFIG_SIZE or any(state.config[i] != self._state.config[i] for i in fixed):
            raise ValueError("state of another PCI function")
        self._state = state
        self._moved()

    @property
    def bus_master(self) -> bool:
        """Whether it may access memory."""
        return bool(self._state.config[COMMAND] & COMMAND_MASTER)

    def ranges(self) -> list[tuple[int, Bar]]:
        """The memory ranges that are enabled, with their addresses."""
        config = self._state.config
        if not config[COMMAND] & COMMAND_MEMORY:
            return []
        return [
            (int.from_bytes(config[BARS + 4 * index : BARS + 4 * index + 4], "little"), bar)
            for index, bar in enumerate(self.bars)
        ]

    def interrupt(self, level: bool) -> None:
        """Assert or release the interrupt pin; the line follows if INTx is not disabled (6.2.2)."""
        self._state.interrupt = int(level)
        self._drive()

    def _drive(self) -> None:
        config = self._state.config
        level = bool(self._state.interrupt)
        config[STATUS] = config[STATUS] & ~STATUS_INTERRUPT | (STATUS_INTERRUPT if level else 0)
        self._line.set(level and not config[COMMAND + 1] & COMMAND_INTX_DISABLE >> 8)

    def read_config(self, offset: int, size: int) -> int:
        """Read ``size`` bytes, 1, 2 or 4, of the configuration space; all are inside it."""
        return int.from_bytes(self._state.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Write as :meth:`read_config` reads; bits that cannot be changed stay."""
        with self._lock:
            config = self._state.config
            mask = int.from_bytes(self._writable[offset : offset + size], "little")
            before = int.from_bytes(config[offset : offset + size], "little")
            after = before & ~mask | value & mask
            if after == before:
                return
            config[offset : offset + size] = after.to_bytes(size, "little")
            if COMMAND <= offset < STATUS:
                self._drive()
                self._moved()
            elif BARS <= offset < BARS + 4 * MAX_BARS:
                self._moved()
