"""The sound of a Commodore 64 that is played: what reaches the card, and how the machine follows the card's clock."""

from __future__ import annotations

import random
from array import array
from itertools import pairwise
from pathlib import Path

import pytest
from test_run import run
from test_run_c64 import prg

from polyvisor.boards.c64.model import NTSC, PAL, Model
from polyvisor.cli.c64_play import Pace
from polyvisor.cli.c64_sound import Speaker

RATE = 44_100
AT_ONCE = 512
# A tone of voice 1, for ever.
TONE = """
 lda #15
 sta $d418
 lda #$f0
 sta $d406
 lda #$11
 sta $d401
 lda #$11
 sta $d404
1: jmp 1b
"""


class Host:
    """A host's clock, and a card with a clock of its own, which takes so many samples at once."""

    def __init__(self, speed: float = 1.0) -> None:
        self.rate = RATE
        self.now = 0.0
        self.queue = array("h")
        self.played = array("h")
        self._speed = speed
        self._taken = 0
        self.stands = False

    def wait(self, seconds: float) -> None:
        self.now += seconds
        while not self.stands and self._taken + AT_ONCE <= self.now * RATE * self._speed:
            self._taken += AT_ONCE
            part = self.queue[:AT_ONCE]
            del self.queue[:AT_ONCE]
            self.played.extend(part)
            self.played.extend([0] * (AT_ONCE - len(part)))

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def play(self, samples: bytes) -> None:
        self.queue.frombytes(samples)

    def close(self) -> None:
        self.queue = array("h")


class Played:
    """A machine that only counts, and makes a sawtooth: each sample is the one before and 1."""

    def __init__(self, host: Host, model: Model = PAL) -> None:
        self.host, self.model = host, model
        self.pace = Pace(1.0, model.clock, lambda: host.now)
        self.speaker = Speaker(host, self.pace)
        self.frames = self.made = 0

    def frame(self, late: float = 0.0) -> None:
        """Run for a frame, and wait as long as the pace says."""
        self.frames += 1
        elapsed = self.frames * self.model.frame
        made = elapsed * RATE // self.model.clock
        self.speaker.hear(array("h", [8000 + n % 20_000 for n in range(self.made, made)]).tobytes())
        self.made = made
        self.speaker.frame()
        self.host.wait(max(self.pace.left(elapsed), 0.0) + late)


@pytest.mark.parametrize("model", [PAL, NTSC])
@pytest.mark.parametrize("speed", [1.0, 1.002, 0.998])
def test_the_machine_follows_the_card(model: Model, speed: float) -> None:
    rng = random.Random(1)
    host = Host(speed)
    played = Played(host, model)
    levels = []
    for _ in range(7000):
        played.frame(late=rng.uniform(0, 0.004))
        levels.append(host.waiting)
    assert played.speaker.gaps == 0
    # Two minutes in which the clocks come to be apart by 0.25 seconds: what waits stays the same.
    mean = sum(levels[2000:]) / len(levels[2000:]) / RATE
    assert 0.015 < mean < 0.045 and max(levels[500:]) < 0.08 * RATE
    begin = next(at for at, sample in enumerate(host.played) if sample)
    sound = host.played[begin + 300 :]
    assert all(b == a + 1 or (a, b) == (27_999, 8000) for a, b in pairwise(sound))


@pytest.mark.parametrize("late", [0.15, 0.4])
def test_a_machine_that_came_late_leaves_one_gap_and_goes_on_softly(late: float) -> None:
    host = Host()
    played = Played(host)
    for _ in range(200):
        played.frame()
    played.frame(late=late)
    before, most = len(host.played), 0
    for _ in range(200):
        played.frame()
        most = max(most, host.waiting)
    assert played.speaker.gaps == 1
    after = host.played[before:]
    begin = next(at for at, sample in enumerate(after) if sample)
    assert all(after[begin:]), "there is another gap"
    assert max(after[begin : begin + 30]) < 4000, "it begins at once"
    assert most < 0.08 * RATE, "what was missed came all at once"


