"""The voices and registers of the SID: the data sheet, measured chips, and a model of single cycles."""

from __future__ import annotations

import random

import pytest
from c64_chips import SidDriver

from polyvisor.adl import u8, u64
from polyvisor.devices.c64 import sid_voice
from polyvisor.devices.c64.sid_voice import RATES

OSC3, ENV3 = 0x1B, 0x1C

# Data sheet, table 2: milliseconds of the attack; those of decay and release are three times as long.
ATTACK_MS = (2, 8, 16, 24, 38, 56, 68, 80, 100, 250, 500, 800, 1000, 3000, 5000, 8000)


@pytest.mark.parametrize("rate", range(16))
def test_attack_and_release_take_the_data_sheets_times(rate: int) -> None:
    sid = SidDriver()
    sid.voice(0, 2, ad=rate << 4, sr=0xF0 | rate, control=0x21)
    cycles = {}
    for level, control in ((0xFF, 0x20), (0, 0x21)):
        steps = 0
        while sid.cpu.sid_envelope[2] != level:
            sid_voice.run_envelope(sid.cpu, 2, u64(RATES[rate]))
            steps += 1
        cycles[level] = steps * int(RATES[rate])
        sid_voice.write_control(sid.cpu, 2, u8(control), u64(0))
    assert cycles[0xFF] == pytest.approx(ATTACK_MS[rate] * 1000, rel=0.15 if rate == 0 else 0.025)
    assert cycles[0] == pytest.approx(3 * ATTACK_MS[rate] * 1000, rel=0.15 if rate == 0 else 0.025)


def test_the_rates_are_those_of_the_table_on_the_chip() -> None:
    """K. Horton's transcript of it: the states of a shift register of 15 bits with which the counter is compared."""
    rows = (
        "111111110000000 100111111111111 110000111111111 111100110011111 111111001111101 010101010001100 "
        "111111111110001 100011111111010 101101111011011 101110111011111 111011011110011 111000100110010 "
        "111111011110001 101110000001000 010110111001000 001101101010111"
    ).split()
    state, steps = 0, {}
    for step in range(0x7FFF):
        steps[f"{state:015b}"[::-1]] = step + 1
        state = state << 1 & 0x7FFF | ~(state >> 14 ^ state >> 13) & 1
    assert [steps[row] for row in rows] == [int(rate) for rate in RATES]


def test_decay_ends_at_the_sustain_level_and_follows_it_down_only() -> None:
    sid = SidDriver()
    sid.voice(0, 2, ad=0x00, sr=0xA0, control=0x21)
    assert sid.read(6_000, ENV3) == 0xAA
    assert sid.read(500_000, ENV3) == 0xAA
    sid.voice(500_000, 2, sr=0xC0)
    assert sid.read(500_005, ENV3) in (0xAA, 0xA9)
    sid.voice(500_005, 2, sr=0x50)
    assert sid.read(520_000, ENV3) == 0x55


def test_a_higher_sustain_level_lets_the_decay_go_on_to_0() -> None:
    sid = SidDriver()
    sid.voice(0, 2, ad=0x00, sr=0x40, control=0x21)
    assert sid.read(10_000, ENV3) == 0x44
    sid.voice(10_000, 2, sr=0x80)
    assert sid.read(30_000, ENV3) == 0
    sid.voice(30_000, 2, sr=0xF0)
    assert sid.read(60_000, ENV3) == 0


def test_a_shorter_period_may_come_too_late() -> None:
    """The delay bug: the counter has passed the new period, and goes through all its states first."""
    sid = SidDriver()
    sid.voice(0, 2, ad=0xF0, sr=0xF0, control=0x21)
    assert sid.read(1_000, ENV3) == 0
    sid.voice(1_000, 2, ad=0x00)
    # The counter is 1 after cycle 0, and comes to 9 again after all of its 32767 states.
    assert [sid.read(32_767 + c, ENV3) for c in (7, 8, 16, 17)] == [0, 1, 1, 2]


