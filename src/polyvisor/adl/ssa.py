"""The typed SSA form that described functions are compiled to.

A function is a list of blocks; a block has parameters (instead of phi nodes), operations and one terminator.
Every value has an integer type of the language or ``bool``.  All back ends, and all instrumentation, work on
this form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from .types import Int

Type = type[Int] | type[bool]


class Value:
    """A value of the form: the result of an operation, or a parameter of a block."""

    __slots__ = ("number", "type")

    def __init__(self, type: Type, number: int = -1) -> None:
        self.type = type
        self.number = number

    def __repr__(self) -> str:
        return f"%{self.number}:{self.type.__name__}"


class Const(Value):
    """A constant."""

    __slots__ = ("value",)

    def __init__(self, type: Type, value: int) -> None:
        super().__init__(type)
        self.value = int(type(value))

    def __repr__(self) -> str:
        return f"{self.value}:{self.type.__name__}"


@dataclass(slots=True)
class Op:
    """An operation. ``detail`` is what is known when it is compiled: a member's name, a type, a callee.

    ======================  ================================  =================================================
    opcode                  arguments -> results              detail
    ======================  ================================  =================================================
    add sub mul and or xor  a, b -> same type
    shl shr div rem         a, b -> same type                 shr, div, rem follow the type's sign
    eq ne lt le gt ge       a, b -> bool                      order follows the type's sign
    not                     bool -> bool
    cast                    a -> any type                     keeps low bits; widens by the source's sign
    select                  bool, a, b -> same type
    clz ctz popcount bswap  a -> same type
    ieee_*                  bit patterns -> bit pattern
    lookup                  index -> type of the table        tuple of integers
    get / set               -> value / value ->               member name
    getreg / setreg         index -> / index, value ->        member name
    pc, next_pc             -> value
    set_next_pc             value ->
    load / store            address -> / address, value ->    type
    atomic                  address, value -> old             (operation, type)
    compare_exchange        address, expected, new -> old     type
    phys_load               address -> value, bool            type
    phys_store              address, value -> bool            type
    phys_compare_exchange   address, expected, new -> value, bool   type
    cycle                   address ->                        kind of access
    stall                   count ->
    cycles                  -> u64
    fence flush_tlb flush_code, flush_tlb_page address
    clock instructions encoding -> u64
    leave                                                     reason
    signal                  CPU number, u8 ->                 member name
    flush_others            first CPU, mask ->
    note                    values ->                         event
    hook                    values ->                         HookUse (instrumentation: see engine.hooks)
    hook_call               values ->                         HookUse, of a callback
    hook_before             values ->                         HookUse, of a callback: the access that it is of follows
    call                    arguments -> results              Function; with catch: first result is "trapped"
    peek / poke             host address / and value          type (engine only)
    host_atomic             host address, value -> old        operation (engine only)
    host_call               arguments -> u64                  member that holds the function's address (engine only)
    cpu_address             -> u64                            (engine only)
    ======================  ================================  =================================================
    """

    opcode: str
    arguments: tuple[Value, ...] = ()
    results: tuple[Value, ...] = ()
    detail: Any = None
    catch: bool = False


@dataclass(slots=True)
class Jump:
    """Go to a block, giving its parameters these values."""

    target: Block
    arguments: list[Value]


@dataclass(slots=True)
class Branch:
    """``hint`` is True or False where the condition is nearly always so."""

    condition: Value
    then: Jump
    otherwise: Jump
    hint: bool | None = None


@dataclass(slots=True)
class Switch:
    """Go on by the value of an integer."""

    value: Value
    cases: list[tuple[int, Jump]]
    default: Jump


@dataclass(slots=True)
class Return:
    """End the function with these results."""

    values: tuple[Value, ...]


@dataclass(slots=True)
class Raise:
    """End the instruction with a trap; the values are u64."""

    values: tuple[Value, ...]


Terminator = Jump | Branch | Switch | Return | Raise


@dataclass(eq=False, slots=True)
class Block:
    """A basic block."""

    number: int
    parameters: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    end: Terminator | None = None

    def jumps(self) -> Iterator[Jump]:
        """The edges to this block's successors."""
        match self.end:
            case Jump():
                yield self.end
            case Branch(then=a, otherwise=b):
                yield a
                yield b
            case Switch(cases=cases, default=default):
                for _, jump in cases:
                    yield jump
                yield default
            case _:
                pass


