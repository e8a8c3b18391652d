"""What a machine's network device is plugged into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

from .frame import Frame, FrameError
from .offload import adapted

Tap = Callable[[Frame, bool], None]
"""Told of each frame at a port, and whether the machine sent it (else it is for the machine)."""


def _nobody(frame: Frame) -> None:
    """Where frames go while nothing is plugged in."""


class Port(ABC):
    """A place to plug a machine in. All calls may come from any thread.

    The machine's side calls :meth:`send`, and sets ``receive`` to what takes frames for it. Both are called on whatever
    thread has the frame, mostly that of the sender's hart, and neither may be called with a lock held that the other
    one takes: a frame can be answered before ``send`` returns, and two machines can send to each other at once.
    """

    takes = 0
    """What may be left to do on frames given to :meth:`send`; on others it is done before."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.receive: Callable[[Frame], None] = _nobody
        """Set by the machine's side: takes a frame. It does not raise, and does not block for long."""
        self.link_changed: Callable[[bool], None] = lambda up: None
        """Set by the machine's side: told when the link goes up or down."""
        self.up = True
        """Whether there is a link."""
        self.sent = 0
        """Frames that the machine sent."""
        self.received = 0
        """Frames that were delivered to it."""
        self.dropped = 0
        """Frames that were lost here, whatever the reason."""
        self._taps: tuple[Tap, ...] = ()

    def send(self, frame: Frame) -> None:
        """Take a frame from the machine. It may be dropped; nothing is raised for what is in it."""
        self.sent += 1
        if not self.up:
            self.dropped += 1
            return
        if self._taps:
            self._tap(frame, True)
        if frame.needs & ~self.takes:
            try:
                for part in adapted(frame, self.takes):
                    self._send(part)
            except FrameError:
                self.dropped += 1
        else:
            self._send(frame)

    @abstractmethod
    def _send(self, frame: Frame) -> None:
        """Take a frame that needs no more than ``takes``."""

    def deliver(self, frame: Frame) -> None:
        """For the network's side: give a frame to the machine."""
        if not self.up:
            self.dropped += 1
            return
        self.received += 1
        if self._taps:
            self._tap(frame, False)
        self.receive(frame)

    def set_link(self, up: bool) -> None:
        """Pull the cable out, or plug it in again; the machine notices."""
        if up != self.up:
            self.up = up
            self.link_changed(up)

    def add_tap(self, tap: Tap) -> None:
        """Let ``tap`` see all frames from now on."""
        self._taps = (*self._taps, tap)

    def remove_tap(self, tap: Tap) -> None:
        """Let ``tap`` see no more frames; nothing happens if it does not."""
        self._taps = tuple(each for each in self._taps if each != tap)

    def _tap(self, frame: Frame, outgoing: bool) -> None:
        for tap in self._taps:
            tap(frame, outgoing)

    def close(self) -> None:
        """Unplug the machine for good. May be repeated."""
        self.receive = _nobody
        self.link_changed = lambda up: None
