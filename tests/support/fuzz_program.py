"""RV64GC programs as trees of nodes, so that parts can be left out while the rest stays a program.

`program_maker` makes them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from polyvisor.adl import Instruction
from polyvisor.isa.riscv import rv64
from polyvisor.isa.riscv.csr import NAMES

from .fuzz import BY_MNEMONIC, PAGE
from .fuzz_machine import (
    BACKING,
    BASE,
    CODE,
    COUNTERS,
    CURSOR,
    DATA,
    FREE,
    JUMPS,
    RA,
    RAM,
    REQUEST,
    SP,
    VOLATILE,
    WINDOWS,
    Load,
)

# Assembling


def ins(name: str, **values: int) -> bytes:
    return BY_MNEMONIC[name].encoding.encode(values)


def li(rd: int, value: int) -> bytes:
    """A 32-bit value, sign-extended: lui and addiw, always."""
    low = (value & 0xFFF) - ((value & 0x800) << 1)
    upper = (value - low) >> 12 & 0xF_FFFF
    return struct.pack("<II", upper << 12 | rd << 7 | 0x37, (low & 0xFFF) << 20 | rd << 15 | rd << 7 | 0x1B)


def la(rd: int, here: int, to: int) -> bytes:
    """auipc and addi."""
    distance = to - here
    low = (distance & 0xFFF) - ((distance & 0x800) << 1)
    upper = (distance - low) >> 12 & 0xF_FFFF
    return struct.pack("<II", upper << 12 | rd << 7 | 0x17, (low & 0xFFF) << 20 | rd << 15 | rd << 7 | 0x13)


def offset(rd: int, distance: int) -> bytes:
    """An address in the window, from that of RAM's start."""
    return li(rd, distance) + ins("add", rd=rd, rs1=rd, rs2=BASE)


Labels = dict[Any, int]


@dataclass
class Code:
    """Pieces of code, each of a length that does not depend on where it is."""

    pieces: list[tuple[int, Callable[[int, Labels], bytes]]] = field(default_factory=list)
    labels: list[tuple[int, Any]] = field(default_factory=list)
    size: int = 0

    def label(self, name: Any) -> None:
        self.labels.append((self.size, name))

    def put(self, data: bytes) -> None:
        self.late(len(data), lambda here, labels: data)

    def late(self, length: int, make: Callable[[int, Labels], bytes]) -> None:
        self.pieces.append((length, make))
        self.size += length

    def jump(self, name: Any) -> None:
        self.late(4, lambda here, labels: ins("jal", rd=0, imm=labels[name] - here))

    def add(self, other: Code) -> None:
        self.labels += [(self.size + at, name) for at, name in other.labels]
        self.pieces += other.pieces
        self.size += other.size

    def link(self, start: int, labels: Labels) -> bytes:
        out = bytearray()
        for length, make in self.pieces:
            data = make(start + len(out), labels)
            assert len(data) == length
            out += data
        return bytes(out)


# Nodes


@dataclass(frozen=True)
class Node:
    """A piece of a program. What ``values`` are depends on the kind."""

    kind: str
    id: int
    body: tuple[Node, ...] = ()
    data: bytes = b""
    values: Any = ()

    def walk(self) -> Iterator[Node]:
        yield self
        for node in self.body:
            yield from node.walk()


@dataclass(frozen=True)
class Function:
    name: str
    body: tuple[Node, ...]
    gap: int = 0
    leaf: bool = False


