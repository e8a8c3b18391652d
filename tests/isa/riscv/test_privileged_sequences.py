"""Long random sequences of accesses and changes of the rules: no tier may use a translation that holds no more.

The page tables stay as they are, so no fence is needed: each change takes effect at once, by what the Privileged
Architecture says of mstatus, satp and the PMP registers (which QEMU's TLB and polyvisor's must both notice).
"""

import random
from functools import cache

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64
from support.qemu_cases import (
    BASE,
    DATA,
    END,
    MPRV,
    MXR,
    QEMU,
    REASON,
    RECORDS,
    SIZE,
    SUM,
    TABLES,
    run_polyvisor,
    run_qemu,
)

OPERATIONS, PAGES = 2000, 6
# Each sees other permissions and other pages behind the same addresses.
LEVELS = (3, 3, 4, 5)
ACCESSES = ("ld a0, (a1)", "lw a0, (a1)", "lbu a0, (a1)", "sd a2, (a1)", "sw a2, (a1)")
ECALLS = 0x73_0000_0073

START = f"""
    j main
    .balign 256
handler:
    csrr t5, mcause; csrr t4, mtval; csrw mepc, s2
    li t3, 0x1800; csrs mstatus, t3
    mret
main:
    la t0, handler; csrw mtvec, t0
    li t0, {1 << 61}; csrw menvcfg, t0
    li t0, -1; csrw pmpaddr7, t0; li t0, {0x1F << 56}; csrw pmpcfg0, t0
    li s1, {RECORDS}; li a2, {ECALLS}; li a3, {MPRV}; li a4, {MPRV | 3 << 11}
    li t0, {BASE + SIZE - 8}; ld s3, (t0)
"""


def tables(rng: random.Random, memory: bytearray) -> list[int]:
    """Write page tables; gives a value of satp for each."""

    def put(address: int, value: int) -> None:
        memory[address - BASE : address - BASE + 8] = value.to_bytes(8, "little")

    roots, table = [], TABLES
    for levels in LEVELS:
        roots.append((levels + 5) << 60 | table >> 12)
        for level in range(levels - 1, 0, -1):
            index = DATA >> 12 + 9 * level & 511
            put(table + 8 * index, (table + 0x1000 >> 12) << 10 | 1)
            if level == 1:
                put(table + 8 * index + 8, (DATA >> 12) << 10 | rng.choice((0xCF, 0xDF, 0xD7, 0xC9)))
            table += 0x1000
        for page in range(PAGES):
            flags = rng.choice((0xCF, 0xDF, 0x0F, 0x5F, 0xC3, 0xC9, 0xC9, 0xD9, 0xD7, 0))
            index = (DATA >> 12 & 511) + page
            put(table + 8 * index, (DATA + 0x1000 * rng.randrange(3) >> 12) << 10 | flags)
        table += 0x1000
    return roots


@cache
def program() -> tuple[bytes, list[str]]:
    """Memory at the start, and what each operation is."""
    rng = random.Random("sequences")
    memory = bytearray(SIZE)
    memory[DATA - BASE : DATA - BASE + 0x10000] = ECALLS.to_bytes(8, "little") * 0x2000
    for page in range(8):  # to tell the pages apart
        memory[DATA - BASE + 0x1000 * page + 0xFF8] = page
    roots = tables(rng, memory)
    text, abouts = [START], []
    for number in range(OPERATIONS):
        kind = rng.random()
        if kind < 0.09:
            change = f"li t0, {rng.choice((SUM, MXR, MXR))}; csr{rng.choice('sc')} mstatus, t0"
        elif kind < 0.13:
            change = f"li t0, {rng.choice((*roots, 0))}; csrw satp, t0"
        elif kind < 0.18:
            config = rng.choice((0x1F, 0x19, 0x1C, 0x18, 0))
            change = f"li t0, {0x1F << 56 | config}; csrw pmpcfg0, t0"
        elif kind < 0.21:
            page = DATA + 0x1000 * rng.randrange(3) >> 2
            change = f"li t0, {page | 0x1FF}; csrw pmpaddr0, t0"
        elif kind < 0.22:
            change = rng.choice(("sfence.vma", "sfence.vma a1, zero"))
        else:
            change = ""
        place = DATA + 0x1000 * rng.randrange(PAGES) + rng.choice((0, 8, 0x100, 0xFF8))
        place += rng.choice((0, 0, 0, 0, 0, 0x20_0000))
        if place & 0xFFF == 0xFF8:
            act = "csrs mstatus, t0; " + rng.choice(ACCESSES[:3])
        elif rng.random() < 0.25:
            act = "csrw mepc, a1; xor t0, t0, a3; csrs mstatus, t0; mret"
        else:
            act = "csrs mstatus, t0; " + rng.choice(ACCESSES)
        status = MPRV | rng.choice((0, 1)) << 11
        text.append(f"""
            {change}
            csrc mstatus, a4
            la s2, op{number}
            li t5, 0; li t4, 0; li a0, 0; li a1, {place}; li t0, {status}
            {act}
        op{number}:
            csrc mstatus, a3
            sd t5, (s1); sd t4, 8(s1); sd a0, 16(s1); addi s1, s1, 24
        """)
        abouts.append(f"{number}: {change}; {act}, {place:#x}, mode {status >> 11 & 3}")
    text.append("csrw satp, zero")
    text.append(END)
    code = assemble(rv64, "\n".join(text), BASE).bytes
    assert len(code) < RECORDS - BASE
    memory[: len(code)] = code
    return bytes(memory), abouts


@cache
def results(by: str) -> bytes:
    memory, abouts = program()
    size = 24 * len(abouts)
    if by == "qemu":
        return run_qemu(memory[:-8] + (1).to_bytes(8, "little"), size)
    return run_polyvisor(memory, size, by, 60 * len(abouts))


def unlike(first: bytes, second: bytes) -> list[str]:
    found = []
    for number, about in enumerate(program()[1]):
        a, b = (
            [int.from_bytes(r[24 * number + n : 24 * number + n + 8], "little") for n in (0, 8, 16)]
            for r in (first, second)
        )
        if a != b:
            found.append(f"{about}: {[hex(v) for v in a]}, {[hex(v) for v in b]}")
    return found


def test_the_tiers_agree() -> None:
    assert unlike(results("native"), results("reference")) == []


@pytest.mark.skipif(QEMU is None, reason=REASON)
def test_qemu_agrees() -> None:
    assert unlike(results("native"), results("qemu")) == []
