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
