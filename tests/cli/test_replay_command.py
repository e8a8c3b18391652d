"""``polyvisor record`` and ``polyvisor replay``, and gdb in a replay."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.gdb_client import Client
from support.net_program import chatter
from support.programs import DRAM, POWER_OFF, elf

# Counts to 300 in a1, with a place at each tenth; then ends with 7.
PROGRAM = """
    li a1, 0
    li a2, 300
    li a3, 10
loop:
    addi a1, a1, 1
    remu a4, a1, a3
    bnez a4, next
tenth:
    addi a5, a5, 1
next:
    bne a1, a2, loop
    li t0, 0x10000000
    li t1, 33
    sb t1, 0(t0)
    li a0, 7
    j power_off
"""
TENTH = DRAM + 24


def polyvisor(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "polyvisor", *arguments], input=stdin, capture_output=True, timeout=120
    )


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("replay")
    (place / "prog.elf").write_bytes(elf(PROGRAM + POWER_OFF))
    done = polyvisor("record", str(place / "x.rec"), str(place / "prog.elf"), "--memory", "16M", "--cpus", "1")
    assert (done.returncode, done.stdout) == (7, b"!"), done.stderr
    (place / "prog.elf").unlink()
    return place / "x.rec"


def test_a_replay_shows_and_ends_as_the_run_did(recording: Path) -> None:
    done = polyvisor("replay", str(recording))
    assert (done.returncode, done.stdout, done.stderr) == (7, b"!", b"")


def test_who_reads_may_have_enough(recording: Path) -> None:
    command = [sys.executable, "-m", "polyvisor", "replay", str(recording)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) in (0, 7)


def test_check_says_that_it_is_the_same(recording: Path) -> None:
    done = polyvisor("replay", str(recording), "--check", "--tier", "interpreter")
    assert done.returncode == 0
    assert re.fullmatch(rb"the same at [1-9]\d* checkpoints, to [1-9][\d,]* instructions\n", done.stdout)


def test_errors_are_one_line(recording: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.rec"
    bad.write_bytes(recording.read_bytes()[:100])
    program = tmp_path / "prog.elf"
    program.write_bytes(elf(PROGRAM + POWER_OFF))
    for arguments, message in (
        (("replay", str(tmp_path / "none")), "No such file"),
        (("replay", str(bad)), "has no machine in it"),
        (("replay", str(recording), "--tier", "fast"), "there are"),
        (("record", str(tmp_path / "no" / "x.rec"), str(program)), "No such file"),
        (("run", str(tmp_path), "--seed", "1"), "is a directory"),
    ):
        done = polyvisor(*arguments)
        assert done.returncode == 2, done
        assert message in done.stderr.decode()
        assert done.stderr.count(b"\n") == 1


# gdb


@pytest.fixture
def client(recording: Path) -> Iterator[Client]:
    process = subprocess.Popen(
        [sys.executable, "-m", "polyvisor", "replay", str(recording), "--gdb", "0"], stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True,
    )
    assert process.stderr is not None
    port = int(process.stderr.readline().rpartition(":")[2])
    made = Client(port)
    yield made
    made.socket.close()
    assert process.wait(30) == 0


def test_gdb_goes_backwards(client: Client) -> None:
    assert "ReverseStep+;ReverseContinue+" in client.ask("qSupported")
    assert client.ask("?").startswith("T05")
    assert client.register(32) == DRAM
    assert client.ask(f"Z0,{TENTH:x},2") == "OK"
    for expected in (10, 20, 30):
        assert client.ask("c").startswith("T05thread:1;")
        assert (client.register(32), client.register(11)) == (TENTH, expected)
    for expected in (20, 10):
        assert client.ask("bc") == "T05thread:1;"
        assert (client.register(32), client.register(11)) == (TENTH, expected)
    assert client.ask("bs") == "T05thread:1;"
    assert (client.register(32), client.register(11)) == (TENTH - 4, 10)
    assert client.ask("s") == "T05thread:1;"
    assert client.register(32) == TENTH
    assert client.ask("bc") == "T05thread:1;replaylog:begin;"
    assert client.register(32) == DRAM
    assert client.ask("bs").endswith("replaylog:begin;")
    # What happened cannot be changed.
    assert client.ask("Pb=0000000000000000") == "E01"
    assert client.ask(f"M{DRAM:x},1:00") == "E01"
    assert client.ask(f"z0,{TENTH:x},2") == "OK"
    assert client.ask("c").endswith("replaylog:end;")
    assert client.ask("bs") == "T05thread:1;"
    assert client.ask("D") == "OK"


# Labs


def test_a_lab_is_recorded_and_replayed(tmp_path: Path) -> None:
    (tmp_path / "chatter.elf").write_bytes(chatter(rounds=20))
    machines = "".join(
        f"[machine.{name}]\nprogram = 'chatter.elf'\nmemory = '16M'\nnetworks = ['lan']\n" for name in "ab"
    )
    (tmp_path / "lab.toml").write_text(
        "virtual_time = true\nseed = 1\n[network.lan]\nloss = 0.1\ndelay = 0.001\n"
        f"partitions = [{{ at = 0.002, until = 0.004, machines = ['b'] }}]\n{machines}"
    )
    path = str(tmp_path / "lab.rec")
    done = polyvisor("record", path, str(tmp_path / "lab.toml"))
    assert done.returncode == 0, done.stderr
    for options in ((), ("--machine", "a")):
        done = polyvisor("replay", path, "--check", *options)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.decode().splitlines()
        assert all("the same at " in line for line in lines) and len(lines) == (1 if options else 2)
    for options, message in (
        (("--gdb", "0"), "give --machine NAME; there are a, b"), (("--machine", "c"), "has no machine 'c'"),
    ):
        done = polyvisor("replay", path, *options)
        assert done.returncode == 2
        assert message in done.stderr.decode() and done.stderr.count(b"\n") == 1
