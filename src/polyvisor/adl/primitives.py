"""What ``cpu`` offers beside the state, compiled: see :class:`.functions.Primitives`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import ssa
from .state import Field
from .types import DescriptionError, Int, u8, u64

if TYPE_CHECKING:
    from .frontend import Builder

PRIMITIVES = frozenset(
    "load store atomic compare_exchange phys_load phys_store phys_compare_exchange cycle stall cycles fence "
    "flush_tlb flush_tlb_page flush_code clock instructions encoding leave wait signal flush_others cpus note "
    "has".split()
)


def call_primitive(builder: Builder, name: str, arguments: list[Any]) -> Any:
    """The value of ``cpu.name(arguments)``, with what it does added to the builder's block. Raises DescriptionError."""
    value = builder.value
    address = builder.compiler.members["pc"].type
    match name, arguments:
        case "load", [kind, where]:
            return builder.one("load", (value(where, address, "the address"),), _unsigned(kind), kind)
        case "store", [kind, where, what]:
            stored = (value(where, address, "the address"), value(what, _unsigned(kind), "the stored value"))
            builder.emit("store", stored, (), kind)
            return None
        case "atomic", [str(operation), kind, where, what]:
            pair = (value(where, address, "the address"), value(what, kind))
            return builder.one("atomic", pair, _unsigned(kind), (operation, kind))
        case "compare_exchange", [kind, where, expected, new]:
            values = (value(where, address, "the address"), value(expected, kind), value(new, kind))
            return builder.one("compare_exchange", values, _unsigned(kind), kind)
        case "phys_load", [kind, where]:
            return builder.emit("phys_load", (value(where, u64),), (_unsigned(kind), bool), kind)
        case "phys_store", [kind, where, what]:
            stored = (value(where, u64), value(what, _unsigned(kind), "the stored value"))
            return builder.one("phys_store", stored, bool, kind)
        case "cycle", [int(access), where]:
            _must_be_clocked(builder, name)
            builder.emit("cycle", (value(where, address, "the address"),), (), int(access))
            return None
        case "stall", [count]:
            _must_be_clocked(builder, name)
            builder.emit("stall", (value(count, u64),))
            return None
        case "cycles", []:
            _must_be_clocked(builder, name)
            return builder.one(name, (), u64)
        case "phys_compare_exchange", [kind, where, expected, new]:
            values = (value(where, u64), value(expected, kind), value(new, kind))
            return builder.emit("phys_compare_exchange", values, (_unsigned(kind), bool), kind)
        case ("fence" | "flush_tlb" | "flush_code"), []:
            builder.emit(name)
            return None
        case "flush_tlb_page", [where]:
            builder.emit(name, (value(where, address),))
            return None
        case ("clock" | "instructions" | "encoding"), []:
            return builder.one(name, (), u64)
        case "leave", [str(reason)]:
            builder.emit("leave", (), (), reason)
            return None
        case "wait", [str(reason)]:
            builder.emit("leave", (), (), reason)
            builder.emit("set", (ssa.Const(u8, 1),), (), "waits")
            return None
        case "signal", [number, str(member), what]:
            found = builder.compiler.members.get(member)
            if not isinstance(found, Field) or found.type is not u8:
                raise DescriptionError(f"cpu.signal writes a field of type u8; {member} is none")
            builder.emit("signal", (value(number, u64), value(what, u8)), (), member)
            return None
        case "flush_others", [first, mask]:
            builder.emit(name, (value(first, u64), value(mask, u64)))
            return None
        case "note", [str(event), *what]:
            builder.emit("note", tuple(value(v) for v in what), (), event)
            return None
        case "has", [str(feature)]:
            return feature in builder.compiler.architecture.features
        case "cpus", []:
            return builder.one("get", (), u64, "cpu_count")
    raise DescriptionError(f"cpu.{name} does not take {len(arguments)} arguments like these")


def _must_be_clocked(builder: Builder, name: str) -> None:
    """Make sure that there is a clock to count."""
    if not builder.compiler.architecture.clocked:
        raise DescriptionError(f"cpu.{name} is for architectures that are clocked")


def _unsigned(kind: Any) -> ssa.Type:
    if not (isinstance(kind, type) and issubclass(kind, Int)) or kind.signed or kind.bits > 64:
        raise DescriptionError("memory is accessed as u8, u16, u32 or u64; convert afterwards")
    return kind
