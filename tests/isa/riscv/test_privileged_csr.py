"""Control and status registers: what they hold after a write, who may access them, counters.

The expected values are written down here from the Privileged Architecture, not taken from the description.
"""

import random
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64
from support.privileged import ECALL, TIERS, Machine, machine

ALL = 2**64 - 1
ILLEGAL = 2


@pytest.fixture(params=TIERS, scope="module")
def shared(request: pytest.FixtureRequest) -> Iterator[Machine]:
    yield from machine(request.param)


@pytest.fixture
def hart(shared: Machine) -> Machine:
    shared.reset()
    return shared


# What a register holds after ``value`` was written where ``old`` was before.
Legal = Callable[[int, int], int]


def masked(mask: int, constant: int = 0) -> Legal:
    return lambda value, old: value & mask | constant


def fixed(constant: int) -> Legal:
    return lambda value, old: constant


def mstatus(value: int, old: int) -> int:
    fields = 0x2 | 0x8 | 0x20 | 0x80 | 0x100 | 3 << 13 | 0x3F << 17
    new = value & fields
    mpp = value >> 11 & 3
    new |= (mpp if mpp != 2 else old >> 11 & 3) << 11
    new |= 2 << 32 | 2 << 34  # UXL and SXL: 64 bits
    return new | 1 << 63 if new >> 13 & 3 == 3 else new


def sstatus(value: int, old: int) -> int:
    new = value & (0x2 | 0x20 | 0x100 | 3 << 13 | 1 << 18 | 1 << 19) | 2 << 32
    return new | 1 << 63 if new >> 13 & 3 == 3 else new


def tvec(value: int, old: int) -> int:
    return value & ~2


def satp(value: int, old: int) -> int:
    return value & (0xF << 60 | (1 << 44) - 1) if value >> 60 in (0, 8, 9, 10) else old


REGISTERS: dict[str, Legal] = {
    "mstatus": mstatus,
    "misa": fixed(2 << 62 | sum(1 << ord(c) - 65 for c in "ACDFIMSU")),
    "medeleg": masked(0xB3FF),
    "mideleg": masked(0x222),
    "mie": masked(0xAAA),
    "mtvec": tvec,
    "mcounteren": masked(0xFFFF_FFFF),
    "mcountinhibit": masked(5),
    "mscratch": masked(ALL),
    "mepc": masked(ALL - 1),
    "mcause": masked(ALL),
    "mtval": masked(ALL),
    "mip": masked(0x222),
    "menvcfg": masked(1 << 63 | 1 << 61 | 1),
    "mvendorid": fixed(0),
    "sstatus": sstatus,
    "stvec": tvec,
    "scounteren": masked(0xFFFF_FFFF),
    "senvcfg": masked(1),
    "sscratch": masked(ALL),
    "sepc": masked(ALL - 1),
    "scause": masked(ALL),
    "stval": masked(ALL),
    "satp": satp,
    "stimecmp": masked(ALL),
    "fflags": masked(31),
    "frm": masked(7),
    "fcsr": masked(255),
    "mhpmcounter3": fixed(0),
    "mhpmcounter31": fixed(0),
    "mhpmevent3": fixed(0),
    "mhpmevent31": fixed(0),
    "tselect": fixed(0),
    "tdata1": fixed(0),
    "pmpaddr0": masked((1 << 54) - 1),
    "pmpaddr15": masked((1 << 54) - 1),
    "pmpaddr16": fixed(0),
    "pmpaddr63": fixed(0),
    "pmpcfg4": fixed(0),
    "pmpcfg14": fixed(0),
}
READ_ONLY = {"mvendorid", "marchid", "mimpid", "mhartid", "mconfigptr", "cycle", "time", "instret"}
NEEDS_FP = {"fflags", "frm", "fcsr"}


@pytest.mark.parametrize("name", REGISTERS)
def test_a_write_leaves_a_legal_value(hart: Machine, name: str) -> None:
    legal = REGISTERS[name]
    rng = random.Random(name)
    values = [ALL, 0, *(rng.getrandbits(64) for _ in range(16)), *(rng.randrange(16) << 60 | 5 for _ in range(6))]
    if name in READ_ONLY:
        return
    hart.state.mie = hart.state.mideleg = 0
    prepare = "li t0, 0x6000; csrs mstatus, t0" if name in NEEDS_FP else ""
    # The values are read from memory one by one, and what is read back replaces them.
    hart.put(DATA_IN, *values)
    outcome = hart.run(f"""
        {prepare}
        csrr s2, {name}
        li s0, {DATA_IN}; li s1, {DATA_IN + 8 * len(values)}
    1:  ld a0, (s0)
        csrw {name}, a0
        csrr a1, {name}
        sd a1, (s0)
        addi s0, s0, 8
        bne s0, s1, 1b
        csrwi mie, 0
        csrwi satp, 0
        li t0, {0x80000000}; csrw mtvec, t0
        li t0, 0x20000; csrc mstatus, t0
        ecall
    """)
    assert outcome.cause == 11
    old = hart.x("s2")
    for n, value in enumerate(values):
        read = hart.word(DATA_IN + 8 * n)
        assert read == legal(value, old), f"{name} = {value:#x} after {old:#x}: {read:#x}, not {legal(value, old):#x}"
        old = read


