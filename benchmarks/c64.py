"""The Commodore 64, in times of real time: the CPU alone, the whole machine with and without a picture, and VICE.

    python -m benchmarks.c64 [--runs 5] [--seconds 60] [--tier jit] [--vice x64sc] [--json]

Each is run in turn, so that what else the host does touches all alike; the median counts, and the smallest and the
largest are given.  The machine is at work all the time: a program that adds and writes, and, with the picture, eight
sprites on a text screen, and a border that changes.  VICE gets our ROMs and the same program; its start-up is taken
off by a second, shorter run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from polyvisor.adl.assembler import assemble
from polyvisor.boards.c64 import software
from polyvisor.boards.c64.machine import CLOCK, Commodore64
from polyvisor.boards.c64.roms import free_roms
from polyvisor.engine.bare import TIERS, BareMachine
from polyvisor.isa.mos6502 import mos6510

WORK = """
loop:   inc counter
        bne 1f
        inc counter+1
1:      ldx #0
        clc
2:      lda table,x
        adc counter
        sta table,x
        inx
        cpx #16
        bne 2b
        {each}
        jmp loop
counter: .word 0
table:  .word 0, 0, 0, 0, 0, 0, 0, 0
"""
ALONE = WORK.format(each="")
BLANK = "sei\n lda #$0b\n sta $d011\n" + ALONE
PICTURE = (
    "sei\n lda #$1b\n sta $d011\n lda #$ff\n sta $d015\n ldx #15\n1: txa\n asl a\n asl a\n asl a\n ora #$40\n"
    " sta $d000,x\n dex\n bpl 1b\n" + WORK.format(each="inc $d020")
)
ORIGIN = 0xC000
SECOND = CLOCK


def alone(tier: str) -> Callable[[int], float]:
    """The 6510 with memory, and nothing else."""
    machine = BareMachine(mos6510, 1 << 16, tier=tier)
    machine.load(assemble(mos6510, ALONE, ORIGIN).bytes, ORIGIN)

    def run(cycles: int) -> float:
        began, end = time.perf_counter(), machine.cpu.retired + cycles
        while machine.cpu.retired < end:
            machine.run(end - machine.cpu.retired)
        return time.perf_counter() - began

    return run


def whole(tier: str, text: str, sound: bool = False) -> Callable[[int], float]:
    """The machine, with a program; ``sound``: samples are made."""
    machine = Commodore64(tier=tier)
    software.start(machine, ORIGIN.to_bytes(2, "little") + assemble(mos6510, text, ORIGIN).bytes)
    if sound:
        machine.listen()

    def run(cycles: int) -> float:
        began = time.perf_counter()
        machine.run(cycles)
        return time.perf_counter() - began

    return run


def vice(command: str, seconds: int) -> Callable[[int], float]:
    """VICE, headless, with our ROMs and the program with the picture; it ends itself after so many cycles."""
    place = Path(tempfile.mkdtemp(prefix="polyvisor-vice-"))
    for name, content in free_roms()._asdict().items():
        (place / name).write_bytes(content)
    program = place / "program.prg"
    program.write_bytes(ORIGIN.to_bytes(2, "little") + assemble(mos6510, PICTURE, ORIGIN).bytes)

    def once(cycles: int) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            [
                command, "-default", "-warp", "-sounddev", "dummy", "-limitcycles", str(cycles), "-basic", place / "basic",
                "-kernal", place / "kernal", "-chargen", place / "characters", "+autostart-warp",
                "-autostartprgmode", "1", "-autostart", program,
            ],
            capture_output=True, env={**os.environ, "SDL_VIDEODRIVER": "dummy", "HOME": str(place)}, timeout=600,
        )  # fmt: skip
        if b"cycle limit" not in done.stdout + done.stderr:
            raise RuntimeError(f"{command}: {(done.stderr or done.stdout).decode(errors='replace')[-500:]}")
        return time.perf_counter() - began

    return lambda cycles: once(cycles + 5 * SECOND) - once(5 * SECOND)


def measure(machines: dict[str, Callable[[int], float]], runs: int, seconds: int) -> dict[str, list[float]]:
    """Times of real time of each, one for each round."""
    found: dict[str, list[float]] = {name: [] for name in machines}
    for number in range(runs + 1):
        for name, run in machines.items():
            took = run(seconds * SECOND)
            if number:  # the first finds, and compiles, what is hot
                found[name].append(seconds / took)
            print(f"round {number} of {runs}: {name}: {seconds / took:.1f}", file=sys.stderr)
    return found


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60, help="of the machine's time, in each run")
    parser.add_argument("--tier", choices=TIERS, action="append", help="may be given several times")
    parser.add_argument("--vice", help="compare with this program, such as x64sc")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    machines: dict[str, Callable[[int], float]] = {}
    for tier in arguments.tier or ["interpreter", "jit"]:
        machines[f"{tier}: 6510 alone"] = alone(tier)
        machines[f"{tier}: blank screen"] = whole(tier, BLANK)
        machines[f"{tier}: picture, 8 sprites"] = whole(tier, PICTURE)
        machines[f"{tier}: and sound"] = whole(tier, PICTURE, sound=True)
    if arguments.vice:
        if shutil.which(arguments.vice) is None:
            print(f"there is no {arguments.vice}", file=sys.stderr)
            return 2
        machines["VICE: picture, 8 sprites"] = vice(arguments.vice, arguments.seconds)
    found = measure(machines, arguments.runs, arguments.seconds)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, values in found.items():
        print(f"{name:32} {statistics.median(values):7.1f} times real time ({min(values):.1f} to {max(values):.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
