"""RISC-V, RV64. Each part of the manuals is a module, which adds itself to ``rv64`` when it is imported."""

from .architecture import rv64
from .state import Hart

# The most used first, because the interpreter's handlers are compiled in the order in which they are described.
rv64.described_in(
    "polyvisor.isa.riscv",
    "base", "compressed",
    "csr", "trap", "csr_supervisor",
    "multiply",
    "atomics",
    "bitmanip",
    "csr_machine", "interrupts", "mmu", "pmp",
    "float", "double", "compressed_float",
    "pseudo",
)  # fmt: skip

__all__ = ["Hart", "rv64"]
