"""The Commodore 64 as a whole: prompt, programs, cartridges, drive, ROMs of the user's, resets."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.boards.c64 import rom_files, software
from polyvisor.boards.c64.machine import Commodore64, Stop
from polyvisor.boards.c64.model import PAL
from polyvisor.boards.c64.rom_files import RomError, reaching_drives, user_roms
from polyvisor.boards.c64.roms import free_roms
from polyvisor.devices.c64 import memory
from polyvisor.isa.mos6502 import mos6510
from polyvisor.storage.commodore.cartridge import Cartridge, Hardware
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.files import FileType
from polyvisor.storage.commodore.tape import Tape

PRG = 0xC000


def program(text: str, at: int = PRG) -> bytes:
    """A PRG file."""
    return at.to_bytes(2, "little") + assemble(mos6510, text, at).bytes


def basic_stub(text: str) -> bytes:
    """A PRG file that RUN starts: 10 SYS2064, and the program."""
    return bytes.fromhex("0108 0b08 0a00 9e 32303634 00 0000".replace(" ", "")).ljust(17, b"\0") + assemble(
        mos6510, text, 2064
    ).bytes


@pytest.fixture(scope="module")
def booted() -> Iterator[Commodore64]:
    made = Commodore64(debug=True)
    software.wait_for_prompt(made)
    yield made
    made.close()


@pytest.fixture
def machine(booted: Commodore64) -> Iterator[Commodore64]:
    """At the prompt, with the debug register."""
    saved = booted.save()
    yield booted
    booted.on_change, booted.unseen = None, None
    booted.drive.saves = True
    booted.restore(saved)


def test_it_starts_and_computes(machine: Commodore64) -> None:
    assert software.screen(machine)[1].strip() == "**** POLYVISOR 64 FREE ROM ****"
    software.type_text(machine, "print 6*7\n")
    software.wait_for_prompt(machine)
    assert " 42" in software.screen(machine)


def test_programs_are_started_by_run_and_by_sys(machine: Commodore64) -> None:
    software.start(machine, basic_stub("lda #7\n sta $d020\n rts"))
    software.wait_for_prompt(machine)
    assert int(machine.state.vic_registers[0x20]) == 7
    software.start(machine, program("lda #8\n sta $d020\n rts"))
    software.wait_for_prompt(machine)
    assert int(machine.state.vic_registers[0x20]) == 8


@pytest.mark.parametrize("value", [0, 1, 255])
def test_the_debug_register_ends_a_run(machine: Commodore64, value: int) -> None:
    software.start(machine, program(f"ldx #0\n1: dex\n bne 1b\n lda #{value}\n sta $d7ff\n2: jmp 2b"))
    found = machine.unseen or machine.run_frames(50)
    assert found == Stop("debug", value)


def test_a_jam_ends_a_run(machine: Commodore64) -> None:
    machine.poke(PRG, b"\x02")
    machine.set_registers(pc=PRG)
    assert machine.run_frames().reason == "jam"


def test_memory_that_there_is_not_and_keys_that_there_are_not(machine: Commodore64) -> None:
    for wrong in (
        lambda: machine.poke(0xFFFF, b"12"), lambda: machine.poke(-1, 0), lambda: machine.key("any"),
        lambda: machine.joystick(3), lambda: machine.set_registers(q=1), lambda: machine.listen(1),
        lambda: software.load(machine, b"\0"), lambda: software.load(machine, b"\xff\xff12"),
        lambda: software.type_text(machine, "{no}"), lambda: software.type_text(machine, "ä"),
    ):  # fmt: skip
        before = machine.save()
        with pytest.raises(ValueError):
            wrong()
        assert machine.save() == before
    with pytest.raises(ValueError, match="BASIC ROM has 3 bytes"):
        Commodore64(basic=b"123")


def test_joysticks_and_keys_are_read_by_a_program(machine: Commodore64) -> None:
    stick, key = "lda $dc00\n sta $c100\n", "lda #$7f\n sta $dc00\n lda $dc01\n sta $c101\n"
    software.start(machine, program(f"sei\n1: {stick} {key} lda #$ff\n sta $dc00\n jmp 1b"))
    machine.joystick(2, left=True, fire=True)
    machine.key("space")
    machine.run_frames(2)
    assert machine.peek(0xC100) & 0x1F == 0x1F & ~0b10100 and machine.peek(0xC101) == 0xFF & ~0x10
    machine.joystick(2)
    machine.joystick(1, up=True)
    machine.release_keys()
    machine.run_frames(2)
    assert machine.peek(0xC100) & 0x1F == 0x1F and machine.peek(0xC101) == 0xFE


def test_stop_and_restore_begin_anew(machine: Commodore64) -> None:
    software.start(machine, program("lda #0\n sta $d020\n1: jmp 1b"))
    machine.run_frames(5)
    assert int(machine.state.vic_registers[0x20]) & 15 == 0
    machine.key("stop")
    machine.run_frames(2)
    machine.key("restore")
    machine.run_frames(5)
    machine.key("stop", False)
    software.wait_for_prompt(machine)
    assert int(machine.state.vic_registers[0x20]) & 15 == 14


def test_resets_keep_memory_and_the_switch_does_not(machine: Commodore64) -> None:
    machine.poke(PRG, b"kept")
    before = machine.elapsed
    machine.reset()
    assert machine.cycles == 0 and machine.elapsed == before
    software.wait_for_prompt(machine)
    assert machine.memory.read(PRG, 4) == b"kept" and machine.elapsed > before
    machine.power_cycle()
    assert machine.memory.read(PRG, 4) == bytes(4)
    software.wait_for_prompt(machine)


# The drive


def test_a_disk_is_loaded_from_and_saved_to_its_file(machine: Commodore64, tmp_path: Path) -> None:
    disk = D64.formatted(b"WORK", b"A1")
    disk.write(b"GAME", basic_stub("lda #5\n sta $d021\n rts"))
    path = tmp_path / "work.d64"
    disk.save(path)
    machine.insert(D64.open(path), path)
    software.autostart(machine, disk)
    software.wait_for_prompt(machine)
    assert int(machine.state.vic_registers[0x21]) == 5
    software.type_text(machine, 'save"copy",8\n')
    software.wait_for_prompt(machine)
    found = D64.open(path)
    assert [entry.name for entry in found.entries()] == [b"GAME", b"COPY"]
    assert found.read(found.entries()[1]) == disk.read(disk.entries()[0])


def test_a_read_only_disk_and_a_copy_leave_the_file_alone(machine: Commodore64, tmp_path: Path) -> None:
    path = tmp_path / "work.d64"
    D64.formatted(b"WORK", b"A1").save(path)
    before = path.read_bytes()
    machine.insert(D64.open(path), path, read_only=True)
    software.type_text(machine, '10 print 1\nsave"a",8\n')
    software.wait_for_prompt(machine)
    machine.insert(D64.open(path), path)
    other = machine.copy()
    software.type_text(other, 'save"b",8\n')
    software.wait_for_prompt(other)
    medium = other.drive.medium
    other.close()
    assert isinstance(medium, D64) and [entry.name for entry in medium.entries()] == [b"B"]
    assert path.read_bytes() == before


def test_what_cannot_be_loaded_is_said(machine: Commodore64) -> None:
    machine.insert(D64.formatted(b"EMPTY", b"A1"))
    with pytest.raises(software.NotReadyError, match="FILE NOT FOUND"):
        software.start_from_drive(machine)


def test_a_disk_without_programs_is_only_mounted(machine: Commodore64) -> None:
    disk = D64.formatted(b"EMPTY", b"A1")
    machine.insert(disk)
    software.autostart(machine, disk)
    assert machine.unseen is None


def test_tapes_start_their_first_program(machine: Commodore64) -> None:
    tape = Tape(b"TAPE", ((b"ONE", program("lda #3\n sta $d020\n rts")), (b"TWO", program("rts"))))
    machine.insert(tape)
    software.autostart(machine, tape)
    software.wait_for_prompt(machine)
    assert int(machine.state.vic_registers[0x20]) == 3
    software.type_text(machine, 'load"two",8,1\n')
    software.wait_for_prompt(machine)
    assert machine.peek(PRG) == 0x60


# Cartridges

START = bytes.fromhex("0980 0980 c3c2cd3830".replace(" ", ""))


def bank(text: str, at: int, number: int, start: bytes = b"") -> bytes:
    """8 KiB: a start, a program, and the bank's number at the end."""
    code = start + assemble(mos6510, text, at + len(start)).bytes
    return code.ljust(0x1FFF, b"\xea") + bytes([number])


