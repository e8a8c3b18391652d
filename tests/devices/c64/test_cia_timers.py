"""Timers and interrupts of the CIAs, cycle by cycle. Tables that name Lorenz are from his tests of real chips."""

from __future__ import annotations

import random

import pytest
from c64_chips import CiaDriver

from polyvisor.devices.c64 import cia

A, B = 0, 1
ICR, CRA, CRB = 13, 14, 15
NEVER = 2**64 - 1


def ready(latch: int, timer: int = A, n: int = 0, new: bool = False) -> CiaDriver:
    """A CIA with a timer that stands at ``latch``, long before cycle 100."""
    chip = CiaDriver(n, new=new)
    chip.set_timer(0, timer, latch)
    chip.run(99)
    return chip


@pytest.mark.parametrize("timer", [A, B])
@pytest.mark.parametrize(
    ("control", "latch", "expected"),
    [
        # The write is in cycle 100; these are cycles 101 and on.
        (0x01, 4, [4, 4, 3, 2, 1, 4, 4, 3, 2, 1, 4, 4, 3]),
        (0x11, 4, [4, 4, 4, 3, 2, 1, 4, 4, 3, 2, 1, 4, 4]),
        (0x01, 2, [2, 2, 1, 2, 2, 1, 2, 2, 1]),  # Lorenz: 2-1-2, never 0
        (0x01, 1, [1, 1, 1, 1, 1, 1]),
        (0x01, 0, [0, 0, 0, 0, 0, 0]),
        (0x09, 4, [4, 4, 3, 2, 1, 4, 4, 4, 4]),
        (0x19, 2, [2, 2, 2, 1, 2, 2, 2]),
    ],
)
def test_a_timer_counts_clock_cycles(timer: int, control: int, latch: int, expected: list[int]) -> None:
    chip = ready(latch, timer)
    chip.write(100, CRA + timer, control)
    assert chip.values(101, len(expected), 4 + 2 * timer) == expected


def test_a_timer_that_is_stopped_counts_two_cycles_more() -> None:
    chip = ready(50)
    chip.write(100, CRA, 0x01)
    chip.write(110, CRA, 0x00)
    assert chip.values(110, 5, 4) == [42, 41, 40, 40, 40]


def test_a_timer_may_be_stopped_at_0() -> None:
    chip = ready(10)
    chip.write(100, CRA, 0x01)
    chip.write(110, CRA, 0x00)  # 2 then
    assert chip.values(110, 5, 4) == [2, 1, 0, 0, 0]
    assert chip.read(120, ICR) == 0
    chip.write(121, CRA, 0x01)  # it underflows as soon as a pulse is about to come
    assert chip.values(122, 4, 4) == [0, 10, 10, 9]
    assert chip.read(130, ICR) == 1


def test_one_shot_stops_in_the_cycle_of_the_underflow() -> None:
    chip = ready(2)
    chip.write(100, CRA, 0x09)
    assert chip.values(103, 2, CRA) == [0x09, 0x08]  # Lorenz, "oneshot"
    assert chip.values(103, 4, 4) == [1, 2, 2, 2]


@pytest.mark.parametrize(("end", "runs"), [(101, 1), (102, 1), (103, 0)])
def test_one_shot_acts_a_cycle_longer_than_it_is_set(end: int, runs: int) -> None:
    chip = ready(2)
    chip.write(100, CRA, 0x09)  # underflow in 104
    chip.write(end, CRA, 0x01)
    assert chip.read(107, CRA) & 1 == runs


def test_a_forced_load_takes_two_cycles_and_the_pulse_after_it() -> None:
    chip = ready(50)
    chip.write(100, CRA, 0x01)
    chip.write(110, CRA, 0x11)
    assert chip.values(110, 6, 4) == [42, 41, 50, 50, 49, 48]
    assert chip.read(120, CRA) == 0x01


def test_the_high_byte_loads_a_timer_that_stands_and_the_low_one_does_not() -> None:
    chip = ready(0x1234)
    chip.write(100, 4, 0x99)
    assert (chip.read(105, 4), chip.read(106, 5)) == (0x34, 0x12)
    chip.write(110, 5, 0x56)
    assert chip.values(111, 2, 4) == [0x34, 0x99] and chip.read(113, 5) == 0x56
    chip.write(120, CRA, 0x01)
    chip.write(130, 5, 0x77)
    assert chip.read(131, 5) == 0x56