class Model:
    """Voices that run cycle by cycle, written down in the simplest way."""

    def __init__(self) -> None:
        self.clock, self.registers = 0, [0] * 32
        self.phase, self.noise, self.waiting = [0] * 3, [0x7F_FFFF] * 3, [0] * 3
        self.rate, self.step, self.level = [0] * 3, [0] * 3, [0] * 3
        self.stage, self.frozen, self.divider = ["release"] * 3, [True] * 3, [1] * 3

    def write(self, register: int, value: int) -> None:
        """Write a register; the test bit is set for short times only."""
        before, self.registers[register] = self.registers[register], value
        if register in (4, 11, 18):
            v = (register - 4) // 7
            if value & ~before & 1:
                self.stage[v], self.frozen[v] = "attack", False
            if before & ~value & 1:
                self.stage[v] = "release"
            if value & ~before & 8:
                self.phase[v] = self.waiting[v] = 0
            if before & ~value & 8:
                self.noise[v] = self.noise[v] << 1 & 0x7F_FFFF | ~(self.noise[v] >> 17) & 1

    def cycle(self) -> None:
        """A clock cycle."""
        self.clock += 1
        rose = [False] * 3
        for v in range(3):
            if self.waiting[v]:
                self.waiting[v] -= 1
                if not self.waiting[v]:
                    bit = (self.noise[v] >> 22 ^ self.noise[v] >> 17) & 1
                    self.noise[v] = self.noise[v] << 1 & 0x7F_FFFF | bit
            if not self.registers[7 * v + 4] & 8:
                old = self.phase[v]
                self.phase[v] = old + self.registers[7 * v] + 256 * self.registers[7 * v + 1] & 0xFF_FFFF
                rose[v] = bool(self.phase[v] & ~old & 0x80_0000)
                if self.phase[v] & ~old & 0x08_0000:
                    self.waiting[v] = 2
            self.envelope(v)
        sync = [bool(self.registers[7 * v + 4] & 2) and rose[(v + 2) % 3] for v in range(3)]
        for v in range(3):
            if sync[v] and not sync[(v + 2) % 3]:
                self.phase[v] = 0

    def envelope(self, v: int) -> None:
        """A clock cycle of an envelope."""
        ad, sr = self.registers[7 * v + 5], self.registers[7 * v + 6]
        wanted = int(RATES[{"attack": ad >> 4, "decay": ad & 15, "release": sr & 15}[self.stage[v]]])
        self.rate[v] = self.rate[v] + 1 if self.rate[v] < 0x7FFF else 1
        if self.rate[v] != wanted:
            return
        self.rate[v] = 0
        if self.stage[v] != "attack":
            self.step[v] += 1
            if self.step[v] < self.divider[v]:
                return
        self.step[v] = 0
        if self.frozen[v]:
            return
        if self.stage[v] == "attack":
            self.level[v] = self.level[v] + 1 & 0xFF
            if self.level[v] == 0xFF:
                self.stage[v] = "decay"
        elif self.stage[v] == "decay" and self.level[v] == (sr >> 4) * 17:
            return
        else:
            self.level[v] = self.level[v] - 1 & 0xFF
        self.divider[v] = {255: 1, 93: 2, 54: 4, 26: 8, 14: 16, 6: 30, 0: 1}.get(self.level[v], self.divider[v])
        self.frozen[v] = self.level[v] == 0


@pytest.mark.parametrize("seed", range(5))
def test_large_steps_do_what_single_cycles_do(seed: int) -> None:
    random_ = random.Random(seed)
    sid, model, now = SidDriver(), Model(), 0
    for _ in range(60):
        now += random_.choice((1, 2, 3, 10, 40, 200, 900))
        voice = 7 * random_.randrange(3)
        register = voice + random_.choice((0, 1, 1, 4, 4, 4, 5, 6))
        value = random_.randrange(256)
        if register - voice in (5, 6):
            value &= random_.choice((0xFF, 0x33, 0xF1, 0x0F))
        sid.run(now)
        while model.clock <= now:
            model.cycle()
        cpu = sid.cpu
        assert [int(p) for p in cpu.sid_phase] == model.phase, now
        assert [int(x) for x in cpu.sid_noise] == model.noise, now
        assert [int(e) for e in cpu.sid_envelope] == model.level, now
        assert [int(r) for r in cpu.sid_rate] == model.rate, now
        sid.write(now, register, value)
        model.write(register, value)


# Waveforms


def test_sawtooth_and_triangle() -> None:
    sid = SidDriver()
    sid.voice(0, 2, frequency=0x1000, control=0x20)  # 4096 cycles a period
    assert [sid.read(c, OSC3) for c in (15, 16, 160, 2048, 4095, 4096, 4112)] == [0, 1, 10, 128, 255, 0, 1]
    sid = SidDriver()
    sid.voice(0, 2, frequency=0x1000, control=0x10)
    assert [sid.read(c, OSC3) for c in (8, 80, 1024, 2047, 2048, 3072, 4095)] == [1, 10, 128, 255, 255, 127, 0]


