"""A bare RISC-V machine in either tier, for tests of what is privileged.

A program is put at `CODE` and ends with `ecall` (or whatever traps); the handler in machine mode is a `wfi`, which
returns to the test.  What it traps with is the outcome.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from polyvisor.adl.assembler import Program, assemble
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.executor import ReferenceExecutor
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64
from polyvisor.isa.riscv.pmp import open_pmp

TIERS = ("reference", "native")
BASE, SIZE = 0x8000_0000, 0x20_0000
HANDLER = BASE  # machine mode
SUPERVISOR_HANDLER = BASE + 0x100
CODE = BASE + 0x1000
DATA = BASE + 0x10000
TABLES = BASE + 0x40000
RESULTS = BASE + 0x100000
ECALL = {0: 8, 1: 9, 3: 11}
INTERRUPT = 1 << 63


@cache
def assembled(text: str, address: int, symbols: tuple[tuple[str, int], ...]) -> Program:
    return assemble(rv64, text, address, {"DATA": DATA, **dict(symbols)})


@dataclass(frozen=True)
class Outcome:
    """The trap that ended a program: in which mode (3 or 1) it was taken, its cause, value and address."""

    mode: int
    cause: int
    value: int
    pc: int


class Machine:
    """One hart, RAM, and nothing else."""

    def __init__(self, tier: str) -> None:
        self.tier = tier
        self.memory = Memory()
        self.memory.add_ram(BASE, SIZE)
        self.cpu: Any
        if tier == "reference":
            self.cpu = ReferenceExecutor(rv64, self.memory, frequency=10_000_000)
        else:
            code = native_code(rv64)
            self.cpu = Cpu(code, self.memory, CodePages(code, self.memory, limit=64), frequency=10_000_000)
        self.state = self.cpu.state
        self.reset()

    def reset(self) -> None:
        """As after power-on, but the PMP lets all through and traps come back to the test."""
        self.cpu.reset()
        open_pmp(self.state)
        self.load("wfi\nj .", HANDLER)
        # In supervisor mode, which may not always wfi; mepc tells the handlers apart.
        self.load("ebreak\nj .", SUPERVISOR_HANDLER)
        self.state.mtvec = HANDLER
        self.state.stvec = SUPERVISOR_HANDLER
        self.cpu.flush()

    def load(self, text: str, address: int = CODE, **symbols: int) -> dict[str, int]:
        """Assemble and write a program; gives its symbols."""
        program = assembled(text, address, tuple(symbols.items()))
        self.memory.write(address, program.bytes)
        return program.symbols

    def go(self, pc: int = CODE, privilege: int | None = None, steps: int = 100_000) -> Outcome:
        """Run until a trap reaches a handler."""
        if privilege is not None:
            self.state.privilege = privilege
        self.state.pc = pc
        self.cpu.flush()
        found = self.cpu.run(steps)
        assert (found.kind, found.reason) == ("leave", "wfi"), (found, hex(self.state.pc))
        assert int(self.state.pc) == HANDLER + 4, f"stopped at {int(self.state.pc):#x}, not in the handler"
        state = self.state
        mepc, mcause = int(state.mepc), int(state.mcause)
        if mepc == SUPERVISOR_HANDLER and mcause == 3:
            return Outcome(1, int(state.scause), int(state.stval), int(state.sepc))
        return Outcome(3, mcause, int(state.mtval), mepc)

    def run(self, text: str, privilege: int = 3, **symbols: int) -> Outcome:
        """Assemble a program and run it in ``privilege``, until a trap."""
        self.load(text, **symbols)
        return self.go(privilege=privilege)

    def x(self, name: str) -> int:
        """An integer register by its name."""
        names = type(self.state).members["x"].names
        return int(self.state.x[names.index(name)])

    def word(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 8), "little")

    def put(self, address: int, *values: int) -> None:
        """Write 64-bit words."""
        self.memory.write(address, b"".join(v.to_bytes(8, "little") for v in values))

    def close(self) -> None:
        self.memory.close()


def machine(tier: str) -> Iterator[Machine]:
    """For a fixture: a machine that is closed after the test."""
    made = Machine(tier)
    yield made
    made.close()
