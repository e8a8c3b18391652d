"""Page tables: Sv39, Sv48 and Sv57, faults of every kind, A and D bits, superpages, and what must be forgotten when."""

import itertools
from collections.abc import Iterator

import pytest

from support.privileged import CODE, DATA, ECALL, TABLES, TIERS, Machine, machine

V, R, W, X, U, G, A, D = (1 << n for n in range(8))
LEVELS = {8: 3, 9: 4, 10: 5}
ADUE = 1 << 61
MPRV, SUM, MXR = 1 << 17, 1 << 18, 1 << 19
FETCH, LOAD, STORE = 12, 13, 15
ACCESS = {FETCH: 1, LOAD: 5, STORE: 7}
ALL = V | R | W | X | A | D
INSTRUCTIONS = {LOAD: "ld a0, (a1)", STORE: "sd a2, (a1)"}


@pytest.fixture(params=TIERS, scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Machine]:
    yield from machine(request.param)


class Space:
    """An address space: page tables in the machine's memory."""

    def __init__(self, hart: Machine, mode: int) -> None:
        self.hart, self.mode, self.levels = hart, mode, LEVELS[mode]
        self.free = TABLES
        hart.memory.write(TABLES, bytes(0x20000))
        self.root = self.table()
        self.satp = mode << 60 | self.root >> 12

    def table(self) -> int:
        self.free += 4096
        return self.free - 4096

    def slot(self, vaddr: int, level: int = 0) -> int:
        """Where the entry of a virtual address is at a level, 0 being the last; makes the tables above it."""
        table = self.root
        for n in range(self.levels - 1, level, -1):
            place = table + 8 * (vaddr >> 12 + 9 * n & 511)
            if not self.hart.word(place) & V:
                self.hart.put(place, self.table() >> 2 | V)
            table = self.hart.word(place) >> 10 << 12
        return table + 8 * (vaddr >> 12 + 9 * level & 511)

    def map(self, vaddr: int, paddr: int, flags: int, level: int = 0) -> int:
        """Map a page; gives where its entry is."""
        place = self.slot(vaddr, level)
        self.hart.put(place, paddr >> 12 << 10 | flags)
        return place


@pytest.fixture
def hart(shared: Machine) -> Machine:
    shared.reset()
    for cause, instruction in INSTRUCTIONS.items():
        shared.load(f"{instruction}; ecall", CODE + 16 * cause)
    shared.load("ecall", DATA)
    return shared


@pytest.fixture(params=LEVELS, ids=["sv39", "sv48", "sv57"])
def space(request: pytest.FixtureRequest, hart: Machine) -> Space:
    made = Space(hart, request.param)
    hart.state.satp = made.satp
    return made


def attempt(hart: Machine, kind: int, vaddr: int, privilege: int = 1, status: int = 0) -> tuple[int, int]:
    """Cause and value of the trap of an access; (0, 0) if there is none. Data accesses are made with MPRV."""
    state = hart.state
    state.x[11], state.x[12] = vaddr, STORED
    if kind == FETCH:
        state.mstatus = status
        outcome = hart.go(vaddr, privilege)
        done = ECALL[privilege]
    else:
        state.mstatus = status | MPRV | privilege << 11
        outcome = hart.go(CODE + 16 * kind, 3)
        done = ECALL[3]
    state.mstatus = 0
    return (0, 0) if outcome.cause == done else (outcome.cause, outcome.value)


STORED = 0x73  # an ecall, so that where it was stored can be executed next
KINDS = (FETCH, LOAD, STORE)


def test_walk(hart: Machine, space: Space) -> None:
    """Addresses at both ends of the space, read, written and executed through different pages."""
    width = 12 + 9 * space.levels
    for vaddr in (0, 0x1000, (1 << width - 1) - 4096, 2**64 - (1 << width - 1), 2**64 - 4096, 0x12345000):
        space.map(vaddr, DATA, ALL)
        hart.put(DATA + 0x808, 0x1234)
        assert attempt(hart, LOAD, vaddr + 0x808) == (0, 0)
        assert hart.x("a0") == 0x1234
        assert attempt(hart, STORE, vaddr + 0x808) == (0, 0)
        assert hart.word(DATA + 0x808) == STORED
        assert attempt(hart, FETCH, vaddr) == (0, 0)


def test_addresses_that_are_not_canonical(hart: Machine, space: Space) -> None:
    width = 12 + 9 * space.levels
    space.map(0, DATA, ALL)
    for vaddr in (1 << width - 1, 1 << width, 1 << 63, 2**64 - (1 << width), 2**64 - (1 << width - 1) - 4096):
        for kind in KINDS:
            assert attempt(hart, kind, vaddr) == (kind, vaddr), hex(vaddr)


