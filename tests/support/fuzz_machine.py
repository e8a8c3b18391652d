"""The machine that random programs (`program_maker`) run on: memory, page tables, trap handlers, and the tiers."""

from __future__ import annotations

import ctypes
import random
import struct
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from polyvisor.adl import Registers
from polyvisor.adl.assembler import assemble
from polyvisor.dataclass import replace
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu, Exit
from polyvisor.engine.executor import ReferenceExecutor
from polyvisor.engine.hooks.declare import Hook, State
from polyvisor.engine.hooks.install import HookPoint
from polyvisor.engine.hooks.states import HookStates, Installed
from polyvisor.engine.layout import SAMPLES
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.regions.backend import SOME
from polyvisor.engine.regions.compile import Missing, Region, RegionCompiler, Request
from polyvisor.engine.regions.manager import Regions
from polyvisor.isa.riscv import rv64

from .fuzz import DEVICE, PAGE, RAM_END, Probe, Watchdog

RAM = 0x2000_0000
# What is where in RAM, by page; the pages between are not mapped. BACKING has other code for the VOLATILE pages.
HANDLERS, JUMPS, SYSTEM, STACK, CODE, VOLATILE, BACKING, DATA, TABLES = 0, 1, 2, 4, 6, 16, 18, 22, 32
CODE_PAGES, VOLATILE_PAGES, DATA_PAGES, RAM_PAGES = 9, 2, 8, 40
ROOTS, MIDDLES, LEAVES = TABLES, TABLES + 2, TABLES + 4  # two of each, and of the leaves two per window

# Where RAM is seen from machine, supervisor and user mode, with translation. In all windows but the first, data pages
# are mapped at random.
WINDOWS = {3: RAM, 1: 0x4000_0000, 0: 0x6000_0000}
LARGE = 0x20_0000  # from a window's base: all of RAM by one entry, to be read only
_V, _R, _W, _X, _U, _A, _D = 1, 2, 4, 8, 16, 64, 128
_USUAL = _V | _R | _W | _A | _D
SATP = tuple(8 << 60 | (RAM >> 12) + ROOTS + n for n in range(2))

# Registers that random instructions do not write: ra, sp, the counter of loops in volatile functions, counters of
# loops, request to change the mode, base of the window, supervisor's and machine's handlers, what was trapped, cursor.
RA, SP, VOLATILE_COUNTER, COUNTERS, REQUEST, BASE, TRAPPED, CURSOR = 1, 2, 3, (18, 19, 20, 21), 22, 23, (28, 29), 30
FREE = (4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 31)
SUPERVISOR_HANDLER = 0x800
STACK_TOP = (STACK + 1) * PAGE - 640

