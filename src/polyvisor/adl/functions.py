"""Functions, tables, traps and primitives: what a described function may call."""

from __future__ import annotations

import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from .state import checked
from .types import DescriptionError, Int

# Kinds of memory access, as `translate` gets them.
FETCH = 0
READ = 1
WRITE = 2


class Trap(Exception):  # noqa: N818  (the field's word; it is no error)
    """Raised by described functions: the instruction ends here and the architecture's trap entry runs.

    The arguments are unsigned integers that mean what the architecture's ``on_trap`` function says.
    """

    def __init__(self, *values: int) -> None:
        super().__init__(*(int(v) for v in values))
        self.values = tuple(int(v) for v in values)


class Primitives(Protocol):
    """What ``cpu`` offers a described function besides the declared state.

    ``pc`` is the address of the instruction being executed; ``next_pc`` the address of the one that follows,
    and writing it is a jump.
    """

    pc: Any
    next_pc: Any

    def load(self, type: type[Int], address: Int) -> Any:
        """Load from virtual memory in the architecture's byte order. May trap."""

    def store(self, type: type[Int], address: Int, value: Int) -> None:
        """Store to virtual memory in the architecture's byte order. May trap."""

    def atomic(self, operation: str, type: type[Int], address: Int, value: Int) -> Any:
        """Read-modify-write that no other hart can split; gives the old value. May trap (as a write).

        ``operation``: ``swap add and or xor min max minu maxu``. The address must be aligned.
        """

    def compare_exchange(self, type: type[Int], address: Int, expected: Int, new: Int) -> Any:
        """Store ``new`` if the memory holds ``expected``, as one step; gives the old value. May trap (as a write)."""

    def phys_load(self, type: type[Int], address: Int) -> tuple[Any, bool]:
        """Load from physical RAM: the value, and whether there was RAM at ``address``. Never traps."""

    def phys_store(self, type: type[Int], address: Int, value: Int) -> bool:
        """Store to physical RAM; gives whether there was RAM at ``address``. Never traps."""

    def phys_compare_exchange(self, type: type[Int], address: Int, expected: Int, new: Int) -> tuple[Any, bool]:
        """Like ``compare_exchange`` on physical RAM: the old value, and whether there was RAM. Never traps."""

    def fence(self) -> None:
        """Order all earlier memory accesses before all later ones, as other harts see them."""

    def flush_tlb(self) -> None:
        """Forget all cached translations of this hart."""

    def flush_tlb_page(self, address: Int) -> None:
        """Forget cached translations of the page that holds virtual ``address`` (of a large page: all of it)."""

    def flush_code(self) -> None:
        """Later instruction fetches of this hart see its earlier stores."""

    def clock(self) -> Any:
        """The platform's time counter (u64, in ticks of the board's time base)."""

    def instructions(self) -> Any:
        """Instructions this hart retired before the current one (u64)."""

    def cycle(self, access: int, address: Int) -> None:
        """One clock cycle of a clocked architecture passes, in which the CPU uses the bus; ``access`` is a constant.

        A load or store that follows happens in it. What the bus's other users do first is the hook ``bus``.
        """

    def stall(self, count: Int) -> None:
        """``count`` (u64) clock cycles pass in which the CPU does nothing."""

    def cycles(self) -> Any:
        """Clock cycles that have passed (u64), the present one among them."""

    def has(self, feature: str) -> bool:
        """Whether the architecture has a feature: known when this is compiled."""

    def encoding(self) -> Any:
        """The bytes of the current instruction as a little-endian number (u64); slow, for trap values."""

    def leave(self, reason: str) -> None:
        """When this instruction has completed, return to the platform with ``reason``."""

    def wait(self, reason: str) -> None:
        """When this instruction has completed, wait until the hook ``wake`` gives True; the hook ``deadline`` says

        when time alone may be a reason. It may end early. A platform that waits itself gets ``reason``.
        """

    def cpus(self) -> Any:
        """How many CPUs the machine has (u64); they are numbered from 0."""

    def signal(self, number: Int, member: str, value: Int) -> None:
        """Write a field of type u8 of CPU ``number``, and make that CPU poll soon, or wake. It must exist.

        Earlier stores are seen by the other CPU when it sees this one.
        """

    def flush_others(self, first: Int, mask: Int) -> None:
        """Other CPUs, ``first + n`` for every bit n of ``mask``, forget all cached translations.

        When this returns, they have, or will have before they execute anything. Of this CPU nothing is forgotten.
        """

    def note(self, event: str, *values: Int) -> None:
        """Something happened that hooks may be told of: ``csr_write`` (number, value). Else it costs nothing."""


