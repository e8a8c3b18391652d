"""The Commodore 64 as one described machine: the 6510, and beside it the chips that its bus reaches.

All of it is native code: what the CPU reads and writes in the I/O area, the banking of the PLA, and when the VIC-II
takes the bus. Sources: Commodore 64 Programmer's Reference Guide, "Memory maps" and appendix on the 6510's port;
C. Bauer, "The MOS 6567/6569 video controller", sections 2.4.1 and 3.6.
"""

from polyvisor.adl import WRITE, Field, Registers, function, u8, u32, u64
from polyvisor.devices.c64 import cia, memory, sid
from polyvisor.devices.c64.cia import Cia
from polyvisor.devices.c64.sid import Sid
from polyvisor.devices.c64.vic_ii import VicII, line, registers
from polyvisor.devices.c64.vic_ii import events as vic_events
from polyvisor.devices.c64.vic_ii.model import model
from polyvisor.isa.mos6502 import Mos6510, mos6510
from polyvisor.isa.mos6502.bus import port_pins
from polyvisor.isa.mos6502.interrupts import next_look, take_interrupts

from .expansion import EASYFLASH, NONE, Expansion, rom_place, write_io_1
from .watch import Watch, is_watched, watch

# What is decoded next to memory: the I/O area, places where nothing answers, and RAM whose stores the VIC-II waits for.
IO, OPEN, WATCHED = 0xD0000, 0xE0000, 0xF0000
LORAM, HIRAM, CHAREN = 1, 2, 4
PAGE_BITS = 8
# In steps of so many cycles, the SID is brought up to date if nobody looks at it; the other, if somebody listens.
LAZY, HEARD = 20_000, 1000
DEBUG = 0x7FF

# Translation rules side by side: one for each level of LORAM, HIRAM and CHAREN.
c64 = mos6510.variant("c64", contexts=8)
c64.reasons += ["debug"]


@c64.state
class C64State(Mos6510, VicII, Cia, Sid, Expansion, Watch):
    """The whole machine's state but memory, and what is plugged in beside cartridges."""

    c64_debug = Field(u8, doc="1: a write to $D7FF ends the run")
    c64_debug_value = Field(u8, doc="what was written there")
    # When each chip may do something by itself; 0 after an access, when it must be asked again.
    c64_vic_due = Field(u64, quiet=True)
    c64_cia_due = Registers(u64, 2)


# Memory as the CPU sees it


@c64.hook("data_context")
def data_context(cpu) -> u32:
    return u32(port_pins(cpu) & 7)


@c64.hook("fetch_context")
def fetch_context(cpu) -> u32:
    return u32(port_pins(cpu) & 7)


@c64.hook("translate")
def translate(cpu, vaddr: u64, access: u32, context: u32) -> tuple[u64, u32]:
    """What the PLA selects. ROM is written through to the RAM below."""
    address = vaddr & 0xFFFF
    block = u32(address >> 12)
    found = memory.RAM + address
    loram, hiram = context & LORAM != 0, context & HIRAM != 0
    charen = context & CHAREN != 0
    if cpu.c64_exrom != 0 and cpu.c64_game == 0:
        found = ultimax(cpu, address, block, found)
    elif block == 0xD:
        if loram or hiram:
            if charen:
                found = IO + (address & 0xFFF)
            elif access != WRITE and (hiram or cpu.c64_game != 0):
                found = memory.CHARACTER_ROM + (address & 0xFFF)
    elif access != WRITE:
        if block >= 0xE:
            if hiram:
                found = memory.KERNAL_ROM + (address & 0x1FFF)
        elif block == 0xA or block == 0xB:
            if cpu.c64_game == 0:
                if hiram:
                    found = rom_place(cpu, address, 0x2000)
            elif loram and hiram:
                found = memory.BASIC_ROM + (address & 0x1FFF)
        elif block == 8 or block == 9:
            if cpu.c64_exrom == 0 and loram and hiram:
                found = rom_place(cpu, address, 0)
    if access == WRITE and found < memory.COLOUR_RAM and is_watched(cpu, address):
        found = WATCHED + address
    return found, u32(PAGE_BITS)


@function
def ultimax(cpu, address: u64, block: u32, ram: u64) -> u64:
    """With such a cartridge there is little else."""
    found = u64(OPEN) + address
    if block == 0:
        found = ram
    elif block == 0xD:
        found = IO + (address & 0xFFF)
    elif block >= 0xE:
        found = rom_place(cpu, address, 0x2000)
    elif block == 8 or block == 9:
        found = rom_place(cpu, address, 0)
    return found


# Chips


@function
def reach_vic(cpu, now: u64) -> None:
    """Before an access to its registers: it is up to date, and must be asked anew when it is due."""
    line.run(cpu, now)
    cpu.c64_vic_due = u64(0)


@function
def reach_cia(cpu, n, now: u64) -> None:
    """The same for a CIA."""
    cia.run(cpu, n, now)
    cpu.c64_cia_due[n] = u64(0)


