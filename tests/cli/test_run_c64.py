"""`polyvisor run c64` as a user calls it: tests without a terminal, a terminal, a window, mistakes."""

from __future__ import annotations

import fcntl
import os
import re
import select
import signal
import struct
import termios
import time
import wave
from collections.abc import Callable
from pathlib import Path

import pytest
from test_run import Terminal, run
from test_run_display import picture

import polyvisor.cli.c64 as c64_command
from polyvisor.adl.assembler import assemble
from polyvisor.cli.main import make_app
from polyvisor.isa.mos6502 import mos6510
from polyvisor.storage.commodore.d64 import D64


def prg(path: Path, text: str) -> str:
    path.write_bytes(b"\x00\xc0" + assemble(mos6510, text, 0xC000).bytes)
    return str(path)


@pytest.mark.parametrize(("value", "status"), [(0, 0), (0xFF, 1)])
def test_the_debug_register_is_the_exit_status(tmp_path: Path, value: int, status: int) -> None:
    program = prg(tmp_path / "test.prg", f"lda #{value}\n sta $d7ff\n1: jmp 1b")
    done = run("c64", program, "--debug-register")
    assert (done.returncode, done.stdout, done.stderr) == (status, b"", b"")


def test_a_program_that_never_says_how_it_went_fails(tmp_path: Path) -> None:
    done = run("c64", prg(tmp_path / "test.prg", "1: jmp 1b"), "--debug-register", "--limit", "2")
    assert done.returncode == 1
    assert re.fullmatch(rb"polyvisor: nothing was written to \$D7FF within 2.\d seconds\n", done.stderr)


def test_a_jammed_cpu_is_told(tmp_path: Path) -> None:
    done = run("c64", prg(tmp_path / "jam.prg", ".byte 2"), "--headless", "--seconds", "5")
    assert (done.returncode, done.stderr) == (1, b"polyvisor: the CPU is jammed at $c000\n")


