"""`polyvisor.C64` as people use it: runs, snapshots, copies, the past, hooks, breakpoints."""

from __future__ import annotations

import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import polyvisor
from polyvisor import C64, hooks
from polyvisor.adl.assembler import assemble
from polyvisor.boards.c64.machine import Saved
from polyvisor.boards.c64.model import PAL
from polyvisor.isa.mos6502 import mos6510
from polyvisor.storage.commodore.d64 import D64

# Border, a counter on the screen, keys and a joystick: all that is outside has its effect.
BUSY = """
 sei
 ldx #0
1: inc $d020
 inc $0400,x
 inx
 lda #$7f
 sta $dc00
 lda $dc01
 eor $0500,x
 sta $0500,x
 lda $dc00
 adc $0600,x
 sta $0600,x
 jmp 1b
"""


def prg(text: str, at: int = 0xC000) -> bytes:
    return at.to_bytes(2, "little") + assemble(mos6510, text, at).bytes


@pytest.fixture
def c64() -> Iterator[C64]:
    with C64() as made:
        yield made


def seen(c64: C64) -> tuple[int, bytes, int]:
    """Memory, picture included, and where the CPU is."""
    saved = c64.machine.save()
    return saved.elapsed, saved.memory, int(c64.cpu.pc)


def test_it_is_typed_at_and_looked_at(c64: C64, tmp_path: Path) -> None:
    assert polyvisor.C64 is C64
    c64.type("print 6*7\n")
    c64.wait_for(" 42")
    assert "READY." in c64.text and c64.screen[1].endswith("FREE ROM ****")
    c64.picture().save(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(polyvisor.VMTimeoutError, match=r"'nothing' did not come within 0.1 seconds; .*\n"):
        c64.wait_for("nothing", seconds=0.1)
    c64.press("shift", "home")
    c64.run(frames=2)
    assert c64.text == ""
    with pytest.raises(ValueError, match="no key 'any'"):
        c64.press("any")


def test_time_is_the_machines(c64: C64) -> None:
    before = c64.elapsed
    c64.run(seconds=1.5, frames=2, cycles=1000)
    assert 0 <= c64.elapsed - before - 1.5 * PAL.clock - 2 * PAL.frame - 1000 < 100
    assert c64.seconds == c64.elapsed / PAL.clock


def test_a_closed_machine_says_so() -> None:
    c64 = C64()
    c64.close()
    c64.close()
    for use in (c64.run, c64.copy, lambda: c64.screen, lambda: c64.cpu, lambda: c64.save("x")):
        with pytest.raises(polyvisor.StoppedError, match="closed"):
            use()


def test_what_is_no_software_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.d64").write_bytes(b"123")
    for wrong in (tmp_path / "a.d64", tmp_path / "none.prg", b"1", tmp_path):
        with pytest.raises(ValueError) as error:
            C64(wrong)
        assert "\n" not in str(error.value)


def test_rewinding_is_exact(c64: C64) -> None:
    c64.start(prg(BUSY))
    c64.run(seconds=0.7)
    moments = []
    for number in range(12):
        c64.hold("a" if number % 2 else "space")
        c64.run(cycles=30_011)
        c64.joystick(2, left=number % 3 == 0, fire=True)
        c64.run(seconds=0.23)
        c64.release()
        moments.append(seen(c64))
        c64.write(0x0700 + number, number)
    for moment in (9, 8, 3):
        c64.rewind((c64.elapsed - moments[moment][0]) / PAL.clock)
        # What was written at that very moment was written after it was looked at.
        now = seen(c64)
        assert now[0] == moments[moment][0] and now[2] == moments[moment][2]
        changed = [at for at in range(len(now[1])) if now[1][at] != moments[moment][1][at]]
        assert changed in ([], [0x0700 + moment])
    c64.run(seconds=0.1)
    assert c64.kept_seconds > 1
    with pytest.raises(ValueError, match=r"seconds back: .* are kept"):
        c64.rewind(1000)


def test_going_back_and_on_again_is_the_same_without_hands(c64: C64) -> None:
    c64.start(prg(BUSY))
    c64.run(seconds=1.3)
    end = seen(c64)
    c64.rewind(1.1)
    assert c64.elapsed < end[0]
    c64.machine.run_to(end[0])
    assert seen(c64) == end


def test_rewinding_passes_resets(c64: C64) -> None:
    c64.type("poke 1024,1\n")
    before = c64.elapsed
    c64.run(seconds=0.5)
    c64.power_cycle()
    c64.run(seconds=0.5)
    assert "POKE" not in c64.text
    c64.rewind((c64.elapsed - before) / PAL.clock)
    assert "POKE 1024,1" in c64.text


def test_a_disks_file_goes_back_too(tmp_path: Path) -> None:
    path = tmp_path / "a.d64"
    D64.formatted(b"WORK", b"A1").save(path)
    with C64(path, autostart=False) as c64:
        c64.type("10 print 1\n")
        c64.run(seconds=0.5)
        c64.type('save"a",8\n')
        c64.run(seconds=1)
        assert len(D64.open(path).entries()) == 1
        c64.rewind(1.4)
        assert len(D64.open(path).entries()) == 0
        c64.run(seconds=1)
        c64.type('save"b",8\n')
        c64.run(seconds=1)
    assert [entry.name for entry in D64.open(path).entries()] == [b"B"]


def test_only_so_much_is_kept() -> None:
    with C64(history=2) as c64:
        c64.run(seconds=6)
        assert 2 <= c64.kept_seconds < 4
        c64.rewind(2)
    with C64(history=0) as c64, pytest.raises(ValueError, match="no history"):
        c64.rewind(1)


def test_copies_go_their_own_ways(c64: C64) -> None:
    c64.start(prg(BUSY))
    c64.run(seconds=0.5)
    with c64.copy() as other, c64.copy() as third:
        other.run(seconds=0.5)
        c64.run(seconds=0.5)
        assert seen(other) == seen(c64)
        third.joystick(2, up=True)
        third.run(seconds=0.5)
        assert seen(third)[1] != seen(c64)[1]


def test_snapshots_go_on_as_the_machine_did(c64: C64, tmp_path: Path) -> None:
    path = tmp_path / "a.c64"
    c64.insert(D64.formatted(b"WORK", b"A1"))
    c64.start(prg(BUSY))
    c64.run(seconds=0.5)
    c64.save(path)
    c64.run(seconds=0.5)
    with C64.restore(path) as other:
        other.run(seconds=0.5)
        assert seen(other) == seen(c64)
        assert isinstance(other.machine.drive.medium, D64)
    assert [each.name for each in tmp_path.iterdir()] == ["a.c64"]


@pytest.mark.parametrize("damage", ["cut", "bit", "ram", "empty", "other"])
def test_damaged_snapshots_are_refused(c64: C64, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.c64"
    c64.run(frames=10)
    c64.save(path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        del data[-100:]
    elif damage == "bit":
        data[-1000] ^= 1
    elif damage == "ram":
        data[0x10000 + 0x400] ^= 1
    else:
        data = bytearray(b"" if damage == "empty" else b"x" * 10_000)
    path.write_bytes(data)
    with pytest.raises(polyvisor.SnapshotError) as error:
        C64.restore(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    with pytest.raises(polyvisor.SnapshotError, match="no such snapshot"):
        C64.restore(tmp_path / "none")


def test_a_state_of_another_machine_is_refused(c64: C64) -> None:
    saved = c64.machine.save()
    with pytest.raises(ValueError, match="another kind"):
        c64.machine.restore(Saved(**{**vars(saved), "registers": b"1"}))


def test_breakpoints_and_steps(c64: C64) -> None:
    c64.start(prg("1: inc $0400\n nop\n jmp 1b"))
    c64.break_at(0xC003)
    for _ in range(3):
        assert c64.run(seconds=1).reason == "breakpoint" and int(c64.cpu.pc) == 0xC003
    before = c64.read(0x0400)[0]
    c64.step(3)
    assert int(c64.cpu.pc) == 0xC003 and c64.read(0x0400)[0] == (before + 1) & 0xFF
    c64.break_at()
    assert c64.run(seconds=0.1).reason == "limit"
    assert c64.disassemble(0xC000, 3) == [
        "c000  ee 00 04  inc $0400", "c003  ea        nop", "c004  4c 00 c0  jmp $c000"
    ]
    c64.set(pc=0xC003, a=7)
    assert int(c64.cpu.a) == 7 and c64.disassemble(count=1)[0].startswith("c003")


def test_memory_is_read_as_the_cpu_sees_it(c64: C64) -> None:
    c64.run(seconds=0.2)
    rom = c64.machine.roms
    assert c64.read(0xE000, 16) == rom.kernal[:16] and c64.read(0xA000, 16) == rom.basic[:16]
    assert c64.read(0xE000, 16, ram=True) == bytes(16)
    c64.write(0xA000, b"\1\2")
    assert c64.read(0xA000, 2, ram=True) == b"\1\2" and c64.read(0xA000, 2) == rom.basic[:2]
    with pytest.raises(ValueError):
        c64.read(0xFFFF, 2)


def test_hooks_see_what_is_written_where(c64: C64) -> None:
    c64.start(prg("1: lda #1\n sta $d020\n lda #2\n sta $d020\n jmp 1b"))
    c64.run(frames=2)
    found = []
    with c64.hooks.add(lambda event: found.append((event.value, int(event.cpu.a))), on="write", at=0xD020):
        c64.run(cycles=200)
    assert len(found) >= 10 and set(found) == {(1, 1), (2, 2)}

    class Counter(hooks.State):
        total = hooks.Field(hooks.u64)

    @hooks.on_instruction
    def count(hook):
        hook.total += 1

    with c64.hooks.add(count, Counter, at=0xC000) as added:
        c64.run(cycles=1500)
        assert 80 < added.total < 125
    assert len(c64.hooks) == 0
    c64.run(frames=2)


def test_the_debug_register_is_seen_even_while_the_program_is_started() -> None:
    with C64(prg("lda #0\n sta $d7ff\n1: jmp 1b"), debug_register=True) as c64:
        found = c64.run(seconds=1)
        assert (found.reason, found.value) == ("debug", 0)


def test_sound_is_given_to_who_listens_and_to_the_recording(c64: C64, tmp_path: Path) -> None:
    path, heard = tmp_path / "a.wav", bytearray()
    c64.run(seconds=1.1)
    c64.listen(heard.extend)
    c64.record(path)
    with pytest.raises(ValueError, match="somebody listens at 44100 samples a second; 22050 are another rate"):
        c64.record(tmp_path / "b.wav", 22_050)
    c64.record(path)
    c64.type("poke 54296,15\n")
    c64.run(seconds=1)
    c64.write(0xD418, 0)
    c64.stop_recording()
    with wave.open(str(path)) as file:
        recorded = file.readframes(file.getnframes())
    assert bytes(heard) == recorded and max(memoryview(recorded).cast("h")) > 1000
    # Before that, nobody listened, so the SID may have been 20,000 cycles behind.
    c64.rewind(c64.seconds - 1.05)
    before = len(heard)
    c64.run(seconds=1)
    assert -200 < len(heard) - before - 2 * 44_100 < 2000
    c64.listen(None)
    assert int(c64.cpu.sid_listening) == 0
    before = len(heard)
    c64.run(seconds=0.1)
    assert len(heard) == before
    with pytest.raises(ValueError, match="1000 samples a second"):
        c64.listen(heard.extend, 1000)


def test_sound_is_recorded(c64: C64, tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    tone = {0xD418: 15, 0xD405: 0, 0xD406: 0xF0, 0xD400: 0x25, 0xD401: 0x11, 0xD404: 0x11}
    c64.record(path)
    c64.start(prg("".join(f"lda #{value}\n sta {register}\n" for register, value in tone.items()) + "1: jmp 1b"))
    c64.run(seconds=2)
    c64.stop_recording()
    with wave.open(str(path)) as file:
        assert file.getframerate() == 44_100 and abs(file.getnframes() / 44_100 - c64.seconds) < 0.05
        samples = memoryview(file.readframes(file.getnframes())).cast("h")
    second = samples[-44_100:]
    crossings = sum(a < 0 <= b for a, b in pairwise(second))
    assert abs(crossings - 0x1125 * PAL.clock / (1 << 24)) <= 2  # the frequency, by the data sheet
