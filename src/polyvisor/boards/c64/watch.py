"""Memory that the VIC-II is about to read while the CPU runs ahead of it: before it is written, the chip catches up.

The VIC-II is run a line at a time. Of what it reads, only the g-accesses are in cycles that the CPU has, too: it waits
for c-accesses and s-accesses, and then both are in step. So a store to a page with the present row's graphics goes to
a place beside RAM, where `write_device` lets the chip catch up first. Source: C. Bauer, "The MOS 6567/6569 video
controller", sections 3.6.2 and 3.7.3.
"""

from polyvisor.adl import Field, ctz, function, u32, u64
from polyvisor.devices.c64.vic_ii.state import BMM, CONTROL_1, ECM, POINTERS

PAGE_BITS = 8
BANK = 0x4000
IDLE, IDLE_ECM = 0x3F, 0x39  # the page of a g-access in idle state


class Watch:
    """What belongs to the state."""

    c64_watched = Field(u64, doc="a bit for each page of the VIC-II's bank whose stores are to be told")
    c64_watched_bank = Field(u32)


@function
def is_watched(cpu, address: u64) -> bool:
    """Whether a store to RAM is to be told."""
    offset = address - u64(cpu.c64_watched_bank)
    return offset < BANK and (cpu.c64_watched >> (offset >> PAGE_BITS)) & 1 != 0


@function
def graphics_pages(cpu) -> u64:
    """The pages of its bank that the VIC-II may read graphics from, until it is asked again."""
    control, pointers = cpu.vic_registers[CONTROL_1], u64(cpu.vic_registers[POINTERS])
    pages = u64(1) << IDLE
    if control & ECM != 0:
        pages = u64(1) << IDLE_ECM
    if cpu.vic_display | cpu.vic_bad != 0:
        if control & BMM != 0:
            # A row has 320 bytes: two pages, or three.
            start = u64(cpu.vic_vcbase) << 3
            row = (u64(2) << ((start & 0xFF) + 319 >> PAGE_BITS)) - 1 << (start >> PAGE_BITS & 31)
            pages = pages | ((row | row >> 32) & 0xFFFF_FFFF) << ((pointers & 8) << 2)
        elif pointers & 0x0C != 4 or cpu.vic_bank & BANK != 0:  # else it is the character ROM
            pages = pages | u64(0xFF) << ((pointers & 0x0E) << 2)
    return pages


@function(inline=False)
def watch(cpu) -> None:
    """Choose the pages anew. The chip is up to date."""
    pages, bank = graphics_pages(cpu), cpu.vic_bank
    if cpu.vic_ultimax != 0:
        pages = u64(0)
    changed = pages ^ cpu.c64_watched
    if bank != cpu.c64_watched_bank:
        forget(cpu, cpu.c64_watched)
        changed = pages
    cpu.c64_watched_bank = bank
    cpu.c64_watched = pages
    forget(cpu, changed)


@function(inline=False)
def forget(cpu, pages: u64) -> None:
    """Where stores to these pages of the bank go is to be asked again."""
    left = pages
    while left != 0:
        cpu.flush_tlb_page(u64(cpu.c64_watched_bank) + (u64(ctz(left)) << PAGE_BITS))
        left = left & (left - 1)