DATA_IN = 0x8001_0000


@pytest.mark.parametrize("name", ["mscratch", "sscratch", "medeleg", "mstatus", "mie"])
def test_set_and_clear_bits(hart: Machine, name: str) -> None:
    legal = REGISTERS[name]
    rng = random.Random(name + "bits")
    old = None
    for _ in range(6):
        start, ones = rng.getrandbits(64) & ~0x20000, rng.getrandbits(64) & ~0x20000
        outcome = hart.run(f"""
            li a0, {start}; li a1, {ones}
            csrw {name}, a0
            csrrs a2, {name}, a1
            csrrc a3, {name}, a1
            csrrsi a4, {name}, 21
            csrrci a5, {name}, 9
            csrrwi a6, {name}, 31
            csrrw a7, {name}, zero
            ecall
        """)
        assert outcome.cause == 11
        old = hart.x("a2")
        assert hart.x("a3") == legal(old | ones, old)
        assert hart.x("a4") == legal(hart.x("a3") & ~ones, hart.x("a3"))
        assert hart.x("a5") == legal(hart.x("a4") | 21, hart.x("a4"))
        assert hart.x("a6") == legal(hart.x("a5") & ~9, hart.x("a5"))
        assert hart.x("a7") == legal(31, hart.x("a6"))


def test_mstatus_and_sstatus_are_one_register(hart: Machine) -> None:
    hart.run("""
        li a0, -1; csrw mstatus, a0; csrw sstatus, zero; csrr a1, mstatus; li t0, 0x20000; csrc mstatus, t0; ecall
    """)
    assert hart.x("a1") == mstatus(ALL, 0) & ~(sstatus(ALL, 0) & ~(2 << 32))
    hart.run("csrw mstatus, zero; li a0, -1; csrw sstatus, a0; csrr a1, mstatus; ecall")
    assert hart.x("a1") == sstatus(ALL, 0) | 2 << 34


def test_sie_and_sip_show_what_is_delegated(hart: Machine) -> None:
    hart.run("""
        li a0, -1; csrw mie, a0; csrw mip, a0
        csrr a1, sie; csrr a2, sip
        li t0, 0x202; csrw mideleg, t0
        csrr a3, sie; csrr a4, sip
        csrw sie, zero; csrw sip, zero
        csrr a5, mie; csrr a6, mip
        ecall
    """)
    assert (hart.x("a1"), hart.x("a2")) == (0, 0)
    assert (hart.x("a3"), hart.x("a4")) == (0x202, 0x202)
    assert hart.x("a5") == 0xAAA & ~0x202
    assert hart.x("a6") == 0x220, "of sip only SSIP is writable"


def test_stip_is_the_timers_with_stce(hart: Machine) -> None:
    hart.state.stimecmp = ALL
    hart.run("""
        li a0, -1; csrw mip, a0; csrr a1, mip
        li t0, -0x8000000000000000; csrs menvcfg, t0
        csrr a2, mip
        csrw mip, zero
        csrw stimecmp, zero
        csrr a3, mip
        csrw mip, zero; csrr a4, mip
        li t0, -1; csrw stimecmp, t0
        csrs mip, t0; csrr a5, mip
        ecall
    """)
    assert [hart.x(f"a{n}") for n in range(1, 6)] == [0x222, 0x202, 0x020, 0x020, 0x202]


def test_the_lines_are_not_written_back(hart: Machine) -> None:
    """csrrs of another bit must not make SEIP stick that the PLIC drives (3.1.9)."""
    hart.state.line_seip = 1
    hart.run("csrr a1, mip; csrsi mip, 2; csrr a2, mip; ecall")
    hart.state.line_seip = 0
    hart.run("csrr a3, mip; ecall")
    assert [hart.x(f"a{n}") for n in range(1, 4)] == [0x200, 0x202, 0x002]