@pytest.mark.parametrize("privilege", [0, 1])
def test_every_combination_of_permissions(hart: Machine, space: Space, privilege: int) -> None:
    for permissions in range(8):
        r, w, x = (bool(permissions & n) for n in (1, 2, 4))
        for user in (0, 1):
            space.map(0x4000_0000, DATA, V | A | D | permissions << 1 | user * U)
            for sum_, mxr in itertools.product((0, 1), (0, 1)):
                status = sum_ * SUM | mxr * MXR
                good = not (w and not r) and permissions != 0
                data = good and (user == privilege ^ 1 or (privilege == 1 and user and sum_))
                expected = {
                    FETCH: good and x and user == privilege ^ 1,
                    LOAD: data and (r or (mxr and x)),
                    STORE: data and w,
                }
                for kind in KINDS:
                    case = f"permissions {permissions:#b}, U {user}, SUM {sum_}, MXR {mxr}, access {kind}"
                    result = attempt(hart, kind, 0x4000_0000, privilege, status)
                    assert result == ((0, 0) if expected[kind] else (kind, 0x4000_0000)), case


def test_entries_that_are_not_valid(hart: Machine, space: Space) -> None:
    """At each level: V clear, bits that are reserved, or set in what is no leaf."""
    vaddr = 0x4000_0000
    for level in range(space.levels):
        space.map(vaddr, DATA, ALL)
        place = space.slot(vaddr, level)
        good = hart.word(place)
        bad = [0, good & ~V, V | W | A | D | good & ~0xFF, good | 1 << 63, good | 1 << 61, good | 1 << 62]
        bad += [good | 1 << n for n in range(54, 61)]
        if level:
            bad += [good | A, good | D, good | U]
        else:
            bad += [good & ~(R | W | X)]
        for entry in bad:
            hart.put(place, entry)
            for kind in KINDS:
                assert attempt(hart, kind, vaddr) == (kind, vaddr), f"level {level}, entry {entry:#x}"
        # RSW and G mean nothing here
        hart.put(place, good | 3 << 8 | G)
        assert attempt(hart, LOAD, vaddr) == (0, 0)
        hart.put(place, good)


def test_tables_outside_memory(hart: Machine, space: Space) -> None:
    """An access fault, not a page fault; also where the page itself is outside."""
    vaddr = 0x4000_0000
    space.map(vaddr, DATA, ALL)
    for level in range(1, space.levels):
        place = space.slot(vaddr, level)
        good = hart.word(place)
        for elsewhere in (0x1000_0000, 0xF_FFFF_FFFF_F000):
            hart.put(place, elsewhere >> 2 | V)
            for kind in KINDS:
                assert attempt(hart, kind, vaddr) == (ACCESS[kind], vaddr)
        hart.put(place, good)
    space.map(vaddr, 0x1000_0000, ALL)
    for kind in KINDS:
        assert attempt(hart, kind, vaddr + 8) == (ACCESS[kind], vaddr + 8)
    hart.state.satp = space.mode << 60 | 0x1000
    for kind in KINDS:
        assert attempt(hart, kind, vaddr) == (ACCESS[kind], vaddr)


@pytest.mark.parametrize("adue", [0, 1], ids=["svade", "svadu"])
def test_accessed_and_dirty(hart: Machine, space: Space, adue: int) -> None:
    vaddr = 0x7000
    hart.state.menvcfg = ADUE * adue
    for flags, kind in itertools.product((0, A, D, A | D), KINDS):
        entry = V | R | W | X | flags
        place = space.map(vaddr, DATA, entry)
        missing = not flags & A or (kind == STORE and not flags & D)
        expected = (kind, vaddr) if missing and not adue else (0, 0)
        assert attempt(hart, kind, vaddr) == expected
        after = entry | A | (D if kind == STORE else 0) if adue else entry
        assert hart.word(place) & 0xFF == after
        assert hart.word(place) >> 10 == DATA >> 12
    # What is not allowed sets nothing.
    for permissions, kind in ((R, STORE), (X, LOAD), (R | W, FETCH), (R | W | X | U, LOAD)):
        place = space.map(vaddr, DATA, V | permissions)
        assert attempt(hart, kind, vaddr) == (kind, vaddr)
        assert hart.word(place) & (A | D) == 0


def test_a_load_does_not_make_a_page_writable(hart: Machine, space: Space) -> None:
    """D is set by the first store, though a load has brought the page into the TLB."""
    place = space.map(0x7000, DATA, V | R | W | A)
    hart.state.menvcfg = ADUE
    hart.state.mstatus = MPRV | 1 << 11
    outcome = hart.run("li a1, 0x7000; ld a0, (a1); nop; ld a0, 8(a1); sd a0, 16(a1); sd a0, (a1); ecall")
    assert outcome.cause == ECALL[3]
    assert hart.word(place) & (A | D) == A | D


