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
