"""The status register."""

from polyvisor.adl import function, u8


@function
def set_nz(cpu, value: u8) -> None:
    """N and Z tell of a value."""
    cpu.n = value
    cpu.z = value


@function
def status(cpu) -> u8:
    """The status register as it is pushed by an interrupt: with B clear."""
    return (
        cpu.n & 0x80 | cpu.v << 6 | u8(0x20) | cpu.d << 3 | cpu.i << 2 | (u8(2) if cpu.z == 0 else u8(0)) | cpu.c
    )


@function
def set_status(cpu, value: u8) -> None:
    """All flags from a byte that was pulled."""
    cpu.n = value
    cpu.z = ~value & 2
    cpu.c = value & 1
    cpu.v = value >> 6 & 1
    cpu.d = value >> 3 & 1
    cpu.i = value >> 2 & 1


@function
def change_i(cpu, value: u8) -> None:
    """Change I as CLI, SEI and PLP do: interrupts were looked for before that. To be called in the last cycle."""
    cpu.i_before = cpu.i
    cpu.i_changed = cpu.cycles()
    cpu.i = value
