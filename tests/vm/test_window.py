"""The window, on a virtual X server and on SDL's dummy driver."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvisor.devices.display import Cursor, Display, Rect
from polyvisor.devices.input import Event, Keyboard, Tablet
from polyvisor.devices.keys import KEYS

pygame = pytest.importorskip("pygame", exc_type=ImportError)

from polyvisor.vm import window as w  # noqa: E402
from polyvisor.vm.window import Window, WindowError  # noqa: E402


class Source:
    """Remembers the events of a keyboard or pointer, as its device would get them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.listens = True

    def __call__(self, events: object, must: bool) -> bool:
        if self.listens:
            self.events.extend(events)  # type: ignore[arg-type]
        return self.listens

    def take(self) -> list[tuple[int, ...]]:
        found, self.events = [tuple(event) for event in self.events], []
        return found


@pytest.fixture
def display() -> Display:
    return Display(64, 48)


@pytest.fixture(autouse=True)
def dummy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


class Opened:
    """A window with both sources."""

    def __init__(self, display: Display) -> None:
        self.typed, self.pointed = Source(), Source()
        keyboard, tablet = Keyboard(), Tablet(display)
        keyboard.plug(self.typed)
        tablet.plug(self.pointed)
        self.window = Window(display, keyboard, tablet, "title")

    def post(self, kind: int, **values: object) -> bool:
        pygame.event.post(pygame.event.Event(kind, **values))
        return self.window.step(0.001)

    def screen(self) -> pygame.Surface:
        self.window.step(0.001)
        return pygame.display.get_surface()


@pytest.fixture
def opened(display: Display) -> Iterator[Opened]:
    opened = Opened(display)
    yield opened
    opened.window.close()


def show(display: Display, width: int, height: int, *colours: int) -> None:
    display.set_mode(width, height)
    pixels = b"".join(colour.to_bytes(4, "little") for colour in colours)
    display.draw(Rect(0, 0, width, height), memoryview(pixels), 4 * width)


def test_the_picture_is_scaled_and_keeps_its_shape(opened: Opened, display: Display) -> None:
    assert opened.screen().get_size() == (64, 48)
    show(display, 2, 1, 0xFF0000, 0x80FF00)
    screen = opened.screen()
    assert screen.get_at((0, 8))[:3] == screen.get_at((31, 39))[:3] == (255, 0, 0)
    assert screen.get_at((32, 8))[:3] == screen.get_at((63, 39))[:3] == (0x80, 255, 0)
    assert screen.get_at((0, 7))[:3] == screen.get_at((63, 40))[:3] == (0, 0, 0)
    show(display, 64, 48, *range(64 * 48))
    assert opened.screen().get_at((5, 47))[:3] == (0, (64 * 47 + 5) >> 8, (64 * 47 + 5) & 255)


def test_keys_go_to_the_keyboard(opened: Opened) -> None:
    opened.post(pygame.KEYDOWN, scancode=4, mod=0)
    opened.post(pygame.KEYUP, scancode=4, mod=0)
    opened.post(pygame.KEYDOWN, scancode=0xFFF, mod=0)
    opened.post(pygame.KEYUP, scancode=5, mod=0)
    opened.post(pygame.KEYDOWN, scancode=225, mod=0)
    assert opened.typed.take() == [(1, 30, 1), (1, 30, 0), (1, 42, 1)]
    opened.post(pygame.WINDOWFOCUSLOST)
    assert opened.typed.take() == [(1, 42, 0)]
    opened.typed.listens = False
    opened.post(pygame.KEYDOWN, scancode=4, mod=0)
    assert opened.typed.take() == []


def test_ctrl_alt_g_grabs(opened: Opened) -> None:
    grab = {"scancode": 10, "mod": pygame.KMOD_LCTRL | pygame.KMOD_LALT}
    opened.post(pygame.KEYDOWN, scancode=224, mod=0)
    opened.post(pygame.KEYDOWN, **grab)
    assert pygame.event.get_grab() and "releases" in pygame.display.get_caption()[0]
    opened.post(pygame.KEYUP, **grab)
    opened.post(pygame.KEYDOWN, **grab)
    assert not pygame.event.get_grab()
    assert opened.typed.take() == [(1, KEYS["leftctrl"], 1), (1, KEYS["leftctrl"], 0)]


def test_the_mouse_goes_to_the_tablet(opened: Opened, display: Display) -> None:
    show(display, 32, 12, *[0] * 384)  # in rows 12 to 36 of the window, twice as large
    opened.post(pygame.MOUSEMOTION, pos=(20, 20), rel=(0, 0), buttons=(0, 0, 0))
    (_, _, x), (_, _, y) = opened.pointed.take()
    assert (x * 32 >> 15, y * 12 >> 15) == (10, 4)
    for place, expected in (((63, 47), (31, 11)), ((0, 0), (0, 0)), ((500, -9), (31, 0))):
        opened.post(pygame.MOUSEMOTION, pos=place, rel=(0, 0), buttons=(0, 0, 0))
        (_, _, x), (_, _, y) = opened.pointed.take()
        assert (x * 32 >> 15, y * 12 >> 15) == expected
    opened.post(pygame.MOUSEBUTTONDOWN, pos=(0, 0), button=3)
    opened.post(pygame.MOUSEBUTTONUP, pos=(0, 0), button=3)
    opened.post(pygame.MOUSEBUTTONDOWN, pos=(0, 0), button=4)
    assert [event for event in opened.pointed.take() if event[0] == 1] == [(1, 0x111, 1), (1, 0x111, 0)]
    opened.post(pygame.MOUSEWHEEL, x=0, y=2)
    assert opened.pointed.take() == [(2, 8, 2)]
    opened.pointed.listens = False
    assert opened.post(pygame.MOUSEMOTION, pos=(20, 20), rel=(0, 0), buttons=(0, 0, 0))


