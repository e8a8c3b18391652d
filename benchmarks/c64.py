"""The Commodore 64, in times of real time: the CPU alone, the whole machine with and without a picture, and VICE.

    python -m benchmarks.c64 [--runs 5] [--seconds 60] [--tier jit] [--vice "xvfb-run -a x64sc"] [--json]

Each is run in turn, so that what else the host does touches all alike; the median counts, and the smallest and the
largest are given.  The machine is at work all the time: a program that adds and writes, and, with the picture, eight
sprites on a text screen, and a border that changes.  VICE gets our ROMs and the same cartridge; its start-up is taken
off by a second, shorter run.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from polyvisor.adl.assembler import assemble
from polyvisor.boards.c64.machine import Commodore64
from polyvisor.boards.c64.model import PAL
from polyvisor.boards.c64.roms import free_roms
from polyvisor.engine.bare import TIERS, BareMachine
from polyvisor.isa.mos6502 import mos6510
from polyvisor.storage.commodore.cartridge import Cartridge

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
    "sei\n lda #$1b\n sta $d011\n lda #8\n sta $d016\n lda #$14\n sta $d018\n lda #6\n sta $d021\n"
    " lda #$ff\n sta $d015\n ldx #15\n1: txa\n sta $d027,x\n asl a\n asl a\n asl a\n ora #$40\n"
    " sta $d000,x\n dex\n bpl 1b\n" + WORK.format(each="inc $d020")
)
ORIGIN = 0xC000
SECOND = PAL.clock


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
    image = cartridge(assemble(mos6510, text, ORIGIN).bytes)
    machine = Commodore64(tier=tier, cartridge=Cartridge.parse(image))
    if sound:
        machine.listen()

    def run(cycles: int) -> float:
        began = time.perf_counter()
        machine.run(cycles)
        return time.perf_counter() - began

    return run


COPY = """
        ldx #0
1:      lda copied,x
        sta $c000,x
        inx
        bne 1b
        jmp $c000
copied:
"""
CARTRIDGE_START = bytes.fromhex("0980 0980 c3c2cd3830")


def cartridge(program: bytes) -> bytes:
    """A cartridge image (CRT, 8 KiB) that starts itself, and puts a program where it belongs."""
    rom = CARTRIDGE_START + assemble(mos6510, COPY, 0x8000 + len(CARTRIDGE_START)).bytes + program
    header = struct.pack(">16sIHHBB6x32s", b"C64 CARTRIDGE   ", 0x40, 0x100, 0, 0, 1, b"BENCHMARK")
    return header + struct.pack(">4sIHHHH", b"CHIP", 0x2010, 0, 0, 0x8000, 0x2000) + rom.ljust(0x2000, b"\0")


def vice(command: str) -> Callable[[int], float]:
    """VICE, with our ROMs and the program with the picture; it ends itself after so many cycles."""
    place = Path(tempfile.mkdtemp(prefix="polyvisor-vice-"))
    for name, content in free_roms()._asdict().items():
        (place / name).write_bytes(content)
    (place / "program.crt").write_bytes(cartridge(assemble(mos6510, PICTURE, ORIGIN).bytes))

    def once(cycles: int) -> float:
        began = time.perf_counter()
        done = subprocess.run(
            [
                *shlex.split(command), "-warp", "+sound", "-limitcycles", str(cycles), "-basic", place / "basic",
                "-kernal", place / "kernal", "-chargen", place / "characters", "-cartcrt", place / "program.crt",
            ],
            capture_output=True, env={**os.environ, "HOME": str(place)}, timeout=600,
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
    parser.add_argument("--vice", help="compare with this, such as \"xvfb-run -a x64sc\"")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    machines: dict[str, Callable[[int], float]] = {}
    for tier in arguments.tier or ["interpreter", "jit"]:
        machines[f"{tier}: 6510 alone"] = alone(tier)
        machines[f"{tier}: blank screen"] = whole(tier, BLANK)
        machines[f"{tier}: picture, 8 sprites"] = whole(tier, PICTURE)
        machines[f"{tier}: and sound"] = whole(tier, PICTURE, sound=True)
    if arguments.vice:
        if not shlex.split(arguments.vice) or shutil.which(shlex.split(arguments.vice)[0]) is None:
            print(f"there is no {arguments.vice}", file=sys.stderr)
            return 2
        machines["VICE: picture, 8 sprites"] = vice(arguments.vice)
    found = measure(machines, arguments.runs, arguments.seconds)
    if arguments.json:
        print(json.dumps(found))
        return 0
    for name, values in found.items():
        print(f"{name:32} {statistics.median(values):7.1f} times real time ({min(values):.1f} to {max(values):.1f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
