"""Sprites of the VIC-II: DMA and counters, pixels, priorities and collisions, against Bauer's article."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from vic_machine import Vic

from polyvisor.devices.c64 import vic_ii


@pytest.fixture
def vic() -> Iterator[Vic]:
    made = Vic(0x34, yscroll=0)
    made.cpu.vic_border = made.cpu.vic_border_vertical = 0
    yield made
    made.close()


X, Y, BLOCK = 100, 0x34, 0x20
FIRST_LINE = Y + 1
DATA = 0b10000000, 0b11100100, 0b00011011


def standard(bits: str, colour: str) -> str:
    return bits.replace("0", "6").replace("1", colour)


STANDARD = standard("100000001110010000011011", "1")


@pytest.mark.parametrize("number", range(8))
def test_a_sprite_is_shown_in_the_line_after_its_own(vic: Vic, number: int) -> None:
    vic.sprite(number, X, Y, 1, BLOCK, DATA, (0xFF, 0, 0))
    vic.to(FIRST_LINE + 1, 63)
    assert vic.text(Y, X - 8, 40) == "6" * 40
    assert vic.text(FIRST_LINE, X - 8, 40) == "6" * 8 + STANDARD + "6" * 8
    assert vic.text(FIRST_LINE + 1, X - 8, 40) == "6" * 8 + "1" * 8 + "6" * 24


@pytest.mark.parametrize("x", [24, 25, 31, 200, 255, 256, 319])
def test_any_x(vic: Vic, x: int) -> None:
    vic.sprite(3, x, Y, 1, BLOCK, DATA)
    vic.to(FIRST_LINE, 63)
    assert vic.text(FIRST_LINE, x, 24) == STANDARD
    assert vic.text(FIRST_LINE, 24, 320).count("1") == 9


def test_sprites_left_and_right_of_the_window(vic: Vic) -> None:
    # They are under the border; with that open, they are seen.
    vic.sprite(0, 496, Y, 1, BLOCK, DATA)
    vic.sprite(1, 340, Y, 2, BLOCK, DATA)
    vic.write_at(Y, 56, 0x16, 0)
    vic.write_at(Y, 60, 0x16, 8)
    vic.write_at(FIRST_LINE, 56, 0x16, 0)
    vic.to(FIRST_LINE, 63)
    assert vic.text(FIRST_LINE, -8, 24) == STANDARD
    assert vic.text(FIRST_LINE, 340, 24) == STANDARD.replace("1", "2")


@pytest.mark.parametrize("x", [504, 511])
def test_an_x_that_no_line_has(vic: Vic, x: int) -> None:
    vic.sprite(0, x, Y, 1, BLOCK, DATA)
    vic.to(FIRST_LINE + 1, 1)
    assert 1 not in vic.pixels(FIRST_LINE, -112, 504)


def shifted_out(data: int, pixels: int, shape: dict[int, tuple[int, int]]) -> str:
    """What a sprite's shift register gives; ``shape``: MxMC and MxXE from a pixel on."""
    shown, multicolour, wide = 0, 0, 0
    # These say whether the next pixel begins a bit, and the next bit a pair.
    bit_begins = pair_begins = True
    out = []
    for pixel in range(pixels):
        if pixel in shape:
            pair_begins = pair_begins or not multicolour
            multicolour, wide = shape[pixel]
        if bit_begins:
            if not multicolour:
                shown = data >> 22 & 2
                pair_begins = True
            elif pair_begins:
                shown = data >> 22 & 3
            if multicolour:
                pair_begins = not pair_begins
            data = data << 1 & 0xFFFFFF
        bit_begins = not (bit_begins and wide)
        out.append("6213"[shown])
    return "".join(out)


