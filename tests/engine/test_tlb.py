"""What the native tier remembers of translations: after a flush nothing old is left, and other pages' are kept."""

from __future__ import annotations

import random

import pytest

from polyvisor.engine import layout as at
from tests.support.privileged import BASE, CODE, DATA, SIZE, TABLES, Machine

V, R, W, X, U, G, A, D = (1 << n for n in range(8))
ALL = V | R | W | X | A | D
SV39 = 8 << 60 | TABLES >> 12
LOW = TABLES + 0x2000
RAM = BASE + 0x10_0000  # 64 pages to map
assert RAM + 64 * 4096 <= BASE + SIZE
DATA_PAGE = 0x40_0000  # virtual: what tests map anew
SUM = 1 << 18


@pytest.fixture(scope="module")
def machine():
    machine = Machine("native")
    yield machine
    machine.memory.close()


@pytest.fixture
def hart(machine):
    """Supervisor mode with this code mapped to itself (a page of 1 GiB), and a table of pages for the lowest 2 MiB."""
    machine.reset()
    machine.memory.write(TABLES, bytes(0x4000))
    entry(machine, TABLES + 8 * (BASE >> 30), BASE, ALL)
    entry(machine, TABLES, TABLES + 0x1000, V)
    for i in range(2):
        entry(machine, TABLES + 0x1000 + 8 * (2 + i), LOW + 0x1000 * i, V)
    for page in range(64):
        machine.memory.write(RAM + 4096 * page, (page + 1).to_bytes(8, "little"))
    machine.state.satp = SV39
    return machine


def go(machine: Machine, pc: int = CODE) -> int:
    """Run in supervisor mode until a trap, without the flush that `Machine.go` does; gives the trap's cause."""
    machine.state.privilege = 1
    machine.state.pc = pc
    found = machine.cpu.run(50_000_000)
    assert (found.kind, found.reason) == ("leave", "wfi"), found
    return int(machine.state.mcause)


def entry(machine: Machine, where: int, physical: int, flags: int) -> None:
    machine.memory.write(where, (physical >> 12 << 10 | flags).to_bytes(8, "little"))


def remap(machine: Machine, page: int, physical_page: int, flags: int = ALL) -> None:
    """Map page ``page`` of 4 MiB at DATA_PAGE to a page of RAM; nothing is flushed."""
    entry(machine, LOW + 8 * page, RAM + 4096 * physical_page, flags)


def read(machine: Machine, *addresses: int, before: str = "") -> list[int]:
    """Run ``before``, then load from each address, in supervisor mode."""
    machine.state.mstatus = 0
    text = before + "\n" + "\n".join(f"li t0, {a}; ld t1, (t0); sd t1, {8 * i}(s0)" for i, a in enumerate(addresses))
    machine.state.x[8] = DATA
    machine.load(text + "\necall")
    assert go(machine) == 9
    return [int.from_bytes(machine.memory.read(DATA + 8 * i, 8), "little") for i in range(len(addresses))]


def page(number: int) -> int:
    return DATA_PAGE + 4096 * number


def fence(address: int) -> str:
    return f"li t0, {address}; sfence.vma t0"


def test_what_is_remembered_survives_and_a_flush_forgets_it(hart):
    """That it is remembered at all is not promised, but the other tests would mean nothing without."""
    remap(hart, 0, 0)
    assert read(hart, page(0)) == [1]
    remap(hart, 0, 5)
    assert read(hart, page(0)) == [1]
    assert read(hart, page(0), before="sfence.vma") == [6]


@pytest.mark.parametrize("count", [1, 8, 63])
def test_a_fence_of_one_page_forgets_that_page(hart, count):
    for i in range(count + 1):
        remap(hart, i, i)
    everything = [page(i) for i in range(count + 1)]
    assert read(hart, *everything) == list(range(1, count + 2))
    for i in range(count + 1):
        remap(hart, i, (i + 1) % 64)
    # The code is in a large page, of which pieces are remembered: the small pages around must be forgotten all the same
    assert read(hart, page(count), before=fence(page(count))) == [(count + 1) % 64 + 1]
    assert read(hart, *everything[:-1]) == list(range(1, count + 1))
    assert read(hart, *everything, before="sfence.vma") == [(i + 1) % 64 + 1 for i in range(count + 1)]


