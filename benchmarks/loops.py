"""Simple loops in machine mode under polyvisor and QEMU (TCG), in turn: million guest instructions per second.

    python benchmarks/loops.py [--runs 5] [--instructions 2000000000] [--json]

Each program is run long and short; the difference of the wall times is free of start-up.  QEMU gets four times the
instructions, so that both run about equally long.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64

DRAM = 0x8000_0000
SHORT = 1000
END = """
    li t0, 0x100000
    li t1, 0x5555
    sw t1, 0(t0)
stay:
    j stay
    .balign 8192
buffer:
    .dword 1, 2, 3, 4
"""

# Name: instructions in one turn of the loop, and the loop; a0 counts down, t1 points to a page of data.
LOOPS = {
    "load-store": (7, "ld t0, 0(t1)\nadd t2, t2, t0\naddi s0, s0, 1\nxor s1, s1, t2\nsd s1, 8(t1)"),
    "integer": (10, "add t2, t2, a0\nslli t3, t2, 3\nxor t2, t2, t3\nsrli t3, t2, 7\nxor t2, t2, t3\n"
                    "mul t4, t2, a0\nadd t5, t5, t4\nandi t6, t5, 255"),
    "call": (5, "jal t0, routine\nadd t2, t2, a0"),
}


def program(body: str, turns: int) -> bytes:
    """A bare-metal ELF file that runs the loop so often, then powers off."""
    text = f"    la t1, buffer\n    li a0, {turns}\n    j loop\nroutine:\n    jr t0\n    .balign 64\nloop:\n"
    text += "".join(f"    {line}\n" for line in body.splitlines())
    text += "    addi a0, a0, -1\n    bnez a0, loop\n" + END
    return elf(bytes(assemble(rv64, text, base=DRAM)))


def elf(code: bytes) -> bytes:
    """An ELF file of that code, to be run from the start of RAM."""
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 243, 1, DRAM, 64, 0, 0, 64, 56, 1, 64, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, DRAM, DRAM, len(code), len(code), 4096)
    return (header + segment).ljust(4096, b"\0") + code


def wall(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True, timeout=600)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--instructions", type=int, default=2_000_000_000)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    qemu = shutil.which("qemu-system-riscv64")
    commands = {"polyvisor": [sys.executable, "-m", "polyvisor", "run", "--memory", "64M"]}
    if qemu:
        commands["qemu"] = [qemu, "-M", "virt", "-m", "64M", "-bios", "none", "-nographic", "-kernel"]
    results: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (length, body) in LOOPS.items():
            rates: dict[str, list[float]] = {who: [] for who in commands}
            for _ in range(options.runs):
                for who, command in commands.items():
                    turns = options.instructions * (4 if who == "qemu" else 1) // length
                    times = []
                    for count in (SHORT, turns):
                        path = Path(directory, f"{name}-{count}.elf")
                        if not path.exists():
                            path.write_bytes(program(body, count))
                        times.append(wall([*command, os.fspath(path)]))
                    rates[who].append((turns - SHORT) * length / (times[1] - times[0]) / 1e6)
            results[name] = {
                who: {"median": round(statistics.median(v)), "min": round(min(v)), "max": round(max(v))}
                for who, v in rates.items()
            }
            if not options.json:
                cells = [f"{who} {r['median']} ({r['min']} .. {r['max']})" for who, r in results[name].items()]  # type: ignore[index]
                print(f"{name:12} million instructions/s: " + ", ".join(cells), flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