def test_a_latch_written_while_it_is_loaded_goes_through() -> None:
    chip = ready(10)
    chip.write(100, CRA, 0x01)  # underflow in 112
    chip.write(112, 4, 99)
    assert chip.values(113, 3, 4) == [99, 98, 97]


# What Lorenz's "cia1tab" saw: A and B from 2, B counts A, both on port B: pulses of A on PB6, B toggles PB7.
TAB_A = [1, 2, 2, 1, 2, 2, 1, 2, 2, 1, 2, 2]
TAB_B = [2, 2, 2, 1, 1, 1, 0, 0, 2, 2, 2, 2]
TAB_PB = [0x80, 0xC0, 0x80, 0x80, 0xC0, 0x80, 0x80, 0xC0, 0x00, 0x00, 0x40, 0x00]
TAB_ICR_OLD = [0x00, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x03, 0x83, 0x83, 0x83]
TAB_ICR_NEW = [0x00, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x01, 0x83, 0x83, 0x83, 0x83]


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("n", [0, 1])
def test_timer_b_counts_underflows_of_timer_a(n: int, new: bool) -> None:
    chip = CiaDriver(n, new=new)
    chip.write(0, 3, 0xFF)
    chip.set_timer(1, A, 2)
    chip.set_timer(3, B, 2)
    chip.write(10, ICR, 0x82)
    chip.write(90, CRB, 0x47)
    chip.write(100, CRA, 0x03)
    assert chip.values(103, 12, 4) == TAB_A
    assert chip.values(103, 12, 6) == TAB_B
    assert chip.values(103, 12, 1) == TAB_PB
    assert chip.values(103, 12, ICR) == (TAB_ICR_NEW if new else TAB_ICR_OLD)


def test_timer_b_counts_them_while_cnt_is_high() -> None:
    chip = CiaDriver()
    chip.set_timer(0, A, 9)
    chip.set_timer(2, B, 100)
    chip.write(10, CRB, 0x61)
    chip.write(11, CRA, 0x01)
    assert chip.read(70, 6) == 95
    cia.set_cnt(chip.cpu, 0, False)
    assert chip.read(170, 6) == 95


@pytest.mark.parametrize(("timer", "control"), [(A, 0x21), (B, 0x21)])
def test_a_timer_counts_rising_edges_of_cnt(timer: int, control: int) -> None:
    chip = ready(3, timer)
    chip.write(100, CRA + timer, control)
    assert chip.read(150, 4 + 2 * timer) == 3
    for i, expected in enumerate([2, 1, 0, 3, 2]):
        cia.set_cnt(chip.cpu, 0, False)
        chip.run(160 + 20 * i)
        assert chip.next_event() == NEVER
        cia.set_cnt(chip.cpu, 0, True)
        assert chip.read(170 + 20 * i, 4 + 2 * timer) == expected


def test_toggle_begins_high_at_a_start() -> None:
    chip = ready(9)
    chip.write(100, CRA, 0x06)
    assert chip.read(101, 1) & 0x40 == 0
    chip.write(102, CRA, 0x07)
    assert chip.read(103, 1) & 0x40  # underflows in 113, 123
    assert [chip.peek(c, 1) & 0x40 for c in (112, 113, 122, 123)] == [0x40, 0, 0, 0x40]
    chip.write(125, CRA, 0x05)
    assert chip.read(126, 1) & 0x40 == 0x40, "an input that nothing pulls low"


# Interrupts


@pytest.mark.parametrize(("new", "delay"), [(False, 1), (True, 0)])
@pytest.mark.parametrize("n", [0, 1])
def test_the_line_falls_after_the_underflow(n: int, new: bool, delay: int) -> None:
    chip = ready(10, n=n, new=new)
    chip.write(100, ICR, 0x81)
    chip.write(101, CRA, 0x09)  # underflow in 113
    assert chip.next_event() <= 113 + delay
    chip.run(112 + delay)
    assert not chip.line()
    chip.run(113 + delay)
    assert chip.line() and chip.since() == 113 + delay
    assert chip.next_event() == NEVER
    assert chip.read(120, ICR) == 0x81 and not chip.line()
    assert chip.read(121, ICR) == 0


