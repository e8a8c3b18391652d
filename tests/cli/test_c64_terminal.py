"""What the terminal of a Commodore 64 is made of: pictures as cells, differences, keys, pace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from polyvisor.boards.c64.machine import Commodore64
from polyvisor.boards.c64.model import PAL
from polyvisor.cli.c64_play import Pace, Play, WindowPlay
from polyvisor.cli.c64_terminal import Screen, Typist, block_cells, cells_of, keys_of, mean, strokes, text_cells
from polyvisor.devices.c64.palette import COLOURS
from polyvisor.devices.c64.picture import Picture
from polyvisor.devices.keys import KEYS
from polyvisor.vm.c64.machine import C64


@pytest.fixture
def machine() -> Iterator[Commodore64]:
    made = Commodore64()
    made.run_frames(10)
    yield made
    made.close()


def checks(width: int = 384, height: int = 272) -> Picture:
    """Columns of colours 0 to 15, in turn."""
    return Picture(width, height, bytes(x % 16 for x in range(width)) * height, 35)


@pytest.mark.parametrize(("columns", "lines"), [(384, 136), (400, 150), (80, 24), (20, 5), (3, 2), (1, 1), (200, 10)])
def test_pictures_fill_terminals_of_any_size(columns: int, lines: int) -> None:
    cells = block_cells(checks(), columns, lines)
    assert len(cells) == lines and {len(row) for row in cells} == {columns}


def test_points_are_what_they_were_where_there_is_room() -> None:
    cells = block_cells(checks(), 384, 136)
    assert [cell[1] for cell in cells[0]] == [COLOURS[x % 16] for x in range(384)]
    cells = block_cells(checks(), 386, 138)  # with a black edge of one
    assert cells[0][5] == (" ", 0, 0) and cells[1][1] == ("▀", COLOURS[0], COLOURS[0])


def test_colours_are_mixed_by_their_parts() -> None:
    assert mean(0, 1) == 0x7F7F7F and mean(2) == COLOURS[2] and mean(0, 0, 0, 1) == 0x3F3F3F


def test_text_is_shown_as_text_with_its_colours(machine: Commodore64) -> None:
    cells = text_cells(machine, 80, 27)
    line = "".join(cell[0] for cell in cells[2])
    assert line[20:60].strip() == "**** POLYVISOR 64 FREE ROM ****"
    assert cells[2][26] == ("*", COLOURS[14], COLOURS[6]) and cells[0][0] == (" ", COLOURS[14], COLOURS[14])
    for columns, lines in ((40, 25), (41, 25), (80, 10), (40, 1)):
        cells = text_cells(machine, columns, lines)
        assert len(cells) == lines and {len(row) for row in cells} == {columns}
    # The cursor's line is among those that are shown.
    assert any("READY." in "".join(cell[0] for cell in row) for row in text_cells(machine, 40, 3))


def test_sprites_and_graphics_are_points_and_so_is_what_is_large(machine: Commodore64) -> None:
    assert cells_of(machine, 80, 24)[0][0][0] == " " and cells_of(machine, 384, 136)[0][0][0] == "▀"
    machine.set_registers()
    machine.state.vic_registers[0x15] = 1
    assert any(cell[0] == "▀" for cell in cells_of(machine, 80, 24)[10])


def test_only_what_changed_is_sent() -> None:
    screen = Screen()
    cells = [[("a", 1, 2), ("b", 1, 2)], [("c", 1, 2), ("d", 3, 2)]]
    first = screen.draw(cells)
    assert first.startswith("\x1b[0m\x1b[2J\x1b[1;1H\x1b[38;2;0;0;1m\x1b[48;2;0;0;2mab\x1b[2;1Hc\x1b[38;2;0;0;3md")
    assert screen.draw(cells) == ""
    cells[1][0] = ("x", 1, 2)
    assert screen.draw(cells) == "\x1b[2;1H\x1b[38;2;0;0;1m\x1b[48;2;0;0;2mx"
    assert screen.draw([[("a", 1, 2)]]).startswith("\x1b[0m\x1b[2J")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a1", ["a", "1"]), ("\x1b[A\x1bOB", ["up", "down"]), ("\x1b", ["\x1b"]), ("\x1b[15~x", ["f5", "x"]),
        ("\x1b[1;2A", ["up"]), ("\x1b[3;5~", ["delete"]), ("\x1b[99~", []), ("\x1b[[A", ["f1"]), ("é\r", ["é", "\r"]),
    ],
)  # fmt: skip
def test_what_a_terminal_sends(text: str, found: list[str]) -> None:
    assert strokes(text) == found


def test_which_keys_these_are() -> None:
    assert keys_of("a") == ("a",) and keys_of("A") == ("leftshift", "a") and keys_of('"') == ("leftshift", "2")
    assert keys_of("up") == ("leftshift", "down") and keys_of("\x1b") == ("stop",) and keys_of("\r") == ("return",)
    assert keys_of("pageup") == ("restore",) and keys_of("é") == ()


def test_strokes_are_pressed_one_after_the_other(machine: Commodore64) -> None:
    typist = Typist(machine)
    typist.take(strokes("aa"))
    for _ in range(20):
        machine.run_frames(1)
        typist.frame()
    assert machine.memory.read(0x0400 + 40 * 5, 2) == b"\1\1"
    assert not any(map(int, machine.state.keyboard_rows))


def test_the_cursor_keys_may_be_a_joystick(machine: Commodore64) -> None:
    typist = Typist(machine, joystick=2)
    typist.take(strokes("\x1b[D\t"))
    assert int(machine.state.cia_pa_inputs[0]) == 0xFF & ~0b10100
    for _ in range(20):
        typist.frame()
    assert int(machine.state.cia_pa_inputs[0]) == 0xFF


def test_pace_does_not_drift_and_forgets_what_was_too_late() -> None:
    now = 100.0
    pace = Pace(2.0, PAL.clock, lambda: now)
    assert pace.left(0) == 0
    for frame in range(1, 1000):
        assert pace.left(frame * PAL.frame) == pytest.approx(frame * PAL.frame / PAL.clock / 2 - (now - 100))
        now = 100 + frame * PAL.frame / PAL.clock / 2 + 0.001  # each wait takes a bit longer
    now += 10
    assert pace.left(1000 * PAL.frame) < -9
    assert pace.left(1000 * PAL.frame) == 0
    assert pace.left(0) == 0  # back in time
    assert Pace(None, PAL.clock).left(1 << 40) == 0


def test_frames_are_so_long_on_average() -> None:
    with C64(history=0) as c64:
        play = Play(c64, Pace(None, PAL.clock), seconds=4)
        frames = 0
        while not play.is_over:
            play.frame()
            frames += 1
        assert frames == -(-4 * PAL.clock // PAL.frame) and 0 <= c64.elapsed - 4 * PAL.clock < 100


def test_keys_of_the_window_are_keys_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame", exc_type=ImportError)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with C64(history=0) as c64:
        played = WindowPlay(Play(c64, Pace(None, PAL.clock), joystick=1))
        rows, keyboard = c64.cpu.keyboard_rows, played._keyboard
        keyboard.down(KEYS["a"], timeout=0)
        assert int(rows[1]) == 1 << 2
        keyboard.down(KEYS["tab"], timeout=0)
        keyboard.down(KEYS["left"], timeout=0)
        assert int(c64.cpu.cia_pb_inputs[0]) == 0xFF & ~0b10100
        keyboard.down(KEYS["pageup"], timeout=0)
        assert int(c64.cpu.nmi_pending) == 1
        keyboard.release_all()
        assert not any(map(int, rows)) and int(c64.cpu.cia_pb_inputs[0]) == 0xFF
        played._window.close()
