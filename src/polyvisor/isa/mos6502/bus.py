"""What the CPU does on its bus: one access in each clock cycle, whether anybody wants the value or not."""

from polyvisor.adl import FETCH, READ, WRITE, function, u8, u16, u64, unlikely

from .port import read_port, write_port

STACK = 0x0100


@function
def read(cpu, address: u16) -> u8:
    """A cycle that reads."""
    cpu.cycle(READ, u64(address))
    if cpu.has("port"):
        if unlikely(address < 2):
            return read_port(cpu, address)
    return cpu.load(u8, u64(address))


@function
def write(cpu, address: u16, value: u8) -> None:
    """A cycle that writes."""
    cpu.cycle(WRITE, u64(address))
    if cpu.has("port"):
        if unlikely(address < 2):
            write_port(cpu, address, value)
            return
    cpu.store(u8, u64(address), value)


@function
def idle(cpu, address: u16) -> None:
    """A cycle that reads memory without effect (zero page, stack): nobody wants the value."""
    cpu.cycle(READ, u64(address))


@function
def fetch(cpu, distance: u16) -> None:
    """A cycle that reads a byte of the instruction, or what follows it, ``distance`` bytes from its opcode."""
    cpu.cycle(FETCH, u64(u16(cpu.pc) + distance))


@function
def read_word(cpu, low: u16, high: u16) -> u16:
    """Two cycles that read an address, the low byte first."""
    first = read(cpu, low)
    return u16(first) | u16(read(cpu, high)) << 8


@function
def push(cpu, value: u8) -> None:
    """A cycle that writes to the stack."""
    address = u16(STACK) | u16(cpu.s)
    cpu.cycle(WRITE, u64(address))
    cpu.store(u8, u64(address), value)
    cpu.s = cpu.s - 1


@function
def pull(cpu) -> u8:
    """A cycle that reads from the stack."""
    address = u16(STACK) | u16(cpu.s + 1)
    cpu.cycle(READ, u64(address))
    value = cpu.load(u8, u64(address))
    cpu.s = u8(address)
    return value


@function
def stack_idle(cpu) -> None:
    """A cycle that reads the stack for nothing, while the pointer is changed."""
    idle(cpu, u16(STACK) | u16(cpu.s))
