"""What is known of values when a region is compiled, and computing with it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from polyvisor.adl import ssa
from polyvisor.adl.llvm import llvm_type
from polyvisor.dataclass import dataclass

# Operations that only compute.
PURE = frozenset(
    "add sub mul and or xor shl shr div rem eq ne lt le gt ge not cast select clz ctz popcount bswap lookup".split()
)


@dataclass(frozen=True)
class Relative:
    """The address ``offset`` bytes from the region's entry."""

    offset: int


@dataclass(frozen=True)
class Partial:
    """A run-time value of which the bits in ``mask`` are known to be those of ``value``."""

    text: str
    mask: int
    value: int


# What is known of a value: all of it, its distance from the entry, some bits; or the name of an LLVM value.
Known = ssa.Const | Relative | Partial | str


def same(a: Known | None, b: Known | None) -> bool:
    """Whether two values are known to be the same."""
    if isinstance(a, ssa.Const) and isinstance(b, ssa.Const):
        return a.type is b.type and a.value == b.value
    return a is not None and a == b


def fold(
    code: str, arguments: Sequence[Known], types: Sequence[ssa.Type], kind: ssa.Type, detail: Any, unit: int
) -> Known | None:
    """What is known of an operation's result; None if it must be computed at run time.

    ``types`` are those of the arguments; ``unit`` is what instructions' addresses are multiples of, the entry's too.
    """
    constants = [a for a in arguments if isinstance(a, ssa.Const)]
    if len(constants) == len(arguments):
        return compute(code, constants, kind, detail)
    a, b = (*arguments, *arguments)[:2]
    match code, a, b:
        case "select", ssa.Const(), _:
            return arguments[1] if a.value else arguments[2]
        case "cast", Relative(), _ if kind is not bool and kind.bits == 64:
            return a
        case "cast", str() | Partial(), _ if llvm_type(kind) == llvm_type(types[0]):
            return a
        case "add", Relative(), ssa.Const():
            return relative(a.offset + b.value)
        case "add", ssa.Const(), Relative():
            return relative(a.value + b.offset)
        case "sub", Relative(), ssa.Const():
            return relative(a.offset - b.value)
        case "and", ssa.Const(), Relative() | Partial():
            return fold(code, arguments[::-1], types[::-1], kind, detail, unit)
        case "and", Relative(), ssa.Const():
            return a if b.value in (2**64 - unit, -unit) and a.offset % unit == 0 else None
        case "and", Partial(), ssa.Const():
            return None if b.value & ~a.mask else ssa.Const(kind, a.value & b.value)
        case ("eq" | "ne"), Relative(), Relative():
            return ssa.Const(bool, (a.offset == b.offset) == (code == "eq"))
        case ("add" | "or" | "xor" | "sub" | "shl" | "shr"), _, ssa.Const(value=0):
            return a
        case ("add" | "or" | "xor"), ssa.Const(value=0), _:
            return b
    return None


def relative(offset: int) -> Relative:
    """An address relative to the entry; distances wrap like addresses."""
    return Relative((offset + 2**63) % 2**64 - 2**63)


def compute(code: str, arguments: Sequence[ssa.Const], kind: ssa.Type, detail: Any) -> ssa.Const | None:
    """The result of an operation on constants; None where it is left to LLVM."""
    values = [a.value for a in arguments]
    a = values[0]
    b = values[1] if len(values) > 1 else 0
    bits = 1 if arguments[0].type is bool else arguments[0].type.bits
    match code:
        case "add":
            result = a + b
        case "sub":
            result = a - b
        case "mul":
            result = a * b
        case "and":
            result = a & b
        case "or":
            result = a | b
        case "xor":
            result = a ^ b
        case "shl":
            result = a << (b % bits)
        case "shr":
            result = a >> (b % bits)
        case "eq" | "ne" | "lt" | "le" | "gt" | "ge":
            result = int(getattr(operator, code)(a, b))
        case "not":
            result = 1 - a
        case "cast":
            result = a
        case "select":
            result = values[1] if a else values[2]
        case "lookup":
            result = detail[min(a, len(detail) - 1)]
        case _:
            return None
    if kind is bool:
        return ssa.Const(bool, result & 1)
    return ssa.Const(kind, result)
