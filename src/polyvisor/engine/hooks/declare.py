"""What users write: the state of a hook, and functions that are called at events."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from polyvisor.adl import DescriptionError, Field, Function, Int, Registers
from polyvisor.adl import State as BlockState
from polyvisor.adl.state import checked

# Names that a state's members cannot have, as what reads it has them.
_TAKEN = ("harts", "remove", "reset")


class Maximum(Field):
    """A field of which the largest value counts, of all harts."""


class Minimum(Field):
    """A field of which the smallest value counts, of all harts. It starts with the largest of its type."""

    def __init__(self, type: type[Int], doc: str = "") -> None:
        super().__init__(type, reset=(1 << (type.bits - type.signed)) - 1, doc=doc)


class Ring(Registers):
    """The last ``count`` values that ``hook.ring.append(value)`` was given; ``count`` is a power of two."""

    def __init__(self, type: type[Int], count: int, doc: str = "") -> None:
        if count <= 0 or count & (count - 1):
            raise DescriptionError(f"a ring has a power of two of places, not {count}")
        super().__init__(type, count, doc=doc)

    @property
    def size(self) -> int:
        """Bytes it takes: how many there were in all (u64), then the places."""
        return 8 + super().size

    @property
    def alignment(self) -> int:
        """That of the count."""
        return 8

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else RingView(instance, self)


class RingView:
    """The values in one hart's ring, oldest first."""

    def __init__(self, state: BlockState, ring: Ring) -> None:
        self._state, self._ring = state, ring
        at = ring.offset
        self._count = state.block[at : at + 8].cast("Q")
        self._places = state.block[at + 8 : at + ring.size].cast(ring.format)

    @property
    def appended(self) -> int:
        """How many values it was given in all."""
        return self._count[0]

    def append(self, value: Any) -> None:
        """Add a value, in place of the oldest one if need be."""
        given = checked(self._ring.type, value, self._ring.name)
        self._places[self._count[0] & (self._ring.count - 1)] = int(given)
        self._count[0] += 1

    def __len__(self) -> int:
        return min(self._count[0], self._ring.count)

    def __iter__(self) -> Iterator[int]:
        end = self._count[0]
        return (self._places[n & (self._ring.count - 1)] for n in range(end - len(self), end))


class State(BlockState):
    """Base of a hook's state. Members are declared like those of a CPU: ``total = Field(u64)``.

    Each hart has its own copy, so that no two write to one place. What is read from Python puts them together:
    fields and arrays are added up, :class:`Maximum` and :class:`Minimum` take the largest and smallest value, a
    :class:`Ring` has the values of one hart after those of the other; ``harts[n]`` is one hart's.
    """

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        taken = [name for name in cls.members if name in _TAKEN or name.startswith("_")]
        if taken:
            raise DescriptionError(f"{cls.__name__}: a member cannot be called {taken[0]}")


class Hook:
    """A function in the description language that is called at events of one ``kind``.

    Its first parameter is the hook's state; ``cpu``, if it has that, is the CPU, whose registers it can read; the
    others are values of the event, by name. They have the event's types, or are converted to that of an annotation.
    """

    def __init__(self, python: Callable[..., Any], kind: str) -> None:
        if not inspect.isfunction(python):
            raise TypeError(f"on_{kind} takes a function, not {type(python).__name__}")
        self.function = Function(python)
        self.kind = kind
        self.name = python.__name__
        self.__doc__ = python.__doc__

    def wanted(self, parameter: str, kind: type[Int]) -> Any:
        """The type that a parameter is annotated with; without, or with ``Any``, the event's own."""
        hint = self.function.hints.get(parameter, kind)
        return kind if hint is Any else hint

    def __repr__(self) -> str:
        return f"<hook {self.name} on {self.kind}>"


def on_instruction(python: Callable[..., Any]) -> Hook:
    """Decorator: called before every instruction (of a range: see ``at``), with its ``address``."""
    return Hook(python, "instruction")


def on_block(python: Callable[..., Any]) -> Hook:
    """Decorator: called where a basic block is entered, with its ``address``; ``cpu.pc`` is what led there.

    That is after every jump and every branch, taken or not, and where a trap or an interrupt leads.
    """
    return Hook(python, "block")


def on_read(python: Callable[..., Any]) -> Hook:
    """Decorator: called when memory was read, with ``address``, ``value`` and ``size`` in bytes."""
    return Hook(python, "read")


def on_write(python: Callable[..., Any]) -> Hook:
    """Decorator: called when memory was written, with ``address``, ``value`` and ``size`` in bytes."""
    return Hook(python, "write")


def on_csr_write(python: Callable[..., Any]) -> Hook:
    """Decorator: called when an instruction wrote a control register, with its number ``csr`` and the ``value``."""
    return Hook(python, "csr_write")


def on_trap(python: Callable[..., Any]) -> Hook:
    """Decorator: called before a trap or interrupt is entered, with its values (RISC-V: ``cause``, ``value``)."""
    return Hook(python, "trap")


def on_syscall(python: Callable[..., Any]) -> Hook:
    """Decorator: called before a program's system call, with ``number`` and ``arg0`` to ``arg5``."""
    return Hook(python, "syscall")
