"""`polyvisor run` with a display."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from test_run import Terminal, linux, run

from polyvisor.cli.desk import parse_display
from support.programs import elf


def picture(path: Path) -> tuple[int, int, bytes]:
    """Width, height and decompressed rows of a PNG file."""
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = struct.unpack_from(">II", data, 16)
    at = data.index(b"IDAT")
    return width, height, zlib.decompress(data[at + 4 : at + 4 + struct.unpack_from(">I", data, at - 4)[0]])


def test_a_screenshot_is_saved_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "screen.png"
    command = "cat /sys/class/graphics/fb0/virtual_size; echo hello > /dev/tty1; exit 6"
    done = run(*linux(command), "--display", "headless,320x200", "--screenshot", str(path))
    assert (done.returncode, done.stdout.strip()) == (6, b"320,200"), done.stderr
    width, height, rows = picture(path)
    assert (width, height) == (320, 200)
    assert len(rows) - rows.count(0) > 100


def test_a_key_saves_screenshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "screenshot-1.png").write_bytes(b"mine")
    terminal = Terminal(*linux(), "--display", "headless")
    terminal.expect(b"powers the machine off")
    terminal.type(b"\x01s")
    terminal.expect(b"saved what the display shows as screenshot-2.png")
    terminal.type(b"exit 4\r")
    assert terminal.close() == 4
    assert picture(tmp_path / "screenshot-2.png")[:2] == (1024, 768)
    assert (tmp_path / "screenshot-1.png").read_bytes() == b"mine"


def test_a_window_shows_and_ends_with_the_guest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("pygame", exc_type=ImportError)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    path = tmp_path / "screen.png"
    command = "grep -c polyvisor /proc/bus/input/devices; exit 3"
    done = run(*linux(command), "--display", "window,640x480", "--screenshot", str(path))
    assert (done.returncode, done.stdout.strip()) == (3, b"2"), done.stderr
    assert picture(path)[:2] == (640, 480)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--display", "vga"], "'vga': give none, headless, window"),
        (["--display", "headless,5000x10"], "1 to 4095"),
        (["--screenshot", "/nonexistent/a.png"], "screenshot '/nonexistent/a.png': No such file"),
        (["--display", "window"], "a window cannot be opened"),
    ],
)
def test_mistakes_get_one_clear_line(arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if arguments[-1] == "window":
        pytest.importorskip("pygame", exc_type=ImportError)
    monkeypatch.setenv("SDL_VIDEODRIVER", "x11")
    monkeypatch.setenv("DISPLAY", "")
    done = run(*linux(), *arguments, timeout=60)
    assert done.returncode == 2
    lines = done.stderr.decode().strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("polyvisor: ") and says in lines[0], lines


def test_no_window_without_its_library(tmp_path: Path) -> None:
    (tmp_path / "pygame.py").write_text("raise ImportError('not here')\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-m", "polyvisor", "run", *linux(), "--display", "window"], env=environment,
        capture_output=True, text=True, timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.strip() == (
        "polyvisor: a window cannot be opened: pygame-ce is missing: pip install 'polyvisor[window]' (not here)"
    )


@pytest.mark.parametrize("text", ["", "window,", "window,800", "window,800x", ",800x600", "window,800x600,1", "Window"])
def test_impossible_displays(text: str) -> None:
    with pytest.raises(ValueError, match="give none, headless, window, or with a size"):
        parse_display(text)


def test_displays() -> None:
    assert parse_display("window") == ("window", (1024, 768))
    assert parse_display("headless,800x600") == ("headless", (800, 600))


def test_the_key_needs_a_display(tmp_path: Path) -> None:
    program = tmp_path / "program.elf"
    program.write_bytes(elf("    li t0, 0x10000000\n    li t1, 'x'\n    sb t1, 0(t0)\nloop:\n    j loop\n"))
    terminal = Terminal(str(program))
    terminal.expect(b"x")
    terminal.type(b"\x01s")
    terminal.expect(b"there is no display: start with --display")
    terminal.type(b"\x01x")
    assert terminal.close() == 0
