"""The cases of `qemu_user`, run by polyvisor's native interpreter at the same addresses."""

from __future__ import annotations

from collections.abc import Sequence

from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64

from .qemu_user import BASE, RECORD, RECORDS, Case, Outcome, image, outcomes

WFI = bytes.fromhex("73005010")


def run(cases: Sequence[Case], floats: bool = False) -> list[Outcome]:
    """Run the whole program of the cases, threaded, until it wants to write its records out."""
    program = image(cases, floats)
    memory = Memory()
    # The last instructions are system calls; the first of them ends the program here.
    code = bytearray(program.data)
    at = code.rindex(bytes.fromhex("73000000"), 0, len(code) - 4)
    code[at : at + 4] = WFI
    memory.add_ram(BASE, -(-len(code) // 4096) * 4096)
    memory.write(BASE, bytes(code))
    try:
        native = native_code(rv64)
        cpu = Cpu(native, memory, CodePages(native, memory, 512))
        cpu.state.mstatus = 3 << 13
        cpu.state.mtvec = BASE
        cpu.state.pc = program.entry
        found = cpu.run(100 * len(cases) + sum(len(c.code) for c in cases) * 1000)
        assert found.kind == "leave" and cpu.state.mcause == 0, (found, cpu.state.values())
        return outcomes(memory.read(RECORDS, len(cases) * RECORD))
    finally:
        memory.close()
