"""The state of a machine: taken from one that stands still, given to one that has not started, or stands still too.

What is taken are the declared states of harts and devices, as plain data (see ``codec``), and RAM.
Threads of the host may be at work meanwhile (a network, whoever types): the locks of all devices are held, and none of
them may be in the middle of something, so that all parts are of one moment.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from polyvisor.adl import DescriptionError, Field
from polyvisor.boards.elf import ElfProgram
from polyvisor.boards.riscv_hart import RiscvHart
from polyvisor.boards.virt import Virt, VirtConfig
from polyvisor.dataclass import dataclass, field
from polyvisor.devices.aclint import AclintState
from polyvisor.devices.plic import PlicState
from polyvisor.devices.rtc import GoldfishRtcState
from polyvisor.devices.syscon import TestState
from polyvisor.devices.uart import Uart16550State
from polyvisor.devices.virtio.queue import QueueError
from polyvisor.engine.memory import BusError
from polyvisor.engine.timing import ConductorState
from polyvisor.isa.riscv import rv64
from polyvisor.vm.errors import SnapshotError
from polyvisor.vm.machine import Machine

from . import ram
from .codec import StateError, from_plain, to_plain
from .ram import RamImage

# How long a device may take to come to rest, in seconds: it only waits for what was begun.
_PATIENCE = 10.0
_PAUSE = 0.001


@dataclass
class Shape:
    """What a machine must have in common with another to go on from its state."""

    architecture: str
    board: str
    cpus: int
    memory: int
    """Bytes."""
    bus: str
    devices: list[int]
    """The types of the virtio devices, as VIRTIO numbers them."""
    virtual_time: bool


@dataclass
class HartState:
    """A hart; ``registers``: all that the description declares, a list each."""

    started: bool
    retired: int
    registers: dict[str, list[int]]


@dataclass
class BoardState:
    """All but RAM and the virtio devices."""

    ticks: int
    """The time counter."""
    clock_offset: int
    """Ticks it is ahead of the instructions executed, where time follows those."""
    harts: list[HartState]
    plic: PlicState
    aclint: AclintState
    uart: Uart16550State
    rtc: GoldfishRtcState
    test: TestState
    pci: Any
    """A PciHostState, if it has such a bus."""
    conductor: ConductorState | None
    """In virtual time: whose turn it is, and what time."""
    program: ElfProgram | None


@dataclass
class _Like:
    """What is of the type that a BoardState has there: that of a bus that few machines have is not known here."""

    pci: Any


@dataclass
class MachineState:
    """A machine at one moment. ``board`` and ``virtio`` are plain data: BoardState, and a TransportState for each."""

    shape: Shape
    board: dict[str, Any]
    virtio: list[dict[str, Any]]
    ram: list[RamImage] = field(default_factory=list)


def shape_of(board: Virt) -> Shape:
    """What kind of machine this is."""
    config = board.config
    return Shape(
        rv64.name, "virt", config.cpus, config.memory, config.bus,
        [device.device_id for device in board.virtio_devices], config.virtual_time,
    )  # fmt: skip


# Taking it


@contextmanager
def at_rest(machine: Machine) -> Iterator[None]:
    """Keep everything but the host's own doings out of a machine that stands still. Raises SnapshotError."""
    board = machine.board
    if machine.has_ended:
        raise SnapshotError("the machine has ended")
    if not all(hart.is_still for hart in board.harts):
        raise SnapshotError("the machine runs: pause it first")
    for device in board.virtio_devices:
        obstacle = device.obstacle()
        if obstacle is not None:
            raise SnapshotError(f"no snapshot can be taken: {obstacle}")
    locks: list[Any] = [device.lock for device in board.virtio_devices]
    locks += [board.uart.lock, board.rtc.lock]
    if board.htif is not None:
        locks.append(board.htif.lock)
    end = time.monotonic() + _PATIENCE
    while True:
        with ExitStack() as held:
            for lock in locks:
                if not lock.acquire(timeout=max(0.0, end - time.monotonic())):
                    raise SnapshotError(f"a device does not come to rest within {_PATIENCE:g} seconds")
                held.callback(lock.release)
            if all(device.is_settled() for device in board.virtio_devices):
                yield
                return
        if time.monotonic() > end:
            raise SnapshotError(f"a device does not come to rest within {_PATIENCE:g} seconds")
        time.sleep(_PAUSE)


def capture(machine: Machine) -> MachineState:
    """The state of a machine that stands still, with a copy of its RAM in memory. Raises SnapshotError, OSError."""
    with at_rest(machine):
        state = capture_devices(machine)
        state.ram = ram.copied(machine.board.memory, machine.board.pages)
        return state


def capture_devices(machine: Machine) -> MachineState:
    """The same without RAM; in :func:`at_rest`."""
    board = machine.board
    found = BoardState(
        ticks=board.clock.ticks(),
        clock_offset=board.harts[0].cpu.clock_offset,
        harts=[_hart_state(hart) for hart in board.harts],
        plic=board.plic.state,
        aclint=board.aclint.state,
        uart=board.uart.state,
        rtc=board.rtc.state,
        test=board.test.state,
        pci=board.pci.state if board.pci is not None else None,
        conductor=board.conductor.saved() if board.conductor is not None else None,
        program=board.program,
    )
    return MachineState(
        shape_of(board), to_plain(found), [to_plain(transport.state) for transport in board.virtio]
    )


