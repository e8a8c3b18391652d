"""The two CIAs (MOS 6526): timers, ports, interrupts; their clocks are in `tod`.

``n`` is 0 for CIA 1, whose interrupts are IRQs, and 1 for CIA 2, whose are NMIs; a timer is numbered 2 * n, and
2 * n + 1 for timer B.  Time is in clock cycles: `run` brings a CIA up to a cycle; in a cycle, the CPU reads what the
chip made of it, and what the CPU writes then acts on the next.

Sources: MOS 6526 data sheet; W. Lorenz, "A Software Model of the CIA6526" (how clock pulses, loads and interrupts go
through stages), and what his and others' test programs found on real chips.
"""

from polyvisor.adl import Registers, function, likely, u8, u16, u32, u64, unlikely
from polyvisor.isa.mos6502.interrupts import set_irq, set_nmi

from .keyboard import Keyboard, keyboard_low
from .tod import ALARM, TimeOfDay, count_mains, read_time, write_time

NEVER = 2**64 - 1

# Stages of a timer: a clock pulse goes from COUNT0 to COUNT3, a forced load from LOAD0 to LOAD2, one a cycle.
COUNT0, COUNT1, COUNT2, COUNT3 = 0x01, 0x02, 0x04, 0x08
LOAD0, LOAD1, LOAD2 = 0x10, 0x20, 0x40
ONE_SHOT = 0x80
MOVING = COUNT1 | COUNT2 | COUNT3 | LOAD1 | LOAD2
COUNTING = COUNT0 | COUNT1 | COUNT2 | COUNT3

# Control registers
START, PORT_ON, TOGGLE, RUN_ONCE, FORCE = 0x01, 0x02, 0x04, 0x08, 0x10
COUNT_PIN, SERIAL_OUT, FIFTY_HERTZ = 0x20, 0x40, 0x80  # of A
COUNT_A, SET_ALARM = 0x40, 0x80  # of B

# Interrupt flags
TIMER_A, TIMER_B, SERIAL, FLAG = 0x01, 0x02, 0x08, 0x10
REQUEST = 0x80

SERIAL_DELAY = 3  # cycles from the last half bit but one to the flag


class Cia(TimeOfDay, Keyboard):
    """What belongs to the state: of both CIAs, by number; of their four timers."""

    cia_clock = Registers(u64, 2, doc="the first cycle not executed yet")
    cia_counter = Registers(u16, 4, reset=0xFFFF)
    cia_reload = Registers(u16, 4, reset=0xFFFF, doc="the timer's latch")
    cia_control = Registers(u8, 4, doc="registers $E and $F")
    cia_stages = Registers(u8, 4, doc="see COUNT0 and so on")
    cia_toggle = Registers(u8, 4, doc="0 or 1: changes at each underflow")
    cia_underflow = Registers(u8, 4, doc="1: in the last cycle")
    cia_flags = Registers(u8, 2, doc="what happened since register $D was read, as there")
    cia_request = Registers(u8, 2, doc="REQUEST while the interrupt line is pulled, else 0")
    cia_mask = Registers(u8, 2, doc="which flags are interrupts")
    cia_pending = Registers(u8, 2, doc="bits 0 and 1: an interrupt on its way to the line")
    cia_read_flags = Registers(u64, 2, reset=NEVER, doc="the last cycle in which register $D was read")
    cia_new = Registers(u8, 2, doc="1: a 6526A, whose interrupts come a cycle earlier")
    cia_pa = Registers(u8, 2, doc="register 0")
    cia_pb = Registers(u8, 2, doc="register 1")
    cia_ddra = Registers(u8, 2, doc="1 for each pin of port A that is an output")
    cia_ddrb = Registers(u8, 2, doc="1 for each pin of port B that is an output")
    cia_pa_inputs = Registers(u8, 2, reset=0xFF, doc="0 for each pin of port A that something outside pulls low")
    cia_pb_inputs = Registers(u8, 2, reset=0xFF, doc="0 for each pin of port B that something outside pulls low")
    cia_serial = Registers(u8, 2, doc="register $C")
    cia_shifter = Registers(u8, 2, doc="the serial port's shift register")
    cia_shifts = Registers(u8, 2, doc="half bits that remain to be sent, or bits that came")
    cia_serial_delay = Registers(u8, 2, doc="cycles until the flag for a byte that was sent; 0: none was")
    cia_waiting = Registers(u8, 2, doc="1: what is in cia_serial is to be sent")
    cia_cnt = Registers(u8, 2, reset=1, doc="the level of pin CNT, as an input")
    cia_sp = Registers(u8, 2, reset=1, doc="the level of pin SP, as an input")


