"""A line of the VIC-II, cycle by cycle (sections 3.5, 3.6.3, 3.7.2 and 3.9).

`step` runs any cycle. Most cycles of a line are alike, so they are run together: those within the display window, where
there is a g-access in each, by `window`, and those outside, where nothing is seen but one colour, by `margin`.
"""

from polyvisor.adl import function, u8, u16, u32, u64, unlikely

from ..memory import FRAME_BUFFER, FRAME_STRIDE
from .graphics import (
    eight,
    foreground_of,
    mode,
    pixels_of,
    read_graphics,
    read_idle,
    read_matrix,
)
from .interrupts import column, compare_raster, new_frame
from .model import model, sprite_bus
from .sprites import begin_display, begin_dma, end_dma, flip_expansion, in_column, overlay, read_sprite
from .state import BORDER, CONTROL_1, CONTROL_2, CSEL, DEN, RSEL

FIRST_BAD, LAST_BAD = 0x30, 0xF7
BUS_FIRST, MATRIX_FIRST, MATRIX_LAST = 12, 15, 54  # BA and c-accesses of a Bad Line
GRAPHICS_FIRST, GRAPHICS_LAST = 16, 55  # g-accesses
# Where nothing but drawing happens: c-accesses and g-accesses, and no edge of the border.
WINDOW_FIRST, WINDOW_LAST = 19, 54
TOP, BOTTOM = (55, 51), (247, 251)  # by RSEL
NOTHING, ALL, LAST_PIXEL = 0, 2**64 - 1, 0xFF << 56


@function(inline=False)
def run(cpu, until: u64) -> None:
    """Run all cycles with numbers below ``until``."""
    while cpu.vic_clock < until:
        cycle = cpu.vic_cycle
        count = u32(1)
        if WINDOW_FIRST <= cycle <= WINDOW_LAST:
            count = at_most(until - cpu.vic_clock, WINDOW_LAST + 1 - cycle)
            window(cpu, count)
        elif cycle > 2 and cycle < BUS_FIRST and quiet(cpu):
            count = at_most(until - cpu.vic_clock, BUS_FIRST - cycle)
            margin(cpu, count)
        elif cycle > GRAPHICS_LAST + 4 and cycle < model(cpu).cycles and quiet(cpu):
            count = at_most(until - cpu.vic_clock, model(cpu).cycles - cycle)
            margin(cpu, count)
        else:
            step(cpu)
        cpu.vic_cycle = cycle + count
        if cpu.vic_cycle > model(cpu).cycles:
            cpu.vic_cycle = u32(1)
            cpu.vic_line = cpu.vic_line + 1
            if cpu.vic_line >= model(cpu).lines:
                cpu.vic_line = u32(0)
                cpu.vic_frames = cpu.vic_frames + 1


@function
def at_most(wanted: u64, limit: u32) -> u32:
    """The lesser of the two."""
    if wanted < u64(limit):
        return u32(wanted)
    return limit


@function
def quiet(cpu) -> bool:
    """Whether there are no sprites: none reads, none shows, none may begin."""
    return cpu.vic_sprite_dma | cpu.vic_sprite_running | cpu.vic_sprite_waiting == 0


# What happens in one cycle


@function(inline=False)
def step(cpu) -> None:
    """Any one cycle."""
    cycle = cpu.vic_cycle
    begin(cpu, cycle)
    bus(cpu, cycle)
    if cpu.vic_sprite_dma != 0:
        read_sprite(cpu)
    covered = edges(cpu, cycle)
    unit = cpu.vic_unit_read & 0xFFF00
    if GRAPHICS_FIRST <= cycle <= GRAPHICS_LAST:
        unit = next_unit(cpu)
    if cpu.vic_bad != 0 and MATRIX_FIRST <= cycle <= MATRIX_LAST:
        entry = read_matrix(cpu, cpu.vic_vc, cpu.vic_ba_cycles >= 4)
        cpu.vic_matrix[cpu.vic_vmli & 63] = entry
    draw(cpu, cycle, covered)
    cpu.vic_unit_shown = cpu.vic_unit_next
    cpu.vic_unit_next = cpu.vic_unit_read
    cpu.vic_unit_read = unit
    cpu.vic_clock = cpu.vic_clock + 1