# Every trap goes into a checksum; then the program goes on behind the instruction, or, where none could be fetched,
# at ra. A breakpoint with a request in s6 changes the mode. What interrupts do does not depend on when they come.
_MACHINE = f"""
    csrr s10, mcause
    bltz s10, interrupt
    slli s11, t3, 5
    sub t3, s11, t3
    add t3, t3, s10
    csrr s11, mtval
    xor t3, t3, s11
    csrr s11, mepc
    rori t3, t3, 13
    add t3, t3, s11
    addi s11, s10, -12
    beqz s11, unfetched
    sltiu s11, s10, 2
    bnez s11, unfetched
    bnez s6, change
    csrr s10, mepc
    lui s11, 0x20  # MPRV
    csrrs s11, mstatus, s11
    lhu s10, 0(s10)
    csrw mstatus, s11
    andi s10, s10, 3
    addi s10, s10, -3
    seqz s10, s10
    slli s10, s10, 1
    csrr s11, mepc
    add s10, s10, s11
    addi s10, s10, 2
    csrw mepc, s10
    mret
unfetched:
    csrw mepc, ra
    mret
change:
    lui s10, 2
    addi s10, s10, -2048  # MPP
    csrc mstatus, s10
    andi s11, s6, 3
    slli s11, s11, 11
    csrs mstatus, s11
    andi s6, s6, -8
    csrr s11, mepc
    add s11, s11, s6
    addi s11, s11, 4
    csrw mepc, s11
    li s6, 0
    mret
interrupt:
    lui s11, {(RAM >> 12) + SYSTEM:#x}
    ld s10, 0(s11)
    addi s10, s10, 1
    sd s10, 0(s11)
    ld s10, 8(s11)
    csrr s11, time
    add s10, s10, s11
    csrw stimecmp, s10
    csrw mip, zero
    mret
"""
INTERRUPT_COST = 12  # instructions that one interrupt takes in machine mode
_SUPERVISOR = """
    csrr s8, scause
    bltz s8, interrupt
    slli s9, t4, 5
    sub t4, s9, t4
    add t4, t4, s8
    csrr s9, stval
    xor t4, t4, s9
    csrr s9, sepc
    rori t4, t4, 11
    add t4, t4, s9
    addi s9, s8, -12
    beqz s9, unfetched
    sltiu s9, s8, 2
    bnez s9, unfetched
    csrr s8, sepc
    lui s9, 0x40  # SUM
    csrrs s9, sstatus, s9
    lhu s8, 0(s8)
    csrw sstatus, s9
    andi s8, s8, 3
    addi s8, s8, -3
    seqz s8, s8
    slli s8, s8, 1
    csrr s9, sepc
    add s8, s8, s9
    addi s8, s8, 2
    csrw sepc, s8
    sret
unfetched:
    csrw sepc, ra
    sret
interrupt:
    addi t4, t4, 1
    csrci sip, 2
    sret
"""
HANDLER_CODE = assemble(rv64, _MACHINE).bytes.ljust(SUPERVISOR_HANDLER, b"\0") + assemble(rv64, _SUPERVISOR).bytes


def leaf_address(root: int, window: int, page: int) -> int:
    """From RAM's start: the page table entry of a page of a window (0 or 1)."""
    return (LEAVES + 2 * root + (window == 0)) * PAGE + 8 * page


def data_entry(rng: random.Random, window: int) -> int:
    """A random entry for a page of data."""
    kind = rng.random()
    physical = RAM + rng.randrange(DATA, DATA + DATA_PAGES) * PAGE
    if kind < 0.04:
        physical = DEVICE
    elif kind < 0.06:
        physical = RAM_END + (1 << 28)
    flags = _USUAL | (_U if rng.random() < (0.8 if window == 0 else 0.15) else 0)
    if kind > 0.7:
        for bit in (_R, _W, _A, _D, _A, _D, _V):
            if rng.random() < 0.2:
                flags &= ~bit
    return physical >> 12 << 10 | flags


def code_entry(rng: random.Random, window: int, page: int) -> int:
    """A random entry for a volatile page: one of its two contents. Trap handlers read what could be executed."""
    physical = RAM + (rng.choice((VOLATILE, BACKING)) + page) * PAGE
    flags = _USUAL | _X | (_U if window == 0 else 0)
    kind = rng.random()
    if kind < 0.2:
        flags ^= rng.choice((_X, _V, _A, _U))
    elif kind < 0.4:
        flags &= ~rng.choice((_W, _D))
    return physical >> 12 << 10 | flags


def write_tables(rng: random.Random, image: bytearray) -> None:
    """Two sets of Sv39 tables: code, stack and tables as they are; data at random."""

    def put(page: int, index: int, value: int) -> None:
        struct.pack_into("<Q", image, page * PAGE + 8 * index, value)

    guards = {SYSTEM, STACK - 1, STACK + 1, VOLATILE - 1, DATA - 2, DATA - 1, TABLES - 2, TABLES - 1}
    for root in range(2):
        put(ROOTS + root, 1, (RAM >> 12) + MIDDLES + root << 10 | _V)
        for window in (0, 1):
            leaves = LEAVES + 2 * root + (window == 0)
            first = WINDOWS[window] >> 21 & 511
            put(MIDDLES + root, first, (RAM >> 12) + leaves << 10 | _V)
            put(MIDDLES + root, first + 1, RAM >> 12 << 10 | _V | _R | _A | (_U if window == 0 else 0))
            for page in range(RAM_PAGES):
                entry = (RAM >> 12) + page << 10 | _USUAL | _X | (_U if window == 0 else 0)
                if page in guards or (window == 0 and (page == HANDLERS or page >= TABLES)):
                    entry = 0
                elif DATA <= page < DATA + DATA_PAGES:
                    entry = data_entry(rng, window)
                struct.pack_into("<Q", image, leaves * PAGE + 8 * page, entry)


