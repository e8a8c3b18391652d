"""Random writes of registers and random traps, compared with QEMU's system emulation."""

import random
import struct
from collections.abc import Iterator

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64
from support import qemu_system
from support.privileged import BASE, RESULTS, TIERS, Machine, machine

pytestmark = pytest.mark.skipif(qemu_system.QEMU is None, reason=qemu_system.REASON)

ALL = 2**64 - 1
SYMBOLS = {"RESULTS": RESULTS}
START = f"""
    li t0, -1; csrw pmpaddr0, t0; li t0, 0x1f; csrw pmpcfg0, t0
    la t0, handler; csrw mtvec, t0
    li s0, {RESULTS}
    j main
"""

# Registers, with the bits that are written and those that are compared.  QEMU 7.2 keeps any MPP, lets UXL, SXL and VS
# be written, has ASIDs, and ignores writes of reserved modes of mtvec.  MIE and MPRV would disturb the program.
STATUS_UNLIKE = 1 << 12 | 3 << 9 | 0xF << 32
STATUS_COMPARED = 1 << 63 | 0x7FE1AA
CSRS: dict[str, tuple[int, int]] = {
    "mstatus": (ALL & ~(1 << 17 | 1 << 3 | STATUS_UNLIKE), STATUS_COMPARED),
    "sstatus": (ALL & ~STATUS_UNLIKE, 1 << 63 | 0xC6122),
    "medeleg": (ALL, 0xB3FF),
    "mideleg": (ALL, 0x222),
    "mie": (ALL, 0xAAA),
    "sie": (ALL, 0xAAA),
    "mip": (ALL, 0x222),
    "sip": (ALL, 0x222),
    "mtvec": (ALL & ~2, ALL),
    "stvec": (ALL & ~2, ALL),
    "mscratch": (ALL, ALL),
    "sscratch": (ALL, ALL),
    "mepc": (ALL - 1, ALL),
    "sepc": (ALL - 1, ALL),
    "mcause": (ALL, ALL),
    "scause": (ALL, ALL),
    "mtval": (ALL, ALL),
    "stval": (ALL, ALL),
    "mcounteren": (ALL, 0xFFFF_FFFF),
    "scounteren": (ALL, 0xFFFF_FFFF),
    "satp": (ALL & ~(0xFFFF << 44), ALL),
    "menvcfg": (ALL & ~(1 << 63), 1),
    "senvcfg": (ALL, 1),
    "fflags": (ALL, ALL),
    "frm": (7, ALL),
    "fcsr": (255, ALL),
    "pmpaddr5": ((1 << 54) - 1, ALL),
    "pmpcfg2": (0x1D1D1D1D1D1D1D1D, ALL),
    "misa": (0, 0x141125 & ~(1 << 7)),
    "mhartid": (0, ALL),
    "0x5c0": (ALL, ALL),
}
READ_ONLY = {"mhartid"}


@pytest.fixture(params=TIERS, scope="module")
def hart(request: pytest.FixtureRequest) -> Iterator[Machine]:
    yield from machine(request.param)


def build(text: str) -> tuple[bytes, dict[str, int]]:
    program = assemble(rv64, START + text + qemu_system.FINISH, BASE, SYMBOLS)
    return program.bytes, program.symbols


# Registers


