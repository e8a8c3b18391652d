"""Random 6502 programs, in all tiers, beside something that takes the bus and pulls the interrupt line.

By command: ``python -m tests.support.mos6502_fuzz --programs 2000``.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from typing import Any

from polyvisor.adl import WRITE, Field, u8, u32, u64
from polyvisor.dataclass import replace
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.reference import reference_cpu
from polyvisor.engine.regions.backend import SOME
from polyvisor.engine.regions.compile import RegionCompiler
from polyvisor.engine.regions.manager import Regions
from polyvisor.isa.mos6502 import Mos6502, mos6502
from polyvisor.isa.mos6502.interrupts import next_look, set_irq, take_interrupts

pulsed6502 = mos6502.variant("pulsed6502", features=frozenset())


@pulsed6502.state
class Pulsed(Mos6502):
    """A 6502 beside which something takes the bus for three cycles now and then, and changes the IRQ line."""

    pulse_at = Field(u64, reset=2**64 - 1, quiet=True, doc="the cycle from which on it wants the bus")
    pulse_every = Field(u64)
    pulses = Field(u64)


@pulsed6502.hook("bus")
def bus(cpu, access: u32, vaddr: u64) -> None:
    if cpu.cycles() >= cpu.pulse_at and access != WRITE:
        cpu.stall(u64(3))
        cpu.pulses = cpu.pulses + 1
        cpu.pulse_at = cpu.pulse_at + cpu.pulse_every
        set_irq(cpu, u8(1), cpu.pulses & 3 == 0, cpu.cycles() - 2)


@pulsed6502.hook("poll")
def poll(cpu) -> None:
    take_interrupts(cpu)


@pulsed6502.hook("deadline")
def deadline(cpu) -> u64:
    soon = next_look(cpu)
    return soon if soon < cpu.pulse_at else cpu.pulse_at


_JUMPS = {"jam", "brk", "rti", "jmp", "rts", "jsr", "txs", "tas", "las"}
_BRANCHES = [i for i in mos6502.instructions if i.name in ("bpl", "bmi", "bvc", "bvs", "bcc", "bcs", "bne", "beq")]
_PLAIN = [i for i in mos6502.instructions if i.name not in _JUMPS and i not in _BRANCHES]
_HANDLER = 0x0F00  # of interrupts: counts in zero page, and returns
_HANDLER_CODE = bytes.fromhex("e6f0 48 68 40".replace(" ", ""))


@dataclass(frozen=True)
class Case:
    """A program that runs in a circle, and what it begins with."""

    base: int
    program: bytes
    data: bytes
    registers: bytes
    pulse_every: int
    cycles: int

    def place(self, memory: Memory, state: Any) -> None:
        """Put it where it belongs."""
        memory.write(0, bytes(0x10000))
        memory.write(0, self.data)
        memory.write(_HANDLER, _HANDLER_CODE)
        memory.write(0xFFFA, _HANDLER.to_bytes(2, "little") * 3)
        memory.write(self.base, self.program)
        state.pc = self.base
        state.a, state.x, state.y, state.s, state.p = self.registers
        if self.pulse_every:
            state.pulse_at = state.pulse_every = self.pulse_every


def make_case(seed: int) -> Case:
    """A random one."""
    rng = random.Random(seed)
    base = rng.choice([0x0200, 0x02F0, 0x07F9, 0x08F1, 0x0C80])
    code = bytearray()
    for _ in range(rng.randrange(3, 40)):
        kind = rng.random()
        if kind < 0.15:
            code += bytes([rng.choice(_BRANCHES).encoding.value, rng.randrange(4), 0xEA, 0xEA, 0xEA])
        elif kind < 0.18:
            here = base + len(code)
            inner, after = (here + 6).to_bytes(2, "little"), (here + 8).to_bytes(2, "little")
            code += b"\x20" + inner + b"\x4c" + after + b"\xe8\x60"
        elif kind < 0.20:
            code += b"\xee" + (base + len(code) + rng.randrange(-8, 3)).to_bytes(2, "little")  # changes the program
        else:
            instruction = rng.choice(_PLAIN)
            code.append(instruction.encoding.value)
            if instruction.encoding.length > 1:
                code.append(rng.randrange(256))
            if instruction.encoding.length > 2:
                code.append(rng.choice([0, 1, 3, 4, 5, 6]))
    code += b"\x4c" + base.to_bytes(2, "little")
    pulses = rng.choice([0, 0, 40, 63, 200, 701])
    return Case(base, bytes(code), rng.randbytes(0x700), rng.randbytes(5), pulses, rng.randrange(500, 6000))


class Idle:
    """Compiles nothing by itself."""

    pressure = SOME

    def room(self, quick: bool) -> int:
        return 0

    def submit(self, request: Any, done: Any) -> None:
        raise AssertionError


class Tiers:
    """What runs cases natively."""

    def __init__(self) -> None:
        self.code = native_code(pulsed6502)
        self.compiler = RegionCompiler(pulsed6502, self.code.layout, self.code.compiler)
        self.in_regions = 0
        self.cycles = 0

    def native(self, case: Case, jit: bool, rng: random.Random) -> tuple[Any, bytes, int, str]:
        """State, memory, cycles and why it ended, after the first jump once the cycles are over."""
        memory = Memory()
        memory.add_ram(0, 0x10000)
        pages = CodePages(self.code, memory, limit=300)
        cpu = Cpu(self.code, memory, pages)
        case.place(memory, cpu.state)
        if jit:
            cpu.engine.slice = 50
            regions = Regions(self.code, pages, Idle())
            regions.watch(cpu)
        reason = "limit"
        while jit and cpu.retired < case.cycles and reason == "limit":
            reason = cpu.run(rng.choice((3, 50, 700))).reason or "limit"
            number = (int(cpu.engine.sample_count) - 1) % 256
            record, address = int(cpu.engine.sample_records[number]), int(cpu.engine.sample_addresses[number])
            if record and rng.random() < 0.7:
                change = {"quick": rng.random() < 0.5, "limit": rng.choice((1, 5, 60))}
                regions.compile_now(
                    record, address, cpu, lambda r, change=change: self.compiler.compile(replace(r, **change))
                )
        if not jit:
            reason = cpu.run(case.cycles).reason or "limit"
        self.in_regions += int(cpu.engine.region_instructions)
        self.cycles += cpu.retired
        return cpu.state.values(), memory.read(0, 0x10000), cpu.retired, reason


def reference(case: Case, cycles: int) -> tuple[Any, bytes, int]:
    """The same by the reference executor, until so many cycles have passed."""
    memory = Memory()
    memory.add_ram(0, 0x10000)
    cpu = reference_cpu(pulsed6502, memory)
    case.place(memory, cpu)
    while cpu.retired < cycles:
        cpu.step()
    return cpu.values(), memory.read(0, 0x10000), cpu.retired


def differences(case: Case, tiers: Tiers, seed: int) -> list[str]:
    """What is not the same in a tier as in the reference executor."""
    found = []
    for jit in (False, True):
        values, memory, cycles, _ = tiers.native(case, jit, random.Random(seed))
        want, wanted, counted = reference(case, cycles)
        name = "jit" if jit else "interpreter"
        if counted != cycles:
            found.append(f"{name}: {cycles} cycles, not {counted}")
        found += [f"{name}: {k} is {values[k]}, not {want[k]}" for k in want if values[k] != want[k]]
        found += [f"{name}: ${i:04x} is {memory[i]:02x}" for i in range(0x10000) if memory[i] != wanted[i]][:5]
    return found


def main() -> None:
    """Run a campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    tiers = Tiers()
    bad = 0
    for seed in range(given.seed, given.seed + given.programs):
        found = differences(make_case(seed), tiers, seed)
        if found:
            bad += 1
            print(seed, found[:6])
    print(f"{given.programs} programs, {tiers.cycles} cycles natively, {tiers.in_regions} in regions; {bad} bad")


if __name__ == "__main__":
    main()