@dataclass
class Load:
    """What a machine starts from. ``heads`` are where loops and functions begin, from RAM's start."""

    image: bytes
    state: bytes
    heads: Sequence[int] = ()


Prepare = Callable[[Cpu, Sequence[int]], None]


class Tier:
    """A machine of one hart, run by one tier of the engine."""

    def __init__(self, name: str, make: Callable[[Memory], Any]) -> None:
        self.name = name
        self.probe = Probe()
        self.memory = Memory()
        self.memory.add_ram(RAM, RAM_PAGES * PAGE)
        self.memory.add_device(DEVICE, PAGE, self.probe)
        self.executor = make(self.memory)
        self.over = False
        self.heads: Sequence[int] = ()
        self.hooks: HookStates | None = None
        self._point: HookPoint | None = None

    def hook(self, state: type[State] | None, functions: Sequence[tuple[Hook, range | None]] = ()) -> None:
        """Have these hooks, with a state of this type, and no others. Their counts go on where they were."""
        if self._point is None:
            self._point = HookPoint(rv64, [self.executor], self._regions())
        if state is None:
            self._point.apply([])
            return
        if self.hooks is None:
            self.hooks = HookStates(state, 1, self.name)
        installed = Installed(self.hooks)
        for function, where in functions:
            installed.add(function.kind, function, None, where)
        self._point.apply([installed])

    def _regions(self) -> Regions | None:
        return None

    def close(self) -> None:
        self.memory.close()

    @property
    def retired(self) -> int:
        return int(self.executor.retired)

    @property
    def state(self) -> bytes:
        return bytes(self.executor.state.block)[: rv64.state_type.size]  # type: ignore[union-attr]

    def ram(self) -> bytes:
        return self.memory.read(RAM, RAM_PAGES * PAGE)

    def load(self, given: Load) -> None:
        """Start anew from there."""
        self._forget()
        self.executor.state.block[: len(given.state)] = given.state
        before = self.ram()
        for at in range(0, len(before), PAGE):
            if before[at : at + PAGE] != given.image[at : at + PAGE]:
                self.memory.write(RAM + at, given.image[at : at + PAGE])
        self.probe.log = 0
        self.over = False
        self.heads = given.heads
        if self.hooks is not None:
            self.hooks.reset()
        self.executor.flush()

    def _forget(self) -> None:
        self.executor.view.retired = 0
        self.executor.view.reason = None

    def run(self, until: int) -> str:
        """Run until that many instructions are executed; more, if there is no jump. Gives why it stopped early."""
        while not self.over and self.retired < until:
            exit = self._run(until - self.retired)
            self.over = exit.kind == "leave"
            if exit.kind not in ("leave", "limit"):
                return exit.kind
        return ""

    def _run(self, instructions: int) -> Exit:
        # Where every step is a trap, nothing is ever executed.
        for _ in range(4 * instructions + 100):
            exit: Exit = self.executor.step()
            if exit.kind == "leave":
                return exit
            instructions -= 1
            if instructions <= 0:
                return Exit("limit")
        return Exit("stop")

    def step(self) -> None:
        self.over = self.executor.step().kind == "leave"