def register_program(seed: int, count: int) -> tuple[str, list[tuple[str, str, int]]]:
    rng = random.Random(seed)
    names = list(CSRS)
    operations = []
    lines = ["""
    handler:
        csrr a1, mcause
        csrr t0, mepc; addi t0, t0, 4; csrw mepc, t0
        addi a1, a1, 0x700
        li t0, 0x1800; csrs mstatus, t0
        mret
    main:
    """]
    for _ in range(count):
        name = rng.choice(names)
        form = rng.choice(("csrrw", "csrrs", "csrrc")) if name not in READ_ONLY else "csrrs"
        writable = CSRS[name][0]
        value = rng.choice((ALL, 0, *(rng.getrandbits(64) for _ in range(3))))
        if name == "satp" and rng.random() < 0.7:
            value = value & (1 << 60) - 1 | rng.choice((0, 8, 9, 10)) << 60
        value &= writable
        if name.endswith("status") and form == "csrrw":
            value |= 0xA << 32
        if name in ("satp", "mtvec", "stvec"):
            form = "csrrw"
        if name in ("fflags", "frm", "fcsr"):
            value |= 1  # to write back what was there makes FS dirty here, but not in QEMU
        operations.append((name, form, value))
        source = "zero" if name in READ_ONLY else "a0"
        restore = "la t0, handler; csrw mtvec, t0" if name == "mtvec" else ""
        # A register that traps leaves 0x700 and the cause.
        lines.append(f"li a0, {value}; {form} a1, {name}, {source}; sd a1, (s0)")
        lines.append(f"csrr a1, {name}; sd a1, 8(s0); addi s0, s0, 16; {restore}")
    return "\n".join([*lines, "j finish"]), operations


def test_register_writes(hart: Machine) -> None:
    text, operations = register_program(1, 700 if hart.tier == "native" else 150)
    image, symbols = build(text)
    expected, found = qemu_system.run_qemu(image), qemu_system.run_here(hart, image, symbols["native"])
    assert len(expected) == len(found) == 2 * len(operations)
    bad = []
    for n, (name, form, value) in enumerate(operations):
        mask = CSRS[name][1]
        for which, index in (("old", 2 * n), ("new", 2 * n + 1)):
            if (expected[index] ^ found[index]) & mask:
                ours, theirs = found[index], expected[index]
                bad.append(f"{n} {form} {name}, {value:#x}: {which} is {ours:#x}, QEMU has {theirs:#x}")
    assert not bad, "\n".join(bad[:20])


# Traps

PAGE = BASE + 0x60000  # what is accessed; filled with ecall
NEXT_PAGE = PAGE + 0x1000
ROOT48, ROOT39, LEVEL1, LEVEL0 = (BASE + 0x50000 + 0x1000 * n for n in range(4))
CASES = BASE + 0x70000
USER = 0x4000_0000  # user code sees memory here
WINDOW = 0xC000_0000  # where the pages are
V, R, W, X, U, G, A, D = (1 << n for n in range(8))
FIELDS = 8
RESULT_NAMES = ("mcause", "mtval", "mepc", "mstatus", "scause", "stval", "sepc", "level 1", "level 0", "a0")
HOLE = 0x2C00_0000  # where the virt board has nothing

# Each ends with ecall, if not before.
SNIPPETS = [
    "ecall", "ebreak", ".half 0x9002", ".half 0, 0", ".word 0xffffffff", ".word 0x0000000b", ".half 0x8002, 0",
    "lb a0, (a1)", "lhu a0, (a1)", "lw a0, (a1)", "ld a0, (a1)", "sb a2, (a1)", "sh a2, (a1)", "sw a2, (a1)",
    "sd a2, (a1)", "lr.w a0, (a1)", "lr.d a0, (a1)", "amoadd.w a0, zero, (a1)", "amoor.d a0, zero, (a1)",
    "jr a1", "jr a1", "jr a1", "ld a0, (a1)", "sd a2, (a1)", "lw a0, (a1)", "sw a2, (a1)",
    "csrr a0, mscratch", "csrr a0, sscratch", "csrr a0, satp", "csrw cycle, zero", "csrr a0, sepc", "csrr a0, 0x5c0",
    "sret", "mret", "sfence.vma", "csrr a0, cycle", "csrr a0, fflags",
]  # fmt: skip

