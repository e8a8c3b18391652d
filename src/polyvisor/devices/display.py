"""What a person sees of a machine: the picture on a screen, whatever device draws it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from . import png
from .edid import MAX_SIZE

BYTES_PER_PIXEL = 4


class Rect(NamedTuple):
    """Pixels from (x, y) on, counted from the top left corner."""

    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Cursor:
    """A pointer drawn over the picture.

    ``pixels``: blue, green, red and alpha, the colours multiplied by it; ``hot_x``, ``hot_y``: the pixel that points.
    """

    width: int
    height: int
    pixels: bytes
    hot_x: int
    hot_y: int


@dataclass(frozen=True)
class Frame:
    """A picture: four bytes a pixel (blue, green, red, and one that means nothing), row after row from the top."""

    width: int
    height: int
    pixels: bytes

    def pixel(self, x: int, y: int) -> tuple[int, int, int]:
        """Red, green and blue at a place. Raises IndexError outside the picture."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise IndexError(f"there is no pixel ({x}, {y}) in {self.width} by {self.height}")
        at = BYTES_PER_PIXEL * (y * self.width + x)
        blue, green, red = self.pixels[at : at + 3]
        return red, green, blue

    def rgb(self) -> bytes:
        """Red, green and blue, three bytes a pixel."""
        out = bytearray(3 * self.width * self.height)
        for channel in range(3):
            out[channel::3] = self.pixels[2 - channel :: BYTES_PER_PIXEL]
        return bytes(out)

    def png(self) -> bytes:
        """The picture as a PNG file."""
        return png.encode(self.width, self.height, self.rgb())


