"""Physical memory protection: matching, priority, locks, and rules that change within a page (3.7)."""

import random
from collections.abc import Iterator

import pytest

from support.privileged import CODE, DATA, ECALL, SIZE, TABLES, TIERS, Machine, machine

OFF, TOR, NA4, NAPOT = 0, 8, 16, 24
R, W, X, L = 1, 2, 4, 128
FETCH_ACCESS, LOAD_ACCESS, STORE_ACCESS = 1, 5, 7
MASK = (1 << 54) - 1
# Entry 15 lets lower modes run their code, with the lowest priority.
CODE_NAPOT = CODE >> 2 | 0x1FF


def napot(base: int, size: int) -> int:
    return base >> 2 | (size >> 3) - 1


@pytest.fixture(params=TIERS, scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Machine]:
    yield from machine(request.param)


@pytest.fixture
def hart(shared: Machine) -> Machine:
    shared.reset()
    return shared


def configure(hart: Machine, *entries: tuple[int, int], code: bool = True) -> None:
    """Give the PMP these (configuration, address) in order, through its registers; then code is let through."""
    table = [*entries, *[(0, 0)] * (15 - len(entries)), (NAPOT | R | X if code else 0, CODE_NAPOT if code else 0)]
    hart.put(TABLES, *(a for _, a in table))
    low = sum(c << 8 * i for i, (c, _) in enumerate(table[:8]))
    high = sum(c << 8 * i for i, (c, _) in enumerate(table[8:]))
    addresses = "\n".join(f"ld t1, {8 * i}(t0); csrw pmpaddr{i}, t1" for i in range(16))
    outcome = hart.run(f"""
        csrw pmpcfg0, zero; csrw pmpcfg2, zero
        li t0, {TABLES}
        {addresses}
        li t0, {low}; csrw pmpcfg0, t0
        li t0, {high}; csrw pmpcfg2, t0
        ecall
    """)
    assert outcome.cause == ECALL[3]


def attempt(hart: Machine, instruction: str, address: int, privilege: int = 1) -> tuple[int, int]:
    """Cause and value of the trap of an access at ``address``; (0, 0) if there is none."""
    hart.state.x[11] = address
    outcome = hart.run(f"{instruction}; ecall", privilege)
    return (0, 0) if outcome.cause == ECALL[privilege] else (outcome.cause, outcome.value)


def loads(hart: Machine, address: int, privilege: int = 1) -> bool:
    return attempt(hart, "lw a0, (a1)", address, privilege) == (0, 0)


def test_without_entries_only_machine_mode_has_access(hart: Machine) -> None:
    configure(hart, code=False)
    for privilege in (0, 1):
        assert hart.run("ecall", privilege).cause == FETCH_ACCESS
    assert hart.run("ecall", 3).cause == ECALL[3]
    assert loads(hart, DATA, 3)
    # Nor with entries that match nothing.
    configure(hart, (TOR | R | W | X, 0), code=False)
    assert hart.run("ecall", 1).cause == FETCH_ACCESS
    assert loads(hart, DATA, 3)


@pytest.mark.parametrize("permissions", [0, R, X, R | W, R | X, R | W | X])
@pytest.mark.parametrize("privilege", [0, 1, 3])
def test_permissions(hart: Machine, permissions: int, privilege: int) -> None:
    locked = L if privilege == 3 else 0
    configure(hart, (NAPOT | permissions | locked, napot(DATA, 4096)))
    has = {access: bool(permissions & access) for access in (R, W, X)}
    hart.load("ecall", DATA + 64)
    assert attempt(hart, "ld a0, (a1)", DATA + 8, privilege) == ((0, 0) if has[R] else (LOAD_ACCESS, DATA + 8))
    assert attempt(hart, "sd a0, (a1)", DATA + 8, privilege) == ((0, 0) if has[W] else (STORE_ACCESS, DATA + 8))
    assert attempt(hart, "lr.d a0, (a1)", DATA + 8, privilege) == ((0, 0) if has[R] else (LOAD_ACCESS, DATA + 8))
    expected = (0, 0) if has[W] else (STORE_ACCESS, DATA + 8)
    assert attempt(hart, "amoadd.d a0, zero, (a1)", DATA + 8, privilege) == expected
    assert attempt(hart, "jr a1", DATA + 64, privilege) == ((0, 0) if has[X] else (FETCH_ACCESS, DATA + 64))


