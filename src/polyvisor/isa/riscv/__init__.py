"""RISC-V, RV64. Each part of the manuals is a module, which adds itself to ``rv64`` when it is imported."""

from .architecture import rv64
from .state import Hart

# The interpreter's handlers are compiled in the order in which they are described: first what a kernel begins with and
# takes longest, then the most used.
rv64.described_in(
    "polyvisor.isa.riscv",
    "csr", "trap", "csr_supervisor",
    "base", "compressed",
    "multiply",
    "atomics",
    "bitmanip",
    "compressed_float",
    "csr_machine", "interrupts", "mmu", "pmp",
    "float", "double",
    "pseudo",
)  # fmt: skip

__all__ = ["Hart", "rv64"]
