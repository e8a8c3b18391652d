"""Interrupts of the VIC-II: raster, collisions, light pen (sections 3.11 and 3.12)."""

from polyvisor.adl import function, u8, u32, u64
from polyvisor.isa.mos6502.interrupts import set_irq

from .model import model
from .state import (
    INTERRUPTS,
    INTERRUPTS_ENABLED,
    LIGHT_PEN_X,
    LIGHT_PEN_Y,
    PEN_INTERRUPT,
    RASTER_INTERRUPT,
)

IRQ_DEVICE = 2


@function
def update_irq(cpu) -> None:
    """Set the interrupt line to what the latch and the mask make of it, in the next cycle to run."""
    low = cpu.vic_registers[INTERRUPTS] & cpu.vic_registers[INTERRUPTS_ENABLED] != 0
    set_irq(cpu, u8(IRQ_DEVICE), low, cpu.vic_clock)


@function(inline=False)
def interrupt(cpu, cause: u8) -> None:
    """Latch a cause of interrupts in the cycle that is being run."""
    cpu.vic_registers[INTERRUPTS] = cpu.vic_registers[INTERRUPTS] | cause
    update_irq(cpu)


@function
def compare_raster(cpu) -> None:
    """Interrupt where RASTER becomes what it is compared with."""
    matches = cpu.vic_raster == cpu.vic_raster_compare
    if matches and cpu.vic_raster_matched == 0:
        interrupt(cpu, u8(RASTER_INTERRUPT))
    cpu.vic_raster_matched = u8(matches)


@function
def column(cpu, cycle: u32) -> u32:
    """The X coordinate of the eight pixels that leave the chip in a cycle."""
    if cycle >= model(cpu).stands:
        return (cycle - 16) * 8
    if cycle >= 15:
        return (cycle - 15) * 8
    return u32(model(cpu).first_x) + (cycle - 1) * 8


@function(inline=False)
def latch_pen(cpu, cycle: u32) -> None:
    """Note where the beam is: X is counted for memory accesses, 12 pixels before those that are seen (3.6.1)."""
    x = column(cpu, cycle) + 12
    if x >= model(cpu).width:
        x = x - model(cpu).width
    cpu.vic_registers[LIGHT_PEN_X] = u8(x >> 1)
    cpu.vic_registers[LIGHT_PEN_Y] = u8(cpu.vic_raster)
    cpu.vic_pen_latched = u8(1)
    interrupt(cpu, u8(PEN_INTERRUPT))


@function(inline=False)
def light_pen(cpu, low: bool) -> None:
    """Set the level at the input LP, of a chip that is up to date. Only the first time a frame that it falls counts."""
    if low and cpu.vic_pen_low == 0 and cpu.vic_pen_latched == 0:
        # In the cycle that was run last.
        cycle = cpu.vic_cycle - 1
        if cycle == 0:
            cycle = u32(model(cpu).cycles)
        latch_pen(cpu, cycle)
    cpu.vic_pen_low = u8(low)


@function
def new_frame(cpu) -> None:
    """A light pen's input that is still low counts again."""
    cpu.vic_pen_latched = u8(0)
    if cpu.vic_pen_low != 0:
        latch_pen(cpu, cpu.vic_cycle)


@function
def next_raster_interrupt(cpu) -> u64:
    """The cycle in which the compared line begins, from the next cycle on."""
    lines, cycles = model(cpu).lines, model(cpu).cycles
    start = cpu.vic_clock - u64(cpu.vic_cycle - 1)  # of this line
    ahead = cpu.vic_raster_compare + u32(lines) - cpu.vic_line
    if ahead >= lines:
        ahead = ahead - lines
    late = u64(cpu.vic_raster_compare == 0)
    if ahead == 0 and u64(cpu.vic_cycle) > late + 1:
        ahead = u32(lines)
    return start + u64(ahead) * cycles + late