def run_cartridge(made: Cartridge, frames: int = 12) -> Commodore64:
    machine = Commodore64(cartridge=made, debug=True)
    machine.run_frames(frames)
    return machine


def test_a_cartridge_of_8_kib_starts_itself() -> None:
    rom = bank("lda #$2a\n sta $c000\n lda $a000\n sta $c001\n1: jmp 1b", 0x8000, 0, START)
    machine = run_cartridge(Cartridge("EIGHT", Hardware.NORMAL, False, True, (rom,), (None,)))
    assert machine.peek(0xC000) == 0x2A and machine.peek(0xC001) == free_roms().basic[0]
    machine.close()


def test_a_cartridge_of_16_kib_is_in_basics_place() -> None:
    low = bank("lda $bfff\n sta $c000\n lda $9fff\n sta $c001\n1: jmp 1b", 0x8000, 1, START)
    machine = run_cartridge(Cartridge("SIXTEEN", Hardware.NORMAL, False, False, (low,), (bank("", 0xA000, 2),)))
    assert (machine.peek(0xC000), machine.peek(0xC001)) == (2, 1)
    machine.close()


def test_an_ultimax_cartridge_has_the_reset_vector_and_little_memory() -> None:
    high = bytearray(bank("lda #1\n sta $d020\n sta $0400\n sta $2000\n lda $2000\n sta $0401\n1: jmp 1b", 0xE000, 0))
    high[0x1FFC:0x1FFE] = b"\x00\xe0"
    machine = run_cartridge(Cartridge("ULTIMAX", Hardware.NORMAL, True, False, (None,), (bytes(high),)), 2)
    assert int(machine.state.vic_registers[0x20]) == 1
    assert machine.peek(0x0400) == 1 and machine.peek(0x2000) == 0 and machine.peek(0x0401) == 0xFF
    machine.close()


