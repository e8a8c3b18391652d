"""The free ROMs: what the Programmer's Reference Guide says of the KERNAL's routines, the editor, and the prompt."""

from collections.abc import Iterator

import pytest

from polyvisor.boards.c64 import roms
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.files import FileType
from polyvisor.storage.commodore.petscii import from_unicode, screen_code
from support.c64_rom import COLOURS, SCREEN, RomMachine

# A program that is only a SYS line, and what it starts: the border becomes black.
GAME = bytes.fromhex("0108 0b08 0a00 9e 32303634 00 0000 000000 a9008d20d060")


def disk() -> D64:
    made = D64.formatted(b"WORK", b"A1")
    made.write(b"GAME", GAME)
    made.write(b"NOTES", b"HELLO\rWORLD", FileType.SEQ)
    return made


@pytest.fixture(scope="module")
def booted() -> tuple[bytes, bytes, bytes, bytes]:
    machine = RomMachine()
    machine.boot()
    saved = machine.save()
    machine.close()
    return saved


@pytest.fixture
def machine(booted) -> Iterator[RomMachine]:
    made = RomMachine(disk())
    made.restore(booted)
    made.boot()
    yield made
    made.close()


@pytest.fixture
def blank(machine: RomMachine) -> RomMachine:
    """With an empty screen."""
    machine.clear()
    return machine


def test_the_machine_starts(machine: RomMachine) -> None:
    assert machine.screen() == "\n     **** POLYVISOR 64 FREE ROM ****\n\n 38911 BYTES FREE\nREADY."
    assert machine.peek(0xD020, 2) == b"\x0e\x06" and machine.peek(COLOURS, 1000) == b"\x0e" * 1000
    assert machine.peek(0xD018) == b"\x14" and machine.peek(0x2A6) == b"\x01"
    assert machine.peek(0xDC04, 2) == (16421).to_bytes(2, "little")
    assert machine.peek(0, 2) == b"\x2f\xe7" or int(machine.cpu.port_data) == 0xE7
    # Vectors, where memory ends, BASIC's pointers, and the screen's page: "Mapping the Commodore 64".
    vectors = "31ea 66fe 47fe 4af3 91f2 0ef2 50f2 33f3 57f1 caf1 edf6 3ef1 2ff3 66fe a5f4 edf5"
    assert machine.peek(0x314, 12).hex() == vectors.replace(" ", "")[:24]
    assert machine.peek(0x318, 28).hex()[4:] == vectors.replace(" ", "")[12:]
    assert machine.peek(0x281, 4) == b"\x00\x08\x00\xa0" and machine.peek(0x288) == b"\x04"
    assert machine.peek(0x2B, 4) == b"\x01\x08\x03\x08" and machine.peek(0x37, 2) == b"\x00\xa0"


@pytest.mark.slow
def test_a_machine_for_ntsc() -> None:
    machine = RomMachine(lines=263)
    machine.boot()
    assert machine.peek(0x2A6) == b"\x00" and machine.peek(0xDC04, 2) == (17045).to_bytes(2, "little")
    machine.close()


def test_a_cartridge_starts_itself() -> None:
    machine = RomMachine()
    machine.memory.write(0x8000, b"\x00\x90\x00\x90\xc3\xc2\xcd80")
    machine.run(0x9000, 100)
    machine.close()


def test_the_jump_table() -> None:
    table = roms.free_roms().kernal[0x1F81:]
    # Those with vectors: OPEN to CHROUT, STOP, GETIN, CLALL.
    by_vector = {*range(21, 28), 32, 33, 34}
    assert [table[3 * n] for n in range(39)] == [0x6C if n in by_vector else 0x4C for n in range(39)]
    assert len(roms.free_roms().basic) == len(roms.free_roms().kernal) == 0x2000


