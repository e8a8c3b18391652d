"""Privileged RISC-V run by QEMU's system emulation and by polyvisor: a program of many cases, one oracle.

A case writes control registers and memory, enters a mode at an address, and ends at the first trap that
reaches machine mode (supervisor mode's handler is an ``ecall``).  What is then in the registers is its outcome.
The same program runs in both; QEMU sends the outcomes through its serial port.
"""

from __future__ import annotations

import random
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from polyvisor.adl.assembler import assemble
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.executor import ReferenceExecutor
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64

QEMU = shutil.which("qemu-system-riscv64")
REASON = "qemu-system-riscv64 is not installed"
_CPU = "rv64,h=false,v=false,sstc=true,svinval=true,svnapot=false,svpbmt=false,debug=false"

BASE, SIZE = 0x8000_0000, 0x80_0000
MACHINE_VECTOR, SUPERVISOR_VECTOR, SENT = BASE + 0x400, BASE + 0x600, BASE + 0xFF8
STUBS = BASE + 0x1000
CASES, RECORDS = BASE + 0x10_0000, BASE + 0x20_0000
TABLES = BASE + 0x40_0000  # page tables
DATA = BASE + 0x60_0000  # pages full of ecall
_UART, _FINISH, _MSIP, _MTIMECMP = 0x1000_0000, 0x10_0000, 0x200_0000, 0x200_4000
EVERY = 2**64 - 1

PATCHES = 6
CSRS = (
    "medeleg mideleg mtvec stvec mcounteren scounteren menvcfg satp mip mie mepc sepc "
    "pmpaddr0 pmpaddr1 pmpaddr2 pmpaddr3 pmpaddr4 pmpaddr5 pmpaddr6 pmpaddr7 pmpcfg0"
).split()
_DEFAULTS = {
    "mtvec": MACHINE_VECTOR, "stvec": SUPERVISOR_VECTOR, "pmpaddr7": (1 << 54) - 1, "pmpcfg0": 0x1F << 56,
    "menvcfg": 1 << 61,
}  # fmt: skip
ARGUMENTS = ("a1", "a2", "a3", "a4", "a5")
_CASE_WORDS = 2 * PATCHES + len(CSRS) + 2 + len(ARGUMENTS) + 1
RECORDED = ("mcause", "mepc", "mtval", "mstatus", "scause", "sepc", "stval", "mip", "mie")
_RECORD_WORDS = len(RECORDED) + 2 + PATCHES
MIE, MPIE, SIE, SPIE, SPP = 1 << 3, 1 << 7, 1 << 1, 1 << 5, 1 << 8
MPRV, SUM, MXR, TVM, TW, TSR = 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22


@dataclass
class Case:
    """``mstatus`` gives the mode that is entered at ``mepc`` in its field MPP."""

    csrs: dict[str, int] = field(default_factory=dict)
    mstatus: int = 3 << 11
    patches: list[tuple[int, int]] = field(default_factory=list)
    arguments: dict[str, int] = field(default_factory=dict)
    msip: int = 0
    mtimecmp: int = EVERY
    about: str = ""

    def words(self) -> list[int]:
        patches = [*self.patches, *([(DATA + 0xFF8, 0x73)] * PATCHES)][:PATCHES]
        values = {**_DEFAULTS, **self.csrs}
        return [
            *(word for patch in patches for word in patch),
            *(values.get(name, 0) for name in CSRS),
            self.msip,
            self.mtimecmp,
            *(self.arguments.get(name, 0) for name in ARGUMENTS),
            self.mstatus,
        ]


# Send what lies from RECORDS to s1 if s3 is not 0, and end.
END = f"""
        beqz s3, finish
        li t0, {RECORDS}; li t1, {_UART}
    1:  beq t0, s1, finish
        lbu t2, (t0); sb t2, (t1); addi t0, t0, 1
        j 1b
    finish:
        li t0, {_FINISH}; li t1, 0x5555; sw t1, (t0)
        j finish
"""


