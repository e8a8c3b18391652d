"""Assembly syntax: one text beside each instruction, used to disassemble and to assemble.

A syntax is the mnemonic and the operands: ``"ld {rd}, {imm}({rs1})"``.  ``{name:kind}`` says how an operand is
written, where its name alone does not: kinds are defined by the architecture (register names, condition names,
``pc``-relative addresses).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .types import DescriptionError

_HOLE = re.compile(r"\{(\w+)(?::(\w+))?\}")


@dataclass(frozen=True)
class Kind:
    """How an operand is written: by name (value = index), as an address relative to pc, or as a number."""

    name: str
    names: tuple[str, ...] = ()
    aliases: dict[str, int] = field(default_factory=dict)
    pc: bool = False
    signed: bool = True

    def format(self, value: int, address: int) -> str:
        if self.pc:
            return hex(address + value & 0xFFFF_FFFF_FFFF_FFFF)
        if 0 <= value < len(self.names) and self.names[value]:
            return self.names[value]
        for alias, number in self.aliases.items():
            if number == value:
                return alias
        return str(value) if abs(value) < 10000 else hex(value)

    def parse(self, text: str, address: int, symbols: Mapping[str, int]) -> int:
        if text in self.names:
            return self.names.index(text)
        if text in self.aliases:
            return self.aliases[text]
        value = evaluate(text, symbols)
        return value - address if self.pc else value


_NUMBER = Kind("number")


def evaluate(text: str, symbols: Mapping[str, int]) -> int:
    """A number, a symbol, or a sum or difference of these. Raises ValueError."""
    total, sign = 0, 1
    parts = re.findall(r"[+-]|[^+\-\s]+", text)
    if not parts:
        raise ValueError("an operand is missing")
    for part in parts:
        if part in "+-":
            sign = -1 if part == "-" else 1
            continue
        if part in symbols:
            total += sign * symbols[part]
        else:
            try:
                total += sign * int(part, 0)
            except ValueError:
                raise ValueError(f"{part!r} is neither a number nor a known symbol") from None
        sign = 1
    return total


@dataclass(frozen=True)
class Syntax:
    """A parsed syntax."""

    text: str
    mnemonic: str
    parts: tuple[str | tuple[str, str], ...]  # literal text, or (operand, kind)

    def format(self, values: Mapping[str, int], kinds: Mapping[str, Kind], address: int = 0) -> str:
        """The text of the instruction with these operands, at ``address``."""
        out = [self.mnemonic]
        for part in self.parts:
            if isinstance(part, str):
                out.append(part)
            else:
                out.append(kinds.get(part[1], _NUMBER).format(values[part[0]], address))
        return "".join(out)

    def match(self, operands: str) -> dict[str, tuple[str, str]] | None:
        """The operand texts in ``operands`` (what follows the mnemonic): name to (text, kind); None if unlike."""
        names: list[tuple[str, str]] = []
        expression = ""
        for part in self.parts:
            if isinstance(part, str):
                expression += r"\s*" + r"\s*".join(re.escape(c) for c in part.replace(" ", "")) + r"\s*"
            else:
                names.append(part)
                expression += r"([^,()]+?)"
        found = re.fullmatch(expression, operands.strip())
        if found is None:
            return None
        return {name: (text.strip(), kind) for (name, kind), text in zip(names, found.groups(), strict=True)}


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