def test_reading_the_flags_in_the_cycle_of_the_underflow_prevents_the_interrupt() -> None:
    chip = ready(2)
    chip.write(99, ICR, 0x81)
    chip.write(100, CRA, 0x09)
    assert chip.read(104, ICR) == 0x01  # Lorenz, "icr01"
    assert chip.read(108, ICR) == 0x00
    assert not chip.line()


def test_the_older_chip_loses_the_flag_of_timer_b_but_not_its_interrupt() -> None:
    for new, expected in ((False, 0x80), (True, 0x82)):
        chip = ready(10, B, new=new)
        chip.write(100, ICR, 0x82)
        chip.write(101, CRB, 0x09)  # underflow in 113
        assert chip.read(112, ICR) == 0
        assert chip.read(116, ICR) == expected
        chip = ready(10, A, new=new)
        chip.write(100, ICR, 0x81)
        chip.write(101, CRA, 0x09)
        assert chip.read(112, ICR) == 0
        assert chip.read(116, ICR) == 0x81


@pytest.mark.parametrize(("new", "delay"), [(False, 2), (True, 1)])
def test_a_mask_that_is_set_later_makes_an_interrupt(new: bool, delay: int) -> None:
    chip = ready(2, new=new)
    chip.write(100, CRA, 0x09)
    chip.write(120, ICR, 0x81)  # Lorenz, "imr": in the second cycle, not in the first
    chip.run(119 + delay)
    assert not chip.line()
    chip.run(120 + delay)
    assert chip.line() and chip.since() == 120 + delay


def test_a_mask_that_is_cleared_does_not_end_an_interrupt() -> None:
    chip = ready(2)
    chip.write(99, ICR, 0x81)
    chip.write(100, CRA, 0x09)
    chip.write(110, ICR, 0x7F)
    assert chip.line() and chip.read(115, ICR) == 0x81


def test_flags_without_a_mask_are_seen_but_are_no_interrupts() -> None:
    chip = ready(2)
    chip.write(100, ICR, 0x9F)
    chip.write(101, ICR, 0x01)
    chip.write(102, CRA, 0x01)
    assert chip.next_event() == NEVER
    assert chip.read(130, ICR) == 0x01 and not chip.line()


def test_the_line_falls_again_for_each_underflow_after_a_read() -> None:
    chip = ready(100)
    chip.write(100, ICR, 0x81)
    chip.write(101, CRA, 0x01)
    chip.run(105)
    for expected in (204, 305, 406):
        assert chip.next_event() == expected
        chip.run(expected)
        assert chip.line() and chip.since() == expected
        chip.read(expected + 9, ICR)


def test_a_falling_edge_of_flag_is_an_interrupt() -> None:
    chip = CiaDriver()
    chip.write(10, ICR, 0x90)
    cia.flag(chip.cpu, 0, cia.u8(cia.FLAG))
    assert chip.next_event() <= 12
    assert chip.read(15, ICR) == 0x90


# Large steps


def test_a_timer_of_a_whole_second_is_exact_without_a_loop() -> None:
    chip = CiaDriver()
    chip.set_timer(0, A, 9_999)
    chip.set_timer(2, B, 99)
    chip.write(10, ICR, 0x82)
    chip.write(11, CRB, 0x51)
    chip.write(20, CRA, 0x01)
    first = 20 + 2 + 9_999  # the first underflow of A; B's is a cycle after the hundredth
    assert chip.next_event() <= first + 99 * 10_000 + 2
    chip.run(30)
    assert chip.next_event() == first + 99 * 10_000 + 2
    chip.run(first + 99 * 10_000 + 1)
    assert not chip.line()
    chip.run(first + 99 * 10_000 + 2)
    assert chip.line()


