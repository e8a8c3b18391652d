"""Writing PNG images (Portable Network Graphics, third edition).

Only what screens need: true colour, 8 bits a sample, without alpha. The format is a few chunks around a zlib stream,
and Python has zlib and its CRC; an imaging library would be the project's largest dependency for this one file.
"""

from __future__ import annotations

import struct
import zlib

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TRUE_COLOUR = 2
# Type `Up` of section 9.2: each byte minus the one above it. It turns rows that repeat, as on screens they do, into
# zeros. Subtraction of whole rows is not in Python's library, so rows that equal the one above are all it is used for.
_NONE, _UP = 0, 2
_LEVEL = 6


def encode(width: int, height: int, rgb: bytes) -> bytes:
    """A PNG file of ``width`` by ``height`` pixels; ``rgb`` has three bytes for each, row after row from the top.

    Raises ValueError if there are no pixels, or ``rgb`` is not as long as that makes it.
    """
    stride = 3 * width
    if width < 1 or height < 1 or len(rgb) != stride * height:
        raise ValueError(f"{len(rgb)} bytes are no image of {width} by {height} pixels")
    same = bytes([_UP]) + bytes(stride)
    rows = []
    above = b""
    for start in range(0, len(rgb), stride):
        row = rgb[start : start + stride]
        rows.append(same if row == above else bytes([_NONE]) + row)
        above = row
    header = struct.pack(">IIBBBBB", width, height, 8, _TRUE_COLOUR, 0, 0, 0)
    data = zlib.compress(b"".join(rows), _LEVEL)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    """Length, type, data, and the CRC of the latter two (section 5.3)."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
