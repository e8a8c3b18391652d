"""Calls hooks for what the reference executor does: their functions run under CPython, on the states of native code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyvisor.adl import Architecture, Instruction, Int, Registers, u32, u64
from polyvisor.adl.frontend import Compiler
from polyvisor.adl.state import checked
from polyvisor.adl.types import DivisionError

from ..layout import Layout
from .compile import DIVISION_ERROR, error_code
from .declare import Ring
from .events import MEMORY, HookUse, values_of
from .states import Installed, InstalledFunction


class Observer:
    """Tells the hooks of one hart; see :class:`~polyvisor.engine.reference.Observer`."""

    def __init__(
        self, architecture: Architecture, hart: int, functions: Sequence[tuple[InstalledFunction, HookUse]]
    ) -> None:
        self._architecture = architecture
        self._hart = hart
        self._layout = Layout(architecture)
        self._compiler = Compiler(architecture, self._layout.members)
        self._jumps: dict[int, bool] = {}
        self._entering = False  # a trap: what that reads and writes is no instruction's
        self._by_kind: dict[str, list[_Call]] = {}
        for function, use in functions:
            call = _Call(function, use, hart, _State(function.owner, hart))
            self._by_kind.setdefault(use.kind, []).append(call)

    def _call(self, cpu: Any, kind: str, values: Mapping[str, Int]) -> None:
        for call in self._by_kind.get(kind, ()):
            call.make(cpu, values)

    def begins(self, cpu: Any) -> None:
        """An instruction begins."""
        self._entering = False
        self._call(cpu, "instruction", {"address": u64(int(cpu.pc))})

    def ends(self, cpu: Any, instruction: Instruction) -> None:
        """It has completed."""
        if "block" not in self._by_kind:
            return
        key = id(instruction)
        if key not in self._jumps:
            function = self._compiler.instruction(instruction.function, instruction.types, instruction.name)
            self._jumps[key] = "set_next_pc" in function.effects.does
        if self._jumps[key]:
            self.enters(cpu)

    def enters(self, cpu: Any) -> None:
        """Execution goes on at ``cpu.next_pc``."""
        self._call(cpu, "block", {"address": u64(int(cpu.next_pc))})

    def _access(self, cpu: Any, kind: str, address: Int, value: Int) -> None:
        if self._entering:
            return
        size = u32(type(value).bits // 8)
        self._call(cpu, kind, {"address": u64(int(address)), "value": u64(int(value)), "size": size})

    def loaded(self, cpu: Any, address: Int, value: Int) -> None:
        """Memory was read."""
        self._access(cpu, "read", address, value)

    def stored(self, cpu: Any, address: Int, value: Int) -> None:
        """Memory was written."""
        self._access(cpu, "write", address, value)

    def traps(self, cpu: Any, values: Sequence[int]) -> None:
        """A trap is about to be entered."""
        self._entering = True
        types = values_of(self._architecture, "trap")
        self._call(cpu, "trap", {name: t(v) for (name, t), v in zip(types.items(), values, strict=False)})
        abi = self._architecture.system_call
        if abi is not None and "syscall" in self._by_kind and values[0] == abi.cause:
            registers = getattr(cpu, abi.registers)
            given = {f"arg{n}": registers[r] for n, r in enumerate(abi.arguments)}
            self._call(cpu, "syscall", {"number": registers[abi.number], **given})

    def cycled(self, cpu: Any, access: int, address: Any) -> None:
        """No hook is told of clock cycles."""

    def noted(self, cpu: Any, event: str, values: Sequence[Int]) -> None:
        """The description says that something happened."""
        if event == "csr_write":
            number, value = values
            self._call(cpu, event, {"csr": u32(int(number)), "value": u64(int(value))})


@dataclass
class _Call:
    """A hook's function, as it is called for one hart."""

    function: InstalledFunction
    use: HookUse
    hart: int
    state: _State

    def make(self, cpu: Any, values: Mapping[str, Int]) -> None:
        """Call it, if the event is in its range."""
        function = self.function
        if function.range is not None and "address" in values:
            size = int(values["size"]) if self.use.kind in MEMORY else 1
            distance = (int(values["address"]) - function.range.start + size - 1) % 2**64
            if distance >= function.range.stop - function.range.start + size - 1:
                return
        if function.callback is not None:
            function.callback(self.hart, *(int(values[name]) for _, name in self.use.inputs))
            return
        assert function.hook is not None
        python = function.hook.function
        arguments: list[Any] = [self.state]
        for name in python.parameters[1:]:
            if name == "cpu":
                arguments.append(cpu)
            else:
                arguments.append(function.hook.wanted(name, type(values[name]))(int(values[name])))
        try:
            python.python(*arguments)
        except DivisionError:
            function.owner.states.note_error(self.hart, DIVISION_ERROR)


class _State:
    """A hook's state for its function; an index outside an array reads 0, changes nothing, and is noted."""

    def __init__(self, owner: Installed, hart: int) -> None:
        self.__dict__["_owner"] = owner
        self.__dict__["_hart"] = hart

    def __getattr__(self, name: str) -> Any:
        states = self._owner.states
        member = states.kind.members[name]
        if isinstance(member, Registers) and not isinstance(member, Ring):
            return _Array(self._owner, self._hart, member)
        return getattr(states.harts[self._hart], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._owner.states.harts[self._hart], name, value)


class _Array:
    def __init__(self, owner: Installed, hart: int, member: Registers) -> None:
        self._owner, self._hart, self._member = owner, hart, member
        self._places = getattr(owner.states.harts[hart], member.name)

    def _is_inside(self, index: int) -> bool:
        if 0 <= index < self._member.count:
            return True
        states = self._owner.states
        assert states.kind is not None
        states.note_error(self._hart, error_code(states.kind, self._member.name, int(index)))
        return False

    def __getitem__(self, index: Any) -> Any:
        return self._places[index] if self._is_inside(int(index)) else self._member.type(0)

    def __setitem__(self, index: Any, value: Any) -> None:
        checked(self._member.type, value, self._member.name)
        if self._is_inside(int(index)):
            self._places[index] = value