def _members() -> dict[str, Any]:
    assert rv64.state_type is not None
    return rv64.state_type.members


def _hart_state(hart: RiscvHart) -> HartState:
    values = {}
    for name, member in _members().items():
        value = getattr(hart.state, name)
        values[name] = [int(value)] if isinstance(member, Field) else [int(each) for each in value]
    return HartState(hart.started, hart.cpu.retired, values)


# Giving it to a machine


def restored_machine(
    state: MachineState,
    config: VirtConfig,
    output: Callable[[bytes], None],
    progress: Callable[[str], None] | None = None,
    *,
    reconnect: bool = True,
) -> Machine:
    """A new machine with the state, ready to be started; see :func:`apply`.

    Its RAM is a private mapping of what the state has, so nothing is copied, and any number of machines can be made of
    one state. Raises what Machine does, and SnapshotError.
    """
    machine = Machine(config, output, progress, {image.base: image.extents for image in state.ram})
    try:
        apply(machine, state, with_ram=False, reconnect=reconnect)
    except BaseException:
        machine.close()
        raise
    return machine


def apply(machine: Machine, state: MachineState, *, with_ram: bool = True, reconnect: bool = True) -> None:
    """Let a machine go on from ``state`` when it is started, or resumed if it stands still.

    ``with_ram``: copy RAM into it; otherwise it has what the state has already. ``reconnect``: the world around the
    machine is not the one it was taken in: open connections of the host are broken (VIRTIO 1.2, 5.10.6.7), the network
    is told where the machine is, keys are released. Without it nothing but what was taken is changed.

    Raises SnapshotError if it is of another kind of machine, or makes no sense; the machine is of no use then. OSError.
    """
    board = machine.board
    if not all(hart.is_still for hart in board.harts):
        raise SnapshotError("the machine runs: pause it first")
    _check_shape(shape_of(board), state.shape)
    try:
        found = from_plain(BoardState, state.board, "board", _Like(board.pci.state if board.pci is not None else None))
        transports = [
            from_plain(type(like), data, f"virtio{index}", like)
            for index, (data, like) in enumerate(
                zip(state.virtio, [transport.state for transport in board.virtio], strict=True)
            )
        ]
        if with_ram:
            ram.load(board.memory, state.ram)
        _apply_board(machine, found)
        for transport, transport_state in zip(board.virtio, transports, strict=True):
            with transport.device.lock:
                transport.state = transport_state
                transport.device.restored()
    except SnapshotError:
        raise
    except (ValueError, LookupError, QueueError, BusError, DescriptionError) as error:
        raise SnapshotError(f"the state makes no sense: {error}") from error
    if reconnect:
        for device in board.virtio_devices:
            with device.guard():
                device.reconnected()


def _check_shape(ours: Shape, theirs: Shape) -> None:
    for name, value in vars(theirs).items():
        if value != getattr(ours, name):
            what = name.replace("_", " ")
            raise SnapshotError(f"it is of a machine with {what} {value}, and this one has {getattr(ours, name)}")


def _apply_board(machine: Machine, state: BoardState) -> None:
    board = machine.board
    if len(state.harts) != len(board.harts):
        raise StateError(f"{len(state.harts)} harts instead of {len(board.harts)}")
    if (state.pci is None) != (board.pci is None):
        raise StateError("a PCI bus that one of the machines has not")
    # The harts first: from the moment that a device has its state, it may assert their lines.
    for hart, hart_state in zip(board.harts, state.harts, strict=True):
        _apply_hart(hart, hart_state)
    if board.conductor is not None:
        if state.conductor is None or len(state.conductor.waiting) != len(board.harts):
            raise StateError("no time, or not of these harts")
        for hart in board.harts:
            hart.cpu.clock_offset = state.clock_offset
        board.conductor.restore(state.conductor)
    else:
        board.clock.set_ticks(state.ticks)
    board.boot_harts = []
    board.plic.state = state.plic
    board.aclint.state = state.aclint
    with board.uart.lock:
        board.uart.state = state.uart
    with board.rtc.lock:
        board.rtc.state = state.rtc
    board.rtc.rearm()
    board.test.state = state.test
    if board.pci is not None and state.pci is not None:
        board.pci.state = state.pci
    board.set_program(state.program)


def _apply_hart(hart: RiscvHart, state: HartState) -> None:
    members = _members()
    if set(state.registers) != set(members):
        odd = sorted(set(state.registers) ^ set(members))
        raise StateError(f"a hart with other registers: {', '.join(odd)}")
    hart.cpu.reset()
    for name, member in members.items():
        values = state.registers[name]
        if len(values) != (1 if isinstance(member, Field) else member.count):
            raise StateError(f"{name}: {len(values)} values")
        if isinstance(member, Field):
            setattr(hart.state, name, values[0])
        else:
            registers = getattr(hart.state, name)
            for index, value in enumerate(values):
                registers[index] = value
    hart.check_state()
    hart.cpu.retired = state.retired
    hart.put(state.started)