def test_lines_show_in_mip_and_are_not_writable(hart: Machine) -> None:
    state = hart.state
    state.line_msip = state.line_meip = state.line_mtip = 1
    hart.run("csrr a0, mip; csrw mip, zero; csrr a1, mip; ecall")
    assert (hart.x("a0"), hart.x("a1")) == (0x888, 0x888)
    state.line_msip = state.line_meip = state.line_mtip = 0
    state.raise_ssip = 1
    hart.run("li t0, -1; csrr a0, mip; csrc mip, t0; csrr a1, mip; ecall")
    assert (hart.x("a0"), hart.x("a1")) == (2, 0)


# Access


def exists(number: int) -> bool:
    """Whether there is a register of this number."""
    return (
        number in {0x001, 0x002, 0x003, 0x100, 0x104, 0x105, 0x106, 0x10A, 0x14D, 0x180}
        or 0x140 <= number <= 0x144
        or number in {0x300, 0x301, 0x302, 0x303, 0x304, 0x305, 0x306, 0x30A, 0x320, 0x340, 0x341, 0x342, 0x343, 0x344}
        or 0x323 <= number <= 0x33F
        or (0x3A0 <= number <= 0x3AF and number % 2 == 0)
        or 0x3B0 <= number <= 0x3EF
        or 0x7A0 <= number <= 0x7A3
        or (0xB00 <= number <= 0xB1F and number != 0xB01)
        or 0xC00 <= number <= 0xC1F
        or 0xF11 <= number <= 0xF15
    )


TABLE = 0x8002_0000


@cache
def encoded(text: str) -> bytes:
    return assemble(rv64, text).bytes


def access_results(hart: Machine, form: str, privilege: int, numbers: list[int]) -> list[bool]:
    """For each register, whether ``form`` (of csr {n}) is legal in that mode; the machine's handler counts."""
    count = len(numbers)
    hart.memory.write(0x8001_0000, bytes(count))
    # The handler marks the case in s0 and skips the instruction; ecall ends.
    hart.load("""
        csrrw t0, mscratch, t0
        csrr t0, mcause
        addi t0, t0, -2
        bnez t0, 1f
        csrr t0, mtval
        bne t0, s2, 1f
        li t0, 1
        sb t0, (s0)
        csrr t0, mepc
        addi t0, t0, 4
        csrw mepc, t0
        csrrw t0, mscratch, t0
        mret
    1:  wfi
        j .
    """, 0x8000_0800)
    # Assembled once; the register's number is in the upper bits.
    before, after = encoded("lwu s2, (s3); addi s3, s3, 4"), encoded("addi s0, s0, 1")
    word = encoded(form.format(n=0))
    instruction = int.from_bytes(word, "little")
    words = [(instruction | n << 20).to_bytes(4, "little") for n in numbers]
    hart.memory.write(TABLE, b"".join(words))
    start = encoded(f"li s0, 0x80010000; li s3, {TABLE}")
    hart.memory.write(0x8000_1000, start + b"".join(before + w + after for w in words) + encoded("ecall"))
    hart.state.mtvec = 0x8000_0800
    hart.state.pc, hart.state.privilege = 0x8000_1000, privilege
    hart.cpu.flush()
    found = hart.cpu.run(1_000_000)
    assert (found.kind, found.reason) == ("leave", "wfi")
    assert hart.state.mcause == ECALL[privilege], hex(hart.state.mepc)
    return [flag == 0 for flag in hart.memory.read(0x8001_0000, count)]


SAMPLE = sorted({
    *range(0x000, 0x020), *range(0x100, 0x112), *range(0x140, 0x150), 0x180, 0x181, 0x200, 0x204, 0x244, 0x280,
    *range(0x300, 0x34C), *range(0x39F, 0x3F2), 0x5A8, 0x600, 0x602, 0x645, 0x680, 0x747, 0x757, *range(0x7A0, 0x7B4),
    *range(0xB00, 0xB22), *range(0xB80, 0xB84), *range(0xC00, 0xC22), *range(0xC80, 0xC84), 0xDA0, 0xE12,
    *range(0xF0F, 0xF18), 0xFB0, 0xFFF,
})  # fmt: skip


def sample(hart: Machine) -> list[int]:
    """Numbers of registers, existing or not; fewer for the slow tier."""
    return SAMPLE if hart.tier == "native" else SAMPLE[::5]


