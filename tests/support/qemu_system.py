"""Bare-metal RISC-V programs, run by QEMU's system emulation and by polyvisor: an oracle for what is privileged.

A program is loaded at `BASE` and starts in machine mode.  It puts 64-bit words from `RESULTS` on and jumps to
``finish`` with the address behind the last one in s0; that prints them, one line each, and powers off.  Under
polyvisor the words are read from memory instead.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from .privileged import BASE, HANDLER, RESULTS, Machine

QEMU = shutil.which("qemu-system-riscv64")
REASON = "qemu-system-riscv64 (QEMU's system emulation of RISC-V) is not installed"
# Extensions that are not described here; QEMU 7.2 has them by default or may have.
CPU = "rv64,h=off,v=off,svnapot=off,svpbmt=off"

# Under polyvisor ``native`` is not 0: a wfi returns to the test.
FINISH = """
finish:
    csrw mie, zero
    csrw satp, zero
    lw t0, native
    beqz t0, print
    la t0, stop
    jr t0
stop:
    wfi
    j .
    .balign 4
native: .word 0
print:
    li t0, 0x10000000
    li s1, RESULTS
next:
    beq s1, s0, off
    ld a0, (s1)
    addi s1, s1, 8
    li t1, 64
digit:
    addi t1, t1, -4
    srl t2, a0, t1
    andi t2, t2, 15
    addi t2, t2, 48
    li t3, 58
    blt t2, t3, decimal
    addi t2, t2, 39
decimal:
    sb t2, (t0)
    bnez t1, digit
    li t2, 10
    sb t2, (t0)
    j next
off:
    li t0, 0x100000
    li t1, 0x5555
    sw t1, (t0)
    j .
"""


def run_qemu(image: bytes) -> list[int]:
    """The words a program prints under QEMU."""
    assert QEMU is not None, REASON
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "program.bin")
        path.write_bytes(image)
        done = subprocess.run(
            [QEMU, "-M", "virt", "-cpu", CPU, "-m", "128", "-bios", "none", "-display", "none", "-monitor", "none",
             "-serial", "stdio", "-device", f"loader,file={path},addr={BASE:#x}"],
            capture_output=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return [int(line, 16) for line in done.stdout.split()]


def run_here(machine: Machine, image: bytes, native: int) -> list[int]:
    """The words it leaves in memory here; ``native`` is the address of that word in it."""
    machine.cpu.reset()
    machine.memory.write(BASE, image)
    machine.memory.write(native, b"\1\0\0\0")
    machine.state.pc = HANDLER
    machine.cpu.flush()
    found = machine.cpu.run(10_000_000)
    assert (found.kind, found.reason) == ("leave", "wfi"), (found, hex(machine.state.pc), hex(machine.state.mepc))
    end = machine.x("s0")
    data = machine.memory.read(RESULTS, end - RESULTS)
    return [int.from_bytes(data[n : n + 8], "little") for n in range(0, len(data), 8)]
