"""The three voices of a SID: oscillators, waveforms, envelopes.

Voices are numbered 0 to 2; each is synchronized and modulated by the one before it, the first by the third.

Sources: MOS 6581 data sheet; B. Yannes' interview of 1996; A. Alstrup Nielsen, "Uncovering the waveforms of the SID"
(noise); K. Horton, and D. Viens, on the tables that are seen on the chip (rates of envelopes, exponential decay).
"""

from polyvisor.adl import Registers, function, u8, u16, u32, u64

GATE, SYNC, RING, TEST = 0x01, 0x02, 0x04, 0x08
TRIANGLE, SAWTOOTH, PULSE, NOISE = 0x10, 0x20, 0x40, 0x80
ATTACK, DECAY, RELEASE = 0, 1, 2
SHIFT_DELAY = 2  # cycles from the clock of the noise's shift register to its shift
FULL_RATE = 0x7FFF  # states of the rate counter
NOISE_RESET = 0x7F_FFFF
TEST_FILLS = 0x8000  # cycles with the test bit until the noise's register is full of ones; it differs between chips

RATES = (
    # Cycles for each step of an envelope: 1/256 of the attack times in the data sheet, as the chip's table has them.
    *(u16(9), u16(32), u16(63), u16(95), u16(149), u16(220), u16(267), u16(313)),
    *(u16(392), u16(977), u16(1954), u16(3126), u16(3907), u16(11720), u16(19532), u16(31251)),
)


class Voices:
    """What belongs to the state."""

    sid_registers = Registers(u8, 32, doc="what was written")
    sid_phase = Registers(u32, 3, doc="24 bits")
    sid_noise = Registers(u32, 3, reset=NOISE_RESET, doc="the shift register, 23 bits")
    sid_noise_delay = Registers(u8, 3, doc="cycles until it is shifted; 0: not clocked")
    sid_test_since = Registers(u64, 3, doc="the cycle in which the test bit was set")
    sid_held = Registers(u16, 3, doc="what the waveform was when the last one was switched off")
    sid_envelope = Registers(u8, 3)
    sid_stage = Registers(u8, 3, reset=RELEASE, doc="ATTACK, DECAY (and sustain) or RELEASE")
    sid_frozen = Registers(u8, 3, reset=1, doc="1: the envelope reached 0, and waits for the gate")
    sid_rate = Registers(u16, 3, doc="the counter of cycles for an envelope's step")
    sid_steps = Registers(u8, 3, doc="the counter of steps for the exponential decay")
    sid_divider = Registers(u8, 3, reset=1, doc="what it counts to")


@function
def frequency(cpu, v) -> u32:
    """What is added to the phase in each cycle."""
    return u32(cpu.sid_registers[7 * v]) | u32(cpu.sid_registers[7 * v + 1]) << 8


@function
def shift_noise(cpu, v, times: u64) -> None:
    """Shift the noise's register."""
    value = cpu.sid_noise[v]
    while times != 0:
        value = value << 1 & 0x7F_FFFF | (value >> 22 ^ value >> 17) & 1
        times = times - 1
    cpu.sid_noise[v] = value


@function
def to_edge(cpu, v) -> u64:
    """Cycles until the highest bit of an oscillator's phase rises, at least 1; all ones for never."""
    step = u64(frequency(cpu, v))
    if step == 0 or cpu.sid_registers[7 * v + 4] & TEST != 0:
        return u64(2**64 - 1)
    return (((u64(0x17F_FFFF) - u64(cpu.sid_phase[v])) & 0xFF_FFFF) + step) // step


@function
def turn(cpu, v, cycles: u64) -> bool:
    """Let an oscillator run on its own; gives whether its highest bit rose in the last of these cycles."""
    if cpu.sid_registers[7 * v + 4] & TEST != 0:
        return False
    step = u64(frequency(cpu, v))
    before = u64(cpu.sid_phase[v])
    after = before + step * cycles
    cpu.sid_phase[v] = u32(after) & 0xFF_FFFF
    delay = u64(cpu.sid_noise_delay[v])
    if delay != 0:
        if delay <= cycles:
            shift_noise(cpu, v, u64(1))
            delay = u64(0)
        else:
            delay = delay - cycles
    clocks = (after + 0x8_0000 >> 20) - (before + 0x8_0000 >> 20)
    if clocks != 0:
        since = (after + 0x8_0000 & 0xF_FFFF) // step
        if since < SHIFT_DELAY:
            delay = SHIFT_DELAY - since
            clocks = clocks - 1
        shift_noise(cpu, v, clocks)
    cpu.sid_noise_delay[v] = u8(delay)
    return after & 0x80_0000 != 0 and after - step & 0x80_0000 == 0