def test_unlocked_entries_do_not_bind_machine_mode(hart: Machine) -> None:
    configure(hart, (NAPOT, napot(DATA, 4096)))
    assert loads(hart, DATA, 3)
    assert not loads(hart, DATA, 1)
    # But with MPRV they do.
    outcome = hart.run(f"""
        li t0, 0x21800; csrc mstatus, t0; li t0, 0x20800; csrs mstatus, t0
        li a1, {DATA}; ld a0, (a1)
        ecall
    """)
    assert (outcome.cause, outcome.value) == (LOAD_ACCESS, DATA)
    hart.state.mstatus = 0


@pytest.mark.parametrize("mode, base, size", [
    (NA4, DATA, 4), (NA4, DATA + 0xFFC, 4), (NAPOT, DATA + 8, 8), (NAPOT, DATA + 0x40, 64), (NAPOT, DATA, 4096),
    (NAPOT, DATA, 0x10000), (TOR, DATA + 4, 12), (TOR, DATA + 0xFF0, 0x20), (TOR, DATA, 0x3000),
])  # fmt: skip
def test_ranges(hart: Machine, mode: int, base: int, size: int) -> None:
    """What is inside is allowed, what is next to it is not."""
    if mode == TOR:
        configure(hart, (OFF, base >> 2), (TOR | R, base + size >> 2))
    else:
        configure(hart, (mode | R, base >> 2 if mode == NA4 else napot(base, size)))
    for address in (base, base + size - 4):
        assert loads(hart, address), hex(address)
    for address in (base - 4, base + size):
        assert not loads(hart, address), hex(address)
    # Again, so that what was cached for one word is not used for another.
    assert loads(hart, base)
    assert not loads(hart, base + size)


def test_tor_entry_0_starts_at_0_and_empty_ranges_match_nothing(hart: Machine) -> None:
    configure(hart, (TOR | R | X, DATA + 0x1000 >> 2), (TOR, DATA >> 2), (NAPOT | R | W, napot(DATA + 0x1000, 4096)))
    assert loads(hart, DATA + 0xFFC)
    assert loads(hart, DATA + 0x1000)
    assert not loads(hart, DATA + 0x2000)
    # The address of an entry that is in another mode still is the start of the next.
    configure(hart, (NA4 | R, DATA >> 2), (TOR | R, DATA + 0x10 >> 2))
    assert [loads(hart, DATA + n) for n in (-4, 0, 4, 0xC, 0x10)] == [False, True, True, True, False]


def test_the_lowest_entry_that_matches_decides(hart: Machine) -> None:
    configure(hart, (NA4, DATA + 8 >> 2), (NAPOT | R, napot(DATA, 64)), (NAPOT | R | W, napot(DATA, 4096)))
    assert [loads(hart, DATA + n) for n in (0, 4, 8, 12, 60, 64)] == [True, True, False, True, True, True]
    stores = [attempt(hart, "sw a0, (a1)", DATA + n)[0] for n in (0, 8, 60, 64, 4092)]
    assert stores == [STORE_ACCESS, STORE_ACCESS, STORE_ACCESS, 0, 0]


@pytest.mark.parametrize("address, all_of_it", [(DATA - 4, False), (DATA, True), (DATA + 8, False), (DATA + 2, True),
                                                (DATA + 5, False), (DATA + 4, True)])
@pytest.mark.parametrize("access", ["ld a0, (a1)", "sd a0, (a1)"])
def test_all_bytes_of_an_access_must_be_allowed(hart: Machine, address: int, all_of_it: bool, access: str) -> None:
    configure(hart, (OFF, DATA >> 2), (TOR | R | W, DATA + 12 >> 2))
    hart.put(DATA - 8, *[0] * 4)
    hart.state.x[10] = 2**64 - 1
    before = hart.memory.read(DATA - 8, 32)
    cause, value = attempt(hart, access, address)
    if all_of_it:
        assert cause == 0
    else:
        assert cause == (LOAD_ACCESS if access[0] == "l" else STORE_ACCESS)
        assert address <= value < address + 8
        assert hart.memory.read(DATA - 8, 32) == before


def test_all_bytes_of_an_atomic_access_must_be_allowed(hart: Machine) -> None:
    configure(hart, (OFF, DATA >> 2), (TOR | R | W, DATA + 12 >> 2))
    assert attempt(hart, "amoswap.d a0, a0, (a1)", DATA)[0] == 0
    assert attempt(hart, "amoswap.d a0, a0, (a1)", DATA + 8)[0] == STORE_ACCESS
    assert attempt(hart, "amoswap.w a0, a0, (a1)", DATA + 8)[0] == 0
    assert attempt(hart, "lr.d a0, (a1)", DATA + 8)[0] == LOAD_ACCESS


