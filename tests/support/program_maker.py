"""Random RV64GC programs that come to an end: loops, calls, traps, code that changes. `program_fuzz` runs them."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from polyvisor.isa.riscv import rv64
from polyvisor.isa.riscv.csr import NAMES

from .fuzz import DEVICE, PAGE, floating, integer
from .fuzz_machine import (
    BACKING,
    BASE,
    CODE,
    CODE_PAGES,
    COUNTERS,
    CURSOR,
    DATA,
    DATA_PAGES,
    FREE,
    HANDLER_CODE,
    HANDLERS,
    JUMPS,
    LARGE,
    RAM,
    RAM_PAGES,
    SATP,
    SP,
    STACK_TOP,
    SUPERVISOR_HANDLER,
    SYSTEM,
    VOLATILE,
    VOLATILE_COUNTER,
    VOLATILE_PAGES,
    WINDOWS,
    code_entry,
    data_entry,
    leaf_address,
    write_tables,
)
from .fuzz_program import (
    BRANCHES,
    CROSSING,
    FIRST_VOLATILE,
    GROUPS,
    SHORT_BRANCHES,
    SOURCES,
    Function,
    Node,
    Program,
    encoded,
    ins,
    li,
    offset,
)

# Random programs

_QUIET_CSRS = "fflags frm fcsr fcsr frm mscratch sscratch scounteren mhartid misa sepc stval scause sstatus sie satp"
_EXACT_CSRS = "cycle instret time mcycle minstret mepc mtval mcause mstatus mip sip mie mcounteren mcountinhibit"
_STATUS = 1 << 5 | 1 << 8 | 3 << 13 | 1 << 18 | 1 << 19  # SPIE SPP FS SUM MXR
CONSTANTS, CONSTANT_COUNT = JUMPS * PAGE + 3520, 72  # from the start of RAM
_LONGEST = 2000  # times that a loop goes around


@dataclass
class Maker:
    """Makes one program; ``budget`` is about how many instructions it executes."""

    rng: random.Random
    budget: int
    translated: bool
    mode: int
    loosely: bool
    weights: dict[str, float] = field(default_factory=dict)
    last_id: int = 0
    targets: list[Node] = field(default_factory=list)

    def node(self, kind: str, body: tuple[Node, ...] = (), data: bytes = b"", values: Any = ()) -> Node:
        self.last_id += 1
        return Node(kind, self.last_id, body, data, values)

    def free(self) -> int:
        return self.rng.choice(FREE)

    # Instructions

    def simple(self, length: int | None = None) -> bytes:
        """One instruction that touches nothing but registers and the stack."""
        while True:
            group = self.rng.choices(*zip(*self.weights.items(), strict=True))[0]
            data = encoded(self.rng, self.rng.choice(GROUPS[group]))
            if length in (None, len(data)):
                return data

    def place(self) -> int:
        """An address in or around the data, from the start of RAM."""
        rng = self.rng
        near = rng.choice((0, 0, *range(8), -1, -2, -3, -4, -6, -8, rng.randrange(PAGE), rng.randrange(0, PAGE, 8)))
        return (DATA + rng.randrange(DATA_PAGES + (near < 0))) * PAGE + near

    def access(self) -> bytes:
        """An address, and an instruction that uses it; a walk along the data from time to time to time."""
        rng = self.rng
        group = rng.choice(("load", "load", "store", "store", "atomic") + (() if self.loosely else ("reserve",)))
        chosen = rng.choice(GROUPS[group])
        register = rng.choice([r for r in FREE if 8 <= r < 16])
        code = encoded(rng, chosen, rs1=register)
        word = int.from_bytes(code, "little")
        found = rv64.decode(word)
        assert found is not None
        immediate = found.operand_values(word).get("imm", 0)
        kind = rng.random()
        if kind < 0.4:
            start = ins("addi", rd=CURSOR, rs1=CURSOR, imm=rng.choice((1, 2, 4, 8, 8, 8, 16, 24, 64, 264, 1032, -8)))
            start += li(register, rng.choice((0x7FFF, 0x7FF8, 0x7FF8, 0x1FF8)))
            start += ins("and", rd=CURSOR, rs1=CURSOR, rs2=register)
            start += li(register, DATA * PAGE - immediate) + ins("add", rd=register, rs1=register, rs2=BASE)
            return start + ins("add", rd=register, rs1=register, rs2=CURSOR) + code
        place = self.place()
        if group == "load" and kind < 0.5:
            place = rng.choice((LARGE + rng.randrange(RAM_PAGES) * PAGE + rng.choice((0, -4, 8)), 0x7FFF_F000))
        if kind > 0.98:
            return li(register, DEVICE + rng.choice((0, 8, 16, 0xC00)) + rng.choice((0, 0, 0, 2)) - immediate) + code
        if group in ("atomic", "reserve") and rng.random() < 0.9:
            place &= ~7
        if group == "reserve" and rng.random() < 0.7:
            # LR, and SC of the same size
            size = rng.choice("wd")
            pair = [i for i in GROUPS["reserve"] if f".{size}" in i.name]
            one = rng.choice([i for i in pair if i.name.startswith("lr")])
            two = rng.choice([i for i in pair if i.name.startswith("sc")])
            between = self.simple() if rng.random() < 0.5 else b""
            written = {values.get("rd") for values in (_values(between),)}
            if register not in written:
                destination = rng.choice([r for r in FREE if r != register])
                code = encoded(rng, one, rs1=register, rd=destination) + between + encoded(rng, two, rs1=register)
        return offset(register, place - immediate) + code

    def constant(self) -> bytes:
        """Load an interesting value: without those, all registers soon hold zeros, ones and NaNs."""
        name = self.rng.choice(("fld", "fld", "flw", "ld", "lw"))
        register = self.free()
        start = offset(register, CONSTANTS + 8 * self.rng.randrange(CONSTANT_COUNT))
        if name[0] == "f":
            return start + ins(name, rd=self.rng.randrange(32), rs1=register, imm=0)
        return start + ins(name, rd=self.free(), rs1=register, imm=0)

    def control(self) -> bytes:
        """Something with control and status registers, or a trap."""
        rng = self.rng
        kind = rng.random()
        a = self.free()
        if kind < 0.35:
            name = rng.choice((_QUIET_CSRS if self.loosely or rng.random() < 0.6 else _EXACT_CSRS).split())
            return ins("csrrs", rd=rng.choice((a, a, a, 0)), rs1=0, csr=NAMES[name])
        if kind < 0.60:
            name = rng.choice("fflags frm fcsr mscratch sscratch frm fcsr stval scause".split())
            which = rng.choice("csrrw csrrs csrrc csrrwi csrrsi csrrci".split())
            return ins(which, rd=rng.choice((a, 0)), rs1=rng.choice(SOURCES), csr=NAMES[name], imm=rng.randrange(32))
        if kind < 0.72:
            name = rng.choice(("mstatus", "sstatus", "sstatus"))
            value = _STATUS & rng.getrandbits(32)
            if name == "mstatus" and not self.loosely:
                value |= rng.choice((0, 1 << 7, 8, 0x88, 2))
            which = rng.choice(("csrrs", "csrrs", "csrrc"))
            if value & 3 << 13 and which == "csrrc" and rng.random() < 0.8:
                value &= ~(3 << 13)
            return li(a, value) + ins(which, rd=0, rs1=a, csr=NAMES[name])
        if kind < 0.80 and not self.loosely:
            name, value = rng.choice((
                ("mip", 2), ("sip", 2), ("mip", 0x202), ("stimecmp", 0), ("mie", 0x222), ("mie", 2), ("minstret", 5),
                ("mcycle", 9), ("mcountinhibit", 5), ("mcountinhibit", 0),
            ))
            which = rng.choice(("csrrw", "csrrs", "csrrc"))
            return li(a, value) + ins(which, rd=rng.choice((0, self.free())), rs1=a, csr=NAMES[name])
        if kind < 0.84:
            config = rng.choice((0, 0x18, 0x19, 0x1B, 0x1F, 0x1C, 0x10)) | rng.choice((0x1F1F00, 0x1F1B00, 0x1F0000))
            return li(a, config) + ins("csrrw", rd=0, rs1=a, csr=NAMES["pmpcfg0"])
        if kind < 0.87:
            return li(a, pmp_range(rng)) + ins("csrrw", rd=0, rs1=a, csr=NAMES["pmpaddr0"])
        if kind < 0.90 and self.translated:
            b = rng.choice([r for r in FREE if r != a])
            other = struct.pack("<I", 0x1200_0073) if rng.random() < 0.5 else b""
            code = li(a, SATP[rng.randrange(2)] & 0xFFFF_FFFF) + ins("addi", rd=b, rs1=0, imm=8)
            return code + ins("slli", rd=b, rs1=b, shamt=60) + ins("or", rd=a, rs1=a, rs2=b) + ins(
                "csrrw", rd=0, rs1=a, csr=NAMES["satp"]) + other
        return rng.choice((ins("ecall"), ins("ecall"), ins("ebreak"), ins("c.ebreak"), bytes(2), b"\xff\xff\xff\xff",
                           struct.pack("<I", 0x1200_0073), struct.pack("<I", 0x1400_0073), b"\x0f\x10\x00\x00"))

    def exchange(self) -> bytes:
        """Exchange the contents of the second volatile page, on which this is itself.

        Its last two instructions are at the same place in both contents: the new one may be fetched from the store on,
        and is at the latest when the fence was executed.
        """
        window, page = self.rng.choice((0, 1)), VOLATILE + 1
        usual = 0xCF | (16 if window == 0 else 0)
        entry = (RAM >> 12) + self.rng.choice((VOLATILE, BACKING)) + 1 << 10 | usual
        out = offset(5, leaf_address(0, window, page)) + li(6, entry) + li(7, WINDOWS[window] + page * PAGE)
        return out + ins("sd", rs2=6, rs1=5, imm=0) + struct.pack("<I", 0x1200_0073 | self.fence)

    def remap(self) -> bytes:
        """Change a page table entry and say so; use the page before and after."""
        rng = self.rng
        a, b = rng.sample(FREE, 2)
        window = rng.choice((0, 1) if self.mode == 3 else (self.mode, self.mode, 0, 1))
        root = rng.choice((0, 0, 1))
        code = rng.random() < 0.5
        page = rng.randrange(VOLATILE_PAGES) if code else rng.randrange(DATA_PAGES)
        number = (VOLATILE if code else DATA) + page
        entry = code_entry(rng, window, page) if code else data_entry(rng, window)
        out = offset(a, leaf_address(root, window, number)) + li(b, entry) + ins("sd", rs2=b, rs1=a, imm=0)
        out += li(a, WINDOWS[window] + number * PAGE)
        out += struct.pack("<I", 0x1200_0073 | rng.choice((0, a << 15, a << 15)))
        if not code:
            out = offset(a, number * PAGE) + ins("ld", rd=b, rs1=a, imm=8) + out
            out += offset(a, number * PAGE)
            out += rng.choice((ins("ld", rd=b, rs1=a, imm=8), ins("sd", rs2=b, rs1=a, imm=16)))
        return out

    # Structure

    def data(self, data: bytes) -> Node:
        made = self.node("data", data=data)
        if len(data) <= 4:
            self.targets.append(made)
        return made

    def branch(self) -> bytes:
        return encoded(self.rng, self.rng.choice(BRANCHES + BRANCHES + SHORT_BRANCHES), imm=8)

    def block(self, size: int, depth: int, level: int, callees: list[str], looping: bool) -> tuple[Node, ...]:
        """A sequence of nodes; ``level`` is how deep loops are, ``depth`` everything else."""
        out: list[Node] = []
        rng = self.rng
        while size > 0:
            kind = rng.random()
            size -= 1
            if kind < 0.06:
                out.append(self.data(self.constant()))
            elif kind < 0.55:
                out.append(self.data(self.simple()))
            elif kind < 0.67:
                out.append(self.data(self.access()))
            elif kind < 0.71:
                out.append(self.data(self.control()))
            elif kind < 0.75 and looping:
                # Seldom out of the outermost one, which would be the end.
                ends = rng.random() < (0.03 if self.main and level == 1 else 0.3)
                out.append(self.node("leave", data=self.branch(), values="end" if ends else "tail"))
            elif kind < 0.80 and depth:
                inner = self.block(rng.randrange(1, 8), depth - 1, level, callees, looping)
                size -= len(inner)
                out.append(self.node("if", inner, self.branch()))
            elif kind < 0.85 and depth and level < 2:
                inner = self.block(rng.randrange(1, 12), depth - 1, level + 1, callees, True)
                size -= len(inner)
                count = rng.choice((1, 2, 3, 5, 10, 30, 100, 300))
                style = rng.randrange(4) | rng.randrange(3) << 2
                out.append(self.node("loop", inner, values=(self.counters[level], count, style)))
            elif kind < 0.90 and callees:
                name = rng.choice(callees)
                number = FIRST_VOLATILE + int(name[1:]) if name[0] == "v" else int(name[1:])
                how = rng.choice(("jal", "far", "short", "table"))
                out.append(self.node("call", values=(name, how, self.free(), number)))
            elif kind < 0.92 and depth:
                count = rng.choice((2, 4))
                cases = tuple(
                    self.node("if", self.block(rng.randrange(1, 5), 0, level, callees, looping), self.branch())
                    for _ in range(count)
                )
                size -= 3 * count
                a, b = rng.sample(FREE, 2)
                self.switches += 1
                chooser = rng.choice((*FREE, *COUNTERS))
                out.append(self.node("switch", cases, values=(a, b, chooser, self.switches)))
            elif kind < 0.95 and self.targets and rng.random() < self.patching:
                out.append(self.patch())
            elif kind < 0.96 and self.translated and rng.random() < self.remapping:
                out.append(self.node("data", data=self.remap()))
            elif kind > 0.975 and self.main and depth and size > 3 and self.modes < 6:
                out.append(self.mode_change(size, depth, level, callees))
                size -= len(out[-1].body)
        return tuple(out)

    counters: tuple[int, ...] = COUNTERS
    switches: int = 0
    modes: int = 0
    main: bool = False
    patching: float = 0.3
    remapping: float = 0.3
    exchanging: bool = False
    fence: int = 0

    def mode_change(self, size: int, depth: int, level: int, callees: list[str]) -> Node:
        before = self.mode
        self.mode = self.rng.choice([m for m in (0, 1, 3) if m != before])
        self.modes += 1
        after = self.mode
        body = self.block(self.rng.randrange(2, max(4, size)), depth - 1, level, callees, False)
        self.mode = before
        return self.node("mode", body, values=(before, after))

    def patch(self) -> Node:
        rng = self.rng
        target = rng.choice(self.targets[-12:] if rng.random() < 0.7 else self.targets)
        length = len(target.data)
        new = self.simple(length)
        old, word = (int.from_bytes(d, "little") for d in (target.data, new))
        a, b, c = rng.sample(FREE, 3)
        distance = rng.choice((0, 0, 0, 0x2000_0000, -0x2000_0000)) if self.translated else 0
        how = rng.choice(("toggle", "toggle", "halves", "whole", "atomic"))
        # A toggled target must be changed by nothing else, or it becomes what nobody has chosen.
        if target.id in self.patched:
            how = "whole" if how == "toggle" or target.id in self.toggled else how
            if target.id in self.toggled:
                return self.data(self.simple())
        if how == "toggle":
            self.toggled.add(target.id)
        self.patched.add(target.id)
        data = struct.pack("<II", old, word)
        return self.node("patch", data=data, values=(target.id, how, a, b, c, distance, int(rng.random() < 0.4)))

    patched: set[int] = field(default_factory=set)
    toggled: set[int] = field(default_factory=set)

    def volatile(self) -> tuple[Function, ...]:
        """One of two contents of the volatile pages: same places, same lengths where it may change at any moment."""
        rng = self.rng
        four = lambda: self.node("data", data=self.simple(4))  # noqa: E731
        loop = lambda body, count: self.node("loop", body, values=(VOLATILE_COUNTER, count, 0))  # noqa: E731
        mixed = [self.node("data", data=rng.choice((self.simple, self.access))()) for _ in range(rng.randrange(2, 15))]
        functions = [Function("v0", tuple(mixed))]
        mixed = [self.node("data", data=rng.choice((self.simple, self.access))()) for _ in range(rng.randrange(2, 15))]
        functions.append(Function("v1", (loop(tuple(mixed), rng.randrange(1, 20)),)))
        body = [four() for _ in range(3)]
        if self.exchanging:
            body += [self.node("data", data=self.exchange())]
        functions.append(Function("v2", (loop((*body, four(), four()), rng.randrange(1, 4)),)))
        common = self.node("data", data=ins("addi", rd=5, rs1=5, imm=rng.randrange(-2048, 2048)))
        body = [*(four() for _ in range(CROSSING)), common, *(four() for _ in range(5))]
        functions.append(Function("v3", (loop(tuple(body), rng.randrange(1, 30)),)))
        return tuple(functions)


def _values(data: bytes) -> dict[str, int]:
    word = int.from_bytes(data, "little")
    found = rv64.decode(word) if data else None
    return found.operand_values(word) if found else {}


def pmp_range(rng: random.Random) -> int:
    """For pmpaddr: a naturally aligned range in the data, of 8 bytes up to two pages."""
    return (RAM + DATA * PAGE >> 2) + (rng.randrange(DATA_PAGES) << 10 & ~0x3FF) | rng.choice(
        (0, 1, 3, 0xF, 0x1FF, 0x1FF, 0x3FF, 0x2F, 0x17F)
    )


def make_program(seed: int, budget: int = 20_000) -> Program:
    """The program of a seed, which executes about ``budget`` instructions, handlers not counted."""
    rng = random.Random(f"{seed} {budget}")
    translated = rng.random() < 0.6
    maker = Maker(rng, budget, translated, rng.choice((3, 1, 0, 1, 0)), rng.random() < 0.2)
    mode = maker.mode
    for name in GROUPS:
        if name not in ("load", "store", "atomic", "reserve"):
            maker.weights[name] = {"plain": 6.0, "float": 2.0}.get(name, 1.0) * rng.choice((0.1, 1, 1, 3))
    maker.patching = rng.choice((0, 0, 0.3, 1))
    maker.remapping = rng.choice((0, 0.3, 1))
    maker.exchanging = translated and rng.random() < 0.5
    maker.fence = rng.choice((0, 7 << 15))
    functions: list[Function] = []
    volatile = [f"v{n}" for n in range(4)]
    count = rng.randrange(1, 7)
    for number in range(count, 0, -1):
        # Functions call those behind them; the deeper, the other the loops' counters.
        leaf = number > count // 2
        maker.counters = COUNTERS[3:] * 2 if leaf else COUNTERS[2:3] * 2
        callees = volatile if leaf else [*volatile, *(f.name for f in functions if f.leaf)]
        body = maker.block(rng.randrange(3, 40), 2, 1, callees, False)
        functions.insert(0, Function(f"f{number}", body, rng.choice((0, 0, 2, 100, 1500)), leaf))
    maker.counters, maker.main = COUNTERS[:2], True
    inner = maker.block(rng.randrange(10, 80), 3, 1, [*volatile, *(f.name for f in functions)], True)
    outer = maker.node("loop", inner, values=(COUNTERS[0], _LONGEST, rng.randrange(12)))
    functions.insert(0, Function("f0", (outer,)))
    maker.main = False
    contents = (maker.volatile(), maker.volatile())
    image = bytearray(RAM_PAGES * PAGE)
    image[DATA * PAGE : (DATA + DATA_PAGES) * PAGE] = rng.randbytes(DATA_PAGES * PAGE)
    image[HANDLERS * PAGE : HANDLERS * PAGE + len(HANDLER_CODE)] = HANDLER_CODE
    values = [rng.choice((integer, floating, floating))(rng) for _ in range(CONSTANT_COUNT)]
    struct.pack_into(f"<{CONSTANT_COUNT}Q", image, CONSTANTS, *values)
    write_tables(rng, image)
    period = rng.choice((150, 400, 3000)) if maker.loosely else 1 << 62
    struct.pack_into("<QQ", image, SYSTEM * PAGE, 0, period)
    start = rng.choice((0, 2, PAGE - 6, PAGE - 400, rng.randrange(0, PAGE, 2)))
    state = _random_state(rng, maker.loosely, translated, mode, RAM + CODE * PAGE + start)
    program = Program(
        seed, tuple(functions), bytes(image), state, start, contents, mode, translated, maker.loosely
    )
    assert start + len(program.link()[0]) < CODE_PAGES * PAGE
    return replace(program, counts=_fitting_counts(program, budget))


def _random_state(rng: random.Random, loosely: bool, translated: bool, mode: int, pc: int) -> bytes:
    kind: Any = rv64.state_type
    state = kind(bytearray(kind.size))
    state.reset()
    for n in FREE:
        state.x[n] = integer(rng)
    for n in range(32):
        state.f[n] = floating(rng)
    window = WINDOWS[mode] if translated else RAM
    state.pc = pc - RAM + window
    state.x[BASE], state.x[SP] = window, window + STACK_TOP
    state.fflags, state.frm = rng.randrange(32), rng.choice((0, 0, 1, 2, 3, 4, 5))
    state.privilege = mode
    status = _STATUS & ~(3 << 13) & rng.getrandbits(32)
    state.mstatus = status | rng.choice((1, 3, 3, 3)) << 13 | rng.choice((0, 8, 2, 10))
    state.medeleg = rng.choice((0, 0xB3F7, rng.getrandbits(16) & 0xB3F7))
    state.mideleg = rng.choice((0, 2))
    state.mtvec = RAM
    state.stvec = (WINDOWS[1] if translated else RAM) + SUPERVISOR_HANDLER
    state.mcounteren, state.scounteren = rng.choice((0, 7)), rng.choice((0, 7))
    state.menvcfg = 1 << 63 | rng.choice((0, 1 << 61))
    state.mie = rng.choice((0, 0x20, 0x222, 2))
    state.satp = SATP[0] if translated else 0
    if loosely:
        state.mstatus = int(state.mstatus) | 8
        state.mie = 0x20
        state.stimecmp = rng.randrange(3000)
    state.pmpcfg[0], state.pmpaddr[0] = rng.choice((0, 0, 0x18, 0x19, 0x1B, 0x1F, 0x99)), pmp_range(rng)
    # Rules that allow everything, but not for a whole page of code alike.
    some = rng.choice((CODE, CODE + 1, VOLATILE, HANDLERS)) if rng.random() < 0.2 else DATA
    state.pmpcfg[1], state.pmpaddr[1] = 0x1F, (RAM + some * PAGE >> 2) | rng.choice((0, 7, 0x1F, 0xFF))
    state.pmpcfg[2], state.pmpaddr[2] = 0x1F, (1 << 54) - 1
    state.pmp_used = 3
    return bytes(state.block)


def _fitting_counts(program: Program, budget: int) -> dict[int, int]:
    """How often loops go around, so that the program executes about ``budget`` instructions."""
    functions = {f.name: f for f in program.functions} | {f.name: f for f in program.volatile[0]}
    everything = [n for f in program.functions for node in f.body for n in node.walk()]
    counts = {n.id: n.values[1] for n in everything if n.kind == "loop"}
    known: dict[str, float] = {}

    def cost(body: tuple[Node, ...]) -> float:
        total = 0.0
        for node in body:
            own = len(node.data) / 4
            if node.kind == "loop":
                own = (cost(node.body) + 2) * counts.get(node.id, node.values[1])
            elif node.kind == "call":
                name = node.values[0]
                if name not in known:
                    known[name] = cost(functions[name].body) + 8
                own = known[name]
            elif node.kind == "switch":
                own = 10 + cost(node.body) / len(node.body)
            elif node.kind == "patch":
                own = 15
            elif node.body:
                own += cost(node.body) + (60 if node.kind == "mode" else 0)
            total += own
        return total

    outer = program.functions[0].body[0]
    while True:
        known.clear()
        once = cost(outer.body)
        largest = max((i for i in counts if i != outer.id), key=lambda i: counts[i], default=None)
        if once * 5 <= budget or largest is None or counts[largest] <= 2:
            counts[outer.id] = max(1, min(_LONGEST, int(budget / max(once, 1))))
            return counts
        counts[largest] //= 2
