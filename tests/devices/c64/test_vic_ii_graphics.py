"""Lines of the VIC-II's graphics pixel by pixel, and the border, against Bauer's article."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vic_machine import Vic

from polyvisor.devices.c64 import memory as where
from polyvisor.devices.c64 import vic_ii


@pytest.fixture
def vic() -> Iterator[Vic]:
    made = Vic(0x33)
    yield made
    made.close()


ECM, BMM, MCM = 0x40, 0x20, 0x10
# Two characters, at columns 0 and 1: codes $41 and $C2, colours 5 and 13; their first rows, also in the bitmap.
CODES, COLOURS = (0x41, 0xC2), (0x05, 0x0D)
ROWS = 0b00011011, 0b11100100


def prepared(vic: Vic, ecm: int = 0, bmm: int = 0, mcm: int = 0) -> None:
    vic.poke(0x0400, *CODES)
    vic.poke(where.COLOUR_RAM, *(0xA0 | colour for colour in COLOURS))  # the high nibble is not there
    for code, row in zip(CODES, ROWS, strict=True):
        vic.poke(0x2000 + 8 * (code & 0x3F if ecm else code), row)
    if bmm:
        vic.poke(0x2000, ROWS[0], 0, 0, 0, 0, 0, 0, 0, ROWS[1])
    for register, colour in {0x21: 6, 0x22: 2, 0x23: 3, 0x24: 4}.items():
        vic.write(register, colour)
    vic.write(0x11, 0x1B | ecm | bmm)
    vic.write(0x16, 0x08 | mcm)


@pytest.mark.parametrize(
    ("modes", "pixels"),
    [
        ({}, "66655655" "ddd66d66"),
        # Without bit 3 of its colour, a character is as in the standard mode.
        ({"mcm": MCM}, "66655655" "55332266"),
        ({"bmm": BMM}, "11144144" "ccc22c22"),
        ({"bmm": BMM, "mcm": MCM}, "66441155" "dd22cc66"),
        ({"ecm": ECM}, "22255255" "ddd44d44"),
        ({"ecm": ECM, "mcm": MCM}, "0" * 16),
        ({"ecm": ECM, "bmm": BMM}, "0" * 16),
        ({"ecm": ECM, "bmm": BMM, "mcm": MCM}, "0" * 16),
    ],
    ids=str,
)  # fmt: skip
def test_a_line_of_each_mode(vic: Vic, modes: dict[str, int], pixels: str) -> None:
    prepared(vic, **modes)
    vic.to(0x33, 63)
    assert vic.text(0x33, 16, 8) == "e" * 8
    assert vic.text(0x33, 24, 16) == pixels
    rest = {0: "6", BMM: "0", ECM: "6"}[modes.get("bmm", 0) or modes.get("ecm", 0)]
    if modes.get("mcm") and not modes.get("ecm"):
        rest = "6"
    if modes.get("ecm") and len(modes) > 1:
        rest = "0"
    assert vic.text(0x33, 40, 304) == rest * 304
    assert vic.text(0x33, 344, 40) == "e" * 40


@pytest.mark.parametrize("xscroll", [1, 4, 7])
def test_xscroll_moves_the_graphics_but_not_the_border(vic: Vic, xscroll: int) -> None:
    prepared(vic, mcm=MCM)
    vic.poke(0x0400 + 39, 0xC2)
    vic.poke(where.COLOUR_RAM + 39, 0x0D)
    vic.write(0x16, 0x18 | xscroll)
    vic.to(0x33, 63)
    assert vic.text(0x33, 24, 16 + xscroll) == "6" * xscroll + "66655655" "55332266"
    assert vic.text(0x33, 24 + 312 + xscroll, 9 - xscroll) == "55332266"[: 8 - xscroll] + "e"


def test_another_xscroll_in_mid_line(vic: Vic) -> None:
    for column in range(40):
        vic.poke(0x0400 + column, 0x41)
        vic.poke(where.COLOUR_RAM + column, 1)
    vic.poke(0x2000 + 8 * 0x41, 0xFF)
    # Later: the bits run out before the next are loaded. Earlier: some are never shown.
    vic.write_at(0x33, 20, 0x16, 0x0B)
    vic.write_at(0x33, 24, 0x16, 0x08)
    vic.to(0x33, 63)
    assert vic.text(0x33, 40, 48) == "11111111" "66611111" + "1" * 32


def test_a_program_sees_each_row_of_a_character(vic: Vic) -> None:
    vic.poke(0x0400, 1)
    vic.poke(where.COLOUR_RAM, 1)
    vic.poke(0x2008, *(0x80 >> row for row in range(8)))
    vic.to(0x3A, 63)
    assert [vic.text(0x33 + row) for row in range(8)] == ["6" * row + "1" + "6" * (7 - row) for row in range(8)]


@pytest.mark.parametrize(
    ("bank", "pointers", "address"),
    [(0, 0x14, where.CHARACTER_ROM), (0, 0x16, where.CHARACTER_ROM + 0x800), (0x8000, 0x14, where.CHARACTER_ROM),
     (0x4000, 0x14, 0x5000), (0xC000, 0x18, 0xE000), (0, 0x1E, 0x3800)],
)  # fmt: skip
def test_banks_and_the_character_rom(vic: Vic, bank: int, pointers: int, address: int) -> None:
    vic.cpu.vic_bank = bank
    vic.write(0x18, pointers)
    vic.poke(bank + 0x0400, 2)
    vic.poke(where.COLOUR_RAM, 1)
    vic.poke(address + 16, 0xA5)
    vic.to(0x33, 63)
    assert vic.text(0x33) == "16166161"


def test_a_cartridge_can_bring_its_own_characters(vic: Vic) -> None:
    vic.cpu.vic_ultimax = 1
    vic.write(0x18, 0x1C)
    vic.poke(0x0400, 2)
    vic.poke(where.COLOUR_RAM, 1)
    vic.poke(where.CARTRIDGE_HIGH + 0x1000 + 16, 0xA5)
    vic.to(0x33, 63)
    assert vic.text(0x33) == "16166161"


@pytest.mark.parametrize(("ecm", "pixels"), [(0, "60066006"), (ECM, "06600660")])
def test_the_idle_state_shows_the_last_byte_of_the_bank(vic: Vic, ecm: int, pixels: str) -> None:
    vic.poke(0x3FFF, 0b01100110)
    vic.poke(0x39FF, 0b10011001)
    vic.write(0x11, 0x1C | ecm)  # the next line is the first of a row
    vic.to(0x33, 63)
    assert vic.text(0x33, 24, 320) == pixels * 40


def test_a_colour_that_is_written_shows_two_columns_after_that_of_the_g_access(vic: Vic) -> None:
    # Cycle 16 reads column 0, which leaves the chip in cycle 18: a write in cycle 17 comes right.
    vic.write_at(0x33, 17, 0x21, 1)
    vic.write_at(0x33, 18, 0x21, 2)
    vic.write_at(0x33, 60, 0x20, 3)
    vic.to(0x33, 63)
    assert vic.text(0x33, 24, 24) == "1" * 8 + "2" * 16
    assert vic.text(0x33, 360, 16) == "e" * 8 + "3" * 8


# The border


def row_of(vic: Vic, line: int) -> str:
    """The kinds of pixels of a line from X = 16 to 359: border or not."""
    return "".join("b" if pixel == "e" else "." for pixel in vic.text(line, 16, 344))


WIDE = "b" * 8 + "." * 320 + "b" * 16
NARROW = "b" * 15 + "." * 304 + "b" * 25
CLOSED = "b" * 344


def test_csel_moves_the_edges_by_7_and_9_pixels(vic: Vic) -> None:
    vic.to(0x33, 63)
    vic.write(0x16, 0x00)
    vic.to(0x34, 63)
    assert [row_of(vic, line) for line in (0x33, 0x34)] == [WIDE, NARROW]


@pytest.mark.parametrize(("rsel", "first", "last"), [(8, 51, 250), (0, 55, 246)])
def test_rsel_chooses_the_lines(vic: Vic, rsel: int, first: int, last: int) -> None:
    vic.write(0x11, 0x13 | rsel)
    vic.jump(first - 1)
    vic.to(first, 63)
    vic.jump(last)
    vic.to(last + 1, 63)
    assert [row_of(vic, line) for line in (first - 1, first, last, last + 1)] == [CLOSED, WIDE, WIDE, CLOSED]


def test_without_den_the_border_stays_closed(vic: Vic) -> None:
    vic.write(0x11, 0x0B)
    vic.to(0x34, 63)
    assert row_of(vic, 0x33) == row_of(vic, 0x34) == CLOSED


def test_the_upper_and_lower_border_open(vic: Vic) -> None:
    # 3.14.1: in line 250 the window becomes 24 lines high, whose end has passed.
    vic.jump(249)
    vic.cpu.vic_border_vertical = 0
    vic.write_at(250, 10, 0x11, 0x13)
    vic.write_at(252, 10, 0x11, 0x1B)
    vic.to(255, 63)
    assert row_of(vic, 255) == WIDE


@pytest.mark.parametrize(("cycle", "opens"), [(54, False), (55, False), (56, True), (57, False)])
def test_the_side_border_opens_in_cycle_56_only(vic: Vic, cycle: int, opens: bool) -> None:
    # Both edges are missed: 335 while CSEL is 1, 344 while it is 0.
    vic.write_at(0x33, cycle, 0x16, 0x00)
    vic.to(0x33, 63)
    assert (row_of(vic, 0x33)[328:] == "." * 16) == opens
    if opens:
        vic.write(0x16, 0x08)
        vic.to(0x34, 16)
        assert vic.text(0x34, -8, 24) == "6" * 24


def test_while_the_vertical_flip_flop_is_set_there_are_no_graphics(vic: Vic) -> None:
    vic.jump(0x32)
    vic.poke(0x3FFF, 0xFF)
    vic.cpu.vic_border = 0
    vic.to(0x32, 50)
    assert vic.text(0x32, 24, 200) == "6" * 200


# The frame


def test_lines_are_512_bytes_of_the_frame_buffer(vic: Vic) -> None:
    vic.jump(311)
    vic.cpu.vic_border = vic.cpu.vic_border_vertical = 1
    vic.to(312, 63)
    assert set(vic.pixels(311, -112, 504)) == set(vic.pixels(0, -112, 504)) == {14}
    assert set(vic.memory.read(where.FRAME_BUFFER + 504, 8)) == {0}
    assert set(vic.memory.read(where.FRAME_BUFFER + 312 * 512, 512)) == {0}


def test_ntsc_lines_have_the_same_window() -> None:
    vic = Vic(0x33, model=vic_ii.NTSC)
    prepared(vic)
    vic.to(0x33, 65)
    assert vic.text(0x33, 16, 24) == "e" * 8 + "66655655" "ddd66d66"
    assert row_of(vic, 0x33) == WIDE
    assert set(vic.pixels(0x34, -112, 8)) == {0}
    vic.close()
