"""RISC-V, RV64: importing this package imports every part of the description."""

from . import (
    atomics,
    base,
    bitmanip,
    compressed,
    compressed_float,
    double,
    multiply,
    pseudo,
)
from . import (
    float as single,
)
from .architecture import rv64
from .state import Hart

# In the order of the manuals; a part is its own module and adds itself to rv64 when it is imported.
PARTS = (
    base,
    multiply,
    atomics,
    single,
    double,
    compressed,
    compressed_float,
    bitmanip,
    pseudo,
)

__all__ = ["PARTS", "Hart", "rv64"]
