"""A small CPU whose instructions access a VIC-II, so that the chip can be run in any tier."""

from polyvisor.adl import Architecture, Field, Registers, State, Trap, function, u8, u16, u32, u64
from polyvisor.devices import c64
from polyvisor.devices.c64 import vic_ii
from polyvisor.engine.objectcode import sources_digest

# What is compiled for an architecture is kept under its name, and depends on sources beside this file.
vic_cpu = Architecture(f"vic_cpu_{sources_digest([c64])[:16]}", unit=4, max_length=4)


@vic_cpu.state
class Cpu(State, vic_ii.VicII):
    """What the chip needs of a CPU, and what was read."""

    pc = Field(u64)
    irq_lines = Field(u8)
    irq_since = Field(u64)
    irq_until = Field(u64)
    count = Field(u32)
    seen = Registers(u64, 256)


@function
def note(cpu, value: u64) -> None:
    """Keep a value to be compared."""
    cpu.seen[cpu.count & 255] = cpu.seen[cpu.count & 255] * 31 + value
    cpu.count = cpu.count + 1


@vic_cpu.instruction("00000001 register:8 count:16", "read {register}, {count}")
def read(cpu, register: u32, count: u32):
    """Let cycles pass, then read a register."""
    vic_ii.run(cpu, cpu.vic_clock + u64(count))
    note(cpu, u64(vic_ii.read_register(cpu, register)))
    note(cpu, vic_ii.next_event(cpu) - cpu.vic_clock)


@vic_cpu.instruction("00000010 register:8 value:8 count:8", "write {register}, {value}, {count}")
def write(cpu, register: u32, value: u8, count: u32):
    """Let cycles pass, then write a register; or with one above $3F, choose the bank or set the light pen's input."""
    vic_ii.run(cpu, cpu.vic_clock + u64(count))
    if register < 64:
        vic_ii.write_register(cpu, register, value)
    elif register == 64:
        cpu.vic_bank = u32(value & 3) << 14
    else:
        vic_ii.light_pen(cpu, value & 1 != 0)


@vic_cpu.instruction("00000011 count:16 xxxxxxxx", "stop {count}")
def stop(cpu, count: u32):
    """Let lines pass, and leave."""
    vic_ii.run(cpu, cpu.vic_clock + u64(u16(count)) * 63)
    cpu.leave("stop")


vic_cpu.reasons.append("stop")


@vic_cpu.hook("on_trap")
def on_trap(cpu, cause: u64):
    cpu.next_pc = u64(0)


@vic_cpu.hook("on_illegal")
def on_illegal(cpu, word: u64):
    raise Trap(1)


@vic_cpu.hook("on_bus_error")
def on_bus_error(cpu, vaddr: u64, access: u32):
    raise Trap(2)
