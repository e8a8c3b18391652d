"""Puts hooks into the SSA form of instructions: handlers and regions need to know no more than ``hook``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polyvisor.adl import Registers, ssa, u32, u64
from polyvisor.adl.state import Field
from polyvisor.adl.types import integer_type

from ..layout import HOOK_CALL, HOOK_DATA, HOOK_LENGTH, HOOK_START, HOOK_STATE
from .events import MEMORY, HookSet, HookUse, Values

_TRUE = ssa.Const(bool, 1)
# What an atomic operation makes of the old value and its operand; the others compare.
_SIMPLE = {"add": "add", "and": "and", "or": "or", "xor": "xor"}
_COMPARE = {"min": "lt", "minu": "lt", "max": "gt", "maxu": "gt"}


class Instrumenter:
    """Instruments the functions of one architecture for a set of hooks. ``members`` are those of the CPU's block."""

    def __init__(self, hooks: HookSet, members: Mapping[str, Field | Registers], system_call: Any = None) -> None:
        self.hooks = hooks
        self.members = members
        self._system_call = system_call
        self._digest = hooks.digest[:12]
        self._done: dict[ssa.Function, ssa.Function] = {}
        self._numbers: dict[ssa.Function, int] = {}

    def new_value(self, function: ssa.Function, kind: ssa.Type) -> ssa.Value:
        """A value that a function does not have yet."""
        if function not in self._numbers:
            known = [p.number for p in function.parameters]
            for block in function.blocks:
                known += [v.number for v in (*block.parameters, *(r for op in block.ops for r in op.results))]
            self._numbers[function] = max(known, default=-1)
        self._numbers[function] += 1
        return ssa.Value(kind, self._numbers[function])

    def instruction(self, function: ssa.Function, starts: bool) -> ssa.Function:
        """An instruction's function with all hooks; those of its start if ``starts``. Without any, it is the same."""
        made = self._function(function, function.name)
        uses = self.hooks.of("instruction")
        if not starts or not uses:
            return made
        made = _Copy(made).function
        writer = _Writer(self, made)
        writer.at(uses, {"address": writer.one("pc", (), self.members["pc"].type)})
        made.blocks[0].ops[:0] = writer.ops
        return made

    def start(self) -> ssa.Function:
        """A function of what is hooked to the start of instructions."""
        made = ssa.Function("start", [], (), [ssa.Block(0, end=ssa.Return(()))])
        return self.instruction(made, True)

    def before_trap(self, types: Values) -> ssa.Function:
        """A function of what is called before a trap with values of these types is entered."""
        made = ssa.Function(f"before_trap.{self._digest}", [], (), [ssa.Block(0, end=ssa.Return(()))])
        writer = _Writer(self, made)
        raw = [writer.one("getreg", (ssa.Const(u32, n),), u64, "trap_values") for n in range(len(types))]
        values = {name: writer.cast(v, kind) for (name, kind), v in zip(types.items(), raw, strict=True)}
        calls: dict[str, ssa.Value] = {}
        for use in self.hooks.of("trap", "syscall"):
            if use.kind == "trap":
                writer.use(use, values)
                continue
            abi = self._system_call
            if not calls:
                numbers = {"number": abi.number, **{f"arg{n}": r for n, r in enumerate(abi.arguments)}}
                kind = self.members[abi.registers].type
                for name, number in numbers.items():
                    calls[name] = writer.one("getreg", (ssa.Const(u32, number),), kind, abi.registers)
            writer.use(use, calls, writer.one("eq", (raw[0], ssa.Const(u64, abi.cause)), bool))
        made.blocks[0].ops[:0] = writer.ops
        return made

    def after_trap(self) -> ssa.Function | None:
        """A function of what is called when it is known where a trap leads; None if nothing is."""
        uses = self.hooks.of("block")
        if not uses:
            return None
        made = ssa.Function(f"after_trap.{self._digest}", [], (), [ssa.Block(0, end=ssa.Return(()))])
        writer = _Writer(self, made)
        writer.at(uses, {"address": writer.one("next_pc", (), self.members["pc"].type)})
        made.blocks[0].ops[:0] = writer.ops
        return made

    def _function(self, function: ssa.Function, name: str) -> ssa.Function:
        if not self.hooks.touches(function.effects):
            return function
        if function not in self._done:
            made = self._done[function] = _Copy(function).function
            made.name = name
            jumps = "set_next_pc" in function.effects.does and not function.results
            for block in made.blocks:
                writer = _Writer(self, made)
                for op in block.ops:
                    self._operation(writer, op)
                if jumps and isinstance(block.end, ssa.Return) and name == function.name:
                    target = writer.one("next_pc", (), self.members["pc"].type)
                    writer.at(self.hooks.of("block"), {"address": target})
                block.ops[:] = writer.ops
        return self._done[function]

    def _operation(self, writer: _Writer, op: ssa.Op) -> None:
        reads, writes = self.hooks.of("read"), self.hooks.of("write")
        match op.opcode:
            case "load":
                values = self._access(writer, op, reads, (), op.detail)
                writer.memory(reads, {**values, "value": op.results[0]})
            case "store":
                values = self._access(writer, op, (), writes, op.detail)
                writer.memory(writes, {**values, "value": op.arguments[1]})
            case "atomic":
                operation, kind = op.detail
                values = self._access(writer, op, reads, writes, kind)
                old = op.results[0]
                writer.memory(reads, {**values, "value": old})
                if writes:
                    writer.memory(writes, {**values, "value": writer.atomic_result(operation, old, op.arguments[1])})
            case "compare_exchange":
                values = self._access(writer, op, reads, writes, op.detail)
                old = op.results[0]
                writer.memory(reads, {**values, "value": old})
                if writes:
                    done = writer.one("eq", (old, op.arguments[1]), bool)
                    writer.memory(writes, {**values, "value": op.arguments[2]}, done)
            case "note":
                writer.ops.append(op)
                if op.detail == "csr_write":
                    for use in self.hooks.of("csr_write"):
                        writer.use(use, {"csr": op.arguments[0], "value": op.arguments[1]})
            case "call" if self.hooks.touches(op.detail.effects):
                callee = self._function(op.detail, f"{op.detail.name}.{self._digest}")
                writer.ops.append(replace(op, detail=callee))
            case _:
                writer.ops.append(op)

    def _access(
        self, writer: _Writer, op: ssa.Op, reads: Sequence[HookUse], writes: Sequence[HookUse], kind: Any
    ) -> dict[str, ssa.Value]:
        """Add an access, with a warning where callbacks follow it; gives its values but for the value itself."""
        values: dict[str, ssa.Value] = {"size": ssa.Const(u32, kind.bits // 8)}
        if reads or writes:
            values["address"] = writer.cast(op.arguments[0], u64)
        for use in (*reads, *writes):
            if use.function is None:
                writer.ops.append(ssa.Op("hook_before", (writer.in_range(use, values),), (), use))
        writer.ops.append(op)
        return values


class _Writer:
    """Makes operations for one place of a function."""

    def __init__(self, owner: Instrumenter, function: ssa.Function) -> None:
        self.ops: list[ssa.Op] = []
        self._owner = owner
        self._members = owner.members
        self._function = function

    def one(self, opcode: str, arguments: tuple[ssa.Value, ...], kind: ssa.Type, detail: Any = None) -> ssa.Value:
        """Add an operation with one result."""
        value = self._owner.new_value(self._function, kind)
        self.ops.append(ssa.Op(opcode, arguments, (value,), detail))
        return value

    def cast(self, value: ssa.Value, kind: Any) -> ssa.Value:
        """The value as another type."""
        if isinstance(value, ssa.Const):
            return ssa.Const(kind, value.value)
        return value if value.type is kind else self.one("cast", (value,), kind)

    def data(self, use: HookUse, which: int) -> ssa.Value:
        """A word that the CPU's block has for a hook."""
        return self.one("getreg", (ssa.Const(u32, HOOK_DATA * use.slot + which),), u64, "hook_data")

    def in_range(self, use: HookUse, values: Mapping[str, ssa.Value]) -> ssa.Value:
        """Whether an event is in the hook's range."""
        if use.at is not None:
            start, length = use.at
            inside = self.one("sub", (self.cast(values["address"], u64), ssa.Const(u64, start)), u64)
            return self.one("lt", (inside, ssa.Const(u64, length)), bool)
        if not use.ranged or use.kind not in MEMORY:
            return _TRUE
        # An access of n bytes touches the range if it begins up to n - 1 bytes before it.
        more = ssa.Const(u64, int(values["size"].value) - 1)  # type: ignore[attr-defined]
        distance = self.one("sub", (values["address"], self.data(use, HOOK_START)), u64)
        extent = self.data(use, HOOK_LENGTH)
        if more.value:
            distance, extent = self.one("add", (distance, more), u64), self.one("add", (extent, more), u64)
        return self.one("lt", (distance, extent), bool)

    def at(self, uses: Sequence[HookUse], values: Mapping[str, ssa.Value]) -> None:
        """Call hooks for an address."""
        for use in uses:
            self.use(use, values, self.in_range(use, values))

    def memory(self, uses: Sequence[HookUse], values: Mapping[str, ssa.Value], done: ssa.Value | None = None) -> None:
        """Call hooks for an access; ``done``: whether it was made."""
        for use in uses:
            guard = self.in_range(use, values)
            if done is not None:
                guard = done if isinstance(guard, ssa.Const) else self.one("and", (guard, done), bool)
            self.use(use, values, guard)

    def use(self, use: HookUse, values: Mapping[str, ssa.Value], guard: ssa.Value = _TRUE) -> None:
        """Call a hook."""
        if use.function is None:
            given = [self.cast(values[name], u64) for _, name in use.inputs]
            self.ops.append(ssa.Op("hook_call", (guard, self.data(use, HOOK_CALL), *given), (), use))
            return
        arguments = [self._input(use, source, values) for source in use.inputs]
        typed = [
            self.cast(value, parameter.type)
            for value, parameter in zip(arguments, use.function.parameters, strict=True)
        ]
        self.ops.append(ssa.Op("hook", (guard, *typed), (), use))

    def _input(self, use: HookUse, source: tuple[Any, ...], values: Mapping[str, ssa.Value]) -> ssa.Value:
        match source:
            case ("state",):
                return self.data(use, HOOK_STATE)
            case ("value", name):
                return values[name]
            case ("register", name, None):
                return self.one("get", (), self._members[name].type, name)
            case ("register", name, number):
                return self.one("getreg", (ssa.Const(u32, number),), self._members[name].type, name)
            case ("pc",):
                return self.one("pc", (), self._members["pc"].type)
        return self.one("instructions", (), u64)

    def atomic_result(self, operation: str, old: ssa.Value, operand: ssa.Value) -> ssa.Value:
        """What an atomic operation leaves in memory."""
        kind: Any = old.type
        if operation == "swap":
            return operand
        if operation in _SIMPLE:
            return self.one(_SIMPLE[operation], (old, operand), kind)
        compared = integer_type(kind.bits, not operation.endswith("u"))
        pair = (self.cast(operand, compared), self.cast(old, compared))
        return self.one("select", (self.one(_COMPARE[operation], pair, bool), operand, old), kind)


class _Copy:
    """A copy of a function that shares its values and operations, but not its blocks."""

    def __init__(self, function: ssa.Function) -> None:
        self._blocks = {b: ssa.Block(b.number, list(b.parameters), list(b.ops)) for b in function.blocks}
        for old, new in self._blocks.items():
            new.end = self._end(old.end)
        self.function = ssa.Function(
            function.name, list(function.parameters), function.results, list(self._blocks.values())
        )

    def _jump(self, jump: ssa.Jump) -> ssa.Jump:
        return ssa.Jump(self._blocks[jump.target], jump.arguments)

    def _end(self, end: ssa.Terminator | None) -> ssa.Terminator | None:
        match end:
            case ssa.Jump():
                return self._jump(end)
            case ssa.Branch(then=then, otherwise=otherwise):
                return replace(end, then=self._jump(then), otherwise=self._jump(otherwise))
            case ssa.Switch(cases=cases, default=default):
                return replace(end, cases=[(n, self._jump(j)) for n, j in cases], default=self._jump(default))
        return end
