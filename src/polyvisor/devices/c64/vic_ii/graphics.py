"""What the VIC-II reads of memory for its graphics, and the pixels it makes of it (sections 2.4.2, 3.6.2 and 3.7.3).

Pixels are numbers of colours, eight in a u64 with the leftmost in its lowest byte.
"""

from polyvisor.adl import function, u8, u16, u32, u64, unlikely

from ..memory import CARTRIDGE_HIGH, CHARACTER_ROM, COLOUR_RAM, RAM
from .state import BACKGROUND, BMM, CONTROL_1, CONTROL_2, ECM, MCM, POINTERS

EVERY = 0x0101_0101_0101_0101


@function
def spread(bits: u8) -> u64:
    """A byte of ones for each bit that is set, the most significant one first."""
    apart = u64(bits) * EVERY & 0x0102_0408_1020_4080
    return (apart + 0x7F7F_7F7F_7F7F_7F7F >> 7 & EVERY) * 0xFF


@function
def eight(colour: u8) -> u64:
    """Eight pixels of a colour."""
    return u64(colour & 15) * EVERY


@function
def fetch(cpu, address: u32) -> u8:
    """Read what the chip sees at one of its 16 KiB of addresses.

    The character ROM is at $1000 in the banks at $0000 and $8000. While a cartridge pulls GAME only (Ultimax), there is
    none, and the upper half of the cartridge's ROMH is at $3000 in all banks.
    """
    where = cpu.vic_bank | address
    place = u64(where) + RAM
    if where & 0x7000 == 0x1000 and cpu.vic_ultimax == 0:
        place = u64(address & 0xFFF) + CHARACTER_ROM
    if unlikely(cpu.vic_ultimax != 0) and address & 0x3000 == 0x3000:
        place = u64(address & 0xFFF) + CARTRIDGE_HIGH + 0x1000
    value, _ = cpu.phys_load(u8, place)
    return value


@function
def matrix_base(cpu) -> u32:
    """Where the video matrix is."""
    return u32(cpu.vic_registers[POINTERS] & 0xF0) << 6


@function
def read_matrix(cpu, vc: u32, free: bool) -> u16:
    """A c-access. Until the CPU has left the bus, nobody drives it (section 3.14.6)."""
    if not free:
        return u16(0xFFF)
    colour, _ = cpu.phys_load(u8, u64(vc) + COLOUR_RAM)
    return u16(colour & 15) << 8 | u16(fetch(cpu, matrix_base(cpu) | vc))


@function
def read_graphics(cpu, matrix: u32, vc: u32, rc: u32) -> u32:
    """A g-access in display state: a pixel unit, for this entry of the video matrix."""
    control = cpu.vic_registers[CONTROL_1]
    base = u32(cpu.vic_registers[POINTERS] & 0x0E) << 10
    address = base | (matrix & 0xFF) << 3 | rc
    if control & BMM != 0:
        address = base & 0x2000 | vc << 3 | rc
    if control & ECM != 0:
        address = address & 0x39FF
    return matrix << 8 | u32(fetch(cpu, address))


@function
def read_idle(cpu) -> u32:
    """A g-access in idle state."""
    address = u32(0x3FFF)
    if cpu.vic_registers[CONTROL_1] & ECM != 0:
        address = u32(0x39FF)
    return u32(fetch(cpu, address))


@function
def mode(cpu) -> u32:
    """ECM, BMM and MCM as a number."""
    control = cpu.vic_registers[CONTROL_1]
    multicolour = cpu.vic_registers[CONTROL_2] & MCM
    return u32(control & (ECM | BMM)) >> 4 | u32(multicolour) >> 4


@function
def two_colours(bits: u8, clear: u64, set: u64) -> u64:
    """A bit for each pixel."""
    return clear ^ (clear ^ set) & spread(bits)


@function
def high_bits(bits: u8) -> u8:
    """The first of each pair of bits, twice."""
    return bits & 0xAA | (bits & 0xAA) >> 1


@function
def four_colours(bits: u8, c00: u64, c01: u64, c10: u64, c11: u64) -> u64:
    """A pair of bits for each pair of pixels."""
    low = spread(bits & 0x55 | (bits & 0x55) << 1)
    first, second = c00 ^ (c00 ^ c01) & low, c10 ^ (c10 ^ c11) & low
    return first ^ (first ^ second) & spread(high_bits(bits))


@function
def pixels_of(cpu, unit: u32, mode: u32) -> u64:
    """The pixels of a unit in one of the eight modes, those that nothing else covers."""
    bits, matrix = u8(unit), unit >> 8
    low, high, colour = eight(u8(matrix)), eight(u8(matrix >> 4)), eight(u8(matrix >> 8))
    background = eight(cpu.vic_registers[BACKGROUND])
    pixels = u64(0)
    if mode == 0:
        pixels = two_colours(bits, background, colour)
    elif mode == 1:
        colour = eight(u8(matrix >> 8) & 7)
        if matrix & 0x800 != 0:
            first, second = eight(cpu.vic_registers[BACKGROUND + 1]), eight(cpu.vic_registers[BACKGROUND + 2])
            pixels = four_colours(bits, background, first, second, colour)
        else:
            pixels = two_colours(bits, background, colour)
    elif mode == 2:
        pixels = two_colours(bits, low, high)
    elif mode == 3:
        pixels = four_colours(bits, background, high, low, colour)
    elif mode == 4:
        pixels = two_colours(bits, eight(cpu.vic_registers[u32(BACKGROUND) + (matrix >> 6 & 3)]), colour)
    return pixels


@function
def foreground_of(unit: u32, mode: u32) -> u8:
    """A bit for each pixel of a unit that is foreground to sprites (section 3.8.2)."""
    if mode & 1 != 0 and (mode & 2 != 0 or unit & 0x80000 != 0):
        return high_bits(u8(unit))
    return u8(unit)
