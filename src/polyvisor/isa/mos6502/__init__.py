"""The MOS 6502 and its relatives: importing this package imports every part of the description."""

# The most used first, because the interpreter's handlers are compiled in the order in which they are described.
# isort: off
from . import memory, registers, control
from . import interrupts
from . import undocumented
# isort: on
from .architecture import mos6502
from .state import Mos6502
from .variants import Mos6510, mos6510, wdc65c02

PARTS = (memory, registers, control, interrupts, undocumented)

__all__ = ["PARTS", "Mos6502", "Mos6510", "mos6502", "mos6510", "wdc65c02"]