@pytest.mark.parametrize("fenced", [0, 1, 511])
def test_a_fence_anywhere_in_a_large_page_forgets_all_of_it(hart, fenced):
    large = 0x80_0000
    where = TABLES + 0x1000 + 8 * (large >> 21)
    hart.memory.write(BASE + 8, bytes(8))
    entry(hart, where, BASE, ALL)
    addresses = [large + (RAM - BASE) + 4096 * i for i in (0, 1, 40)]
    remap(hart, 0, 9)
    assert read(hart, *addresses, page(0)) == [1, 2, 41, 10]
    # Now the same 2 MiB by pages, the other way round
    entry(hart, where, TABLES + 0x3000, V)
    for i in range(512):
        entry(hart, TABLES + 0x3000 + 8 * i, RAM + 4096 * (63 - (i - ((RAM - BASE) >> 12)) % 64), ALL)
    remap(hart, 0, 10)
    assert read(hart, *addresses) == [1, 2, 41]
    assert read(hart, *addresses, before=fence(large + 4096 * fenced)) == [64, 63, 24]


def test_a_fence_beside_a_large_page_keeps_it(hart):
    large = 0x80_0000
    where = TABLES + 0x1000 + 8 * (large >> 21)
    entry(hart, where, BASE, ALL)
    address = large + (RAM - BASE)
    assert read(hart, address) == [1]
    misses = hart.cpu.engine.translations
    assert read(hart, address, before=fence(page(3))) == [1]
    assert hart.cpu.engine.translations - misses < 4


def test_more_pages_than_any_log_or_level_holds(hart):
    """Two rounds over more pages than there are entries, with the mapping changed in between."""
    pages = 3 * 512
    for table in range(3):
        entry(hart, TABLES + 0x1000 + 8 * (8 + table), TABLES + 0x4000 + 0x1000 * table, V)

    def fill(shift: int) -> None:
        for i in range(pages):
            entry(hart, TABLES + 0x4000 + 8 * i, RAM + 4096 * ((i + shift) % 64), ALL)

    hart.state.mstatus = 0
    hart.load(f"""
        sfence.vma
        li s1, {at.TLB_LOG // pages + 2}
    again:
        li t0, {8 << 21}
        li t1, {pages}
        li a0, 0
        li t3, 4096
    next:
        ld t2, (t0)
        add a0, a0, t2
        slli a0, a0, 1
        sfence.vma t0
        ld t2, (t0)
        add a0, a0, t2
        add t0, t0, t3
        addi t1, t1, -1
        bnez t1, next
        addi s1, s1, -1
        bnez s1, again
        ecall
    """)

    def expected(shift: int) -> int:
        total = 0
        for i in range(pages):
            value = (i + shift) % 64 + 1
            total = (total + value) * 2 + value
        return total % 2**64

    for shift in range(3):
        fill(shift)
        assert go(hart) == 9
        assert hart.x("a0") == expected(shift)
    assert hart.cpu.engine.tlb_log_count > at.TLB_LOG  # it did overflow
    assert read(hart, 8 << 21, before="sfence.vma") == [3]
    assert hart.cpu.engine.tlb_log_count <= at.TLB_LOG


def test_no_generation_comes_back(hart):
    """A translation of the second level, many flushes ago, must stay forgotten."""
    generations = hart.cpu.code.layout.generations
    remap(hart, 0, 0)
    flushes = "sfence.vma\n" * 8
    for i in range(3):
        remap(hart, 0, i)
        assert read(hart, page(0), before="sfence.vma") == [i + 1]
        first = hart.cpu.engine.tlb_generation
        remap(hart, 0, 9)
        hart.load(f"li t0, {generations // 8}\nagain: {flushes} addi t0, t0, -1; bnez t0, again; ecall")
        assert go(hart) == 9
        assert abs(hart.cpu.engine.tlb_generation - first) < 16  # all were used once
        for _ in range(16):
            assert read(hart, page(0), before="sfence.vma") == [10]


def test_permissions_are_not_mixed_up(hart):
    """What one kind of access or one context may do, remembered, is nothing another may."""
    remap(hart, 0, 0, V | R | A)
    assert read(hart, page(0)) == [1]
    hart.load(f"li t0, {page(0)}; sd t0, (t0); ecall")
    assert go(hart) == 15
    hart.load(f"li t0, {page(0)}; jr t0")
    assert go(hart) == 12
    remap(hart, 1, 1, V | R | W | U | A | D)
    hart.state.mstatus = SUM
    hart.load(f"li t0, {page(1)}; ld t1, (t0); sd t1, (t0); ecall")
    assert go(hart) == 9
    hart.state.mstatus = 0
    assert go(hart) == 13


