"""When the VIC-II will next do something that the CPU can notice without asking."""

from polyvisor.adl import function, u32, u64

from .interrupts import next_raster_interrupt
from .line import BUS_FIRST, FIRST_BAD, LAST_BAD, MATRIX_LAST
from .model import model, sprite_bus
from .state import (
    CONTROL_1,
    DATA_COLLISIONS,
    DATA_INTERRUPT,
    DEN,
    INTERRUPTS,
    INTERRUPTS_ENABLED,
    PEN_INTERRUPT,
    RASTER_INTERRUPT,
    SPRITE_COLLISIONS,
    SPRITE_ENABLE,
    SPRITE_INTERRUPT,
)

NEVER = 2**64 - 1


@function(inline=False)
def next_event(cpu) -> u64:
    """The first cycle, of those not run yet, in which the IRQ line may fall or BA may change. It may be too early."""
    now = cpu.vic_clock
    waits = cpu.vic_registers[INTERRUPTS_ENABLED] & ~cpu.vic_registers[INTERRUPTS]
    when = earlier(next_bus(cpu), u64(NEVER))
    if waits & RASTER_INTERRUPT != 0 and cpu.vic_raster_compare < model(cpu).lines:
        when = earlier(when, next_raster_interrupt(cpu))
    if waits & PEN_INTERRUPT != 0 and cpu.vic_pen_low != 0:
        when = earlier(when, line_start(cpu, u32(0)))
    if cpu.vic_sprite_running | cpu.vic_sprite_waiting != 0 and (
        (waits & SPRITE_INTERRUPT != 0 and cpu.vic_registers[SPRITE_COLLISIONS] == 0)
        or (waits & DATA_INTERRUPT != 0 and cpu.vic_registers[DATA_COLLISIONS] == 0)
    ):
        # Where is known only when it is drawn.
        when = now
    return when


@function
def earlier(a: u64, b: u64) -> u64:
    """The lesser of the two."""
    return a if a < b else b


@function
def line_start(cpu, line: u32) -> u64:
    """Cycle 1 of the next line of that number that has not begun."""
    ahead = line + model(cpu).lines - cpu.vic_line
    if ahead > model(cpu).lines:
        ahead = ahead - model(cpu).lines
    start = cpu.vic_clock - u64(cpu.vic_cycle - 1)
    if ahead == model(cpu).lines and cpu.vic_cycle == 1:
        return start
    return start + u64(ahead) * model(cpu).cycles


@function
def next_bus(cpu) -> u64:
    """The next cycle in which BA may differ from the last one."""
    now, cycle = cpu.vic_clock, cpu.vic_cycle
    start = now - u64(cycle - 1)
    when = next_bad(cpu)
    if cpu.vic_registers[SPRITE_ENABLE] | cpu.vic_sprite_dma != 0:
        # As long as nothing begins or ends, it is known which cycles need the bus.
        limit = u32(model(cpu).dma_check)
        if cycle > limit + 1:
            limit = limit + model(cpu).cycles
        elif cycle >= limit:
            return now
        end = limit
        at = cycle
        while at < limit:
            if sprites_need(cpu, at) != (cpu.vic_ba_low != 0) and not matrix_needs(cpu, at):
                end = at
                at = limit
            else:
                at = at + 1
        when = earlier(when, start + u64(end - 1))
    return when


@function
def sprites_need(cpu, at: u32) -> bool:
    """Whether sprites with DMA have BA low in a cycle of this line, or one of the next counted on from it."""
    cycle = at
    if cycle > model(cpu).cycles:
        cycle = cycle - model(cpu).cycles
    return cpu.vic_sprite_dma & sprite_bus(cpu, cycle) != 0


@function
def matrix_needs(cpu, at: u32) -> bool:
    """Whether the Bad Line Condition has it low, which `next_bad` knows."""
    return cpu.vic_bad != 0 and BUS_FIRST <= at <= MATRIX_LAST


@function
def next_bad(cpu) -> u64:
    """The next cycle in which c-accesses may begin to need the bus, or cease to."""
    now, cycle, line = cpu.vic_clock, cpu.vic_cycle, cpu.vic_line
    start = now - u64(cycle - 1)
    control = cpu.vic_registers[CONTROL_1]
    if cycle <= MATRIX_LAST + 1 and (cpu.vic_bad != 0 or (cpu.vic_ba_low != 0 and cpu.vic_sprite_dma == 0)):
        # It is a bad line, or has ceased to be one.
        if cycle < BUS_FIRST:
            return start + (BUS_FIRST - 1)
        if cpu.vic_bad == 0 or cpu.vic_ba_low == 0:
            return now
        return start + MATRIX_LAST
    # From which line on there may be others, all at the same distance.
    first = line + 1
    if cycle == 1:
        first = line
    if first < FIRST_BAD or first > LAST_BAD or (cpu.vic_den_seen == 0 and first > FIRST_BAD):
        if control & DEN == 0:
            return u64(NEVER)
        first = u32(FIRST_BAD)
    bad = first + (u32(control & 7) - first & 7)
    if bad > LAST_BAD:
        bad = FIRST_BAD + u32(control & 7)
    ahead = bad
    if bad < line:
        ahead = bad + model(cpu).lines
    return start + u64(ahead - line) * model(cpu).cycles + (BUS_FIRST - 1)