@pytest.mark.parametrize("privilege", [0, 1, 3])
def test_reads_need_privilege(hart: Machine, privilege: int) -> None:
    hart.state.mstatus = 3 << 13
    hart.state.mcounteren = hart.state.scounteren = 0xFFFF_FFFF
    hart.state.menvcfg = 1 << 63
    numbers = sample(hart)
    expected = [exists(n) and n >> 8 & 3 <= privilege for n in numbers]
    results = access_results(hart, "csrrs a0, {n}, zero", privilege, numbers)
    assert [hex(n) for n, a, b in zip(numbers, results, expected, strict=True) if a != b] == []


@pytest.mark.parametrize("form", ["csrrs a0, {n}, a1", "csrrci a0, {n}, 1", "csrrwi zero, {n}, 0"])
@pytest.mark.parametrize("privilege", [0, 1])
def test_writes_need_privilege_and_a_writable_register(hart: Machine, privilege: int, form: str) -> None:
    """a1 is 0: the register does not change, but this is a write."""
    hart.state.mstatus = 3 << 13
    hart.state.mcounteren = hart.state.scounteren = 0xFFFF_FFFF
    hart.state.menvcfg = 1 << 63
    hart.state.x[11] = 0
    numbers = [n for n in sample(hart) if n not in (0x105, 0x180)]
    expected = [exists(n) and n >> 8 & 3 <= privilege and n >> 10 != 3 for n in numbers]
    results = access_results(hart, form, privilege, numbers)
    assert [hex(n) for n, a, b in zip(numbers, results, expected, strict=True) if a != b] == []


def test_machine_mode_cannot_write_read_only_registers(hart: Machine) -> None:
    hart.state.x[11] = 0
    numbers = [n for n in sample(hart) if n >> 10 == 3]
    assert not any(access_results(hart, "csrrs a0, {n}, a1", 3, numbers))
    assert not any(access_results(hart, "csrrw zero, {n}, a1", 3, numbers))
    hart.reset()
    numbers = [n for n in sample(hart) if n >> 10 != 3 and n not in (0x001, 0x002, 0x003, 0x305, 0x340)]
    results = access_results(hart, "csrrs a0, {n}, a1", 3, numbers)
    assert [n for n, ok in zip(numbers, results, strict=True) if ok] == [n for n in numbers if exists(n)]


def test_floating_point_registers_need_fs(hart: Machine) -> None:
    hart.state.mstatus = 0
    assert access_results(hart, "csrrs a0, {n}, zero", 3, [1, 2, 3]) == [False] * 3
    assert access_results(hart, "csrrwi zero, {n}, 0", 0, [1, 2, 3]) == [False] * 3
    hart.state.mstatus = 1 << 13
    assert access_results(hart, "csrrs a0, {n}, zero", 0, [1, 2, 3]) == [True] * 3
    assert hart.state.mstatus >> 13 & 3 == 1, "reading leaves FS as it is"
    assert access_results(hart, "csrrwi zero, {n}, 0", 0, [3]) == [True]
    assert hart.state.mstatus >> 13 & 3 == 3, "writing makes FS dirty"


COUNTERS = [0xC00, 0xC01, 0xC02, 0xC03, 0xC10, 0xC1F]


@pytest.mark.parametrize("mask", [0, 1, 2, 4, 8, 1 << 16, 1 << 31, 0xFFFF_FFFF])
def test_counters_are_enabled_one_by_one(hart: Machine, mask: int) -> None:
    read = "csrrs a0, {n}, zero"
    allowed = [bool(mask >> (n & 31) & 1) for n in COUNTERS]
    none = [False] * len(COUNTERS)
    hart.state.mcounteren, hart.state.scounteren = mask, 0
    assert access_results(hart, read, 3, COUNTERS) == [True] * len(COUNTERS)
    assert access_results(hart, read, 1, COUNTERS) == allowed
    assert access_results(hart, read, 0, COUNTERS) == none
    hart.state.mcounteren, hart.state.scounteren = mask, 0xFFFF_FFFF
    assert access_results(hart, read, 0, COUNTERS) == allowed
    hart.state.mcounteren, hart.state.scounteren = 0xFFFF_FFFF, mask
    assert access_results(hart, read, 1, COUNTERS) == [True] * len(COUNTERS)
    assert access_results(hart, read, 0, COUNTERS) == allowed
    hart.state.mcounteren, hart.state.scounteren = 0, 0xFFFF_FFFF
    assert access_results(hart, read, 0, COUNTERS) == none


