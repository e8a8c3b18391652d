"""The free ROMs on the whole machine: its chips' interrupts, keys that are pressed, a drive with a disk."""

from collections.abc import Iterator

import pytest

from polyvisor.boards.c64.drive import Drive, DrivePort
from polyvisor.boards.c64.machine import Commodore64
from polyvisor.boards.c64.roms import free_roms
from polyvisor.storage.commodore.d64 import D64

# A SYS line, and what it starts: the border becomes black, and the program goes round for ever.
GAME = bytes.fromhex("0108 0b08 0a00 9e 32303634 00 0000 000000 a9008d20d0 4c1508")


@pytest.fixture(scope="module")
def booted() -> Iterator[Commodore64]:
    disk = D64.formatted(b"WORK", b"A1")
    disk.write(b"GAME", GAME)
    machine = Commodore64(**free_roms()._asdict(), tier="interpreter")
    machine._expansion.device = DrivePort([Drive(8, disk)])
    assert machine.run_until(lambda: "READY." in machine.screen() and machine.peek(0xCC) == 0)
    yield machine
    machine.close()


def prompt(machine: Commodore64) -> None:
    """Wait until lines can be typed."""
    assert machine.run_until(lambda: machine.peek(0xCC) == 0 and machine.peek(0xC6) == 0)


def tap(machine: Commodore64, *keys: str) -> None:
    """Press keys together, and let them go."""
    for key in keys:
        machine.press(key)
        machine.run_frames(3)
    for key in keys:
        machine.press(key, False)
    machine.run_frames(3)


def test_keys_and_the_clock(booted: Commodore64) -> None:
    assert booted.peek(0x02A6) == 1
    before = int.from_bytes(booted.memory.read(0xA0, 3), "big"), booted.frames
    for key in ("p", "o", "k", "e", "1", "9", "8", ",", "7", "return"):
        tap(booted, key)
    prompt(booted)
    assert booted.peek(198) == 0 and "POKE198,7" in booted.screen()
    ticks = int.from_bytes(booted.memory.read(0xA0, 3), "big") - before[0]
    frames = booted.frames - before[1]
    assert abs(ticks - frames * 60 * 312 * 63 / 985248) < 3


def test_a_program_is_stopped(booted: Commodore64) -> None:
    booted.type("10 GOTO 10\nRUN\n")
    booted.run_frames(5)
    tap(booted, "stop")
    prompt(booted)
    assert "BREAK IN 10" in booted.screen()


def test_a_game_is_loaded_and_left(booted: Commodore64) -> None:
    booted.type('LOAD"*",8,1\n')
    prompt(booted)
    booted.type("RUN\n")
    booted.run_frames(5)
    assert int(booted.state.pc) == 0x0815
    # STOP with RESTORE: all begins anew, but for the program.
    booted.press("stop")
    booted.run_frames(2)
    booted.press("restore")
    booted.run_frames(2)
    booted.press("stop", False)
    prompt(booted)
    assert booted.screen()[:3] == ["", "READY.", ""]
    booted.type("LIST\n")
    prompt(booted)
    assert "10 SYS2064" in booted.screen()


def test_shift_with_run_stop(booted: Commodore64) -> None:
    booted.type("NEW\n")
    prompt(booted)
    tap(booted, "leftshift", "stop")
    assert booted.run_until(lambda: int(booted.state.pc) == 0x0815)