# Time


@function
def fed(cpu, t) -> u8:
    """What enters a timer's stages in each cycle."""
    control = cpu.cia_control[t]
    others = COUNT_PIN
    if t % 2 == 1:
        others = COUNT_PIN | COUNT_A
    pulse = u8(COUNT0) if control & (START | others) == START else u8(0)
    return pulse | (control & RUN_ONCE) << 4


@function
def advance(cpu, t) -> bool:
    """A cycle of a timer; gives whether it underflows.

    It does where the counter is 0 while another pulse is about to come; that is used up by the load.
    """
    stages = cpu.cia_stages[t]
    if stages & COUNT3 != 0:
        cpu.cia_counter[t] = cpu.cia_counter[t] - 1
    underflow = cpu.cia_counter[t] == 0 and stages & COUNT2 != 0
    if underflow:
        cpu.cia_toggle[t] = cpu.cia_toggle[t] ^ 1
        if (stages | cpu.cia_control[t] << 4) & ONE_SHOT != 0:
            cpu.cia_control[t] = cpu.cia_control[t] & ~u8(START)
            stages = stages & ~u8(COUNT0 | COUNT1)
        stages = stages | LOAD1
    if stages & LOAD1 != 0:
        cpu.cia_counter[t] = cpu.cia_reload[t]
        stages = stages & ~u8(COUNT2)
    cpu.cia_underflow[t] = u8(underflow)
    cpu.cia_stages[t] = stages << 1 & MOVING | fed(cpu, t)
    return underflow


@function
def cycle(cpu, n) -> None:
    """The next cycle of a CIA, whatever happens in it."""
    clock = cpu.cia_clock[n]
    raised = u8(0)
    if unlikely(clock == cpu.tod_next[n]) and count_mains(cpu, n, cpu.cia_control[2 * n] & FIFTY_HERTZ != 0):
        raised = u8(ALARM)
    if advance(cpu, 2 * n):
        raised = raised | TIMER_A
        control = cpu.cia_control[2 * n + 1]
        if control & (START | COUNT_A) == START | COUNT_A and (control & COUNT_PIN == 0 or cpu.cia_cnt[n] != 0):
            cpu.cia_stages[2 * n + 1] = cpu.cia_stages[2 * n + 1] | COUNT1
        if cpu.cia_control[2 * n] & SERIAL_OUT != 0:
            send(cpu, n)
    if unlikely(cpu.cia_serial_delay[n] != 0):
        cpu.cia_serial_delay[n] = cpu.cia_serial_delay[n] - 1
        if cpu.cia_serial_delay[n] == 0:
            raised = raised | SERIAL
    lost = u8(0)
    if advance(cpu, 2 * n + 1):
        raised = raised | TIMER_B
        # If the flags were read in the cycle before, the older chip makes an interrupt of it, but sets no flag.
        if cpu.cia_new[n] == 0 and cpu.cia_read_flags[n] + 1 == clock:
            lost = u8(TIMER_B)
    cpu.cia_flags[n] = cpu.cia_flags[n] | raised & ~lost
    pending = cpu.cia_pending[n]
    if raised & cpu.cia_mask[n] != 0:
        pending = pending | 1
    if cpu.cia_new[n] != 0:
        pending = pending << 1
    if pending & 2 != 0 and cpu.cia_request[n] == 0:
        cpu.cia_request[n] = u8(REQUEST)
        pull(cpu, n, True, clock)
    cpu.cia_pending[n] = u8(0) if cpu.cia_new[n] != 0 else pending << 1 & 2
    cpu.cia_clock[n] = clock + 1


@function
def pull(cpu, n, low: bool, clock: u64) -> None:
    """Pull the interrupt line down, or let it go."""
    if n == 0:
        set_irq(cpu, u8(1), low, clock)
    else:
        set_nmi(cpu, u8(1), low, clock)


@function
def steady(cpu, t) -> bool:
    """Whether a timer's stages stay as they are."""
    feed = fed(cpu, t)
    stages = cpu.cia_stages[t]
    return stages == (feed | COUNTING if feed & COUNT0 != 0 else feed)


@function
def before_underflow(cpu, t, distance: u64) -> u64:
    """``distance``, or in how many cycles an underflow is due if it is steady and that is less."""
    if fed(cpu, t) & COUNT0 != 0:
        counter = u64(cpu.cia_counter[t])
        if counter == 0:
            return u64(0)
        if counter - 1 < distance:
            return counter - 1
    return distance