@function(inline=False)
def turn_all(cpu, cycles: u64) -> None:
    """Let the oscillators run; those that are synchronized begin anew where the other's highest bit rises."""
    synchronized = (cpu.sid_registers[4] | cpu.sid_registers[11] | cpu.sid_registers[18]) & SYNC != 0
    while cycles != 0:
        step = cycles
        if synchronized:
            for v in range(3):
                if cpu.sid_registers[7 * v + 4] & SYNC != 0:
                    edge = to_edge(cpu, (v + 2) % 3)
                    if edge < step:
                        step = edge
        rose0, rose1, rose2 = turn(cpu, 0, step), turn(cpu, 1, step), turn(cpu, 2, step)
        if synchronized:
            sync0 = cpu.sid_registers[4] & SYNC != 0 and rose2
            sync1 = cpu.sid_registers[11] & SYNC != 0 and rose0
            sync2 = cpu.sid_registers[18] & SYNC != 0 and rose1
            # One that begins anew itself in this cycle has no edge for others.
            if sync0 and not sync2:
                cpu.sid_phase[0] = u32(0)
            if sync1 and not sync0:
                cpu.sid_phase[1] = u32(0)
            if sync2 and not sync1:
                cpu.sid_phase[2] = u32(0)
        cycles = cycles - step


@function
def noise_bits(value: u32) -> u16:
    """The waveform that is made of the noise's register: 12 bits, the lowest four always 0."""
    return (
        u16(value >> 20 & 1) << 11 | u16(value >> 18 & 1) << 10 | u16(value >> 14 & 1) << 9 | u16(value >> 11 & 1) << 8
        | u16(value >> 9 & 1) << 7 | u16(value >> 5 & 1) << 6 | u16(value >> 2 & 1) << 5 | u16(value & 1) << 4
    )  # fmt: skip


@function(inline=False)
def waveform(cpu, v) -> u16:
    """A voice's waveform, 12 bits. Of several at once, what all of them have: the chip's are lower, and differ."""
    control = cpu.sid_registers[7 * v + 4]
    if control & 0xF0 == 0:
        return cpu.sid_held[v]
    phase = cpu.sid_phase[v]
    value = u16(0xFFF)
    if control & TRIANGLE != 0:
        falls = phase
        if control & (RING | SAWTOOTH) == RING:
            falls = falls ^ cpu.sid_phase[(v + 2) % 3]
        folded = ~phase if falls & 0x80_0000 != 0 else phase
        value = value & u16(folded >> 11 & 0xFFE)
    if control & SAWTOOTH != 0:
        value = value & u16(phase >> 12)
    if control & PULSE != 0:
        width = u32(cpu.sid_registers[7 * v + 2]) | u32(cpu.sid_registers[7 * v + 3] & 0x0F) << 8
        if control & TEST == 0 and phase >> 12 < width:
            value = u16(0)
    if control & NOISE != 0:
        value = value & noise_bits(cpu.sid_noise[v])
    return value


@function
def write_control(cpu, v, value: u8, clock: u64) -> None:
    """Write a voice's control register before cycle ``clock``."""
    before = cpu.sid_registers[7 * v + 4]
    if value & 0xF0 == 0 and before & 0xF0 != 0:
        cpu.sid_held[v] = waveform(cpu, v)
    cpu.sid_registers[7 * v + 4] = value
    if (before ^ value) & GATE != 0:
        if value & GATE != 0:
            cpu.sid_stage[v] = u8(ATTACK)
            cpu.sid_frozen[v] = u8(0)
        else:
            cpu.sid_stage[v] = u8(RELEASE)
    if value & ~before & TEST != 0:
        cpu.sid_phase[v] = u32(0)
        cpu.sid_noise_delay[v] = u8(0)
        cpu.sid_test_since[v] = clock
    elif before & ~value & TEST != 0:
        # The bits of the register turn to 1 little by little; the test bit's end clocks it once.
        if clock - cpu.sid_test_since[v] >= TEST_FILLS:
            cpu.sid_noise[v] = u32(NOISE_RESET)
        noise = cpu.sid_noise[v]
        cpu.sid_noise[v] = noise << 1 & 0x7F_FFFF | ~noise >> 17 & 1