# The screen's editor


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (b"HELLO\rTHERE", "HELLO\nTHERE"),
        (b"\x13HOME", "HOME"),
        (b"A\x11B\x11\x9dC\x91D", "A\n BD\n C"),
        (b"AB\x9d\x9dC", "CB"),
        (b"A\x1dB", "A B"),
        (b"ABC\x14D", "ABD"),
        (b"ABC\x9d\x9d\x14", "BC"),
        (b"AC\x9d\x94B", "ABC"),
        (b"A" * 40 + b"\x14\x14B", "A" * 38 + "B"),
        (b"X" * 41 + b"\rY", "X" * 40 + "\nX\nY"),
        (b"X" * 80 + b"Y", "X" * 40 + "\n" + "X" * 40 + "\nY"),
        (b"\rBELOW\x13" + b"X" * 41, "X" * 40 + "\nX\nBELOW"),
        (b"A\x8dB", "A\nB"),
        (b"\xc1\x61\xff\xa1", "♠♠π▌"),
        (b"\x9d\x91A", "A"),
    ],
)
def test_printing(blank: RomMachine, codes: bytes, text: str) -> None:
    blank.print(codes)
    assert blank.screen() == text


def test_colours(blank: RomMachine) -> None:
    codes = bytes.fromhex("90051c9f9c1e1f9e8195969798999a9b")
    for code in codes:
        blank.print(bytes([code, 0x2A]))
    assert blank.peek(COLOURS, 16) == bytes(range(16))
    assert blank.peek(0x286) == b"\x0f"


def test_reversed_and_quoted(blank: RomMachine) -> None:
    blank.print(b"\x12A\x92A\x12B\rC")
    assert blank.peek(SCREEN, 3) == b"\x81\x01\x82" and blank.peek(SCREEN + 40) == b"\x03"
    # Between quotes, control codes are shown; a return ends that.
    blank.print(b'\x93"\x93\x11\x91\x1c\x81"\x1c')
    assert blank.peek(SCREEN, 8) == bytes([0x22, 0xD3, 0x91, 0xD1, 0x9C, 0xC1, 0x22, 0x20])
    blank.print(b'\x93"A\x14B\r\x1c')
    assert blank.peek(SCREEN, 3) == bytes([0x22, 2, 0x20]) and blank.peek(0xD4) == b"\0"
    # In places that were inserted too.
    blank.print(b"\x93AB\x9d\x9d\x94\x94\x1c\x14\x1c")
    assert blank.peek(SCREEN, 4) == bytes([0x9C, 0x94, 1, 2])


def test_scrolling(blank: RomMachine) -> None:
    blank.print(b"FIRST\rSECOND\r\x1c" + b"\x11" * 21 + b"RED\rX")
    lines = blank.screen().split("\n")
    assert (lines[0], lines[23], lines[24]) == ("FIRST", "RED", "X")
    blank.print(b"\rY")
    lines = blank.screen().split("\n")
    assert lines[0] == "SECOND" and lines[22:] == ["RED", "X", "Y"]
    assert blank.peek(COLOURS + 22 * 40) == b"\x02"
    # A line of two rows at the end.
    blank.print(b"Z" * 45)
    assert blank.screen().split("\n")[22:] == ["X", "Y" + "Z" * 39, "ZZZZZZ"]
    assert blank.peek(0xD3) == bytes([46]) and blank.peek(0xD6) == bytes([24])


def test_sets_of_characters(blank: RomMachine) -> None:
    blank.print(b"\x0e")
    assert blank.peek(0xD018) == b"\x16"
    blank.print(b"\x8e\x08")
    assert blank.peek(0xD018) == b"\x14" and blank.peek(0x291) == b"\x80"
    blank.print(b"\x09")
    assert blank.peek(0x291) == b"\x00"


def test_chrout_keeps_the_registers(blank: RomMachine) -> None:
    for code in (0x41, 0x0D, 0x93, 0x1C, 0x14, 0x07):
        assert blank.call(0xFFD2, a=code, x=0x12, y=0x34) == code
        assert (int(blank.cpu.x), int(blank.cpu.y), int(blank.cpu.c)) == (0x12, 0x34, 0)