def test_superpages(hart: Machine, space: Space) -> None:
    for level in range(1, space.levels):
        size = 1 << 12 + 9 * level
        hart.memory.write(TABLES + 4096, bytes(0x10000))
        hart.memory.write(TABLES, bytes(4096))
        space.free = TABLES + 4096
        vaddr = 3 * size if level < space.levels - 1 else size
        # The page that holds the memory: where in it DATA is
        page, offset = DATA & ~(size - 1), DATA & (size - 1)
        place = space.map(vaddr, page, ALL, level)
        for kind in KINDS:
            assert attempt(hart, kind, vaddr + offset) == (0, 0)
        assert hart.word(DATA) == STORED
        hart.load("ecall", DATA)
        # Each bit of the address that must be zero
        for n in (0, 1, 8, 9 * level - 1):
            hart.put(place, (page >> 12 | 1 << n) << 10 | ALL)
            for kind in KINDS:
                assert attempt(hart, kind, vaddr + offset) == (kind, vaddr + offset)
        # A and D of a superpage
        hart.put(place, page >> 2 | V | R | W)
        assert attempt(hart, LOAD, vaddr + offset) == (LOAD, vaddr + offset)
        hart.state.menvcfg = ADUE
        assert attempt(hart, STORE, vaddr + offset + 8) == (0, 0)
        assert hart.word(place) & 0xFF == V | R | W | A | D
        hart.state.menvcfg = 0


def test_accesses_across_pages(hart: Machine, space: Space) -> None:
    """Both pages, in any order in memory; a fault has the address of the part that caused it."""
    space.map(0x7000, DATA + 0x3000, ALL)
    place = space.map(0x8000, DATA + 0x1000, ALL)
    hart.put(DATA + 0x3FF8, 0x8877665544332211)
    hart.put(DATA + 0x1000, 0xFFEEDDCCBBAA9988)
    assert attempt(hart, LOAD, 0x7FFD) == (0, 0)
    assert hart.x("a0") == 0xCCBBAA9988887766
    assert attempt(hart, STORE, 0x7FFD) == (0, 0)
    assert hart.memory.read(DATA + 0x3FFD, 3) + hart.memory.read(DATA + 0x1000, 5) == (STORED).to_bytes(8, "little")
    hart.put(place, 0)
    before = hart.memory.read(DATA + 0x3FF8, 8)
    for kind in (LOAD, STORE):
        assert attempt(hart, kind, 0x7FFD) == (kind, 0x8000)
        assert attempt(hart, kind, 0x6FFD) == (kind, 0x6FFD)
    assert hart.memory.read(DATA + 0x3FF8, 8) == before
    # An instruction half on each: addi a0, zero, 1
    hart.put(place, DATA + 0x1000 >> 2 | ALL)
    hart.memory.write(DATA + 0x3FFE, b"\x13\x05")
    hart.memory.write(DATA + 0x1000, b"\x10\x00\x73\x00\x00\x00")
    assert attempt(hart, FETCH, 0x7FFE) == (0, 0)
    assert hart.x("a0") == 1
    hart.put(place, DATA + 0x1000 >> 2 | V | R | A)
    assert attempt(hart, FETCH, 0x7FFE) == (FETCH, 0x8000)
    assert hart.state.mepc == 0x7FFE


def test_machine_mode_is_not_translated(hart: Machine, space: Space) -> None:
    hart.load("ld a0, (a1); sd a2, 8(a1); ecall")
    hart.state.x[11] = DATA
    assert hart.go(CODE, 3).cause == ECALL[3]
    assert hart.go(CODE, 1).cause == FETCH


def test_mprv(hart: Machine, space: Space) -> None:
    """Loads and stores of machine mode as of MPP's; fetches are its own. Of MPP machine: none."""
    space.map(0x7000, DATA, ALL)
    space.map(0x8000, DATA, ALL | U)
    for mpp, vaddr, cause in ((1, 0x7000, 0), (1, 0x8000, LOAD), (0, 0x8000, 0), (0, 0x7000, LOAD), (3, 0x7000, 5)):
        hart.state.mstatus = MPRV | mpp << 11
        hart.state.x[11] = vaddr
        outcome = hart.run("ld a0, (a1); ecall")
        assert outcome.cause == (cause or ECALL[3])
    hart.state.mstatus = MPRV | 1 << 11
    hart.state.x[11] = 0x8000
    # Set and taken back within straight code
    outcome = hart.run(f"""
        li t0, {SUM}; csrs mstatus, t0; ld a0, (a1)
        li t1, {MPRV}; csrc mstatus, t1; li a2, {DATA}; ld a0, (a2)
        csrs mstatus, t1; ld a0, (a1)
        csrc mstatus, t0
    1:  ld a0, (a1)
        ecall
    """)
    assert (outcome.cause, outcome.value) == (LOAD, 0x8000)


