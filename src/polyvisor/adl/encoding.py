"""Instruction encodings: patterns written as in a manual, matched, decoded and encoded.

A pattern lists, from the most significant bit, literal bits (``0``, ``1``, ``x`` for "any") and operands::

    "0000000 rs2:5 rs1:5 000 rd:5 0110011"          name:width
    "imm[12|10:5] rs2:5 rs1:5 000 imm[4:1|11] 1100011"  slices of one operand's bits

An operand's name with a prime (``rd'``) is a short register field; the architecture says what it adds.
Several words of an instruction are separated by ``/`` and follow each other in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .types import DescriptionError

_TOKEN = re.compile(r"([01x_]+)|([A-Za-z]\w*)('?)(?::(\d+)|\[([0-9:|]+)\])")


@dataclass(frozen=True)
class Piece:
    """``width`` bits of an operand: at ``at`` in the instruction, at ``to`` in the operand's value."""

    at: int
    to: int
    width: int


@dataclass(frozen=True)
class Operand:
    """An operand as it is encoded: ``bits`` wide with its sign bit, plus a constant ``add``."""

    name: str
    pieces: tuple[Piece, ...]
    bits: int
    signed: bool = False
    add: int = 0

    def extract(self, word: int) -> int:
        """The operand's value in the instruction ``word``."""
        value = 0
        for piece in self.pieces:
            value |= (word >> piece.at & ((1 << piece.width) - 1)) << piece.to
        if self.signed and value >> (self.bits - 1):
            value -= 1 << self.bits
        return value + self.add

    def insert(self, value: int) -> int:
        """The instruction bits that encode ``value``. Raises ValueError if it has no encoding."""
        raw = value - self.add
        low, high = (-(1 << (self.bits - 1)), 1 << (self.bits - 1)) if self.signed else (0, 1 << self.bits)
        if not low <= raw < high:
            raise ValueError(f"{self.name} = {value} is not in {low + self.add}..{high - 1 + self.add}")
        raw &= (1 << self.bits) - 1
        word, covered = 0, 0
        for piece in self.pieces:
            mask = (1 << piece.width) - 1
            word |= (raw >> piece.to & mask) << piece.at
            covered |= mask << piece.to
        if raw & ~covered:
            raise ValueError(f"{self.name} = {value} is not a multiple of {covered & -covered}")
        return word


@dataclass(frozen=True)
class Encoding:
    """A parsed pattern: an instruction ``length`` bytes long matches where ``word & mask == value``.

    ``word`` is the instruction's bytes read as one little-endian number, whatever the byte order.
    """

    pattern: str
    length: int
    mask: int
    value: int
    operands: tuple[Operand, ...]

    def encode(self, values: Mapping[str, int]) -> bytes:
        """The instruction with these operand values. Raises ValueError for a value without an encoding."""
        word = self.value
        for operand in self.operands:
            word |= operand.insert(int(values[operand.name]))
        return word.to_bytes(self.length, "little")