@pytest.mark.parametrize("seed", range(12))
def test_the_shape_changes_in_the_midst_of_a_row(vic: Vic, seed: int) -> None:
    rng = random.Random(seed)
    vic.write(0x25, 2)
    vic.write(0x26, 3)
    x, data = rng.randrange(96, 112), rng.randrange(1 << 24) | 1
    vic.sprite(2, x, Y, 1, BLOCK, tuple(data.to_bytes(3, "big")))  # type: ignore[arg-type]
    state = [rng.randrange(2), rng.randrange(2)]
    shape = {0: (state[0], state[1])}
    for number, register in ((0, 0x1C), (1, 0x1D)):
        vic.write(register, state[number] << 2)
    for cycle in range(26, 36):
        if rng.random() < 0.5:
            which = rng.randrange(2)
            state[which] ^= 1
            vic.write_at(FIRST_LINE, cycle, (0x1C, 0x1D)[which], state[which] << 2)
            # What is written acts from the next cycle on, and that of X coordinate 0 is 15.
            shape[max(8 * (cycle + 1 - 15) - x, 0)] = state[0], state[1]
    vic.to(FIRST_LINE, 63)
    assert vic.text(FIRST_LINE, x - 8, 72) == "6" * 8 + shifted_out(data, 64, shape), (x, shape)


def test_multicolour_and_expansion(vic: Vic) -> None:
    vic.write(0x25, 2)
    vic.write(0x26, 3)
    for number, x in enumerate((30, 80, 160)):
        vic.sprite(number, x, Y, 1, BLOCK, DATA)
    vic.write(0x1C, 0b101)
    vic.write(0x1D, 0b110)
    vic.to(FIRST_LINE, 63)
    pairs = [f"{byte >> shift & 3}" for byte in DATA for shift in (6, 4, 2, 0)]
    colours = "".join({"0": "6", "1": "2", "2": "1", "3": "3"}[pair] * 2 for pair in pairs)
    assert vic.text(FIRST_LINE, 30, 24) == colours
    assert vic.text(FIRST_LINE, 80, 48) == "".join(pixel * 2 for pixel in STANDARD)
    assert vic.text(FIRST_LINE, 160, 48) == "".join(pixel * 2 for pixel in colours)


def rows(count: int) -> list[tuple[int, int, int]]:
    return [(row + 1, 0, 0) for row in range(count)]


def shown_rows(vic: Vic, first: int, last: int) -> list[int]:
    found = []
    for line in range(first, last + 1):
        bits = vic.text(line, X).replace("6", "0")
        found.append(int(bits, 2) if set(bits) <= {"0", "1"} else -1)
    return found


def test_a_sprite_has_21_rows(vic: Vic) -> None:
    vic.write(0x11, 0x08)
    vic.sprite(2, X, Y, 1, BLOCK, *rows(21))
    vic.to(FIRST_LINE + 22, 63)
    assert shown_rows(vic, Y, FIRST_LINE + 22) == [0, *range(1, 22), 0, 0]
    assert (vic.cpu.vic_sprite_dma, vic.cpu.vic_sprite_display, vic.cpu.vic_mcbase[2]) == (0, 0, 63)


def test_dma_ends_in_cycle_16_of_the_last_line(vic: Vic) -> None:
    vic.sprite(0, X, Y, 1, BLOCK, *rows(21))
    vic.to(FIRST_LINE + 20, 15)
    assert vic.cpu.vic_sprite_dma == 1
    vic.to(FIRST_LINE + 20, 16)
    assert (vic.cpu.vic_sprite_dma, vic.cpu.vic_sprite_display) == (0, 1)
    vic.to(FIRST_LINE + 20, 58)
    assert vic.cpu.vic_sprite_display == 0


def test_y_expansion_shows_each_row_twice(vic: Vic) -> None:
    vic.write(0x17, 0xFF)
    vic.sprite(5, X, Y, 1, BLOCK, *rows(21))
    vic.to(FIRST_LINE + 7, 63)
    assert shown_rows(vic, FIRST_LINE, FIRST_LINE + 7) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_sprite_can_be_used_again_below(vic: Vic) -> None:
    vic.sprite(4, X, Y, 1, BLOCK, *rows(21))
    vic.to(Y + 10, 20)
    vic.write(9, (Y + 24) & 0xFF)
    vic.to(Y + 26, 63)
    assert shown_rows(vic, Y + 20, Y + 26) == [20, 21, 0, 0, 0, 1, 2]


