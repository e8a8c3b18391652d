"""What stands on the user's desk beside the terminal: a display, and a keyboard and a pointer if it is a window."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from polyvisor.vm.equipment import Screen
from polyvisor.vm.window import Window

KINDS = ("none", "headless", "window")
_SIZE = (1024, 768)


class Desk:
    """A display that outlives restarts of the machine, in a window or not."""

    def __init__(self, windowed: bool, size: tuple[int, int] = _SIZE, file: Path | None = None) -> None:
        """``file``: where the picture is saved when all has ended. Raises ValueError for an impossible size."""
        self.screen = Screen(*size, bare=not windowed)
        self.file = file
        self.windowed = windowed
        self.window: Window | None = None

    @contextlib.contextmanager
    def opened(self, title: str) -> Iterator[None]:
        """The window is open, if there is to be one; if nothing failed, the picture is saved at the end.

        Raises WindowError, and OSError with a line for the user.
        """
        if self.file is not None:
            check_writable(self.file, "screenshot")
        if self.windowed:
            self.window = Window(self.screen.display, self.screen.keyboard, self.screen.pointer, title)
        try:
            yield
        finally:
            if self.window is not None:
                self.window.close()
                self.window = None
        if self.file is not None:
            self._write(self.file)

    def save(self) -> Path:
        """Save the picture in a new file here, and give its name. Raises OSError with a line for the user."""
        path = next(path for n in count(1) if not (path := Path(f"screenshot-{n}.png")).exists())
        self._write(path)
        return path

    def _write(self, path: Path) -> None:
        with told(path, "screenshot"):
            path.write_bytes(self.screen.display.screenshot())


@contextlib.contextmanager
def told(path: Path, what: str) -> Iterator[None]:
    """Give errors of the host with a file a line for the user."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{what} {str(path)!r}: {error.strerror}") from None


def check_writable(path: Path, what: str) -> None:
    """See that a file can be written at the end, and leave it as it is. Raises OSError with a line for the user."""
    new = not path.exists()
    with told(path, what), path.open("ab"):
        pass
    if new:
        path.unlink()


def parse_display(text: str) -> tuple[str, tuple[int, int]]:
    """``window``, ``headless`` or ``none``, and the size in ``window,1280x800``. Raises ValueError."""
    kind, _, size = text.partition(",")
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size) if size else None
    if kind not in KINDS or ("," in text and found is None):
        raise ValueError(f"--display {text!r}: give {', '.join(KINDS)}, or with a size as in window,1280x800")
    return kind, (int(found[1]), int(found[2])) if found else _SIZE
