"""The VIC-II, MOS 6569 (PAL) and 6567R8 (NTSC, where the architecture has the feature ``ntsc``).

Source: C. Bauer, "The MOS 6567/6569 video controller (VIC-II) and its application in the Commodore 64", 1996; sections
are named where they are followed. The chip is run when somebody looks: `run` brings it up to a clock cycle, and
`next_event` says when it will do something unasked; `read_register`, `write_register` and `light_pen` need it to be up
to date.

A cycle's accesses and counters come before what the CPU does in it, and what the CPU writes acts on the pixels of the
next. The pixels of X coordinates 8n to 8n + 7 leave the chip in cycle n + 15: two cycles after their g-access.
"""

from .events import next_event
from .interrupts import light_pen
from .line import run
from .model import NTSC, PAL, Model
from .registers import read_register, write_register
from .state import VicII

__all__ = [
    "NTSC", "PAL", "Model", "VicII", "light_pen", "next_event", "read_register", "run", "write_register",
]
