"""Sprites of the VIC-II: their DMA and counters, their pixels and collisions (section 3.8)."""

from polyvisor.adl import function, u8, u32, u64

from .graphics import eight, fetch, matrix_base, spread
from .interrupts import interrupt
from .model import model
from .state import (
    DATA_COLLISIONS,
    DATA_INTERRUPT,
    SPRITE_BEHIND,
    SPRITE_COLLISIONS,
    SPRITE_COLOUR,
    SPRITE_COLOURS,
    SPRITE_ENABLE,
    SPRITE_INTERRUPT,
    SPRITE_MULTICOLOUR,
    SPRITE_X_EXPAND,
    SPRITE_X_HIGH,
    SPRITE_Y_EXPAND,
)


@function
def sprite_x(cpu, sprite: u32) -> u32:
    """The X coordinate of a sprite, 9 bits."""
    return u32(cpu.vic_registers[sprite * 2]) | (u32(cpu.vic_registers[SPRITE_X_HIGH]) >> sprite & 1) << 8


@function
def at_line(cpu, sprite) -> bool:
    """Whether a sprite's Y coordinate is that of this line."""
    return cpu.vic_registers[2 * sprite + 1] == u8(cpu.vic_raster)


# Memory: which sprites' data is read, and from where


@function
def flip_expansion(cpu) -> None:
    """Rule 2."""
    cpu.vic_sprite_flop = cpu.vic_sprite_flop ^ cpu.vic_registers[SPRITE_Y_EXPAND]


@function(inline=False)
def begin_dma(cpu) -> None:
    """Rule 3: sprites begin that are enabled and have reached their line."""
    wanted = cpu.vic_registers[SPRITE_ENABLE] & ~cpu.vic_sprite_dma
    for sprite in range(8):
        if wanted >> sprite & 1 != 0 and at_line(cpu, sprite):
            cpu.vic_sprite_dma = cpu.vic_sprite_dma | (1 << sprite)
            cpu.vic_mcbase[sprite] = u8(0)
            cpu.vic_sprite_flop = cpu.vic_sprite_flop & ~(cpu.vic_registers[SPRITE_Y_EXPAND] & (1 << sprite))


@function(inline=False)
def begin_display(cpu) -> None:
    """Rule 4; and what was displayed to its last line is not displayed any more."""
    for sprite in range(8):
        cpu.vic_mc[sprite] = cpu.vic_mcbase[sprite]
        if cpu.vic_sprite_dma >> sprite & 1 != 0 and at_line(cpu, sprite):
            cpu.vic_sprite_display = cpu.vic_sprite_display | (1 << sprite)
    cpu.vic_sprite_display = cpu.vic_sprite_display & cpu.vic_sprite_dma
    cpu.vic_sprite_waiting = cpu.vic_sprite_waiting & cpu.vic_sprite_display


@function(inline=False)
def end_dma(cpu) -> None:
    """Rules 7 and 8: a row of a sprite was read, for the last time if it is expanded.

    The chip does not add three but keeps where the counter is, which differs only where the program has interfered, see
    `crunch`.
    """
    for sprite in range(8):
        if cpu.vic_sprite_dma & cpu.vic_sprite_flop & (1 << sprite) != 0:
            cpu.vic_mcbase[sprite] = cpu.vic_mc[sprite]
            if cpu.vic_mcbase[sprite] == 63:
                cpu.vic_sprite_dma = cpu.vic_sprite_dma & ~u8(1 << sprite)


@function(inline=False)
def crunch(cpu, cleared: u8) -> None:
    """MxYE is cleared in cycle 15 where the flip-flop was reset: MC becomes a mixture of itself and MCBASE.

    Source: "VIC-II Addendum", on sprite crunch, a text beside Bauer's article.
    """
    for sprite in range(8):
        if cleared >> sprite & 1 != 0:
            base, counter = cpu.vic_mcbase[sprite], cpu.vic_mc[sprite]
            cpu.vic_mc[sprite] = 0x2A & (base & counter) | 0x15 & (base | counter)


@function
def read_byte(cpu, sprite: u32, free: bool) -> None:
    """An s-access."""
    value = u8(0xFF)
    counter = cpu.vic_mc[sprite]
    if free:
        value = fetch(cpu, u32(cpu.vic_sprite_pointer[sprite]) << 6 | u32(counter & 63))
    cpu.vic_sprite_data[sprite] = cpu.vic_sprite_data[sprite] << 8 & 0xFFFFFF | u32(value)
    cpu.vic_mc[sprite] = (counter + 1) & 63


