"""What is heard of the SID: samples, filter, volume, and the WAV file."""

from __future__ import annotations

import cmath
import itertools
import math
import wave
from array import array
from pathlib import Path

import pytest
from c64_chips import SidDriver

from polyvisor.devices.c64.sid_sound import RING, RING_SAMPLES
from polyvisor.devices.c64.wav import WavFile
from polyvisor.engine.memory import Memory

CLOCK = 985_248
RATE = 44_100


class Listener(SidDriver):
    """A SID that is listened to, with its ring in memory."""

    def __init__(self, model: int = 0) -> None:
        self.memory = Memory()
        self.memory.add_ram(RING, 2 * RING_SAMPLES)
        super().__init__(self.memory)
        self.cpu.sid_listening = 1
        self.cpu.sid_model = model
        self.now = 0

    def hear(self, samples: int) -> list[int]:
        """The next samples."""
        first = int(self.cpu.sid_written)
        while int(self.cpu.sid_written) < first + samples:
            self.now += 20
            self.run(self.now)
        data = self.memory.read(RING + 2 * (first % RING_SAMPLES), 2 * samples)
        return list(array("h", data))


def tone(sid: Listener, hertz: float, control: int = 0x11, v: int = 0) -> float:
    """Let a voice play at full volume; gives the frequency it has."""
    frequency = round(hertz * (1 << 24) / CLOCK)
    sid.voice(0, v, frequency=frequency, ad=0x00, sr=0xF0, control=control)
    return frequency * CLOCK / (1 << 24)


def amplitude(samples: list[int], hertz: float) -> float:
    """Of the part of that frequency; the samples are cut to whole periods."""
    period = RATE / hertz
    count = int(int(len(samples) / period) * period)
    total = sum(s * cmath.exp(-2j * math.pi * hertz * i / RATE) for i, s in enumerate(samples[:count]))
    return 2 * abs(total) / count


def test_samples_come_at_their_rate() -> None:
    sid = Listener()
    sid.run(CLOCK // 100)
    assert sid.cpu.sid_written == RATE // 100
    sid.cpu.sid_listening = 0
    sid.run(CLOCK // 50)
    assert sid.cpu.sid_written == RATE // 100


def test_a_tone_has_its_frequency_and_amplitude() -> None:
    sid = Listener(model=1)
    sid.write(0, 0x18, 0x0F)
    hertz = tone(sid, 1000)
    sid.hear(150)  # the attack
    samples = sid.hear(450)
    rising = [i for i, (a, b) in enumerate(itertools.pairwise(samples)) if a < 0 <= b]
    assert (rising[-1] - rising[0]) / (len(rising) - 1) == pytest.approx(RATE / hertz, rel=0.02)
    # A triangle of 2048 * 15 / 4, whose first harmonic is 8 / pi^2 of that.
    assert amplitude(samples, hertz) == pytest.approx(2040 * 15 / 4 * 8 / math.pi**2, rel=0.05)


def test_volume_and_the_switch_of_voice_3() -> None:
    loud = {}
    for mode in (0x0F, 0x05, 0x8F):
        sid = Listener(model=1)
        sid.write(0, 0x18, mode)
        hertz = tone(sid, 1500, v=2)
        sid.hear(110)
        loud[mode] = amplitude(sid.hear(120), hertz)
    assert loud[0x05] == pytest.approx(loud[0x0F] / 3, rel=0.02)
    assert loud[0x8F] == 0


def response(kind: int, ratio: float, q: float) -> float:
    """The gain of an ideal filter of the second order at ``ratio`` times its frequency."""
    s = 1j * ratio
    numerator = {0x10: 1, 0x20: s, 0x40: s * s, 0x50: 1 + s * s}[kind]
    return abs(numerator / (s * s + s / q + 1))


@pytest.mark.parametrize(
    ("kind", "hertz", "resonance"),
    [
        *((0x10, 700, 0), (0x10, 3600, 1), (0x10, 1600, 15), (0x20, 1600, 0), (0x20, 400, 15), (0x40, 800, 3)),
        (0x50, 3200, 7),
    ],
)
def test_the_filters_gain(kind: int, hertz: int, resonance: int) -> None:
    model = resonance % 2
    register = (1024, 268)[model]  # both are 1600 Hz
    gain = {}
    for filtered in (0, 1):
        sid = Listener(model)
        sid.write(0, 0x15, register & 7)
        sid.write(0, 0x16, register >> 3)
        sid.write(0, 0x17, resonance << 4 | filtered)
        sid.write(0, 0x18, 0x08 | (kind if filtered else 0))
        exact = tone(sid, hertz)
        sid.hear(120)
        gain[filtered] = amplitude(sid.hear(round(RATE / exact * max(4, hertz // 200)) + 1), exact)
    q = 256 / (362 - 14 * resonance)
    assert gain[1] / gain[0] == pytest.approx(response(kind, hertz / 1600, q), rel=0.12)


@pytest.mark.parametrize("model", [0, 1])
def test_the_filter_is_stable_at_its_limits(model: int) -> None:
    sid = Listener(model)
    for register, value in ((0x15, 7), (0x16, 0xFF), (0x17, 0xF7), (0x18, 0x7F)):
        sid.write(0, register, value)
    for v in range(3):
        tone(sid, 3000 + 500 * v, 0x81, v)
    sid.hear(400)
    assert abs(int(sid.cpu.sid_low)) < 40_000 and abs(int(sid.cpu.sid_band)) < 40_000
    assert len(set(sid.hear(50))) > 10


def test_a_change_of_volume_is_heard_on_the_older_chip() -> None:
    steps = []
    for model in (0, 1):
        sid = Listener(model)
        sid.voice(0, 0, control=0x20)
        before = sid.hear(20)[-1]
        sid.write(sid.now, 0x18, 0x0F)
        steps.append(sid.hear(20)[-1] - before)
    assert steps[0] > 5000 and abs(steps[1]) < 100


def test_the_ring_and_the_wav_file(tmp_path: Path) -> None:
    sid = Listener()
    path = tmp_path / "sound.wav"
    with WavFile(path, RATE, sid.memory.read) as file:
        sid.memory.write(RING, array("h", range(RING_SAMPLES)).tobytes())
        assert file.take(10) == 0
        assert file.take(RING_SAMPLES + 5) == 0
        assert file.take(3 * RING_SAMPLES) == RING_SAMPLES - 5
    with wave.open(str(path)) as wav:
        assert (wav.getnchannels(), wav.getsampwidth(), wav.getframerate()) == (1, 2, RATE)
        found = list(array("h", wav.readframes(1 << 20)))
    everything = list(range(RING_SAMPLES))
    assert found[:10] == everything[:10]
    assert found[10 : RING_SAMPLES + 5] == everything[10:] + everything[:5]
    assert found[RING_SAMPLES + 5 :] == everything