@function
def begin(cpu, cycle: u32) -> None:
    """What the cycle's first phase does to the counters."""
    if cycle == 1:
        begin_line(cpu)
    elif cycle == 2 and cpu.vic_line == 0:
        set_raster(cpu)
    if cpu.vic_bad != 0:
        cpu.vic_display = u8(1)
    if cycle == 14:
        cpu.vic_vc = cpu.vic_vcbase
        cpu.vic_vmli = u32(0)
        if cpu.vic_bad != 0:
            cpu.vic_rc = u32(0)
    elif cycle == 16:
        if cpu.vic_sprite_dma != 0:
            end_dma(cpu)
    elif cycle == 58:
        end_row(cpu)
    if cycle == model(cpu).dma_check:
        flip_expansion(cpu)
        begin_dma(cpu)
    elif cycle == model(cpu).dma_check + 1:
        begin_dma(cpu)
    elif cycle == model(cpu).display_check:
        begin_display(cpu)
    elif cycle == model(cpu).cycles:
        vertical_border(cpu)


@function(inline=False)
def begin_line(cpu) -> None:
    """Cycle 1. In line 0, RASTER changes only in the next cycle."""
    if cpu.vic_line == 0:
        cpu.vic_vcbase = u32(0)
        cpu.vic_den_seen = u8(0)
        new_frame(cpu)
    else:
        set_raster(cpu)


@function(inline=False)
def set_raster(cpu) -> None:
    """RASTER becomes the number of the line."""
    cpu.vic_raster = cpu.vic_line
    compare_raster(cpu)
    find_bad(cpu)


@function
def find_bad(cpu) -> None:
    """The Bad Line Condition, which changes with RASTER, YSCROLL and DEN only."""
    control = cpu.vic_registers[CONTROL_1]
    if cpu.vic_raster == FIRST_BAD and control & DEN != 0:
        cpu.vic_den_seen = u8(1)
    cpu.vic_bad = u8(
        cpu.vic_den_seen != 0
        and FIRST_BAD <= cpu.vic_raster <= LAST_BAD
        and u8(cpu.vic_raster) & 7 == control & 7
    )


@function
def end_row(cpu) -> None:
    """Cycle 58: was that the last line of a row of text?"""
    if cpu.vic_rc == 7:
        cpu.vic_vcbase = cpu.vic_vc
        if cpu.vic_bad == 0:
            cpu.vic_display = u8(0)
    if cpu.vic_display != 0:
        cpu.vic_rc = (cpu.vic_rc + 1) & 7


@function
def bus(cpu, cycle: u32) -> None:
    """BA: low where c-accesses and s-accesses are, and for three cycles before, in which the CPU may still write.

    For c-accesses it follows the Bad Line Condition as that comes and goes.
    """
    low = cpu.vic_bad != 0 and BUS_FIRST <= cycle <= MATRIX_LAST
    if cpu.vic_sprite_dma != 0 and cpu.vic_sprite_dma & sprite_bus(cpu, cycle) != 0:
        low = True
    if low:
        cpu.vic_ba_low = u8(1)
        cpu.vic_ba_cycles = longer(cpu.vic_ba_cycles)
    else:
        cpu.vic_ba_low = u8(0)
        cpu.vic_ba_cycles = u8(0)


@function
def longer(cycles: u8) -> u8:
    """One more of the cycles that are counted while BA is low."""
    if cycles >= 4:
        return u8(4)
    return cycles + 1


@function
def next_unit(cpu) -> u32:
    """The g-access of this cycle; in display state it counts."""
    if cpu.vic_display == 0:
        return read_idle(cpu)
    unit = read_graphics(cpu, u32(cpu.vic_matrix[cpu.vic_vmli & 63]), cpu.vic_vc, cpu.vic_rc)
    cpu.vic_vc = (cpu.vic_vc + 1) & 0x3FF
    cpu.vic_vmli = (cpu.vic_vmli + 1) & 63
    return unit


