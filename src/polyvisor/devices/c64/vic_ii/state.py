"""The state of the VIC-II: registers, counters, latches and flip-flops, by their names in Bauer's article."""

from polyvisor.adl import Field, Registers, u8, u16, u32, u64

CONTROL_1, RASTER, LIGHT_PEN_X, LIGHT_PEN_Y = 0x11, 0x12, 0x13, 0x14
SPRITE_X_HIGH, SPRITE_ENABLE, CONTROL_2, SPRITE_Y_EXPAND = 0x10, 0x15, 0x16, 0x17
POINTERS, INTERRUPTS, INTERRUPTS_ENABLED = 0x18, 0x19, 0x1A
SPRITE_BEHIND, SPRITE_MULTICOLOUR, SPRITE_X_EXPAND = 0x1B, 0x1C, 0x1D
SPRITE_COLLISIONS, DATA_COLLISIONS = 0x1E, 0x1F
BORDER, BACKGROUND, SPRITE_COLOURS, SPRITE_COLOUR = 0x20, 0x21, 0x25, 0x27
# Bits of the control registers.
DEN, RSEL, CSEL, MCM, BMM, ECM = 0x10, 0x08, 0x08, 0x10, 0x20, 0x40
# Bits of the interrupt registers.
RASTER_INTERRUPT, DATA_INTERRUPT, SPRITE_INTERRUPT, PEN_INTERRUPT = 1, 2, 4, 8


class VicII:
    """What belongs to the state of a machine with a VIC-II.

    A pixel unit is 20 bits, ``graphics | matrix << 8``: what a g-access read, and the video matrix's 12 bits with it.
    """

    vic_clock = Field(u64, doc="number of the next clock cycle")
    vic_line = Field(u32, doc="line of the next cycle")
    vic_cycle = Field(u32, reset=1, doc="its number in the line, from 1")
    vic_frames = Field(u64, doc="frames that were completed")
    vic_bank = Field(u32, doc="which 16 KiB of memory are seen: 0, 0x4000, 0x8000 or 0xC000")
    vic_ultimax = Field(u8, doc="1: cartridge ROM in place of the character ROM, see `graphics.fetch`")
    vic_registers = Registers(u8, 64, doc="as they were written")

    vic_raster = Field(u32, doc="RASTER as it is read: a cycle late in line 0")
    vic_raster_compare = Field(u32, doc="the line that interrupts")
    vic_raster_matched = Field(u8, reset=1, doc="1: RASTER is that line")
    vic_pen_low = Field(u8, doc="level of the light pen's input, 1: low")
    vic_pen_latched = Field(u8, doc="1: it fell in this frame already")

    vic_ba_low = Field(u8, doc="1: the CPU's reads had to wait in the last cycle")
    vic_ba_cycles = Field(u8, doc="for how many cycles BA has been low, up to 4: from the fourth on the bus is free")
    vic_den_seen = Field(u8, doc="1: DEN was set in line $30")
    vic_bad = Field(u8, doc="1: the Bad Line Condition")
    vic_display = Field(u8, doc="1: display state, 0: idle state")
    vic_vc = Field(u32, doc="video counter")
    vic_vcbase = Field(u32)
    vic_rc = Field(u32, doc="row counter")
    vic_vmli = Field(u32, doc="index into the video matrix line")
    vic_matrix = Registers(u16, 64, doc="the video matrix and colour line, 12 bits each; 40 are used")

    vic_unit_read = Field(u32, doc="the pixel unit that was read in the last cycle")
    vic_unit_next = Field(u32, doc="the one before, shown next")
    vic_unit_shown = Field(u32, doc="the one before that; XSCROLL leaves a part of it to be shown")
    vic_xscroll = Field(u32, doc="XSCROLL when that was loaded")
    vic_border = Field(u8, reset=1, doc="main border flip-flop")
    vic_border_vertical = Field(u8, reset=1, doc="vertical border flip-flop")

    vic_sprite_dma = Field(u8, doc="a bit for each sprite whose data is read")
    vic_sprite_display = Field(u8, doc="a bit for each sprite that is displayed")
    vic_sprite_flop = Field(u8, reset=0xFF, doc="expansion flip-flops")
    vic_mc = Registers(u8, 8, doc="MOB data counters")
    vic_mcbase = Registers(u8, 8)
    vic_sprite_pointer = Registers(u8, 8)
    vic_sprite_data = Registers(u32, 8, doc="24 bits that were read")
    vic_sprite_waiting = Field(u8, doc="a bit for each that has data to show, until its X coordinate comes")
    vic_sprite_columns = Field(u64, doc="a bit for each X // 8 where one that waits may begin")
    vic_sprite_running = Field(u8, doc="a bit for each that is being shown")
    # Bits of what is yet to be shown, one for each pixel, from the left: 01 and 11 are the common colours, 10 its own.
    vic_sprite_high = Registers(u64, 8)
    vic_sprite_low = Registers(u64, 8)
    # What these were made of, for when a sprite's mode or width changes in the midst of its row.
    vic_sprite_laid = Registers(u32, 8, doc="the row's bits from where the pixels were laid out, 24 at most")
    vic_sprite_since = Registers(u64, 8, doc="the number of the first of these pixels, of which a cycle has eight")