# Calls


def test_small_calls(blank: RomMachine) -> None:
    cpu = blank.cpu
    blank.call(0xFFF0, x=5, y=7)
    blank.print(b"X")
    assert blank.peek(SCREEN + 5 * 40 + 7) == bytes([screen_code(0x58)])
    blank.call(0xFFF0, carry=True)
    assert (int(cpu.x), int(cpu.y)) == (5, 8)
    blank.call(0xFFED)
    assert (int(cpu.x), int(cpu.y)) == (40, 25)
    blank.call(0xFFF3)
    assert (int(cpu.x), int(cpu.y)) == (0x00, 0xDC)
    blank.call(0xFF99, x=0x00, y=0x80)
    blank.call(0xFF99, carry=True)
    assert (int(cpu.x), int(cpu.y)) == (0x00, 0x80)
    blank.call(0xFF9C, carry=True)
    assert (int(cpu.x), int(cpu.y)) == (0x00, 0x08)
    # VECTOR: to a table and back; RESTOR.
    blank.memory.write(0x314, b"\x34\x12")
    blank.call(0xFF8D, x=0x00, y=0x20, carry=True)
    assert blank.peek(0x2000, 2) == b"\x34\x12"
    blank.call(0xFF8A)
    assert blank.peek(0x314, 2) == b"\x31\xea"
    blank.call(0xFF8D, x=0x00, y=0x20)
    assert blank.peek(0x314, 2) == b"\x34\x12"


def test_the_clock(blank: RomMachine) -> None:
    cpu = blank.cpu
    blank.call(0xFFDB, a=0xFF, x=0x19, y=0x4F)
    assert blank.peek(0xA0, 3) == b"\x4f\x19\xff"
    assert blank.call(0xFFDE) == 0xFF and (int(cpu.x), int(cpu.y)) == (0x19, 0x4F)
    blank.call(0xFFEA)
    assert blank.peek(0xA0, 3) == b"\0\0\0"  # 24 hours
    blank.call(0xFFDB, a=0xFF, x=0xFF)
    blank.call(0xFFEA)
    assert blank.peek(0xA0, 3) == b"\x01\0\0"


def test_keys(blank: RomMachine) -> None:
    """By the matrix, eight times the column and the row: Programmer's Reference Guide, chapter 5."""
    keys = blank.chips.keys
    letter_a, shift, control, commodore, stop, one, down = 10, 15, 58, 61, 63, 56, 7

    def typed(*held: int) -> bytes:
        keys.clear()
        keys.update(held)
        blank.interrupt()
        keys.clear()
        blank.interrupt()
        got = b""
        while code := blank.call(0xFFE4):
            got += bytes([code])
        return got

    assert typed(letter_a) == b"A"
    assert typed(letter_a, shift) == typed(letter_a, 52) == b"\xc1"
    assert typed(letter_a, control) == b"\x01"
    assert typed(letter_a, commodore) == b"\xb0"
    assert typed(one, control) == b"\x90" and typed(one, shift) == b"!"
    assert typed(shift) == b"" and typed(down, shift) == b"\x91"
    assert typed(shift, commodore) == b"" and blank.peek(0xD018) == b"\x16"
    keys.add(stop)
    blank.interrupt()
    assert blank.peek(0x91) == b"\x7f"
    blank.call(0xFFE1)
    assert int(blank.cpu.z) == 0
    keys.clear()
    blank.interrupt()
    blank.call(0xFFE1)
    assert int(blank.cpu.z) != 0


def test_keys_that_repeat(blank: RomMachine) -> None:
    blank.chips.keys.add(10)
    for _ in range(40):
        blank.interrupt()
    assert blank.peek(0xC6) == b"\1" and blank.peek(0xCB) == b"\x0a"
    blank.chips.keys.clear()
    blank.chips.keys.add(7)
    blank.interrupt()
    count = 0
    for _ in range(40):
        if blank.call(0xFFE4):
            count += 1
        blank.interrupt()
    # One at once, others from the 17th on, every fourth.
    assert 5 <= count <= 10


