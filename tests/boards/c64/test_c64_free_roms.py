"""The free ROMs on the whole machine: its chips' interrupts, keys that are pressed, a drive with a disk."""

from collections.abc import Iterator

import pytest

from polyvisor.boards.c64.machine import Commodore64
from polyvisor.boards.c64.software import screen, type_text, wait_for_prompt
from polyvisor.storage.commodore.d64 import D64

# A SYS line, and what it starts: the border becomes black, and the program goes round for ever.
GAME = bytes.fromhex("0108 0b08 0a00 9e 32303634 00 0000 000000 a9008d20d0 4c1508")


@pytest.fixture(scope="module")
def booted() -> Iterator[Commodore64]:
    disk = D64.formatted(b"WORK", b"A1")
    disk.write(b"GAME", GAME)
    machine = Commodore64(tier="interpreter")
    machine.insert(disk)
    wait_for_prompt(machine)
    yield machine
    machine.close()


def prompt(machine: Commodore64) -> None:
    """Wait until lines can be typed."""
    assert machine.run_until(lambda: machine.peek(0xCC) == 0 and machine.peek(0xC6) == 0)


def tap(machine: Commodore64, *keys: str) -> None:
    """Press keys together, and let them go."""
    for key in keys:
        machine.key(key)
        machine.run_frames(3)
    for key in keys:
        machine.key(key, False)
    machine.run_frames(3)


def test_keys_and_the_clock(booted: Commodore64) -> None:
    assert booted.peek(0x02A6) == 1
    before = int.from_bytes(booted.memory.read(0xA0, 3), "big"), booted.frames
    for key in ("p", "o", "k", "e", "1", "9", "8", ",", "7", "return"):
        tap(booted, key)
    prompt(booted)
    assert booted.peek(198) == 0 and "POKE198,7" in screen(booted)
    ticks = int.from_bytes(booted.memory.read(0xA0, 3), "big") - before[0]
    frames = booted.frames - before[1]
    assert abs(ticks - frames * 60 * 312 * 63 / 985248) < 3


def test_a_program_is_stopped(booted: Commodore64) -> None:
    type_text(booted, "10 GOTO 10\nRUN\n")
    booted.run_frames(5)
    tap(booted, "stop")
    prompt(booted)
    assert "BREAK IN 10" in screen(booted)


def test_a_game_is_loaded_and_left(booted: Commodore64) -> None:
    type_text(booted, 'LOAD"*",8,1\n')
    prompt(booted)
    type_text(booted, "RUN\n")
    booted.run_frames(5)
    assert int(booted.state.pc) == 0x0815
    # STOP with RESTORE: all begins anew, but for the program.
    booted.key("stop")
    booted.run_frames(2)
    booted.key("restore")
    booted.run_frames(2)
    booted.key("stop", False)
    prompt(booted)
    assert screen(booted)[:3] == ["", "READY.", ""]
    type_text(booted, "LIST\n")
    prompt(booted)
    assert "10 SYS2064" in screen(booted)


def test_shift_with_run_stop(booted: Commodore64) -> None:
    type_text(booted, "NEW\n")
    prompt(booted)
    tap(booted, "leftshift", "stop")
    assert booted.run_until(lambda: int(booted.state.pc) == 0x0815)
