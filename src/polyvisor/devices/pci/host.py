"""A host bridge whose configuration space is memory-mapped (PCI Express Base, section 7.2.2, "ECAM").

What the device tree binding ``pci-host-ecam-generic`` describes. There is one bus, number 0, with the bridge itself as
device 0. What nobody answers reads as ones, and writes to it are lost, as after a master abort.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Sequence

from polyvisor.dataclass import dataclass
from polyvisor.devices.lines import Line, OrLine, OrLineState
from polyvisor.devices.pci.function import CONFIG_SIZE, FunctionState, PciFunction
from polyvisor.engine.memory import Device

DEVICES = 32
"""Devices of a bus; number 0 is the bridge."""
PINS = 4

# A host bridge with the identity that operating systems know for generic PCI Express hosts.
_VENDOR = 0x1B36
_DEVICE = 0x0008
_CLASS = 0x060000

_FUNCTION_SIZE = 0x1000


@dataclass
class PciHostState:
    """The bridge's own function, and the lines; the other functions have states of their own."""

    bridge: FunctionState
    lines: list[OrLineState]


class PciHost:
    """The bridge. ``lines``: the four interrupt lines; ``window`` and ``window_size``: its part of memory space.

    ``ecam`` answers in the configuration window, ``memory`` in the memory window, where bus and guest physical
    addresses are the same, and ``io`` in the I/O window, where no function has ranges. All may be called from any
    thread.
    """

    def __init__(self, lines: Sequence[Line], window: int, window_size: int) -> None:
        """Raises ValueError unless there are four lines."""
        if len(lines) != PINS:
            raise ValueError(f"{len(lines)} interrupt lines: a host bridge has {PINS}")
        self.functions: dict[int, PciFunction] = {}
        """By the number of the device; all are function 0."""
        self._gates = [OrLine(line) for line in lines]
        self._window = window
        self._window_end = window + window_size
        self._lock = threading.Lock()
        self._at: tuple[list[int], list[tuple[int, int, Device]]] = ([], [])
        self.ecam: Device = _Ecam(self)
        self.memory: Device = _MemoryWindow(self)
        self.io: Device = _Nothing()
        self.plug(PciFunction(_VENDOR, _DEVICE, _CLASS), 0)

    def plug(self, function: PciFunction, number: int | None = None) -> int:
        """Put ``function`` on the bus, as device ``number`` or the first that is free, which is given back.

        Raises ValueError if there is no room.
        """
        free = [at for at in range(DEVICES) if at not in self.functions]
        if number is None:
            if not free:
                raise ValueError(f"the bus has {DEVICES} devices already")
            number = free[0]
        elif number not in free:
            raise ValueError(f"device {number} of the bus is taken or does not exist")
        self.functions[number] = function
        gate = self._gates[line_of(number, function.pin or 1)]
        function.connect(gate.input(), self._map)
        self._map()
        return number

    @property
    def state(self) -> PciHostState:
        """What the guest can change of the bridge."""
        return PciHostState(self.functions[0].state, [gate.state for gate in self._gates])

    @state.setter
    def state(self, state: PciHostState) -> None:
        """Raises ValueError for the state of a bus with other devices."""
        if [len(line.levels) for line in state.lines] != [len(gate.state.levels) for gate in self._gates]:
            raise ValueError("state of a PCI bus with other devices")
        self.functions[0].state = state.bridge
        for gate, line in zip(self._gates, state.lines, strict=True):
            gate.state = line

    def _map(self) -> None:
        """Find the memory ranges anew. Of ranges that overlap, the one at the lowest address is there."""
        with self._lock:
            found: list[tuple[int, int, Device]] = []
            for function in self.functions.values():
                for address, bar in function.ranges():
                    if self._window <= address and address + bar.size <= self._window_end:
                        found.append((address, address + bar.size, bar.device))
            found.sort(key=lambda each: each[0])
            apart: list[tuple[int, int, Device]] = []
            for each in found:
                if not apart or apart[-1][1] <= each[0]:
                    apart.append(each)
            # Accesses look at this pair without the lock.
            self._at = ([start for start, _, _ in apart], apart)

    def device_at(self, offset: int, size: int) -> tuple[Device, int] | None:
        """What answers in the memory window, and where in it."""
        address = self._window + offset
        starts, ranges = self._at
        index = bisect_right(starts, address) - 1
        if index < 0:
            return None
        start, end, device = ranges[index]
        return (device, address - start) if address + size <= end else None


def line_of(device: int, pin: int) -> int:
    """Which of the four lines the interrupt ``pin`` (1 ... 4) of ``device`` is wired to (PCI Local Bus, 2.2.6)."""
    return (device + pin - 1) % PINS


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1


class _Nothing:
    """An address space where nobody answers."""

    def read(self, offset: int, size: int) -> int:
        return _ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class _MemoryWindow:
    def __init__(self, host: PciHost) -> None:
        self._host = host

    def read(self, offset: int, size: int) -> int:
        found = self._host.device_at(offset, size)
        return found[0].read(found[1], size) if found else _ones(size)

    def write(self, offset: int, size: int, value: int) -> None:
        found = self._host.device_at(offset, size)
        if found:
            found[0].write(found[1], size, value)


class _Ecam:
    """Bits 27 to 20 of an offset are the bus, 19 to 15 the device, 14 to 12 the function (table 7-1)."""

    def __init__(self, host: PciHost) -> None:
        self._host = host

    def read(self, offset: int, size: int) -> int:
        if size == 8 and not offset & 7:
            return self.read(offset, 4) | self.read(offset + 4, 4) << 32
        function = self._function(offset)
        register = offset % _FUNCTION_SIZE
        if function is None or size not in (1, 2, 4) or register % size:
            return _ones(size)
        return function.read_config(register, size) if register < CONFIG_SIZE else 0

    def write(self, offset: int, size: int, value: int) -> None:
        if size == 8 and not offset & 7:
            self.write(offset, 4, value & 0xFFFFFFFF)
            self.write(offset + 4, 4, value >> 32)
            return
        function = self._function(offset)
        register = offset % _FUNCTION_SIZE
        if function is not None and size in (1, 2, 4) and not register % size and register < CONFIG_SIZE:
            function.write_config(register, size, value & _ones(size))

    def _function(self, offset: int) -> PciFunction | None:
        number, odd = divmod(offset // _FUNCTION_SIZE, 8)
        return None if odd or number >= DEVICES else self._host.functions.get(number)