@function(inline=False)
def read_sprite(cpu) -> None:
    """The p-access and s-accesses of this cycle, if it is one of the two that belong to a sprite with DMA.

    Of the three s-accesses the first and the last are in the CPU's half of their cycles: they need the bus.
    """
    first = u32(model(cpu).first_pointer)
    slot = cpu.vic_cycle - first
    if cpu.vic_cycle < first:
        slot = cpu.vic_cycle + (model(cpu).cycles - first)
    sprite = slot >> 1
    if sprite < 8 and (u32(cpu.vic_sprite_dma) >> sprite) & 1 != 0:
        free = cpu.vic_ba_cycles >= 4
        if slot & 1 == 0:
            cpu.vic_sprite_pointer[sprite] = fetch(cpu, matrix_base(cpu) | 0x3F8 | sprite)
            read_byte(cpu, sprite, free)
        else:
            read_byte(cpu, sprite, True)
            read_byte(cpu, sprite, free)
            bit = u8(1) << sprite
            cpu.vic_sprite_running = cpu.vic_sprite_running & ~bit
            cpu.vic_sprite_waiting = cpu.vic_sprite_waiting & ~bit
            if cpu.vic_sprite_data[sprite] != 0:
                cpu.vic_sprite_waiting = cpu.vic_sprite_waiting | bit & cpu.vic_sprite_display
                cpu.vic_sprite_columns = cpu.vic_sprite_columns | u64(1) << (sprite_x(cpu, sprite) >> 3)


@function
def moved(cpu) -> None:
    """X coordinates have changed."""
    columns = u64(0)
    for sprite in range(8):
        columns = columns | u64(1) << (sprite_x(cpu, u32(sprite)) >> 3)
    cpu.vic_sprite_columns = columns


# Display


@function
def in_column(cpu, x: u32) -> bool:
    """Whether sprites may have something to say about the eight pixels from ``x``."""
    return cpu.vic_sprite_running != 0 or (
        cpu.vic_sprite_waiting != 0 and (cpu.vic_sprite_columns >> (x >> 3)) & 1 != 0
    )


@function
def doubled(bits: u64) -> u64:
    """24 bits, each twice."""
    bits = (bits | bits << 16) & 0x0000_00FF_0000_FFFF
    bits = (bits | bits << 8) & 0x00FF_00FF_00FF
    bits = (bits | bits << 4) & 0x0F0F_0F0F_0F0F
    bits = (bits | bits << 2) & 0x3333_3333_3333
    bits = (bits | bits << 1) & 0x5555_5555_5555
    return bits | bits << 1


@function
def lay_out(cpu, sprite: u32, bits: u32, skip: u32) -> None:
    """Make the pixels of a row's bits, in the sprite's present mode and width, but for some of the first."""
    bit = u8(1) << sprite
    data = u64(bits)
    high, low = data, u64(0)
    if cpu.vic_registers[SPRITE_MULTICOLOUR] & bit != 0:
        high = data & 0xAAAAAA | (data & 0xAAAAAA) >> 1
        low = data & 0x555555 | (data & 0x555555) << 1
    if cpu.vic_registers[SPRITE_X_EXPAND] & bit != 0:
        high, low = doubled(high) << 16, doubled(low) << 16
    else:
        high, low = high << 40, low << 40
    cpu.vic_sprite_high[sprite] = high << skip
    cpu.vic_sprite_low[sprite] = low << skip
    cpu.vic_sprite_laid[sprite] = bits


@function
def start(cpu, sprite: u32, offset: u32) -> None:
    """A sprite begins at a pixel of this column: lay out the bits of its pixels."""
    bit = u8(1) << sprite
    lay_out(cpu, sprite, cpu.vic_sprite_data[sprite], u32(0))
    cpu.vic_sprite_high[sprite] = cpu.vic_sprite_high[sprite] >> offset
    cpu.vic_sprite_low[sprite] = cpu.vic_sprite_low[sprite] >> offset
    cpu.vic_sprite_since[sprite] = (cpu.vic_clock << 3) + u64(offset)
    cpu.vic_sprite_running = cpu.vic_sprite_running | bit
    cpu.vic_sprite_waiting = cpu.vic_sprite_waiting & ~bit


