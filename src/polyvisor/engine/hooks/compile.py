"""From a hook's function to SSA: what it reads of the CPU becomes parameters, its state is memory of the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from polyvisor.adl import DescriptionError, Field, Int, Registers, ssa, u64
from polyvisor.adl.frontend import Builder, Compiler
from polyvisor.adl.outside import Outside
from polyvisor.adl.state import State as BlockState

from .declare import Hook, Ring
from .events import HookUse, Input, values_of

# A state's block begins with a word that tells of an error, 0: none. Its members are behind that.
HEADER = 8
_DIVISION = 255
# In that word: which member (its number, from 1) or _DIVISION, and the index.
_INDEX_SHIFT = 8


def error_code(state: type[BlockState], member: str, index: int) -> int:
    """The word for an index that is not in an array."""
    return (list(state.members).index(member) + 1) | (index << _INDEX_SHIFT) & (2**64 - 1)


DIVISION_ERROR = _DIVISION


def error_text(state: type[BlockState] | None, code: int) -> str:
    """What the word says, 0 excepted."""
    if code & 0xFF == _DIVISION or state is None:
        return "division by zero"
    name = list(state.members)[(code & 0xFF) - 1]
    return f"{name}[{code >> _INDEX_SHIFT}]: {name} has {state.members[name].count} places"  # type: ignore[union-attr]


class _State(Outside):
    """``hook`` in its function."""

    def __init__(self, state: type[BlockState] | None, base: ssa.Value) -> None:
        self._type, self._base = state, base

    def _member(self, name: str) -> Field | Registers:
        if self._type is None:
            raise DescriptionError("the hook has no state: give a State class where it is added")
        member = self._type.members.get(name)
        if member is None:
            raise DescriptionError(f"the hook's state {self._type.__name__} has no member {name!r}")
        return member

    def get(self, builder: Builder, name: str) -> Any:
        member = self._member(name)
        place = _offset(builder, self._base, member.offset)
        if isinstance(member, Ring):
            return _RingOfHook(member, place)
        if isinstance(member, Registers):
            assert self._type is not None
            return _Array(member, place, self._base, error_code(self._type, name, 0))
        return builder.one("peek", (place,), member.type, member.type)

    def set(self, builder: Builder, name: str, value: Any) -> None:
        member = self._member(name)
        if isinstance(member, Registers):
            raise DescriptionError(f"{name} has several places; assign to one of them, as in {name}[i]")
        given = builder.value(value, member.type, name)
        builder.emit("poke", (_offset(builder, self._base, member.offset), given), (), member.type)


def _offset(builder: Builder, base: ssa.Value, offset: int) -> ssa.Value:
    return builder.one("add", (base, ssa.Const(u64, HEADER + offset)), u64)


class _Array(Outside):
    """``hook.array``: an index outside it reads 0, changes nothing, and is noted."""

    def __init__(self, member: Registers, place: ssa.Value, base: ssa.Value, error: int) -> None:
        self._member, self._place, self._base, self._error = member, place, base, error

    def _address(self, builder: Builder, index: ssa.Value) -> ssa.Value:
        scaled = builder.one("mul", (index, ssa.Const(u64, self._member.type.bits // 8)), u64)
        return builder.one("add", (self._place, scaled), u64)

    def _index(self, builder: Builder, index: Any) -> ssa.Value:
        member = self._member
        if not isinstance(index, ssa.Value):
            if not 0 <= int(index) < member.count:
                raise DescriptionError(f"{member.name} has {member.count} places; there is no number {int(index)}")
            return ssa.Const(u64, int(index))
        if index.type is bool or index.type.signed:
            raise DescriptionError("an index is an unsigned integer")
        return index if index.type is u64 else builder.one("cast", (index,), u64)

    def _where_inside(self, builder: Builder, index: ssa.Value, make: Callable[[], ssa.Value | None]) -> Any:
        """Do something where the index is in the array; its result, else 0."""
        if isinstance(index, ssa.Const):
            return make()
        fine, bad, after = builder.new_block(), builder.new_block(), builder.new_block()
        inside = builder.one("lt", (index, ssa.Const(u64, self._member.count)), bool)
        builder.end(ssa.Branch(inside, ssa.Jump(fine, []), ssa.Jump(bad, []), True))
        builder.block = bad
        moved = builder.one("shl", (index, ssa.Const(u64, _INDEX_SHIFT)), u64)
        code = builder.one("or", (moved, ssa.Const(u64, self._error)), u64)
        builder.emit("poke", (self._base, code), (), u64)
        nothing = ssa.Jump(after, [])
        builder.end(nothing)
        builder.block = fine
        value = make()
        builder.end(ssa.Jump(after, [] if value is None else [value]))
        builder.block = after
        if value is None:
            return None
        nothing.arguments.append(ssa.Const(value.type, 0))
        return builder.block_parameter(after, value.type)

    def item(self, builder: Builder, index: Any) -> Any:
        kind = self._member.type
        place = self._index(builder, index)
        return self._where_inside(
            builder, place, lambda: builder.one("peek", (self._address(builder, place),), kind, kind)
        )

    def set_item(self, builder: Builder, index: Any, value: Any) -> None:
        kind = self._member.type
        place = self._index(builder, index)
        given = builder.value(value, kind, self._member.name)

        def store() -> None:
            builder.emit("poke", (self._address(builder, place), given), (), kind)

        self._where_inside(builder, place, store)


class _RingOfHook(Outside):
    """``hook.ring``, or its ``append``."""

    def __init__(self, member: Ring, place: ssa.Value, method: bool = False) -> None:
        self._member, self._place, self._method = member, place, method

    def get(self, builder: Builder, name: str) -> Any:
        if name != "append" or self._method:
            raise DescriptionError(f"a ring has append(value) and nothing else, not {name!r}")
        return _RingOfHook(self._member, self._place, True)

    def call(self, builder: Builder, arguments: list[Any]) -> Any:
        if not self._method or len(arguments) != 1:
            raise DescriptionError("a ring is given one value by ring.append(value)")
        kind = self._member.type
        value = builder.value(arguments[0], kind, self._member.name)
        count = builder.one("peek", (self._place,), u64, u64)
        number = builder.one("and", (count, ssa.Const(u64, self._member.count - 1)), u64)
        scaled = builder.one("mul", (number, ssa.Const(u64, kind.bits // 8)), u64)
        place = builder.one("add", (self._place, builder.one("add", (scaled, ssa.Const(u64, 8)), u64)), u64)
        builder.emit("poke", (place, value), (), kind)
        more = builder.one("add", (count, ssa.Const(u64, 1)), u64)
        builder.emit("poke", (self._place, more), (), u64)
        return None


_READ_ONLY = "a hook reads the CPU's state and cannot change it"


class _Cpu(Outside):
    """``cpu`` in a hook's function: each register that it reads becomes a parameter."""

    def __init__(self, builder: Builder, compiler: Compiler) -> None:
        self._builder, self._compiler = builder, compiler
        assert compiler.architecture.state_type is not None
        self._members = compiler.architecture.state_type.members
        self.reads: dict[Input, ssa.Value] = {}

    def read(self, builder: Builder, key: Input, kind: type[Int]) -> ssa.Value:
        """The parameter for what a key names."""
        if builder is not self._builder:
            raise DescriptionError("a function that is not inline cannot read the CPU's state for a hook")
        if key not in self.reads:
            self.reads[key] = builder.parameter(kind)
        return self.reads[key]

    def get(self, builder: Builder, name: str) -> Any:
        if name == "pc":
            return self.read(builder, ("pc",), self._compiler.members["pc"].type)
        if name == "instructions":
            return _Instructions(self)
        member = self._members.get(name)
        if isinstance(member, Registers):
            return _CpuRegisters(self, member)
        if member is None:
            raise DescriptionError(f"a hook reads the CPU's registers and pc; it has no {name!r}")
        return self.read(builder, ("register", name, None), member.type)

    def set(self, builder: Builder, name: str, value: Any) -> None:
        raise DescriptionError(f"{_READ_ONLY} (cpu.{name})")