def test_keys_are_typed_and_picture_and_sound_saved(tmp_path: Path) -> None:
    png, sound = tmp_path / "a.png", tmp_path / "a.wav"
    done = run(
        "c64", "--headless", "--seconds", "2", "--keys", r"poke 53280,0\n{shift home}print 1\n",
        "--screenshot", str(png), "--sound", str(sound),
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    width, height, rows = picture(png)
    assert (width, height) == (384, 272) and rows[1:4] == b"\0\0\0"
    with wave.open(str(sound)) as file:
        assert 1.95 * 44_100 <= file.getnframes() < 4 * 44_100


def test_a_disk_starts_its_first_program(tmp_path: Path) -> None:
    disk = D64.formatted(b"WORK", b"A1")
    stub = bytes.fromhex("0108 0b08 0a00 9e 32303634 00 0000 000000 a9008dffd760".replace(" ", ""))
    disk.write(b"TEST", stub)
    disk.save(tmp_path / "a.d64")
    assert run("c64", str(tmp_path / "a.d64"), "--debug-register").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "there is no terminal"),
        (["none.prg", "--seconds", "1"], "none.prg: No such file"),
        (["pyproject.toml", "--seconds", "1"], "pyproject.toml: is no program"),
        (["--roms", "docs", "--seconds", "1"], "docs: has no ROM basic"),
        (["--speed", "fast", "--seconds", "1"], "--speed 'fast': give a number"),
        (["--limit", "1"], "--limit goes with --debug-register"),
        (["--window", "--headless"], "not both"),
        (["--tier", "x", "--seconds", "1"], "--tier 'x': there are jit"),
        (["--model", "secam", "--seconds", "1"], "--model 'secam': there are pal, ntsc"),
        (["--restore", "none", "--model", "ntsc"], "without them"),
        (["--restore", "none", "--seconds", "1"], "none: there is no such snapshot"),
        (["--restore", "none", "a.prg"], "without them"),
        (["--keys", "ä", "--seconds", "1"], "'ä' is not in PETSCII"),
        (["--screenshot", "/nonexistent/a.png", "--seconds", "1"], "--screenshot '/nonexistent/a.png': No such file"),
        (["--sound", "/nonexistent/a.wav", "--seconds", "1"], "--sound '/nonexistent/a.wav': No such file"),
    ],
)
def test_mistakes_get_one_clear_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c64_command, "is_terminal", lambda: False)
    with pytest.raises(SystemExit) as ended:
        make_app(())(["run", "c64", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1 and lines[0].startswith("polyvisor: ") and says in lines[0], lines


def test_a_machine_is_kept_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, png = tmp_path / "kept", tmp_path / "a.png"
    with pytest.raises(SystemExit) as ended:
        make_app(())(["run", "c64", "--headless", "--seconds", "1", "--keys", r"poke 53280,5\n", "--save", str(kept)])
    assert ended.value.code == 0
    with pytest.raises(SystemExit) as ended:
        make_app(())(["run", "c64", "--headless", "--seconds", "0", "--restore", str(kept), "--screenshot", str(png)])
    assert ended.value.code == 0 and picture(png)[2][1:4] == bytes.fromhex("56ac4d")
    with pytest.raises(SystemExit) as ended:
        make_app(())(["restore", str(kept)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "is of a Commodore 64: polyvisor run c64 --restore" in error


def test_a_machine_for_the_other_television(tmp_path: Path) -> None:
    kept, png = tmp_path / "kept", tmp_path / "a.png"
    for arguments in (["--model", "ntsc", "--save", str(kept)], ["--restore", str(kept), "--screenshot", str(png)]):
        with pytest.raises(SystemExit) as ended:
            make_app(())(["run", "c64", "--headless", "--seconds", "1", *arguments])
        assert ended.value.code == 0
    assert picture(png)[:2] == (384, 235)


def test_options_before_the_name_are_told_where_they_go() -> None:
    done = run("--cpus", "2", "c64")
    assert done.returncode == 2 and b"come after its name" in done.stderr
    done = run("c64", "--help")
    assert done.returncode == 0 and b"--debug-register" in done.stdout and b"Ctrl-A x" in done.stdout


# The terminal

_WRITTEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|(\x1b)|([^\x1b])", re.DOTALL)


class Screen(Terminal):
    """A run on a pseudo-terminal, with as much of a terminal as tells what is seen on it."""

    def __init__(self, *arguments: str, size: tuple[int, int] = (80, 24)) -> None:
        super().__init__("c64", *arguments)
        self.resize(*size)
        self.rest = b""
        self.left = False

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.columns, self.cells = columns, {}
        self.at = (1, 1)
        self.colours = {"38": "", "48": ""}

    def read(self, seconds: float) -> None:
        """Take what is written within so long."""
        if not select.select([self.master], [], [], seconds)[0]:
            return
        data = self.rest + os.read(self.master, 1 << 16)
        # What is cut is completed by what comes next.
        cut = max(data.rfind(b"\x1b"), max((data.rfind(bytes([lead])) for lead in range(0xC2, 0xF5)), default=-1))
        cut = len(data) if cut < len(data) - 30 else cut
        data, self.rest = data[:cut], data[cut:]
        self.left = self.left or b"\x1b[?1049l" in data + self.rest
        for values, command, _, character in _WRITTEN.findall(data.decode()):
            if command == "H":
                line, _, column = values.partition(";")
                self.at = int(line or 1), int(column or 1)
            elif command == "J":
                self.cells.clear()
            elif command == "m" and values[:2] in self.colours:
                self.colours[values[:2]] = values[5:]
            elif character >= " ":
                self.cells[self.at] = character, self.colours["38"], self.colours["48"]
                self.at = self.at[0], self.at[1] + 1

    def line(self, number: int) -> str:
        return "".join(self.cells.get((number, column), " ")[0] for column in range(1, self.columns + 1)).strip()

    def wait(self, condition: Callable[[], bool], timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while not condition():
            assert time.monotonic() < end, "\n".join(self.line(number) for number in range(1, 60))
            self.read(0.1)

    def shows(self, text: str) -> None:
        self.wait(lambda: any(text in self.line(number) for number in range(1, 60)))


def test_the_terminal_gives_a_prompt_and_is_put_back() -> None:
    screen = Screen()
    screen.shows("**** POLYVISOR 64 FREE ROM ****")
    screen.shows("READY.")
    screen.type(b"print 6*7\r")
    screen.shows("PRINT 6*7")
    screen.wait(lambda: any(screen.line(number) == "42" for number in range(1, 25)))
    line = next(number for number in range(1, 25) if "PRINT 6*7" in screen.line(number))
    assert screen.cells[line, 21] == ("P", "112;109;235", "46;44;155")  # light blue on blue, 40 columns in the middle
    screen.type(b"\x01h")
    screen.shows("Ctrl-A x   quit")
    screen.type(b" ")
    screen.shows("READY.")
    screen.type(b"\x01x")
    assert screen.close() == 0


def test_a_large_terminal_shows_points() -> None:
    screen = Screen("--keys", "poke 53280,2\\n", size=(384, 140))
    screen.wait(lambda: screen.cells.get((3, 1)) == ("▀", "129;51;56", "129;51;56"))
    # 384 x 272 points, two in a cell: all of the picture, blue inside of the border.
    assert screen.cells[80, 200] == ("▀", "46;44;155", "46;44;155")
    screen.resize(100, 30)
    screen.shows("READY.")
    screen.type(b"\x01x")
    assert screen.close() == 0


def test_going_back_in_time_by_a_key() -> None:
    screen = Screen()
    screen.shows("READY.")
    screen.type(b"print 11*11\r")
    screen.shows("121")
    screen.type(b"\x01b")
    screen.wait(lambda: not any("121" in screen.line(number) for number in range(1, 25)))
    screen.type(b"\x01x")
    assert screen.close() == 0


def test_a_signal_leaves_the_terminal_as_it_was() -> None:
    screen = Screen()
    screen.shows("READY.")
    screen.process.send_signal(signal.SIGTERM)
    end = time.monotonic() + 30
    while screen.process.poll() is None and time.monotonic() < end:
        screen.read(0.1)
    screen.read(0)
    assert screen.left, "the other screen is still shown"
    assert screen.close() == 128 + signal.SIGTERM


def test_a_program_ends_the_terminal_with_its_status(tmp_path: Path) -> None:
    screen = Screen(prg(tmp_path / "test.prg", "lda #3\n sta $d7ff\n1: jmp 1b"), "--debug-register")
    assert screen.close() == 1


# The window


def test_a_window_shows_it_and_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame", exc_type=ImportError)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    path = tmp_path / "a.png"
    done = run("c64", "--window", "--seconds", "1", "--speed", "max", "--screenshot", str(path))
    assert (done.returncode, done.stderr) == (0, b"")
    assert picture(path)[:2] == (384, 272)
