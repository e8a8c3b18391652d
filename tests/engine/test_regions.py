"""The region JIT: what compiled regions compute, and that they are forgotten when they must be."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.dataclass import replace
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.regions.backend import SOME, WorkerBackend
from polyvisor.engine.regions.compile import RegionCompiler, Request
from polyvisor.engine.regions.manager import Regions
from polyvisor.engine.regions.variants import keep_region
from polyvisor.engine.workers import Workers
from polyvisor.isa.riscv import rv64
from polyvisor.isa.riscv.pmp import open_pmp

BASE = 0x8000_0000
FS = 3 << 13


class Idle:
    """A backend that compiles nothing by itself."""

    pressure = SOME

    def room(self, quick: bool) -> int:
        return 0

    def submit(self, request, done) -> None:
        done(None)


class Bench:
    """A bare CPU with a program at the start of RAM, and its regions."""

    def __init__(self, text: str, backend=None) -> None:
        self.memory = Memory()
        self.memory.add_ram(BASE, 2 << 20)
        self.memory.write(BASE, bytes(assemble(rv64, text, base=BASE)))
        code = native_code(rv64)
        self.pages = CodePages(code, self.memory, 64)
        self.cpu = Cpu(code, self.memory, self.pages)
        self.cpu.engine.slice = 100
        self.cpu.state.pc = BASE
        self.cpu.state.mstatus = FS
        self.regions = Regions(code, self.pages, backend or Idle())
        self.regions.watch(self.cpu)
        self.compiler = RegionCompiler(rv64, code.layout, code.compiler)

    def compile_hottest(self, quick: bool = False) -> bool:
        """Compile a region where the last sample was taken."""
        engine = self.cpu.engine
        number = (int(engine.sample_count) - 1) % 256
        record, address = int(engine.sample_records[number]), int(engine.sample_addresses[number])
        return self.regions.compile_now(
            record, address, self.cpu, lambda request: self.compiler.compile(replace(request, quick=quick))
        )

    def record(self, address: int) -> int:
        """Where the instruction at an address of the first page is decoded."""
        slot = self.regions._slot_of(self.cpu, BASE)
        assert slot is not None
        return slot + ((address - BASE) << self.regions.layout.shift)

    @property
    def in_regions(self) -> int:
        return int(self.cpu.engine.region_instructions)

    def close(self) -> None:
        self.regions.close()
        self.memory.close()


@pytest.fixture
def make() -> Iterator[type[Bench]]:
    made: list[Bench] = []

    def build(*arguments, **keywords):
        made.append(Bench(*arguments, **keywords))
        return made[-1]

    yield build
    for bench in made:
        bench.close()


LOOP = """
    li a0, 20000
    li s1, 0x80100000
loop:
    ld t0, 0(s1)
    add t1, t1, t0
    addi t2, t2, 3
    xor t3, t3, t1
    sd t2, 0(s1)
    call twice
    addi a0, a0, -1
    bnez a0, loop
    wfi
twice:
    slli t4, t2, 1
    ret
"""


def values(bench):
    return [int(v) for v in bench.cpu.state.x], int(bench.cpu.state.fflags), bench.cpu.retired, [
        int(v) for v in bench.cpu.state.f
    ]


def finish(bench):
    assert bench.cpu.run().reason == "wfi"
    return values(bench)


def test_a_region_computes_what_the_interpreter_does(make):
    plain, compiled = make(LOOP), make(LOOP)
    compiled.cpu.run(5000)
    assert compiled.compile_hottest()
    assert finish(compiled) == finish(plain)
    assert compiled.in_regions > 150_000
    assert compiled.in_regions <= compiled.cpu.retired


def test_an_instruction_limit_holds_in_regions(make):
    bench = make(LOOP)
    bench.cpu.run(5000)
    assert bench.compile_hottest()
    before = bench.cpu.retired
    assert bench.cpu.run(1000).kind == "limit"
    assert 1000 <= bench.cpu.retired - before < 1100


# Two halves of a loop, each too long for a region that holds both.
HALVES = """
    li a0, 20000