@cache
def _frame() -> tuple[bytes, dict[str, int]]:
    """The program around the cases, and its symbols."""
    offset = iter(range(0, 8 * _CASE_WORDS, 8))
    patches = "\n".join(f"ld t0, {next(offset)}(s0); ld t1, {next(offset)}(s0); sd t1, (t0)" for _ in range(PATCHES))
    csrs = "\n".join(f"ld t0, {next(offset)}(s0); csrw {name}, t0" for name in CSRS)
    devices = (
        f"li t1, {_MSIP}; ld t0, {next(offset)}(s0); sw t0, (t1)\n"
        f"li t1, {_MTIMECMP}; ld t0, {next(offset)}(s0); sd t0, (t1)"
    )
    arguments = "\n".join(f"ld {name}, {next(offset)}(s0)" for name in ARGUMENTS)
    status = next(offset)
    record = iter(range(0, 8 * _RECORD_WORDS, 8))
    registers = "\n".join(f"csrr t0, {name}; sd t0, {next(record)}(s1)" for name in RECORDED)
    rest = f"sd t6, {next(record)}(s1); sd a0, {next(record)}(s1)"
    memory = "\n".join(f"ld t0, {16 * n}(s0); ld t0, (t0); sd t0, {next(record)}(s1)" for n in range(PATCHES))
    text = f"""
        li s0, {CASES}; li s1, {RECORDS}
        li t0, {SENT}; ld s2, -8(t0); ld s3, (t0)
        csrwi mcountinhibit, 5
    loop:
        beqz s2, done
        {patches}
        {csrs}
        {devices}
        sfence.vma
        fence.i
        li a0, 0
        csrw mscratch, zero; csrw mcause, zero; csrw mtval, zero
        csrw scause, zero; csrw stval, zero
        {arguments}
        ld t0, {status}(s0); csrw mstatus, t0
        mret
    common:
        {registers}
        csrw mstatus, zero; csrw satp, zero; csrw mie, zero
        {rest}
        {memory}
        addi s0, s0, {8 * _CASE_WORDS}; addi s1, s1, {8 * _RECORD_WORDS}; addi s2, s2, -1
        j loop
    done:
        {END}
    """
    program = assemble(rv64, text, BASE)
    assert len(program.bytes) <= MACHINE_VECTOR - BASE
    return program.bytes, program.symbols