# Copied to RAM, and run there: each bank's number, the instruction after the switch reads it.
SWITCHING = """
 ldx #0
1: lda copied,x
 sta $c100,x
 inx
 bne 1b
 jmp $c100
copied:
"""


@pytest.mark.parametrize(("kind", "banks"), [(Hardware.OCEAN, 16), (Hardware.MAGIC_DESK, 4)])
def test_banks_are_switched_at_once(kind: Hardware, banks: int) -> None:
    text = SWITCHING + f"ldx #0\n.byte $8e, $00, $de, $ad, $ff, $9f, $9d, $00, $c0, $e8, $e0, {banks}, $d0, $f2\n"
    if kind is Hardware.MAGIC_DESK:
        text += "lda #$80\n sta $de00\n lda $9fff\n sta $c0ff\n"
    text += "loop: .byte $4c\n .word $c100 + loop - copied\n"
    roms = tuple(bank(text if n == 0 else "", 0x8000, n + 0x40, START if n == 0 else b"") for n in range(banks))
    game = kind is Hardware.MAGIC_DESK
    machine = run_cartridge(Cartridge("BANKS", kind, False, game, roms, (None,) * banks))
    assert machine.memory.read(0xC000, banks) == bytes(n + 0x40 for n in range(banks))
    if kind is Hardware.MAGIC_DESK:
        assert machine.peek(0xC0FF) == 0  # RAM: the cartridge is off
    machine.close()


@pytest.mark.parametrize("tier", ["jit", "reference"])
def test_a_bank_may_switch_itself_away(tier: str) -> None:
    # The instruction after the store is the other bank's.
    first = bank("lda #1\n sta $de00\n.byte 2", 0x8000, 0, START)
    second = bank("lda #1\n sta $de00\n lda #$2a\n sta $c000\n1: jmp 1b", 0x8000, 1, START)
    made = Cartridge("BANKS", Hardware.MAGIC_DESK, False, True, (first, second), (None, None))
    machine = Commodore64(cartridge=made, tier=tier)
    machine.set_registers(pc=0x8009, port_data=0x37, port_direction=0x2F)
    assert machine.run(400).reason == "limit" and machine.peek(0xC000) == 0x2A
    machine.close()


def test_easyflash_switches_banks_and_lines_and_has_memory() -> None:
    # From the boot ROM at $E000 in bank 0: 16 KiB, bank 1, read both halves; 8 KiB; memory at $DF00; then off.
    text = """
 lda #$37
 sta 1
 lda #$2f
 sta 0
 ldx #0
1: lda $e100,x
 sta $c100,x
 sta $0200,x
 inx
 bne 1b
 jmp $0200
"""
    in_ram = """
 lda #7
 sta $de02
 lda #1
 sta $de00
 lda $9fff
 sta $0400
 lda $bfff
 sta $0401
 lda #6
 sta $de02
 lda $a000
 sta $0402
 lda #$5a
 sta $df03
 lda $df03
 sta $0403
 lda #4
 sta $de02
 lda $9fff
 sta $0404
1: jmp 1b
"""
    boot = bytearray(bank(text, 0xE000, 0x80))
    code = assemble(mos6510, in_ram, 0x0200).bytes
    boot[0x100 : 0x100 + len(code)] = code
    boot[0x1FFC:0x1FFE] = b"\x00\xe0"
    made = Cartridge(
        "EASY", Hardware.EASYFLASH, True, False, (bank("", 0x8000, 0x10), bank("", 0x8000, 0x11)),
        (bytes(boot), bank("", 0xA000, 0x81)),
    )  # fmt: skip
    machine = run_cartridge(made, 2)
    assert machine.memory.read(0x0400, 5) == bytes([0x11, 0x81, free_roms().basic[0], 0x5A, 0])
    machine.close()


