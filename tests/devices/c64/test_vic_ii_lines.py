"""Bad Lines, counters, the bus and interrupts of the VIC-II, against Bauer's article."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from vic_machine import Vic

from polyvisor.adl import u64
from polyvisor.devices.c64 import vic_ii


@pytest.fixture
def vic() -> Iterator[Vic]:
    made = Vic()
    yield made
    made.close()


BAD = list(range(12, 55))


def test_every_eighth_line_of_the_window_is_bad(vic: Vic) -> None:
    for line in range(0x30, 0x40):
        assert vic.bus_low(line) == (BAD if line in (0x33, 0x3B) else []), line


def test_bad_lines_end_with_the_window(vic: Vic) -> None:
    vic.write(0x11, 0x1F)
    vic.jump(0xF6)
    assert [bool(vic.bus_low(line)) for line in (0xF6, 0xF7, 0xF8)] == [False, True, False]
    vic.write(0x11, 0x18)
    vic.jump(0xF8)
    assert vic.bus_low(0xF8) == []


@pytest.mark.parametrize(
    ("line", "cycle", "seen"), [(0x2F, 62, False), (0x30, 40, True), (0x30, 62, True), (0x31, 5, False)]
)
def test_den_is_looked_at_in_line_30_only(vic: Vic, line: int, cycle: int, seen: bool) -> None:
    vic.write(0x11, 0x03)
    vic.cpu.vic_den_seen = 0
    vic.jump(0x2F)
    vic.write_at(line, cycle, 0x11, 0x13)
    vic.write_at(line, cycle + 1, 0x11, 0x03)
    vic.to(0x33, 12)
    assert (vic.cpu.vic_ba_low != 0) == seen


def test_yscroll_0_with_den_makes_line_30_bad_at_once(vic: Vic) -> None:
    vic.write(0x11, 0x00)
    vic.cpu.vic_den_seen = 0
    vic.write_at(0x30, 19, 0x11, 0x10)
    assert vic.bus_low(0x30) == list(range(20, 55))


def test_counters_over_two_rows(vic: Vic) -> None:
    # Between rows of text the counters hold still; RC counts lines, and VC starts each at VCBASE.
    for line in range(0x33, 0x33 + 16):
        row, rc = divmod(line - 0x33, 8)
        vic.to(line, 14)
        assert (vic.cpu.vic_vc, vic.cpu.vic_rc, vic.cpu.vic_vmli) == (40 * row, rc, 0), line
        vic.to(line, 55)
        assert (vic.cpu.vic_vc, vic.cpu.vic_vmli) == (40 * row + 40, 40)
        vic.to(line, 58)
        assert (vic.cpu.vic_vcbase, vic.cpu.vic_rc) == (40 * (row + (rc == 7)), (rc + 1 if rc < 7 else 7))
        assert (vic.cpu.vic_display != 0) == (rc < 7)


def test_all_thousand_entries_are_shown_and_the_frame_starts_anew(vic: Vic) -> None:
    vic.cpu.vic_vcbase, vic.cpu.vic_display, vic.cpu.vic_rc = 960, 1, 6
    vic.jump(0xF9)
    vic.to(0xFA, 58)
    assert (vic.cpu.vic_vcbase, vic.cpu.vic_display) == (1000, 0)
    vic.jump(311)
    vic.to(312, 1)
    assert (vic.cpu.vic_vcbase, vic.cpu.vic_frames, vic.cpu.vic_den_seen) == (0, 1, 0)


def test_fld_puts_off_the_next_row(vic: Vic) -> None:
    # Flexible line distance (3.14.2): YSCROLL runs away from the raster.
    vic.to(0x33, 1)
    for line in range(0x33, 0x37):
        vic.write_at(line, 5, 0x11, 0x18 | (line + 1) & 7)
    vic.to(0x37, 20)
    assert (vic.cpu.vic_bad, vic.cpu.vic_vcbase, vic.cpu.vic_rc) == (1, 0, 0)


def test_linecrunch_skips_a_row(vic: Vic) -> None:
    # Section 3.14.4: a Bad Line that is taken away before cycle 14 leaves RC at 7, and VC goes on by 40 in one line.
    vic.to(0x3A, 58)
    assert (vic.cpu.vic_rc, vic.cpu.vic_vcbase) == (7, 40)
    vic.write_at(0x3B, 13, 0x11, 0x1C)
    vic.to(0x3B, 58)
    assert (vic.cpu.vic_display, vic.cpu.vic_vcbase) == (0, 80)


def test_a_bad_line_that_begins_late_shifts_what_follows(vic: Vic) -> None:
    # DMA delay (3.14.6): the display state begins with the condition, and three c-accesses find nobody on the bus.
    vic.poke(0x0400, *range(1, 41))
    vic.write(0x11, 0x18)
    vic.jump(0x31)
    vic.write_at(0x33, 24, 0x11, 0x1B)
    vic.to(0x33, 24)
    assert vic.cpu.vic_vc == 0
    assert vic.bus_low(0x33) == list(range(25, 55))
    assert vic.cpu.vic_vcbase == 0
    assert [int(entry) & 0xFF for entry in vic.cpu.vic_matrix][1:8] == [0xFF, 0xFF, 0xFF, 5, 6, 7, 8]
    assert vic.cpu.vic_vc == 31


def test_fli_reads_the_matrix_in_every_line(vic: Vic) -> None:
    for line in range(0x34, 0x38):
        vic.write_at(line, 13, 0x11, 0x18 | line & 7)
        vic.to(line, 58)
        assert (vic.cpu.vic_rc, vic.cpu.vic_vcbase) == (1, 0)
        entries = [int(entry) for entry in vic.cpu.vic_matrix][:5]
        assert entries == [0xFFF, 0xFFF, 0, 0, 0]


def test_the_raster_interrupt_is_in_cycle_1_and_in_line_0_in_cycle_2(vic: Vic) -> None:
    vic.write(0x1A, 1)
    vic.write(0x12, 0x32)
    assert vic.event() == (0x32, 1)
    vic.to(0x31, 63)
    assert (vic.read(0x19), vic.cpu.irq_lines) == (0x70, 0)
    vic.to(0x32, 1)
    assert (vic.read(0x19), vic.cpu.irq_lines, vic.read(0x12)) == (0xF1, 2, 0x32)
    assert vic.cpu.irq_since == vic.clock(0x32, 1)
    vic.write(0x19, 0x01)
    assert (vic.read(0x19), vic.cpu.irq_lines) == (0x70, 0)
    vic.jump(311)
    vic.write(0x12, 0)
    vic.to(312, 1)
    assert (vic.read(0x11) & 0x80, vic.read(0x12), vic.cpu.irq_lines) == (0x80, 311 & 0xFF, 0)
    vic.to(312, 2)
    assert (vic.read(0x11) & 0x80, vic.read(0x12), vic.cpu.irq_lines) == (0, 0, 2)


def test_writing_the_present_line_interrupts_once(vic: Vic) -> None:
    vic.write(0x1A, 1)
    vic.write_at(0x31, 20, 0x12, 0x31)
    assert (vic.cpu.irq_lines, vic.cpu.irq_since) == (2, vic.clock(0x31, 21))
    vic.write(0x19, 0xFF)
    vic.write(0x12, 0x31)
    vic.write(0x11, vic.read(0x11) & 0x7F)
    assert vic.cpu.irq_lines == 0


def test_enabling_a_latched_interrupt_raises_it(vic: Vic) -> None:
    vic.write(0x12, 0x31)
    vic.to(0x31, 30)
    assert (vic.read(0x19), vic.cpu.irq_lines) == (0x71, 0)
    vic.write(0x1A, 0xFF)
    assert (vic.read(0x1A), vic.cpu.irq_lines) == (0xFF, 2)
    vic.write(0x1A, 0)
    assert (vic.read(0x19), vic.cpu.irq_lines) == (0x71, 0)


def test_what_is_read_back(vic: Vic) -> None:
    for register in range(0x2F):
        if register not in (0x19, 0x1A):
            vic.write(register, 0x00)
    expected = {0x16: 0xC0, 0x18: 0x01, 0x19: 0x70, 0x1A: 0xF0} | dict.fromkeys(range(0x20, 0x2F), 0xF0)
    expected |= dict.fromkeys(range(0x2F, 0x40), 0xFF) | {0x12: 0x2F}
    assert {r: vic.read(r) for r in range(0x40)} == dict.fromkeys(range(0x11), 0) | {
        r: expected.get(r, 0) for r in range(0x40)
    }
    vic.write(0x3F, 0)
    vic.write(0x40, 0x55)  # register 0 again
    assert (vic.read(0x3F), vic.read(0)) == (0xFF, 0x55)


@pytest.mark.parametrize("sprites", [0x01, 0x80, 0x08, 0xFF, 0x05])
def test_ba_is_low_three_cycles_before_the_pointer(vic: Vic, sprites: int) -> None:
    for sprite in range(8):
        vic.write(2 * sprite + 1, 0x31)
    vic.write(0x15, sprites)
    assert vic.bus_low(0x30) == []
    found = [(cycle - 1, 0x31) for cycle in vic.bus_low(0x31)] + [(cycle - 1 + 63, 0x32) for cycle in vic.bus_low(0x32)]
    # Pointers are read in cycles 58, 60, ... of which those from 64 on are the next line's.
    wanted = set()
    for sprite in range(8):
        if sprites >> sprite & 1:
            wanted |= set(range(57 + 2 * sprite - 3, 57 + 2 * sprite + 2))
    here = {cycle for cycle, line in found if line == 0x31} | {cycle for cycle, line in found if cycle < 63 + 20}
    assert here == wanted


def test_a_sprite_follows_a_bad_line_without_a_gap(vic: Vic) -> None:
    vic.write(0x15, 1)
    vic.write(1, 0x33)
    assert vic.bus_low(0x33) == list(range(12, 60))


@pytest.fixture
def ntsc() -> Iterator[Vic]:
    made = Vic(model=vic_ii.NTSC)
    yield made
    made.close()


def test_ntsc_lines_have_65_cycles(ntsc: Vic) -> None:
    ntsc.write(0x15, 1)
    ntsc.write(1, 0x33)
    assert ntsc.bus_low(0x33) == [*range(12, 55), *range(56, 61)]
    ntsc.jump(262)
    ntsc.to(263, 2)
    assert (ntsc.cpu.vic_line, ntsc.cpu.vic_frames, ntsc.cpu.vic_raster) == (0, 1, 0)


@pytest.mark.parametrize("sprites", [0x01, 0x80, 0x08, 0xFF])
def test_sprites_of_ntsc_have_the_bus_a_cycle_later_than_those_of_pal(ntsc: Vic, sprites: int) -> None:
    for sprite in range(8):
        ntsc.write(2 * sprite + 1, 0x31)
    ntsc.write(0x15, sprites)
    found = set(ntsc.bus_low(0x31)) | {cycle + 65 for cycle in ntsc.bus_low(0x32) if cycle < 20}
    wanted: set[int] = set()
    for sprite in range(8):
        if sprites >> sprite & 1:
            wanted |= set(range(56 + 2 * sprite, 61 + 2 * sprite))
    assert found - set(range(1, 20)) == wanted


def test_the_x_coordinate_of_ntsc_stands_for_a_cycle(ntsc: Vic) -> None:
    found = []
    for cycle in (1, 14, 61, 62, 63, 64, 65):
        ntsc.to(0x31, cycle)
        ntsc.cpu.vic_pen_latched = 0
        vic_ii.light_pen(ntsc.cpu, True)
        vic_ii.light_pen(ntsc.cpu, False)
        found.append(2 * ntsc.read(0x13))
    # The first is that of section 3.4, "First X coo. of a line"; a latch has the upper eight bits of nine.
    assert found == [0x19C, 0x004, 0x17C, 0x184, 0x184, 0x18C, 0x194]


def test_raster_interrupts_of_ntsc(ntsc: Vic) -> None:
    ntsc.write(0x1A, 1)
    ntsc.write(0x12, 0x40)
    assert ntsc.event() == (0x33, 12)  # a Bad Line comes first
    ntsc.write(0x11, 0x0B)
    ntsc.cpu.vic_den_seen = 0
    ntsc.to(0x31, 1)
    assert ntsc.event() == (0x40, 1)
    ntsc.to(0x3F, 65)
    assert ntsc.cpu.irq_lines == 0
    ntsc.to(0x40, 1)
    assert ntsc.cpu.irq_lines == 2 and ntsc.cpu.irq_since == ntsc.clock(0x40, 1)
    ntsc.write(0x19, 1)
    ntsc.write(0x11, 0x8B)
    ntsc.write(0x12, 262 & 0xFF)
    assert ntsc.event() == (262, 1)
    ntsc.write(0x12, 263 & 0xFF)  # there is none
    assert vic_ii.next_event(ntsc.cpu) == 2**64 - 1


@pytest.mark.parametrize("sprites", [0, 0x81])
def test_events_are_never_late_and_seldom_early(vic: Vic, sprites: int) -> None:
    vic.write(0x1A, 1)
    vic.write(0x12, 0x35)
    vic.write(0x15, sprites)
    vic.write(1, 0x31)
    vic.write(15, 0x32)
    early = 0
    for line in range(0x30, 0x3D):
        for cycle in range(1, 64):
            before = int(vic.cpu.vic_ba_low), int(vic.cpu.irq_lines)
            clock, at = vic.clock(line, cycle), int(vic_ii.next_event(vic.cpu))
            assert at >= clock
            vic_ii.run(vic.cpu, u64(clock + 1))
            changed = (int(vic.cpu.vic_ba_low), int(vic.cpu.irq_lines)) != before
            assert at == clock if changed else True, (line, cycle)
            early += at == clock and not changed
    assert early <= (2 if not sprites else 40)


@pytest.mark.parametrize(("sprites", "steps"), [(0, 3), (0x01, 6), (0xFF, 8)])
def test_a_cpu_that_waits_can_wait_for_the_next_event(vic: Vic, sprites: int, steps: int) -> None:
    # While BA is low it stays so until then: a board need not look at each cycle.
    for sprite in range(8):
        vic.write(2 * sprite + 1, 0x33)
    vic.write(0x15, sprites)
    vic.to(0x33, 12)
    low, taken = {12}, 1
    while vic.cpu.vic_clock < vic.clock(0x34, 20):
        clock, at, was_low = int(vic.cpu.vic_clock), int(vic_ii.next_event(vic.cpu)), vic.cpu.vic_ba_low != 0
        vic_ii.run(vic.cpu, u64(at + 1))
        low |= {n - vic.clock(0x33, 1) + 1 for n in range(clock, at) if was_low}
        low |= {at - vic.clock(0x33, 1) + 1} if vic.cpu.vic_ba_low != 0 else set()
        taken += 1
    wanted = set(range(12, 55))
    for sprite in range(8):
        if sprites >> sprite & 1:
            wanted |= set(range(55 + 2 * sprite, 60 + 2 * sprite))
    assert {cycle for cycle in low if cycle < 83} == wanted
    assert taken <= steps


@pytest.mark.parametrize("seed", range(6))
def test_events_are_never_late_whatever_is_written(vic: Vic, seed: int) -> None:
    rng = random.Random(seed)
    vic.jump(rng.choice((0x2E, 0xF4, 308)))
    registers = (*range(0x10), 0x11, 0x11, 0x12, 0x15, 0x17, 0x19, 0x1A, 0x1A, 0x1D, 0x1E, 0x1F)
    vic.memory.write(0x0400, rng.randbytes(0x4000))
    for _ in range(700):
        if rng.random() < 0.04:
            register = rng.choice(registers)
            value = rng.randrange(256)
            if register < 0x10:
                value = (int(vic.cpu.vic_raster) + rng.randrange(4)) & 0xFF if register & 1 else rng.randrange(20, 200)
            elif register == 0x11:
                value = value & 0x07 | rng.choice((0x10, 0x30, 0x90, 0x00))
            elif register == 0x12:
                value = (int(vic.cpu.vic_raster) + rng.randrange(3)) & 0xFF
            vic.write(register, value)
            if register in (0x1E, 0x1F):
                vic.read(register)
        before = int(vic.cpu.vic_ba_low), int(vic.cpu.irq_lines)
        clock, at = int(vic.cpu.vic_clock), int(vic_ii.next_event(vic.cpu))
        assert at >= clock
        vic_ii.run(vic.cpu, u64(clock + 1))
        if (int(vic.cpu.vic_ba_low), int(vic.cpu.irq_lines)) != before:
            assert at == clock, (hex(vic.cpu.vic_line), vic.cpu.vic_cycle)


def test_nothing_happens_on_a_dark_screen(vic: Vic) -> None:
    vic.write(0x11, 0x0B)
    vic.jump(0x100)
    assert vic_ii.next_event(vic.cpu) == 2**64 - 1


def test_the_light_pen_latches_once_a_frame(vic: Vic) -> None:
    vic.write(0x1A, 8)
    vic.to(0x31, 30)
    vic_ii.light_pen(vic.cpu, True)
    # Cycle 14 begins at X = 4 (3.6.3).
    assert (vic.read(0x13), vic.read(0x14), vic.cpu.irq_lines) == ((4 + 16 * 8) // 2, 0x31, 2)
    vic_ii.light_pen(vic.cpu, False)
    vic.write(0x19, 8)
    vic.to(0x31, 40)
    vic_ii.light_pen(vic.cpu, True)
    assert (vic.read(0x13), vic.read(0x19)) == ((4 + 16 * 8) // 2, 0x70)
    vic_ii.light_pen(vic.cpu, False)
    vic.jump(311)
    vic.to(312, 1)
    assert vic.cpu.vic_pen_latched == 0
