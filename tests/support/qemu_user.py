"""RISC-V instructions run by QEMU's user-mode emulation, many cases in one process: an oracle for semantics.

The program is a static ELF file put together here, with no compiler and none of polyvisor's assembler.  Each case
loads registers from its record in memory, runs its code, and stores the registers back; at the end all
records are written to standard output.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

QEMU = shutil.which("qemu-riscv64")
REASON = "qemu-riscv64 (QEMU's user-mode emulation of RISC-V) is not installed"

BASE = 0x10000
RECORDS = BASE + 0x1000
X, F, FCSR, SCRATCH = 0, 256, 512, 528
SCRATCH_SIZE = 64
RECORD = SCRATCH + SCRATCH_SIZE
POINTER = 31  # t6 points at the record: code under test must leave it alone


@dataclass
class Case:
    """``code`` runs with these registers (x[0] and x[31] do not count) and must fall through at its end."""

    code: bytes
    x: Sequence[int] = (0,) * 32
    scratch: bytes = bytes(SCRATCH_SIZE)
    f: Sequence[int] = (0,) * 32
    fcsr: int = 0


@dataclass
class Outcome:
    """Registers and scratch memory afterwards; x[0] and x[31] are 0."""

    x: list[int]
    scratch: bytes
    f: list[int] = field(default_factory=list)
    fcsr: int = 0


@dataclass
class Image:
    """What is loaded at BASE, and where each case's code starts."""

    data: bytes
    starts: list[int]
    entry: int


def scratch_address(index: int) -> int:
    """Where the scratch memory of the case with that number will be (its records come before all code)."""
    return RECORDS + index * RECORD + SCRATCH


def _i(opcode: int, funct3: int, rd: int, rs1: int, imm: int) -> bytes:
    return struct.pack("<I", (imm & 0xFFF) << 20 | rs1 << 15 | funct3 << 12 | rd << 7 | opcode)


def _s(opcode: int, rs2: int, rs1: int, imm: int) -> bytes:
    return struct.pack("<I", (imm >> 5 & 0x7F) << 25 | rs2 << 20 | rs1 << 15 | 3 << 12 | (imm & 31) << 7 | opcode)


def _constant(rd: int, value: int) -> bytes:
    """lui and addi, for positive values below 2**31 - 2**11."""
    upper = value + 0x800 >> 12
    return struct.pack("<I", upper << 12 | rd << 7 | 0x37) + _i(0x13, 0, rd, rd, value - (upper << 12))


def image(cases: Sequence[Case], floats: bool = False) -> Image:
    """The program that runs ``cases``, with the floating-point registers if ``floats``."""
    entry = RECORDS + -(-len(cases) * RECORD // 16) * 16
    code, starts = bytearray(_constant(POINTER, RECORDS)), []
    records = bytearray()
    for case in cases:
        records += struct.pack("<32Q", *case.x) + struct.pack("<32Q", *case.f) + struct.pack("<QQ", case.fcsr, 0)
        records += case.scratch.ljust(SCRATCH_SIZE, b"\0")
        if floats:
            code += b"".join(_i(0x07, 3, n, POINTER, F + 8 * n) for n in range(32))
            code += _i(0x03, 3, 5, POINTER, FCSR) + _i(0x73, 1, 0, 5, 3)
        code += b"".join(_i(0x03, 3, n, POINTER, X + 8 * n) for n in range(1, 31))
        starts.append(entry + len(code))
        code += case.code
        code += b"".join(_s(0x23, n, POINTER, X + 8 * n) for n in range(1, 31))
        if floats:
            code += b"".join(_s(0x27, n, POINTER, F + 8 * n) for n in range(32))
            code += _i(0x73, 2, 5, 0, 3) + _s(0x23, 5, POINTER, FCSR)
        code += _i(0x13, 0, POINTER, POINTER, RECORD)
        if len(code) % 4:
            code += b"\x01\0"  # c.nop
    # write(1, RECORDS, ...), exit(0)
    code += _i(0x13, 0, 10, 0, 1) + _constant(11, RECORDS) + _constant(12, len(cases) * RECORD)
    code += _i(0x13, 0, 17, 0, 64) + _i(0x73, 0, 0, 0, 0)
    code += _i(0x13, 0, 10, 0, 0) + _i(0x13, 0, 17, 0, 93) + _i(0x73, 0, 0, 0, 0)
    size = entry - BASE + len(code)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, 243, 1, entry, 64, 0, 5, 64, 56, 1, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, 0, BASE, BASE, size, size, 0x1000)
    before_code = header.ljust(RECORDS - BASE, b"\0") + records
    return Image(before_code.ljust(entry - BASE, b"\0") + bytes(code), starts, entry)


def outcomes(records: bytes) -> list[Outcome]:
    """The results in the records of a program that has run."""
    found = []
    for at in range(0, len(records), RECORD):
        x = [0, *struct.unpack_from("<30Q", records, at + X + 8), 0]
        f = list(struct.unpack_from("<32Q", records, at + F))
        (fcsr,) = struct.unpack_from("<Q", records, at + FCSR)
        found.append(Outcome(x, records[at + SCRATCH : at + RECORD], f, fcsr))
    return found


def run(cases: Sequence[Case], floats: bool = False, cpu: str = "rv64") -> list[Outcome]:
    """Run the cases under QEMU."""
    assert QEMU is not None, REASON
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory, "cases")
        program.write_bytes(image(cases, floats).data)
        program.chmod(0o755)
        done = subprocess.run([QEMU, "-cpu", cpu, str(program)], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, f"qemu-riscv64 ended with {done.returncode}: {done.stderr.decode()}"
    assert len(done.stdout) == len(cases) * RECORD
    return outcomes(done.stdout)