@function
def count(cpu, t, cycles: u64) -> None:
    """Let a steady timer go on for less cycles than it takes to underflow."""
    if fed(cpu, t) & COUNT0 != 0:
        cpu.cia_counter[t] = cpu.cia_counter[t] - u16(cycles)
    cpu.cia_underflow[t] = u8(0)


@function
def unnoticed(cpu, n, t, distance: u64) -> u64:
    """How many cycles, up to ``distance``, a steady timer can run in whole periods of which nobody takes notice."""
    control = cpu.cia_control[t]
    flag = TIMER_A if t % 2 == 0 else TIMER_B
    counter, reload = cpu.cia_counter[t], cpu.cia_reload[t]
    period = u64(reload) + 1
    if fed(cpu, t) != COUNT0 or reload < 4 or counter == 0 or counter > reload or distance < period:
        return u64(0)
    if cpu.cia_flags[n] & flag == 0 or (cpu.cia_mask[n] & flag != 0 and cpu.cia_request[n] == 0):
        return u64(0)
    periods = distance // period
    if t % 2 == 0:
        if control & SERIAL_OUT != 0:
            return u64(0)
        other = cpu.cia_control[t + 1]
        if other & (START | COUNT_A) == START | COUNT_A and (other & COUNT_PIN == 0 or cpu.cia_cnt[n] != 0):
            # Each is counted by timer B, which must not come to 0, and has counted the last.
            left = u64(cpu.cia_counter[t + 1])
            if left == 0 or counter == reload:
                return u64(0)
            if periods > left - 1:
                periods = left - 1
            cpu.cia_counter[t + 1] = u16(left - periods)
    cpu.cia_toggle[t] = cpu.cia_toggle[t] ^ u8(periods & 1)
    return periods * period


@function
def skip(cpu, n, until: u64) -> None:
    """Pass over cycles before ``until`` in which timers only count."""
    distance = until - cpu.cia_clock[n]
    if cpu.cia_pending[n] | cpu.cia_serial_delay[n] != 0 or not (steady(cpu, 2 * n) and steady(cpu, 2 * n + 1)):
        return
    if cpu.tod_next[n] < until:
        distance = cpu.tod_next[n] - cpu.cia_clock[n]
    a, b = before_underflow(cpu, 2 * n, distance), before_underflow(cpu, 2 * n + 1, distance)
    if unlikely(a < distance and a < b):
        passed = unnoticed(cpu, n, 2 * n, b)
        if passed != 0:
            count(cpu, 2 * n + 1, passed)
            cpu.cia_clock[n] = cpu.cia_clock[n] + passed
            distance = distance - passed
            b = before_underflow(cpu, 2 * n + 1, distance)
    elif unlikely(b < distance and b < a):
        passed = unnoticed(cpu, n, 2 * n + 1, a)
        if passed != 0:
            count(cpu, 2 * n, passed)
            cpu.cia_clock[n] = cpu.cia_clock[n] + passed
            distance = distance - passed
            a = before_underflow(cpu, 2 * n, distance)
    if a < distance:
        distance = a
    if b < distance:
        distance = b
    if distance != 0:
        count(cpu, 2 * n, distance)
        count(cpu, 2 * n + 1, distance)
        cpu.cia_clock[n] = cpu.cia_clock[n] + distance


@function(inline=False)
def run(cpu, n, until: u64) -> None:
    """Execute all cycles before ``until`` that were not executed yet."""
    while cpu.cia_clock[n] < until:
        skip(cpu, n, until)
        if likely(cpu.cia_clock[n] < until):
            cycle(cpu, n)


@function
def earliest(cpu, t) -> u64:
    """In how many cycles a timer may underflow by its own clock, the next cycle being 0; not too late."""
    stages = cpu.cia_stages[t]
    if (stages | fed(cpu, t)) & COUNTING == 0:
        return u64(NEVER)
    counter = cpu.cia_counter[t]
    if stages & (LOAD0 | LOAD1) != 0 and cpu.cia_reload[t] < counter:
        counter = cpu.cia_reload[t]
    return u64(0) if counter == 0 else u64(counter) - 1


@function
def earliest_cascaded(cpu, n) -> u64:
    """In how many cycles timer B may underflow while it counts what timer A does; not too late."""
    a = earliest(cpu, 2 * n)
    if a == NEVER or cpu.cia_stages[2 * n + 1] & (COUNTING | LOAD0 | LOAD1) != 0:
        return a if cpu.cia_stages[2 * n + 1] & (COUNTING | LOAD0 | LOAD1) == 0 else u64(0)
    reload = u64(cpu.cia_reload[2 * n])
    return a + u64(cpu.cia_counter[2 * n + 1]) * (reload + 1) + 1