class Function:
    """A described function: callable under CPython, and compiled by its syntax tree.

    Parameters annotated with an integer type (or bool) have it; other parameters (``cpu``, formats,
    types, tables) are known when the function is compiled, which is done once for each combination.
    """

    def __init__(self, python: Callable[..., Any], *, inline: bool = True) -> None:
        self.python = python
        self.inline = inline
        self.engine = False  # the engine's own functions may write cpu.pc
        self.name = python.__name__
        self.__doc__ = python.__doc__
        self.__name__ = python.__name__
        code = python.__code__
        self.parameters = list(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])
        self._hints: dict[str, Any] | None = None

    @property
    def code_size(self) -> int:
        """Bytes of Python's code: a measure for how long it takes to compile."""
        return len(self.python.__code__.co_code)

    @property
    def hints(self) -> dict[str, Any]:
        """The resolved annotations, ``return`` among them."""
        if self._hints is None:
            self._hints = typing.get_type_hints(self.python)
        return self._hints

    def __call__(self, *arguments: Any) -> Any:
        if len(arguments) != len(self.parameters):
            raise DescriptionError(f"{self.name} takes {len(self.parameters)} arguments, not {len(arguments)}")
        hints = self.hints
        values = [
            as_hint(hints[name], value, name) if name in hints else value
            for name, value in zip(self.parameters, arguments, strict=True)
        ]
        result = self.python(*values)
        return as_hint(hints["return"], result, f"the result of {self.name}") if "return" in hints else result

    def __repr__(self) -> str:
        return f"<function {self.name}>"


class Reached:
    """Which described functions one may call, itself among them, as far as names in its code tell."""

    def __init__(self) -> None:
        self._named: dict[Function, list[Function]] = {}

    def __call__(self, function: Function) -> set[Function]:
        found: set[Function] = set()
        todo = [function]
        while todo:
            each = todo.pop()
            if each not in found:
                found.add(each)
                todo += self._names(each)
        return found

    def _names(self, function: Function) -> list[Function]:
        if function not in self._named:
            names = function.python.__code__.co_names
            values = [function.python.__globals__.get(name) for name in names]
            values += [vars(m).get(name) for m in values if isinstance(m, ModuleType) for name in names]
            self._named[function] = [value for value in values if isinstance(value, Function)]
        return self._named[function]


def as_hint(hint: Any, value: Any, what: str) -> Any:
    """``value`` checked against an annotation of the language: an integer type, bool, None, or a tuple of these."""
    if isinstance(hint, type) and issubclass(hint, Int):
        return checked(hint, value, what)
    if hint is bool:
        if not isinstance(value, bool):
            raise DescriptionError(f"{what} is a bool, not {type(value).__name__}")
        return value
    if typing.get_origin(hint) is tuple:
        return tuple(as_hint(h, v, what) for h, v in zip(typing.get_args(hint), value, strict=True))
    if hint is type(None):
        if value is not None:
            raise DescriptionError(f"{what} is declared to be nothing, not {type(value).__name__}")
        return None
    return value


@typing.overload
def function(python: Callable[..., Any], /) -> Function: ...
@typing.overload
def function(*, inline: bool = True) -> Callable[[Callable[..., Any]], Function]: ...
def function(python: Callable[..., Any] | None = None, /, *, inline: bool = True) -> Any:
    """Make a function part of the description, to be called by instructions and other functions.

    ``inline=False`` compiles it once, as a function of its own: for what is long or seldom runs.
    """
    if python is None:
        return lambda f: Function(f, inline=inline)
    return Function(python, inline=inline)


class Table:
    """Described functions chosen by number at run time, such as control registers by their address.

    ``table[number](cpu, ...)`` calls the entry for ``number``, or the default one.  All entries have the same
    annotated parameters and the same result type.  An entry may also take a first parameter called ``number``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.entries: dict[int, Function] = {}
        self.default: Function | None = None

    def entry(self, *numbers: int) -> Callable[[Callable[..., Any]], Function]:
        """Decorator: this function is the entry for each of ``numbers``."""

        def register(python: Callable[..., Any]) -> Function:
            made = python if isinstance(python, Function) else Function(python)
            for number in numbers:
                if number in self.entries:
                    raise DescriptionError(f"table {self.name} has two entries for {number:#x}")
                self.entries[number] = made
            return made

        return register

    def otherwise(self, python: Callable[..., Any]) -> Function:
        """Decorator: this function answers for every number without an entry."""
        self.default = python if isinstance(python, Function) else Function(python)
        return self.default

    def __getitem__(self, number: int) -> Callable[..., Any]:
        chosen = self.entries.get(int(number), self.default)
        if chosen is None:
            raise DescriptionError(f"table {self.name} has no entry for {int(number):#x} and no default")
        if chosen.parameters[:1] == ["number"]:
            return lambda *arguments: chosen(number, *arguments)
        return chosen
