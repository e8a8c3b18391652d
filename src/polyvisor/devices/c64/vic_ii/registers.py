"""The registers of the VIC-II as the CPU sees them (section 3.2). The chip has been run up to the access's cycle."""

from polyvisor.adl import Table, function, u8, u32

from .interrupts import compare_raster, update_irq
from .line import find_bad
from .sprites import change_shape, crunch, moved
from .state import (
    BORDER,
    CONTROL_1,
    CONTROL_2,
    DATA_COLLISIONS,
    INTERRUPTS,
    INTERRUPTS_ENABLED,
    POINTERS,
    RASTER,
    SPRITE_COLLISIONS,
    SPRITE_MULTICOLOUR,
    SPRITE_X_EXPAND,
    SPRITE_X_HIGH,
    SPRITE_Y_EXPAND,
)

LAST_COLOUR = 0x2E

READS, WRITES = Table("reads of the VIC-II"), Table("writes to the VIC-II")


@function(inline=False)
def read_register(cpu, register: u32) -> u8:
    """What the CPU reads; the 64 addresses repeat."""
    return READS[register & 63](cpu)


@function(inline=False)
def write_register(cpu, register: u32, value: u8) -> None:
    """What the CPU writes acts from the next cycle on."""
    WRITES[register & 63](cpu, value)


@READS.otherwise
def plain(number, cpu) -> u8:
    """A register that reads as it was written."""
    return cpu.vic_registers[number]


@WRITES.otherwise
def set_plain(number, cpu, value: u8) -> None:
    """A register that is only looked at."""
    cpu.vic_registers[number] = value


@READS.entry(*range(LAST_COLOUR + 1, 64))
def absent(cpu) -> u8:
    """There is nothing."""
    return u8(0xFF)


@WRITES.entry(RASTER + 1, RASTER + 2, SPRITE_COLLISIONS, DATA_COLLISIONS, *range(LAST_COLOUR + 1, 64))
def ignore(cpu, value: u8) -> None:
    """These can only be read, or are not there."""


@READS.entry(*range(BORDER, LAST_COLOUR + 1))
def colour(number, cpu) -> u8:
    """Four bits."""
    return cpu.vic_registers[number] | 0xF0


@WRITES.entry(*range(0, SPRITE_X_HIGH, 2), SPRITE_X_HIGH)
def set_x(number, cpu, value: u8) -> None:
    """X coordinates of sprites."""
    cpu.vic_registers[number] = value
    moved(cpu)


@READS.entry(CONTROL_1)
def control_1(cpu) -> u8:
    """Bit 7 is the highest of RASTER."""
    return cpu.vic_registers[CONTROL_1] & 0x7F | u8(cpu.vic_raster >> 1) & 0x80


@WRITES.entry(CONTROL_1)
def set_control_1(cpu, value: u8) -> None:
    """Bit 7 is the highest of the line that interrupts."""
    cpu.vic_registers[CONTROL_1] = value
    cpu.vic_raster_compare = cpu.vic_raster_compare & 0xFF | u32(value & 0x80) << 1
    compare_raster(cpu)
    find_bad(cpu)


@READS.entry(RASTER)
def raster(cpu) -> u8:
    """The line."""
    return u8(cpu.vic_raster)


@WRITES.entry(RASTER)
def set_raster_compare(cpu, value: u8) -> None:
    """The line that interrupts."""
    cpu.vic_raster_compare = cpu.vic_raster_compare & 0x100 | u32(value)
    compare_raster(cpu)


@READS.entry(CONTROL_2)
def control_2(cpu) -> u8:
    """Two bits are not there."""
    return cpu.vic_registers[CONTROL_2] | 0xC0


@WRITES.entry(SPRITE_Y_EXPAND)
def set_y_expand(cpu, value: u8) -> None:
    """Rule 1 of section 3.8.1: the expansion flip-flop is set where the bit is not."""
    if cpu.vic_cycle == 16:
        crunch(cpu, ~value & ~cpu.vic_sprite_flop)
    cpu.vic_registers[SPRITE_Y_EXPAND] = value
    cpu.vic_sprite_flop = cpu.vic_sprite_flop | ~value


@WRITES.entry(SPRITE_MULTICOLOUR, SPRITE_X_EXPAND)
def set_shape(number, cpu, value: u8) -> None:
    """How wide a sprite's pixels are, and of how many bits."""
    change_shape(cpu, u32(number), value)


@READS.entry(POINTERS)
def pointers(cpu) -> u8:
    """One bit is not there."""
    return cpu.vic_registers[POINTERS] | 0x01


@READS.entry(INTERRUPTS)
def interrupts(cpu) -> u8:
    """The latch; bit 7 is set while the chip pulls the line."""
    latch = cpu.vic_registers[INTERRUPTS]
    if latch & cpu.vic_registers[INTERRUPTS_ENABLED] != 0:
        return latch | 0xF0
    return latch | 0x70


@WRITES.entry(INTERRUPTS)
def acknowledge(cpu, value: u8) -> None:
    """Clear what is written as 1."""
    cpu.vic_registers[INTERRUPTS] = cpu.vic_registers[INTERRUPTS] & ~value
    update_irq(cpu)


@READS.entry(INTERRUPTS_ENABLED)
def enabled(cpu) -> u8:
    """Four bits."""
    return cpu.vic_registers[INTERRUPTS_ENABLED] | 0xF0


@WRITES.entry(INTERRUPTS_ENABLED)
def enable(cpu, value: u8) -> None:
    """Four bits."""
    cpu.vic_registers[INTERRUPTS_ENABLED] = value & 0x0F
    update_irq(cpu)


@READS.entry(SPRITE_COLLISIONS, DATA_COLLISIONS)
def collisions(number, cpu) -> u8:
    """Reading clears them."""
    value = cpu.vic_registers[number]
    cpu.vic_registers[number] = u8(0)
    return value