class Display:
    """A screen. A display device of a machine draws on it; one looks at it from any thread.

    Before the guest sets a mode, and when it switches the screen off, the picture is black.
    """

    def __init__(self, width: int = 1024, height: int = 768) -> None:
        """A screen on which ``width`` by ``height`` pixels look best. Raises ValueError unless each is 1 to 4095."""
        _check(width, height)
        self._changed = threading.Condition()
        self._preferred = (width, height)
        self._size = (width, height)
        self._pixels = bytearray(BYTES_PER_PIXEL * width * height)
        self._active = False
        self._cursor: Cursor | None = None
        self._position = (0, 0)
        self._changes = 0
        self._watchers: list[Callable[[Rect], None]] = []
        self._resized: Callable[[], None] | None = None

    # What one does with it

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture: what the guest chose, or the preferred size while it shows none."""
        return self._size

    @property
    def preferred_size(self) -> tuple[int, int]:
        """What the guest is told to be best."""
        return self._preferred

    @property
    def active(self) -> bool:
        """Whether the guest shows a picture."""
        return self._active

    @property
    def changes(self) -> int:
        """How often the picture changed; it only grows."""
        return self._changes

    @property
    def cursor(self) -> tuple[Cursor, int, int] | None:
        """The pointer the guest drew, and where its top left corner is; None if it shows none."""
        with self._changed:
            return (self._cursor, *self._position) if self._cursor is not None and self._active else None

    def frame(self, cursor: bool = False) -> Frame:
        """The picture now, with or without the pointer drawn over it."""
        with self._changed:
            pixels = bytearray(self._pixels)
            width, height = self._size
            if cursor and self._cursor is not None and self._active:
                _draw(pixels, width, height, self._cursor, *self._position)
        return Frame(width, height, bytes(pixels))

    def screenshot(self) -> bytes:
        """The picture now, pointer included, as a PNG file."""
        return self.frame(cursor=True).png()

    def wait_for_change(self, timeout: float | None = None, since: int | None = None) -> bool:
        """Wait until the picture changes, ``timeout`` seconds at most; gives whether it did.

        ``since``: a value of :attr:`changes`; what changed after it counts too. So nothing is missed between looking
        and waiting.
        """
        with self._changed:
            before = self._changes if since is None else since
            return self._changed.wait_for(lambda: self._changes != before, timeout)

    def listen(self, listener: Callable[[Rect], None]) -> Callable[[], None]:
        """Have ``listener`` called with what changed, after each change; gives a function that ends this.

        It is called on a thread of the machine, which waits for it: it should only take note, and not wait for others.
        """
        with self._changed:
            self._watchers.append(listener)
        return partial(self._forget, listener)

    def resize(self, width: int, height: int) -> None:
        """Tell the guest that another size is best now, as a window does when it is resized; it may follow.

        Raises ValueError unless each is 1 to 4095.
        """
        _check(width, height)
        with self._changed:
            if self._preferred == (width, height):
                return
            self._preferred = (width, height)
            if not self._active:
                self._set_size(width, height)
            tell = self._resized
        if tell is not None:
            tell()

    # What a display device does

    def plug(self, resized: Callable[[], None]) -> Callable[[], None]:
        """Draw here from now on; ``resized`` is called after the preferred size changed. Gives what ends this.

        Raises ValueError if another device draws here.
        """
        with self._changed:
            if self._resized is not None:
                raise ValueError("the display belongs to another device already")
            self._resized = resized
        return self._unplug

    def _unplug(self) -> None:
        # The last picture stays: it can be looked at after the machine has ended.
        with self._changed:
            self._resized = None

    def set_mode(self, width: int, height: int) -> None:
        """Show a picture of this size from now on. It is black if the size is new."""
        with self._changed:
            if self._active and self._size == (width, height):
                return
            self._active = True
            if self._size != (width, height):
                self._set_size(width, height)
        self._tell(Rect(0, 0, width, height))

    def switch_off(self) -> None:
        """Show no picture and no pointer, until the next mode is set."""
        with self._changed:
            self._active = False
            self._set_size(*self._preferred)
        self._tell(Rect(0, 0, *self._preferred))

    def draw(self, rect: Rect, pixels: memoryview, stride: int) -> None:
        """Draw rows of pixels, ``stride`` bytes apart in ``pixels``, which starts with the first of them.

        ``rect`` is inside the picture (the device has seen to it).
        """
        with self._changed:
            width = self._size[0]
            row = BYTES_PER_PIXEL * rect.width
            into = memoryview(self._pixels)  # a slice of a bytearray itself would be copied twice
            at = BYTES_PER_PIXEL * (rect.y * width + rect.x)
            if rect.width == width and stride == row:
                into[at : at + row * rect.height] = pixels[: row * rect.height]
            else:
                for start in range(0, stride * rect.height, stride):
                    into[at : at + row] = pixels[start : start + row]
                    at += BYTES_PER_PIXEL * width
        self._tell(rect)

    def set_cursor(self, cursor: Cursor | None, x: int = 0, y: int = 0) -> None:
        """Show this pointer, or none; its top left corner is at (x, y), which may be outside the picture."""
        with self._changed:
            before = self._cursor_rect()
            self._cursor, self._position = cursor, (x, y)
            after = self._cursor_rect()
        self._tell(before, after)

    def _cursor_rect(self) -> Rect | None:
        """Where the pointer is in the picture."""
        cursor, (x, y), (width, height) = self._cursor, self._position, self._size
        if cursor is None or not self._active:
            return None
        left, top = max(0, x), max(0, y)
        right, bottom = min(width, x + cursor.width), min(height, y + cursor.height)
        return Rect(left, top, right - left, bottom - top) if left < right and top < bottom else None

    def _set_size(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._pixels = bytearray(BYTES_PER_PIXEL * width * height)

    def _forget(self, listener: Callable[[Rect], None]) -> None:
        with self._changed:
            if listener in self._watchers:
                self._watchers.remove(listener)

    def _tell(self, *rects: Rect | None) -> None:
        found = [rect for rect in rects if rect is not None]
        if not found:
            return
        with self._changed:
            self._changes += 1
            self._changed.notify_all()
            watchers = list(self._watchers)
        for watcher in watchers:
            for rect in found:
                watcher(rect)


def _check(width: int, height: int) -> None:
    if not (1 <= width <= MAX_SIZE and 1 <= height <= MAX_SIZE):
        raise ValueError(f"a display of {width} by {height} pixels; each is to be 1 to {MAX_SIZE}")


def _draw(pixels: bytearray, width: int, height: int, cursor: Cursor, x: int, y: int) -> None:
    """Put ``cursor`` over a picture, its corner at (x, y)."""
    for row in range(cursor.height):
        below = y + row
        if not 0 <= below < height:
            continue
        for column in range(cursor.width):
            along = x + column
            at = BYTES_PER_PIXEL * (row * cursor.width + column)
            alpha = cursor.pixels[at + 3]
            if not alpha or not 0 <= along < width:
                continue
            to = BYTES_PER_PIXEL * (below * width + along)
            for channel in range(3):
                shown = cursor.pixels[at + channel] + pixels[to + channel] * (255 - alpha) // 255
                pixels[to + channel] = min(255, shown)