def test_resizing_asks_the_guest(opened: Opened, display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    opened.post(pygame.WINDOWRESIZED, x=300, y=200)
    assert display.preferred_size == (64, 48)
    monkeypatch.setattr(w.time, "monotonic", lambda: 1e9)
    opened.window.step(0.001)
    assert display.preferred_size == (300, 200)
    opened.post(pygame.WINDOWRESIZED, x=9000, y=0)
    monkeypatch.setattr(w.time, "monotonic", lambda: 2e9)
    opened.window.step(0.001)
    assert display.preferred_size == (4095, 1)


def test_the_guests_pointer(opened: Opened, display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    show(display, 64, 48, *[0x101010] * (64 * 48))
    cursor = Cursor(64, 64, b"\x20\x20\x20\x80" * 4096, 3, 4)
    display.set_cursor(cursor, 0, 0)
    # The desktop draws it, so it is not in the picture.
    assert opened.screen().get_at((1, 1))[:3] == (0x10,) * 3
    shape = pygame.mouse.get_cursor()
    assert shape.type == "color" and shape.data[0] == (3, 4)
    assert shape.data[1].get_at((0, 0)) == (0x3F, 0x3F, 0x3F, 0x80)
    # SDL's dummy driver has no arrow.
    asked: list[object] = []
    monkeypatch.setattr(pygame.mouse, "set_cursor", asked.append)
    display.set_cursor(None)
    opened.window.step(0.001)
    assert asked == [pygame.SYSTEM_CURSOR_ARROW]


def test_closing(opened: Opened) -> None:
    assert opened.window.step(0.001)
    assert not opened.post(pygame.QUIT)


def test_no_desktop_is_told(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.delenv("DISPLAY", raising=False)
    with pytest.raises(WindowError, match="cannot be opened"):
        Window(display)


def test_a_missing_library_is_told(display: Display, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(WindowError, match=r"pip install 'polyvisor\[window\]'"):
        Window(display)


X_PROGRAM = """
import sys
from polyvisor.devices.display import Display, Rect
from polyvisor.vm.window import Window
display = Display(40, 30)
window = Window(display)
display.set_mode(40, 30)
display.draw(Rect(0, 0, 40, 30), memoryview(bytes.fromhex("3366ff00") * 1200), 160)
display.draw(Rect(10, 10, 5, 5), memoryview(bytes(100)), 20)
for _ in range(20):
    window.step()
print("shown", flush=True)
while window.step():
    pass
"""


def x_screen(path: Path) -> tuple[int, list[int]]:
    """Pixels a row, and the pixels as numbers, of what Xvfb has in a file: an XWD file (XWDFile.h of X11)."""
    data = path.read_bytes()
    header = struct.unpack_from(">25I", data)
    header_size, height, little, depth, stride, colours = (header[i] for i in (0, 5, 7, 11, 12, 19))
    assert (little, depth) == (0, 32)
    at = header_size + 12 * colours
    return stride // 4, [pixel & 0xFFFFFF for (pixel,) in struct.iter_unpack("<I", data[at : at + stride * height])]


@pytest.mark.skipif(shutil.which("Xvfb") is None, reason="Xvfb is not installed")
def test_an_x_server_shows_it(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    server = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writing), "-screen", "0", "200x100x24", "-nolisten", "tcp", "-fbdir", str(tmp_path)],
        pass_fds=(writing,), stderr=subprocess.DEVNULL,
    )
    os.close(writing)
    program = None
    try:
        number = os.read(reading, 20).decode().strip()
        assert number, "Xvfb did not start"
        environment = {**os.environ, "DISPLAY": f":{number}", "SDL_VIDEODRIVER": "x11"}
        program = subprocess.Popen(
            [sys.executable, "-c", X_PROGRAM], env=environment, stdout=subprocess.PIPE, text=True
        )
        assert program.stdout is not None and program.stdout.readline() == "shown\n"
        width, pixels = x_screen(tmp_path / "Xvfb_screen0")
        blue = {(at % width, at // width) for at, pixel in enumerate(pixels) if pixel == 0xFF6633}
        # Without a window manager it is somewhere on the screen.
        left, top = min(x for x, _ in blue), min(y for _, y in blue)
        picture = {(left + x, top + y) for x in range(40) for y in range(30)}
        assert picture - blue == {(left + x, top + y) for x in range(10, 15) for y in range(10, 15)}
        assert blue <= picture
    finally:
        for process in (program, server):
            if process is not None:
                process.terminate()
                process.wait(10)
        os.close(reading)
