"""RISC-V, RV64: importing this package imports every part of the description."""

from . import (
    atomics,
    base,
    bitmanip,
    compressed,
    compressed_float,
    csr,
    csr_machine,
    csr_supervisor,
    double,
    float,
    interrupts,
    mmu,
    multiply,
    pmp,
    pseudo,
    trap,
)
from .architecture import rv64
from .state import Hart

# In the order of the manuals; a part is its own module and adds itself to rv64 when it is imported.
PARTS = (
    base,
    multiply,
    atomics,
    float,
    double,
    compressed,
    compressed_float,
    bitmanip,
    csr,
    csr_machine,
    csr_supervisor,
    interrupts,
    trap,
    pmp,
    mmu,
    pseudo,
)

__all__ = ["PARTS", "Hart", "rv64"]