def test_code_may_end_within_a_page(hart: Machine) -> None:
    """Running straight on, or jumping within the page, into what may not be executed."""
    here = DATA
    hart.load("addi a0, zero, 1; addi a0, a0, 1; addi a0, a0, 1; addi a0, a0, 1; ecall", here)
    configure(hart, (TOR | R | X, here + 8 >> 2), code=False)
    for _ in range(3):
        outcome = hart.go(here, 1)
        assert (outcome.cause, outcome.value, outcome.pc) == (FETCH_ACCESS, here + 8, here + 8)
        assert hart.x("a0") == 2
    # All of it is executed in machine mode, then not again in supervisor mode.
    assert hart.go(here, 3).cause == ECALL[3]
    assert hart.x("a0") == 4
    assert hart.go(here, 1).pc == here + 8
    # A jump within the page
    hart.load("li a0, 1; j 1f; nop; nop; nop; nop; 1: li a0, 2; ecall", here)
    outcome = hart.go(here, 1)
    assert (outcome.cause, outcome.pc, hart.x("a0")) == (FETCH_ACCESS, here + 24, 1)
    # A loop, and a backward jump to before the range
    configure(hart, (OFF, here + 8 >> 2), (TOR | R | X, here + 0x40 >> 2), code=False)
    hart.load("""
        nop; nop
        li a0, 0; li a2, 10
    1:  addi a0, a0, 1; addi a3, a0, 0; blt a0, a2, 1b
        j . - 32
    """, here)
    outcome = hart.go(here + 8, 1)
    assert (outcome.cause, outcome.value, hart.x("a0"), hart.x("a3")) == (FETCH_ACCESS, here + 28 - 32 + 0, 10, 10)


def test_an_instruction_across_two_regions(hart: Machine) -> None:
    """Its second half may not be fetched: the value is the address of that half."""
    hart.memory.write(DATA, bytes.fromhex("0100") + bytes.fromhex("1305150001000100") + bytes(8))  # nop; addi a0, a0, 1
    configure(hart, (TOR | R | X, DATA + 4 >> 2), code=False)
    outcome = hart.go(DATA, 1)
    assert (outcome.cause, outcome.value, outcome.pc) == (FETCH_ACCESS, DATA + 4, DATA + 2)


def test_steps_in_a_page_of_two_rules(hart: Machine) -> None:
    hart.load("addi a0, zero, 1; addi a0, a0, 1; j . - 4; nop", DATA)
    configure(hart, (TOR | R | X, DATA + 12 >> 2), code=False)
    state = hart.state
    state.pc, state.privilege = DATA, 1
    hart.cpu.flush()
    seen = []
    for _ in range(7):
        hart.cpu.step()
        seen.append((int(state.pc) - DATA, hart.x("a0")))
    assert seen == [(4, 1), (8, 2), (4, 2), (8, 3), (4, 3), (8, 4), (4, 4)]


def test_a_change_takes_effect_at_once(hart: Machine) -> None:
    """Machine mode with MPRV: a store, the permission goes, the same store again; and the next instruction's."""
    configure(hart, (NAPOT | R | W, napot(DATA, 4096)))
    outcome = hart.run(f"""
        li t0, 0x21800; csrc mstatus, t0; li t0, 0x20800; csrs mstatus, t0
        li a1, {DATA}
        sd zero, (a1); ld a0, (a1)
        csrci pmpcfg0, 2
        ld a0, (a1)
    1:  sd zero, (a1)
        ecall
    """)
    assert (outcome.cause, outcome.value) == (STORE_ACCESS, DATA)
    hart.state.mstatus = 0
    configure(hart, (NAPOT | R | W, napot(DATA, 4096)))
    outcome = hart.run(f"""
        li t0, 0x21800; csrc mstatus, t0; li t0, 0x20800; csrs mstatus, t0
        li a1, {DATA}; sd zero, (a1)
        li t0, {napot(DATA + 4096, 4096)}; csrw pmpaddr0, t0
        sd zero, (a1)
        ecall
    """)
    assert (outcome.cause, outcome.value) == (STORE_ACCESS, DATA)
    hart.state.mstatus = 0
    # The page that is being executed: locked and without X
    hart.reset()
    hart.state.pmpcfg[0] = 0
    hart.load("csrw pmpcfg0, a0; nop; nop; ecall", DATA)
    hart.state.x[10] = NAPOT | L | R
    hart.state.pmpaddr[0] = napot(DATA, 4096)
    outcome = hart.go(DATA, 3)
    assert (outcome.cause, outcome.value) == (FETCH_ACCESS, DATA + 4)


