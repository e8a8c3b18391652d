"""The picture of a frame, and its colours."""

from __future__ import annotations

import struct
import zlib

import pytest
from vic_machine import Vic

from polyvisor.devices.c64 import memory as where
from polyvisor.devices.c64 import palette, vic_ii
from polyvisor.devices.c64.picture import picture


def test_there_are_sixteen_different_colours() -> None:
    assert len(palette.NAMES) == len(palette.COLOURS) == len(set(palette.COLOURS)) == 16


def test_the_visible_part_has_32_pixels_of_border_on_each_side() -> None:
    vic = Vic(0x33)
    vic.to(0x33, 63)
    made = picture(vic.memory)
    row = made.pixels[384 * (0x33 - 16) :][:384]
    assert (made.width, made.height, len(made.pixels)) == (384, 272, 384 * 272)
    assert row[32:352] == b"\x06" * 320 and row[:32].strip(b"\x00\x0e") == b"" and row[352:] == b"\x0e" * 32
    vic.close()


@pytest.mark.parametrize(("model", "first", "last"), [(vic_ii.PAL, 16, 287), (vic_ii.NTSC, 41, 12)])
def test_the_visible_lines(model: vic_ii.Model, first: int, last: int) -> None:
    vic = Vic(model=model)
    for line, colour in ((first, 1), (last, 2)):
        vic.poke(where.FRAME_BUFFER + 512 * line + 104, *[colour] * 384)
    pixels = picture(vic.memory, model).pixels
    assert (set(pixels[:384]), set(pixels[-384:]), set(pixels[384:-384])) == ({1}, {2}, {0})
    vic.close()


def test_a_png_of_it() -> None:
    vic = Vic()
    vic.poke(where.FRAME_BUFFER + 512 * 16 + 104, 2, 0xF7)  # of a byte the low nibble counts
    data = picture(vic.memory).png()
    vic.close()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and struct.unpack(">II", data[16:24]) == (384, 272)
    length = struct.unpack(">I", data[33:37])[0]
    assert data[37:41] == b"IDAT"
    rows = zlib.decompress(data[41 : 41 + length])
    assert rows[:10] == b"\x00" + bytes.fromhex("813338 edf171 000000")
