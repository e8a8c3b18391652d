"""The expansion port: cartridges, described. What else may be there is Python's (see `machine`).

A cartridge pulls the lines EXROM and GAME, by which the PLA decides what the CPU sees of it, and has registers in the
I/O area that switch its banks.  Sources: Commodore 64 Programmer's Reference Guide, appendix on the expansion port;
the description of cartridge images with the CCS64 emulator (types 0, 5, 19 and 32); T. Giesel, "EasyFlash Programmer's
Guide".
"""

from polyvisor.adl import Field, function, u8, u32, u64
from polyvisor.devices.c64 import memory

# Kinds of cartridges as the state has them: where their registers are, and what these do.
NONE, PLAIN, OCEAN, MAGIC_DESK, EASYFLASH = range(5)


class Expansion:
    """What belongs to the state."""

    c64_exrom = Field(u8, reset=1, doc="level of the cartridge's line EXROM; 0: there is a cartridge")
    c64_game = Field(u8, reset=1, doc="level of the cartridge's line GAME")
    c64_cartridge = Field(u8, doc="what kind of cartridge there is; 0: none")
    c64_bank = Field(u8, doc="the bank of it that is seen")
    c64_banks = Field(u8, reset=1, doc="how many it has, less one: a mask")


@function
def rom_place(cpu, address: u64, half) -> u64:
    """The place in physical memory of an address in the cartridge's lower or upper 8 KiB."""
    return u64(memory.CARTRIDGE) + u64(cpu.c64_bank) * memory.CARTRIDGE_BANK + half + (address & 0x1FFF)


@function
def set_lines(cpu, exrom: u8, game: u8) -> None:
    """The levels of both lines; the VIC-II sees them too."""
    cpu.c64_exrom = exrom
    cpu.c64_game = game
    cpu.vic_ultimax = u8(exrom != 0 and game == 0)


@function(inline=False)
def write_io_1(cpu, offset: u32, value: u8) -> None:
    """A write to $DE00 + ``offset``. What is seen may be other memory afterwards."""
    kind = cpu.c64_cartridge
    if kind == OCEAN:
        cpu.c64_bank = value & 0x3F & cpu.c64_banks
    elif kind == MAGIC_DESK:
        cpu.c64_bank = value & 0x7F & cpu.c64_banks
        set_lines(cpu, value >> 7, u8(1))
    elif kind == EASYFLASH:
        if offset & 2 == 0:
            cpu.c64_bank = value & 0x3F & cpu.c64_banks
        else:
            # Bit 1: EXROM is low. Bit 0: GAME is, if bit 2 is set; else the jumper says so, and it is.
            game = u8(0)
            if value & 4 != 0:
                game = ~value & 1
            set_lines(cpu, ~value >> 1 & 1, game)
