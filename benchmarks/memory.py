"""Programs that use much memory or change translations, under polyvisor and QEMU (TCG), in turn: ns for one turn.

    python benchmarks/memory.py [--runs 3] [--only chase] [--json]

They run in supervisor mode with Sv39: code in a page of 1 GiB, data in pages of 4 KiB.  Each is run long and short; the
difference of the wall times is free of start-up.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from loops import DRAM, elf, wall

from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64

SHORT = 1000
TABLES = DRAM + 0x10_0000  # root, level 1, 32 of level 0; and a second root
ROOT, MIDDLE, LEAVES, ROOT2 = TABLES, TABLES + 0x1000, TABLES + 0x2000, TABLES + 0x3_0000
PAGES = 32 * 512
PHYSICAL = DRAM + 0x400_0000
DATA = 0x1_0000_0000


def pointer(address: int, flags: int) -> int:
    """A page table entry."""
    return address >> 12 << 10 | flags


START = f"""
    li t0, -1
    srli t0, t0, 10
    csrw pmpaddr0, t0
    li t0, 31
    csrw pmpcfg0, t0
    li s2, {ROOT}
    li s3, {ROOT2}
    li t0, {pointer(0, 0xCF)}
    sd t0, 0(s2)
    sd t0, 0(s3)
    li t0, {pointer(DRAM, 0xCF)}
    sd t0, 16(s2)
    sd t0, 16(s3)
    li t0, {pointer(MIDDLE, 1)}
    sd t0, 32(s2)
    sd t0, 32(s3)
    li t1, {MIDDLE}
    li t0, {pointer(LEAVES, 1)}
    li t2, {PAGES // 512}
middles:
    sd t0, 0(t1)
    addi t1, t1, 8
    addi t0, t0, 1024
    addi t2, t2, -1
    bnez t2, middles
    li t1, {LEAVES}
    li t0, {pointer(PHYSICAL, 0xC7)}
    li t2, {PAGES}
leaves:
    sd t0, 0(t1)
    addi t1, t1, 8
    addi t0, t0, 1024
    addi t2, t2, -1
    bnez t2, leaves
    li s4, {8 << 60 | ROOT >> 12}
    li s5, {8 << 60 | ROOT2 >> 12}
    csrw satp, s4
    sfence.vma
    li t0, 0x800
    csrs mstatus, t0
    la t0, supervisor
    csrw mepc, t0
    mret
    .balign 4096
routine:
    jr t0
    .balign 4096
supervisor:
    li s0, {DATA}
    li s1, 4096
    la s6, routine
"""
END = """
    li t0, 0x100000
    li t1, 0x5555
    sw t1, 0(t0)
stay:
    j stay
"""


# Of the number of a pointer in {0}, make its address; t0 is lost.  One in each 64 bytes, or one in each page.
EVERY_LINE = "slli {0}, {0}, 6\nadd {0}, {0}, s0\n"
EVERY_PAGE = "andi t0, {0}, 63\nslli t0, t0, 6\nslli {0}, {0}, 12\nadd {0}, {0}, t0\nadd {0}, {0}, s0\n"


def chase(count: int, address: str) -> tuple[int, str, str]:
    """Follow so many pointers in a random order, round and round."""
    setup = f"""
    li t1, 0
    li t2, {count}
    li t3, 0x5851F42D4C957F2D
    li t6, {count - 1}
make:
    mul t4, t1, t3
    addi t4, t4, 1235
    and t4, t4, t6
    srli a2, t4, 3
    xor t4, t4, a2
    mv t5, t1
    srli a2, t5, 3
    xor t5, t5, a2
    {address.format("t4")}
    {address.format("t5")}
    sd t4, 0(t5)
    addi t1, t1, 1
    bne t1, t2, make
    mv a1, s0
"""
    # All is flushed now and then, as an operating system does when it switches; QEMU's TLB grows only then.
    return 100_000_000, setup, "ld a1, 0(a1)\nslli t1, a0, 44\nbnez t1, on\nsfence.vma\non:"


def touch(pages: int, instruction: str) -> str:
    return "mv t1, s0\n" + f"{instruction} t2, 8(t1)\nadd t1, t1, s1\n" * pages


# Name: turns, what comes before the loop, and one turn of it.  s0: data, s1: 4096, s4, s5: values for satp.
PROGRAMS = {
    "chase 64 MiB": chase(1 << 20, EVERY_LINE),
    "chase 1 MiB": chase(1 << 14, EVERY_LINE),
    "chase 16384 pages": chase(1 << 14, EVERY_PAGE),
    "chase 2048 pages": chase(1 << 11, EVERY_PAGE),
    "stores to 64 MiB": (100_000_000, "li s7, 0x5851F42D4C957F2D\nli s8, 0x3fffff8\nli a1, 1",
                         "mul a1, a1, s7\naddi a1, a1, 1235\nsrli t1, a1, 20\nand t1, t1, s8\nadd t1, t1, s0\n"
                         "sd a1, 0(t1)"),
    "switch, 4 pages": (3_000_000, "", "csrw satp, s5\nsfence.vma\n" + touch(4, "ld") + "csrw satp, s4\nsfence.vma\n"
                        + touch(4, "sd")),
    "switch, 64 pages": (300_000, "", "csrw satp, s5\nsfence.vma\n" + touch(64, "ld") + "csrw satp, s4\nsfence.vma\n"
                         + touch(64, "sd")),
    "fence of a page": (10_000_000, "", "sfence.vma s0\nld t2, 8(s0)"),
    "fence, 16 pages": (1_000_000, "", "sfence.vma s0\n" + touch(16, "ld")),
    "unaligned": (50_000_000, "", "ld t2, 1(s0)\nsd t2, 9(s0)"),
    "across pages": (20_000_000, "add s0, s0, s1", "ld t2, -4(s0)\nsd t2, -4(s0)"),
    "call to a page": (50_000_000, "", "jalr t0, s6"),
}


def program(setup: str, body: str, turns: int) -> bytes:
    """A bare-metal ELF file that runs the loop so often, then powers off."""
    text = START + setup + f"\n    li a0, {turns}\n    .balign 64\nloop:\n{body}\n    addi a0, a0, -1\n"
    return elf(bytes(assemble(rv64, text + "    bnez a0, loop\n" + END, base=DRAM)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="those whose name has this in it")
    parser.add_argument("--scale", type=float, default=1, help="times as many turns")
    parser.add_argument("--no-qemu", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    qemu = None if options.no_qemu else shutil.which("qemu-system-riscv64")
    commands = {"polyvisor": [sys.executable, "-m", "polyvisor", "run", "--memory", "256M"]}
    if qemu:
        commands["qemu"] = [qemu, "-M", "virt", "-m", "256M", "-bios", "none", "-nographic", "-kernel"]
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for name, (turns, setup, body) in PROGRAMS.items():
            if options.only not in name:
                continue
            turns = max(int(turns * options.scale), 2 * SHORT)
            times: dict[str, list[float]] = {who: [] for who in commands}
            paths = []
            for count in (SHORT, turns):
                paths.append(Path(directory, f"{len(results)}-{count}.elf"))
                paths[-1].write_bytes(program(setup, body, count))
            for _ in range(options.runs):
                for who, command in commands.items():
                    short, long = (wall([*command, os.fspath(path)]) for path in paths)
                    times[who].append((long - short) / (turns - SHORT) * 1e9)
            results[name] = {who: round(statistics.median(v), 1) for who, v in times.items()}
            if not options.json:
                cells = [f"{who} {statistics.median(v):.1f} ({min(v):.1f} .. {max(v):.1f})" for who, v in times.items()]
                print(f"{name:17} ns: " + ", ".join(cells), flush=True)
    if options.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