@pytest.mark.parametrize(("cycle", "line"), [(54, Y + 1), (55, Y + 1), (56, None)])
def test_the_line_is_compared_in_cycles_55_and_56(vic: Vic, cycle: int, line: int | None) -> None:
    vic.sprite(6, X, Y, 1, BLOCK, DATA)
    vic.write(0x15, 0)
    vic.write_at(Y, cycle, 0x15, 0x40)
    vic.to(Y + 2, 63)
    assert (vic.cpu.vic_sprite_dma != 0) == (line is not None)


def test_sprite_crunch_mixes_the_counters(vic: Vic) -> None:
    # Expansion is taken away in cycle 15, where the flip-flop is reset: MC is a mixture of MCBASE and MC.
    vic.write(0x17, 1)
    vic.sprite(0, X, Y, 1, BLOCK, *rows(21))
    vic.write_at(FIRST_LINE + 2, 14, 0x17, 1)
    base, counter = int(vic.cpu.vic_mcbase[0]), int(vic.cpu.vic_mc[0])
    assert (base, counter, vic.cpu.vic_sprite_flop & 1) == (3, 6, 0)
    vic.write_at(FIRST_LINE + 2, 15, 0x17, 0)
    vic.to(FIRST_LINE + 2, 16)
    assert vic.cpu.vic_mcbase[0] == (0x2A & (base & counter) | 0x15 & (base | counter)) == 7


def test_the_pointer_is_read_in_every_line(vic: Vic) -> None:
    vic.sprite(0, X, Y, 1, BLOCK, *[(0x80, 0, 0)] * 21)
    vic.poke(64 * (BLOCK + 1), *[0x01, 0, 0] * 21)
    vic.to(FIRST_LINE + 1, 30)
    vic.poke(0x07F8, BLOCK + 1)
    vic.to(FIRST_LINE + 3, 63)
    assert shown_rows(vic, FIRST_LINE, FIRST_LINE + 3) == [0x80, 0x80, 1, 1]


# Priorities and collisions


def with_graphics(vic: Vic, mcm: int = 0) -> None:
    """The idle state's graphics: 11001010, black where set."""
    vic.poke(0x3FFF, 0b11001010)
    vic.write(0x16, 0x08 | mcm)


FULL = [(0xFF, 0xFF, 0xFF)] * 21


@pytest.mark.parametrize(("behind", "pixels"), [(0, "11111111"), (1, "00110101")])
def test_priority_against_the_graphics(vic: Vic, behind: int, pixels: str) -> None:
    with_graphics(vic)
    vic.sprite(0, 96, Y, 1, BLOCK, *FULL)
    vic.write(0x1B, behind)
    vic.to(FIRST_LINE, 63)
    assert vic.text(FIRST_LINE, 88, 40) == "00660606" + pixels * 3 + "00660606"


def test_priority_among_sprites_comes_first(vic: Vic) -> None:
    # Sprite 0 is behind the graphics and before sprite 1, which therefore is not seen before the graphics either.
    with_graphics(vic)
    vic.sprite(0, 96, Y, 1, BLOCK, *FULL)
    vic.sprite(1, 104, Y, 2, BLOCK, *FULL)
    vic.write(0x1B, 1)
    vic.to(FIRST_LINE, 63)
    assert vic.text(FIRST_LINE, 96, 32) == "00110101" * 3 + "2" * 8


def test_a_sprite_behind_the_graphics_hides_none_before_it(vic: Vic) -> None:
    with_graphics(vic)
    vic.sprite(0, 96, Y, 1, BLOCK, *FULL)
    vic.sprite(1, 104, Y, 2, BLOCK, *FULL)
    vic.write(0x1B, 2)
    vic.to(FIRST_LINE, 63)
    assert vic.text(FIRST_LINE, 96, 32) == "1" * 24 + "00220202"


def test_characters_without_pairs_among_those_with(vic: Vic) -> None:
    # In multicolour text, a character whose colour is below 8 has single pixels, and collides as it is seen.
    with_graphics(vic, 0x10)
    vic.sprite(5, 101, Y, 1, BLOCK, (0x80, 0, 0))
    vic.sprite(6, 102, Y, 1, BLOCK, (0x80, 0, 0))
    vic.to(FIRST_LINE, 63)
    assert vic.read(0x1F) == 0x40


