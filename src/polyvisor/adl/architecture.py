"""An architecture: state, instructions, and the rules of its privileged side, collected by decorators."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from polyvisor.dataclass import dataclass, field, fields

from .functions import Function
from .state import State
from .types import DescriptionError, Int, u32, u64

if TYPE_CHECKING:  # imported where patterns and syntax are parsed, which a process that runs compiled code does without
    from .assembly import Kind, Place, Pseudo, Syntax
    from .encoding import Encoding, Node

S = TypeVar("S", bound=type[State])


class Instruction(NamedTuple):
    """One described instruction.

    ``types`` gives each operand's type in the order of the function's parameters; ``where`` is a condition on
    operand values that the encoding must also fulfil (the text of a Python expression); ``extension`` names the
    part of the architecture it belongs to.
    """

    name: str
    encoding: Encoding
    syntax: Syntax
    function: Function
    types: dict[str, type[Int]]
    where: str
    extension: str

    def operand_values(self, word: int) -> dict[str, int]:
        """The operands encoded in ``word``, by name."""
        return {operand.name: operand.extract(word) for operand in self.encoding.operands}

    def matches(self, word: int) -> bool:
        """Whether ``word`` (little-endian number of its bytes) is this instruction."""
        if word & self.encoding.mask != self.encoding.value:
            return False
        return not self.where or bool(eval(self._condition, {}, self.operand_values(word)))

    @property
    def _condition(self) -> Any:
        return _compiled(self.where)


_conditions: dict[str, Any] = {}


def _compiled(text: str) -> Any:
    if text not in _conditions:
        _conditions[text] = compile(text, "<where>", "eval")
    return _conditions[text]


# What an architecture may define besides instructions; the engine calls these.
HOOKS: dict[str, str] = {
    "translate": "(cpu, vaddr, access: u32, context: u32) -> tuple[paddr, page_bits: u32]; page_bits is the size of "
    "the page as a power of two, or less than the architecture's if the result holds only for as much, and must not be "
    "cached; traps where the access is not allowed",
    "data_context": "(cpu) -> u32: which translation rules loads and stores follow now, 0 <= it < contexts",
    "fetch_context": "(cpu) -> u32: which translation rules instruction fetches follow now",
    "on_trap": "(cpu, values...): enter a trap; sets cpu.next_pc",
    "on_illegal": "(cpu, word): no instruction matches; raises a Trap",
    "on_bus_error": "(cpu, vaddr, access: u32): no memory or device answers; raises a Trap",
    "length": "(cpu, first: u64) -> u32: bytes of the instruction whose first unit is given, matched or not; "
    "without it, an instruction is as long as the encodings that match its beginning",
    "poll": "(cpu): take an interrupt that is pending and enabled, by raising its Trap",
    "wake": "(cpu) -> bool: whether a waiting hart should go on",
    "deadline": "(cpu) -> u64: the clock() value at which poll or wake may change by time alone; all ones for never",
    "bus": "(cpu, access: u32, vaddr): the CPU is about to use the bus for a cycle (clocked architectures); others may "
    "have it first, for which cpu.stall() lets time pass. Before `deadline` it must do nothing that can be seen: then "
    "it is not always called",
    "read_device": "(cpu, paddr, size: u64) -> tuple[u64, bool]: a load where there is no RAM, and whether a described "
    "device answered; else the board's devices are asked",
    "write_device": "(cpu, paddr, size: u64, value: u64) -> bool: the same for a store",
}


@dataclass(frozen=True)
class SystemCall:
    """How programs call their kernel: by a trap whose first value is ``cause``.

    ``number``, ``arguments`` and ``result`` are in these registers of the group ``registers``.
    """

    cause: int
    registers: str
    number: int
    arguments: tuple[int, ...]
    result: int


Description = Callable[["Architecture"], None]
"""Adds something that was described to an architecture."""


@dataclass
class Architecture:
    """An instruction set architecture under description.

    ``byte_order`` of memory and instruction words; ``unit``: instructions are multiples of this many bytes;
    ``max_length`` bytes of the longest instruction; ``page_bits``: log2 of the smallest page; ``contexts``:
    how many sets of translation rules exist side by side (so that changing privilege keeps the TLB);
    ``prime_adds``: what a primed register field adds; ``default_kinds``: how operands with well-known names
    are written in assembly; ``padding``: instructions that do nothing, longest first, with which the assembler aligns;
    ``modifiers``: what ``%name(value)`` means in an expression; ``address_bits``: where program counters wrap.

    ``clocked``: time is counted in clock cycles, and each instruction says by ``cpu.cycle`` when one passes; this is
    how many the longest takes if nobody else has the bus. 0: time is counted in instructions. ``data_after``: so many
    writes to a page with code make the engine take it for data. ``absolute``: jumps mostly name their target's address,
    so compiled code may depend on where it is. ``features`` are what ``cpu.has`` says yes to, so that one description
    serves the models of a family. ``comments``: what comments in assembly begin with (``;`` separates statements unless
    it is among them); ``word``: bytes of the assembler's ``.word``.

    Patterns and syntax are parsed when instructions, kinds or pseudo-instructions are first looked at; what is wrong
    with one is raised then, as DescriptionError with the place of its function.
    """

    name: str
    byte_order: str = "little"
    unit: int = 1
    max_length: int = 4
    page_bits: int = 12
    contexts: int = 1
    prime_adds: int = 0
    default_kinds: Mapping[str, str] = field(default_factory=dict)
    hooks: dict[str, Function] = field(default_factory=dict)
    padding: tuple[str, ...] = ()
    modifiers: dict[str, Callable[[int, Place], int]] = field(default_factory=dict)
    state_type: type[State] | None = None
    reasons: list[str] = field(default_factory=list)
    system_call: SystemCall | None = None
    address_bits: int = 64
    clocked: int = 0
    data_after: int = 64
    absolute: bool = False
    features: frozenset[str] = frozenset()
    comments: tuple[str, ...] = ("#", "//")
    word: int = 4

    def __post_init__(self) -> None:
        self._functions: list[Function] = []
        # What was described, in that order, by which module, and what of it was not parsed yet.
        self._described: list[tuple[str, Description]] = []
        self._pending: deque[tuple[str, Description]] = deque()
        self._inherited = 0  # instructions that are another architecture's
        self._lock = threading.RLock()
        # Modules with more of it, and what is set aside until those are imported; see `described_in`.
        self.package: str | None = None
        self._unread: tuple[str, ...] = ()
        self._set_aside: dict[str, Any] = {}
        self._instructions: list[Instruction] = []
        self._kinds: dict[str, Kind] = {}
        self._pseudo: dict[str, list[Pseudo]] = {}
        self._tree: Node | None = None
        self._by_name: dict[str, list[Instruction]] = {}

    def described_in(self, package: str, *modules: str) -> None:
        """The rest of the description is in these modules of a package: they are imported when it is looked at.

        A process that runs compiled code never does, so state, reasons and the system call must not be among it.
        Instructions come in the order of the modules, whichever somebody imports before. All that the description
        consists of must be in the package.
        """
        self.package = package
        self._unread = tuple(f"{package}.{module}" for module in modules)
        self._set_aside = {name: self.__dict__.pop(name) for name in ("hooks", "modifiers")}

    def __getattr__(self, name: str) -> Any:
        if name not in self.__dict__.get("_set_aside", {}):
            raise AttributeError(f"an architecture has no {name}")
        with self._lock:
            self._read()
            # Still aside: it is this thread that reads, and a module that describes what belongs there.
            return self._set_aside[name] if name in self._set_aside else self.__dict__[name]

    def _read(self) -> None:
        """Import what was not yet."""
        with self._lock:
            if not self._unread:
                return
            modules, self._unread = self._unread, ()
            for name in modules:
                import_module(name)
            rank = {name: number for number, name in enumerate(modules)}
            self._functions.sort(key=lambda function: rank.get(function.python.__module__, -1))
            self._described.sort(key=lambda described: rank.get(described[0], -1))
            self._pending = deque(self._described)
            self.__dict__ |= self._set_aside
            self._set_aside = {}

    def _parse(self) -> None:
        """Parse what is pending. It stays so if that fails, and others wait until all is there."""
        self._read()
        with self._lock:
            while self._pending:
                self._pending[0][1](self)
                self._pending.popleft()

    def _describe(self, module: str, description: Description) -> None:
        self._described.append((module, description))
        self._pending.append((module, description))

    def variant(self, name: str, **changes: Any) -> Architecture:
        """An architecture that has all that this one has now, for more to be described.

        ``changes`` are arguments of the class. An instruction with the same fixed bits as an inherited one replaces
        it, and so does a hook of the same name; both have the state that is declared last.
        """
        self._read()
        own = {name: getattr(self, name) for name in fields(self)}
        own |= {"hooks": dict(self.hooks), "reasons": list(self.reasons), "modifiers": dict(self.modifiers)}
        made = Architecture(**{**own, "name": name, **changes})
        made._functions = list(self._functions)
        for each in self._described:
            made._describe(*each)
        made._pending.append(("", Architecture._mark_inherited))
        return made

    def _mark_inherited(self) -> None:
        self._inherited = len(self._instructions)

    @property
    def instructions(self) -> list[Instruction]:
        """All instructions, in the order of the description."""
        if self._pending or self._set_aside:
            self._parse()
        return self._instructions

    @property
    def kinds(self) -> dict[str, Kind]:
        """How operands are written, by the kind's name."""
        if self._pending or self._set_aside:
            self._parse()
        return self._kinds

    @property
    def pseudo(self) -> dict[str, list[Pseudo]]:
        """Instructions of the assembler only, by mnemonic."""
        if self._pending or self._set_aside:
            self._parse()
        return self._pseudo

    def functions(self) -> list[Function]:
        """The functions that describe it: of instructions and hooks. Nothing is parsed for that."""
        self._read()
        return [*self._functions, *self.hooks.values()]

    def state(self, cls: S) -> S:
        """Decorator: this class declares the CPU's state."""
        if "pc" not in cls.members:
            raise DescriptionError(f"{cls.__name__} must declare pc = Field(...)")
        self.state_type = cls
        return cls

    def kind(
        self, name: str, names: Sequence[str] = (), *, aliases: Mapping[str, int] | None = None, pc: bool = False,
        signed: bool = True, shift: int = 0, width: int = 0, default: int | None = None, prefix: str = "0x",
        after: int = 0,
    ) -> None:
        """Define how operands of kind ``name`` are written; see :class:`~polyvisor.adl.assembly.Kind`."""

        def parse(architecture: Architecture) -> None:
            from .assembly import Kind

            made = Kind(name, tuple(names), dict(aliases or {}), pc, signed, shift, width, default, prefix, after)
            architecture._kinds[name] = made

        self._describe(_module_of_caller(), parse)

    def pseudo_instruction(self, syntax: str, expansion: str | Callable[..., str]) -> None:
        """Define an instruction of the assembler only; see :class:`~polyvisor.adl.assembly.Pseudo`."""

        def parse(architecture: Architecture) -> None:
            from .assembly import Pseudo, parse_syntax

            parsed = parse_syntax(syntax, architecture.default_kinds)
            architecture._pseudo.setdefault(parsed.mnemonic, []).append(Pseudo(parsed, expansion))

        self._describe(_module_of_caller(), parse)

    def instruction(
        self, pattern: str, syntax: str, *, where: str = "", extension: str = ""
    ) -> Callable[[Callable[..., Any]], Function]:
        """Decorator: this function is an instruction, encoded as ``pattern`` and written as ``syntax``.

        ``where`` restricts operand values (``"rd != 0"``); among encodings that match, the one with more fixed
        bits wins.  A function may carry several of these decorators.  Parameters after ``cpu`` are the operands;
        an annotation gives the type (a signed one sign-extends), without one an operand is a u32.
        """

        def register(python: Callable[..., Any]) -> Function:
            described = python if isinstance(python, Function) else Function(python)
            self._functions.append(described)
            self._describe(
                described.python.__module__,
                lambda architecture: architecture._add(described, pattern, syntax, where, extension),
            )
            return described

        return register

    def _add(self, described: Function, pattern: str, syntax: str, where: str, extension: str) -> None:
        """Parse an instruction and add it. Raises DescriptionError."""
        from .assembly import parse_syntax
        from .encoding import parse_pattern

        types = {name: described.hints.get(name, u32) for name in described.parameters[1:]}
        signed = [name for name, t in types.items() if t.signed]
        try:
            encoding = parse_pattern(pattern, byte_order=self.byte_order, prime_adds=self.prime_adds, signed=signed)
            parsed = parse_syntax(syntax, self.default_kinds)
            names = {o.name for o in encoding.operands}
            if names != set(types):
                raise DescriptionError(f"the pattern has operands {sorted(names)}, the function {sorted(types)}")
            if encoding.length % self.unit or encoding.length > self.max_length:
                raise DescriptionError(f"{encoding.length} bytes; instructions have {self.unit}..{self.max_length}")
            if where:
                _check_condition(where, names)
        except DescriptionError as error:
            code = described.python.__code__
            raise DescriptionError(
                f"{code.co_filename}:{code.co_firstlineno}: {described.name}: {error}"
            ) from None
        made = Instruction(parsed.mnemonic, encoding, parsed, described, types, where, extension)
        self._tree = None
        for index, other in enumerate(self._instructions[: self._inherited]):
            if (other.encoding.mask, other.encoding.value) == (encoding.mask, encoding.value):
                self._by_name[other.name].remove(other)
                self._instructions[index] = made
                break
        else:
            self._instructions.append(made)
        self._by_name.setdefault(made.name, []).append(made)

    def _hook(self, name: str, python: Callable[..., Any]) -> Function:
        made = python if isinstance(python, Function) else Function(python, inline=False)
        (self._set_aside if "hooks" in self._set_aside else self.__dict__)["hooks"][name] = made
        return made

    def hook(self, name: str) -> Callable[[Callable[..., Any]], Function]:
        """Decorator: this function is the architecture's hook ``name``; see :data:`HOOKS`."""
        if name not in HOOKS:
            raise DescriptionError(f"there is no hook {name!r}; the hooks are {', '.join(HOOKS)}")
        return lambda python: self._hook(name, python)

    @property
    def tree(self) -> Node:
        """The decode tree over ``instructions``."""
        if self._pending or self._set_aside:
            self._parse()
        if self._tree is None:
            from .encoding import decode_tree

            self._tree = decode_tree([i.encoding for i in self.instructions])
        return self._tree

    def decode(self, word: int) -> Instruction | None:
        """The instruction that starts with the bytes of ``word`` (read as a little-endian number), if any."""
        node: Any = self.tree
        while not hasattr(node, "indices"):
            node = node.cases.get(word & node.mask, node.default)
        for index in node.indices:
            instruction: Instruction = self.instructions[index]
            if instruction.matches(word & ((1 << 8 * instruction.encoding.length) - 1)):
                return instruction
        return None

    def prefixes(self, have: int) -> tuple[tuple[int, int], ...]:
        """(mask, value) of ``have`` bytes that can be the start of a longer instruction; there may be false ones."""
        known = (1 << 8 * have) - 1
        longer = [i.encoding for i in self.instructions if i.encoding.length > have]
        common = known
        for encoding in longer:
            common &= encoding.mask
        return tuple(sorted({(common, e.value & common) for e in longer}))

    def complete(self, word: int, have: int) -> bool:
        """Whether no instruction longer than ``have`` bytes starts with those in ``word``."""
        if "length" in self.hooks:
            first = word & ((1 << 8 * self.unit) - 1)
            return int(self.hooks["length"](None, u64(first))) <= have
        return all(word & mask != value for mask, value in self.prefixes(have))

    def named(self, name: str) -> list[Instruction]:
        """The instructions with that mnemonic (several, where it has several encodings)."""
        if self._pending or self._set_aside:
            self._parse()
        return self._by_name.get(name, [])

    def disassemble(self, word: int, address: int = 0) -> str | None:
        """The assembly text of the instruction in ``word`` at ``address``; None if there is none."""
        found = self.decode(word)
        if found is None:
            return None
        return found.syntax.format(found.operand_values(word), self.kinds, address)


def _module_of_caller() -> str:
    """Where the method was called that asks."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))


def _check_condition(text: str, names: set[str]) -> None:
    import ast

    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise DescriptionError(f"where={text!r}: {error.msg}") from None
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    if used - names:
        raise DescriptionError(f"where={text!r}: no operand {', '.join(sorted(used - names))}")
