"""A person's hands: the keyboard, the tablet and the mouse of a machine, whatever device passes them on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from .display import Display
from .keys import KEYS, US, key_code

# Types and codes of events, as Linux's input-event-codes.h has them.
EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_LED, EV_REP = 0x00, 0x01, 0x02, 0x03, 0x11, 0x14
REL_X, REL_Y, REL_HWHEEL, REL_WHEEL = 0, 1, 6, 8
ABS_X, ABS_Y = 0, 1
LEDS = {"num lock": 0, "caps lock": 1, "scroll lock": 2}
REP_DELAY, REP_PERIOD = 0, 1
BUTTONS = {"left": 0x110, "right": 0x111, "middle": 0x112, "side": 0x113, "extra": 0x114}

ABS_MAX = 0x7FFF
"""Where the far edge of a tablet is."""
PATIENCE = 30.0
"""How long one waits for the guest to take input, in seconds."""
_MAX_STEP = 2**31 - 1


class Event(NamedTuple):
    """Something that happened: a key went down (value 1) or up (0), an axis moved."""

    type: int
    code: int
    value: int


@dataclass(frozen=True)
class Axis:
    """The range of an absolute axis."""

    minimum: int
    maximum: int


@dataclass(frozen=True)
class Profile:
    """What the guest is told of something one uses one's hands with."""

    name: str
    product: int
    events: Mapping[int, frozenset[int]]
    """For each type of events, the codes there are."""
    axes: Mapping[int, Axis] = field(default_factory=dict)


Deliver = Callable[[Sequence[Event], bool], bool]
"""Takes events that happened at once, and whether they must not be left out; gives whether they were taken."""


