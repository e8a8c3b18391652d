"""An assembler for every described architecture, derived from the instructions' syntax and encodings.

One statement a line, or several separated by ``;``.  Labels end in a colon; a number is a local label, referred to
by ``1b`` (the one before) and ``1f`` (the next).  ``name = value`` defines a symbol, ``*= address`` is ``.org``.
Comments start with ``#`` or ``//``, or with what the architecture says.  Where a mnemonic has several encodings, the
shortest that can hold the operands is taken.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache

from .architecture import Architecture
from .assembly import Place, UnknownSymbolError, evaluate

_LABEL = re.compile(r"\s*([A-Za-z_.$][\w.$]*|\d+)\s*:")
_ASSIGNMENT = re.compile(r"([A-Za-z_.$][\w.$]*|\*)\s*=\s*(.*)")
_LOCAL = re.compile(r"(?<![\w.$])(\d+)([bf])(?![\w.$])")
_QUOTED = re.compile(r'("(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\')')
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "e": "\x1b"}

_DATA = {
    ".byte": 1, ".half": 2, ".short": 2, ".2byte": 2, ".long": 4, ".4byte": 4, ".dword": 8, ".quad": 8, ".8byte": 8,
}  # fmt: skip
_IGNORED = {".option", ".globl", ".global", ".text", ".type", ".size"}
_MOST_PASSES = 20


class AssemblerError(Exception):
    """The text cannot be assembled; the message is one line that starts with the number of the line at fault."""


@dataclass(frozen=True)
class Program:
    """Assembled code and data: ``bytes`` to be put at address ``base``, and the value of each symbol."""

    bytes: builtins.bytes
    symbols: dict[str, int]
    base: int = 0

    def __bytes__(self) -> builtins.bytes:
        return self.bytes


Encodings = Mapping[str, Callable[[str], bytes]]


def assemble(
    architecture: Architecture, text: str, base: int = 0, symbols: Mapping[str, int] | None = None,
    encodings: Encodings | None = None,
) -> Program:
    """Assemble ``text`` to be put at ``base``; it may use ``symbols``. Raises AssemblerError.

    ``encodings`` adds directives for texts in other character sets, such as ``.text``: of what follows them, a
    string in double quotes is encoded by the function (ValueError: it cannot be), and anything else is a byte.
    """
    return _Assembler(architecture, text, base, dict(symbols or {}), encodings or {}).run()


@dataclass(frozen=True)
class _Statement:
    """``name`` is a mnemonic, a directive, or ``:`` for the label ``rest``."""

    line: int
    source: str
    name: str
    rest: str

    def error(self, message: object) -> AssemblerError:
        return AssemblerError(f"line {self.line}: {message} (in {self.source.strip()!r})")


@dataclass
class _Assembler:
    architecture: Architecture
    text: str
    base: int
    given: dict[str, int]
    encodings: Encodings
    # For each instruction, where the search among its encodings starts: it only grows, so that passes come to an end.
    floors: dict[tuple[int, int], int] = field(default_factory=dict)
    notes: dict[int, int] = field(default_factory=dict)

    def run(self) -> Program:
        self.statements = list(_statements(self.text, _scanner(self.architecture.comments)))
        self.data = {**_DATA, ".word": self.architecture.word}
        self.symbols = dict(self.given)
        self.padding: list[bytes] | None = None
        for _ in range(_MOST_PASSES):
            before = dict(self.symbols)
            self.failure: AssemblerError | None = None
            data = self._pass()
            if self.symbols == before:
                if self.failure is not None:
                    raise self.failure
                return Program(data, {n: v for n, v in self.symbols.items() if "@" not in n}, self.base)
        raise AssemblerError("line 1: the sizes of the instructions depend on each other and do not settle")

    def _pass(self) -> bytes:
        """Assemble all with the symbols of the pass before; an error counts only if the symbols stay as they are."""
        out = bytearray()
        defined: set[str] = set()
        for number, statement in enumerate(self.statements):
            self.current = statement
            try:
                address = self.base + len(out)
                if statement.name == ":":
                    self._define(statement.rest, address, defined)
                elif statement.name in (".equ", ".set"):
                    name, _, value = statement.rest.partition(",")
                    self.symbols[name.strip()] = evaluate(value, self._place(address))
                elif statement.name.startswith("."):
                    out += self._directive(statement.name, statement.rest, address)
                else:
                    out += self._instructions(f"{statement.name} {statement.rest}", address, number)
            except ValueError as error:
                self._note(error)
        return bytes(out)

    def _note(self, error: ValueError) -> None:
        """Keep the first error of a pass."""
        if self.failure is None:
            self.failure = self.current.error(error)

    def _place(self, address: int) -> Place:
        return Place(self.symbols, address, self.architecture.modifiers, self.notes)

    def _define(self, name: str, address: int, defined: set[str]) -> None:
        if name in defined or name in self.given:
            raise ValueError(f"{name} is defined already")
        defined.add(name)
        self.symbols[name] = address

    # Instructions

    def _instructions(self, text: str, address: int, number: int, depth: int = 0) -> bytes:
        """The bytes of an instruction or of what a pseudo-instruction stands for."""
        mnemonic, _, operands = text.strip().partition(" ")
        mnemonic = mnemonic.lower()
        if mnemonic not in self.architecture.pseudo and not self.architecture.named(mnemonic):
            raise ValueError(f"there is no instruction {mnemonic!r}")
        if address % self.architecture.unit:
            raise ValueError(f"an instruction cannot be at {address:#x}; use .balign {self.architecture.unit}")
        place = self._place(address)
        failure: ValueError | None = None
        try:
            data = self._encode(mnemonic, operands, place, (number, address - self.base if depth else -1))
        except UnknownSymbolError:
            raise
        except ValueError as error:
            data, failure = None, error
        if data is not None:
            return data
        for pseudo in self.architecture.pseudo.get(mnemonic, []) if depth < 4 else []:
            expansion = pseudo.expand(operands, self.architecture.kinds, place)
            if expansion is not None:
                out = b""
                for part in expansion.split(";"):
                    out += self._instructions(part, address + len(out), number, depth + 1)
                return out
        raise failure or ValueError(f"{mnemonic} is written {self._forms(mnemonic)}")

    def _encode(self, mnemonic: str, operands: str, place: Place, key: tuple[int, int]) -> bytes | None:
        """The shortest encoding that holds the operands; None if all are written in another way. Raises ValueError."""
        failure: ValueError | None = None
        candidates = sorted(self.architecture.named(mnemonic), key=lambda i: i.encoding.length)
        for index, instruction in enumerate(candidates):
            if index < self.floors.get(key, 0):
                continue
            try:
                values = instruction.syntax.parse(operands, self.architecture.kinds, place)
                if values is None:
                    continue
                data = instruction.encoding.encode(values)
                if not instruction.matches(int.from_bytes(data, "little")):
                    raise ValueError(f"{mnemonic} needs {instruction.where}")
            except UnknownSymbolError as error:
                # It gets a value later; until then, as many bytes as it will probably need.
                self._note(error)
                return bytes(instruction.encoding.length)
            except ValueError as error:
                failure = error
            else:
                self.floors[key] = index
                return data
        if failure is not None:
            raise failure
        return None

    def _forms(self, mnemonic: str) -> str:
        syntaxes = [i.syntax for i in self.architecture.named(mnemonic)]
        syntaxes += [p.syntax for p in self.architecture.pseudo.get(mnemonic, [])]
        return " or ".join(dict.fromkeys(re.sub(r"\{(\w+)(?::\w+)?\}", r"\1", s.text) for s in syntaxes))

    # Directives

    def _directive(self, name: str, rest: str, address: int) -> bytes:
        arguments = _arguments(rest)
        place = self._place(address)
        if name in self.encodings:
            encode = self.encodings[name]
            return b"".join(
                encode(_string(a)) if a[:1] == '"' else self._number(name, 1, a, place) for a in arguments
            )
        if name in _IGNORED:
            return b""
        if name in self.data:
            if not arguments:
                raise ValueError(f"{name} needs a value")
            return b"".join(self._number(name, self.data[name], a, place) for a in arguments)
        if name in (".ascii", ".asciz", ".string"):
            end = b"" if name == ".ascii" else b"\0"
            return b"".join(_bytes(a) + end for a in arguments)
        if name not in (".align", ".p2align", ".balign", ".org", ".space", ".skip", ".zero"):
            raise ValueError(f"there is no directive {name}")
        if not 1 <= len(arguments) <= 2:
            raise ValueError(f"{name} takes a number, and what to fill with if not the usual")
        count = evaluate(arguments[0], place)
        fill = self._number(name, 1, arguments[1], place) if len(arguments) == 2 else None
        if name in (".space", ".skip", ".zero"):
            if not 0 <= count < 1 << 30:
                raise ValueError(f"{name} of {count} bytes")
            return (fill or b"\0") * count
        if name == ".org":
            if not 0 <= count - address < 1 << 30:
                raise ValueError(f".org {count:#x} from {address:#x}: it is an address, and can only go forward")
            return (fill or b"\0") * (count - address)
        boundary = count if name == ".balign" else 1 << count if 0 <= count <= 24 else 0
        if boundary <= 0 or boundary & (boundary - 1):
            raise ValueError(f"{name} {count}: not a power of two")
        missing = -address % boundary
        return self._pad(address, missing) if fill is None else fill * missing

    def _number(self, name: str, size: int, text: str, place: Place) -> bytes:
        try:
            value = evaluate(text, place)
        except UnknownSymbolError as error:
            self._note(error)
            return bytes(size)
        if not -(1 << 8 * size - 1) <= value < 1 << 8 * size:
            raise ValueError(f"{value:#x} does not fit {name}")
        big = self.architecture.byte_order == "big"
        return (value & ((1 << 8 * size) - 1)).to_bytes(size, "big" if big else "little")

    def _pad(self, address: int, missing: int) -> bytes:
        """Bytes that fill the gap: instructions that do nothing, the long ones last; zeros where none fits."""
        if self.padding is None:
            self.padding = [assemble(self.architecture, text).bytes for text in self.architecture.padding]
        zeros = b"\0" * min(missing, -address % self.architecture.unit)
        missing -= len(zeros)
        out = b""
        for nop in self.padding:
            out = nop * ((missing - len(out)) // len(nop)) + out
        return zeros + b"\0" * (missing - len(out)) + out


@cache
def _scanner(comments: tuple[str, ...]) -> re.Pattern[str]:
    """Finds strings, characters, comments (in the group), separators, and what is between them."""
    starts = "|".join(map(re.escape, comments))
    return re.compile(rf""""(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])'|((?:{starts}).*)|;|(?:(?!{starts})[^"';])+|.""")