def test_a_timer_that_nobody_looks_at_takes_no_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    python = cia.cycle.python

    def counted(cpu: object, n: int) -> None:
        nonlocal steps
        steps += 1
        python(cpu, n)

    monkeypatch.setattr(cia.cycle, "python", counted)
    chip = ready(60)
    chip.write(100, CRA, 0x05)
    chip.run(10_000_000)
    assert steps < 30
    # 61 cycles a period: underflows in 162, 223, ...
    assert chip.peek(10_000_000, 4) == 60 - max((10_000_000 - 162) % 61 - 1, 0)
    assert int(chip.cpu.cia_toggle[0]) == 1 ^ ((10_000_000 - 162) // 61 + 1) & 1


def random_access(random_: random.Random) -> tuple[int, int | None]:
    """A register, and a value to write (None: a read), as programs that try the chip's limits do."""
    register = random_.choice((4, 5, 6, 7, 12, 13, 13, 14, 14, 15, 15, 1))
    if random_.random() < 0.35:
        return register, None
    value = {
        4: random_.choice((0, 1, 2, 3, 7, 20, 80)), 5: random_.choice((0, 0, 0, 1)), 6: random_.choice((0, 1, 2, 9)),
        7: random_.choice((0, 0, 0, 2)), 12: random_.randrange(256), 13: random_.choice((0x81, 0x82, 0x83, 0x8B, 1, 3)),
        14: random_.choice((1, 1, 9, 0x11, 0x19, 0x05, 0x41, 0)), 1: 0,
        15: random_.choice((1, 9, 0x11, 0x41, 0x49, 0x51, 0x61)),
    }  # fmt: skip
    return register, value[register]


@pytest.mark.parametrize("seed", range(6))
def test_large_steps_do_what_single_cycles_do(seed: int) -> None:
    random_ = random.Random(seed)
    n, new = seed % 2, seed % 4 >= 2
    quick, slow = CiaDriver(n, new=new), CiaDriver(n, new=new)
    now = 0
    for _ in range(40):
        now += random_.choice((1, 2, 3, 4, 5, 17, 60, 200))
        event, was = quick.next_event(), quick.line()
        while int(slow.cpu.cia_clock[n]) <= now:
            cia.cycle(slow.cpu, n)
            if slow.line() and not was:
                was = True
                assert slow.since() >= event, "next_event was too late"
        quick.run(now)
        assert bytes(quick.cpu.block) == bytes(slow.cpu.block), (seed, now)
        register, value = random_access(random_)
        for chip in (quick, slow):
            if value is None:
                chip.read(now, register)
            else:
                chip.write(now, register, value)
        assert bytes(quick.cpu.block) == bytes(slow.cpu.block)


@pytest.mark.parametrize("start", range(200, 208))
def test_a_cascade_that_begins_anywhere_in_a_period_loses_no_pulse(start: int) -> None:
    quick, slow = ready(6), ready(6)
    for chip in (quick, slow):
        chip.set_timer(90, B, 500)
        chip.write(100, CRA, 0x01)
        chip.write(start, CRB, 0x41)
    saved = bytes(quick.cpu.block)
    for end in range(start + 20, start + 34):
        quick.cpu.block[:] = saved
        quick.run(end)
        while int(slow.cpu.cia_clock[0]) <= end:
            cia.cycle(slow.cpu, 0)
        assert bytes(quick.cpu.block) == bytes(slow.cpu.block)


# The serial port


def test_the_serial_port_sends_eight_bits_by_timer_a() -> None:
    chip = ready(9)
    chip.write(100, ICR, 0x88)
    chip.write(101, CRA, 0x51)  # underflows in 113, 123, ...
    chip.write(105, 12, 0xA5)
    chip.run(253)
    assert not chip.line() and chip.read(254, ICR) & 8 == 0
    chip.run(113 + 15 * 10 - 1)  # the flag comes between the 15th and the 16th
    assert chip.line() and chip.read(270, ICR) == 0x89
    assert chip.read(400, ICR) == 0x01


def test_a_byte_written_meanwhile_follows() -> None:
    chip = ready(9)
    chip.write(101, CRA, 0x51)
    chip.write(105, 12, 1)
    chip.write(150, 12, 2)
    assert chip.read(270, ICR) & 8
    assert chip.read(410, ICR) & 8 == 0
    assert chip.read(430, ICR) & 8
    assert chip.read(800, ICR) & 8 == 0


def test_the_serial_port_receives_with_edges_of_cnt() -> None:
    chip = CiaDriver()
    chip.write(0, ICR, 0x88)
    for i in range(8):
        chip.cpu.cia_sp[0] = 0b1011_0010 >> 7 - i & 1
        cia.set_cnt(chip.cpu, 0, False)
        chip.run(10 + 2 * i)
        assert not chip.line()
        cia.set_cnt(chip.cpu, 0, True)
    assert chip.read(40, 12) == 0b1011_0010
    assert chip.read(41, ICR) == 0x88
