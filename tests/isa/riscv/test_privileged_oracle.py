"""The privileged architecture compared with QEMU's on random cases, and the PMP with a model of section 3.7.

Where QEMU 7.2 is known to be wrong, or the specification leaves a choice, the case or the comparison says so.
"""

import random
from functools import cache

import pytest

from polyvisor.adl import u8, u32, u64
from polyvisor.adl.assembler import assemble
from polyvisor.engine.memory import Memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.riscv import rv64
from polyvisor.isa.riscv.csr import CSR_WRITE, NAMES
from polyvisor.isa.riscv.pmp import pmp_check
from support.qemu_cases import (
    BASE,
    DATA,
    EVERY,
    MACHINE_VECTOR,
    MPIE,
    MPRV,
    MXR,
    PATCHES,
    QEMU,
    REASON,
    SIE,
    SPIE,
    SPP,
    STUBS,
    SUM,
    SUPERVISOR_VECTOR,
    TABLES,
    TSR,
    TVM,
    Case,
    Outcome,
    by_polyvisor,
    by_qemu,
    choose,
    differences,
)

TIERS = ("reference", "native")
Group = tuple[list[Case], bytes]


def stubs(*texts: str) -> tuple[bytes, list[int]]:
    """Short programs, and where each will be."""
    code, starts = bytearray(), []
    for text in texts:
        starts.append(STUBS + len(code))
        made = assemble(rv64, text, STUBS + len(code)).bytes
        code += made.ljust(-(-len(made) // 8) * 8, b"\0")
    return bytes(code), starts


# Loads and stores under translation and protection, made by machine mode with MPRV

ACCESSES = (
    "lb a0, (a1)", "lh a0, (a1)", "lw a0, (a1)", "ld a0, (a1)", "sb a2, (a1)", "sh a2, (a1)", "sw a2, (a1)",
    "sd a2, (a1)", "amoadd.w a0, a2, (a1)", "amoswap.d a0, a2, (a1)", "lr.d a0, (a1)",
)  # fmt: skip
# QEMU 7.2 lets software change UXL, and VS though there are no vectors.
SSTATUS = EVERY & ~(3 << 32 | 3 << 9)
UNDER_MPRV = "csrw mstatus, a4; {}; csrw mstatus, zero; ecall"


def walk(rng: random.Random, where: int) -> tuple[int, int, list[tuple[int, int]], str]:
    """Page tables for one address that is mapped to ``where``, or nearly: satp, the address, what to write."""
    levels = rng.choice((3, 3, 4, 5))
    leaf = rng.choice((0, 0, 0, 1, 1, 2, levels - 1))
    span = 12 + 9 * leaf
    high = rng.getrandbits(9 * levels + 12 - span) if rng.random() < 0.9 else 0
    vaddr = high << span | where & (1 << span) - 1
    width = 12 + 9 * levels
    if vaddr >> width - 1 & 1:
        vaddr |= EVERY >> width << width
    vaddr = choose(rng, vaddr, vaddr ^ 1 << width, vaddr ^ 1 << 63, common=0.97)
    patches, table = [], TABLES
    for level in range(levels - 1, leaf - 1, -1):
        index = vaddr >> 12 + 9 * level & 511
        if level > leaf:
            entry = (table + 0x1000 >> 12) << 10 | 1
            flip = choose(rng, 0, 1, 2, 4, 8, 0x10, 0x40, 0x80, 0x300, 1 << 54, 1 << 63, common=0.9)
        else:
            flags = choose(rng, 0xCF, 0x0F, 0x4F, 0xDF, 0x5F, 0xC3, 0xC9, 0xCB, 0xC5, 0xC7, 0xD9, 0xDB, 1, common=0.2)
            entry = (where >> span << span - 12) << 10 | flags
            bit = rng.choice((*range(12), 18, 54, 60, 61, 62, 63))
            flip = choose(rng, 0, 1 << bit)
        patches.append((table + 8 * index, entry ^ flip))
        table += 0x1000
    satp = (levels + 5) << 60 | TABLES >> 12
    return satp, vaddr & EVERY, patches, f"Sv{width} leaf {leaf}"


def translated() -> Group:
    """Walks of all three modes, with everything that can be wrong with an entry."""
    rng = random.Random("walks")
    code, starts = stubs(*(UNDER_MPRV.format(a) for a in ACCESSES), "ecall")
    cases = []
    for _ in range(1200):
        where = DATA + rng.randrange(0x100) * 8
        satp, vaddr, patches, about = walk(rng, where)
        status = rng.choice((0, 0, SUM)) | rng.choice((0, 0, MXR)) | rng.choice((0, 1, 1)) << 11
        kind = rng.randrange(len(ACCESSES) + 3)
        case = Case({"satp": satp}, patches=[*patches, (where, 0x73_0000_0073)])
        if kind < len(ACCESSES):
            case.csrs["mepc"] = starts[kind]
            case.arguments = {"a1": vaddr, "a2": rng.getrandbits(64), "a4": status | MPRV}
            case.about = f"{about}, {ACCESSES[kind]}, {vaddr:#x}, status {status:#x}"
        else:
            case.csrs["mepc"], case.mstatus = vaddr, status
            case.about = f"{about}, fetch, {vaddr:#x}, status {status:#x}"
        cases.append(case)
    return cases, code


def protected() -> Group:
    """PMP entries of all kinds around the data, of whole pages (QEMU 7.2 may hang where rules change in a page)."""
    rng = random.Random("pmp")
    code, starts = stubs(*(UNDER_MPRV.format(a) for a in ACCESSES), "ecall")
    cases = []
    for _ in range(1500):
        csrs, config = {}, 0
        for n in range(7):
            mode = rng.choice((0, 1, 1, 3))
            place = DATA + 0x1000 * rng.randrange(-4, 8)
            address = place >> 2
            if mode == 3:
                ones = rng.randrange(9, 13)
                address = address & ~((2 << ones) - 1) | (1 << ones) - 1
            csrs[f"pmpaddr{n}"] = address
            config |= (mode << 3 | rng.choice((0, 1, 3, 4, 5, 7))) << 8 * n
        csrs["pmpcfg0"] = config | choose(rng, 0x1F, 0, 0x19, 0x1C, common=0.5) << 56
        kind = rng.randrange(len(ACCESSES) + 2)
        near = DATA + 0x200 * rng.randrange(-32, 64)
        mode = rng.choice((0, 1, 1, 3))
        case = Case(csrs, patches=[(near & ~7, 0x73_0000_0073)])
        case.about = f"mode {mode}, {near:#x}, pmpcfg {csrs['pmpcfg0']:#x}"
        if kind < len(ACCESSES):
            case.csrs["mepc"] = starts[kind]
            case.arguments = {"a1": near, "a2": rng.getrandbits(64), "a4": mode << 11 | MPRV}
            case.about += f", {ACCESSES[kind]}"
        else:
            case.csrs["mepc"], case.mstatus = near, mode << 11
            case.about += ", fetch"
        cases.append(case)
    return cases, code


def protected_tables() -> Group:
    """Page tables that the PMP hides from the walk."""
    rng = random.Random("pmp tables")
    code, starts = stubs(*(UNDER_MPRV.format(a) for a in ACCESSES))
    cases = []
    for _ in range(300):
        satp, vaddr, patches, about = walk(rng, DATA)
        hidden = rng.choice([*patches, *patches, (DATA, 0)])[0]
        csrs = {
            "satp": satp, "pmpaddr0": rng.choice((hidden >> 2 & ~1, hidden >> 12 << 10 | 0x1FF)),
            "pmpcfg0": 0x18 | rng.choice((0, 4)) | 0x1F << 56,
        }  # fmt: skip
        kind = rng.randrange(len(ACCESSES))
        status = rng.choice((0, 1, 1)) << 11
        csrs["mepc"] = starts[kind]
        cases.append(Case(
            csrs, patches=[*patches, (DATA, 0x73_0000_0073)],
            arguments={"a1": vaddr & ~7, "a2": 1, "a4": status | MPRV},
            about=f"{about}, {ACCESSES[kind]}, hidden {hidden:#x}",
        ))  # fmt: skip
    return cases, code


# Traps


def trapping() -> Group:
    """What traps, from each mode, delegated or not."""
    rng = random.Random("traps")
    texts = (
        "ecall", "ebreak", "c.ebreak", ".word 0; .word 0", ".word 0xffffffff", ".word 0x0000705b", "csrr a0, mscratch",
        "csrr a0, sscratch; ecall", "csrr a0, satp; ecall", "csrw satp, zero; ecall", "sfence.vma; ecall",
        "sfence.vma a1, zero; ecall", "sinval.vma a1, zero; ecall", "sfence.w.inval; ecall", "sfence.inval.ir; ecall",
        "sret", "mret", "lr.w a0, (a3); ecall", "amoadd.d a0, a2, (a1); ecall", "sc.d a0, a2, (a1); ecall",
        "csrw cycle, a0", "csrr a0, cycle; li a0, 0; ecall", "csrr a0, instret; li a0, 0; ecall",
        "csrr a0, hpmcounter3; ecall",
        "csrr a0, hpmcounter9; ecall", "csrw sstatus, a2; csrr a0, sstatus; ecall",
        "csrrs a0, sip, a2; csrr a0, sip; ecall", "csrrs a0, sie, a2; csrr a0, sie; ecall",
        "csrw mepc, a1; csrw mstatus, a4; mret", "csrw mstatus, a4; sret", "lw a0, (a5); ecall", "sw a0, (a5); ecall",
        "jalr zero, (a5)",
    )  # fmt: skip
    code, starts = stubs(*texts)
    cases = []
    for _ in range(1500):
        kind = rng.randrange(len(texts))
        mode = rng.choice((0, 1, 1, 3))
        if ".inval" in texts[kind] and mode == 0:
            continue  # illegal, which QEMU 7.2 does not see
        bits = 0
        for flag in (MPIE, SIE, SPIE, SPP, SUM, MXR, TVM, TSR):
            bits |= rng.choice((0, flag))
        status = mode << 11 | bits | rng.randrange(4) << 13
        after = rng.choice((0, 1, 3)) << 11 | rng.choice((0, MPRV)) | bits & ~MPIE
        cases.append(Case(
            {
                "mepc": starts[kind], "sepc": DATA, "medeleg": rng.getrandbits(64) & ~(1 << 9),
                "mideleg": rng.getrandbits(12) & 0x222, "mcounteren": rng.getrandbits(32),
                "scounteren": rng.getrandbits(32), "stvec": 0x8000_0600 | rng.randrange(2),
                "mtvec": 0x8000_0400 | rng.randrange(2),
            },
            status,
            [(DATA, 0x73_0000_0073)],
            {
                "a1": DATA, "a2": rng.getrandbits(64) & SSTATUS, "a3": DATA + 0x100 + rng.choice((0, 1, 2, 4)),
                "a4": after,
                "a5": 0x9000_0000,
            },
            about=f"{texts[kind]}, mode {mode}, status {status:#x}, then {after:#x}",
        ))  # fmt: skip
    return cases, code


def interrupted() -> Group:
    """Interrupts pending together, enabled and delegated in every way: which is taken, and where to."""
    rng = random.Random("interrupts")
    code, starts = stubs("nop; ecall")
    cases = []
    for _ in range(2000):
        mode = rng.choice((0, 1, 1, 3))
        status = mode << 11
        for flag in (MPIE, SIE, SPIE, SPP):
            status |= rng.choice((0, flag))
        mask = rng.choice((0xAAA, 0xAAA, rng.getrandbits(12)))
        csrs = {
            "mepc": starts[0], "mip": rng.getrandbits(12) & 0xAAA, "mie": rng.getrandbits(12) & mask & 0xAAA,
            "mideleg": rng.getrandbits(12) & 0xAAA, "stvec": 0x8000_0600 | rng.randrange(2),
            "mtvec": 0x8000_0400 | rng.randrange(2),
        }  # fmt: skip
        late = rng.choice((EVERY, 0))
        about = f"mode {mode}, mip {csrs['mip']:#x}, mie {csrs['mie']:#x}, mideleg {csrs['mideleg']:#x}"
        cases.append(Case(csrs, status, msip=rng.randrange(2), mtimecmp=late, about=f"{about}, mtimecmp {late:#x}"))
    return cases, code


# Registers

# Registers, and what is written to them of a random value.  QEMU 7.2 has bits of the hypervisor extension, of
# Sscofpmf and Zicbom even where they are off, wider counter masks, ASIDs, bit 0 of xepc, reserved bits of pmpcfg, and
# lets any mode be MPP; which legal mode replaces a reserved one of xtvec is free.
INTERRUPTS, COUNTERS = EVERY & ~0x3444, 2**32 - 1
WRITTEN = {
    "fflags": EVERY, "frm": EVERY, "fcsr": EVERY, "sstatus": SSTATUS, "sie": INTERRUPTS, "sip": INTERRUPTS,
    "stvec": EVERY & ~2, "scounteren": COUNTERS, "senvcfg": EVERY & ~0xF0, "sscratch": EVERY, "sepc": EVERY - 1,
    "scause": EVERY, "stval": EVERY, "satp": EVERY & ~(0xFFFF << 44),
    "mstatus": SSTATUS & ~(0xF << 34 | 0xC0 << 32 | 1 << 12),
    "misa": EVERY, "medeleg": EVERY & ~0xF00C00, "mideleg": INTERRUPTS, "mie": INTERRUPTS, "mip": INTERRUPTS,
    "mtvec": EVERY & ~2, "mcounteren": COUNTERS, "mcountinhibit": 5, "mscratch": EVERY, "mepc": EVERY - 1,
    "mcause": EVERY, "mtval": EVERY, "menvcfg": EVERY & ~(3 << 61 | 0xF0), "pmpcfg0": 0x1F1F_1F1F_1F1F_1F1F,
    "pmpcfg2": 0x1F1F_1F1F_1F1F_1F1F, "pmpaddr0": (1 << 54) - 1, "pmpaddr15": (1 << 54) - 1,
}  # fmt: skip


def registers() -> Group:
    """What a register holds after a write."""
    rng = random.Random("registers")
    texts = [f"csrrw a5, {n}, a1; csrr a0, {n}; csrw {n}, a5; csrw mstatus, zero; ecall" for n in WRITTEN]
    code, starts = stubs(*texts)
    cases = []
    for (name, mask), start in zip(WRITTEN.items(), starts, strict=True):
        for value in (0, EVERY, *(rng.getrandbits(64) for _ in range(8)), *(1 << rng.randrange(64) for _ in range(8))):
            value &= mask
            if name.startswith("pmpcfg"):
                for n in range(8):  # W without R is reserved, and any legal value may replace it
                    if value >> 8 * n & 3 == 2:
                        value &= ~(2 << 8 * n)
            csrs = {"mepc": start, "mideleg": rng.choice((0, 0x222, 0x20))}
            status = 3 << 11 | 1 << 13
            cases.append(Case(csrs, status, arguments={"a1": value}, about=f"{name} = {value:#x}"))
    return cases, code


# In QEMU 7.2, with this configuration: half of the performance counters, PMP entries from 16 on, triggers.
ABSENT = {*range(0xB13, 0xB20), *range(0xC13, 0xC20), *range(0x3A4, 0x3B0), *range(0x3C0, 0x3F0), *range(0x7A0, 0x7A4)}


def existence() -> Group:
    """Which registers there are, in each mode."""
    cases = []
    numbers = sorted({*NAMES.values(), *range(0x100, 0x110), *range(0x300, 0x350), *range(0xF10, 0xF18)})
    code, starts = stubs(*(f"csrrs a0, {n}, zero; li a0, 0; ecall" for n in numbers))
    for number, start in zip(numbers, starts, strict=True):
        if number in ABSENT:
            continue
        for mode in (0, 1, 3):
            csrs = {"mepc": start, "mcounteren": 0xFFFF_FFFF, "scounteren": 0xFFFF_FFFF, "menvcfg": 1 << 63}
            cases.append(Case(csrs, mode << 11 | 1 << 13, about=f"{number:#x} in mode {mode}"))
    return cases, code


GROUPS = {g.__name__: g for g in (
    translated, protected, protected_tables, trapping, interrupted, registers, existence,
)}  # fmt: skip


@cache
def expected(name: str) -> tuple[list[Case], bytes, list[Outcome]]:
    cases, code = GROUPS[name]()
    return cases, code, by_qemu(cases, code)


PAGE_FAULTS, ACCESS_FAULTS = (12, 13, 15), (1, 5, 7)


PRIORITY = (11, 3, 7, 9, 1, 5)


def by_priority(case: Case, theirs: Outcome) -> None:
    """Of the interrupts for one mode QEMU 7.2 takes the lowest number, unless it has Smaia: make it as in 3.1.9."""
    waiting = theirs["mip"] & theirs["mie"]
    delegated = case.csrs["mideleg"] & 0x222
    if theirs["mcause"] >> 63:
        first = next(n for n in PRIORITY if waiting & ~delegated & 1 << n)
        theirs["mcause"] = 1 << 63 | first
        if case.csrs["mtvec"] & 1:
            theirs["vector"] = MACHINE_VECTOR + 4 * first + 4
    if theirs["scause"] >> 63:
        first = next(n for n in PRIORITY if waiting & delegated & 1 << n)
        theirs["scause"] = 1 << 63 | first
        if case.csrs["stvec"] & 1:
            theirs["mepc"] = SUPERVISOR_VECTOR + 4 * first


def agreed(case: Case, theirs: Outcome, ours: Outcome) -> None:
    """Change QEMU's outcome where it is known to be wrong (in version 7.2) or the specification leaves a choice."""
    cause, theirs_cause = ours["mcause"], theirs["mcause"]
    if "amo" in case.about and (theirs_cause, cause) in ((13, 15), (5, 7), (4, 6), (5, 15)):
        # A fault of an AMO is always the store's; QEMU 7.2 loads first.
        theirs["mcause"] = cause
        for n in range(PATCHES):
            if (theirs[f"word{n}"] ^ ours[f"word{n}"]) & ~0xC0 == 0:
                theirs[f"word{n}"] = ours[f"word{n}"]
    outside = any(entry & 15 == 1 and entry >> 10 < BASE >> 12 for _, entry in case.patches)
    if outside and cause in ACCESS_FAULTS and theirs_cause in PAGE_FAULTS:
        theirs["mcause"] = cause  # a page table outside of memory
    if theirs["mstatus"] >> 11 & 3 != 3:
        theirs["mstatus"] &= ~MPRV  # xRET to the lower mode that trapped has cleared it
    if theirs["mcause"] >> 63 or theirs["scause"] >> 63:
        by_priority(case, theirs)
    for prefix in "ms":
        if ours[f"{prefix}cause"] == 3:
            theirs[f"{prefix}tval"] = ours[f"{prefix}tval"]  # the address of ebreak or 0
        if ours[f"{prefix}cause"] == 2 and "inval" in case.about:
            theirs[f"{prefix}tval"] = ours[f"{prefix}tval"]


def compare(name: str, tier: str) -> list[str]:
    cases, code, theirs = expected(name)
    # CPython takes its time.
    step = 1 if tier == "native" else 25
    ours = by_polyvisor(cases[::step], code, tier)
    return differences(cases[::step], theirs[::step], ours, agreed)


@pytest.mark.skipif(QEMU is None, reason=REASON)
@pytest.mark.parametrize("name", GROUPS)
@pytest.mark.parametrize("tier", TIERS)
def test_as_qemu(name: str, tier: str) -> None:
    assert compare(name, tier) == []


FAULT_OF = {"l": 13, "s": 15, "a": 15}


@pytest.mark.skipif(QEMU is None, reason=REASON)
@pytest.mark.parametrize("tier", TIERS)
def test_without_svadu_a_missing_a_or_d_bit_is_a_page_fault(tier: str) -> None:
    """QEMU 7.2 always updates the bits: where it did, there must be a fault now, and else no difference."""
    cases, code, theirs = expected("translated")
    step = 1 if tier == "native" else 25
    changed, cases, theirs = [], cases[::step], [dict(outcome) for outcome in theirs[::step]]
    for case, outcome in zip(cases, theirs, strict=True):
        entries = {f"word{n}": entry for n, (_, entry) in enumerate(case.patches[:-1])}
        if any(outcome[n] != entry for n, entry in entries.items()):
            access = case.about.split(", ")[1]
            fetch = access == "fetch"
            status = case.mstatus if fetch else case.arguments["a4"] & ~(3 << 11) | 3 << 11
            outcome |= {
                **entries, f"word{len(entries)}": case.patches[-1][1], "a0": 0, "scause": 0,
                "mcause": 12 if fetch else FAULT_OF[access[0]],
                "mtval": case.csrs["mepc"] if fetch else case.arguments["a1"],
                "mepc": case.csrs["mepc"] + (0 if fetch else 4),
                "mstatus": (2 << 32 | 2 << 34 | status) if not fetch else outcome["mstatus"],
            }  # fmt: skip
            changed.append(case)
    assert len(changed) > 0
    strict = [Case(**{**vars(case), "csrs": {**case.csrs, "menvcfg": 0}}) for case in cases]
    assert differences(strict, theirs, by_polyvisor(strict, code, tier), agreed) == []


# The PMP with a model


def rule(entries: list[tuple[int, int]], place: int, access: int, privilege: int) -> bool:
    """Whether one byte may be accessed: section 3.7.1, "Address Matching" and "Priority and Matching Logic"."""
    below = 0
    for config, address in entries:
        mode, low, end = config >> 3 & 3, below, address
        below = address
        if mode == 2:
            low, end = address, address + 1
        elif mode == 3:
            size = 2
            while address & size >> 1:
                size *= 2
            low = address & ~(size - 1)
            end = low + size
        if mode and low <= place >> 2 < end:
            if privilege == 3 and not config & 0x80:
                return True
            return bool(config >> {0: 2, 1: 0, 2: 1}[access] & 1)
    return privilege == 3


@pytest.mark.parametrize("seed", range(12))
def test_pmp_as_its_model(seed: int) -> None:
    rng = random.Random(seed)
    cpu = reference_cpu(rv64, Memory(), None, lambda: 0)
    near = 0x8000_1000
    entries = []
    for n in range(16):
        address = (near >> 2) + rng.choice((1, 4, 256, 1024)) * rng.randrange(-6, 7)
        if rng.random() < 0.3:
            ones = rng.randrange(13)
            address = address & ~((1 << ones + 1) - 1) | (1 << ones) - 1
        address = choose(rng, address, 0, (1 << 54) - 1, common=0.95)
        config = rng.choice((0, 0, 1, 2, 3)) << 3 | rng.choice((0, 1, 3, 4, 5, 7)) | rng.choice((0, 0, 0x80))
        CSR_WRITE.entries[0x3B0 + n](cpu, u64(address))
        entries.append((config, address))
    for half in range(2):
        word = sum(config << 8 * n for n, (config, _) in enumerate(entries[8 * half : 8 * half + 8]))
        CSR_WRITE.entries[0x3A0 + 2 * half](cpu, u64(word))
    for _ in range(400):
        place = near + rng.choice((1, 4, 64, 1024, 4096)) * rng.randrange(-20, 21)
        access, privilege = rng.randrange(3), rng.choice((0, 1, 3))
        allowed, uniform = pmp_check(cpu, u64(place), u32(access), u8(privilege))
        assert allowed == rule(entries, place, access, privilege), hex(place)
        if uniform:
            page = place & ~0xFFF
            for other in range(page, page + 0x1000, 4):
                assert allowed == rule(entries, other, access, privilege), (hex(place), hex(other))
