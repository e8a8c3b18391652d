"""The states of hooks: a copy for each hart, in memory of the host, and how they are read together."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyvisor.adl import Field, Registers
from polyvisor.adl.state import State as BlockState

from .compile import HEADER, error_text
from .declare import Hook, Maximum, Minimum, Ring
from .events import EVENTS, RANGED

_ALIGN = 64


class HookError(Exception):
    """A hook's function did what it must not, such as using an index that its array has not."""


class HookStates:
    """The copies of one hook's state. ``kind`` may be None, for hooks without a state."""

    def __init__(self, kind: type[BlockState] | None, harts: int, name: str) -> None:
        self.kind = kind
        self.name = name
        size = HEADER + (kind.size if kind is not None else 0)
        # Each in cache lines of its own.
        stride = -(-size // _ALIGN) * _ALIGN
        self._buffer = (ctypes.c_ubyte * (stride * harts + 2 * _ALIGN))()
        first = ctypes.addressof(self._buffer)
        start = -first % _ALIGN + _ALIGN - HEADER  # members are aligned, not the header
        self.addresses = [first + start + stride * n for n in range(harts)]
        views = [memoryview(self._buffer).cast("B")[start + stride * n :][:size] for n in range(harts)]
        self._errors = [view[:HEADER].cast("Q") for view in views]
        self.harts: tuple[Any, ...] = tuple(kind(view[HEADER:]) for view in views) if kind is not None else ()
        self.reset()

    def reset(self) -> None:
        """Let everything have its first value. Counts made at the same moment may be lost, or stay."""
        for hart in self.harts:
            hart.block[:] = bytes(len(hart.block))
            for name, member in hart.members.items():
                if isinstance(member, Field) and member.reset:
                    setattr(hart, name, member.reset)
                elif isinstance(member, Registers) and member.reset:
                    places = _places(hart, member)
                    for number in range(member.count):
                        places[number] = member.reset
        for error in self._errors:
            error[0] = 0

    def note_error(self, hart: int, code: int) -> None:
        """As compiled code does."""
        self._errors[hart][0] = code

    def check(self) -> None:
        """Raise HookError if a hook's function failed."""
        for number, error in enumerate(self._errors):
            if error[0]:
                raise HookError(f"hook {self.name}, hart {number}: {error_text(self.kind, error[0])}")

    def read(self, name: str) -> Any:
        """A member's value, put together from all harts. Raises AttributeError, HookError."""
        members = self.kind.members if self.kind is not None else {}
        if name not in members:
            known = ", ".join(members) or "no state"
            raise AttributeError(f"hook {self.name} has no {name!r}; it has {known}")
        self.check()
        member = members[name]
        if isinstance(member, Field):
            values = [int(getattr(hart, name)) for hart in self.harts]
            if isinstance(member, Maximum | Minimum):
                return max(values) if isinstance(member, Maximum) else min(values)
            return int(_wrapped(member, sum(values)))
        if isinstance(member, Ring):
            return [value for hart in self.harts for value in getattr(hart, name)]
        columns = [_places(hart, member) for hart in self.harts]
        if len(columns) == 1:
            return columns[0].tolist()
        return [_wrapped(member, sum(row)) for row in zip(*columns, strict=True)]


def _places(hart: BlockState, member: Registers) -> memoryview:
    places: memoryview = hart.block[member.offset : member.offset + member.size].cast(member.format)
    return places


def _wrapped(member: Field | Registers, value: int) -> int:
    return int(member.type(value & ((1 << member.type.bits) - 1)))


Callback = Callable[..., None]


@dataclass(eq=False)
class InstalledFunction:
    """A function of a hook: in the description language, or a ``callback`` (number of the hart, event's values)."""

    owner: Installed
    kind: str
    hook: Hook | None = None
    callback: Callback | None = None
    range: range | None = None


class Installed:
    """What was added at once: functions, and the state that they share."""

    def __init__(self, states: HookStates) -> None:
        self.states = states
        self.functions: list[InstalledFunction] = []
        self.removed = False  # it is about to be: callbacks are not called any more

    def add(self, kind: str, hook: Hook | None, callback: Callback | None, where: range | None) -> None:
        """Add a function. Raises ValueError for a range that makes no sense."""
        if kind not in EVENTS:
            raise ValueError(f"there is no event {kind!r}; there are {', '.join(EVENTS)}")
        if where is not None:
            if kind not in RANGED:
                raise ValueError(f"the event {kind} has no address, so there is no range to give")
            if where.step != 1 or not 0 <= where.start < where.stop <= 2**64:
                raise ValueError(f"{where}: give a range of addresses as range(first, behind the last)")
            if where == range(2**64):
                where = None
        self.functions.append(InstalledFunction(self, kind, hook, callback, where))