class InputSource:
    """Base of keyboards and pointers: what their device asks of them, and how events reach it."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._changed = threading.Condition()
        self._deliver: Deliver | None = None
        self._chances = 0
        self._held: set[int] = set()

    # What a device does

    def plug(self, deliver: Deliver) -> Callable[[], None]:
        """Pass events on to ``deliver`` from now on. Gives what ends this.

        Raises ValueError if it belongs to another device.
        """
        with self._changed:
            if self._deliver is not None:
                raise ValueError(f"the {self.profile.name} belongs to another device already")
            self._deliver = deliver
            self._held.clear()
        self.room()
        return self._unplug

    def room(self) -> None:
        """There may be room for events that were not taken before."""
        with self._changed:
            self._chances += 1
            self._changed.notify_all()

    def status(self, event: Event) -> None:
        """The guest sent something, such as the state of a light."""

    def _unplug(self) -> None:
        with self._changed:
            self._deliver = None

    # What the subclasses do

    def _send(self, events: Sequence[Event], timeout: float) -> None:
        """Send events that happen at once. Raises TimeoutError."""
        end = time.monotonic() + timeout
        while True:
            with self._changed:
                deliver, before = self._deliver, self._chances
            # Without our lock: the device takes its own, with which it may call us.
            if deliver is not None and deliver(events, False):
                return
            with self._changed:
                if self._chances == before and not self._changed.wait(max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"the guest takes no input from its {self.profile.name}")

    def _hold(self, code: int, timeout: float) -> None:
        with self._changed:
            if code in self._held:
                return
        self._send([Event(EV_KEY, code, 1)], timeout)
        with self._changed:
            self._held.add(code)

    def _let_go(self, codes: Iterable[int]) -> None:
        """Release what is held. It is never left out: a key would stay down."""
        with self._changed:
            held = [code for code in codes if code in self._held]
            self._held.difference_update(held)
            deliver = self._deliver
        if deliver is not None:
            for code in held:
                deliver([Event(EV_KEY, code, 0)], True)

    def release_all(self) -> None:
        """Release all that is held down."""
        with self._changed:
            held = sorted(self._held)
        self._let_go(held)


class Keyboard(InputSource):
    """A keyboard with the keys of :data:`~polyvisor.devices.keys.KEYS`, which are named by their US legend.

    All calls wait ``timeout`` seconds at most until a driver in the guest takes the keys, and raise TimeoutError if it
    does not; and ValueError for a key that there is not. They may be made on any thread.
    """

    def __init__(self) -> None:
        keys = frozenset(KEYS.values())
        repeat = frozenset((REP_DELAY, REP_PERIOD))
        super().__init__(
            Profile("polyvisor keyboard", 1, {EV_KEY: keys, EV_LED: frozenset(LEDS.values()), EV_REP: repeat})
        )
        self._lit: set[int] = set()

    @property
    def leds(self) -> frozenset[str]:
        """The lights that are on: of ``num lock``, ``caps lock`` and ``scroll lock``."""
        lit = set(self._lit)
        return frozenset(name for name, code in LEDS.items() if code in lit)

    def type(self, text: str, interval: float = 0.005, timeout: float = PATIENCE) -> None:
        """Type ``text`` on a US keyboard, a key each ``interval`` seconds. Raises ValueError for other characters."""
        missing = next((character for character in text if character not in US), None)
        if missing is not None:
            raise ValueError(f"a US keyboard cannot type {missing!r}")
        for at, character in enumerate(text):
            if at and interval:
                time.sleep(interval)
            code, shifted = US[character]
            self._chord([KEYS["shift"], code] if shifted else [code], timeout)

    def press(self, *keys: str | int, timeout: float = PATIENCE) -> None:
        """Press keys together, as in ``press("ctrl", "alt", "f1")``, and release them in the opposite order."""
        self._chord([key_code(key) for key in keys], timeout)

    def down(self, key: str | int, timeout: float = PATIENCE) -> None:
        """Hold a key down."""
        self._hold(key_code(key), timeout)

    def up(self, key: str | int) -> None:
        """Release a key that is held down; does nothing for another."""
        self._let_go([key_code(key)])

    def status(self, event: Event) -> None:
        """Lights go on and off."""
        if event.type == EV_LED and event.code in LEDS.values():
            (self._lit.add if event.value else self._lit.discard)(event.code)

    def _chord(self, codes: list[int], timeout: float) -> None:
        try:
            for code in codes:
                self._hold(code, timeout)
        finally:
            self._let_go(reversed(codes))


class _Pointer(InputSource):
    """Buttons and a wheel."""

    def click(self, button: str = "left", count: int = 1, timeout: float = PATIENCE) -> None:
        """Press and release a button, ``count`` times. Raises ValueError for a button that there is not."""
        for _ in range(count):
            self.down(button, timeout)
            self.up(button)

    def down(self, button: str = "left", timeout: float = PATIENCE) -> None:
        """Hold a button down."""
        self._hold(_button(button), timeout)

    def up(self, button: str = "left") -> None:
        """Release a button that is held down; does nothing for another."""
        self._let_go([_button(button)])

    def scroll(self, down: int = 0, right: int = 0, timeout: float = PATIENCE) -> None:
        """Turn the wheel by notches; negative ones go up, or to the left."""
        # Linux counts the vertical wheel upwards.
        self._step([(REL_WHEEL, -down), (REL_HWHEEL, right)], timeout)

    def _step(self, steps: Sequence[tuple[int, int]], timeout: float) -> None:
        for _, by in steps:
            if abs(by) > _MAX_STEP:
                raise ValueError(f"{by} is too far")
        events = [Event(EV_REL, code, by) for code, by in steps if by]
        if events:
            self._send(events, timeout)


class Tablet(_Pointer):
    """A pointer that is put to places of ``display``, with a wheel and the buttons of :data:`BUTTONS`.

    Calls wait as those of :class:`Keyboard` do.
    """

    def __init__(self, display: Display) -> None:
        buttons, wheels = frozenset(BUTTONS.values()), frozenset((REL_WHEEL, REL_HWHEEL))
        axes = {ABS_X: Axis(0, ABS_MAX), ABS_Y: Axis(0, ABS_MAX)}
        super().__init__(
            Profile("polyvisor tablet", 2, {EV_KEY: buttons, EV_REL: wheels, EV_ABS: frozenset(axes)}, axes)
        )
        self._display = display

    def move(self, x: int, y: int, timeout: float = PATIENCE) -> None:
        """Point at a pixel, counted from the top left corner. Raises ValueError outside the picture."""
        width, height = self._display.size
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"({x}, {y}) is outside the picture of {width} by {height} pixels")
        # The middle of the pixel, so that rounding in the guest leads back to it.
        along, below = ((2 * at + 1) * (ABS_MAX + 1) // (2 * size) for at, size in ((x, width), (y, height)))
        self._send([Event(EV_ABS, ABS_X, along), Event(EV_ABS, ABS_Y, below)], timeout)


class Mouse(_Pointer):
    """A pointer that is moved by distances, with the same buttons and wheel; the guest decides how far it goes.

    Calls wait as those of :class:`Keyboard` do.
    """

    def __init__(self) -> None:
        moves = frozenset((REL_X, REL_Y, REL_WHEEL, REL_HWHEEL))
        super().__init__(Profile("polyvisor mouse", 3, {EV_KEY: frozenset(BUTTONS.values()), EV_REL: moves}))

    def move_by(self, right: int, down: int, timeout: float = PATIENCE) -> None:
        """Move to the right and down, or back where negative."""
        self._step([(REL_X, right), (REL_Y, down)], timeout)


def _button(name: str) -> int:
    code = BUTTONS.get(name)
    if code is None:
        raise ValueError(f"there is no button {name!r}; there are {', '.join(BUTTONS)}")
    return code
