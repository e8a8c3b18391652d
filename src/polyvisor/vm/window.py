"""A machine's display as a window of the desktop, with its keyboard and pointer (SDL, through pygame-ce).

The library is optional (``pip install 'polyvisor[window]'``) and imported when a window is opened.
"""

from __future__ import annotations

import contextlib
import time
from types import ModuleType
from typing import TYPE_CHECKING

from polyvisor.devices.display import BYTES_PER_PIXEL, Cursor, Display, Frame
from polyvisor.devices.edid import MAX_SIZE
from polyvisor.devices.input import Keyboard, Tablet
from polyvisor.devices.keys import BY_USAGE, KEYS

from .sdl import load

if TYPE_CHECKING:
    import pygame

# How long a new size of the window has to stay before the guest is asked to follow, in seconds: it sets a mode.
_SETTLED = 0.25
_BUTTONS = {1: "left", 2: "middle", 3: "right", 6: "side", 7: "extra"}
_MASKS = (0xFF0000, 0xFF00, 0xFF, 0)
_GRAB_KEY = KEYS["g"]


class WindowError(Exception):
    """There can be no window; the text is a line for the user."""


class Window:
    """Shows ``display``; what is typed goes to ``keyboard``, the mouse to ``pointer``, where they are given.

    SDL wants all calls on one thread, on macOS the main one. The picture is scaled to the window, keeping its shape;
    when the window is resized, the guest is asked for that size.
    """

    def __init__(
        self, display: Display, keyboard: Keyboard | None = None, pointer: Tablet | None = None,
        title: str = "polyvisor",
    ) -> None:
        """Open the window. Raises WindowError if the library is missing, or there is no desktop."""
        try:
            self._sdl = sdl = load()
        except ImportError as error:
            raise WindowError(f"a window cannot be opened: {error}") from None
        self._display, self._keyboard, self._pointer, self._title = display, keyboard, pointer, title
        try:
            sdl.display.init()
            self._screen: pygame.Surface = sdl.display.set_mode(display.size, sdl.RESIZABLE)
        except sdl.error as error:
            sdl.display.quit()
            raise WindowError(f"a window cannot be opened: {error}") from None
        self._picture: pygame.Surface | None = None
        self._shown: int | None = None
        self._cursor: Cursor | None = None
        self._wanted: tuple[tuple[int, int], float] | None = None
        self._grabbed = False
        self._caption()

    def step(self, timeout: float = 0.02) -> bool:
        """Wait ``timeout`` seconds at most for the user, do what they ask, and show what changed.

        Call it again and again. Gives False when the user closed the window.
        """
        going_on = True
        event = self._sdl.event.wait(max(1, int(1000 * timeout)))
        while event.type != self._sdl.NOEVENT:
            going_on = self._handle(event) and going_on
            event = self._sdl.event.poll()
        if self._wanted is not None and time.monotonic() >= self._wanted[1]:
            (width, height), self._wanted = self._wanted[0], None
            self._display.resize(min(max(width, 1), MAX_SIZE), min(max(height, 1), MAX_SIZE))
        changes = self._display.changes
        if changes != self._shown:
            self._shown = changes
            self._draw()
        return going_on

    def close(self) -> None:
        """Close the window, and release what is held down."""
        self._release()
        self._sdl.display.quit()

    # The user

    def _handle(self, event: pygame.Event) -> bool:
        """Do what the user asks; gives False if it is to close."""
        sdl, kind = self._sdl, event.type
        if kind == sdl.QUIT:
            return False
        if kind in (sdl.KEYDOWN, sdl.KEYUP):
            self._key(event.scancode, kind == sdl.KEYDOWN, event.mod)
        elif kind == sdl.WINDOWFOCUSLOST:
            self._release()
        elif kind == sdl.WINDOWRESIZED:
            self._wanted = (event.x, event.y), time.monotonic() + _SETTLED
            self._shown = None
        elif kind == sdl.WINDOWEXPOSED:
            self._shown = None
        elif self._pointer is not None:
            # A guest that does not listen misses it, as with real hardware.
            with contextlib.suppress(TimeoutError):
                self._point(self._pointer, event)
        return True

    def _key(self, usage: int, down: bool, modifiers: int) -> None:
        sdl = self._sdl
        code = BY_USAGE.get(usage)
        if code is None:
            return
        if down and code == _GRAB_KEY and modifiers & sdl.KMOD_CTRL and modifiers & sdl.KMOD_ALT:
            self._release()
            self._grabbed = not self._grabbed
            sdl.event.set_grab(self._grabbed)
            self._caption()
        elif self._keyboard is not None:
            if down:
                with contextlib.suppress(TimeoutError):
                    self._keyboard.down(code, timeout=0)
            else:
                self._keyboard.up(code)

    def _point(self, pointer: Tablet, event: pygame.Event) -> None:
        """Pass on what the mouse does. Raises TimeoutError."""
        sdl, kind = self._sdl, event.type
        if kind in (sdl.MOUSEBUTTONDOWN, sdl.MOUSEBUTTONUP, sdl.MOUSEMOTION):
            pointer.move(*self._place(*event.pos), timeout=0)
        if kind == sdl.MOUSEBUTTONDOWN and event.button in _BUTTONS:
            pointer.down(_BUTTONS[event.button], timeout=0)
        elif kind == sdl.MOUSEBUTTONUP and event.button in _BUTTONS:
            pointer.up(_BUTTONS[event.button])
        elif kind == sdl.MOUSEWHEEL:
            pointer.scroll(-event.y, event.x, timeout=0)

    def _release(self) -> None:
        for source in (self._keyboard, self._pointer):
            if source is not None:
                source.release_all()

    def _caption(self) -> None:
        keys = "Ctrl-Alt-G releases" if self._grabbed else "Ctrl-Alt-G grabs"
        self._sdl.display.set_caption(f"{self._title} - {keys} the keyboard")

    # The picture

    def _area(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Where a picture of this size is in the window: left, top, width, height."""
        across, down = self._screen.get_size()
        scale = min(across / width, down / height)
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        return (across - wide) // 2, (down - high) // 2, wide, high

    def _place(self, x: int, y: int) -> tuple[int, int]:
        """The pixel of the picture at a place of the window, or the nearest one."""
        width, height = self._display.size
        left, top, wide, high = self._area(width, height)
        along, below = (x - left) * width // wide, (y - top) * height // high
        return min(max(along, 0), width - 1), min(max(below, 0), height - 1)

    def _draw(self) -> None:
        sdl = self._sdl
        # With a pointer, the desktop's own is where the guest's would be.
        frame = self._display.frame(cursor=self._pointer is None)
        self._picture = picture = _fill(sdl, self._picture, frame)
        self._screen = sdl.display.get_surface() or self._screen
        left, top, wide, high = self._area(frame.width, frame.height)
        if (wide, high) != picture.get_size():
            picture = sdl.transform.scale(picture, (wide, high))
        if (wide, high) != self._screen.get_size():
            self._screen.fill(0)
        self._screen.blit(picture, (left, top))
        sdl.display.flip()
        if self._pointer is not None:
            found = self._display.cursor
            self._set_cursor(found[0] if found is not None else None)

    def _set_cursor(self, cursor: Cursor | None) -> None:
        """Give the desktop's pointer the guest's shape."""
        if cursor == self._cursor:
            return
        self._cursor = cursor
        sdl = self._sdl
        # A desktop without a pointer has nothing to be changed.
        with contextlib.suppress(sdl.error):
            if cursor is None:
                sdl.mouse.set_cursor(sdl.SYSTEM_CURSOR_ARROW)
            else:
                shape = sdl.image.frombuffer(_straight(cursor.pixels), (cursor.width, cursor.height), "BGRA")
                sdl.mouse.set_cursor((cursor.hot_x, cursor.hot_y), shape)


def _fill(sdl: ModuleType, picture: pygame.Surface | None, frame: Frame) -> pygame.Surface:
    """A surface with the frame's pixels: ``picture`` if it has the right size."""
    if picture is None or picture.get_size() != (frame.width, frame.height):
        picture = sdl.Surface((frame.width, frame.height), 0, 32, _MASKS)
    assert picture is not None
    row = BYTES_PER_PIXEL * frame.width
    buffer = picture.get_buffer()
    if picture.get_pitch() == row:
        buffer.write(frame.pixels, 0)
    else:
        for y in range(frame.height):
            buffer.write(frame.pixels[y * row : (y + 1) * row], y * picture.get_pitch())
    return picture


def _straight(pixels: bytes) -> bytes:
    """Colours that are not multiplied by alpha, as SDL wants them."""
    out = bytearray(pixels)
    for at in range(0, len(out), BYTES_PER_PIXEL):
        alpha = out[at + 3]
        if 0 < alpha < 255:
            for channel in range(3):
                out[at + channel] = min(255, out[at + channel] * 255 // alpha)
    return bytes(out)
