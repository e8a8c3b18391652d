"""How the models of the VIC-II differ: when in a line things happen, and how many lines there are.

Cycles of a line are numbered from 1, as in the article. Sources: C. Bauer, "The MOS 6567/6569 video controller (VIC-II)
and its application in the Commodore 64", sections 3.4 and 3.6.3.
"""

from dataclasses import dataclass

from polyvisor.adl import function, u8

SPRITES = 8


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
    first_visible: int
    visible_lines: int
    sprite_bus: tuple[u8, ...]
    """For each cycle, the sprites whose data needs the bus now, or in at most three cycles."""

    @property
    def first_pointer(self) -> int:
        """The cycle that reads the pointer of sprite 0; that of the next is read two cycles later, and so on."""
        return self.cycles - 5


def sprite_bus(cycles: int) -> tuple[u8, ...]:
    """BA is low from three cycles before a sprite's pointer is read until its data was: five cycles, by cycle."""
    needed = [0] * (cycles + 1)
    for sprite in range(SPRITES):
        for cycle in range(cycles - 8 + 2 * sprite, cycles - 3 + 2 * sprite):
            needed[(cycle - 1) % cycles + 1] |= 1 << sprite
    return tuple(map(u8, needed))


PAL = Model("6569", 312, 63, 504, 0x188, 55, 58, 16, 272, sprite_bus(63))
NTSC = Model("6567R8", 263, 65, 512, 0x190, 56, 59, 41, 235, sprite_bus(65))


@function
def model(cpu):
    """The one that this machine has: known when it is compiled."""
    if cpu.has("ntsc"):
        return NTSC
    return PAL