# Envelopes


@function
def period(cpu, v) -> u16:
    """Cycles for a step of the envelope, as the counter is compared."""
    stage = cpu.sid_stage[v]
    if stage == RELEASE:
        return RATES[u32(cpu.sid_registers[7 * v + 6] & 0x0F)]
    chosen = cpu.sid_registers[7 * v + 5]
    return RATES[u32(chosen >> 4 if stage == ATTACK else chosen & 0x0F)]


@function
def sustain(cpu, v) -> u8:
    """The level of the envelope at which the decay ends."""
    level = cpu.sid_registers[7 * v + 6] >> 4
    return level << 4 | level


@function
def divide(cpu, v) -> None:
    """The envelope has changed: at some levels its decay becomes slower, which makes it nearly exponential."""
    level = cpu.sid_envelope[v]
    if level == 0xFF:
        cpu.sid_divider[v] = u8(1)
    elif level == 0x5D:
        cpu.sid_divider[v] = u8(2)
    elif level == 0x36:
        cpu.sid_divider[v] = u8(4)
    elif level == 0x1A:
        cpu.sid_divider[v] = u8(8)
    elif level == 0x0E:
        cpu.sid_divider[v] = u8(16)
    elif level == 0x06:
        cpu.sid_divider[v] = u8(30)
    elif level == 0:
        cpu.sid_divider[v] = u8(1)
        cpu.sid_frozen[v] = u8(1)


@function
def step_envelope(cpu, v) -> None:
    """The rate counter has come to its end."""
    if cpu.sid_stage[v] != ATTACK:
        cpu.sid_steps[v] = cpu.sid_steps[v] + 1
        if cpu.sid_steps[v] != cpu.sid_divider[v]:
            return
    cpu.sid_steps[v] = u8(0)
    if cpu.sid_frozen[v] != 0:
        return
    if cpu.sid_stage[v] == ATTACK:
        cpu.sid_envelope[v] = cpu.sid_envelope[v] + 1
        if cpu.sid_envelope[v] == 0xFF:
            cpu.sid_stage[v] = u8(DECAY)
    elif cpu.sid_stage[v] == RELEASE or cpu.sid_envelope[v] != sustain(cpu, v):
        cpu.sid_envelope[v] = cpu.sid_envelope[v] - 1
    else:
        return
    divide(cpu, v)


@function
def rests(cpu, v) -> bool:
    """Whether the envelope stays what it is until a register is written."""
    return cpu.sid_frozen[v] != 0 or (cpu.sid_stage[v] == DECAY and cpu.sid_envelope[v] == sustain(cpu, v))


@function(inline=False)
def run_envelope(cpu, v, cycles: u64) -> None:
    """Let an envelope run.

    The counter is compared for equality only: where a shorter period is chosen when it has gone too far, it first goes
    through all its states, for which the envelope stands.
    """
    while cycles != 0:
        needed = u64(period(cpu, v))
        counter = u64(cpu.sid_rate[v])
        left = needed - counter if counter < needed else FULL_RATE - counter + needed
        if left > cycles:
            counter = counter + cycles
            if counter > FULL_RATE:
                counter = counter - FULL_RATE
            cpu.sid_rate[v] = u16(counter)
            return
        cycles = cycles - left
        cpu.sid_rate[v] = u16(0)
        step_envelope(cpu, v)
        if rests(cpu, v):
            ends = cycles // needed
            cycles = cycles - ends * needed
            if cpu.sid_stage[v] != ATTACK:
                cpu.sid_steps[v] = u8((u64(cpu.sid_steps[v]) + ends) % u64(cpu.sid_divider[v]))