def test_mxr_takes_effect_at_once(hart: Machine, space: Space) -> None:
    space.map(0x7000, DATA, V | X | A)
    hart.state.mstatus = MPRV | 1 << 11
    hart.state.x[11] = 0x7000
    outcome = hart.run(f"""
        li t0, {MXR}
        csrs sstatus, t0; ld a0, (a1); ld a0, 8(a1)
        csrc mstatus, t0; li a3, 1; ld a0, (a1)
        ecall
    """)
    assert (outcome.cause, outcome.value, hart.x("a3")) == (LOAD, 0x7000, 1)


FLUSHES = ["sfence.vma", "sfence.vma a1", "sfence.vma a1, a2", "sfence.vma zero, a2", "sinval.vma a1, zero",
           "csrw satp, s3; csrw satp, s2"]  # fmt: skip


@pytest.mark.parametrize("flush", FLUSHES)
@pytest.mark.parametrize("level", [0, 1])
def test_fences_forget(hart: Machine, space: Space, flush: str, level: int) -> None:
    """The entry changes after it was used; behind the fence the new one counts."""
    size = 1 << 12 + 9 * level
    vaddr = 5 * size
    page, offset = (DATA & ~(size - 1), DATA & (size - 1)) if level else (DATA, 0)
    place = space.map(vaddr, page, ALL, level)
    hart.put(DATA, 0x11)
    # The page tables are reached in machine mode, by taking MPRV back.
    hart.state.x[18], hart.state.x[19] = space.satp, 0
    hart.state.mstatus = 1 << 11
    outcome = hart.run(f"""
        li t0, {MPRV}; li a1, {vaddr + offset}; li a2, 0
        csrs mstatus, t0
        ld a3, (a1); sd a3, 8(a1)
        csrc mstatus, t0
        li t1, {place}; ld t2, (t1); andi t2, t2, {~W}; sd t2, (t1)
        {flush}
        csrs mstatus, t0
        ld a4, (a1)
        sd a3, 8(a1)
        ecall
    """)
    assert (outcome.cause, outcome.value) == (STORE, vaddr + offset + 8)
    assert (hart.x("a3"), hart.x("a4")) == (0x11, 0x11)


def test_satp_takes_effect_at_the_next_instruction(hart: Machine, space: Space) -> None:
    """Supervisor code turns translation on; its next instruction is fetched through it."""
    hart.state.satp = 0
    hart.load(f"li t0, {space.satp}; csrw satp, t0; li a0, 1; ecall")
    outcome = hart.go(CODE, 1)
    assert (outcome.cause, outcome.value) == (FETCH, outcome.pc)
    hart.state.satp = 0
    # The same page elsewhere: other code from there on
    hart.load("nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; nop; li a0, 2; ecall", DATA)
    hart.load(f"li a0, 1; li t0, {space.satp}; csrw satp, t0; li a0, 3; ecall")
    space.map(CODE, DATA, ALL)
    assert hart.go(CODE, 1).cause == ECALL[1]
    assert hart.x("a0") == 2


def test_user_and_supervisor_have_their_own_view(hart: Machine, space: Space) -> None:
    """A round of user, supervisor and machine mode on the same page, as cached translations would show."""
    space.map(0x7000, DATA, ALL | U)
    space.map(0x8000, DATA + 0x1000, ALL)
    hart.load("ld a0, (a1); ecall", DATA)
    hart.load("ld a0, (a1); ecall", DATA + 0x1000)
    hart.state.x[11] = 0x7000
    for _ in range(2):
        assert hart.go(0x7000, 0).cause == ECALL[0]
        assert hart.go(0x7000, 1).cause == FETCH
        assert hart.go(0x8000, 1).cause == LOAD
        hart.state.mstatus = SUM
        assert hart.go(0x8000, 1).cause == ECALL[1]
        hart.state.mstatus = 0
        assert hart.go(0x8000, 0).cause == FETCH
        assert hart.go(DATA, 3).cause == 5


def test_atomics_and_stores_need_the_same(hart: Machine, space: Space) -> None:
    space.map(0x7000, DATA, V | R | A | D)
    hart.state.x[11] = 0x7000
    pair = "lr.d a0, (a1); sc.d a0, a0, (a1)"
    for instruction, cause in (("amoadd.d a0, a0, (a1)", STORE), ("lr.d a0, (a1)", 0), (pair, STORE)):
        hart.state.mstatus = MPRV | 1 << 11
        assert hart.run(f"{instruction}; ecall").cause == (cause or ECALL[3])
    hart.state.mstatus = MPRV | 1 << 11
    hart.state.x[11] = 0x9000
    assert hart.run("lr.w a0, (a1); ecall").cause == LOAD