@function(inline=False)
def next_event(cpu, n) -> u64:
    """The first cycle in which the interrupt line may be pulled down if nobody writes a register; not too late."""
    clock = cpu.cia_clock[n]
    if cpu.cia_pending[n] | cpu.cia_serial_delay[n] != 0:
        return clock
    if cpu.cia_request[n] != 0:
        return u64(NEVER)
    mask = cpu.cia_mask[n]
    soonest = u64(NEVER)
    if mask & TIMER_A != 0 or (mask & SERIAL != 0 and cpu.cia_control[2 * n] & SERIAL_OUT != 0):
        soonest = earliest(cpu, 2 * n)
    if mask & TIMER_B != 0:
        b = earliest(cpu, 2 * n + 1)
        if cpu.cia_control[2 * n + 1] & (START | COUNT_A) == START | COUNT_A:
            b = earliest_cascaded(cpu, n)
        if b < soonest:
            soonest = b
    if soonest != NEVER:
        soonest = soonest + clock
        if cpu.cia_new[n] == 0:
            soonest = soonest + 1
    if mask & ALARM != 0 and cpu.tod_next[n] < soonest:
        soonest = cpu.tod_next[n]
    return soonest


# The serial port, and other pins


@function
def send(cpu, n) -> None:
    """Timer A underflowed while the serial port sends: half a bit. The flag comes before a byte's last."""
    if cpu.cia_shifts[n] == 0 and cpu.cia_waiting[n] != 0:
        cpu.cia_waiting[n] = u8(0)
        cpu.cia_shifter[n] = cpu.cia_serial[n]
        cpu.cia_shifts[n] = u8(16)
    if cpu.cia_shifts[n] != 0:
        cpu.cia_shifts[n] = cpu.cia_shifts[n] - 1
        if cpu.cia_shifts[n] == 1:
            cpu.cia_serial_delay[n] = u8(SERIAL_DELAY)


@function(inline=False)
def set_cnt(cpu, n, high: bool) -> None:
    """The level of pin CNT in the next cycle. Timers count where it rises, and the serial port takes a bit from SP."""
    rises = high and cpu.cia_cnt[n] == 0
    cpu.cia_cnt[n] = u8(high)
    if rises:
        if cpu.cia_control[2 * n] & (START | COUNT_PIN) == START | COUNT_PIN:
            cpu.cia_stages[2 * n] = cpu.cia_stages[2 * n] | COUNT0
        if cpu.cia_control[2 * n + 1] & (START | COUNT_PIN | COUNT_A) == START | COUNT_PIN:
            cpu.cia_stages[2 * n + 1] = cpu.cia_stages[2 * n + 1] | COUNT0
        if cpu.cia_control[2 * n] & SERIAL_OUT == 0:
            cpu.cia_shifter[n] = cpu.cia_shifter[n] << 1 | cpu.cia_sp[n] & 1
            cpu.cia_shifts[n] = cpu.cia_shifts[n] + 1
            if cpu.cia_shifts[n] >= 8:
                cpu.cia_shifts[n] = u8(0)
                cpu.cia_serial[n] = cpu.cia_shifter[n]
                flag(cpu, n, u8(SERIAL))


@function
def flag(cpu, n, flags: u8) -> None:
    """Something happened between two cycles: FLAG for a falling edge of that pin."""
    cpu.cia_flags[n] = cpu.cia_flags[n] | flags
    if flags & cpu.cia_mask[n] != 0:
        cpu.cia_pending[n] = cpu.cia_pending[n] | 1


@function
def timer_pins(cpu, n) -> tuple[u8, u8]:
    """The pins of port B that timers drive, and those of them that are high."""
    driven, high = u8(0), u8(0)
    for t, pin in ((2 * n, 0x40), (2 * n + 1, 0x80)):
        control = cpu.cia_control[t]
        if control & PORT_ON != 0:
            driven = driven | pin
            if (cpu.cia_toggle[t] if control & TOGGLE != 0 else cpu.cia_underflow[t]) != 0:
                high = high | pin
    return driven, high


@function(inline=False)
def pins(cpu, n) -> tuple[u8, u8]:
    """The levels at the pins of both ports. The last cycle is taken to be the present one."""
    driven, high = timer_pins(cpu, n)
    outputs = cpu.cia_ddrb[n] | driven
    a = cpu.cia_pa[n] | ~cpu.cia_ddra[n]
    b = (cpu.cia_pb[n] & ~driven | high) | ~outputs
    a_low, b_low = ~(a & cpu.cia_pa_inputs[n]), ~(b & cpu.cia_pb_inputs[n])
    if n == 0:
        a_low, b_low = keyboard_low(cpu, a_low, b_low, outputs & b)
    return ~a_low, ~b_low


