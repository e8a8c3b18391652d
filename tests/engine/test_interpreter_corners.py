"""Corners of the native interpreter where it once went wrong, or might."""

from __future__ import annotations

import struct

import pytest

from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64

BASE = 0x2000_0000


def li(rd: int, value: int) -> int:
    """addi rd, x0, value"""
    return (value & 0xFFF) << 20 | rd << 7 | 0x13


def addi(rd: int, rs1: int, value: int) -> int:
    return li(rd, value) | rs1 << 15


def jump(distance: int) -> int:
    """jal x0, distance"""
    (jal,) = [i for i in rv64.instructions if i.name == "jal"]
    return int.from_bytes(jal.encoding.encode({"rd": 0, "imm": distance}), "little")


WFI = 0x1050_0073


@pytest.fixture
def cpu():
    memory = Memory()
    memory.add_ram(BASE, 0x10000)
    code = native_code(rv64)
    cpu = Cpu(code, memory, CodePages(code, memory), virtual=True)
    cpu.state.pc = BASE
    yield cpu
    memory.close()


def load(cpu, *words: int, at: int = BASE) -> None:
    cpu.memory.write(at, struct.pack(f"<{len(words)}I", *words))


def test_steps_round_a_loop_are_one_instruction_each(cpu):
    """Records of earlier steps used to be left behind where a later step ran into them."""
    load(cpu, addi(5, 5, 1), addi(6, 6, 1), addi(7, 7, 1), jump(-12))
    for n in range(1, 41):
        assert cpu.step().kind == "step"
        assert cpu.retired == n
        assert cpu.state.pc == BASE + n % 4 * 4


def test_a_step_after_a_limited_run(cpu):
    load(cpu, addi(5, 5, 1), jump(-4))
    assert cpu.run(10).kind == "limit"
    before = cpu.retired
    assert cpu.step().kind == "step"
    assert cpu.retired == before + 1


def ld(rd: int, rs1: int) -> int:
    return rs1 << 15 | 3 << 12 | rd << 7 | 0x03


def sd(rs2: int, rs1: int) -> int:
    return rs2 << 20 | rs1 << 15 | 3 << 12 | 0x23


@pytest.mark.parametrize("instruction, cause", [(ld(6, 5), 5), (sd(6, 5), 7)])
@pytest.mark.parametrize("address, fault", [
    (BASE + 0x10000 - 3, BASE + 0x10000), (BASE - 3, BASE - 3), (BASE + 0x10000 - 8, None), (BASE - 8, BASE - 8),
])
@pytest.mark.parametrize("tier", ["native", "reference"])
def test_the_part_outside_memory_is_what_faults(cpu, instruction, cause, address, fault, tier):
    """An access that begins in RAM and ends outside it reports the address where it leaves it."""
    load(cpu, instruction, WFI)
    cpu.state.mtvec = BASE + 4
    cpu.state.x[5] = address
    before = cpu.memory.read(BASE + 0xFF00, 0x100)
    if tier == "native":
        cpu.step()
    else:
        cpu.view.step()
    if fault is None:
        assert cpu.state.mcause == 0
    else:
        assert (cpu.state.mcause, cpu.state.mtval) == (cause, fault)
    assert cpu.memory.read(BASE + 0xFF00, 0x100) == before


def sh(rs2: int, rs1: int, imm: int = 0) -> int:
    return sd(rs2, rs1) & ~0x7000 | 1 << 12 | imm << 7


def sw(rs2: int, rs1: int) -> int:
    return sd(rs2, rs1) & ~0x7000 | 2 << 12


def jalr(rd: int, rs1: int) -> int:
    return rs1 << 15 | rd << 7 | 0x67


def test_a_store_to_the_second_half_of_an_instruction(cpu):
    """The record of an instruction is forgotten wherever a store hits it."""
    load(cpu, addi(7, 7, 1), sh(6, 5, 2), jump(-8), at=BASE + 2)
    cpu.state.pc = BASE + 2
    cpu.state.x[5] = BASE + 2
    cpu.state.x[6] = addi(7, 7, 256) >> 16
    cpu.run(6)
    assert cpu.state.x[7] == 257


def test_code_is_written_through_a_permission_to_write_data(cpu):
    """A page is written as data, run as code, and written again: the last write is seen."""
    page = BASE + 0x3000
    load(cpu, sw(6, 5), sd(8, 9), jalr(1, 5), sw(7, 5), jalr(1, 5), WFI)
    cpu.memory.write(page + 4, struct.pack("<I", jalr(0, 1)))
    cpu.state.x[5], cpu.state.x[9] = page, page + 0x800
    cpu.state.x[6], cpu.state.x[7] = addi(10, 10, 1), addi(10, 10, 16)
    assert cpu.run().reason == "wfi"
    assert cpu.state.x[10] == 17


def test_a_store_across_pages_into_code(cpu):
    """Both pages of a store are looked at for code."""
    page = BASE + 0x3000
    load(cpu, jalr(1, 5), sd(6, 8), jalr(1, 5), WFI)
    load(cpu, addi(10, 10, 1), jalr(0, 1), at=page)
    cpu.state.x[5], cpu.state.x[8] = page, page - 4
    cpu.state.x[6] = addi(10, 10, 16) << 32
    assert cpu.run().reason == "wfi"
    assert cpu.state.x[10] == 17