first:
    addi t1, t1, 3
    xor t2, t2, t1
    j second
    .zero 64
second:
    addi t2, t2, 5
    addi a0, a0, -1
    bnez a0, first
    wfi
"""


def in_halves(bench):
    """Compile each half of `HALVES` on its own."""
    text = bench.memory.read(BASE, 256)
    places = [BASE + text.index(bytes(assemble(rv64, line))) for line in ("addi t1, t1, 3", "addi t2, t2, 5")]
    bench.cpu.run(500)
    for place in places:
        assert bench.regions.compile_now(
            bench.record(place), place, bench.cpu, lambda r: bench.compiler.compile(replace(r, limit=3, final=True))
        )
    return bench


def test_regions_of_a_page_jump_to_each_other(make):
    bench = in_halves(make(HALVES))
    assert finish(bench) == finish(make(HALVES))
    assert bench.in_regions > 115_000
    assert int(bench.cpu.engine.region_entries) > 39_000
    # Only where it was time to look around.
    assert int(bench.cpu.engine.jump_count) < 4000


def test_an_instruction_limit_holds_between_regions(make):
    bench = in_halves(make(HALVES))
    before = bench.cpu.retired
    assert bench.cpu.run(1000).kind == "limit"
    assert 1000 <= bench.cpu.retired - before < 1010


UNSEEN = """
    li s1, 0x80100000
    li a0, 2000
    j body
again:
    li a1, 1
body:
    beqz a1, again
loop:
    ld t0, 0(s1)
    add t1, t1, t0
    addi a0, a0, -1
    bnez a0, loop
    wfi
"""


def test_a_region_is_left_for_instructions_that_were_never_executed(make):
    """A region from the cache may be left at one of its entries before anything was decoded there."""
    first, second = make(UNSEEN), make(UNSEEN)
    text = first.memory.read(BASE, 64)
    again, body = (
        BASE + text.index(bytes(assemble(rv64, line))) for line in ("li a1, 1", "beqz a1, -4")
    )
    first.cpu.run(100)
    regions = first.regions
    request = regions.request(first.record(body), body, first.cpu, quick=True)
    region = first.compiler.compile(replace(request, final=True))
    assert len(region.entries) > 1
    while int(second.cpu.state.pc) != again:
        second.cpu.run(1)
    assert second.regions.install(second.record(body), body, second.cpu, region) is not None
    assert finish(second) == finish(make(UNSEEN))
    assert second.in_regions > 0


# Accesses to a structure at s1, which stays or moves on; by way of another register too; of all sizes.
STRUCTURE = """
    li a0, 3000
    li s1, {base}
    li s3, {other}
loop:
    lbu t6, 0(s3)
    ld t0, 0(s1)
    add t0, t0, t6
    sd t0, 8(s1)
    lw t1, 4(s1)
    add t1, t1, a0
    sh t1, 18(s1)
    lbu t2, 19(s1)
    addi s2, s1, -8
    add t3, t3, t2
    sd t3, 8(s2)
    ld t4, 24(s2)
    xor t5, t5, t4
    sw t5, 28(s1)
    sb t3, 16(s1)
    addi s1, s1, {step}
    addi a0, a0, -1
    bnez a0, loop
handler:
    wfi