# The border (section 3.9)


@function
def compared_line(cpu, values) -> u32:
    """A vertical comparison value, as RSEL says."""
    if cpu.vic_registers[CONTROL_1] & RSEL != 0:
        return u32(values[1])
    return u32(values[0])


@function(inline=False)
def vertical_border(cpu) -> None:
    """Rules 2 and 3; and 4 and 5, which do the same in other places."""
    if cpu.vic_raster == compared_line(cpu, BOTTOM):
        cpu.vic_border_vertical = u8(1)
    elif cpu.vic_raster == compared_line(cpu, TOP) and cpu.vic_registers[CONTROL_1] & DEN != 0:
        cpu.vic_border_vertical = u8(0)


@function
def edges(cpu, cycle: u32) -> u64:
    """Compare X with the edges of the border; gives a byte of ones for each pixel of this cycle that it covers.

    With CSEL = 1 they are the first pixels of a column, else the last: then the flip-flop changes for one of the eight.
    """
    wide = cpu.vic_registers[CONTROL_2] & CSEL != 0
    before = cpu.vic_border
    if (cycle == 17 and wide) or (cycle == 18 and not wide):
        vertical_border(cpu)
        if cpu.vic_border_vertical == 0:
            cpu.vic_border = u8(0)
    elif (cycle == 56 and not wide) or (cycle == 57 and wide):
        cpu.vic_border = u8(1)
    if wide:
        # Those of this cycle are before the edge.
        return u64(ALL) if before != 0 else u64(NOTHING)
    covered = u64(0)
    if before != 0:
        covered = u64(ALL ^ LAST_PIXEL)
    if cpu.vic_border != 0:
        covered = covered | LAST_PIXEL
    return covered


# Drawing


@function
def beam(cpu, cycle: u32) -> u64:
    """Where in the frame buffer the pixels of a cycle go."""
    return u64(cpu.vic_line) * FRAME_STRIDE + u64(cycle - 1) * 8 + FRAME_BUFFER


@function
def rest_of(cpu, unit: u32, mode: u32, was: u32, xscroll: u32) -> u64:
    """What is left of a unit that was loaded ``was`` pixels late until the next is, ``xscroll`` pixels late."""
    rest = u64(0)
    if xscroll != 0:
        if was != 0:
            rest = pixels_of(cpu, unit, mode) >> (8 * (8 - was))
        if unlikely(was < xscroll):
            # All bits have been shifted out: 0 follows.
            rest = rest | pixels_of(cpu, unit & 0xFFF00, mode) >> (8 * was) << (8 * was)
        rest = rest & (u64(1) << (8 * xscroll)) - 1
    return rest


@function
def joined_foreground(left: u32, right: u32, mode: u32, was: u32, xscroll: u32) -> u8:
    """Foreground among the rest of a unit and the next one, as `rest_of` says."""
    rest = u32(foreground_of(left, mode)) << was & 0xFF
    kept = rest & ~(u32(0xFF) >> xscroll)
    return u8(kept | u32(foreground_of(right, mode)) >> xscroll)


@function(inline=False)
def draw(cpu, cycle: u32, covered: u64) -> None:
    """The eight pixels that leave the chip in this cycle."""
    pixels = eight(cpu.vic_registers[BORDER])
    x = column(cpu, cycle)
    sprites = in_column(cpu, x)
    if covered != ALL or sprites:
        left, right = cpu.vic_unit_shown, cpu.vic_unit_next
        if cpu.vic_border_vertical != 0:
            left, right = left & 0xFFF00, right & 0xFFF00
        xscroll, shown = u32(cpu.vic_registers[CONTROL_2] & 7), mode(cpu)
        seen = rest_of(cpu, left, shown, cpu.vic_xscroll, xscroll) | pixels_of(cpu, right, shown) << (8 * xscroll)
        if sprites:
            foreground = joined_foreground(left, right, shown, cpu.vic_xscroll, xscroll)
            seen = overlay(cpu, seen, foreground, x)
        pixels = seen ^ (seen ^ pixels) & covered
    cpu.vic_xscroll = u32(cpu.vic_registers[CONTROL_2] & 7)
    if cycle <= 64:
        cpu.phys_store(u64, beam(cpu, cycle), pixels)