@function(inline=False)
def change_shape(cpu, register: u32, value: u8) -> None:
    """Write MxMC or MxXE: sprites that are being shown go on in their new mode or width from the next cycle.

    The shift register goes on from where it is. A pixel that has begun is shown to its end, and while MxMC stays set, a
    pair of bits is; where that becomes set, pairs are counted from there.
    """
    multicolour, wide = cpu.vic_registers[SPRITE_MULTICOLOUR], cpu.vic_registers[SPRITE_X_EXPAND]
    changed = (cpu.vic_registers[register] ^ value) & cpu.vic_sprite_running
    cpu.vic_registers[register] = value
    pairs = multicolour & cpu.vic_registers[SPRITE_MULTICOLOUR]
    for sprite in range(8):
        if changed >> sprite & 1 != 0:
            used, half = shifted(cpu, sprite, wide >> sprite & 1 != 0)
            begun = u32(0)
            if pairs >> sprite & 1 != 0:
                begun = used & 1
            skip = begun
            if cpu.vic_registers[SPRITE_X_EXPAND] >> sprite & 1 != 0:
                skip = begun << 1
            high, low = cpu.vic_sprite_high[sprite], cpu.vic_sprite_low[sprite]
            lay_out(cpu, u32(sprite), cpu.vic_sprite_laid[sprite] << (used - begun) & 0xFFFFFF, skip)
            if half != 0:
                # Of one pixel the second half is left.
                cpu.vic_sprite_high[sprite] = cpu.vic_sprite_high[sprite] >> 1 | high & (1 << 63)
                cpu.vic_sprite_low[sprite] = cpu.vic_sprite_low[sprite] >> 1 | low & (1 << 63)
            cpu.vic_sprite_since[sprite] = (cpu.vic_clock << 3) + u64(half) - u64(skip)


@function
def shifted(cpu, sprite, wide: bool) -> tuple[u32, u32]:
    """How many bits were begun to be shown since a row's pixels were laid out; 1 if of the last a half is left."""
    now, since = cpu.vic_clock << 3, cpu.vic_sprite_since[sprite]
    shown = u32(0)
    if now > since:
        shown = u32(now - since)
    used, half = shown, u32(0)
    if wide:
        used, half = shown + 1 >> 1, shown & 1
    if used > 24:
        used = u32(24)
    return used, half


@function(inline=False)
def overlay(cpu, graphics: u64, foreground: u8, x: u32) -> u64:
    """Lay sprites over the eight pixels from ``x`` of the graphics, and note collisions."""
    waiting = cpu.vic_sprite_waiting
    if waiting != 0:
        for sprite in range(8):
            if waiting >> sprite & 1 != 0 and sprite_x(cpu, u32(sprite)) >> 3 == x >> 3:
                start(cpu, u32(sprite), sprite_x(cpu, u32(sprite)) & 7)
    running = cpu.vic_sprite_running
    pixels = u64(0)
    any, several, behind, shapes = u8(0), u8(0), u8(0), u64(0)
    # The last is the furthest.
    for sprite in (7, 6, 5, 4, 3, 2, 1, 0):
        if running >> sprite & 1 != 0:
            high, low = cpu.vic_sprite_high[sprite], cpu.vic_sprite_low[sprite]
            first, second = u8(high >> 56), u8(low >> 56)
            shape = first | second
            colour = eight(cpu.vic_registers[SPRITE_COLOUR + sprite])
            if second != 0:
                c01, c11 = eight(cpu.vic_registers[SPRITE_COLOURS]), eight(cpu.vic_registers[SPRITE_COLOURS + 1])
                common = c01 ^ (c01 ^ c11) & spread(first)
                colour = colour ^ (colour ^ common) & spread(second)
            pixels = pixels ^ (pixels ^ colour) & spread(shape)
            behind = behind & ~shape
            if cpu.vic_registers[SPRITE_BEHIND] >> sprite & 1 != 0:
                behind = behind | shape
            several = several | any & shape
            any = any | shape
            shapes = shapes | u64(shape) << (8 * sprite)
            cpu.vic_sprite_high[sprite] = high << 8
            cpu.vic_sprite_low[sprite] = low << 8
            if high << 8 | low << 8 == 0:
                cpu.vic_sprite_running = cpu.vic_sprite_running & ~u8(1 << sprite)
    if several != 0:
        collide(cpu, SPRITE_COLLISIONS, SPRITE_INTERRUPT, shapes, several)
    if any & foreground != 0:
        collide(cpu, DATA_COLLISIONS, DATA_INTERRUPT, shapes, foreground)
    return graphics ^ (graphics ^ pixels) & spread(any & ~(behind & foreground))


@function
def collide(cpu, register, cause, shapes: u64, where: u8) -> None:
    """Sprites have pixels where something else has; the first time since the register was read, it interrupts."""
    found = u8(0)
    for sprite in range(8):
        if u8(shapes >> (8 * sprite)) & where != 0:
            found = found | (1 << sprite)
    before = cpu.vic_registers[register]
    cpu.vic_registers[register] = before | found
    if before == 0:
        interrupt(cpu, u8(cause))