@pytest.mark.parametrize(("width", "high"), [(0x800, 2048), (0x400, 3072), (0xFFF, 1), (0x000, 4096)])
def test_pulse_is_high_from_its_width_on(width: int, high: int) -> None:
    sid = SidDriver()
    sid.voice(0, 2, frequency=0x1000, width=width, control=0x40)
    edge = 4096 - high
    assert sid.read(edge - 1 if edge else 0, OSC3) == (0 if edge else 0xFF)
    assert sid.read(edge if edge else 1, OSC3) == 0xFF
    assert sid.read(4095, OSC3) == 0xFF
    assert sid.read(4096, OSC3) == (0 if edge else 0xFF)


def test_the_test_bit_holds_the_phase_at_0_and_the_pulse_high() -> None:
    sid = SidDriver()
    sid.voice(0, 2, frequency=0x1000, width=0x800, control=0x20)
    sid.voice(1000, 2, control=0x28)
    assert sid.read(2000, OSC3) == 0
    sid.voice(2000, 2, control=0x48)
    assert sid.read(2001, OSC3) == 0xFF
    sid.voice(2001, 2, control=0x20)
    assert sid.read(2001 + 160, OSC3) == 10


def test_ring_modulation_turns_the_triangle_over() -> None:
    sid = SidDriver()
    sid.voice(0, 1, frequency=0x1000, control=0x20)
    sid.voice(0, 2, frequency=0x0001, control=0x14)
    assert sid.read(1000, OSC3) == 0
    assert sid.read(3000, OSC3) == 0xFF, "voice 2's highest bit is set"
    assert sid.read(4500, OSC3) == 0


def test_of_several_waveforms_comes_what_all_have() -> None:
    sid = SidDriver()
    sid.voice(0, 2, frequency=0x1000, width=0x800, control=0x60)
    assert [sid.read(c, OSC3) for c in (1000, 2048 + 160, 4000)] == [0, 138, 250]


def test_no_waveform_keeps_the_last_value() -> None:
    sid = SidDriver()
    sid.voice(0, 2, frequency=0x1000, control=0x20)
    sid.voice(160, 2, control=0x00)
    assert sid.read(900, OSC3) == 10


@pytest.mark.parametrize(
    ("frequency", "first"),
    [(0xFFFF, 22), (0xC000, 29), (0xAAAA, 34), (0x8000, 45), (0x6000, 61), (0x3222, 120), (0x3000, 125)],
)
def test_noise_begins_as_it_was_measured(frequency: int, first: int) -> None:
    """A. Alstrup Nielsen, table 1: how many samples, one a cycle from the fifth after the start, are $FE."""
    sid = SidDriver()
    sid.voice(0, 2, frequency=frequency, control=0x88)
    sid.voice(40_000, 2, control=0x80)
    samples = [sid.read(40_005 + i, OSC3) for i in range(first + 4)]
    assert samples == [0xFE] * first + [0xFC] * 4


def test_noise_has_the_period_of_its_register() -> None:
    sid = SidDriver()
    value, seen = sid.cpu.sid_noise[2], set()
    for _ in range(1000):
        seen.add(int(value))
        sid_voice.shift_noise(sid.cpu, 2, u64(1))
        value = sid.cpu.sid_noise[2]
    assert len(seen) == 1000


# Registers


def test_paddles_and_what_the_bus_had() -> None:
    sid = SidDriver()
    sid.cpu.sid_paddle_x, sid.cpu.sid_paddle_y = 17, 99
    sid.write(10, 0x18, 0x5A)
    assert sid.read(20, 0x00) == 0x5A
    assert (sid.read(30, 0x19), sid.read(31, 0x1A)) == (17, 99)
    assert sid.read(40, 0x1F) == 99
    assert sid.read(31 + 0x1D00, 0x07) == 99
    assert sid.read(32 + 0x1D00, 0x07) == 0


def test_nobody_listens_and_nothing_is_sampled() -> None:
    sid = SidDriver()
    sid.voice(0, 0, frequency=0x1000, control=0x21)
    sid.run(1_000_000)
    assert sid.cpu.sid_written == 0