def test_a_reset_begins_with_the_first_bank() -> None:
    rom = bank("lda #1\n sta $de00\n1: jmp 1b", 0x8000, 0x40, START)
    machine = run_cartridge(
        Cartridge("BANKS", Hardware.MAGIC_DESK, False, True, (rom, bank("1: jmp 1b", 0x8000, 0x41)), (None, None))
    )
    assert int(machine.state.c64_bank) == 1
    machine.reset()
    assert int(machine.state.c64_bank) == 0 and int(machine.state.c64_exrom) == 0
    machine.close()


# ROMs


def test_roms_are_found_by_their_contents_and_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = free_roms()
    known = {hashlib.sha1(ours.kernal).hexdigest(): "kernal", hashlib.sha1(ours.basic).hexdigest(): "basic"}
    monkeypatch.setattr(rom_files, "KNOWN", known)
    (tmp_path / "a.bin").write_bytes(ours.basic)
    (tmp_path / "b.bin").write_bytes(ours.kernal)
    (tmp_path / "kernal-mine.rom").write_bytes(bytes(8192))
    (tmp_path / "readme.txt").write_text("hello")
    with pytest.raises(RomError, match=r"has no ROM characters \(4096 bytes\)$"):
        user_roms(tmp_path)
    (tmp_path / "chargen.rom").write_bytes(b"123")
    with pytest.raises(RomError, match=r"chargen.rom has 3 bytes instead of 4096"):
        user_roms(tmp_path)
    (tmp_path / "chargen.rom").write_bytes(ours.characters)
    assert user_roms(tmp_path) == ours
    (tmp_path / "characters.bin").write_bytes(bytes(4096))
    with pytest.raises(RomError, match=r"characters.bin and chargen.rom could both"):
        user_roms(tmp_path)
    with pytest.raises(RomError, match="No such file"):
        user_roms(tmp_path / "none")


def test_kernals_with_commodores_serial_routines_reach_the_drive() -> None:
    ours = free_roms().kernal
    assert reaching_drives(ours) == ours
    other = bytearray(ours)
    other[0xDB9:0xE13] = bytes(0xE13 - 0xDB9)
    assert reaching_drives(bytes(other)) == ours
    other[0xD09] = 0
    assert reaching_drives(bytes(other)) == bytes(other)


def test_a_changed_kernal_loads_from_the_drive() -> None:
    other = bytearray(free_roms().kernal)
    other[0xDB9:0xE40] = bytes(0xE40 - 0xDB9)
    machine = Commodore64(kernal=bytes(other))
    disk = D64.formatted(b"WORK", b"A1")
    disk.write(b"GAME", basic_stub("lda #9\n sta $d020\n rts"), FileType.PRG)
    machine.insert(disk)
    software.autostart(machine, disk)
    software.wait_for_prompt(machine)
    assert int(machine.state.vic_registers[0x20]) == 9
    machine.close()


# Time


@pytest.mark.parametrize("tier", ["jit", "interpreter"])
def test_runs_are_the_same_however_they_are_cut(machine: Commodore64, tier: str) -> None:
    software.start(machine, basic_stub("1: inc $d020\n inc $0400\n jmp 1b"))
    saved, results = machine.save(), []
    for parts in (1, 7, 300):
        other = Commodore64(tier=tier)
        other.restore(saved)
        end = saved.elapsed + 10 * PAL.frame
        for part in range(1, parts + 1):
            other.run_to(saved.elapsed + part * 10 * PAL.frame // parts)
        other.run_to(end)
        results.append((other.elapsed, other.memory.read(0, memory.COLOUR_RAM), int(other.state.pc)))
        other.close()
    assert results[0] == results[1] == results[2]


def test_a_second_is_a_second(machine: Commodore64) -> None:
    before = machine.frames
    machine.run(PAL.clock)
    assert machine.frames - before in (50, 51)