def test_page_tables_are_read_as_supervisor(hart: Machine) -> None:
    """The table may not be read: an access fault of the kind of the access, at the virtual address."""
    configure(hart, (NAPOT | R, napot(TABLES + 0x8000, 4096)), (NAPOT, napot(TABLES, 4096)),
              (NAPOT | R | W | X, napot(0x8000_0000, SIZE)))
    state = hart.state
    hart.put(TABLES + 8 * 2, 0x8000_0000 >> 2 | 0xCF)
    hart.put(TABLES + 0x8000 + 8 * 2, 0x8000_0000 >> 2 | 0xF)  # A and D clear
    hart.load("ld a0, (a1); ecall")
    for privilege, instruction in ((1, "ld a0, (a1)"), (1, "sd a0, (a1)")):
        state.satp = 8 << 60 | TABLES >> 12
        state.x[11] = DATA
        hart.load(f"{instruction}; ecall")
        state.mstatus = 1 << 17 | privilege << 11
        outcome = hart.go(CODE, 3)
        assert outcome.value == DATA
        assert outcome.cause == (LOAD_ACCESS if instruction[0] == "l" else STORE_ACCESS)
        # A table that can be read but not written, where A and D must be set
        state.satp = 8 << 60 | TABLES + 0x8000 >> 12
        state.menvcfg = 1 << 61
        state.mstatus = 1 << 17 | privilege << 11
        outcome = hart.go(CODE, 3)
        assert outcome.value == DATA
        assert outcome.cause == (LOAD_ACCESS if instruction[0] == "l" else STORE_ACCESS)
    assert hart.word(TABLES + 0x8000 + 16) == 0x8000_0000 >> 2 | 0xF
    state.mstatus = state.satp = 0


# The registers


def test_configuration_is_legal(hart: Machine) -> None:
    """Bits 5 and 6 are zero; W without R is reserved, and becomes neither."""
    rng = random.Random(7)
    for value in [0x7F7F7F7F7F7F7F7F, 0, *(rng.getrandbits(64) & 0x7F7F7F7F7F7F7F7F for _ in range(8))]:
        outcome = hart.run(f"li a0, {value}; csrw pmpcfg2, a0; csrr a1, pmpcfg2; csrw pmpcfg2, zero; ecall")
        assert outcome.cause == ECALL[3]
        expected = 0
        for i in range(8):
            byte = value >> 8 * i & 0x1F
            expected |= (byte & ~3 if byte & 3 == 2 else byte) << 8 * i
        assert hart.x("a1") == expected


def test_locked_entries_stay(hart: Machine) -> None:
    hart.run("""
        li a0, 0x123456; csrw pmpaddr3, a0; csrw pmpaddr2, a0; csrw pmpaddr4, a0
        li a0, 0x99000000; csrs pmpcfg0, a0     # 3: locked, NAPOT, R
        li a0, 0x654321; csrw pmpaddr3, a0; csrr a1, pmpaddr3
        csrw pmpaddr2, a0; csrr a2, pmpaddr2
        csrw pmpaddr4, a0; csrr a3, pmpaddr4
        li a0, 0xff000000; csrc pmpcfg0, a0; csrr a4, pmpcfg0
        ecall
    """)
    assert [hart.x(f"a{n}") for n in (1, 2, 3)] == [0x123456, 0x654321, 0x654321]
    assert hart.x("a4") >> 24 & 0xFF == 0x99


@pytest.mark.parametrize("mode, below_locked", [(OFF, False), (TOR, True), (NA4, False), (NAPOT, False)])
def test_a_locked_tor_entry_locks_the_address_below(hart: Machine, mode: int, below_locked: bool) -> None:
    """Also from one configuration register to the other: entry 8 is in pmpcfg2."""
    hart.run(f"""
        li a0, 0x111; csrw pmpaddr7, a0; csrw pmpaddr8, a0
        li a0, {L | mode}; csrw pmpcfg2, a0
        li a0, 0x222; csrw pmpaddr7, a0; csrw pmpaddr8, a0
        csrr a1, pmpaddr7; csrr a2, pmpaddr8
        ecall
    """)
    assert hart.x("a1") == (0x111 if below_locked else 0x222)
    assert hart.x("a2") == 0x111


def test_all_sixteen_entries(hart: Machine) -> None:
    entries = [(NA4 | (R if n % 3 else 0), DATA + 4 * n >> 2) for n in range(15)]
    configure(hart, *entries)
    assert [loads(hart, DATA + 4 * n) for n in range(16)] == [bool(n % 3) for n in range(15)] + [False]
    configure(hart, *[(OFF, 0)] * 14, (NAPOT | R | X, MASK))
    assert loads(hart, DATA)


def test_the_widest_ranges(hart: Machine) -> None:
    configure(hart, (NAPOT | R | X, MASK))
    assert loads(hart, DATA)
    configure(hart, (NAPOT | R | X, MASK >> 1))
    assert loads(hart, DATA)
    configure(hart, (TOR | R | X, MASK))
    assert loads(hart, DATA)
