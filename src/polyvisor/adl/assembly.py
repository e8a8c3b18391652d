"""Assembly syntax: one text beside each instruction, used to disassemble and to assemble.

A syntax is the mnemonic and the operands: ``"ld {rd}, {imm}({rs1})"``.  ``{name:kind}`` says how an operand is
written, where its name alone does not: kinds are defined by the architecture (register names, condition names,
``pc``-relative addresses).  A last operand whose kind has a ``default`` may be left out, with the text before it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from .types import DescriptionError

_HOLE = re.compile(r"\{(\w+)(?::(\w+))?\}")
# An operand's text: a character, a modified value like %lo(x), or anything without a separator.
_OPERAND = r"((?:'(?:\\.|[^'\\])'|%\w+\([^()]*\)|[^,()'#])+?)"
_ESCAPES = {"n": 10, "t": 9, "r": 13, "0": 0, "a": 7, "b": 8, "f": 12, "v": 11, "e": 27}
_TOKEN = re.compile(r"\s*('(?:\\.|[^'\\])'|%(\w+)\(([^()]*)\)|%[01]+|[+-]|[\w.$@]+|\*)\s*")


@dataclass(frozen=True)
class Place:
    """What an expression may depend on: ``symbols``, its ``address``, and the architecture's ``modifiers``.

    ``modifiers`` are functions for ``%name(value)``; ``notes`` is where they leave word for each other.
    """

    symbols: Mapping[str, int] = field(default_factory=dict)
    address: int = 0
    modifiers: Mapping[str, Callable[[int, Place], int]] = field(default_factory=dict)
    notes: dict[int, int] = field(default_factory=dict)


class UnknownSymbolError(ValueError):
    """An expression names a symbol that has no value (yet)."""


@dataclass(frozen=True)
class Kind:
    """How an operand is written.

    By name (value = index in ``names``; a number where that is empty), with ``aliases`` for some values; without
    ``names``, other values are numbers.  ``pc``: written as an address, encoded relative to pc and ``after`` bytes.
    ``shift``: the number written is the value shifted right; ``width``: it is shown without sign, with that many
    bits, of which the first is the value's sign if ``signed``.  ``default``: see the module.  ``prefix``: what
    hexadecimal numbers begin with; after ``$``, all digits are shown.
    """

    name: str
    names: tuple[str, ...] = ()
    aliases: dict[str, int] = field(default_factory=dict)
    pc: bool = False
    signed: bool = True
    shift: int = 0
    width: int = 0
    default: int | None = None
    prefix: str = "0x"
    after: int = 0

    def format(self, value: int, address: int) -> str:
        """The text of the operand ``value`` of an instruction at ``address``."""
        if self.pc and self.width:
            return self._hex(address + self.after + value)
        if self.pc:
            return hex(address + self.after + value & 0xFFFF_FFFF_FFFF_FFFF)
        if 0 <= value < len(self.names) and self.names[value]:
            return self.names[value]
        for alias, number in self.aliases.items():
            if number == value:
                return alias
        if self.width:
            return self._hex(value >> self.shift)
        value >>= self.shift
        return str(value) if abs(value) < 10000 else hex(value)

    def _hex(self, value: int) -> str:
        digits = -(-self.width // 4) if self.prefix == "$" else 0
        return f"{self.prefix}{value & ((1 << self.width) - 1):0{digits}x}"

    def parse(self, text: str, place: Place) -> int:
        """The operand's value. Raises ValueError."""
        if text in self.names:
            return self.names.index(text)
        if text in self.aliases:
            return self.aliases[text]
        if self.names:
            if text.isdecimal() and int(text) < len(self.names) and not self.names[int(text)]:
                return int(text)
            names = [n for n in self.names if n]
            shown = names if len(names) < 10 else [*names[:3], "...", names[-1]]
            raise ValueError(f"{text!r} is none of {', '.join(shown)}")
        value = evaluate(text, place)
        if self.pc:
            return (value - place.address - self.after + (1 << 63)) % (1 << 64) - (1 << 63)
        if self.width:
            if not -(1 << self.width - 1) <= value < 1 << self.width:
                raise ValueError(f"{text} does not fit {self.width} bits")
            value &= (1 << self.width) - 1
            if self.signed and value >> self.width - 1:
                value -= 1 << self.width
        return value << self.shift


_NUMBER = Kind("number")


def evaluate(text: str, place: Place) -> int:
    """A sum or difference of numbers, characters, symbols, ``.`` and ``%modifier(expression)``. Raises ValueError.

    ``<`` or ``>`` before it takes the low or high byte of the whole. ``$12`` is hexadecimal, ``%101`` binary, and ``*``
    means the same as ``.``, the address of the statement.
    """
    total, sign, at, complete = 0, 1, 0, False
    text = text.strip()
    if text[:1] in ("<", ">"):
        return evaluate(text[1:], place) >> (8 if text[0] == ">" else 0) & 0xFF
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise ValueError(f"{text!r} is not an expression of numbers, symbols, + and -")
        at = token.end()
        if token[1] in "+-":
            sign = sign if token[1] == "+" else -sign
            complete = False
            continue
        if complete:
            raise ValueError(f"{text!r}: + or - is missing before {token[1]!r}")
        total += sign * _term(token, place)
        sign, complete = 1, True
    if not complete:
        raise ValueError(f"{text!r} ends where a number or a symbol should follow" if text else "an operand is missing")
    return total


