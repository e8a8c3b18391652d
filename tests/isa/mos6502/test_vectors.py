"""Single instructions of the NMOS 6502, with every bus cycle, in all tiers.

The vectors are SingleStepTests/65x02's by Thomas Harte (MIT licence): 50 for each documented opcode. They are not part
of the project: where they are not beside it, ``POLYVISOR_VECTORS`` may say where they are.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from polyvisor.adl import WRITE
from polyvisor.dataclass import replace
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.reference import reference_cpu
from polyvisor.engine.regions.compile import RegionCompiler
from polyvisor.engine.regions.manager import Regions
from polyvisor.isa.mos6502 import mos6502
from support.mos6502_fuzz import Idle, pulsed6502

SHARED = Path(__file__).resolve().parents[4] / "shared/vectors"
FILE = Path(os.environ.get("POLYVISOR_VECTORS", SHARED)) / "mos6502.json.gz"

pytestmark = pytest.mark.skipif(not FILE.exists(), reason="the vectors are not here")
JAM = 0x02


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    """All of them."""
    return json.loads(gzip.decompress(FILE.read_bytes()))


@dataclass
class Machine:
    """Memory and a CPU in it, whatever the tier."""

    memory: Memory
    state: Any
    used: set[int] = field(default_factory=set)

    def poke(self, address: int, value: int) -> None:
        """Change a byte, if it is another one: what was decoded stays where nothing changes."""
        if self.memory.read(address, 1)[0] != value:
            self.memory.write(address, bytes([value]))
        self.used.add(address)

    def place(self, case: dict[str, Any], keep: int = -1) -> None:
        """Make everything as it is before a case."""
        given, state = case["Initial"], self.state
        ram = {address: value for address, value in given["RAM"] if address != keep}
        for address in self.used - ram.keys() - {keep}:
            self.memory.write(address, b"\0")
        self.used &= {keep}
        for address, value in ram.items():
            self.poke(address, value)
        self.used.update(address for address, _ in case["Final"]["RAM"])
        state.reset()
        state.pc, state.s, state.a, state.x, state.y, state.p = (given[k] for k in ("PC", "S", "A", "X", "Y", "P"))

    def differences(self, case: dict[str, Any]) -> list[str]:
        """What is not as it should be afterwards."""
        want, state = case["Final"], self.state
        got = {"PC": state.pc, "S": state.s, "A": state.a, "X": state.x, "Y": state.y, "P": state.p & ~0x30}
        want["P"] &= ~0x30
        found = [f"{case['Name']}: {k} is {int(v):#x}, not {want[k]:#x}" for k, v in got.items() if v != want[k]]
        for address, value in want["RAM"]:
            there = self.memory.read(address, 1)[0]
            if there != value:
                found.append(f"{case['Name']}: ${address:04x} is {there:#x}, not {value:#x}")
        return found


def flat() -> Memory:
    """RAM everywhere."""
    memory = Memory()
    memory.add_ram(0, 0x10000)
    return memory


class Bus:
    """An observer of each cycle."""

    def __init__(self) -> None:
        self.log: list[tuple[int, str]] = []

    def cycled(self, cpu: Any, access: int, address: Any) -> None:
        self.log.append((int(address), "write" if access == WRITE else "read"))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: None


def test_the_reference_executor(cases: list[dict[str, Any]]) -> None:
    memory = flat()
    cpu = reference_cpu(mos6502, memory)
    machine, cpu.observer = Machine(memory, cpu), Bus()
    found = []
    for case in cases:
        machine.place(case)
        cpu.observer.log.clear()
        cpu.step()
        found += machine.differences(case)
        if cpu.observer.log != [(address, kind) for address, _, kind in case["Cycles"]]:
            found.append(f"{case['Name']}: {cpu.observer.log}")
    assert not found[:10]


@pytest.mark.parametrize("exact", [False, True], ids=["fast", "cycle by cycle"])
def test_the_interpreter(cases: list[dict[str, Any]], exact: bool) -> None:
    """Its fast handlers, and those for when something may be due at any cycle."""
    memory = flat()
    code = native_code(pulsed6502)
    cpu = Cpu(code, memory, CodePages(code, memory, limit=300))
    machine = Machine(memory, cpu.state)
    found = []
    for case in cases:
        machine.place(case)
        if exact:
            # It would like the bus in the next cycle, but not for any of this instruction's.
            machine.state.pulse_at = cpu.retired + len(case["Cycles"])
        before = cpu.retired
        cpu.step()
        found += machine.differences(case)
        if cpu.retired - before != len(case["Cycles"]):
            found.append(f"{case['Name']}: {cpu.retired - before} cycles, not {len(case['Cycles'])}")
    assert not found[:10]


def in_regions(cases: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Run cases in regions of one instruction; gives what is wrong, and how many really ran there."""
    code = native_code(mos6502)
    compiler = RegionCompiler(mos6502, code.layout, code.compiler)
    found: list[str] = []
    ran = 0
    for case in cases:
        memory = flat()  # a new one, for stores to pages with code are not done in regions
        pages = CodePages(code, memory, limit=16)
        cpu = Cpu(code, memory, pages)
        regions = Regions(code, pages, Idle())
        regions.watch(cpu)
        machine = Machine(memory, cpu.state)
        pc, after = case["Initial"]["PC"], case["Final"]["PC"]
        if after in {address for address, _, _ in case["Cycles"][2:]}:
            continue  # where what ends the run should be is something else
        for compiled in (False, True):
            machine.place(case, after)
            machine.poke(after, JAM)
            if not compiled:
                cpu.run()  # its records are decoded now
                continue
            slot = regions._slot_of(cpu, pc & 0xFF00)
            if slot is None:
                break
            record = slot + ((pc & 0xFF) << code.layout.shift)
            request_one = lambda request: compiler.compile(replace(request, limit=1, quick=True))  # noqa: E731
            if not regions.compile_now(record, pc, cpu, request_one):
                break
            before, inside = cpu.retired, int(cpu.engine.region_instructions)
            cpu.run()
            case["Final"]["RAM"] = [each for each in case["Final"]["RAM"] if each[0] != after]
            found += machine.differences(case)
            if cpu.retired - before != len(case["Cycles"]) + 3:
                found.append(f"{case['Name']}: {cpu.retired - before - 3} cycles, not {len(case['Cycles'])}")
            ran += int(cpu.engine.region_instructions) > inside
    return found, ran


def test_regions(cases: list[dict[str, Any]]) -> None:
    """Five cases of each opcode."""
    chosen = cases[::10]
    found, ran = in_regions(chosen)
    assert not found[:10]
    assert ran > 0.6 * len(chosen)


@pytest.mark.slow
def test_regions_with_all_cases(cases: list[dict[str, Any]]) -> None:
    found, ran = in_regions(cases)
    assert not found[:10]
    assert ran > 0.6 * len(cases)
