"""What hooks can be told of, and a set of hooks as compilers get it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polyvisor.adl import Architecture, DescriptionError, Int, ssa, u32, u64

Values = Mapping[str, type[Int]]
_MEMORY: Values = {"address": u64, "value": u64, "size": u32}
# Kinds of events, and the values that come with them.
EVENTS: dict[str, Values] = {
    "instruction": {"address": u64},
    "block": {"address": u64},
    "read": _MEMORY,
    "write": _MEMORY,
    "csr_write": {"csr": u32, "value": u64},
    "trap": {},
    "syscall": {},
}
# Those that can be had for a range of addresses only.
RANGED = frozenset({"instruction", "block", "read", "write"})
MEMORY = frozenset({"read", "write"})


def values_of(architecture: Architecture, kind: str) -> Values:
    """The names and types of an event's values. Those of traps are what the architecture's traps have.

    Raises DescriptionError for an event that the architecture has not.
    """
    if kind == "trap":
        if "on_trap" not in architecture.hooks:
            raise DescriptionError(f"{architecture.name} has no traps")
        on_trap = architecture.hooks["on_trap"]
        return {name: on_trap.hints[name] for name in on_trap.parameters[1:]}
    if kind == "syscall":
        if architecture.system_call is None:
            raise DescriptionError(f"{architecture.name} does not say how programs call their kernel")
        count = len(architecture.system_call.arguments)
        return {"number": u64, **{f"arg{n}": u64 for n in range(count)}}
    return EVENTS[kind]


# Where a hook's function gets an argument from: ("state",), ("value", name), ("register", member, number or None),
# ("pc",), ("instructions",).
Input = tuple[Any, ...]


@dataclass(frozen=True)
class HookUse:
    """A hook in a set. ``slot`` is its number there; without ``function`` it is a callback of Python's.

    ``at`` is the first address and the length of the range it is for: of code. One of memory is in the CPU's block, if
    ``ranged``, so that code need not be compiled for each. ``inputs`` are the arguments of ``function``.
    """

    kind: str
    slot: int
    function: ssa.Function | None
    inputs: tuple[Input, ...]
    at: tuple[int, int] | None = None
    ranged: bool = False

    def text(self) -> str:
        """All that code made for it depends on."""
        functions = [self.function, *sorted(self.function.callees(), key=lambda f: f.name)] if self.function else []
        return f"{self.kind} {self.slot} {self.inputs} {self.at} {self.ranged}\n" + "\n".join(map(str, functions))


@dataclass(frozen=True)
class HookSet:
    """Hooks that are compiled together, in the order in which they are called."""

    uses: tuple[HookUse, ...]

    @property
    def digest(self) -> str:
        """Names all that code made for these hooks depends on, beside the architecture."""
        return hashlib.sha256("\0".join(use.text() for use in self.uses).encode()).hexdigest()[:24]

    def of(self, *kinds: str) -> list[HookUse]:
        """The hooks of these kinds."""
        return [use for use in self.uses if use.kind in kinds]

    def touches(self, effects: ssa.Effects) -> bool:
        """Whether a function with these effects has events that are hooked, beside its start."""
        return any(not effects.does.isdisjoint(_SOURCES[use.kind]) for use in self.uses)


# The operations that are events.
_SOURCES: dict[str, frozenset[str]] = {
    "instruction": frozenset(),
    "block": frozenset({"set_next_pc"}),
    "read": frozenset({"load", "atomic", "compare_exchange"}),
    "write": frozenset({"store", "atomic", "compare_exchange"}),
    "csr_write": frozenset({"note"}),
    "trap": frozenset(),
    "syscall": frozenset(),
}