@dataclass(eq=False)
class Function:
    """A compiled function: ``parameters`` are those of its first block."""

    name: str
    parameters: list[Value]
    results: tuple[Type, ...]
    blocks: list[Block]
    _effects: Effects | None = field(default=None, repr=False)

    def ops(self) -> Iterator[Op]:
        """All operations, block by block."""
        for block in self.blocks:
            yield from block.ops

    def callees(self) -> set[Function]:
        """The functions it calls, and those that they call."""
        found: set[Function] = set()
        for op in self.ops():
            if op.opcode == "call" and op.detail not in found:
                found.add(op.detail)
                found |= op.detail.callees()
        return found

    @property
    def effects(self) -> Effects:
        """What it does besides computing its results, in the functions it calls too."""
        if self._effects is None:
            self._effects = _effects(self)
        return self._effects

    def __str__(self) -> str:
        lines = [f"function {self.name}({', '.join(map(repr, self.parameters))}) -> {_names(self.results)}"]
        for block in self.blocks:
            lines.append(f"b{block.number}({', '.join(map(repr, block.parameters))}):")
            for op in block.ops:
                detail = getattr(op.detail, "name", None) or getattr(op.detail, "__name__", None) or op.detail
                left = f"{', '.join(map(repr, op.results))} = " if op.results else ""
                note = f" [{detail}]" if detail is not None else ""
                lines.append(f"    {left}{op.opcode}{note} {', '.join(map(repr, op.arguments))}".rstrip())
            lines.append(f"    {_show(block.end)}")
        return "\n".join(lines)


def _names(types: Sequence[Type]) -> str:
    return "(" + ", ".join(t.__name__ for t in types) + ")"


def _show(end: Terminator | None) -> str:
    def to(jump: Jump) -> str:
        return f"b{jump.target.number}({', '.join(map(repr, jump.arguments))})"

    match end:
        case Jump():
            return f"jump {to(end)}"
        case Branch():
            return f"branch {end.condition} {to(end.then)} else {to(end.otherwise)}"
        case Switch():
            cases = ", ".join(f"{k:#x}: {to(j)}" for k, j in end.cases)
            return f"switch {end.value} {cases} else {to(end.default)}"
        case Return():
            return f"return {', '.join(map(repr, end.values))}"
        case Raise():
            return f"raise {', '.join(map(repr, end.values))}"
    return "(open)"


@dataclass(frozen=True)
class Effects:
    """``reads`` and ``writes`` name state members; ``does`` has opcodes of interest, and ``raise``."""

    reads: frozenset[str]
    writes: frozenset[str]
    does: frozenset[str]

    @property
    def traps(self) -> bool:
        """Whether it can end in a trap."""
        return not self.does.isdisjoint(TRAPPING)


TRAPPING = frozenset({"raise", "load", "store", "atomic", "compare_exchange"})
_NOTED = TRAPPING | {
    "phys_load", "phys_store", "phys_compare_exchange", "cycle", "stall", "cycles", "fence", "flush_tlb",
    "flush_tlb_page", "flush_code", "clock", "instructions", "encoding", "leave", "signal", "flush_others", "pc",
    "next_pc", "set_next_pc", "peek", "poke", "host_call", "host_atomic", "note", "hook", "hook_call",
}


def _effects(function: Function) -> Effects:
    reads: set[str] = set()
    writes: set[str] = set()
    does: set[str] = set()
    for block in function.blocks:
        for op in block.ops:
            if op.opcode in ("get", "getreg"):
                reads.add(op.detail)
            elif op.opcode in ("set", "setreg"):
                writes.add(op.detail)
            elif op.opcode in _NOTED:
                does.add(op.opcode)
            elif op.opcode == "call":
                inner: Effects = op.detail.effects
                reads |= inner.reads
                writes |= inner.writes
                does |= inner.does - TRAPPING if op.catch else inner.does
        if isinstance(block.end, Raise):
            does.add("raise")
    return Effects(frozenset(reads), frozenset(writes), frozenset(does))