def test_a_host_that_is_often_late_has_more_waiting_and_no_more_gaps() -> None:
    rng = random.Random(2)
    host = Host()
    played = Played(host)
    for _ in range(3000):
        played.frame(late=0.07 if rng.random() < 0.02 else 0.0)
    gaps = played.speaker.gaps
    assert 1 <= gaps <= 4
    for _ in range(3000):
        played.frame(late=0.07 if rng.random() < 0.02 else 0.0)
    assert played.speaker.gaps <= gaps + 3
    for _ in range(100):  # there is a limit to what it makes up for
        played.frame(late=0.5)
    assert host.waiting < 0.13 * RATE


def test_a_card_that_stands_still_is_not_given_more_and_more() -> None:
    host = Host()
    played = Played(host)
    for _ in range(100):
        played.frame()
    host.stands = True
    for _ in range(500):
        played.frame()
    assert host.waiting <= 0.25 * RATE
    host.stands = False
    host._taken = int(host.now * RATE)
    for _ in range(2000):
        played.frame()
    assert 0.01 * RATE < host.waiting < 0.06 * RATE


def test_a_rest_ends_and_begins_softly() -> None:
    host = Host()
    played = Played(host)
    for _ in range(100):
        played.frame()
    played.speaker.rest()
    tail = host.queue[-256:]
    assert tail[0] > 7000 and tail[-1] == 0 and all(a >= b for a, b in pairwise(tail))
    waiting = host.waiting
    played.speaker.rest()
    assert host.waiting == waiting
    host.wait(0.02)
    played.frame()
    assert host.queue[-880] < 200
    played.speaker.rest()
    host.wait(1)
    played.frame()
    assert played.speaker.gaps == 0 and host.waiting > 0.03 * RATE and host.queue[0] == 0
    played.speaker.hear(b"\1\1")
    played.speaker.close()
    assert host.waiting == 0


# The command


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What SDL's disk driver plays is in this file."""
    pytest.importorskip("pygame", exc_type=ImportError)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "disk")
    monkeypatch.setenv("SDL_DISKAUDIOFILE", str(tmp_path / "played"))
    return tmp_path / "played"


def test_a_window_is_heard(tmp_path: Path, disk: Path) -> None:
    done = run("c64", prg(tmp_path / "tone.prg", TONE), "--window", "--seconds", "1")
    assert (done.returncode, done.stderr) == (0, b"")
    played = array("h", disk.read_bytes())
    loud = [sample for sample in played if abs(sample) > 500]
    assert 0.5 * RATE < len(loud) < 1.1 * RATE and max(loud) > 4000 and min(loud) < -2000


@pytest.mark.parametrize("arguments", [["--no-speaker"], ["--speed", "max"]])
def test_it_is_silent_if_that_is_wanted_or_it_is_fast(tmp_path: Path, disk: Path, arguments: list[str]) -> None:
    program = prg(tmp_path / "tone.prg", TONE)
    done = run("c64", program, "--window", "--seconds", "0.5", *arguments)
    assert (done.returncode, done.stderr) == (0, b"") and not disk.exists()


def test_it_is_heard_without_a_window_if_that_is_wanted(tmp_path: Path, disk: Path) -> None:
    program = prg(tmp_path / "tone.prg", TONE)
    sound = tmp_path / "a.wav"
    arguments = ["--headless", "--seconds", "0.5", "--speed", "1", "--sound", str(sound)]
    assert run("c64", program, *arguments).returncode == 0 and not disk.exists()
    assert run("c64", program, *arguments, "--speaker").returncode == 0
    assert max(array("h", disk.read_bytes())) > 4000 and sound.stat().st_size > 40_000
    done = run("c64", program, *arguments[:3], "--speaker")
    assert done.returncode == 2 and b"--speaker goes with the machine's own speed" in done.stderr


def test_without_a_sound_card_it_goes_on_and_says_so(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_AUDIODRIVER", "nothing")
    done = run("c64", "--window", "--seconds", "0.2")
    assert done.returncode == 0
    assert done.stderr == b"polyvisor: no sound: Audio target 'nothing' not available; the machine is silent\n"
