"""The port of the 6510: six pins, at $0000 (direction, 1: output) and $0001 (data).

Source: MOS 6510 Microprocessor With I/O data sheet.
"""

from polyvisor.adl import Field, function, u8, u16


class Port:
    """What belongs to the state of a CPU with a port."""

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
    """A read of $0000 or $0001."""
    if address == 0:
        return cpu.port_direction
    return port_pins(cpu)


@function(inline=False)
def write_port(cpu, address: u16, value: u8) -> None:
    """A write to $0000 or $0001."""
    if address == 0:
        cpu.port_direction = value
    else:
        cpu.port_data = value
    cpu.port_kept = cpu.port_kept & ~cpu.port_direction | cpu.port_data & cpu.port_direction