"""


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("step", [0, 8, 24])
@pytest.mark.parametrize("base", [0x80100000, 0x80100FF0, 0x80100FF8, 0x80100FFC, 0x80100003])
def test_accesses_at_constant_distances_from_a_register(make, base, step, quick):
    text = STRUCTURE.format(base=base, other=base, step=step)
    plain, compiled = make(text), make(text)
    compiled.cpu.run(2000)
    assert compiled.compile_hottest(quick)
    assert finish(compiled) == finish(plain)
    length = 32 + step * 3000
    assert compiled.memory.read(base, length) == plain.memory.read(base, length)
    if base == 0x80100000:
        assert compiled.in_regions > 35_000


TABLES = 0x80140000
FAR = 0x80160000  # physical: pages that are mapped out of order


def translate(bench, flags) -> None:
    """Supervisor mode, Sv39: the program mapped to itself, and from 0x10000 pages of RAM in the reverse order.

    ``flags`` are those of each page's entry.
    """
    def entry(where, physical, bits):
        bench.memory.write(where, (physical >> 12 << 10 | bits).to_bytes(8, "little"))

    entry(TABLES + 8 * 2, 0x80000000, 0xCF)  # 1 GiB: valid, readable, writable, executable, accessed, dirty
    entry(TABLES, TABLES + 0x1000, 1)
    entry(TABLES + 0x1000, TABLES + 0x2000, 1)
    for number, bits in enumerate(flags):
        entry(TABLES + 0x2000 + 8 * (16 + number), FAR + 4096 * (len(flags) - number), bits)
    state = bench.cpu.state
    state.satp = 8 << 60 | TABLES >> 12
    state.privilege = 1
    open_pmp(state)
    state.mtvec = BASE + bench.memory.read(BASE, 256).index(bytes(assemble(rv64, "handler: wfi")))


ALL, READ_ONLY, ABSENT = 0xC7, 0xC3, 0


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("flags", [[ALL, ALL, ALL], [ALL, READ_ONLY, ALL], [ALL, ABSENT, ALL]])
@pytest.mark.parametrize("base", [0x10000, 0x10FE8, 0x10FF8])
@pytest.mark.parametrize("step", [0, 8, 1024])
def test_windows_reach_over_one_page_only(make, base, step, flags, quick):
    text = STRUCTURE.format(base=base, other=0x12000 if ABSENT in flags else 0x11000, step=step)
    plain, compiled = make(text), make(text)
    for bench in (plain, compiled):
        translate(bench, flags)
        bench.cpu.engine.slice = 20
        bench.cpu.run(40)
    if int(compiled.cpu.state.privilege) == 1:  # else the first access was the trap that ends it
        assert compiled.compile_hottest(quick)
    assert finish(compiled) == finish(plain)
    for name in ("mcause", "mepc", "mtval"):
        assert int(getattr(compiled.cpu.state, name)) == int(getattr(plain.cpu.state, name))
    assert compiled.memory.read(FAR, 4 * 4096) == plain.memory.read(FAR, 4 * 4096)


REWRITTEN = """
    li a0, 4000
    la s1, target
    la s2, other
    lw s3, 0(s2)
loop:
    addi t0, t0, 1
target:
    addi t1, t1, 1
    addi a0, a0, -1
    li t2, 2000
    bne a0, t2, go
    sw s3, 0(s1)
    fence.i
go:
    bnez a0, loop
    wfi
other:
    addi t1, t1, 7
"""


def test_code_that_rewrites_itself(make):
    plain, compiled = make(REWRITTEN), make(REWRITTEN)
    compiled.cpu.run(3000)
    assert compiled.compile_hottest()
    assert finish(compiled) == finish(plain)
    assert int(compiled.cpu.state.x[6]) == 2000 + 2000 * 7
    assert compiled.in_regions > 1000
    assert int(compiled.cpu.engine.region_drops) == 1


def test_code_written_from_outside(make):
    bench = make(LOOP)
    bench.cpu.run(5000)
    assert bench.compile_hottest()
    bench.cpu.run(5000)
    word = bytes(assemble(rv64, "addi t2, t2, 5"))
    text = bench.memory.read(BASE, 256)
    where = text.index(bytes(assemble(rv64, "addi t2, t2, 3")))
    before = int(bench.cpu.state.x[7])
    bench.memory.write(BASE + where, word)
    bench.cpu.run(1000)
    assert (int(bench.cpu.state.x[7]) - before) % 5 == 0
    assert int(bench.cpu.engine.region_drops) == 1


def test_breakpoints_stop_in_regions(make):
    bench = make(LOOP)
    bench.cpu.run(5000)
    assert bench.compile_hottest()
    bench.cpu.run(5000)
    text = bench.memory.read(BASE, 256)
    place = BASE + text.index(bytes(assemble(rv64, "addi t2, t2, 3")))
    bench.cpu.set_breakpoints([place])
    assert bench.cpu.run().kind == "breakpoint"
    assert int(bench.cpu.state.pc) == place
    assert not bench.compile_hottest()


FLOAT = """
    li a0, 3000
    li t0, 3
    fcvt.d.l f1, t0
    li t0, 10
    fcvt.d.l f2, t0
    fdiv.d f3, f1, f2
