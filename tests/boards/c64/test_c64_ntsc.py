"""A Commodore 64 for NTSC: its frames, clocks and interrupts, and what the KERNAL makes of them."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from polyvisor import C64, SnapshotError
from polyvisor.adl.assembler import assemble
from polyvisor.boards.c64.machine import Commodore64
from polyvisor.boards.c64.model import MODELS, NTSC, PAL, Model, model_named
from polyvisor.boards.c64.software import wait_for_prompt
from polyvisor.isa.mos6502 import mos6510
from polyvisor.vm.c64 import snapshot

# Counts raster interrupts, in line 100, with all else off.
RASTER = """
        sei
        lda #$7f
        sta $dc0d
        lda $dc0d
        lda #$35
        sta $01
        lda #<irq
        sta $fffe
        lda #>irq
        sta $ffff
        lda #$0b
        sta $d011
        lda #100
        sta $d012
        lda #1
        sta $d01a
        sta $d019
        cli
1:      nop
        nop
        jmp 1b
irq:    inc $d019
        inc $02
        rti
"""


@pytest.fixture
def booted() -> Iterator[Commodore64]:
    made = Commodore64(model="ntsc", tier="interpreter")
    wait_for_prompt(made)
    yield made
    made.close()


def test_the_models_are_those_of_the_books() -> None:
    assert (PAL.frame, PAL.clock, NTSC.frame, NTSC.clock) == (312 * 63, 985_248, 263 * 65, 1_022_727)
    assert abs(NTSC.clock / NTSC.frame - 59.826) < 0.001 and abs(PAL.clock / PAL.frame - 50.125) < 0.001
    assert model_named("ntsc") is NTSC and list(MODELS) == ["pal", "ntsc"]
    with pytest.raises(ValueError, match="no model 'secam'; there are pal, ntsc"):
        Commodore64(model="secam")


def test_the_kernal_finds_the_chip_and_sets_the_timer(booted: Commodore64) -> None:
    # "Mapping the Commodore 64": 678 is 0 for NTSC, and the timer makes sixty interrupts a second.
    assert booted.peek(0x02A6) == 0 and int(booted.state.cia_reload[0]) == 17045
    booted.power_cycle()
    wait_for_prompt(booted)
    before = int.from_bytes(booted.memory.read(0xA0, 3), "big")
    booted.run(10 * NTSC.clock)
    assert abs(int.from_bytes(booted.memory.read(0xA0, 3), "big") - before - 600) <= 1


def test_a_second_has_sixty_frames(booted: Commodore64) -> None:
    before = booted.frames
    booted.run(10 * NTSC.clock)
    assert booted.frames - before in (598, 599)


@pytest.mark.parametrize("model", [PAL, NTSC])
def test_raster_interrupts_are_a_frame_apart(model: Model) -> None:
    machine = Commodore64(model=model.name, tier="interpreter")
    wait_for_prompt(machine)
    program = assemble(mos6510, RASTER, 0x1000)
    machine.memory.write(0x1000, program.bytes)
    machine.set_registers(pc=0x1000)
    machine.cpu.set_breakpoints((program.symbols["irq"],))
    times = []
    for _ in range(21):
        assert machine.run(100_000).reason == "breakpoint"
        assert int(machine.state.vic_line) == 100 and int(machine.state.vic_cycle) < 20
        times.append(machine.elapsed)
    gaps = [b - a for a, b in pairwise(times[1:])]
    assert all(abs(gap - model.frame) <= 3 for gap in gaps) and abs(sum(gaps) - len(gaps) * model.frame) <= 3
    machine.close()


def test_the_time_of_day_counts_the_mains(booted: Commodore64) -> None:
    text = """sei\n lda #0\n sta $dc0b\n sta $dc0a\n sta $dc09\n sta $dc08
           1: lda $dc0b\n lda $dc09\n sta $02\n lda $dc08\n sta $03\n jmp 1b"""
    booted.memory.write(0x1000, assemble(mos6510, text, 0x1000).bytes)
    booted.set_registers(pc=0x1000)
    booted.run(int(7.55 * NTSC.clock))
    assert (booted.peek(2), booted.peek(3)) == (7, 5)


def test_the_picture_is_the_visible_lines(booted: Commodore64) -> None:
    booted.run_frames(2)
    made = booted.picture()
    rows = [made.pixels[at : at + made.width] for at in range(0, len(made.pixels), made.width)]
    # 235 of them, from line 41 on; the display window begins in line 51.
    assert (made.width, made.height, made.above) == (384, 235, 10)
    assert {bytes(row) for row in rows[:10]} == {bytes([14]) * 384} == {bytes(row) for row in rows[210:]}
    assert all(row[32] == 6 for row in rows[10:210])


def test_what_is_heard_has_the_pitch_of_the_clock(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    tone = {0xD418: 15, 0xD405: 0, 0xD406: 0xF0, 0xD400: 0x25, 0xD401: 0x11, 0xD404: 0x11}
    text = "".join(f"lda #{value}\n sta {register}\n" for register, value in tone.items()) + "1: jmp 1b"
    with C64((0xC000).to_bytes(2, "little") + assemble(mos6510, text, 0xC000).bytes, model="ntsc") as c64:
        c64.record(path)
        c64.run(seconds=2)
    with wave.open(str(path)) as file:
        # The SID may have been 20,000 cycles behind when the recording began.
        assert -50 < file.getnframes() - 2 * 44_100 < 950
        samples = memoryview(file.readframes(file.getnframes())).cast("h")
    crossings = sum(a < 0 <= b for a, b in pairwise(samples[-44_100:]))
    assert abs(crossings - 0x1125 * NTSC.clock / (1 << 24)) <= 2


def test_snapshots_copies_and_the_past_are_of_the_model(tmp_path: Path) -> None:
    with C64(model="ntsc") as c64:
        c64.type("print 6*7\n")
        c64.save(tmp_path / "a")
        c64.run(seconds=1.5)
        with C64.restore(tmp_path / "a") as other, c64.copy() as third:
            assert other.machine.model is third.machine.model is NTSC
            other.run(cycles=c64.elapsed - other.elapsed)
            assert other.machine.save().memory == c64.machine.save().memory == third.machine.save().memory
        assert abs(c64.kept_seconds - c64.seconds) < 0.1
        c64.rewind(1)
        with C64() as pal, pytest.raises(ValueError, match="another kind"):
            pal.machine.restore(c64.machine.save())


def test_snapshots_of_before_there_were_models_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = snapshot.to_plain

    def without_model(contents: object) -> object:
        made = plain(contents)
        assert isinstance(made, dict)
        registers = {name: values for name, values in made["registers"].items() if name not in snapshot._NEW_REGISTERS}
        return {name: value for name, value in made.items() if name != "model"} | {"format": 1, "registers": registers}

    with C64() as c64:
        c64.run(frames=3)
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "to_plain", without_model)
            c64.save(tmp_path / "old")
        with C64.restore(tmp_path / "old") as other:
            assert other.machine.model is PAL and other.elapsed == c64.elapsed
            c64.run(seconds=0.5)
            other.run(cycles=c64.elapsed - other.elapsed)
            assert other.machine.save().memory == c64.machine.save().memory
        with monkeypatch.context() as patch:
            patch.setattr(snapshot, "to_plain", lambda contents: plain(contents) | {"model": "secam"})  # type: ignore[operator]
            c64.save(tmp_path / "odd")
        with pytest.raises(SnapshotError, match="makes no sense: there is no model 'secam'"):
            C64.restore(tmp_path / "odd")