def parse_pattern(
    pattern: str, *, byte_order: str = "little", prime_adds: int = 0, signed: Iterable[str] = ()
) -> Encoding:
    """Parse a pattern; the operands named in ``signed`` are sign-extended. Raises DescriptionError."""
    signed = set(signed)
    mask = value = base = 0
    pieces: dict[str, list[Piece]] = {}
    primes: set[str] = set()
    for text in pattern.split("/"):
        items: list[tuple[str, int, list[tuple[int, int]]]] = []  # literal or name, width, slices
        for token in text.split():
            match = _TOKEN.fullmatch(token)
            if match is None:
                raise DescriptionError(
                    f"pattern {pattern!r}: {token!r} is neither bits (0, 1, x) nor name:width nor name[slices]"
                )
            literal, name, prime, width, slices = match.groups()
            if literal:
                literal = literal.replace("_", "")
                items.append((literal, len(literal), []))
                continue
            if prime:
                primes.add(name)
            if width:
                items.append((name, int(width), [(int(width) - 1, 0)]))
            else:
                ranges = [
                    (int(p.split(":")[0]), int(p.split(":")[-1])) for p in slices.split("|")
                ]
                items.append((name, sum(h - low + 1 for h, low in ranges), ranges))
        size = sum(width for _, width, _ in items)
        if size == 0 or size % 8:
            raise DescriptionError(f"pattern {pattern!r}: a word has {size} bits; it must have a multiple of 8")
        at = size
        for what, _width, ranges in items:
            if not ranges:
                for character in what:
                    at -= 1
                    if character != "x":
                        position = base + _position(at, size, byte_order)
                        mask |= 1 << position
                        value |= int(character) << position
                continue
            for high, low in ranges:
                at -= high - low + 1
                pieces.setdefault(what, []).extend(
                    Piece(base + a, to, n) for a, to, n in _runs(at, low, high - low + 1, size, byte_order)
                )
        base += size
    operands = []
    for name, parts in pieces.items():
        top = max(p.to + p.width for p in parts)
        operands.append(Operand(name, tuple(parts), top, name in signed, prime_adds if name in primes else 0))
    return Encoding(pattern, base // 8, mask, value, tuple(operands))


def _position(at: int, size: int, byte_order: str) -> int:
    """Where bit ``at`` of a word of ``size`` bits is when its bytes are read as a little-endian number."""
    return at if byte_order == "little" else size - 8 - (at & ~7) + (at & 7)


def _runs(at: int, to: int, width: int, size: int, byte_order: str) -> list[tuple[int, int, int]]:
    """The contiguous runs (position, operand bit, width) of a slice; more than one where bytes are swapped."""
    if byte_order == "little":
        return [(at, to, width)]
    runs = []
    while width:
        n = min(width, 8 - at % 8)
        runs.append((_position(at, size, byte_order), to, n))
        at, to, width = at + n, to + n, width - n
    return runs


@dataclass(frozen=True)
class Switch:
    """A node of a decode tree: go on by ``word & mask``."""

    mask: int
    cases: dict[int, Node]
    default: Node


@dataclass(frozen=True)
class Candidates:
    """A leaf: the first of these (by index) that matches, most specific first."""

    indices: tuple[int, ...]


Node = Switch | Candidates


def decode_tree(encodings: Sequence[Encoding]) -> Node:
    """A tree that finds the encoding of a word with few tests; shared by all decoders."""
    order = sorted(range(len(encodings)), key=lambda i: (-encodings[i].mask.bit_count(), i))
    return _tree(encodings, order, 0)


def _tree(encodings: Sequence[Encoding], indices: Sequence[int], tested: int) -> Node:
    common = ~tested
    for i in indices:
        common &= encodings[i].mask
    if len(indices) <= 1 or common == 0:
        split = _split_on_some(encodings, indices, tested)
        return Candidates(tuple(indices)) if split is None else split
    groups: dict[int, list[int]] = {}
    for i in indices:
        groups.setdefault(encodings[i].value & common, []).append(i)
    cases = {key: _tree(encodings, members, tested | common) for key, members in groups.items()}
    return Switch(common, cases, Candidates(()))


def _split_on_some(encodings: Sequence[Encoding], indices: Sequence[int], tested: int) -> Node | None:
    """Split off those that test bits the others leave open, where that shortens a long list of candidates."""
    if len(indices) <= 3:
        return None
    votes: dict[int, int] = {}
    for i in indices:
        votes[encodings[i].mask & ~tested] = votes.get(encodings[i].mask & ~tested, 0) + 1
    mask = max(votes, key=lambda m: (votes[m], m.bit_count()))
    if mask == 0:
        return None
    exact = [i for i in indices if encodings[i].mask & mask == mask]
    rest = [i for i in indices if encodings[i].mask & mask != mask]
    groups: dict[int, list[int]] = {}
    for i in exact:
        groups.setdefault(encodings[i].value & mask, []).append(i)
    cases: dict[int, Node] = {}
    for key, members in groups.items():
        # One that leaves some of these bits open can match here too.
        also = [i for i in rest if (encodings[i].value ^ key) & encodings[i].mask & mask == 0]
        merged = sorted([*members, *also], key=indices.index)
        cases[key] = _tree(encodings, merged, tested | mask)
    return Switch(mask, cases, _tree(encodings, rest, tested) if rest else Candidates(()))