loop:
    fadd.d f4, f4, f3
    fmul.d f5, f4, f3
    fmadd.d f6, f5, f3, f4
    li t1, 1500
    bne a0, t1, go
    csrw fflags, zero
go:
    addi a0, a0, -1
    bnez a0, loop
    wfi
"""


def test_what_a_region_assumes_is_made_sure_of(make):
    plain, compiled = make(FLOAT), make(FLOAT)
    compiled.cpu.run(2000)
    assert int(compiled.cpu.state.fflags) == 1
    assert compiled.compile_hottest()
    assert finish(compiled) == finish(plain)


ACROSS = """
    li a0, 3000
    j loop
    .zero 4054
loop:
    addi t0, t0, 1
    addi t1, t1, 2
    addi t2, t2, 3
    addi t3, t3, 4
    addi t4, t4, 5
    addi t5, t5, 6
    addi t6, t6, 7
    addi a0, a0, -1
    bnez a0, loop
    wfi
"""


@pytest.mark.parametrize("shift", range(0, 12, 2))
def test_loops_across_a_page_end(make, shift):
    text = ACROSS.replace("4054", str(4054 + shift))
    plain, compiled = make(text), make(text)
    compiled.cpu.run(3000)
    assert compiled.compile_hottest()
    assert finish(compiled) == finish(plain)
    assert compiled.in_regions > 15_000


def test_a_region_cut_off_in_the_next_page_makes_no_place_behind_the_records(make):
    lines = "    addi t0, t0, 1\n" * 120
    text = "    li a0, 20000\n    j loop\n    .zero 3900\nloop:\n" + lines
    bench = make(text + "    addi a0, a0, -1\n    bnez a0, loop\n")
    regions = bench.regions
    bench.cpu.run(5000)
    regions.look()
    record, place = max(regions._places.items(), key=lambda found: found[1].heat)
    request = regions.request(record, place.address, bench.cpu, quick=True)
    region = bench.compiler.compile(replace(request, final=True))
    assert any(request.entry + offset > 4096 for offset in region.ends)
    place.region = region
    assert regions.install(record, place.address, bench.cpu, region) is not None
    bench.cpu.run(5000)
    regions.look()
    assert place.heat > 2
    size = regions.layout.records * regions.layout.record_size
    assert all((other - regions._slot(other)) < size for other in regions._places)


def test_of_what_the_cache_has_the_good_is_taken_first(make):
    text = LOOP.replace("addi t2, t2, 3", f"addi t2, t2, {os.getpid() % 2000}")
    bench, later = make(text), make(text)
    for each in (bench, later):
        each.cpu.run(5000)
        each.regions.look()
    regions = bench.regions
    record, place = max(regions._places.items(), key=lambda found: found[1].heat)
    for quick in (True, False, True):
        request = replace(regions.request(record, place.address, bench.cpu, quick), final=True)
        region = bench.compiler.compile(request)
        keep_region(regions.code.cache, request.pages[0][0], region)
    record, place = max(later.regions._places.items(), key=lambda found: found[1].heat)
    assert later.regions._from_cache(record, place)
    assert not place.region.request.quick


def test_what_a_page_had_before_is_installed_without_samples(make):
    text = f"li a5, {random.getrandbits(31)}\n{LOOP}"
    bench = make(text)
    bench.cpu.run(5000)
    bench.regions.look()
    assert bench.compile_hottest()
    bench.close()
    later = make(text)
    later.cpu.run(200)
    later.cpu.engine.sample_at = 2**64 - 1
    for _ in range(4):
        later.regions.look()
    assert later.regions.stats.cached == 1
    assert finish(later) == finish(make(text))
    assert later.in_regions > 150_000


def test_a_region_is_entered_at_places_that_are_decoded_later(make):
    """A loop that was not reached yet when the region around it was installed."""
    text = f"""
        li a5, {random.getrandbits(31)}
        li a0, 3000
    outer:
        addi a1, a1, 1
        andi a2, a1, 1023
        bnez a2, skip
        li a3, 500
    inner:
        addi a4, a4, 1
        addi a3, a3, -1
        bnez a3, inner
    skip:
        addi a0, a0, -1
        bnez a0, outer
        wfi
    """
    first, second = make(text), make(text)
    start = BASE + first.memory.read(BASE, 256).index(bytes(assemble(rv64, "addi a1, a1, 1")))
    inner = BASE + first.memory.read(BASE, 256).index(bytes(assemble(rv64, "addi a4, a4, 1")))
    first.cpu.run(20_000)
    request = replace(first.regions.request(first.record(start), start, first.cpu), final=True)
    region = first.compiler.compile(request)
    assert inner - start in [offset for offset, _ in region.entries]
    second.cpu.run(500)
    assert second.regions.install(second.record(start), start, second.cpu, region) is not None
    assert not second.regions._compiled_at(second.record(inner)) or second.record(inner) not in second.regions._entries
    second.cpu.run(8000)
    second.regions._finish_entries()
    assert second.record(inner) in second.regions._entries
    assert finish(second) == finish(make(text))


def test_a_cpu_that_is_reset_meanwhile_has_no_pages(make):
    """As when a replay goes back, while regions are looked for."""
    bench = make("again:\nj again\n")
    bench.cpu.run(1000)
    assert bench.regions._slot_of(bench.cpu, BASE)
    bench.cpu.engine.reset()
    assert bench.regions._slot_of(bench.cpu, BASE) is None


def test_a_page_with_other_content_has_no_regions_of_before(make):
    texts = [f"li a5, {random.getrandbits(31)}\n{LOOP}" for _ in range(2)]
    bench = make(texts[0])
    bench.cpu.run(5000)
    bench.regions.look()
    assert bench.compile_hottest()
    bench.close()
    later = make(texts[1])
    later.cpu.run(200)
    for _ in range(4):
        later.regions._remember()
    assert later.regions.stats.cached == 0
    assert finish(later) == finish(make(texts[1]))


def test_workers_compile_and_the_cache_keeps(make, tmp_path, monkeypatch):
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    text = LOOP.replace("20000", "200000000").replace("addi t2, t2, 3", f"addi t2, t2, {os.getpid() % 2000}")
    for expected in ("compiled", "cached"):
        bench = make(text, WorkerBackend(Workers(rv64)))
        deadline = time.monotonic() + 60
        while not getattr(bench.regions.stats, expected):
            assert time.monotonic() < deadline
            bench.cpu.run(100_000)
            bench.regions.look()
        before = bench.in_regions
        bench.cpu.run(100_000)
        assert bench.in_regions > before


def test_a_worker_that_is_killed_is_replaced(monkeypatch):
    monkeypatch.setenv("POLYVISOR_WORKERS", "1")
    workers = Workers(rv64)
    code = bytes(assemble(rv64, "loop: addi t0, t0, 1\n j loop")).ljust(4096, b"\0")
    request = Request(0, {0: (code, 0b101)}, final=True)

    def compiled():
        found = []
        workers.submit("region", request, found.append)
        deadline = time.monotonic() + 60
        while not found:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found[0]

    assert compiled().instructions == 2
    for process in list(workers.processes):
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    # It may be noticed before or after the next request was written to it.
    assert any(compiled() is not None for _ in range(2))
    assert compiled().instructions == 2


def test_without_workers_nothing_is_compiled(monkeypatch):
    monkeypatch.setenv("POLYVISOR_WORKERS", "0")
    workers = Workers(rv64)
    found = []
    workers.submit("region", Request(0, {}), found.append)
    assert found == [None]