class _CpuRegisters(Outside):
    def __init__(self, cpu: _Cpu, member: Registers) -> None:
        self._cpu, self._member = cpu, member

    def item(self, builder: Builder, index: Any) -> Any:
        member = self._member
        if isinstance(index, ssa.Value):
            raise DescriptionError(f"a hook reads registers by constant numbers, such as cpu.{member.name}[10]")
        if not 0 <= int(index) < member.count:
            raise DescriptionError(f"{member.name} has {member.count} registers; there is no number {int(index)}")
        return self._cpu.read(builder, ("register", member.name, int(index)), member.type)

    def set_item(self, builder: Builder, index: Any, value: Any) -> None:
        raise DescriptionError(f"{_READ_ONLY} (cpu.{self._member.name})")


class _Instructions(Outside):
    def __init__(self, cpu: _Cpu) -> None:
        self._cpu = cpu

    def call(self, builder: Builder, arguments: list[Any]) -> Any:
        if arguments:
            raise DescriptionError("cpu.instructions() takes no arguments")
        return self._cpu.read(builder, ("instructions",), u64)


def compile_hook(compiler: Compiler, hook: Hook, state: type[BlockState] | None, slot: int) -> HookUse:
    """Compile a hook's function. Raises DescriptionError, which names file and line."""
    code = hook.function.python.__code__
    builder = Builder(compiler)
    base = builder.parameter(u64)
    cpu = _Cpu(builder, compiler)
    given = values_of(compiler.architecture, hook.kind)
    inputs: list[Input] = [("state",)]
    environment: dict[str, Any] = {}

    def fail(message: str) -> DescriptionError:
        return DescriptionError(f"{code.co_filename}:{code.co_firstlineno}: in {hook.name}: {message}")

    parameters = hook.function.parameters
    if not parameters or parameters[0] in ("cpu", *given):
        raise fail("a hook's first parameter is its state: def f(hook, cpu, ...)")
    environment[parameters[0]] = _State(state, base)
    for name in parameters[1:]:
        if name == "cpu":
            environment[name] = cpu
        elif name in given:
            value: ssa.Value = builder.parameter(given[name])
            inputs.append(("value", name))
            wanted = hook.wanted(name, given[name])
            if not (isinstance(wanted, type) and issubclass(wanted, Int)):
                raise fail(f"{name} is a number: annotate it with an integer type such as {given[name].__name__}")
            environment[name] = value if wanted is value.type else builder.one("cast", (value,), wanted)
        else:
            known = ", ".join(["cpu", *given])
            raise fail(f"the event {hook.kind} has no {name!r}; a hook of it can ask for {known}")
    compiler.body(builder, hook.function, environment)
    builder.end(ssa.Return(()))
    function = builder.finish(f"hook.{slot}.{hook.name}", ())
    if function.effects.does - {"peek", "poke"}:
        raise fail("a hook cannot raise a trap")
    _make_divisions_safe(function, base)
    inputs += cpu.reads  # parameters in the order in which they were made
    return HookUse(hook.kind, slot, function, tuple(inputs))


