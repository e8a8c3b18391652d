"""Moments of a replay that it can go back to: all state of its machine, but of RAM only what changed since the last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.devices.virtio.gpu import GpuDevice
from polyvisor.devices.virtio.net import NetDevice
from polyvisor.devices.virtio.rng import SeededEntropy
from polyvisor.devices.virtio.vsock import VsockDevice
from polyvisor.engine.memory import PAGE_SIZE

from ..machine import Machine
from ..snapshot.machine_state import MachineState, apply, capture_devices
from .disk import ReplayedDisk
from .script import LogScript, Place

_ZERO = bytes(PAGE_SIZE)
MOST_BYTES = 1 << 30
"""What the pages of all moments may take."""
MOST = 128


@dataclass
class Moment:
    """``executed`` instructions; ``time`` in nanoseconds; ``pages``: contents of RAM that changed since the moment
    before, by address.
    """

    executed: int
    time: int
    state: MachineState
    place: Place
    entropy: int
    extra: list[Any]
    pages: dict[int, bytes]


class Moments:
    """The moments of one machine of a replay, in order. All are taken between turns, where harts are settled."""

    def __init__(self, machine: Machine, script: LogScript) -> None:
        self._machine = machine
        self._script = script
        self._moments: list[Moment] = []
        # The last moment that RAM was as in, and what has changed since: from a mark on, and beside that.
        self._base: Moment | None = None
        self._mark = 0
        self._beside: set[int] = set()
        self._bytes = 0

    def __iter__(self) -> Iterator[Moment]:
        return iter(list(self._moments))

    def take(self) -> None:
        """Remember this moment, unless one of later is known: then this one is known well enough."""
        board = self._machine.board
        conductor = board.conductor
        assert conductor is not None and isinstance(board.config.entropy, SeededEntropy)
        if self._moments and self._moments[-1].executed >= conductor.executed:
            return
        pages: dict[int, bytes] = {}
        for address, view in self._changed():
            data = bytes(view)
            if self._moments or data != _ZERO:
                pages[address] = data
        self._moments.append(
            Moment(
                conductor.executed, conductor.now, capture_devices(self._machine),
                self._script.place, board.config.entropy.position, [extra_of(d) for d in board.virtio_devices], pages,
            )
        )
        self._base, self._beside = self._moments[-1], set()
        self._bytes += len(pages) * PAGE_SIZE
        while len(self._moments) > MOST or (self._bytes > MOST_BYTES and len(self._moments) > 3):
            self._thin()

    def _changed(self) -> Iterator[tuple[int, memoryview]]:
        """Pages of RAM that may have been written since the last time."""
        board = self._machine.board
        rams = board.memory.ram
        runs = [[(0, ram.size // PAGE_SIZE)] for ram in rams]
        if board.pages is not None:
            runs = board.pages.written_since(self._mark)
            self._mark = board.pages.mark()
        for ram, written in zip(rams, runs, strict=True):
            for first, count in written:
                for offset in range(first * PAGE_SIZE, (first + count) * PAGE_SIZE, PAGE_SIZE):
                    yield ram.base + offset, ram.view[offset : offset + PAGE_SIZE]

    def _thin(self) -> None:
        """Forget the moment that leaves the smallest gap, of all but the first and the last two."""
        counts = [moment.executed for moment in self._moments]
        index = min(range(1, len(counts) - 2), key=lambda i: (counts[i + 1] - counts[i - 1]) / (1 + i))
        gone, following = self._moments.pop(index), self._moments[index]
        if gone is self._base:
            self._base = self._moments[index - 1]
            self._beside |= gone.pages.keys()
        before = len(gone.pages) + len(following.pages)
        following.pages = gone.pages | following.pages
        self._bytes -= (before - len(following.pages)) * PAGE_SIZE

    def before(self, executed: int) -> Moment | None:
        """The last one that is not behind so many instructions."""
        found = [moment for moment in self._moments if moment.executed <= executed]
        return found[-1] if found else None

    def before_time(self, time: int) -> Moment | None:
        """The last one that is not behind a time."""
        found = [moment for moment in self._moments if moment.time <= time]
        return found[-1] if found else None

    def go(self, moment: Moment) -> None:
        """Put the machine into a moment."""
        board = self._machine.board
        places = {id(each): number for number, each in enumerate(self._moments)}
        index = places[id(moment)]
        addresses = {address for address, _ in self._changed()} | self._beside
        # What differs between here and there.
        base = places[id(self._base)] if self._base is not None else 0
        for each in self._moments[min(base, index) + 1 : max(base, index) + 1]:
            addresses |= each.pages.keys()
        known: dict[int, bytes] = {}
        for earlier in self._moments[: index + 1]:
            known.update(earlier.pages)
        for address in addresses:
            data = known.get(address, _ZERO)
            if board.memory.view(address, PAGE_SIZE) != data:
                board.memory.write(address, data)
        assert isinstance(board.config.entropy, SeededEntropy)
        apply(self._machine, moment.state, with_ram=False, reconnect=False)
        self._script.place = moment.place
        board.config.entropy.position = moment.entropy
        for device, extra in zip(board.virtio_devices, moment.extra, strict=True):
            put_extra(device, extra)
        self._base, self._beside = moment, set()
        if board.pages is not None:
            self._mark = board.pages.mark()


def extra_of(device: Any) -> Any:
    """What a device keeps beside its state."""
    if isinstance(device, BlockDevice) and isinstance(device.disk, ReplayedDisk):
        return dict(device.disk.places)
    if isinstance(device, VsockDevice):
        return device.save_streams()
    if isinstance(device, NetDevice):
        return device.link_up
    if isinstance(device, GpuDevice):
        return list(device.preferred)
    return None


def put_extra(device: Any, extra: Any) -> None:
    """Give back what :func:`extra_of` gave."""
    if isinstance(device, BlockDevice) and isinstance(device.disk, ReplayedDisk):
        device.disk.places = dict(extra)
    elif isinstance(device, VsockDevice):
        device.restore_streams(extra)
    elif isinstance(device, NetDevice):
        device.link_up = extra
    elif isinstance(device, GpuDevice):
        device.preferred = list(extra)