def test_a_page_remembered_for_reading_that_is_elsewhere_by_the_first_write(hart):
    """Either of its places may be read before a fence, but no mixture of them."""
    remap(hart, 0, 1)
    assert read(hart, page(0)) == [2]
    remap(hart, 0, 2)
    hart.load(f"li t0, {page(0)}; sd t0, 8(t0); ecall")
    assert go(hart) == 9
    assert hart.memory.read(RAM + 2 * 4096 + 8, 8) == page(0).to_bytes(8, "little")
    assert read(hart, page(0))[0] in (2, 3)


@pytest.mark.parametrize("how", ["page", "all"])
def test_code_is_forgotten_with_its_page(hart, how):
    hart.load("li a0, 1; ecall", RAM)
    hart.load("li a0, 2; ecall", RAM + 4096)
    remap(hart, 0, 0)
    assert go(hart, page(0)) == 9
    assert hart.x("a0") == 1
    remap(hart, 0, 1)
    hart.load(f"{fence(page(0)) if how == 'page' else 'sfence.vma'}; li t0, {page(0)}; jr t0")
    assert go(hart) == 9
    assert hart.x("a0") == 2


@pytest.mark.parametrize("size, load, store", [(8, "ld", "sd"), (4, "lwu", "sw"), (2, "lhu", "sh")])
@pytest.mark.parametrize("offset", [1, 7, 4093, 4095])
def test_unaligned_accesses_follow_the_mapping(hart, size, load, store, offset):
    """Twice each, so that the second finds what the first remembered; then remapped and fenced."""
    rng = random.Random(offset * size)
    data = rng.randbytes(64 * 4096)
    hart.memory.write(RAM, data)
    for first, second in ((0, 1), (3, 2), (7, 7)):
        remap(hart, 0, first)
        remap(hart, 1, second)
        both = hart.memory.read(RAM + 4096 * first, 4096) + hart.memory.read(RAM + 4096 * second, 4096)
        hart.state.x[8] = page(0) + offset
        hart.state.x[9] = value = rng.getrandbits(64)
        hart.state.mstatus = 0
        loads, stores = f"{load} a0, (s0)\n{load} a1, (s0)\n", f"{store} s1, (s0)\n" * 2
        hart.load(f"sfence.vma\n{loads}{stores}{load} a2, (s0)\necall")
        assert go(hart) == 9
        old = int.from_bytes(both[offset : offset + size], "little")
        assert (hart.x("a0"), hart.x("a1")) == (old, old)
        if (first, second) != (7, 7):
            assert hart.x("a2") == value % 256**size
            now = hart.memory.read(RAM + 4096 * first, 4096) + hart.memory.read(RAM + 4096 * second, 4096)
            assert now == both[:offset] + (value % 256**size).to_bytes(size, "little") + both[offset + size :]


@pytest.mark.parametrize("offset", [1, 4093])
def test_an_unaligned_store_to_code_is_noticed(hart, offset):
    """It has no write entry to hit, before and after code ran there."""
    remap(hart, 0, 0)
    remap(hart, 1, 1)
    hart.load("nop; nop; li a0, 1; ecall", RAM + 4096)
    hart.load("nop; nop; li a0, 1; ecall", RAM)
    target = page(0) if offset == 1 else page(1)
    hart.state.mstatus = 0
    # Make the write entries, and run; then overwrite the first instruction, in part, with `li a0, 2` and its like.
    for value, expected in ((0x00200513, 2), (0x00300513, 3)):
        hart.load(f"li t0, {page(0) + offset}; ld t1, (t0); sd t1, (t0); li t0, {target}; jr t0")
        assert go(hart) == 9
        place = (RAM if offset == 1 else RAM + 4096) + 8
        hart.load(f"""
            li t0, {target + 7}
            ld t1, (t0)
            andi t2, t1, 255
            li t1, {value}
            slli t1, t1, 8
            or t1, t1, t2
            li t2, {0x73 << 40}
            or t1, t1, t2
            sd t1, (t0)
            li t0, {target}
            jr t0
        """)
        assert go(hart) == 9
        assert hart.x("a0") == expected
        assert hart.memory.read(place, 4) == value.to_bytes(4, "little")


def test_random_remapping_and_fencing(hart):
    """Pages small and large are mapped anew at random; what was fenced is read as it now is, by either tier's rules."""
    rng = random.Random(1)
    names: dict[int, int] = {}
    for _ in range(60):
        changed = rng.sample(range(64), rng.randrange(1, 6))
        fences = ""
        for i in changed:
            names[i] = rng.randrange(64)
            remap(hart, i, names[i])
            fences += fence(page(i)) + "\n"
        if rng.random() < 0.2:
            fences = "sfence.vma\n"
        chosen = rng.sample(sorted(names), min(len(names), 8))
        assert read(hart, *(page(i) for i in chosen), before=fences) == [names[i] + 1 for i in chosen]
