"""An inter-processor interrupt is raised by another thread, at any moment: none may be lost or come back."""

from collections.abc import Iterator
from typing import Any

import pytest

from polyvisor.adl import u64
from polyvisor.engine.memory import Memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.riscv import rv64
from polyvisor.isa.riscv.csr import CSR_READ, CSR_WRITE

BASE = 0x8000_0000
SSIP = 2


@pytest.fixture
def cpu() -> Iterator[Any]:
    memory = Memory()
    memory.add_ram(BASE, 0x1000)
    made = reference_cpu(rv64, memory, None, lambda: 0)
    made.pc = BASE
    yield made
    memory.close()


def execute(cpu: Any, name: str, **operands: int) -> None:
    cpu.memory.write(int(cpu.pc), rv64.named(name)[0].encoding.encode(operands))
    cpu.step()


@pytest.mark.parametrize("number", [0x344, 0x144])
def test_raised_between_the_read_and_the_write_of_one_instruction(cpu: Any, number: int) -> None:
    cpu.mideleg = 0x222
    old = CSR_READ.entries[number](cpu)
    cpu.raise_ssip = 1  # as another thread does
    CSR_WRITE.entries[number](cpu, old | u64(0x200))
    assert int(CSR_READ.entries[number](cpu)) & SSIP


@pytest.mark.parametrize("number", [0x344, 0x144])
@pytest.mark.parametrize(
    ("name", "operands", "left"),
    [
        ("csrrwi", {"rd": 0, "imm": 0}, 0),
        ("csrrwi", {"rd": 5, "imm": 0}, 0),
        ("csrrci", {"rd": 0, "imm": 2}, 0),
        ("csrrci", {"rd": 0, "imm": 8}, SSIP),
        ("csrrsi", {"rd": 0, "imm": 8}, SSIP),
        ("csrrwi", {"rd": 0, "imm": 2}, SSIP),
    ],
)
def test_raised_before_the_instruction(
    cpu: Any, number: int, name: str, operands: dict[str, int], left: int
) -> None:
    cpu.mideleg = 0x222
    cpu.raise_ssip = 1
    execute(cpu, name, csr=number, **operands)
    assert int(cpu.pc) == BASE + 4
    assert int(cpu.mip) == left
    assert cpu.raise_ssip == 0
    if operands["rd"]:
        assert cpu.x[5] == SSIP
