"""The picture that the VIC-II has drawn, for people to look at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from polyvisor.devices import png
from polyvisor.engine.memory import Memory

from .memory import FRAME_BUFFER, FRAME_STRIDE
from .palette import COLOURS
from .vic_ii.model import PAL, Model

WIDTH = 384
"""Pixels of a line that are usually seen: 320 and 32 of the border on each side."""
_WINDOW = 51  # its first line
_FIRST = 104  # of a line in the frame buffer; X coordinate 24 is at 136 in all models
_TABLES = tuple(bytes(COLOURS[value & 15] >> shift & 0xFF for value in range(256)) for shift in (16, 8, 0))


@dataclass(frozen=True)
class Picture:
    """Pixels as numbers of colours, row after row from the top, a byte each."""

    width: int
    height: int
    pixels: bytes
    above: int
    """Rows of the border above the display window, the 200 rows that are text or graphics."""

    def rgb(self) -> bytes:
        """Three bytes for each pixel."""
        made = bytearray(3 * len(self.pixels))
        for channel, table in enumerate(_TABLES):
            made[channel::3] = self.pixels.translate(table)
        return bytes(made)

    def png(self) -> bytes:
        """A PNG file of it."""
        return png.encode(self.width, self.height, self.rgb())

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG file. Raises OSError."""
        Path(path).write_bytes(self.png())


def picture(memory: Memory, model: Model = PAL) -> Picture:
    """What is in the frame buffer: 384 x 272 pixels with PAL, 384 x 235 with NTSC.

    While the machine runs, the upper part may be of a frame that the lower part is not of yet.
    """
    rows = []
    for row in range(model.visible_lines):
        line = (model.first_visible + row) % model.lines
        rows.append(memory.read(FRAME_BUFFER + line * FRAME_STRIDE + _FIRST, WIDTH))
    return Picture(WIDTH, model.visible_lines, b"".join(rows), _WINDOW - model.first_visible)
