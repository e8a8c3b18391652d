"""Hooks on a bare CPU: what they are told, in each tier; what goes wrong in them; what they must not do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from polyvisor import hooks
from polyvisor.adl import DescriptionError
from polyvisor.adl.assembler import assemble
from polyvisor.dataclass import replace
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.executor import ReferenceExecutor
from polyvisor.engine.hooks.install import HookPoint
from polyvisor.engine.hooks.states import HookError, HookStates, Installed
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.regions.backend import SOME
from polyvisor.engine.regions.compile import RegionCompiler
from polyvisor.engine.regions.manager import Regions
from polyvisor.hooks import Field, Maximum, Minimum, Registers, Ring, function, i64, u8, u32, u64
from polyvisor.isa.riscv import rv64

BASE = 0x8000_0000
DATA = BASE + 0x10000
TIERS = ("reference", "interpreter", "jit")


class Idle:
    """A backend that compiles nothing by itself."""

    pressure = SOME

    def room(self, quick: bool) -> int:
        return 0

    def submit(self, request, done) -> None:
        done(None)


class Device:
    """Two registers."""

    def read(self, offset: int, size: int) -> int:
        return 0x1234

    def write(self, offset: int, size: int, value: int) -> None:
        pass


class Bench:
    """One CPU with a program, in a tier, and hooks. ``s2`` points to data."""

    def __init__(self, tier: str, text: str) -> None:
        self.memory = Memory()
        self.memory.add_ram(BASE, 2 << 20)
        self.memory.add_device(0x1000_0000, 4096, Device())
        whole = f"    li s2, {DATA:#x}\n{text}\nstop:\n    wfi\n"
        self.program = assemble(rv64, whole, base=BASE)
        self.memory.write(BASE, bytes(self.program))
        self.regions: Regions | None = None
        self.cpu: Any
        if tier == "reference":
            self.cpu = ReferenceExecutor(rv64, self.memory)
        else:
            code = native_code(rv64)
            self.cpu = Cpu(code, self.memory, CodePages(code, self.memory, 64))
            if tier == "jit":
                self.cpu.engine.slice = 50
                self.regions = Regions(code, self.cpu.pages, Idle())
                self.regions.watch(self.cpu)
        self.cpu.state.pc = BASE
        self.cpu.state.mstatus = 3 << 13
        self.cpu.state.mtvec = self.program.symbols.get("handler", BASE)
        self.point = HookPoint(rv64, [self.cpu], self.regions)
        self.installed: list[Installed] = []

    def add(self, *functions, state=None, at: range | None = None) -> HookStates:
        states = HookStates(state, 1, "test")
        installed = Installed(states)
        for each in functions:
            if isinstance(each, hooks.Hook):
                installed.add(each.kind, each, None, at)
            else:
                installed.add(each[0], None, each[1], at)
        self.point.apply([*self.installed, installed])
        self.installed.append(installed)
        return states

    def remove(self, states: HookStates) -> None:
        self.installed = [each for each in self.installed if each.states is not states]
        self.point.apply(self.installed)

    def compile(self) -> None:
        """A region where the last sample was taken."""
        assert self.regions is not None
        engine, code = self.cpu.engine, self.regions.code
        number = (int(engine.sample_count) - 1) % 256
        record, address = int(engine.sample_records[number]), int(engine.sample_addresses[number])
        compiler = RegionCompiler(rv64, code.layout, code.compiler, code.hooks)
        assert self.regions.compile_now(record, address, self.cpu, compiler.compile)

    def run(self) -> None:
        """To the end; in the JIT, mostly in regions."""
        if self.regions is not None:
            self.cpu.run(400)
            self.compile()
        found = self.cpu.run(1_000_000)
        assert (found.kind, found.reason) == ("leave", "wfi")

    def close(self) -> None:
        if self.regions is not None:
            self.regions.close()
        self.memory.close()


@pytest.fixture(params=TIERS)
def bench(request):
    made = []

    def make(text: str) -> Bench:
        made.append(Bench(request.param, text))
        return made[-1]

    yield make
    for each in made:
        each.close()


def loop(body: str, turns: int = 500) -> str:
    return f"    li s3, {turns}\nloop:\n{body}\n    addi s3, s3, -1\n    bnez s3, loop\n"


class Accesses(hooks.State):
    count = Field(u64)
    last = Ring(u64, 8)
    sizes = Registers(u32, 9)


@hooks.on_write
def write(hook, address, value, size):
    hook.count += 1
    hook.sizes[size] += 1
    hook.last.append(address)
    hook.last.append(value)


@hooks.on_read
def read(hook, address, value, size):
    hook.count += 1
    hook.sizes[size] += 1
    hook.last.append(address)
    hook.last.append(value)


@pytest.mark.parametrize(
    ("access", "hook", "size", "last"),
    [
        ("sd s3, 0(s2)", write, 8, [DATA, 1]),
        ("sb s3, 7(s2)", write, 1, [DATA + 7, 1]),
        ("sw s3, 2(s2)", write, 4, [DATA + 2, 1]),
        ("sd s3, -4(s2)", write, 8, [DATA - 4, 1]),  # across a page's end: once
        ("sd s3, 0(s2)\n ld t0, -4(s2)", read, 8, [DATA - 4, 1 << 32]),
        ("sd s3, 0(s2)\n lbu t0, 0(s2)", read, 1, [DATA, 1]),
        ("sd s3, 0(s2)\n fld fa0, 0(s2)", read, 8, [DATA, 1]),
        ("amoadd.d t0, s3, (s2)", write, 8, [DATA, 500 * 501 // 2]),
        ("amomax.w t0, s3, (s2)", write, 4, [DATA, 500]),
        ("amoswap.d t0, s3, (s2)", read, 8, [DATA, 2]),
        ("lr.d t0, (s2)\n sc.d t1, s3, (s2)", write, 8, [DATA, 1]),
        ("lr.d t0, (s2)\n sd s3, 0(s2)\n sc.d t1, s3, (s2)", write, 8, [DATA, 1]),  # sc writes nothing
        ("li t2, 0x10000000\n sw s3, 4(t2)", write, 4, [0x1000_0004, 1]),
        ("li t2, 0x10000000\n lw t0, 4(t2)", read, 4, [0x1000_0004, 0x1234]),
    ],
)
def test_each_access_is_told_once(bench, access, hook, size, last):
    made = bench(loop(access))
    told = made.add(hook, state=Accesses)
    made.run()
    assert told.read("count") == told.read("sizes")[size] == 500
    if made.regions is not None and "-4" not in access and "t2" not in access:  # those leave regions
        assert int(made.cpu.engine.region_instructions) > 200
    assert told.read("last")[-2:] == last


def test_an_access_that_traps_is_not_told(bench):
    made = bench(
        loop("    sd s3, 0(zero)\n    ld t0, 0(zero)\n    sd s3, 0(s2)")
        + "    j stop\n    .balign 4\nhandler:\n    csrr t5, mepc\n    addi t5, t5, 4\n    csrw mepc, t5\n    mret\n"
    )
    writes, reads = made.add(write, state=Accesses), made.add(read, state=Accesses)
    traps = made.add(trap, state=Traps)
    made.run()
    assert writes.read("count") == 500
    assert reads.read("count") == 0
    assert traps.read("causes")[5] == traps.read("causes")[7] == 500  # load and store access faults
    assert traps.read("csrs") == 1000


class Traps(hooks.State):
    causes = Registers(u64, 64)
    csrs = Field(u64)


@hooks.on_trap
def trap(hook, cause, value):
    hook.causes[cause & 63] += 1
    hook.csrs += 1


class Steps(hooks.State):
    count = Field(u64)
    lowest = Minimum(u64)
    highest = Maximum(u64)
    sum = Field(u64)


@hooks.on_instruction
def step(hook, cpu, address):
    hook.count += 1
    hook.sum += cpu.x[19]
    if address > hook.highest:
        hook.highest = address
    if address < hook.lowest:
        hook.lowest = address


def test_each_instruction_is_told_once(bench):
    made = bench(loop("    sd s3, 0(s2)\n    ld t0, -4(s2)\n    fadd.d fa0, fa1, fa2\n    div t1, t0, s3"))
    told = made.add(step, state=Steps)
    made.run()
    assert told.read("count") == made.cpu.retired
    assert told.read("lowest") == BASE
    assert told.read("highest") == made.program.symbols["stop"]


def test_an_instruction_is_told_before_it_changes_registers(bench):
    made = bench(loop("    nop"))
    at = made.program.symbols["loop"] + 4
    assert made.program.symbols["loop"] % 4 == 0
    told = made.add(step, state=Steps, at=range(at, at + 1))
    made.run()
    assert told.read("count") == 500
    assert told.read("sum") == 500 * 501 // 2
    assert told.read("lowest") == told.read("highest") == at


class Blocks(hooks.State):
    count = Field(u64)
    back = Field(u64)
    sources = Ring(u64, 4)


@hooks.on_block
def block(hook, cpu, address):
    hook.count += 1
    if address < cpu.pc:
        hook.back += 1
    hook.sources.append(cpu.pc)


def test_blocks(bench):
    made = bench(loop("    beqz s3, stop\n    jal t0, sub\n    j after\nsub:\n    jr t0\nafter:"))
    told = made.add(block, state=Blocks)
    made.run()
    assert told.read("count") == 5 * 500
    assert told.read("back") == 499 + 500  # the loop, and the return
    assert told.read("sources")[-1] == made.program.symbols["stop"] - 4


class Csrs(hooks.State):
    numbers = Ring(u64, 16)


@hooks.on_csr_write
def csr_write(hook, csr, value):
    hook.numbers.append(u64(csr))
    hook.numbers.append(value)


def test_csr_writes(bench):
    made = bench(loop("    nop") + "    csrw mscratch, s2\n    csrr t0, mscratch\n    csrsi fcsr, 3\n    csrci fcsr, 1")
    told = made.add(csr_write, state=Csrs)
    made.run()
    assert told.read("numbers") == [0x340, DATA, 3, 3, 3, 2]


def test_ranges(bench):
    made = bench(loop("    sd s3, 0(s2)\n    sw s3, 8(s2)\n    sb s3, 15(s2)\n    sd s3, 20(s2)"))
    cases = {
        range(DATA, DATA + 1): 500, range(DATA + 7, DATA + 8): 500, range(DATA + 7, DATA + 9): 1000,
        range(DATA + 12, DATA + 15): 0, range(DATA + 12, DATA + 16): 500, range(DATA + 27, DATA + 28): 500,
        range(DATA + 28, DATA + 400): 0, range(BASE, 2**64): 2000, range(2**64): 2000,
    }
    told = {where: made.add(write, state=Accesses, at=where) for where in cases}
    made.run()
    assert {where: states.read("count") for where, states in told.items()} == cases


def test_added_and_removed_while_it_runs(bench):
    made = bench(loop("    sd s3, 0(s2)", 100_000))
    made.cpu.run(300)
    if made.regions is not None:
        made.compile()
        made.cpu.run(300)
    before = made.memory.read(DATA, 8)
    told = made.add(write, state=Accesses)
    made.cpu.run(3000)
    if made.regions is not None:
        made.compile()
        made.cpu.run(3000)
    made.remove(told)
    between = int.from_bytes(before, "little") - int.from_bytes(made.memory.read(DATA, 8), "little")
    assert told.read("count") == between > 900
    made.cpu.run(3000)
    assert told.read("count") == between
    assert int.from_bytes(made.memory.read(DATA, 8), "little") < int.from_bytes(before, "little") - between


def test_single_steps(bench):
    made = bench("    sd s2, 0(s2)\n    sw s2, -2(s2)\n    nop")
    steps, writes = made.add(step, state=Steps), made.add(write, state=Accesses)
    count = 0
    while made.cpu.step().kind == "step":
        count += 1
        assert steps.read("count") == count
    assert writes.read("count") == 2


def test_callbacks(bench):
    made = bench(loop("    sd s3, 0(s2)\n    sw s3, 16(s2)\n    mv a5, s3", 300))
    told: list[tuple[int, ...]] = []
    places = []

    def on_write(hart, *values):
        told.append(values)
        places.append((int(made.cpu.state.pc), int(made.cpu.state.x[19])))

    counted = made.add(write, state=Accesses)
    made.add(("write", on_write), at=range(DATA + 16, DATA + 20))
    steps: list[tuple[int, int]] = []
    at = made.program.symbols["loop"] + 8

    def on_step(hart, address):
        steps.append((address, int(made.cpu.state.x[15])))

    made.add(("instruction", on_step), at=range(at, at + 1))
    made.run()
    assert told == [(DATA + 16, n, 4) for n in range(300, 0, -1)]
    assert [x for _, x in places] == list(range(300, 0, -1))
    assert len({pc for pc, _ in places}) == 1
    assert steps == [(at, n) for n in [0, *range(300, 1, -1)]]
    assert counted.read("count") == 600


def test_a_callback_stops_behind_its_instruction(bench):
    made = bench(loop("    sd s3, 0(s2)\n    ld a5, 0(s2)\n    amoadd.d a6, s3, (s2)\n    mv a7, s3\n    nop", 300))
    stopping = [True]

    def on_access(hart, *values):
        if stopping[0]:
            made.cpu.stop_behind()

    place = made.program.symbols["loop"]
    made.add(("write", on_access), at=range(DATA, DATA + 1))
    made.add(("read", on_access), at=range(DATA, DATA + 1))
    seen = []
    for _ in range(30):
        assert made.cpu.run(1_000_000).kind == "stop"
        seen.append((int(made.cpu.state.pc) - place, int(made.cpu.state.x[19])))
    if made.regions is not None:
        made.compile()
        for _ in range(30):
            assert made.cpu.run(1_000_000).kind == "stop"
            seen.append((int(made.cpu.state.pc) - place, int(made.cpu.state.x[19])))
    assert seen == [(4 + 4 * (n % 3), 300 - n // 3) for n in range(len(seen))]
    # The instruction that a breakpoint is passed with, too.
    made.cpu.set_breakpoints([place])
    assert made.cpu.run(1_000_000).kind == "breakpoint"
    assert made.cpu.run(1_000_000).kind == "stop" and int(made.cpu.state.pc) == place + 4
    made.cpu.set_breakpoints([])
    # A single step ends there, and leaves no stop behind.
    assert [made.cpu.step().kind for _ in range(8)] == ["step"] * 8
    stopping[0] = False
    found = made.cpu.run(1_000_000)
    assert (found.kind, found.reason) == ("leave", "wfi")


def test_an_error_in_a_callback_ends_the_run(bench):
    made = bench(loop("    sd s3, 0(s2)"))

    def broken(hart, *values):
        raise ZeroDivisionError("mine")

    made.add(("write", broken))
    with pytest.raises(ZeroDivisionError, match="mine"):
        made.cpu.run()


# States


class Odd(hooks.State):
    table = Registers(u8, 4)
    total = Field(u64)
    least = Field(i64)


@function
def doubled(x: u64) -> u64:
    return x * 2


@hooks.on_write
def careless(hook, value, size):
    hook.total += u64(hook.table[value])
    hook.table[value] = u8(7)


@hooks.on_write
def divides(hook, value, address: u32):
    hook.total = hook.total + doubled(value) // (value - 1)
    hook.least = i64(value) // (hook.least - 1)


def test_an_index_that_is_not_there_harms_nothing(bench):
    made = bench(loop("    sd s3, 0(s2)", 200))
    told = made.add(careless, state=Odd)
    made.run()
    with pytest.raises(HookError, match=r"hook test, hart 0: table\[4\]: table has 4 places"):
        told.read("total")
    assert int(told.harts[0].total) == 0
    assert [int(v) for v in told.harts[0].table] == [0, 7, 7, 7]
    told.reset()
    assert told.read("table") == [0, 0, 0, 0]


def test_a_division_by_zero_harms_nothing(bench):
    made = bench(loop("    sd s3, 0(s2)", 200))
    told = made.add(divides, state=Odd)
    made.run()
    with pytest.raises(HookError, match="division by zero"):
        told.read("total")


def test_states_of_harts_are_put_together():
    class Several(hooks.State):
        added = Field(u8)
        most = Maximum(u32)
        least = Minimum(i64)
        row = Registers(u64, 3)
        ring = Ring(u64, 2)

    states = HookStates(Several, 3, "several")
    assert states.read("least") == 2**63 - 1
    for number, hart in enumerate(states.harts):
        hart.added = 100
        hart.most = number
        hart.least = -number
        hart.row[number] = number + 1
        for value in range(number + 1):
            hart.ring.append(10 * number + value)
    assert states.read("added") == 300 % 256
    assert states.read("most") == 2
    assert states.read("least") == -2
    assert states.read("row") == [1, 2, 3]
    assert states.read("ring") == [0, 10, 11, 21, 22]
    assert states.harts[2].ring.appended == 3
    assert len({address // 64 for address in states.addresses}) == 3
    with pytest.raises(AttributeError, match="several has no 'total'; it has added, most, least, row, ring"):
        states.read("total")


# What the language's compiler says


def _refused(hook, state=Odd) -> str:
    made = Bench("interpreter", "    nop")
    try:
        with pytest.raises(DescriptionError) as caught:
            made.add(hook, state=state)
        return str(caught.value)
    finally:
        made.close()


@hooks.on_write
def writes_a_register(hook, cpu):
    cpu.x[10] = u64(1)


@hooks.on_write
def writes_a_field(hook, cpu):
    cpu.mstatus = u64(1)


@hooks.on_write
def loads(hook, cpu, address):
    hook.total = cpu.load(u64, address)


@hooks.on_write
def any_register(hook, cpu, size):
    hook.total = cpu.x[size]


@hooks.on_write
def wrong_type(hook, size):
    hook.total = size


@hooks.on_write
def no_such_member(hook):
    hook.totall = u64(1)


@hooks.on_write
def no_such_value(hook, cause):
    pass


@hooks.on_write
def past_the_end(hook):
    hook.table[4] = u8(0)


@hooks.on_write
def not_the_language(hook):
    with hook:
        pass


@hooks.on_write
def traps(hook):
    raise hooks_trap(1, 2)


def hooks_trap(*values):
    raise AssertionError


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (writes_a_register, "a hook reads the CPU's state and cannot change it (cpu.x)"),
        (writes_a_field, "a hook reads the CPU's state and cannot change it (cpu.mstatus)"),
        (loads, "a hook reads the CPU's registers and pc; it has no 'load'"),
        (any_register, "a hook reads registers by constant numbers, such as cpu.x[10]"),
        (wrong_type, "needs type u64, not u32"),
        (no_such_member, "the hook's state Odd has no member 'totall'"),
        (no_such_value, "the event write has no 'cause'; a hook of it can ask for cpu, address, value, size"),
        (past_the_end, "table has 4 places; there is no number 4"),
        (not_the_language, "with is not part of the language"),
        (traps, "raise is not part of the language"),
    ],
)
def test_errors_name_file_and_line(hook, message):
    text = _refused(hook)
    line = hook.function.python.__code__.co_firstlineno
    assert message in text
    assert any(f"{__file__}:{n}: in {hook.name}: " in text for n in range(line, line + 5)), text


def test_a_hook_without_a_state_says_so():
    assert "the hook has no state: give a State class" in _refused(wrong_type, None)


def test_a_refused_hook_changes_nothing():
    made = Bench("interpreter", "    sd s2, 0(s2)")
    told = made.add(write, state=Accesses)
    with pytest.raises(DescriptionError):
        made.add(loads, state=Odd)
    with pytest.raises(ValueError, match="there can be 16 functions"):
        made.add(*[write] * 16, state=Accesses)
    with pytest.raises(ValueError, match="the event trap has no address"):
        made.add(trap, state=Traps, at=range(4))
    with pytest.raises(ValueError, match="give a range of addresses"):
        made.add(write, state=Accesses, at=range(4, 4))
    with pytest.raises(DescriptionError, match="a member cannot be called harts"):
        type("Bad", (hooks.State,), {"harts": Field(u64)})
    with pytest.raises(DescriptionError, match="a ring has a power of two of places, not 3"):
        Ring(u64, 3)
    made.run()
    assert told.read("count") == 1
    made.close()


def test_code_is_compiled_once(monkeypatch):
    """What was hooked before in this process, or is in the cache, is compiled no more."""
    text = loop("    sd s3, 0(s2)\n    ld t0, 0(s2)")
    for _ in range(2):
        made = Bench("interpreter", text)
        made.add(write, state=Accesses)
        made.run()
        compiled = native_code(rv64).compiled, made.cpu.code.compiled
        made.close()
    made = Bench("interpreter", text)
    told = made.add(write, state=Accesses, at=range(DATA, DATA + 4))
    other = made.add(write, state=Accesses, at=range(DATA + 4, DATA + 8))
    made.remove(other)
    made.run()
    assert told.read("count") == 500
    assert (native_code(rv64).compiled, made.cpu.code.compiled)[0] == compiled[0]
    made.close()


def test_quick_regions(monkeypatch):
    made = Bench("jit", loop("    sd s3, 0(s2)\n    ld t0, -4(s2)\n    amoadd.d t1, s3, (s2)"))
    told = made.add(step, read, write, state=Everything)
    made.cpu.run(400)
    assert made.regions is not None
    engine, code = made.cpu.engine, made.regions.code
    number = (int(engine.sample_count) - 1) % 256
    compiler = RegionCompiler(rv64, code.layout, code.compiler, code.hooks)
    assert made.regions.compile_now(
        int(engine.sample_records[number]), int(engine.sample_addresses[number]), made.cpu,
        lambda request: compiler.compile(replace(request, quick=True)),
    )
    made.cpu.run(1_000_000)
    assert int(engine.region_instructions) > 300
    assert told.read("count") == made.cpu.retired + 4 * 500
    made.close()


class Everything(Accesses):
    sum = Field(u64)
    lowest = Minimum(u64)
    highest = Maximum(u64)


# Another architecture: big-endian, with 16 bits, no privileges and no CSRs


class Toy(hooks.State):
    instructions = Field(u64)
    blocks = Field(u64)
    written = Ring(u64, 4)
    traps = Field(u64)


@hooks.on_instruction
def toy_step(hook):
    hook.instructions += 1


@hooks.on_block
def toy_block(hook, address):
    hook.blocks += 1


@hooks.on_write
def toy_write(hook, cpu, address, value: u32, size):
    hook.written.append(address)
    hook.written.append(u64(value))
    hook.written.append(u64(size))
    hook.written.append(u64(cpu.r[1]))


@hooks.on_trap
def toy_trap(hook, cause):
    hook.traps += cause


@pytest.mark.parametrize("tier", ["reference", "interpreter"])
def test_another_architecture(tier):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
    example = importlib.import_module("describe_a_cpu")
    memory = Memory()
    memory.add_ram(0, 0x1000)
    memory.write(0, example.program.bytes)
    cpu: Any
    if tier == "reference":
        cpu = ReferenceExecutor(example.toy, memory)
    else:
        code = native_code(example.toy)
        cpu = Cpu(code, memory, CodePages(code, memory))
    states = HookStates(Toy, 1, "toy")
    installed = Installed(states)
    for hook in (toy_step, toy_block, toy_write, toy_trap):
        installed.add(hook.kind, hook, None, None)
    point = HookPoint(example.toy, [cpu])
    point.apply([installed])
    assert cpu.run().reason == "halt"
    assert states.read("instructions") == cpu.retired == 904
    assert states.read("blocks") == 300
    assert states.read("written") == [0x800, 45150, 2, 0]
    memory.write(int(cpu.state.pc), bytes(2))  # no instruction
    cpu.run(1)
    assert states.read("traps") == 1
    system = Installed(HookStates(Toy, 1, "toy"))
    system.add("syscall", None, lambda hart, *values: None, None)
    with pytest.raises(DescriptionError, match="toy16 does not say how programs call their kernel"):
        point.apply([system])
    memory.close()
