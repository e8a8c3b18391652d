"""The time of day of a CIA: a clock of BCD digits that counts the mains' cycles.

Sources: MOS 6526 data sheet, "Time of Day Clock"; measurements with test programs (the digits are binary counters with
comparisons, the hour's flag changes where 12 is reached, the alarm is the moment at which the times become equal).
"""

from polyvisor.adl import Field, Registers, function, u8, u32, u64

NEVER = 2**64 - 1
ALARM = 4
TENTHS, SECONDS, MINUTES, HOURS = 0, 8, 16, 24  # where each is in a time of 32 bits


class TimeOfDay:
    """What belongs to the state; by the number of the CIA. Times are registers $8 to $B, the first in the low byte."""

    tod_time = Registers(u32, 2, reset=0x0100_0000)
    tod_alarm = Registers(u32, 2)
    tod_latch = Registers(u32, 2, doc="what is read while `tod_latched`")
    tod_latched = Registers(u8, 2, doc="1 from a read of the hours to one of the tenths")
    tod_running = Registers(u8, 2, doc="0 from a write of the hours to one of the tenths")
    tod_divider = Registers(u8, 2, doc="cycles of the mains since the last tenth")
    tod_tick = Registers(u64, 2, doc="number of the next cycle of the mains")
    tod_next = Registers(u64, 2, reset=NEVER, doc="the clock cycle in which it begins; all ones: the clock stands")
    tod_clock_rate = Field(u32, reset=985_248, doc="clock cycles a second")
    tod_mains_rate = Field(u32, reset=50, doc="cycles of the mains a second")


@function
def digit(value: u32, low, mask, last) -> tuple[u32, bool]:
    """A time after its digit at bit ``low`` was counted, which goes back to 0 after ``last``; and whether it did."""
    now = value >> low & mask
    if now == last:
        return value & ~u32(mask << low), True
    return value & ~u32(mask << low) | (now + 1 & mask) << low, False


@function
def hour(value: u32) -> u32:
    """A time after its hour was counted: 11 to 12 changes between a.m. and p.m., after 12 comes 1."""
    now = value >> HOURS & 0x1F
    if now == 0x12:
        now = u32(0x01)
    elif now == 0x09:
        now = u32(0x10)
    else:
        now = now & 0x10 | now + 1 & 0x0F
    half = value & 0x8000_0000
    if now == 0x12:
        half = half ^ 0x8000_0000
    return value & 0x00FF_FFFF | half | now << HOURS


@function
def tenth_later(value: u32) -> u32:
    """A time, a tenth of a second later."""
    value, carry = digit(value, TENTHS, 0x0F, 9)
    if carry:
        value, carry = digit(value, SECONDS, 0x0F, 9)
        if carry:
            value, carry = digit(value, SECONDS + 4, 7, 5)
            if carry:
                value, carry = digit(value, MINUTES, 0x0F, 9)
                if carry:
                    value, carry = digit(value, MINUTES + 4, 7, 5)
                    if carry:
                        value = hour(value)
    return value


@function
def begins(cpu, tick: u64) -> u64:
    """The first clock cycle of a cycle of the mains."""
    mains = u64(cpu.tod_mains_rate)
    if mains == 0:
        return u64(NEVER)
    return (tick * u64(cpu.tod_clock_rate) + mains - 1) // mains


@function(inline=False)
def count_mains(cpu, n, fifty: bool) -> bool:
    """A cycle of the mains begins; ``fifty``: five of them are a tenth, not six. Gives whether the alarm goes off."""
    cpu.tod_tick[n] = cpu.tod_tick[n] + 1
    cpu.tod_next[n] = begins(cpu, cpu.tod_tick[n])
    cpu.tod_divider[n] = cpu.tod_divider[n] + 1
    if cpu.tod_divider[n] < (u8(5) if fifty else u8(6)):
        return False
    cpu.tod_divider[n] = u8(0)
    cpu.tod_time[n] = tenth_later(cpu.tod_time[n])
    return cpu.tod_time[n] == cpu.tod_alarm[n]


@function(inline=False)
def read_time(cpu, n, register: u32) -> u8:
    """Read register 0 (tenths) to 3 (hours)."""
    if register == 3 and cpu.tod_latched[n] == 0:
        cpu.tod_latched[n] = u8(1)
        cpu.tod_latch[n] = cpu.tod_time[n]
    value = cpu.tod_time[n]
    if cpu.tod_latched[n] != 0:
        value = cpu.tod_latch[n]
    if register == 0:
        cpu.tod_latched[n] = u8(0)
    return u8(value >> ((register & 3) << 3))


@function(inline=False)
def write_time(cpu, n, register: u32, value: u8, alarm: bool, clock: u64) -> bool:
    """Write register 0 to 3 of the time or the alarm before cycle ``clock``. Gives whether the alarm goes off."""
    equal = cpu.tod_time[n] == cpu.tod_alarm[n]
    place = (register & 3) << 3
    wide = u32(value)
    if register == 0:
        wide = wide & 0x0F
    elif register == 3:
        wide = wide & 0x9F
    else:
        wide = wide & 0x7F
    others = ~(u32(0xFF) << place)
    if alarm:
        cpu.tod_alarm[n] = cpu.tod_alarm[n] & others | wide << place
    else:
        if register == 3:
            if wide & 0x1F == 0x12:
                wide = wide ^ 0x80
            cpu.tod_running[n] = u8(0)
            cpu.tod_next[n] = u64(NEVER)
        elif register == 0 and cpu.tod_running[n] == 0:
            start(cpu, n, clock)
        cpu.tod_time[n] = cpu.tod_time[n] & others | wide << place
    return not equal and cpu.tod_time[n] == cpu.tod_alarm[n]


@function
def start(cpu, n, clock: u64) -> None:
    """Let the clock go on from now."""
    cpu.tod_running[n] = u8(1)
    cpu.tod_divider[n] = u8(0)
    rate = u64(cpu.tod_clock_rate)
    if rate != 0:
        cpu.tod_tick[n] = clock * u64(cpu.tod_mains_rate) // rate + 1
        cpu.tod_next[n] = begins(cpu, cpu.tod_tick[n])
