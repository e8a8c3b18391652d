"""What the CPU does on its bus: one access in each clock cycle, whether anybody wants the value or not.

The 6510 has a port before it: six pins, at $0000 (direction) and $0001 (data). Source: MOS 6510 Microprocessor With I/O
data sheet.
"""

from polyvisor.adl import FETCH, READ, WRITE, Field, function, u8, u16, u64, unlikely

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
def fetch(cpu, distance: u16) -> None:
    """A cycle that reads a byte of the instruction, or what follows it, ``distance`` bytes from its opcode."""
    cpu.cycle(FETCH, u64(u16(cpu.pc) + distance))


@function
def read_word(cpu, low: u16, high: u16) -> u16:
    """Two cycles that read an address, the low byte first."""
    return u16(read(cpu, low)) | u16(read(cpu, high)) << 8


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
    cpu.cycle(READ, u64(u16(STACK) | u16(cpu.s)))


class Port:
    """What belongs to the state of a CPU with a port, such as the 6510."""

    port_direction = Field(u8, doc="1 for each pin that is an output")
    port_data = Field(u8, doc="what the outputs are set to")
    port_inputs = Field(u8, reset=0x17, doc="what other pins are pulled to from outside")
    port_kept = Field(u8, doc="what pins without a pull keep for a while after they were outputs")


@function
def port_pins(cpu) -> u8:
    """The levels at the pins."""
    return cpu.port_data & cpu.port_direction | (cpu.port_inputs | cpu.port_kept & 0xC8) & ~cpu.port_direction


@function(inline=False)
def read_port(cpu, address: u16) -> u8:
    return cpu.port_direction if address == 0 else port_pins(cpu)


@function(inline=False)
def write_port(cpu, address: u16, value: u8) -> None:
    if address == 0:
        cpu.port_direction = value
    else:
        cpu.port_data = value
    cpu.port_kept = cpu.port_kept & ~cpu.port_direction | cpu.port_data & cpu.port_direction
    # Instructions are fetched from the RAM below: so it has what is read here (in hardware: what was on the bus last).
    cpu.store(u16, u64(0), u16(cpu.port_direction) | u16(port_pins(cpu)) << 8)
