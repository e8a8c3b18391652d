"""The MOS 6502 and its relatives: importing this package imports every part of the description."""

from .architecture import Mos6502, mos6502
from .bus import Port
from .cmos import wdc65c02

mos6510 = mos6502.variant("mos6510", features=frozenset({"port"}))


@mos6510.state
class Mos6510(Mos6502, Port):
    """A 6502 with a port."""


__all__ = ["Mos6502", "Mos6510", "mos6502", "mos6510", "wdc65c02"]