@function(inline=False)
def margin(cpu, count: u32) -> None:
    """Cycles in which nothing happens, and one colour is seen: the border's or, if that is open, the background's."""
    pixels = eight(cpu.vic_registers[BORDER])
    if cpu.vic_border == 0:
        pixels = pixels_of(cpu, cpu.vic_unit_next & 0xFFF00, mode(cpu))
    if cpu.vic_bad != 0:
        cpu.vic_display = u8(1)
    cpu.vic_ba_low = u8(0)
    cpu.vic_ba_cycles = u8(0)
    cpu.vic_xscroll = u32(cpu.vic_registers[CONTROL_2] & 7)
    place = beam(cpu, cpu.vic_cycle)
    left = count
    while left != 0:
        cpu.phys_store(u64, place, pixels)
        place = place + 8
        left = left - 1
    cpu.vic_clock = cpu.vic_clock + u64(count)


@function(inline=False)
def window(cpu, count: u32) -> None:
    """Cycles within the display window: c-accesses, g-accesses and drawing, as in `step`, with registers that stay."""
    bad, display, ba_cycles = cpu.vic_bad != 0, cpu.vic_display != 0, u8(0)
    if bad:
        display, ba_cycles = True, cpu.vic_ba_cycles
        cpu.vic_display = u8(1)
    cpu.vic_ba_low = cpu.vic_bad
    vc, vmli, rc = cpu.vic_vc, cpu.vic_vmli, cpu.vic_rc
    shown, xscroll, was = mode(cpu), u32(cpu.vic_registers[CONTROL_2] & 7), cpu.vic_xscroll
    border, open = eight(cpu.vic_registers[BORDER]), cpu.vic_border == 0
    visible = u32(0xFFFFF) if cpu.vic_border_vertical == 0 else u32(0xFFF00)
    read, following, last = cpu.vic_unit_read, cpu.vic_unit_next, cpu.vic_unit_shown
    place, x = beam(cpu, cpu.vic_cycle), column(cpu, cpu.vic_cycle)
    rest, idle = rest_of(cpu, last & visible, shown, was, xscroll), u32(0)
    if not display:
        idle = read_idle(cpu)
    left = count
    while left != 0:
        pixels = border
        sprites = in_column(cpu, x)
        if open or sprites:
            made = pixels_of(cpu, following & visible, shown)
            seen = rest | made << (8 * xscroll)
            if xscroll != 0:
                rest = made >> (8 * (8 - xscroll))
            if unlikely(sprites):
                foreground = joined_foreground(last & visible, following & visible, shown, was, xscroll)
                seen = overlay(cpu, seen, foreground, x)
            if open:
                pixels = seen
        cpu.phys_store(u64, place, pixels)
        last, following, was = following, read, xscroll
        if display:
            read = read_graphics(cpu, u32(cpu.vic_matrix[vmli & 63]), vc, rc)
            vc = (vc + 1) & 0x3FF
            vmli = (vmli + 1) & 63
            if bad:
                ba_cycles = longer(ba_cycles)
                entry = read_matrix(cpu, vc, ba_cycles >= 4)
                cpu.vic_matrix[vmli & 63] = u16(entry)
        else:
            read = idle
        cpu.vic_clock = cpu.vic_clock + 1
        place = place + 8
        x = x + 8
        left = left - 1
    cpu.vic_vc = vc
    cpu.vic_vmli = vmli
    cpu.vic_ba_cycles = ba_cycles
    cpu.vic_unit_read = read
    cpu.vic_unit_next = following
    cpu.vic_unit_shown = last
    cpu.vic_xscroll = xscroll
