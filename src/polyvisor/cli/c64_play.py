"""Playing a Commodore 64: in the machine's own time or faster, in the terminal, in a window, or with nobody looking."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from polyvisor.boards.c64.machine import Stop
from polyvisor.devices.c64.keyboard import HOST_KEYS
from polyvisor.devices.c64.palette import COLOURS
from polyvisor.devices.display import BYTES_PER_PIXEL, Display, Rect
from polyvisor.devices.input import EV_KEY, Event, Keyboard
from polyvisor.devices.keys import KEYS
from polyvisor.vm.c64.debugger import C64Target
from polyvisor.vm.c64.machine import C64
from polyvisor.vm.window import Window

from .c64_sound import Speaker
from .c64_terminal import ENTER, LEAVE, Screen, Typist, cells_of, strokes
from .terminal import ESCAPE, raw_terminal

PICTURES = 25
"""Pictures a second in the terminal."""
# Behind by more than this, in seconds, time that was lost stays so.
_LATEST = 0.25
_BACK = 5
# Seconds to wait, at most and in a window, where the machine stands still.
_SHORT, _SOON = 0.05, 0.01
# A chain of bytes that a key sends comes at once; one that is cut is completed within this.
_AT_ONCE = 0.005
HELP = f"""
Ctrl-A x   quit
Ctrl-A r   reset
Ctrl-A b   back {_BACK} seconds in time
Ctrl-A p   pause, and go on
Ctrl-A s   save the picture as screenshot-1.png, and so on
Ctrl-A h   this help
Ctrl-A a   CTRL A of the machine
Esc is RUN/STOP, page up RESTORE, Tab the C= key; F1 to F8, home, insert and delete are what they say.
"""


class Pace:
    """Keeps the machine's time in step with the host's, without adding up what single waits are off by.

    ``speed``: the machine's seconds in one of the host's; None: as fast as it goes. ``clock``: its cycles a second.
    """

    def __init__(self, speed: float | None, clock: int, now: Callable[[], float] = time.monotonic) -> None:
        self._speed, self._clock, self._now = speed, clock, now
        self._began: tuple[float, int] | None = None

    def left(self, elapsed: int) -> float:
        """Seconds that the host is to wait where the machine has come to ``elapsed`` cycles; below 0: it is late."""
        if self._speed is None:
            return 0.0
        now = self._now()
        if self._began is None or elapsed < self._began[1]:
            self._began = now, elapsed
        began, first = self._began
        left = began + (elapsed - first) / self._clock / self._speed - now
        if left < -_LATEST:
            self._began = now, elapsed
        return left

    def later(self, seconds: float) -> None:
        """Let the machine be so much later from now on, or earlier."""
        if self._began is not None:
            self._began = self._began[0] + seconds, self._began[1]

    def begin(self) -> None:
        """Begin anew, such as after a pause."""
        self._began = None


@dataclass
class Play:
    """A machine that is played; ``seconds`` of its time at most; heard by ``speaker``."""

    c64: C64
    pace: Pace
    seconds: float | None = None
    joystick: int | None = None
    speaker: Speaker | None = None
    debugged: C64Target | None = None
    notice: str = ""
    """What the user is told while no debugger has come."""

    def __post_init__(self) -> None:
        """What is counted from here."""
        self._frames = 0
        self._began = self.c64.elapsed
        self._model = self.c64.machine.model
        self.quit = False

    @property
    def is_over(self) -> bool:
        """Whether its time is over, or the user has had enough."""
        over = self.seconds is not None and self.c64.elapsed - self._began >= self.seconds * self._model.clock
        return self.quit or over or (self.debugged is not None and self.debugged.killed)

    def frame(self) -> Stop:
        """Run for a frame; on average exactly for so long. `paused`: a debugger has it."""
        self._frames += 1
        end = self._began + self._frames * self._model.frame
        if self.seconds is not None:
            end = min(end, self._began + round(self.seconds * self._model.clock))
        cycles = max(0, end - self.c64.elapsed)
        stop = self.c64.run(cycles=cycles) if self.debugged is None else self.debugged.run(cycles)
        if stop.reason == "paused":
            self.begin_anew()
        if self.speaker is not None:
            self.speaker.frame()
            if stop.reason != "limit":
                self.speaker.rest()
        return stop

    def rest(self) -> None:
        """The machine stands still, until the next frame: time goes on without it."""
        self.pace.begin()
        if self.speaker is not None:
            self.speaker.rest()

    def begin_anew(self) -> None:
        """Time has gone on, or back, by other means than frames."""
        if self.seconds is not None:
            self.seconds -= (self.c64.elapsed - self._began) / self._model.clock
        self._began, self._frames = self.c64.elapsed, 0
        self.rest()

    def headless(self) -> Stop:
        """Run until the end; gives why. What ends a run for good (`debug`, `jam`) ends it."""
        while not self.is_over:
            found = self.frame()
            if found.reason == "paused" and self.debugged is not None:
                self.debugged.serve(_SHORT)
                continue
            if found.reason != "limit":
                return found
            left = self.pace.left(self.c64.elapsed)
            if left > 0:
                time.sleep(left)
        return Stop("limit")


# In the terminal


class TerminalPlay:
    """Shows a machine in the terminal, and passes on what is typed there."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.c64 = play.c64
        self._screen = Screen()
        self._typist = Typist(self.c64.machine, play.joystick)
        self._size = (0, 0)
        self._drawn = 0.0
        self._escaped = self._paused = self._noticed = False

    def run(self) -> Stop:
        """Until the user has had enough, or it is over; gives why. The terminal is put back however that ends."""
        with raw_terminal(0), _other_screen():
            stop = Stop("limit")
            while not self.play.is_over:
                if not self._paused and stop.reason != "jam":
                    stop = self.play.frame()
                    if stop.reason != "paused":
                        self._typist.frame()
                    if stop.reason == "debug":
                        return stop
                still = self._paused or stop.reason in ("jam", "paused")
                left = _SHORT if still else self.play.pace.left(self.c64.elapsed)
                # A host that is too slow shows less, but not nothing.
                if time.monotonic() - self._drawn >= (1 / PICTURES if left >= 0 else 4 / PICTURES):
                    self._draw()
                    left = _SHORT if still else self.play.pace.left(self.c64.elapsed)
                if self._read(max(0.0, left)) and stop.reason == "jam":
                    stop = Stop("limit")
            return stop

    def _draw(self) -> None:
        size = _terminal_size()
        if size != self._size:
            self._size = size
            self._screen.forget()
        self._drawn = time.monotonic()
        text = self._screen.draw(cells_of(self.c64.machine, *size))
        waiting = self.play.debugged is not None and self.play.debugged.waiting
        if waiting:
            text += f"\x1b[0m\x1b[H{self.play.notice[: size[0]]}"
        elif self._noticed:
            self._screen.forget()
        self._noticed = waiting
        _write(text)

    def _read(self, seconds: float) -> bool:
        """Wait so long at most; do what the user wants meanwhile. Gives whether the machine was begun anew."""
        end, anew = time.monotonic() + seconds, False
        while True:
            if not self._wait(end):
                return anew
            data = os.read(0, 4096)
            if not data:
                self.play.quit = True
                return anew
            while data.endswith((b"\x1b", b"\x1b[", b"\x1bO")) and select.select([0], [], [], _AT_ONCE)[0]:
                more = os.read(0, 4096)
                if not more:
                    break
                data += more
            anew = self._take(data) or anew
            if self.play.quit:
                return anew

    def _wait(self, end: float | None) -> bool:
        """Wait for a key until then, and serve a debugger meanwhile; False: none came, or the machine is to run on."""
        debugged = self.play.debugged
        others = [] if debugged is None else [debugged.descriptor]
        while True:
            left = None if end is None else max(0.0, end - time.monotonic())
            readable, _, _ = select.select([0, *others], [], [], left)
            if 0 in readable or not readable:
                return bool(readable)
            assert debugged is not None
            debugged.serve()
            if end is not None and not debugged.stands_still:
                return False

    def _take(self, data: bytes) -> bool:
        anew, rest = False, []
        for stroke in strokes(data.decode(errors="replace")):
            if self._escaped:
                self._escaped = False
                anew = self._command(stroke) or anew
            elif stroke == chr(ESCAPE):
                self._escaped = True
            else:
                rest.append(stroke)
        self._typist.take(rest)
        return anew

    def _command(self, stroke: str) -> bool:
        """Do what a key after Ctrl-A means; gives whether the machine was begun anew."""
        match stroke.lower():
            case "x":
                self.play.quit = True
            case "r":
                self.c64.reset()
                return True
            case "b":
                self._back()
                return True
            case "p":
                self._paused = not self._paused
                self.play.rest()
            case "s":
                self._say(save_picture(self.c64))
            case "a" | "\x01":
                self.c64.press("ctrl", "a")
                self.play.begin_anew()
            case _:
                self._say(HELP)
        return False

    def _back(self) -> None:
        with contextlib.suppress(ValueError):
            kept = self.c64.kept_seconds
            self.c64.rewind(min(_BACK, kept))
        self.play.begin_anew()

    def _say(self, text: str) -> None:
        """Show a text instead of the picture until a key is pressed."""
        self.play.rest()
        _write("\x1b[0m\x1b[2J\x1b[H" + text.strip("\n").replace("\n", "\r\n") + "\r\n\r\n(press a key)")
        self._wait(None)
        os.read(0, 4096)
        self._screen.forget()
        self.play.pace.begin()