def test_the_cursor_blinks(machine: RomMachine) -> None:
    place = SCREEN + 40 * machine.peek(0xD6)[0]
    for _ in range(3):
        machine.cpu.step()
    seen = []
    for _ in range(60):
        machine.interrupt()
        seen.append(machine.peek(place)[0])
    assert set(seen) == {0x20, 0xA0} and seen[20:40].count(seen[30]) >= 10
    machine.type("A")
    assert machine.peek(place) == b"\x01"


# Files


def named(machine: RomMachine, name: str, logical: int, device: int, secondary: int) -> None:
    machine.memory.write(0x2000, from_unicode(name))
    machine.call(0xFFBD, a=len(name), x=0x00, y=0x20)
    machine.call(0xFFBA, a=logical, x=device, y=secondary)


def test_a_file_is_read(blank: RomMachine) -> None:
    named(blank, "NOTES", 2, 8, 2)
    blank.call(0xFFC0)
    assert int(blank.cpu.c) == 0
    blank.call(0xFFC6, x=2)
    got = b""
    while not blank.call(0xFFB7) & 0x40:
        got += bytes([blank.call(0xFFCF)])
    assert got == b"HELLO\rWORLD" and blank.call(0xFFCF) == 13
    blank.call(0xFFCC)
    blank.call(0xFFC3, a=2)
    assert blank.peek(0x98) == b"\0"
    assert blank.drive.status().startswith(b"00")


def test_a_file_is_written(blank: RomMachine) -> None:
    named(blank, "NEW,S,W", 5, 8, 3)
    blank.call(0xFFC0)
    blank.call(0xFFC9, x=5)
    blank.print(b"ONE\rTWO")
    blank.call(0xFFCC)
    blank.call(0xFFC3, a=5)
    made = blank.drive.medium
    assert made.read(made.find(b"NEW")) == b"ONE\rTWO"
    assert blank.screen() == ""


@pytest.mark.parametrize(
    ("name", "logical", "device", "error"),
    [("X", 0, 8, 6), ("X", 1, 9, 5), ("X", 1, 1, 5), ("X", 1, 2, 5)],
)
def test_files_that_cannot_be_opened(blank: RomMachine, name: str, logical: int, device: int, error: int) -> None:
    named(blank, name, logical, device, 2)
    assert blank.call(0xFFC0) == error and int(blank.cpu.c) == 1
    assert blank.peek(0x98) == b"\0"


def test_tables_of_files(blank: RomMachine) -> None:
    for logical in range(1, 11):
        named(blank, "", logical, 3, 0)
        blank.call(0xFFC0)
    named(blank, "", 11, 3, 0)
    assert blank.call(0xFFC0) == 1
    named(blank, "", 4, 3, 0)
    assert blank.call(0xFFC0) == 2
    blank.call(0xFFC3, a=4)
    assert blank.peek(0x259, 9) == bytes([1, 2, 3, 10, 5, 6, 7, 8, 9])
    assert blank.call(0xFFC6, x=4) == 3 and blank.call(0xFFC9, x=99) == 3
    blank.call(0xFFE7)
    assert blank.peek(0x98) == b"\0"
    named(blank, "", 4, 0, 0)
    blank.call(0xFFC0)
    assert blank.call(0xFFC9, x=4) == 7


