"""A RISC-V machine, or a replay of one, as debuggers see it: each hart is a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from polyvisor.adl import Trap
from polyvisor.boards.virt import Virt
from polyvisor.engine.hart import Hart
from polyvisor.engine.memory import BusError
from polyvisor.isa.riscv.debug import REGISTERS, TARGET_XML
from polyvisor.vm.errors import VMError
from polyvisor.vm.inspect import physical_pieces

from .target import Halt, TargetError, Watch

# x0 to x31, and pc.
_GENERAL = 33


class HartMachine(Protocol):
    """A machine with harts: a :class:`~polyvisor.vm.machine.Machine`, or a replay."""

    sealed: bool
    """Whether registers and memory may not be changed."""
    history: str
    """``begin`` or ``end`` where it has stopped at an end of a recording."""
    on_break: Callable[[Hart], None] | None

    @property
    def board(self) -> Virt:
        """Its harts and memory."""

    def pause(self) -> None:
        """Make all harts stand still."""

    def resume(self) -> None:
        """Let them run."""

    def stop(self) -> None:
        """End it."""

    def step(self, hart: Hart) -> Hart:
        """Execute an instruction, if possible of ``hart``; gives the hart that did."""

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Where harts stop; while all stand still. Raises ValueError."""


@runtime_checkable
class ReversibleMachine(Protocol):
    """One that can go back; each gives the hart it is at."""

    def reverse_step(self) -> Hart:
        """One instruction back."""

    def reverse_continue(self) -> Hart:
        """Back to a breakpoint, or to the beginning."""


class HartTarget:
    """A machine with harts, as a :class:`~polyvisor.vm.gdb.target.Target`. Memory is by virtual addresses."""

    description = TARGET_XML
    sizes = (8,) * len(REGISTERS)
    general = _GENERAL
    can_watch = False

    def __init__(self, machine: HartMachine) -> None:
        self._machine = machine
        self.can_reverse = isinstance(machine, ReversibleMachine)
        self.on_halt: Callable[[Halt], bool] | None = None
        machine.on_break = self._broke

    @property
    def sealed(self) -> bool:
        """Whether registers and memory may not be changed."""
        return self._machine.sealed

    @property
    def threads(self) -> Sequence[str]:
        """A line about each hart."""
        return [f"hart {hart.hart_id}, {'started' if hart.started else 'stopped'}" for hart in self._harts]

    @property
    def _harts(self) -> Sequence[Hart]:
        return self._machine.board.harts

    def _broke(self, hart: Hart) -> None:
        if self.on_halt is not None:
            self.on_halt(self._at(hart))

    def _at(self, hart: Hart) -> Halt:
        return Halt(hart.hart_id, history=self._machine.history)

    def pause(self) -> None:
        """Make all harts stand still."""
        self._machine.pause()

    def resume(self) -> None:
        """Let them run."""
        self._machine.resume()

    def stop(self) -> None:
        """End the machine."""
        self._machine.stop()

    def step(self, thread: int) -> Halt:
        """Execute an instruction, if possible of this hart."""
        return self._at(self._machine.step(self._harts[thread]))

    def reverse_step(self) -> Halt:
        """One instruction back."""
        assert isinstance(self._machine, ReversibleMachine)
        return self._at(self._machine.reverse_step())

    def reverse_continue(self) -> Halt:
        """Back to a breakpoint, or to the beginning."""
        assert isinstance(self._machine, ReversibleMachine)
        return self._at(self._machine.reverse_continue())

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Stop before instructions at these virtual addresses."""
        self._machine.set_breakpoints(addresses)

    def set_watches(self, watches: Iterable[Watch]) -> None:
        """There are none."""
        raise TargetError("there are no watchpoints")

    def read_register(self, thread: int, number: int) -> int:
        """A register by its number in `polyvisor.isa.riscv.debug`."""
        state = self._harts[thread].state
        _, member, index = REGISTERS[number]
        return int(getattr(state, member)) if index is None else int(getattr(state, member)[index])

    def write_register(self, thread: int, number: int, value: int) -> None:
        """Change one."""
        state = self._harts[thread].state
        _, member, index = REGISTERS[number]
        if index is None:
            setattr(state, member, value)
        else:
            getattr(state, member)[index] = value

    def go_on_at(self, thread: int, address: int) -> None:
        """Change pc."""
        self._harts[thread].state.pc = address

    def _pieces(self, thread: int, address: int, length: int) -> list[tuple[int, int]]:
        try:
            return list(physical_pieces(self._harts[thread], address, length))
        except (Trap, BusError, VMError) as error:
            raise TargetError(f"nothing is mapped at some of {address:#x}") from error

    def read_memory(self, thread: int, address: int, length: int) -> bytes:
        """Memory as the hart's loads find it."""
        memory = self._machine.board.memory
        try:
            return b"".join(memory.read(*piece) for piece in self._pieces(thread, address, length))
        except BusError as error:
            raise TargetError(str(error)) from error

    def write_memory(self, thread: int, address: int, data: bytes) -> None:
        """Change it."""
        try:
            for physical, length in self._pieces(thread, address, len(data)):
                self._machine.board.memory.write(physical, data[:length])
                data = data[length:]
        except BusError as error:
            raise TargetError(str(error)) from error

    def command(self, text: str) -> str | None:
        """There are none."""
        return None