def test_two_addresses_of_one_page_of_code(cpu):
    """An instruction is decoded once for a page, but runs at the address it is reached by."""
    auipc, ret = 10 << 7 | 0x17, jalr(0, 1)
    tables, code = BASE + 0x8000, BASE + 0x2000
    flags = 0xCF | (1 << 4)  # V R W X U A D
    cpu.memory.write(tables, struct.pack("<Q", (tables + 0x1000) >> 12 << 10 | 1))
    cpu.memory.write(tables + 0x1000, struct.pack("<Q", (tables + 0x2000) >> 12 << 10 | 1))
    for page in (1, 2):
        cpu.memory.write(tables + 0x2000 + 8 * page, struct.pack("<Q", code >> 12 << 10 | flags))
    load(cpu, auipc, ret, at=code)
    cpu.state.pmpcfg[0], cpu.state.pmpaddr[0], cpu.state.pmp_used = 0x1F, 2**54 - 1, 1
    cpu.state.satp = 8 << 60 | tables >> 12
    cpu.state.mtvec = BASE
    load(cpu, WFI)
    for page in (0x1000, 0x2000, 0x1000):
        cpu.state.privilege, cpu.state.pc, cpu.state.x[1] = 0, page, 0x7000
        assert cpu.run().reason == "wfi"
        assert (cpu.state.x[10], cpu.state.mcause, cpu.state.mtval) == (page, 12, 0x7000)


def translated(cpu, *entries: int) -> int:
    """Sv39 tables: RAM is as it is, in small pages, and ``entries`` are the pages from 0x4000_0000. Their address."""
    tables = BASE + 0x8000
    cpu.memory.write(tables, struct.pack("<QQ", *[(tables + 0x1000) >> 12 << 10 | 1] * 2))
    for index, table in ((0, 0x2000), (BASE >> 21 & 511, 0x3000)):
        cpu.memory.write(tables + 0x1000 + 8 * index, struct.pack("<Q", (tables + table) >> 12 << 10 | 1))
    cpu.memory.write(tables + 0x3000, struct.pack("<16Q", *(BASE + 0x1000 * n >> 12 << 10 | 0xCF for n in range(16))))
    cpu.memory.write(tables + 0x2000, struct.pack(f"<{len(entries)}Q", *entries))
    cpu.state.pmpcfg[0], cpu.state.pmpaddr[0], cpu.state.pmp_used = 0x1F, 2**54 - 1, 1
    cpu.state.satp = 8 << 60 | tables >> 12
    cpu.state.privilege = 1
    return tables + 0x2000


@pytest.mark.parametrize("use", [sd(7, 5), ld(7, 5)])
@pytest.mark.parametrize("fence", [0x1202_8073, 0x1200_0073])
def test_a_page_is_mapped_elsewhere(cpu, use, fence):
    """After sfence.vma, of the page or of all, both loads and stores go by the new entry."""
    first, second = BASE + 0x4000, BASE + 0x5000
    table = translated(cpu, first >> 12 << 10 | 0xCF)
    cpu.memory.write(first, b"1" * 8)
    cpu.memory.write(second, b"2" * 8)
    load(cpu, use, sd(6, 8), fence, addi(7, 7, 1) if use & 0x20 else addi(0, 0, 0), use, WFI)
    cpu.state.x[5], cpu.state.x[6] = 0x4000_0000, second >> 12 << 10 | 0xCF
    cpu.state.x[7], cpu.state.x[8] = 5, table
    assert cpu.run().reason == "wfi"
    if use & 0x20:
        assert (cpu.memory.read(first, 1), cpu.memory.read(second, 1)) == (b"\5", b"\6")
    else:
        assert cpu.state.x[7] == int.from_bytes(b"2" * 8, "little")


MRET = 0x3020_0073


def test_mret_changes_the_rules_at_once(cpu):
    """What machine mode's translations allow, user mode must not find in them, not even in the same page of code."""
    target = BASE + 0x4000
    cpu.state.pmpcfg[0], cpu.state.pmpaddr[0] = 0x11, target >> 2  # NA4, read only
    cpu.state.pmpcfg[1], cpu.state.pmpaddr[1], cpu.state.pmp_used = 0x1F, 2**54 - 1, 2
    load(cpu, sd(6, 5), MRET, sw(7, 5), WFI)
    load(cpu, WFI, at=BASE + 0x800)
    cpu.state.x[5], cpu.state.x[6], cpu.state.x[7] = target, 1, 2
    cpu.state.mepc, cpu.state.mtvec = BASE + 8, BASE + 0x800
    assert cpu.run().reason == "wfi"
    assert (cpu.state.mcause, cpu.state.mtval) == (7, target)


def test_mret_lets_a_pending_interrupt_in_at_once(cpu):
    load(cpu, MRET, addi(7, 7, 1), addi(7, 7, 1), jump(-8))
    load(cpu, WFI, at=BASE + 0x800)
    cpu.state.pmpcfg[0], cpu.state.pmpaddr[0], cpu.state.pmp_used = 0x1F, 2**54 - 1, 1
    cpu.state.mepc, cpu.state.mtvec, cpu.state.mie, cpu.state.mip = BASE + 4, BASE + 0x800, 2, 2
    assert cpu.run().reason == "wfi"
    assert (cpu.state.mcause, cpu.state.mepc, cpu.state.x[7]) == (1 << 63 | 1, BASE + 4, 0)
