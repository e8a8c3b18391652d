"""How the models of the VIC-II differ: when in a line things happen, and how many lines there are.

Cycles of a line are numbered from 1, as in the article. Sources: C. Bauer, "The MOS 6567/6569 video controller (VIC-II)
and its application in the Commodore 64", sections 3.4 and 3.6.3. Its diagram of the 6567R8 has the sprites' accesses a
cycle late; measurements by D. Kahlin's test programs, which also say where that chip's X coordinate stands still, are
as here.
"""

from dataclasses import dataclass

from polyvisor.adl import function, u8, u32


@dataclass(frozen=True)
class Model:
    """One of them.

    X coordinates run from 0 to ``width`` - 1; ``first_x`` is that of the eight pixels that leave the chip in cycle 1.
    """

    name: str
    lines: int
    cycles: int
    width: int
    first_x: int
    dma_check: int
    """The first of the two cycles that look for sprites which begin."""
    display_check: int
    first_pointer: int
    """The cycle that reads the pointer of sprite 0; that of the next is read two cycles later, and so on."""
    first_visible: int
    visible_lines: int
    stands: int = 64
    """The cycle whose X coordinates are those of the one before."""


PAL = Model("6569", 312, 63, 504, 0x188, 55, 58, 58, 16, 272)
NTSC = Model("6567R8", 263, 65, 512, 0x190, 56, 59, 59, 41, 235, stands=63)
"""Its lines have eight pixels more than there are X coordinates."""


@function
def model(cpu):
    """The one that this machine has: known when it is compiled."""
    if cpu.has("ntsc"):
        return NTSC
    return PAL


@function
def sprite_bus(cpu, cycle: u32) -> u8:
    """The sprites whose data needs the bus in a cycle, or will in at most three: BA is low for each that has DMA.

    That is five cycles for each, the fourth of which reads its pointer; those of the next begin two cycles later.
    """
    first = model(cpu).first_pointer - 3
    slot = cycle - first
    if cycle < first:
        slot = cycle + (model(cpu).cycles - first)
    if slot > 18:
        return u8(0)
    least = u32(0)
    if slot > 4:
        least = slot - 3 >> 1
    return u8((u32(2) << (slot >> 1)) - (u32(1) << least))