@contextlib.contextmanager
def _other_screen() -> Iterator[None]:
    _write(ENTER)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _write(LEAVE)


def _terminal_size() -> tuple[int, int]:
    """Columns and lines. What the shell had when it started us may be old."""
    with contextlib.suppress(OSError):
        found = os.get_terminal_size(1)
        if found.columns and found.lines:
            return found.columns, found.lines
    return 80, 24


def _write(text: str) -> None:
    """Write to the terminal at once, all of it."""
    data = text.encode()
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            select.select([], [1], [])


def save_picture(c64: C64) -> str:
    """Save the picture in a new file here; gives what to tell the user."""
    path = next(path for n in count(1) if not (path := Path(f"screenshot-{n}.png")).exists())
    try:
        c64.picture().save(path)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return f"saved the picture as {path}"


# In a window

_TABLES = tuple(bytes(COLOURS[value & 15] >> shift & 0xFF for value in range(256)) for shift in (0, 8, 16))
_ENLARGED = 2
_STICK = {KEYS["up"]: "up", KEYS["down"]: "down", KEYS["left"]: "left", KEYS["right"]: "right",
          KEYS["rightctrl"]: "fire", KEYS["tab"]: "fire"}  # fmt: skip
_RESTORE = KEYS["pageup"]


class WindowPlay:
    """Shows a machine in a window of the desktop. Keys are what is at their place; page up is RESTORE."""

    def __init__(self, play: Play, title: str = "Commodore 64") -> None:
        """Open the window. Raises WindowError."""
        self.play = play
        self.c64 = play.c64
        picture = self.c64.picture()
        self._width, self._height = picture.width, picture.height
        self._display = Display(_ENLARGED * self._width, _ENLARGED * self._height)
        self._keyboard = Keyboard()
        self._keyboard.plug(self._pressed)
        self._window = Window(self._display, self._keyboard, title=title)
        self._display.set_mode(self._width, self._height)
        self._held: dict[int, tuple[str, ...]] = {}
        self._stick: set[str] = set()

    def run(self) -> Stop:
        """Until the user closes the window, or it is over; gives why."""
        stop, drawn = Stop("limit"), 0.0
        try:
            while not self.play.is_over:
                if stop.reason != "jam":
                    stop = self.play.frame()
                    if stop.reason == "debug":
                        return stop
                still = stop.reason in ("jam", "paused")
                left = _SOON if still else self.play.pace.left(self.c64.elapsed)
                if (left >= 0 and not still) or time.monotonic() - drawn > 0.1:
                    self._draw()
                    drawn = time.monotonic()
                if not self._window.step(min(max(left, 0.001), 0.1)):
                    return stop
                left = self.play.pace.left(self.c64.elapsed)
                if left > 0 and not still:
                    time.sleep(min(left, 0.1))
            return stop
        finally:
            self._window.close()

    def _draw(self) -> None:
        pixels = self.c64.picture().pixels
        made = bytearray(BYTES_PER_PIXEL * len(pixels))
        for channel, table in enumerate(_TABLES):
            made[channel::BYTES_PER_PIXEL] = pixels.translate(table)
        self._display.draw(
            Rect(0, 0, self._width, self._height), memoryview(made), BYTES_PER_PIXEL * self._width
        )

    def _pressed(self, events: Sequence[Event], must: bool) -> bool:
        """What the keyboard of the host says."""
        for event in events:
            if event.type == EV_KEY:
                self._key(event.code, event.value != 0)
        return True

    def _key(self, code: int, down: bool) -> None:
        machine = self.c64.machine
        if self.play.joystick is not None and code in _STICK:
            (self._stick.add if down else self._stick.discard)(_STICK[code])
            machine.joystick(self.play.joystick, **dict.fromkeys(self._stick, True))
        elif code == _RESTORE:
            machine.key("restore", down)
        elif down and code in HOST_KEYS:
            name, shifted = HOST_KEYS[code]
            self._held[code] = ("leftshift", name) if shifted else (name,)
            for key in self._held[code]:
                machine.key(key)
        elif not down:
            keys = self._held.pop(code, ())
            kept = {key for others in self._held.values() for key in others}
            for key in keys:
                if key not in kept:
                    machine.key(key, False)


def is_terminal() -> bool:
    """Whether there is a terminal to be shown in, and to be typed at."""
    return sys.stdin.isatty() and sys.stdout.isatty()