def _term(token: re.Match[str], place: Place) -> int:
    part = token[1]
    if token[2]:
        if token[2] not in place.modifiers:
            raise ValueError(f"there is no modifier %{token[2]}")
        return place.modifiers[token[2]](evaluate(token[3], place), place)
    if part[0] == "'":
        return _ESCAPES.get(part[2], ord(part[2])) if part[1] == "\\" else ord(part[1])
    if part[0] == "%":
        return int(part[1:], 2)
    if part in (".", "*"):
        return place.address
    if part in place.symbols:
        return place.symbols[part]
    if part[0] == "$" and part[1:]:
        try:
            return int(part[1:], 16)
        except ValueError:
            raise ValueError(f"{part!r} is not a hexadecimal number") from None
    try:
        return int(part, 0)
    except ValueError:
        if part[0].isdigit():
            raise ValueError(f"{part!r} is not a number") from None
        raise UnknownSymbolError(f"{part!r} is neither a number nor a known symbol") from None


@dataclass(frozen=True)
class Syntax:
    """A parsed syntax."""

    text: str
    mnemonic: str
    parts: tuple[str | tuple[str, str], ...]  # literal text, or (operand, kind)

    def format(self, values: Mapping[str, int], kinds: Mapping[str, Kind], address: int = 0) -> str:
        """The text of the instruction with these operands, at ``address``."""
        out = [self.mnemonic]
        parts = self.parts
        if (last := self._optional(kinds)) is not None and values[last[0]] == kinds[last[1]].default:
            parts = parts[:-2]
        for part in parts:
            if isinstance(part, str):
                out.append(part)
            else:
                out.append(kinds.get(part[1], _NUMBER).format(values[part[0]], address))
        return "".join(out)

    def match(self, operands: str, kinds: Mapping[str, Kind]) -> dict[str, tuple[str, str]] | None:
        """The operand texts in ``operands`` (what follows the mnemonic): name to (text, kind); None if unlike.

        An operand left out has an empty text.
        """
        names = [part for part in self.parts if not isinstance(part, str)]
        optional = len(self.parts) - 2 if self._optional(kinds) is not None else len(self.parts)
        expression = "".join(map(_pattern, self.parts[:optional]))
        if optional < len(self.parts):
            expression += "(?:" + "".join(map(_pattern, self.parts[optional:])) + ")?"
        found = re.fullmatch(expression, operands.strip(), re.IGNORECASE)
        if found is None:
            return None
        return {name: ((text or "").strip(), kind) for (name, kind), text in zip(names, found.groups(), strict=True)}

    def parse(self, operands: str, kinds: Mapping[str, Kind], place: Place) -> dict[str, int] | None:
        """The operands' values; None if the text has another form. Raises ValueError for operands it cannot have."""
        texts = self.match(operands, kinds)
        if texts is None:
            return None
        values: dict[str, int] = {}
        for name, (text, kind) in texts.items():
            how = kinds.get(kind, _NUMBER)
            values[name] = how.default if not text and how.default is not None else how.parse(text, place)
        return values

    def _optional(self, kinds: Mapping[str, Kind]) -> tuple[str, str] | None:
        """The last operand, if it may be left out."""
        if len(self.parts) < 2 or isinstance(last := self.parts[-1], str) or last[1] not in kinds:
            return None
        return last if kinds[last[1]].default is not None else None


def _pattern(part: str | tuple[str, str]) -> str:
    if isinstance(part, str):
        return r"\s*" + r"\s*".join(re.escape(c) for c in part.replace(" ", "")) + r"\s*"
    return _OPERAND


def parse_syntax(text: str, default_kinds: Mapping[str, str]) -> Syntax:
    """Parse a syntax. Raises DescriptionError."""
    mnemonic, _, rest = text.partition(" ")
    if "{" in mnemonic or not mnemonic:
        raise DescriptionError(f"syntax {text!r} must start with a mnemonic")
    parts: list[str | tuple[str, str]] = []
    at = 0
    rest = " " + rest if rest else ""
    for hole in _HOLE.finditer(rest):
        if hole.start() > at:
            parts.append(rest[at : hole.start()])
        name = hole.group(1)
        parts.append((name, hole.group(2) or default_kinds.get(name, "number")))
        at = hole.end()
    if at < len(rest):
        parts.append(rest[at:])
    return Syntax(text, mnemonic, tuple(parts))


@dataclass(frozen=True)
class Pseudo:
    """An instruction of the assembler only: ``expansion`` gives the instructions it stands for.

    A text, with the operands' texts put in for ``{name}``, or a function of the place and the operands' texts.
    """

    syntax: Syntax
    expansion: str | Callable[..., str]

    def expand(self, operands: str, kinds: Mapping[str, Kind], place: Place) -> str | None:
        """The text of the instructions, separated by ``;``; None if the operands have another form."""
        texts = self.syntax.match(operands, kinds)
        if texts is None:
            return None
        given: dict[str, str] = {}
        for name, (text, kind) in texts.items():
            how = kinds.get(kind, _NUMBER)
            if how.names and text not in how.names and text not in how.aliases:
                return None  # a register must be one, or another form is meant
            given[name] = text
        return self.expansion.format(**given) if isinstance(self.expansion, str) else self.expansion(place, **given)
