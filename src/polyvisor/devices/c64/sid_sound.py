"""What is heard of a SID: voices, filter and volume as samples.

The voices are mixed and filtered `STEPS` times a sample, and the sample is their mean.  The filter is a state-variable
one in Chamberlin's form, in fixed point; how its frequency depends on the register differs from chip to chip for the
6581, and is an approximation here.  Sources: MOS 6581 data sheet (range, resonance, routing); H. Chamberlin, "Musical
Applications of Microprocessors", chapter 16.
"""

from polyvisor.adl import Field, function, i32, i64, u16, u32, u64

from . import memory
from .sid_voice import Voices, waveform

STEPS = 3
FRACTION = 16  # bits of fraction of the filter's coefficient
VOICE_3_OFF, LOW_PASS, BAND_PASS, HIGH_PASS = 0x80, 0x10, 0x20, 0x40

RING = memory.SOUND
"""Physical address of the samples: `RING_SAMPLES` numbers of 16 bits, signed, in the CPU's byte order."""
RING_SAMPLES = 0x8000

# The filter's frequency in Hz by its register of 11 bits. 6581: 200 Hz to 12.8 kHz, twice as much every 341 steps.
# 8580: 30 Hz to 12 kHz, linear.
_CUTOFF_6581 = tuple(u16(round(200 * 2 ** (step * 6 / 2048))) for step in range(2048))
_CUTOFF_8580 = tuple(u16(30 + step * 11970 // 2047) for step in range(2048))


class Sound(Voices):
    """What belongs to the state."""

    sid_model = Field(u32, doc="0: 6581; 1: 8580")
    sid_listening = Field(u32, doc="1: samples are made")
    sid_sample_rate = Field(u32, reset=44_100, doc="samples a second")
    sid_clock_rate = Field(u32, reset=985_248, doc="clock cycles a second")
    sid_written = Field(u64, doc="samples that were made; the next goes to this place of the ring, modulo its size")
    sid_due = Field(u64, doc="part of a sample's time that has passed, times sid_clock_rate")
    sid_part = Field(u32, doc="how many steps of the present sample were made")
    sid_sum = Field(i64, doc="their sum")
    sid_low = Field(i64, doc="the filter's low-pass output")
    sid_band = Field(i64, doc="its band-pass output")
    sid_offset = Field(i64, doc="the mean that the output's capacitor takes away, times 512")


@function(inline=False)
def coefficient(cpu) -> i64:
    """2 sin(pi f / r) of the filter's frequency f and its steps r a second, in fixed point."""
    chosen = u32(cpu.sid_registers[0x15] & 7) | u32(cpu.sid_registers[0x16]) << 3
    hertz = u64(_CUTOFF_6581[chosen])
    if cpu.sid_model != 0:
        hertz = u64(_CUTOFF_8580[chosen])
    steps = u64(cpu.sid_sample_rate) * STEPS
    if steps == 0:
        return i64(0)
    # 2 pi f / r, and the next term of the sine.
    angle = hertz * 411_775 // steps
    if angle > 1 << FRACTION:
        angle = u64(1 << FRACTION)
    return i64(angle) - i64(angle * angle // (24 << FRACTION) * angle >> FRACTION)


@function
def voice(cpu, v) -> i64:
    """A voice's output, about -2048 to 2047."""
    return i64(i32(waveform(cpu, v)) - 0x800) * i64(cpu.sid_envelope[v]) >> 8


@function
def mix(cpu, cutoff: i64) -> i64:
    """The voices, filtered or not, before the volume."""
    routing = cpu.sid_registers[0x17]
    mode = cpu.sid_registers[0x18]
    direct, filtered = i64(0), i64(0)
    for v in range(3):
        level = voice(cpu, v)
        if routing & (1 << v) != 0:
            filtered = filtered + level
        elif v != 2 or mode & VOICE_3_OFF == 0:
            direct = direct + level
    # 1 / Q: from 1.41 to 0.59.
    damping = 362 - i64(routing >> 4) * 14
    low = cpu.sid_low + (cutoff * cpu.sid_band >> FRACTION)
    high = filtered - low - (damping * cpu.sid_band >> 8)
    band = cpu.sid_band + (cutoff * high >> FRACTION)
    cpu.sid_low, cpu.sid_band = low, band
    if mode & LOW_PASS != 0:
        direct = direct + low
    if mode & BAND_PASS != 0:
        direct = direct + band
    if mode & HIGH_PASS != 0:
        direct = direct + high
    if cpu.sid_model == 0:
        # The older chip's mixer is not at rest in the middle: a change of volume is heard, and so are digitized sounds.
        direct = direct + 0x800
    return direct * i64(mode & 0x0F)


@function(inline=False)
def sound(cpu, cutoff: i64) -> None:
    """A step of a sample; after the last, the sample goes to the ring."""
    cpu.sid_sum = cpu.sid_sum + mix(cpu, cutoff)
    cpu.sid_part = cpu.sid_part + 1
    if cpu.sid_part >= STEPS:
        level = cpu.sid_sum // (STEPS * 4)
        cpu.sid_part = u32(0)
        cpu.sid_sum = i64(0)
        cpu.sid_offset = cpu.sid_offset + level - (cpu.sid_offset >> 9)
        level = level - (cpu.sid_offset >> 9)
        if level > 32767:
            level = i64(32767)
        elif level < -32768:
            level = i64(-32768)
        cpu.phys_store(u16, u64(RING) + (cpu.sid_written % RING_SAMPLES) * 2, u16(level))
        cpu.sid_written = cpu.sid_written + 1


@function
def to_step(cpu) -> u64:
    """Cycles until the next step of a sample is due, at least 1; all ones for never."""
    rate = u64(cpu.sid_sample_rate) * STEPS
    if cpu.sid_listening == 0 or rate == 0:
        return u64(2**64 - 1)
    clock = u64(cpu.sid_clock_rate)
    if cpu.sid_due + rate >= clock:
        return u64(1)
    return (clock - cpu.sid_due + rate - 1) // rate
