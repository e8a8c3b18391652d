"""RISC-V Linux guests: how a program starts, and how it calls the kernel (RISC-V Linux ABI)."""

from __future__ import annotations

from polyvisor.isa.riscv import rv64

from .program import Platform

RISCV64 = Platform(
    architecture=rv64,
    triple="riscv64-unknown-linux-gnu",
    cpu="generic-rv64",
    features="+m,+a,+c,-relax",
    elf_machine=243,
    elf_flags=1,  # compressed instructions, no floating point in registers
    start="""
        mv a0, sp
        andi sp, sp, -16
        j main
    """,
    system="""
        mv a7, a0
        mv a0, a1
        mv a1, a2
        mv a2, a3
        mv a3, a4
        mv a4, a5
        mv a5, a6
        ecall
        ret
    """,
    spawn="""
        mv a7, a0
        mv a0, a1
        mv a1, a2
        mv a2, a3
        ecall
        bnez a0, parent
        j main
    parent:
        ret
    """,
)