TRAP_PROGRAM = f"""
handler:
    csrw mscratch, t0
    li t0, 0x20000; csrc mstatus, t0
    csrr t0, mcause; sd t0, 0(s0)
    csrr t0, mtval; sd t0, 8(s0)
    csrr t0, mepc; sd t0, 16(s0)
    csrr t0, mstatus; sd t0, 24(s0)
    csrr t0, scause; sd t0, 32(s0)
    csrr t0, stval; sd t0, 40(s0)
    csrr t0, sepc; sd t0, 48(s0)
    ld t0, {8 * 0}(s3); sd t0, 56(s0)
    ld t0, {8 * 0}(s4); sd t0, 64(s0)
    sd a0, 72(s0)
    addi s0, s0, 80
    addi s1, s1, {8 * FIELDS}
    bltu s1, s2, case
    j finish
    .balign 4
supervisor:
    ecall
    j supervisor
main:
    li t0, 0x2000000000000000; csrw menvcfg, t0
    la t0, supervisor; csrw stvec, t0
    li s3, {LEVEL1}; li s4, {LEVEL0}
    # Fill both pages with ecall.
    li t0, {PAGE}; li t1, {PAGE + 0x2000}; li t2, 0x73
1:  sw t2, (t0); addi t0, t0, 4; bltu t0, t1, 1b
    li t0, {ROOT48}; li t1, {ROOT39 >> 2 | V}; sd t1, (t0)
    li t0, {ROOT39}
    li t1, {BASE >> 2 | V | R | W | X | U | A | D}; sd t1, 8(t0)
    li t1, {BASE >> 2 | V | R | W | X | A | D}; sd t1, 16(t0)
    li t1, {LEVEL1 >> 2 | V}; sd t1, 24(t0)
    li t0, {NEXT_PAGE >> 2 | V | R | W | X | A}; sd t0, 8(s4)
    li s1, {CASES}; la s2, count; lwu s2, (s2); slli s2, s2, 6; add s2, s2, s1
case:
    csrw scause, zero; csrw stval, zero; csrw sepc, zero
    ld t0, 8(s1); csrw medeleg, t0
    ld t0, 16(s1); csrw satp, t0
    ld t0, 24(s1); sd t0, (s3)
    ld t0, 32(s1); sd t0, (s4)
    ld t0, 40(s1); csrw mepc, t0
    ld a1, 48(s1)
    ld t0, 56(s1); csrw mcounteren, t0; csrw scounteren, t0
    li a0, 0; li a2, 0x0000007300000073
    csrw mcause, zero
    sfence.vma
    # FS and what else is left of the case before
    li t0, 0x7e79aa; csrc mstatus, t0
    ld t0, (s1); csrs mstatus, t0
    mret
    .balign 4
count: .word {{count}}
"""


def random_flags(rng: random.Random, privilege: int) -> int:
    """Of a page table entry: good ones most of the time, or with one thing wrong."""
    if rng.random() < 0.6:
        good = V | R | W | X | A | D | (U if privilege == 0 else 0)
        return good ^ rng.choice((0, 1 << rng.randrange(8)))
    return rng.getrandbits(8) | rng.choice((0, V | A))