def _statements(text: str, scanner: re.Pattern[str]) -> Iterator[_Statement]:
    seen: dict[str, int] = {}
    for line, source in enumerate(text.splitlines(), 1):
        for part in _split(source, scanner):
            while label := _LABEL.match(part):
                name = label[1]
                if name.isdigit():
                    seen[name] = seen.get(name, 0) + 1
                    name = f"{name}@{seen[name]}"
                yield _Statement(line, source, ":", name)
                part = part[label.end() :]
            if assignment := _ASSIGNMENT.fullmatch(part.strip()):
                part = f".org {assignment[2]}" if assignment[1] == "*" else f".equ {assignment[1]}, {assignment[2]}"
            if part.strip():
                name, *rest = part.split(None, 1)
                yield _Statement(line, source, name.lower(), _local(rest[0].strip() if rest else "", seen))


def _split(source: str, scanner: re.Pattern[str]) -> list[str]:
    """The statements of a line, without comments."""
    parts = [""]
    for token in scanner.finditer(source):
        if token[1] is None and token[0] == ";":
            parts.append("")
        elif token[1] is None:
            parts[-1] += token[0]
    return parts


def _local(text: str, seen: Mapping[str, int]) -> str:
    """The text with references to numeric labels made references to the symbols that stand for them."""
    pieces = _QUOTED.split(text)
    for i in range(0, len(pieces), 2):
        pieces[i] = _LOCAL.sub(lambda m: f"{m[1]}@{seen.get(m[1], 0) + (m[2] == 'f')}", pieces[i])
    return "".join(pieces)


