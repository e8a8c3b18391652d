"""RISC-V, RV64: importing this package imports every part of the description."""

# The most used first, because the interpreter's handlers are compiled in the order in which they are described.
# isort: off
from . import base
from . import compressed
from . import csr, trap, csr_supervisor
from . import multiply
from . import atomics
from . import bitmanip
from . import csr_machine, interrupts, mmu, pmp
from . import float, double, compressed_float
from . import pseudo
# isort: on
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
