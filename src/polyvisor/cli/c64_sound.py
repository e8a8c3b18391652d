"""What a Commodore 64 that is played sounds like, on the host's sound card."""

from __future__ import annotations

from array import array
from typing import Protocol

from polyvisor.vm.sound_card import SAMPLE

# Seconds of sound that wait when a frame has just been added: the frame itself (20 ms), what the card takes at once
# (12 ms), and what a host that is busy with something else may come late. It becomes more with each gap, up to a limit.
_AHEAD, _MORE, _AT_MOST = 0.045, 0.015, 0.12
# More than so many seconds, and what comes is left out: the card has stood still, or the machine was too fast.
_MOST = 0.25
# The level is known to what the card takes at once, so it is averaged over some frames, and the machine follows
# slowly. The mean must be the faster of the two, or they would swing.
_AVERAGE, _FOLLOW = 1 / 32, 1 / 160
# Samples from silence to sound and back, some 5 ms, without which there is a click.
_RAMP = 256


class Paced(Protocol):
    """What is asked of a machine's pace."""

    def later(self, seconds: float) -> None:
        """Let the machine be so much later from now on."""

    def begin(self) -> None:
        """Begin anew: time that was lost stays so."""


class Card(Protocol):
    """What is asked of a sound card; see `polyvisor.vm.sound_card.SoundCard`."""

    rate: int

    @property
    def waiting(self) -> int:
        """Samples that the card has not taken yet."""

    def play(self, samples: bytes) -> None:
        """Put samples at the end of the queue."""

    def close(self) -> None:
        """Give the card back."""


class Speaker:
    """Passes samples to the card, frame by frame, and has the machine follow the card's clock.

    Two clocks are never the same: a card that plays 44,100 samples in what the host calls a second plays 44,095 in
    another. So one must follow. The card plays as it is, and the machine's pace is moved by what the queue is too long
    or too short, some microseconds a frame: nothing is resampled, pitch and pictures are even. The machine does not
    wait for the card itself, because that takes samples by the 12 ms, and pictures would come as unevenly.

    Where the queue ran empty there is silence, then the sound goes on softly with a full one: one gap, no crackling.
    What the machine was late by is not made up for then, or it would come all at once; and the queue is kept longer, as
    a host that was late will be late again. After a rest (`rest`) it is no gap that the queue is empty.
    """

    def __init__(self, card: Card, pace: Paced) -> None:
        self._card, self._pace = card, pace
        self._ahead = _AHEAD
        self._most = round(_MOST * card.rate)
        self._heard: list[bytes] = []
        self._mean = 0.0
        self._last = 0
        self._soft = self._rested = True
        self.gaps = 0
        """How often the queue ran empty."""

    def hear(self, samples: bytes) -> None:
        """Take what the machine has made; for `C64.listen`."""
        self._heard.append(samples)

    def frame(self) -> None:
        """Play what was heard in a frame, or about that."""
        samples, self._heard = b"".join(self._heard), []
        waiting = self._card.waiting
        count = len(samples) // SAMPLE
        if count == 0:
            return
        if waiting + count > self._most:
            self._soft = True
            return
        if waiting == 0:
            if not self._rested:
                self.gaps += 1
                self._ahead = min(self._ahead + _MORE, _AT_MOST)
            self._soft, self._mean = True, 0.0
            self._pace.begin()
            waiting = max(round(self._ahead * self._card.rate) - count, 0)
            self._card.play(bytes(SAMPLE * waiting))
        if self._soft:
            samples = _ramped(samples)
        self._soft = self._rested = False
        self._card.play(samples)
        self._last = memoryview(samples).cast("h")[-1]
        self._mean += ((waiting + count) / self._card.rate - self._ahead - self._mean) * _AVERAGE
        self._pace.later(self._mean * _FOLLOW)

    def rest(self) -> None:
        """The machine will stand still for a while: sound ends softly."""
        self._heard.clear()
        if self._last and self._card.waiting:
            self._card.play(array("h", (self._last * left // _RAMP for left in range(_RAMP - 1, -1, -1))).tobytes())
        self._last, self._soft, self._rested = 0, True, True

    def close(self) -> None:
        """End softly, and give the card back."""
        self.rest()
        self._card.close()


def _ramped(samples: bytes) -> bytes:
    """The same, from silence to all of it."""
    made = array("h", samples)
    for at in range(min(_RAMP, len(made))):
        made[at] = made[at] * at // _RAMP
    return made.tobytes()