@pytest.mark.parametrize("stce", [0, 1])
@pytest.mark.parametrize("tm", [0, 1])
def test_stimecmp_needs_stce_and_tm(hart: Machine, stce: int, tm: int) -> None:
    hart.state.menvcfg, hart.state.mcounteren, hart.state.scounteren = stce << 63, tm << 1, 0
    for form in ("csrrs a0, {n}, zero", "csrrsi a0, {n}, 1", "csrrwi zero, {n}, 3"):
        assert access_results(hart, form, 3, [0x14D]) == [True]
        assert access_results(hart, form, 1, [0x14D]) == [bool(stce and tm)]
        assert access_results(hart, form, 0, [0x14D]) == [False]


@pytest.mark.parametrize("tvm", [0, 1])
def test_tvm_guards_translation(hart: Machine, tvm: int) -> None:
    hart.state.mstatus = tvm << 20
    for form in ("csrrs a0, {n}, zero", "csrrw a0, {n}, zero", "csrrsi a0, {n}, 1"):
        assert access_results(hart, form, 3, [0x180]) == [True]
        assert access_results(hart, form, 1, [0x180]) == [not tvm]
    for fence in ("sfence.vma", "sfence.vma a0, a1", "sinval.vma a0, zero"):
        for privilege, legal in ((3, True), (1, not tvm), (0, False)):
            assert access_results(hart, fence, privilege, [0]) == [legal], (fence, privilege)
    for fence in ("sfence.w.inval", "sfence.inval.ir"):
        for privilege in (3, 1, 0):
            assert access_results(hart, fence, privilege, [0]) == [privilege != 0], (fence, privilege)


def test_satp_mode_that_does_not_exist_leaves_all(hart: Machine) -> None:
    first, second = 9 << 60 | 0x12345, 11 << 60 | 0x777
    hart.run(f"li a0, {first}; csrw satp, a0; li a1, {second}; csrw satp, a1; csrr a2, satp; csrw satp, zero; ecall")
    assert hart.x("a2") == 9 << 60 | 0x12345


# Counters


def test_counters_count_instructions(hart: Machine) -> None:
    hart.run("""
        csrr a0, mcycle; csrr a1, minstret
        nop; nop; nop
        csrr a2, mcycle; csrr a3, minstret
        ecall
    """)
    assert hart.x("a2") - hart.x("a0") == 5
    assert hart.x("a3") - hart.x("a1") == 5


@pytest.mark.parametrize("counter", ["mcycle", "minstret"])
def test_a_counter_reads_as_written_by_the_next_instruction(hart: Machine, counter: str) -> None:
    hart.run(f"""
        li a0, 1000; li s0, -1
        csrw {counter}, a0; csrr a1, {counter}
        csrrw a2, {counter}, s0; csrr a3, {counter}; csrr a4, {counter}
        csrw {counter}, zero; nop; csrr a5, {counter}
        ecall
    """)
    assert [hart.x(f"a{n}") for n in range(1, 6)] == [1000, 1001, ALL, 0, 1]


@pytest.mark.parametrize("bit", [0, 2])
def test_inhibited_counters_stand_still(hart: Machine, bit: int) -> None:
    counter, other = ("mcycle", "minstret") if bit == 0 else ("minstret", "mcycle")
    hart.run(f"""
        csrwi mcountinhibit, {1 << bit}
        csrr a0, {counter}; csrr a6, {other}; nop; nop; csrr a1, {counter}; csrr a7, {other}
        li t0, 77; csrw {counter}, t0; nop; csrr a2, {counter}
        csrwi mcountinhibit, 0
        csrr a3, {counter}; nop; csrr a4, {counter}
        csrwi mcountinhibit, {1 << bit}; nop; nop; csrwi mcountinhibit, {1 << bit}
        csrr a5, {counter}
        ecall
    """)
    assert hart.x("a0") == hart.x("a1")
    assert hart.x("a7") - hart.x("a6") == 4
    assert hart.x("a2") == 77
    assert hart.x("a3") - 77 in (0, 1)
    assert hart.x("a4") - hart.x("a3") == 2
    assert hart.x("a5") - hart.x("a4") in (1, 2)


def test_trapping_instructions_do_not_retire(hart: Machine) -> None:
    hart.load("csrr t0, mepc; addi t0, t0, 4; csrw mepc, t0; mret", 0x8000_0800)
    hart.run("""
        csrr s0, mtvec; li t0, 0x80000800; csrw mtvec, t0
        csrr a0, minstret
        .word 0x00100073
        csrr a1, minstret
        csrw mtvec, s0
        ecall
    """)
    assert hart.x("a1") - hart.x("a0") == 1 + 4


def test_time_is_the_clock(hart: Machine) -> None:
    hart.cpu.clock = 10**15
    hart.run("rdtime a0; ecall")
    assert 10**15 <= hart.x("a0") <= hart.cpu.clock < 10**15 + 10**9
