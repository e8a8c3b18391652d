"""What a link does to the frames on it: loss, delay, bandwidth, duplicates, reordering, damage."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields

from .frame import Frame, FrameError
from .offload import adapted, segments

# What a frame takes on a wire beside its bytes: preamble, check sequence, gap (IEEE 802.3, 3 and 4.4.2).
_WIRE_OVERHEAD = 24
_PROBABILITIES = ("loss", "duplicate", "reorder", "corrupt")


@dataclass(frozen=True)
class Conditions:
    """One direction of a link. Times are in seconds, the first four are probabilities for each frame.

    ``loss``: it is gone; ``duplicate``: it comes twice; ``corrupt``: one bit of it is wrong; ``reorder``: it comes
    ``reorder_delay`` later than it should, and others pass it. ``delay``, up to ``jitter`` more or less, keeps the
    order. ``bandwidth``, in bits per second, sends one frame after the other; 0 is no limit. When ``queue``
    frames are on the way, more are dropped.
    """

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    jitter: float = 0.0
    reorder_delay: float = 0.01
    bandwidth: float = 0.0
    queue: int = 1000

    def __post_init__(self) -> None:
        """Raises ValueError for what is impossible."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"{field.name} {value!r}: must not be negative, nor infinite")
            if field.name in _PROBABILITIES and value > 1:
                raise ValueError(f"{field.name} {value!r}: a probability is at most 1")
        if self.jitter > self.delay:
            raise ValueError(f"jitter {self.jitter!r}: is more than the delay, {self.delay!r}")
        if self.queue < 1:
            raise ValueError("queue 0: no frame would pass")

    @property
    def by_frame(self) -> bool:
        """Whether frames differ in what happens to them; then each segment of a large one is a frame of its own."""
        return bool(self.loss or self.duplicate or self.reorder or self.corrupt)


class Wire:
    """One direction of a link, under ``conditions`` that may change at any time.

    ``seed`` decides what happens to each frame: the same frames under the same conditions fare the same.
    """

    def __init__(self, seed: str) -> None:
        self.conditions: Conditions | None = None
        """None: frames pass at once."""
        self.lost = 0
        """Frames that were dropped: by chance, or because too many were on the way."""
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._free_at = 0.0
        self._last_at = 0.0
        self._waiting = 0

    def reseed(self, seed: str) -> None:
        """Let what happens to frames follow from another seed from now on."""
        self._random, self._lock = random.Random(seed), threading.Lock()

    def plan(self, frame: Frame, now: float) -> Sequence[tuple[float, Frame]]:
        """What arrives for a frame that is sent at the time ``now``, and when; a time of 0 is at once.

        A frame with a time has bytes of its own, and :meth:`arrived` must be called when it is there.
        """
        conditions = self.conditions
        if conditions is None:
            return ((0.0, frame),)
        try:
            parts = segments(frame) if conditions.by_frame else (frame,)
        except FrameError:
            self.lost += 1
            return ()
        found: list[tuple[float, Frame]] = []
        with self._lock:
            for part in parts:
                self._send(part, now, conditions, found)
        return found

    def arrived(self) -> None:
        """A frame that waited is there."""
        with self._lock:
            self._waiting -= 1

    def _send(self, frame: Frame, now: float, conditions: Conditions, found: list[tuple[float, Frame]]) -> None:
        # Always the same number of draws, so that one probability's change does not change what others decide.
        draw = self._random.random
        loss, duplicate, reorder, corrupt, jitter = draw(), draw(), draw(), draw(), draw()
        if loss < conditions.loss:
            self.lost += 1
            return
        timed = bool(conditions.delay or conditions.bandwidth)
        copies = 2 if duplicate < conditions.duplicate else 1
        if corrupt < conditions.corrupt:
            frame = self._damaged(frame)
        for _ in range(copies):
            late = reorder < conditions.reorder
            # What was sent under earlier conditions is not overtaken.
            if not timed and not late and self._last_at <= now:
                found.append((0.0, frame))
                continue
            if self._waiting >= conditions.queue:
                self.lost += 1
                continue
            at = now
            if conditions.bandwidth:
                self._free_at = max(now, self._free_at) + (frame.length + _WIRE_OVERHEAD) * 8 / conditions.bandwidth
                at = self._free_at
            at += conditions.delay + conditions.jitter * (2 * jitter - 1)
            if late:
                at += conditions.reorder_delay
            else:
                at = self._last_at = max(at, self._last_at)
            self._waiting += 1
            found.append((at, frame.kept()))

    def _damaged(self, frame: Frame) -> Frame:
        """One bit behind the addresses is wrong; its checksum was right before."""
        whole = adapted(frame, 0)[0]
        data = bytearray(bytes(whole))
        if len(data) > 14:
            bit = self._random.randrange(14 * 8, len(data) * 8)
            data[bit >> 3] ^= 1 << (bit & 7)
        return Frame(bytes(data))
