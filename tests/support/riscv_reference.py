"""The cases of `qemu_user`, run by polyvisor's reference executor at the same addresses."""

from __future__ import annotations

from collections.abc import Sequence

from polyvisor.engine.memory import Memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.riscv import rv64

from .qemu_user import BASE, RECORD, RECORDS, SCRATCH_SIZE, Case, Outcome, image, scratch_address

MOST_STEPS = 1000


def run(cases: Sequence[Case], floats: bool = False) -> list[Outcome]:
    """Run the cases; traps end in an error, as nothing here handles them."""
    program = image(cases, floats)
    memory = Memory()
    memory.add_ram(BASE, -(-len(program.data) // 4096) * 4096)
    memory.write(BASE, program.data)
    found = []
    try:
        cpu = reference_cpu(rv64, memory)
        for number, (case, start) in enumerate(zip(cases, program.starts, strict=True)):
            for n in range(1, 31):
                cpu.x[n] = case.x[n]
            cpu.x[31] = RECORDS + number * RECORD
            for n in range(32):
                cpu.f[n] = case.f[n]
            cpu.fflags, cpu.frm = case.fcsr & 31, case.fcsr >> 5
            cpu.pc = start
            end = start + len(case.code)
            for _ in range(MOST_STEPS):
                if int(cpu.pc) == end:
                    break
                cpu.step()
            else:
                raise AssertionError(f"case {number} ({case.code.hex()}) has not come to its end")
            x = [0, *(int(cpu.x[n]) for n in range(1, 31)), 0]
            scratch = memory.read(scratch_address(number), SCRATCH_SIZE)
            found.append(Outcome(x, scratch, [int(v) for v in cpu.f], int(cpu.frm) << 5 | int(cpu.fflags)))
    finally:
        memory.close()
    return found