class NativeTier(Tier):
    """A machine run by native code. ``prepare`` is called before each slice of a run."""

    executor: Cpu

    def __init__(self, name: str, *, pages: int = 64, slice: int | None = None, prepare: Prepare | None = None) -> None:
        code = native_code(rv64)
        super().__init__(name, lambda m: Cpu(code, m, CodePages(code, m, pages), virtual=True))
        self.slice, self.prepare = slice, prepare
        self.watch = Watchdog(self.executor, 20)

    def close(self) -> None:
        self.watch.end()
        super().close()

    def _forget(self) -> None:
        engine = self.executor.engine
        engine.retired = engine.left = engine.resuming = 0
        if self.slice is not None:
            engine.slice = self.slice

    def _regions(self) -> Regions | None:
        return _regions_of(self.executor)

    def records(self) -> list[int]:
        """Addresses of the records of the program's heads, as far as their pages are decoded."""
        pages, layout = self.executor.pages, self.executor.pages.layout
        found = []
        for head in self.heads:
            slots = pages.descriptors[3]
            slot = ctypes.c_uint64.from_address(slots + 8 * (head // PAGE)).value
            if slot:
                found.append(slot + ((head % PAGE) << layout.shift))
        return found

    def _run(self, instructions: int) -> Exit:
        if self.prepare is not None:
            self.prepare(self.executor, self.records())
        with self.watch:
            return self.executor.run(instructions)


    def turn(self, length: int, rng: random.Random | None = None) -> str:
        """Execute a turn of so many instructions; with ``rng``, with interruptions. Gives why it was given up."""
        cpu = self.executor
        cpu.begin_turn(self.retired + length, 0)
        for _ in range(10_000):
            if rng is not None:
                kind = rng.randrange(4)
                for _ in range(rng.randrange(12) if kind == 0 else 0):
                    if cpu.turn_is_over or self.over:
                        break
                    self.over = cpu.step().kind == "leave"
                if self.over:
                    return ""
                if cpu.turn_is_over:
                    return ""
                if self.prepare is not None:
                    self.prepare(cpu, self.records())
                cpu.break_at(self.retired + rng.randrange(1, 2 * length) if kind == 1 else None)
            with self.watch:
                exit = cpu.run_turn()
            cpu.break_at(None)
            self.over = exit.kind == "leave"
            if exit.kind != "stop":
                return "" if exit.kind in ("leave", "limit") else exit.kind
        return "no end"


def _restless() -> Prepare:
    """Forgets, in turn, translations, permissions to write, and what was decoded."""
    rng = random.Random(1)

    def prepare(cpu: Cpu, records: Sequence[int]) -> None:
        kind = rng.randrange(6)
        if kind == 0:
            cpu.drop_code()
        elif kind == 1:
            cpu.drop_writes()
        elif kind == 2:
            cpu.pages.decode_again(cpu)

    return prepare


def _compiling() -> Prepare:
    """Compiles regions at places where execution was sampled, of various sizes."""
    rng = random.Random(2)
    compilers: dict[Any, RegionCompiler] = {}

    def prepare(cpu: Cpu, records: Sequence[int]) -> None:
        regions, code = _regions_of(cpu), cpu.code
        if code not in compilers:
            compilers[code] = RegionCompiler(code.architecture, code.layout, code.compiler, code.hooks)
        compiler = compilers[code]
        quick = rng.random() < 0.7
        limit = rng.choice((4, 20, 60))
        for _ in range(rng.choice((0, 1, 2))):
            number = rng.randrange(int(cpu.engine.sample_count) or 1) % SAMPLES
            record, address = int(cpu.engine.sample_records[number]), int(cpu.engine.sample_addresses[number])
            if record:
                regions.compile_now(
                    record, address, cpu, lambda r: compiler.compile(replace(r, limit=limit, quick=quick))
                )

    return prepare


def _regions_of(cpu: Cpu) -> Regions:
    if cpu.pages.on_discard is None:
        cpu.regions = Regions(cpu.code, cpu.pages, _NoBackend())  # type: ignore[attr-defined]
    return cpu.regions  # type: ignore[attr-defined,no-any-return]


class _NoBackend:
    """Compiles nothing by itself."""

    pressure = SOME

    def room(self, quick: bool) -> int:
        return 0

    def submit(self, request: Request, done: Callable[[Region | Missing | None], None]) -> None:
        done(None)


def make_tier(name: str) -> Tier:
    """A new machine in the tier of that name.

    ``restless`` is the interpreter with few decoded pages, which looks around often and forgets things.
    """
    if name not in TIERS:
        raise ValueError(f"no tier {name!r}: there are {', '.join(TIERS)}")
    return TIERS[name]()


# A tier that compiles more than one instruction at a time is a `NativeTier` whose ``prepare`` does so at the records.
TIERS: dict[str, Callable[[], Tier]] = {
    "reference": lambda: Tier("reference", lambda memory: ReferenceExecutor(rv64, memory, virtual=True)),
    "interpreter": lambda: NativeTier("interpreter"),
    "restless": lambda: NativeTier("restless", pages=5, slice=61, prepare=_restless()),
    "jit": lambda: NativeTier("jit", slice=53, prepare=_compiling()),
}


# Comparing

# What depends on when interrupts came: their handler's registers, the trap they entered, and when the next one is due.
_LOOSE_MEMBERS = {"mepc": 0, "mcause": 0, "mtval": 0, "stimecmp": 0, "mstatus": ~(1 << 7 | 3 << 11)}
_LOOSE_REGISTERS = (26, 27)


def differences(a: Tier, b: Tier, loosely: bool = False, memory: bool = True) -> str:
    """What differs between two machines; empty if nothing does."""
    states, rams = [a.state, b.state], [a.ram(), b.ram()] if memory else [b"", b""]
    counts = [a.retired, b.retired]
    if loosely:
        states = [_without_interrupts(s) for s in states]
        for n, ram in enumerate(rams):
            counts[n] -= INTERRUPT_COST * struct.unpack_from("<Q", ram, SYSTEM * PAGE)[0]
        rams = [r[: SYSTEM * PAGE] + r[(SYSTEM + 1) * PAGE :] for r in rams]
    found = _state_differences(a.name, b.name, *states) if states[0] != states[1] else []
    if counts[0] != counts[1]:
        found.append(f"instructions executed: {a.name} {counts[0]}, {b.name} {counts[1]}")
    if rams[0] != rams[1]:
        where = [i for i in range(len(rams[0])) if rams[0][i] != rams[1][i]]
        found += [f"RAM + {i:#x}: {a.name} {rams[0][i]:#x}, {b.name} {rams[1][i]:#x}" for i in where[:8]]
    if a.probe.log != b.probe.log:
        found.append("the devices saw different accesses")
    if a.hooks is not None and b.hooks is not None and not loosely:
        for name in a.hooks.harts[0].members:
            pair = [t.hooks.read(name) for t in (a, b)]  # type: ignore[union-attr]
            if pair[0] != pair[1]:
                found.append(f"hooks' {name}: {a.name} {pair[0]}, {b.name} {pair[1]}")
    if a.over != b.over:
        found.append(f"has come to its end: {a.name} {a.over}, {b.name} {b.over}")
    return "\n".join(found)


def describe(tier: Tier) -> str:
    """A machine's whole state, without what is zero."""
    state: Any = tier.executor.state
    found = [f"executed={tier.retired}"]
    for name, member in rv64.state_type.members.items():  # type: ignore[union-attr]
        if isinstance(member, Registers):
            found += [f"{name}{n}={int(v):#x}" for n, v in enumerate(getattr(state, name)) if v]
        elif getattr(state, name):
            found.append(f"{name}={int(getattr(state, name)):#x}")
    return textwrap.fill(" ".join(found), 120, initial_indent=f"{tier.name}: ", subsequent_indent="  ")


def _without_interrupts(data: bytes) -> bytes:
    state: Any = rv64.state_type(bytearray(data))  # type: ignore[misc]
    for name, mask in _LOOSE_MEMBERS.items():
        setattr(state, name, int(getattr(state, name)) & mask)
    for n in _LOOSE_REGISTERS:
        state.x[n] = 0
    return bytes(state.block)


def _state_differences(a: str, b: str, mine: bytes, theirs: bytes) -> list[str]:
    kind = rv64.state_type
    assert kind is not None
    x, y = kind(bytearray(mine)), kind(bytearray(theirs))
    found = []
    for name, member in kind.members.items():
        if isinstance(member, Registers):
            pairs = [(f"{name}[{n}]", getattr(x, name)[n], getattr(y, name)[n]) for n in range(member.count)]
        else:
            pairs = [(name, getattr(x, name), getattr(y, name))]
        found += [f"{what}: {a} {int(v):#x}, {b} {int(w):#x}" for what, v, w in pairs if v != w]
    return found