def trap_cases(rng: random.Random, symbols: dict[str, int], count: int) -> list[tuple[int, ...]]:
    cases = []
    for _ in range(count):
        privilege = rng.choice((0, 1, 1, 3))
        status = privilege << 11 | (rng.getrandbits(23) & (1 << 5 | 1 << 8 | 3 << 13 | 7 << 18 | 1 << 22))
        status |= 0xA << 32 | rng.choice((0, 1 << 7))
        if rng.random() < 0.3:
            status |= 1 << 1
        medeleg = rng.choice((0, rng.getrandbits(16), 0xB3FF)) & 0xB1FF  # not ecall from supervisor mode
        mode = rng.choice((0, 8, 8, 8, 9, 9))
        satp = {0: 0, 8: 8 << 60 | ROOT39 >> 12, 9: 9 << 60 | ROOT48 >> 12}[mode]
        snippet = rng.randrange(len(SNIPPETS))
        where = symbols[f"snippet{snippet}"]
        if privilege == 0 and mode:
            where = where - BASE + USER
        if SNIPPETS[snippet] in ("sret", "mret") and privilege == 3:
            snippet, where = 0, symbols["snippet0"]
        if SNIPPETS[snippet].startswith("amo"):
            # QEMU has them raise the fault of a load first: delegate both kinds alike.
            medeleg = rng.choice((0, 0xB1FF))
        level0 = PAGE >> 2 | random_flags(rng, privilege)
        if rng.random() < 0.15:
            level0 |= rng.choice((1 << rng.randrange(54, 61), 1 << 8, 1 << 9))
        if rng.random() < 0.08 and not SNIPPETS[snippet].startswith("amo"):
            level0 = HOLE >> 2 | random_flags(rng, privilege)
        level1 = LEVEL0 >> 2 | V
        if rng.random() < 0.2:
            # A superpage; PAGE is at the same offset in it as in the window below
            level1 = BASE >> 2 | random_flags(rng, privilege) | rng.choice((0, 0, 0, 1 << 10, 1 << 18))
        elif rng.random() < 0.05:
            level1 |= rng.choice((A, D, U, G, 1 << 54, 1 << 60))
        offset = rng.choice((0, 8, 0x10, 0x7F8, 4, 12, 2, 1, 0xFF8, 0xFFC, 0xFFE, 0xFFD))
        if SNIPPETS[snippet] == "jr a1":
            offset = offset & ~3
        if level0 >> 10 == HOLE >> 12 or level1 & (R | W | X):
            offset = offset & ~7  # QEMU takes misaligned accesses of devices apart
        address = WINDOW + offset
        chance = rng.random()
        if mode == 0 or privilege == 3:
            address = PAGE + offset if chance < 0.8 else HOLE + (offset & ~7)
        elif chance < 0.06:
            address = rng.choice((1 << 38, 1 << 39, 1 << 47, 1 << 63, 2**64 - (1 << 39) - 4096, 2**64 - 4096, 0))
            address += offset & ~7
        elif chance < 0.12:
            address = WINDOW + rng.choice((0x2000, 0x20_0000, 0x4000_0000)) + (offset & ~7)
        elif level1 & (R | X) and chance < 0.9:
            address = WINDOW + PAGE - BASE + offset
        cases.append((status, medeleg, satp, level1, level0, where, address, rng.choice((0, 7))))
    return cases


def test_traps(hart: Machine) -> None:
    count = 3000 if hart.tier == "native" else 150
    snippets = "\n".join(f".balign 4\nsnippet{n}: {s}; ecall; j ." for n, s in enumerate(SNIPPETS))
    code, symbols = build(TRAP_PROGRAM.format(count=count) + snippets)
    cases = trap_cases(random.Random(5), symbols, count)
    assert len(code) < CASES - BASE
    image = code.ljust(CASES - BASE, b"\0") + b"".join(struct.pack("<8Q", *case) for case in cases)
    expected, found = qemu_system.run_qemu(image), qemu_system.run_here(hart, image, symbols["native"])
    width = len(RESULT_NAMES)
    assert len(expected) == len(found) == width * count
    bad = []
    for n, case in enumerate(cases):
        ours, theirs = (words[n * width : (n + 1) * width] for words in (found, expected))
        name = next(s for i, s in enumerate(SNIPPETS) if (case[5] - symbols[f"snippet{i}"]) & 0x3FFFFFFF == 0)
        for what, a, b in zip(RESULT_NAMES, ours, theirs, strict=True):
            mask = STATUS_COMPARED if what == "mstatus" else ALL
            if what in ("mcause", "scause") and name.startswith("amo") and a in (6, 7, 15):
                b = max(b, {4: 6, 5: 7, 13: 15}.get(b, 0))
            if what.startswith("level") and name.startswith("amo"):
                mask = ALL & ~A  # that load may have set A
            if what in ("mtval", "stval") and name in ("ebreak", ".half 0x9002") and b == 0:
                continue  # either is allowed
            if (a ^ b) & mask and not (name == "csrr a0, cycle" and what == "a0"):
                shown = " ".join(f"{v:x}" for v in case)
                bad.append(f"{n} {name} ({shown}): {what} {a:#x}, QEMU {b:#x}; cause {ours[0]} QEMU {theirs[0]}")
    assert not bad, f"{len(bad)}:\n" + "\n".join(bad[:25])
