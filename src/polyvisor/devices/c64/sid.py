"""The SID (MOS 6581, or 8580): its registers, and its time.

Nobody hears it as long as `sid_listening` is 0: then only what can be read is computed, and that in steps as large as
possible.  Voices are in `sid_voice`, samples in `sid_sound`.  Source: MOS 6581 data sheet.
"""

from polyvisor.adl import Field, function, i64, u8, u32, u64

from .sid_sound import Sound, coefficient, sound, to_step
from .sid_voice import run_envelope, turn_all, waveform, write_control

# Cycles for which a register that cannot be read gives what the bus had: the charge of its lines.
BUS_KEEPS_6581, BUS_KEEPS_8580 = 0x1D00, 0xA_2000
PADDLE_X, PADDLE_Y, OSCILLATOR_3, ENVELOPE_3 = 0x19, 0x1A, 0x1B, 0x1C


class Sid(Sound):
    """What belongs to the state."""

    sid_clock = Field(u64, doc="the first cycle not executed yet")
    sid_bus = Field(u8, doc="what the last access to a register had on the bus")
    sid_bus_since = Field(u64, doc="the cycle of that access")
    sid_paddle_x = Field(u8, reset=0xFF, doc="the position of a paddle, as it is read")
    sid_paddle_y = Field(u8, reset=0xFF, doc="the position of the other one")


@function
def advance(cpu, cycles: u64) -> None:
    """Let all voices run."""
    turn_all(cpu, cycles)
    for v in range(3):
        run_envelope(cpu, v, cycles)
    cpu.sid_clock = cpu.sid_clock + cycles


@function(inline=False)
def run(cpu, until: u64) -> None:
    """Execute all cycles before ``until`` that were not executed yet."""
    if cpu.sid_clock < until:
        cutoff = i64(0)
        if cpu.sid_listening != 0:
            cutoff = coefficient(cpu)
        while cpu.sid_clock < until:
            cycles = until - cpu.sid_clock
            wanted = to_step(cpu)
            if wanted > cycles:
                advance(cpu, cycles)
                if cpu.sid_listening != 0:
                    cpu.sid_due = cpu.sid_due + cycles * (u64(cpu.sid_sample_rate) * 3)
            else:
                advance(cpu, wanted)
                cpu.sid_due = cpu.sid_due + wanted * (u64(cpu.sid_sample_rate) * 3) - u64(cpu.sid_clock_rate)
                sound(cpu, cutoff)


# Registers. `run` must have been called for the present cycle.


@function(inline=False)
def read_register(cpu, register: u32) -> u8:
    """Read register 0 to 31."""
    present = cpu.sid_clock - 1
    keeps = u64(BUS_KEEPS_6581)
    if cpu.sid_model != 0:
        keeps = u64(BUS_KEEPS_8580)
    if register == PADDLE_X:
        value = cpu.sid_paddle_x
    elif register == PADDLE_Y:
        value = cpu.sid_paddle_y
    elif register == OSCILLATOR_3:
        value = u8(waveform(cpu, 2) >> 4)
    elif register == ENVELOPE_3:
        value = cpu.sid_envelope[2]
    else:
        if present - cpu.sid_bus_since > keeps:
            cpu.sid_bus = u8(0)
        return cpu.sid_bus
    cpu.sid_bus = value
    cpu.sid_bus_since = present
    return value


@function(inline=False)
def write_register(cpu, register: u32, value: u8) -> None:
    """Write register 0 to 31."""
    cpu.sid_bus = value
    cpu.sid_bus_since = cpu.sid_clock - 1
    if register == 4:
        write_control(cpu, 0, value, cpu.sid_clock)
    elif register == 11:
        write_control(cpu, 1, value, cpu.sid_clock)
    elif register == 18:
        write_control(cpu, 2, value, cpu.sid_clock)
    else:
        cpu.sid_registers[register & 31] = value