def test_load_and_save(blank: RomMachine) -> None:
    named(blank, "GAME", 1, 8, 0)
    blank.call(0xFFD5, x=0x00, y=0x30)
    end = 0x3000 + len(GAME) - 2
    assert (int(blank.cpu.c), int(blank.cpu.x) | int(blank.cpu.y) << 8) == (0, end)
    assert blank.peek(0x3000, len(GAME) - 2) == GAME[2:]
    # To where it was saved from; VERIFY.
    named(blank, "GAME", 1, 8, 1)
    blank.call(0xFFD5, x=0x00, y=0x40)
    assert blank.peek(0x0801, len(GAME) - 2) == GAME[2:]
    blank.call(0xFFD5, a=1)
    assert blank.call(0xFFB7) == 0x40
    blank.memory.write(0x0805, b"?")
    named(blank, "GAME", 1, 8, 1)
    blank.call(0xFFD5, a=1)
    assert blank.call(0xFFB7) == 0x50 and blank.peek(0x0805) == b"?"
    blank.memory.write(0xFB, b"\x00\x30")
    named(blank, "COPY", 1, 8, 0)
    blank.call(0xFFD8, a=0xFB, x=end & 0xFF, y=end >> 8)
    made = blank.drive.medium
    assert made.read(made.find(b"COPY")) == b"\x00\x30" + GAME[2:]
    assert (blank.chips.port.state.talker, blank.chips.port.state.listener) == (-1, -1)


@pytest.mark.parametrize(
    ("name", "device", "error"), [("NONE", 8, 4), ("GAME", 9, 5), ("", 8, 8), ("GAME", 1, 9), ("GAME", 3, 9)]
)
def test_what_cannot_be_loaded(blank: RomMachine, name: str, device: int, error: int) -> None:
    named(blank, name, 1, device, 1)
    assert blank.call(0xFFD5) == error and int(blank.cpu.c) == 1


# The prompt


def answer(machine: RomMachine, *lines: str) -> str:
    """What is on the screen below the last line typed, without the prompt."""
    for line in lines:
        machine.enter(line)
    text = machine.screen()
    assert text.startswith(lines[-1])
    return text.partition("\n")[2].removesuffix("READY.").strip("\n")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("PRINT 2+3*4;-5,7", " 14 -5     7"),
        ('?"A";"B"', "AB"),
        ('PRINT "OPEN', "OPEN"),
        ("PRINT -(1-3)*123456789", " 246913578"),
        ("PRINT CHR$(65)CHR$(66);0", "AB 0"),
        ("POKE 49152,200:PRINT PEEK(49152)", " 200"),
        ("PRINT 1/2", " 1\n?SYNTAX ERROR"),
        ("POKE 1,256", "?ILLEGAL QUANTITY ERROR"),
        ("SYS 65536", "?ILLEGAL QUANTITY ERROR"),
        ("PRINT 99999999999", "?ILLEGAL QUANTITY ERROR"),
        ("?" + "(" * 38, "?OUT OF MEMORY ERROR"),
        ("FOO", "?SYNTAX ERROR"),
        ("GOTO 10", "?UNDEF'D STATEMENT ERROR"),
        ("LOAD", "?MISSING FILE NAME ERROR"),
        ('LOAD"X",8', "SEARCHING FOR X\n?FILE NOT FOUND ERROR"),
        ('LOAD"X",9', "SEARCHING FOR X\n?DEVICE NOT PRESENT ERROR"),
        ('LOAD"X",1', "?ILLEGAL DEVICE NUMBER ERROR"),
        ("REM A:B C", ""),
    ],
)
def test_what_is_typed(machine: RomMachine, line: str, text: str) -> None:
    assert "\n".join(filter(None, answer(machine, line).split("\n"))) == text


def test_a_program_is_loaded_listed_and_run(machine: RomMachine) -> None:
    assert "LOADING" in answer(machine, 'LOAD"GAME",8')
    assert machine.peek(0x2D, 2) == (0x0801 + len(GAME) - 2).to_bytes(2, "little")
    assert answer(machine, "LIST") == "10 SYS2064"
    assert machine.peek(0xD020) == b"\x0e"
    assert answer(machine, "RUN") == ""
    assert machine.peek(0xD020) == b"\x00"


def test_the_directory_is_listed(machine: RomMachine) -> None:
    got = answer(machine, 'LOAD"$",8', "LIST").split("\n")
    assert got[:2] == ['0 "WORK            " A1 2A', '1    "GAME"             PRG']
    assert got[-1] == "662 BLOCKS FREE."


