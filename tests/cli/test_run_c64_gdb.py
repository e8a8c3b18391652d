"""`polyvisor run c64 --gdb`: a debugger, and the machine in a terminal, in a window, or without either."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_run_c64 import Screen, prg

import polyvisor.cli.c64 as c64_command
from polyvisor.cli.main import make_app
from support.gdb_client import Client

PROGRAM = "start: ldx #0\n1: inx\n stx $d020\n stx $0400\n jmp 1b"
PC = 5


def start(*arguments: str) -> tuple[subprocess.Popen[bytes], Client]:
    process = subprocess.Popen(
        [sys.executable, "-m", "polyvisor", "run", "c64", *arguments, "--gdb", "0"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    line = process.stderr.readline()
    found = re.fullmatch(rb"waiting for gdb: target remote :(\d+)\n", line)
    assert found is not None, line + process.stderr.read()
    return process, Client(int(found[1]))


def stops_at_the_screen(client: Client) -> None:
    """As a user would look for who writes to the screen, and when that began."""
    assert client.register(PC) == 0xC000
    assert client.ask("Z2,400,1") == "OK"
    for value in (1, 2, 3):
        assert client.ask("c") == "T05thread:1;watch:400;"
        assert client.ask("m400,1") == f"{value:02x}" and client.register(PC) == 0xC009
    assert client.ask("bc") == "T05thread:1;watch:400;"
    assert client.ask("bc") == "T05thread:1;watch:400;" and client.register(PC) == 0xC006
    assert client.ask("m400,1") == "01"
    assert client.ask("z2,400,1") == "OK"


def test_without_a_terminal_it_waits_and_is_killed(tmp_path: Path) -> None:
    process, client = start(prg(tmp_path / "a.prg", PROGRAM))
    stops_at_the_screen(client)
    client.send("k")
    assert process.wait(30) == 0
    assert process.communicate() == (b"", b"")


def test_a_program_that_ends_hangs_up(tmp_path: Path) -> None:
    process, client = start(prg(tmp_path / "a.prg", "lda #3\n sta $d7ff\n1: jmp 1b"), "--debug-register")
    assert client.ask("s").startswith("T05") and client.register(0) == 3
    client.send("c")
    assert client.socket.recv(100) in (b"", b"+")
    assert process.wait(30) == 1


def test_a_step_over_the_end_ends_the_run_when_it_goes_on(tmp_path: Path) -> None:
    process, client = start(prg(tmp_path / "a.prg", "lda #0\n sta $d7ff\n1: jmp 1b"), "--debug-register")
    for _ in range(2):
        assert client.ask("s").startswith("T05")
    assert client.register(PC) == 0xC005
    client.ask("D")
    assert process.wait(30) == 0


def test_a_jam_ends_the_run_where_no_debugger_is(tmp_path: Path) -> None:
    process, client = start(prg(tmp_path / "a.prg", "lda #0\n .byte 2"), "--seconds", "1000")
    assert client.ask("c") == "T04thread:1;"
    client.ask("D")
    assert process.wait(30) == 1
    assert process.communicate()[1] == b"polyvisor: the CPU is jammed at $c002\n"


def test_an_interrupt_ends_it_while_it_waits(tmp_path: Path) -> None:
    process, client = start(prg(tmp_path / "a.prg", PROGRAM))
    assert client.register(PC) == 0xC000
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130 and process.communicate() == (b"", b"")


def test_its_seconds_are_the_machines_own(tmp_path: Path) -> None:
    process, client = start(prg(tmp_path / "a.prg", PROGRAM), "--seconds", "2")
    stops_at_the_screen(client)
    client.ask("D")
    assert process.wait(30) == 0


def test_the_terminal_is_shown_meanwhile(tmp_path: Path) -> None:
    screen = Screen(prg(tmp_path / "a.prg", PROGRAM), "--gdb", "0")
    screen.shows("waiting for gdb: target remote :")
    port = re.search(r"remote :(\d+)", screen.line(1))
    assert port is not None
    client = Client(int(port[1]))
    stops_at_the_screen(client)
    screen.wait(lambda: "gdb" not in screen.line(1))
    client.send("c")
    colours = {screen.cells.get((10, 1))}
    screen.wait(lambda: colours.add(screen.cells.get((10, 1))) or len(colours) > 3)
    screen.type(b"\x01h")
    screen.shows("Ctrl-A x   quit")
    client.socket.sendall(b"\x03")
    assert client.receive().startswith("T02")
    screen.type(b" ")
    client.send("k")
    assert screen.close() == 0


def test_a_window_is_shown_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pygame", exc_type=ImportError)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    process, client = start(prg(tmp_path / "a.prg", PROGRAM), "--window")
    stops_at_the_screen(client)
    client.send("k")
    assert process.wait(30) == 0


def test_mistakes_get_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(c64_command, "is_terminal", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, says in (
            (["--gdb", port], f"--gdb {port}: Address already in use"),
            (["--gdb", "0", "--keys", "a"], "give it or --gdb, not both"),
        ):
            with pytest.raises(SystemExit) as ended:
                make_app(())(["run", "c64", *arguments])
            error = capsys.readouterr().err
            assert ended.value.code == 2 and error.count("\n") == 1 and says in error, error