def _make_divisions_safe(function: ssa.Function, base: ssa.Value) -> None:
    """The host's division faults for a divisor of 0, and for the smallest number by -1: users' code must not."""
    number = 1 + max(
        [p.number for p in function.parameters]
        + [v.number for b in function.blocks for v in (*b.parameters, *(r for op in b.ops for r in op.results))]
    )
    ops: list[ssa.Op] = []

    def one(opcode: str, arguments: tuple[ssa.Value, ...], kind: ssa.Type, detail: Any = None) -> ssa.Value:
        nonlocal number
        number += 1
        result = ssa.Value(kind, number)
        ops.append(ssa.Op(opcode, arguments, (result,), detail))
        return result

    for block in function.blocks:
        ops = []
        for op in block.ops:
            if op.opcode not in ("div", "rem"):
                ops.append(op)
                continue
            dividend, divisor = op.arguments
            if isinstance(divisor, ssa.Const) and divisor.value not in (0, -1):
                ops.append(op)
                continue
            kind: Any = divisor.type
            zero = one("eq", (divisor, ssa.Const(kind, 0)), bool)
            before = one("peek", (base,), u64, u64)
            code = one("select", (zero, ssa.Const(u64, DIVISION_ERROR), before), u64)
            ops.append(ssa.Op("poke", (base, code), (), u64))
            safe = one("select", (zero, ssa.Const(kind, 1), divisor), kind)
            if not kind.signed:
                ops.append(replace(op, arguments=(dividend, safe)))
                continue
            negative = one("eq", (safe, ssa.Const(kind, -1)), bool)
            safe = one("select", (negative, ssa.Const(kind, 1), safe), kind)
            if op.opcode == "rem":
                ops.append(replace(op, arguments=(dividend, safe)))
                continue
            quotient = one("div", (dividend, safe), kind)
            opposite = one("sub", (ssa.Const(kind, 0), dividend), kind)
            ops.append(ssa.Op("select", (negative, opposite, quotient), op.results))
        block.ops[:] = ops