def image(cases: list[Case], stubs: bytes, send: bool) -> bytes:
    """All of memory that is not zero at first, from BASE on."""
    code, symbols = _frame()
    memory = bytearray(SIZE)
    memory[: len(code)] = code
    # Interrupt n in vectored mode comes to n * 4: t6 tells which it was.
    vector = "\n".join("jal t6, common" for _ in range(64))
    put = assemble(rv64, vector, MACHINE_VECTOR, symbols).bytes
    memory[MACHINE_VECTOR - BASE : MACHINE_VECTOR - BASE + len(put)] = put
    put = b"\x73\0\0\0" * 64
    memory[SUPERVISOR_VECTOR - BASE : SUPERVISOR_VECTOR - BASE + len(put)] = put
    memory[SENT - 8 - BASE : SENT + 8 - BASE] = len(cases).to_bytes(8, "little") + int(send).to_bytes(8, "little")
    memory[STUBS - BASE : STUBS - BASE + len(stubs)] = stubs
    words = b"".join((word & EVERY).to_bytes(8, "little") for case in cases for word in case.words())
    assert len(words) <= RECORDS - CASES and len(cases) * _RECORD_WORDS * 8 <= TABLES - RECORDS
    memory[CASES - BASE : CASES - BASE + len(words)] = words
    memory[DATA - BASE :] = b"\x73\0\0\0" * ((SIZE - (DATA - BASE)) // 4)
    return bytes(memory)


Outcome = dict[str, int]


def _outcomes(data: bytes) -> list[Outcome]:
    names = [*RECORDED, "vector", "a0", *(f"word{n}" for n in range(PATCHES))]
    size = 8 * _RECORD_WORDS
    return [
        {n: int.from_bytes(data[at + 8 * i : at + 8 * i + 8], "little") for i, n in enumerate(names)}
        for at in range(0, len(data), size)
    ]


def by_qemu(cases: list[Case], stubs: bytes) -> list[Outcome]:
    """What QEMU makes of the cases."""
    return _outcomes(run_qemu(image(cases, stubs, True), len(cases) * _RECORD_WORDS * 8))


def run_qemu(program: bytes, size: int) -> bytes:
    """What QEMU sends, ``size`` bytes, running a program that starts at BASE."""
    assert QEMU is not None
    with tempfile.TemporaryDirectory() as directory:
        loaded, output = Path(directory, "program"), Path(directory, "output")
        loaded.write_bytes(program)
        subprocess.run(
            [QEMU, "-M", "virt", "-cpu", _CPU, "-m", "8M", "-bios", "none", "-display", "none", "-monitor", "none",
             "-serial", f"file:{output}", "-device", f"loader,file={loaded},addr={BASE:#x},force-raw=on"],
            check=True, timeout=30, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        data = output.read_bytes()
    assert len(data) == size, "the program did not come to its end in QEMU"
    return data


class _Finished(Exception):  # noqa: N818
    pass


class _Finisher:
    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        raise _Finished


class _Timers:
    """The two registers of a CLINT for one hart."""

    def __init__(self) -> None:
        self.state: Any = None

    def read(self, offset: int, size: int) -> int:
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == 0:
            self.state.line_msip = value & 1
        else:
            self.state.mtimecmp = value


def by_polyvisor(cases: list[Case], stubs: bytes, tier: str) -> list[Outcome]:
    """What a tier makes of the cases."""
    size = len(cases) * _RECORD_WORDS * 8
    return _outcomes(run_polyvisor(image(cases, stubs, False), size, tier, len(cases) * 400 + 1000))


def run_polyvisor(program: bytes, size: int, tier: str, most: int) -> bytes:
    """The ``size`` bytes at RECORDS after a tier has run a program, in at most that many instructions."""
    memory, timers = Memory(), _Timers()
    memory.add_ram(BASE, SIZE)
    memory.add_device(_FINISH, 0x1000, _Finisher())
    memory.add_device(_MSIP, 0x10000, timers)
    try:
        cpu: Any
        if tier == "reference":
            cpu = ReferenceExecutor(rv64, memory, frequency=10_000_000)
        else:
            code = native_code(rv64)
            cpu = Cpu(code, memory, CodePages(code, memory, limit=64), frequency=10_000_000)
        timers.state = cpu.state
        memory.write(BASE, program)
        cpu.state.pc = BASE
        try:
            found = cpu.run(most)
        except _Finished:
            return memory.read(RECORDS, size)
        raise AssertionError(f"the program did not come to its end: {found}, pc {int(cpu.state.pc):#x}")
    finally:
        memory.close()


def differences(
    cases: list[Case],
    expected: list[Outcome],
    found: list[Outcome],
    agree: Callable[[Case, Outcome, Outcome], None],
) -> list[str]:
    """Where outcomes differ, after ``agree`` changed what is expected where that is not how it must be."""
    texts = []
    for number, (case, theirs, ours) in enumerate(zip(cases, expected, found, strict=True)):
        theirs = dict(theirs)
        agree(case, theirs, ours)
        parts = [f"{n}: {ours[n]:#x}, QEMU {theirs[n]:#x}" for n in theirs if theirs[n] != ours[n]]
        if parts:
            texts.append(f"case {number} ({case.about}): " + "; ".join(parts))
    return texts


def choose(rng: random.Random, *choices: Any, common: float = 0.85) -> Any:
    """The first choice nearly always, else any of them."""
    return choices[0] if rng.random() < common else rng.choice(choices)