@c64.hook("read_device")
def read_device(cpu, paddr: u64, size: u64) -> tuple[u64, bool]:
    """A read in the I/O area, $D000 to $DFFF; what it has no chip for is the board's."""
    if paddr >= OPEN:
        return u64(0xFF), True
    offset = u32(paddr) & 0xFFF
    block = offset >> 8
    now = cpu.cycles()
    value = u8(0)
    if block < 4:
        reach_vic(cpu, now)
        value = registers.read_register(cpu, offset & 0x3F)
    elif block < 8:
        sid.run(cpu, now)
        value = sid.read_register(cpu, offset & 0x1F)
    elif block < 0xC:
        nibble, _ = cpu.phys_load(u8, u64(memory.COLOUR_RAM) + u64(offset & 0x3FF))
        value = nibble | 0xF0
    elif block == 0xC:
        reach_cia(cpu, 0, now)
        value = cia.read_register(cpu, 0, offset & 0xF)
    elif block == 0xD:
        reach_cia(cpu, 1, now)
        value = cia.read_register(cpu, 1, offset & 0xF)
    elif block == 0xF and cpu.c64_cartridge == EASYFLASH:
        value, _ = cpu.phys_load(u8, u64(memory.CARTRIDGE_RAM) + u64(offset & 0xFF))
    else:
        return u64(0), False
    return u64(value), True


@c64.hook("write_device")
def write_device(cpu, paddr: u64, size: u64, stored: u64) -> bool:
    """A write in the I/O area."""
    now, value = cpu.cycles(), u8(stored)
    if paddr >= WATCHED:
        line.run(cpu, now)
        cpu.phys_store(u8, memory.RAM + (paddr - WATCHED), value)
        return True
    if paddr >= OPEN:
        return True
    offset = u32(paddr) & 0xFFF
    block = offset >> 8
    if block < 4:
        reach_vic(cpu, now)
        registers.write_register(cpu, offset & 0x3F, value)
    elif block < 8:
        if offset == DEBUG and cpu.c64_debug != 0:
            cpu.c64_debug_value = value
            cpu.leave("debug")
        sid.run(cpu, now)
        sid.write_register(cpu, offset & 0x1F, value)
    elif block < 0xC:
        line.run(cpu, now)
        cpu.phys_store(u8, u64(memory.COLOUR_RAM) + u64(offset & 0x3FF), value & 0xF)
    elif block == 0xC:
        reach_cia(cpu, 0, now)
        cia.write_register(cpu, 0, offset & 0xF, value)
    elif block == 0xD:
        reach_cia(cpu, 1, now)
        cia.write_register(cpu, 1, offset & 0xF, value)
        select_bank(cpu)
    elif block == 0xE and cpu.c64_cartridge != NONE:
        line.run(cpu, now)
        write_io_1(cpu, offset & 0xFF, value)
        cpu.flush_tlb()
    elif block == 0xF and cpu.c64_cartridge == EASYFLASH:
        cpu.phys_store(u8, u64(memory.CARTRIDGE_RAM) + u64(offset & 0xFF), value)
    else:
        return False
    return True


@function(inline=False)
def select_bank(cpu) -> None:
    """Two pins of CIA 2 say, inverted, which 16 KiB the VIC-II sees."""
    a, _ = cia.pins(cpu, 1)
    bank = u32(~a & 3) << 14
    if bank != cpu.vic_bank:
        reach_vic(cpu, cpu.cycles())
        cpu.vic_bank = bank


# Time


@c64.hook("bus")
def bus(cpu, access: u32, vaddr: u64) -> None:
    """The VIC-II has the bus first, and the CPU's reads wait while BA is low."""
    line.run(cpu, cpu.cycles() + 1)
    if access != WRITE:
        while cpu.vic_ba_low != 0:
            cpu.stall(u64(1))
            line.run(cpu, cpu.cycles() + 1)


@c64.hook("poll")
def poll(cpu) -> None:
    now = cpu.cycles()
    if now >= cpu.c64_vic_due:
        line.run(cpu, now)
    if now >= cpu.c64_cia_due[0]:
        cia.run(cpu, 0, now)
    if now >= cpu.c64_cia_due[1]:
        cia.run(cpu, 1, now)
    if now >= sid_due(cpu):
        sid.run(cpu, now)
    take_interrupts(cpu)


@c64.hook("deadline")
def deadline(cpu) -> u64:
    """When a chip may do something that the CPU notices."""
    now = cpu.cycles()
    if cpu.c64_vic_due <= now:
        cpu.c64_vic_due = sooner(vic_events.next_event(cpu), cpu.vic_clock + model(cpu).cycles)
        if cpu.vic_ba_low != 0:
            # It fell while the CPU wrote, which it may: the next read waits.
            cpu.c64_vic_due = now
        watch(cpu)
    if cpu.c64_cia_due[0] <= now:
        cpu.c64_cia_due[0] = cia.next_event(cpu, 0)
    if cpu.c64_cia_due[1] <= now:
        cpu.c64_cia_due[1] = cia.next_event(cpu, 1)
    chips = sooner(cpu.c64_vic_due, sooner(cpu.c64_cia_due[0], cpu.c64_cia_due[1]))
    return sooner(next_look(cpu), sooner(chips, sid_due(cpu)))


@function
def sid_due(cpu) -> u64:
    """When the SID is to be brought up to date."""
    if cpu.sid_listening != 0:
        return cpu.sid_clock + HEARD
    return cpu.sid_clock + LAZY


@function
def sooner(a: u64, b: u64) -> u64:
    return a if a < b else b


# The same with the other VIC-II.
c64_ntsc = c64.variant("c64_ntsc", features=c64.features | {"ntsc"})
c64_ntsc.state(C64State)

__all__ = ["C64State", "c64", "c64_ntsc"]