def _arguments(rest: str) -> list[str]:
    """What is separated by commas outside quotes."""
    out = [""]
    for piece in _QUOTED.split(rest):
        if piece[:1] in ('"', "'"):
            out[-1] += piece
        else:
            first, *others = piece.split(",")
            out[-1] += first
            out += others
    return [a.strip() for a in out] if rest.strip() else []


def _string(text: str) -> str:
    """The characters of a string; those given by number are below 256."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ValueError(f"{text!r} is not a string in double quotes")
    return "".join(character for character, _ in _characters(text))


def _bytes(text: str) -> bytes:
    """The bytes of a string in UTF-8, but for those that are given by number."""
    _string(text)
    return b"".join(bytes([ord(c)]) if number else c.encode() for c, number in _characters(text))


def _characters(text: str) -> Iterator[tuple[str, bool]]:
    """The characters between the quotes, and whether each is given by number."""
    at = 1
    for match in _ESCAPE.finditer(text, 1, len(text) - 1):
        yield from ((character, False) for character in text[at : match.start()])
        code = match[1]
        if code[0] == "x" and len(code) > 1:
            yield chr(int(code[1:], 16)), True
        elif code[0] in "01234567":
            yield chr(int(code, 8) & 0xFF), True
        else:
            yield _ESCAPES.get(code, code), False
        at = match.end()
    yield from ((character, False) for character in text[at:-1])