@pytest.mark.parametrize(
    ("mcm", "x", "collides"),
    # One pixel wide: on 11001010, or in pairs 11 00 10 10; foreground are 10 and 11 then.
    [(0, 96, True), (0, 98, False), (0, 100, True), (0, 101, False), (0x10, 101, True), (0x10, 98, False)],
)
def test_collisions_with_foreground(vic: Vic, mcm: int, x: int, collides: bool) -> None:
    with_graphics(vic, mcm)
    vic.write(0x11, 0x38)  # bitmap, where pairs are pairs without a matrix
    vic.sprite(5, x, Y, 1, BLOCK, (0x80, 0, 0))
    vic.write(0x1A, 2)
    vic.to(FIRST_LINE, 63)
    assert vic.cpu.irq_lines == (2 if collides else 0)
    assert vic.read(0x1F) == (0x20 if collides else 0)
    assert vic.read(0x1F) == vic.read(0x1E) == 0


def test_sprites_collide_where_both_have_pixels(vic: Vic) -> None:
    vic.sprite(0, 96, Y, 1, BLOCK, (0b10100000, 0, 0))
    vic.sprite(1, 97, Y, 2, BLOCK + 1, (0b10100000, 0, 0))  # beside those of sprite 0
    vic.sprite(6, 98, Y, 3, BLOCK + 2, (0b10000000, 0, 0))  # on the second of sprite 0
    vic.write(0x1A, 4)
    vic.to(FIRST_LINE, 26)
    assert vic.cpu.irq_lines == 0
    # X = 96 leaves the chip in cycle 27.
    vic.to(FIRST_LINE, 27)
    assert (vic.cpu.irq_lines, vic.cpu.irq_since) == (2, vic.clock(FIRST_LINE, 27))
    assert vic.read(0x19) == 0xF4
    assert vic.read(0x1E) == 0b01000001


def test_only_the_first_collision_interrupts_until_the_register_is_read(vic: Vic) -> None:
    for number in (0, 1):
        vic.sprite(number, 96, Y, 1, BLOCK, *FULL)
    vic.write(0x1A, 4)
    vic.to(FIRST_LINE, 40)
    vic.write(0x19, 4)
    vic.to(FIRST_LINE + 1, 40)
    assert vic.cpu.irq_lines == 0
    assert vic.read(0x1E) == 3
    vic.to(FIRST_LINE + 2, 40)
    assert vic.cpu.irq_lines == 2


def test_collisions_are_events(vic: Vic) -> None:
    for number in (0, 1):
        vic.sprite(number, 96, Y, 1, BLOCK, *FULL)
    vic.write(0x1A, 4)
    while not vic.cpu.irq_lines:
        vic_ii.run(vic.cpu, vic_ii.next_event(vic.cpu) + 1)
    assert vic.cpu.irq_since == vic.clock(FIRST_LINE, 27)


def test_sprites_collide_under_the_border(vic: Vic) -> None:
    vic.cpu.vic_border = vic.cpu.vic_border_vertical = 1
    vic.poke(0x3FFF, 0xFF)
    for number in (0, 1):
        vic.sprite(number, 96, Y, 1, BLOCK, *FULL)
    vic.to(FIRST_LINE, 63)
    # But there are no graphics.
    assert (vic.read(0x1E), vic.read(0x1F)) == (3, 0)
    assert vic.text(FIRST_LINE, 96) == "e" * 8


def test_pointers_follow_the_matrix_and_the_bank(vic: Vic) -> None:
    vic.cpu.vic_bank = 0x4000
    vic.write(0x18, 0x38)
    vic.sprite(7, X, Y, 1, 0)
    vic.poke(0x4000 + 0x0C00 + 0x3FF, 0x91)
    vic.poke(0x4000 + 64 * 0x91, *DATA)
    vic.to(FIRST_LINE, 63)
    assert vic.text(FIRST_LINE, X, 24) == STANDARD