@dataclass(frozen=True)
class Program:
    """``dropped`` nodes are left out, of ``opened`` ones only the body is kept; loops may have other ``counts``."""

    seed: int
    functions: tuple[Function, ...]  # the first is where it starts
    image: bytes  # of RAM without the program
    state: bytes
    start: int
    volatile: tuple[tuple[Function, ...], ...]  # by contents: first page or its backing
    mode: int
    translated: bool
    loosely: bool
    dropped: frozenset[int] = frozenset()
    opened: frozenset[int] = frozenset()
    counts: dict[int, int] = field(default_factory=dict)

    def nodes(self) -> Iterator[Node]:
        """All that are in use, from the outside to the inside."""
        used: set[str] = set()
        todo = [self.functions[0].name]
        functions = {f.name: f for f in self.functions}
        while todo:
            name = todo.pop(0)
            if name in used or name not in functions:
                continue
            used.add(name)
            for node in self._kept(functions[name].body):
                yield node
                if node.kind == "call":
                    todo.append(node.values[0])

    def _kept(self, body: tuple[Node, ...]) -> Iterator[Node]:
        for node in body:
            if node.id not in self.dropped:
                yield node
                yield from self._kept(node.body)

    # Writing it out

    def load(self) -> Load:
        image = bytearray(self.image)
        code, labels, at = self.link()
        image[at : at + len(code)] = code
        for where, data in self._volatile_code():
            image[where : where + len(data)] = data
        for n, function in enumerate(self.functions):
            struct.pack_into("<Q", image, JUMPS * PAGE + 8 * n, labels.get(function.name, at))
        for n, place in enumerate(_VOLATILE_PLACES.values()):
            struct.pack_into("<Q", image, JUMPS * PAGE + 8 * (FIRST_VOLATILE + n), VOLATILE * PAGE + place)
        for function in self.functions:
            for node in self._kept(function.body):
                if node.kind == "switch":
                    for n in range(len(node.body)):
                        struct.pack_into("<Q", image, _table(node) + 8 * n, labels.get((node.id, n), at))
        heads = [value for name, value in labels.items() if name in self._heads()]
        heads += [VOLATILE * PAGE + place for place in _VOLATILE_PLACES.values()]
        return Load(bytes(image), self.state, heads)

    def _heads(self) -> set[Any]:
        names: set[Any] = {f.name for f in self.functions}
        return names | {(n.id, "head") for f in self.functions for n in self._kept(f.body) if n.kind == "loop"}

    def link(self) -> tuple[bytes, Labels, int]:
        whole = Code()
        used = {n.values[0] for n in self.nodes() if n.kind == "call"} | {self.functions[0].name}
        for number, function in enumerate(self.functions):
            if function.name not in used:
                continue
            whole.put(b"\x02\x90" * (function.gap // 2))
            whole.label(function.name)
            if number:
                whole.put(ins("c.addi16sp", imm=-512) + ins("c.addi", rd=SP, imm=-16))
                whole.put(ins("sd", rs2=RA, rs1=SP, imm=520))
            self._emit_all(whole, function.body, None)
            if number:
                whole.put(ins("ld", rd=RA, rs1=SP, imm=520) + ins("addi", rd=SP, rs1=SP, imm=528) + ins("c.jr", rs1=RA))
            else:
                if self.mode != 3:
                    self._change_mode(whole, self.mode, 3)
                whole.put(ins("csrrwi", rd=0, csr=NAMES["mie"], imm=0))
                whole.put(struct.pack("<I", 0x1050_0073))
        at = CODE * PAGE + self.start
        labels: Labels = {name: at + place for place, name in whole.labels}
        labels |= {name: VOLATILE * PAGE + place for name, place in _VOLATILE_PLACES.items()}
        return whole.link(at, labels), labels, at

    def _volatile_code(self) -> list[tuple[int, bytes]]:
        found = []
        for content, functions in enumerate(self.volatile):
            base = (VOLATILE, BACKING)[content] * PAGE
            for function in functions:
                code = Code()
                self._emit_all(code, function.body, None)
                code.put(ins("c.jr", rs1=RA))
                at = base + _VOLATILE_PLACES[function.name]
                labels = {name: at + place for place, name in code.labels}
                found.append((at, code.link(at, labels)))
        return found

    def _emit_all(self, code: Code, body: tuple[Node, ...], loop: int | None) -> None:
        for node in body:
            if node.id in self.dropped:
                continue
            if node.id in self.opened:
                self._emit_all(code, node.body, loop)
            else:
                self._emit(code, node, loop)

    def _emit(self, code: Code, node: Node, loop: int | None) -> None:
        body = Code()
        name = node.id
        inner = {"loop": node.id, "mode": None}.get(node.kind, loop)
        if node.kind in ("loop", "if", "mode"):
            self._emit_all(body, node.body, inner)
        match node.kind:
            case "data":
                code.label((name, "data"))
                code.put(node.data)
            case "loop":
                register, count, style = node.values
                count = self.counts.get(name, count)
                code.put(ins("addi", rd=register, rs1=0, imm=count))
                code.label((name, "head"))
                code.add(body)
                code.label((name, "tail"))
                short, long = ins("c.addi", rd=register, imm=-1), ins("addi", rd=register, rs1=register, imm=-1)
                code.put(short if style & 1 else long)
                if body.size > 4000 or style & 2:
                    code.put(ins("beq", rs1=register, rs2=0, imm=8))
                    code.jump((name, "head"))
                else:
                    mnemonic = ("bne", "blt", "bltu")[style >> 2]
                    one, two = (register, 0) if mnemonic == "bne" else (0, register)
                    code.late(4, lambda here, labels: ins(mnemonic, rs1=one, rs2=two, imm=labels[name, "head"] - here))
                code.label((name, "end"))
            case "if":
                self._branch(code, node.data, body.size, (name, "end"))
                code.add(body)
                code.label((name, "end"))
            case "leave":  # out of the loop, or to its end
                if loop is not None:
                    self._branch(code, node.data, 5000, (loop, node.values))
            case "call":
                self._call(code, node)
            case "switch":
                self._switch(code, node, loop)
            case "patch":
                self._patch(code, node)
            case "mode":
                before, after = node.values
                self._change_mode(code, before, after)
                code.add(body)
                self._change_mode(code, after, before)

    def _branch(self, code: Code, data: bytes, distance: int, target: Any) -> None:
        """A conditional branch; the other way around, over a jump, where it is far."""
        word = int.from_bytes(data, "little")
        found = rv64.decode(word)
        assert found is not None
        values = found.operand_values(word)
        if distance < (4000 if len(data) == 4 else 220):
            code.late(
                len(data), lambda here, labels: found.encoding.encode({**values, "imm": labels[target] - here})
            )
        else:
            code.put(found.encoding.encode({**values, "imm": len(data) + 4}))
            code.late(4, lambda here, labels: ins("jal", rd=0, imm=labels[target] - here))

    def _call(self, code: Code, node: Node) -> None:
        function, how, register, number = node.values
        if how == "jal":
            code.late(4, lambda here, labels: ins("jal", rd=RA, imm=labels[function] - here))
            return
        if how == "table":
            code.put(offset(register, JUMPS * PAGE) + ins("ld", rd=register, rs1=register, imm=8 * number))
            code.put(ins("add", rd=register, rs1=register, rs2=BASE))
        else:
            code.late(8, lambda here, labels: la(register, here, labels[function]))
        code.put(ins("c.jalr", rs1=register) if how == "short" else ins("jalr", rd=RA, rs1=register, imm=0))

    def _switch(self, code: Code, node: Node, loop: int | None) -> None:
        """One of several bodies, chosen by a register's low bits."""
        a, b, chooser = node.values[:3]
        code.put(ins("andi", rd=a, rs1=chooser, imm=len(node.body) - 1) + ins("slli", rd=a, rs1=a, shamt=3))
        code.put(offset(b, _table(node)) + ins("add", rd=b, rs1=b, rs2=a) + ins("ld", rd=b, rs1=b, imm=0))
        code.put(ins("add", rd=b, rs1=b, rs2=BASE) + ins("jalr", rd=0, rs1=b, imm=0))
        for n, case in enumerate(node.body):
            code.label((node.id, n))
            self._emit_all(code, (case,), loop)
            if n + 1 < len(node.body):
                code.jump((node.id, "end"))
        code.label((node.id, "end"))

    def _patch(self, code: Code, node: Node) -> None:
        """Overwrite an instruction, or change it and back again each time it comes here."""
        target, how, a, b, c, distance, fence = node.values
        old, new = struct.unpack("<II", node.data)
        length = 4 if old & 3 == 3 else 2
        code.late(8, lambda here, labels: la(a, here, labels.get((target, "data"), DATA * PAGE)))
        if distance:  # by another address
            code.put(li(c, distance) + ins("add", rd=a, rs1=a, rs2=c))
        load, store = ("lwu", "sw") if length == 4 else ("lhu", "sh")
        if how == "toggle":
            code.put(ins(load, rd=b, rs1=a, imm=0) + li(c, old ^ new) + ins("xor", rd=b, rs1=b, rs2=c))
            code.put(ins(store, rs2=b, rs1=a, imm=0))
        elif how == "halves" and length == 4:
            code.put(li(b, new >> 16) + ins("sh", rs2=b, rs1=a, imm=2) + li(b, new) + ins("sh", rs2=b, rs1=a, imm=0))
        elif how == "atomic" and length == 4:
            code.put(li(b, new) + ins("amoswap.w", rd=c, rs1=a, rs2=b))
        else:
            code.put(li(b, new) + ins(store, rs2=b, rs1=a, imm=0))
        if fence:
            code.put(b"\x0f\x10\x00\x00")

    def _change_mode(self, code: Code, before: int, after: int) -> None:
        base = (lambda mode: WINDOWS[mode]) if self.translated else (lambda mode: RAM)
        delta = base(after) - base(before)
        code.put(li(REQUEST, delta + 4 + after) + ins("ebreak"))
        code.put(li(BASE, delta) + ins("add", rd=SP, rs1=SP, rs2=BASE) + li(BASE, base(after)))

    def text(self) -> str:
        """The program disassembled."""
        code, labels, at = self.link()
        names: dict[int, list[str]] = {}
        for name, value in labels.items():
            names.setdefault(value, []).append(name if isinstance(name, str) else f"{name[0]}.{name[1]}")
        lines = [
            f"seed {self.seed}, starts in mode {self.mode}, {'translated' if self.translated else 'bare'}"
            f"{', compared loosely' if self.loosely else ''}; addresses are from the start of RAM"
        ]
        called = {_VOLATILE_PLACES.get(n.values[0]) for n in self.nodes() if n.kind == "call"}
        volatile = [
            (s, d) for s, d in self._volatile_code() if called & {s - VOLATILE * PAGE, s - BACKING * PAGE}
        ]
        for start, data in [(at, code), *volatile]:
            place = 0
            while place < len(data):
                for name in names.get(start + place, []):
                    lines.append(f"{name}:")
                word = int.from_bytes(data[place : place + 4], "little")
                length = 4 if word & 3 == 3 else 2
                word &= (1 << 8 * length) - 1
                if word != 0x9002:
                    shown = rv64.disassemble(word, start + place) or "?"
                    lines.append(f"  {start + place:6x}: {word:0{2 * length}x}{' ' * (10 - 2 * length)}{shown}")
                place += length
        return "\n".join(lines)


def _table(node: Node) -> int:
    """Where a switch's table is, from RAM's start."""
    return JUMPS * PAGE + 256 + 32 * (node.values[3] % 100)


FIRST_VOLATILE = 24  # number of the first volatile function in the table of functions
# Where volatile functions begin in both contents of their pages; the last goes over the end of the first page.
CROSSING = 6  # instructions in front of the one that is in both pages
_VOLATILE_PLACES = {"v0": 0, "v1": 0x402, "v2": PAGE + 0x800, "v3": PAGE - 2 - 4 * CROSSING - 4}


# Random instructions

_CONTROL = set(
    "jal jalr beq bne blt bge bltu bgeu c.j c.jr c.jalr c.beqz c.bnez ecall ebreak c.ebreak mret sret wfi".split()
)
_CONTROL |= {"c.addi16sp", "sfence.vma", "sinval.vma", "sfence.w.inval", "sfence.inval.ir"}
_NAMES = "plain float load store atomic reserve stack bits multiply".split()
GROUPS: dict[str, list[Instruction]] = {n: [] for n in _NAMES}
for _one in rv64.instructions:
    _operands = {o.name for o in _one.encoding.operands}
    if _one.name in _CONTROL or _one.extension == "Zicsr":
        continue
    if _one.extension == "A":
        GROUPS["reserve" if _one.name[:3] in ("lr.", "sc.") else "atomic"].append(_one)
    elif _one.name.endswith("sp"):
        GROUPS["stack"].append(_one)
    elif "(" in _one.syntax.text:
        GROUPS["store" if "rd" not in _operands else "load"].append(_one)
    elif _one.extension in ("F", "D"):
        GROUPS["float"].append(_one)
    elif _one.extension == "M":
        GROUPS["multiply"].append(_one)
    elif _one.extension.startswith("Zb"):
        GROUPS["bits"].append(_one)
    else:
        GROUPS["plain"].append(_one)

BRANCHES = [BY_MNEMONIC[n] for n in "beq bne blt bge bltu bgeu".split()]
SHORT_BRANCHES = [BY_MNEMONIC[n] for n in ("c.beqz", "c.bnez")]
SOURCES = (*FREE, *FREE, *COUNTERS, 0, CURSOR, BASE)


def encoded(rng: random.Random, instruction: Instruction, **fixed: int) -> bytes:
    """An instruction with random operands that writes no register that others rely on."""
    while True:
        values: dict[str, int] = {}
        for operand in instruction.encoding.operands:
            covered = sum(((1 << p.width) - 1) << p.to for p in operand.pieces)
            raw = rng.getrandbits(operand.bits)
            if rng.random() < 0.3:
                raw = rng.choice((0, -1, 1 << (operand.bits - 1), (1 << (operand.bits - 1)) - 1, 8, 16))
            if operand.bits == 5 and operand.name == "rd":
                raw = rng.choice((*FREE, *FREE, *FREE, 0))
            elif operand.bits == 5 and operand.name in ("rs1", "rs2", "rs3"):
                same = operand.name != "rs1" and "rs1" in values and rng.random() < 0.1
                raw = values["rs1"] if same else rng.choice(SOURCES)
            raw &= covered
            if operand.signed and raw >> (operand.bits - 1):
                raw -= 1 << operand.bits
            values[operand.name] = raw + operand.add
        values |= {n: v for n, v in fixed.items() if n in values}
        data = instruction.encoding.encode(values)
        if rv64.decode(int.from_bytes(data, "little")) is instruction:
            return data