# Registers. `run` must have been called for the present cycle.


@function(inline=False)
def read_register(cpu, n, register: u32) -> u8:
    """Read register 0 to 15."""
    if register == 0:
        a, _ = pins(cpu, n)
        return a
    if register == 1:
        _, b = pins(cpu, n)
        return b
    if register == 2:
        return cpu.cia_ddra[n]
    if register == 3:
        return cpu.cia_ddrb[n]
    if register == 4:
        return u8(cpu.cia_counter[2 * n])
    if register == 5:
        return u8(cpu.cia_counter[2 * n] >> 8)
    if register == 6:
        return u8(cpu.cia_counter[2 * n + 1])
    if register == 7:
        return u8(cpu.cia_counter[2 * n + 1] >> 8)
    if register < 12:
        return read_time(cpu, n, register & 3)
    if register == 12:
        return cpu.cia_serial[n]
    if register == 13:
        value = cpu.cia_flags[n] | cpu.cia_request[n]
        cpu.cia_flags[n] = u8(0)
        cpu.cia_pending[n] = u8(0)
        if cpu.cia_request[n] != 0:
            cpu.cia_request[n] = u8(0)
            pull(cpu, n, False, cpu.cia_clock[n] - 1)
        cpu.cia_read_flags[n] = cpu.cia_clock[n] - 1
        return value
    if register == 14:
        return cpu.cia_control[2 * n]
    return cpu.cia_control[2 * n + 1]


@function(inline=False)
def write_register(cpu, n, register: u32, value: u8) -> None:
    """Write register 0 to 15."""
    if register == 0:
        cpu.cia_pa[n] = value
    elif register == 1:
        cpu.cia_pb[n] = value
    elif register == 2:
        cpu.cia_ddra[n] = value
    elif register == 3:
        cpu.cia_ddrb[n] = value
    elif register == 4:
        write_reload(cpu, 2 * n, False, value)
    elif register == 5:
        write_reload(cpu, 2 * n, True, value)
    elif register == 6:
        write_reload(cpu, 2 * n + 1, False, value)
    elif register == 7:
        write_reload(cpu, 2 * n + 1, True, value)
    elif register < 12:
        if write_time(cpu, n, register & 3, value, cpu.cia_control[2 * n + 1] & SET_ALARM != 0, cpu.cia_clock[n]):
            flag(cpu, n, u8(ALARM))
    elif register == 12:
        cpu.cia_serial[n] = value
        if cpu.cia_control[2 * n] & SERIAL_OUT != 0:
            cpu.cia_waiting[n] = u8(1)
    elif register == 13:
        if value & 0x80 != 0:
            cpu.cia_mask[n] = cpu.cia_mask[n] | value & 0x1F
        else:
            cpu.cia_mask[n] = cpu.cia_mask[n] & ~value
        if cpu.cia_flags[n] & cpu.cia_mask[n] != 0 and cpu.cia_request[n] == 0:
            cpu.cia_pending[n] = cpu.cia_pending[n] | 1
    elif register == 14:
        if (value ^ cpu.cia_control[2 * n]) & SERIAL_OUT != 0:
            cpu.cia_shifts[n] = u8(0)
            cpu.cia_waiting[n] = u8(0)
        write_control(cpu, 2 * n, value)
    else:
        write_control(cpu, 2 * n + 1, value)


@function
def write_reload(cpu, t, high, value: u8) -> None:
    """Write half of a timer's latch; the high one is loaded if the timer stands, either if a load is under way."""
    reload = cpu.cia_reload[t] & 0x00FF | u16(value) << 8 if high else cpu.cia_reload[t] & 0xFF00 | u16(value)
    cpu.cia_reload[t] = reload
    if cpu.cia_stages[t] & LOAD2 != 0:
        cpu.cia_counter[t] = reload
    if high and cpu.cia_control[t] & START == 0:
        cpu.cia_stages[t] = cpu.cia_stages[t] | LOAD0


@function
def write_control(cpu, t, value: u8) -> None:
    """Write a control register."""
    if value & START != 0 and cpu.cia_control[t] & START == 0:
        cpu.cia_toggle[t] = u8(1)
    cpu.cia_control[t] = value & ~u8(FORCE)
    stages = cpu.cia_stages[t] & ~u8(COUNT0 | COUNT1)
    if fed(cpu, t) & COUNT0 != 0:
        stages = stages | (COUNT0 | COUNT1)
    if value & FORCE != 0:
        stages = stages | LOAD0
    cpu.cia_stages[t] = stages