def test_lines_are_kept_in_order(machine: RomMachine) -> None:
    for line in ("30 END", '10 ?"ONE"', '20 PRINT "GOTO"', '20 PRINT"TWO":gO30', "40 REM IF"):
        machine.enter(line.replace("gO", "G\U0001fb7d"))
    assert answer(machine, "LIST") == '10 PRINT"ONE"\n20 PRINT"TWO":GOTO30\n30 END\n40 REM IF'
    assert answer(machine, "LIST 20-30") == '20 PRINT"TWO":GOTO30\n30 END'
    assert answer(machine, "RUN") == "ONE\nTWO"
    machine.enter("20")
    machine.enter("40")
    assert answer(machine, "LIST") == '10 PRINT"ONE"\n30 END'
    assert answer(machine, "RUN 30") == ""
    assert answer(machine, "NEW", "LIST") == ""
    assert answer(machine, "50 PRINT X", "RUN") == "?SYNTAX ERROR IN 50"


def test_what_is_typed_is_saved(machine: RomMachine) -> None:
    answer(machine, "10 SYS 2064", 'SAVE"MINE",8')
    made = machine.drive.medium
    assert made.read(made.find(b"MINE")).hex() == "01080c080a009e2032303634000000"
    assert answer(machine, 'VERIFY"MINE",8').endswith("OK")


def test_sys_has_registers(machine: RomMachine) -> None:
    # STA $2000, STX $2001, STY $2002, INX, RTS
    machine.memory.write(0xC000, bytes.fromhex("8d0020 8e0120 8c0220 e8 60"))
    machine.memory.write(0x30C, b"\1\2\3")
    answer(machine, "SYS 12*4096")
    assert machine.peek(0x2000, 3) == b"\1\2\3" and machine.peek(0x30C, 3) == b"\1\3\3"


def test_a_line_is_edited_on_the_screen(machine: RomMachine) -> None:
    machine.clear()
    machine.type(b"PRINT 47\x9d\x9d1\r")
    assert machine.screen() == "PRINT 17\n 17\n\nREADY."
    machine.type(b"\x91\x91\x91\x91\x1d\x1d\x1d\x1d\x1d\x1d\x942\r")
    assert machine.screen().startswith("PRINT 217\n 217\n")


def test_machine_code_starts_basic(machine: RomMachine) -> None:
    """Packers end with these calls."""
    machine.enter('10 PRINT"STARTED"')
    for code in ("2059a6 4caea7", "2060a6 208ea6 4caea7"):
        machine.memory.write(0xC000, bytes.fromhex(code))
        assert answer(machine, "SYS 49152") == "STARTED"
    assert machine.symbols["breakpoint"] == 0xFE66
    machine.call(0xA644)
    assert machine.peek(0x0801, 2) == b"\0\0"


def test_serial_routines_for_another_kernal() -> None:
    ours = roms.free_roms().kernal
    other = bytes(b"\xff" * 0x2000)
    made = roms.with_drive(other)
    assert made[0xD09:0xE13] == ours[0xD09:0xE13] and len(made) == 0x2000
    # All that the serial routines need is there, and nothing of what is around them.
    assert roms.with_drive(ours) == ours and made[:0xD09] == other[:0xD09] and made[0xE90:] == other[0xE90:]
    with pytest.raises(ValueError, match="a KERNAL has 8192 bytes, this has 4"):
        roms.with_drive(b"rom!")


def test_characters() -> None:
    rom = roms.free_roms().characters
    glyphs = [rom[at : at + 8] for at in range(0, 4096, 8)]
    for start in (0, 256):
        for code in range(128):
            assert bytes(b ^ 0xFF for b in glyphs[start + code]) == glyphs[start + 128 + code]
        assert len(set(glyphs[start : start + 128])) == 127  # two are blank
    assert glyphs[1] == glyphs[256 + 65] and glyphs[0x20] == bytes(8)
    with pytest.raises(ValueError, match="eight lines"):
        roms.draw_characters("A\n........\n")
