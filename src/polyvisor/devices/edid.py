"""What a monitor says of itself: the base block of VESA's Enhanced EDID, release A revision 2 (EDID 1.4)."""

from __future__ import annotations

import struct

BLOCK_SIZE = 128
MAX_SIZE = 4095
"""The most pixels in a row, or rows, that a detailed timing can say (section 3.10.2)."""

_HEADER = bytes.fromhex("00ffffffffffff00")
# Three letters, five bits each, "A" is 1 (3.4.1).
_VENDOR = sum((ord(letter) - 64) << shift for letter, shift in zip("PLV", (10, 5, 0), strict=True))
_YEAR = 2026
_DIGITAL_8_BITS = 0xA0
# RGB 4:4:4, the standard sRGB, and the first timing is the panel's own (3.6.4).
_FEATURES = 0x06
# The chromaticities of sRGB, ten bits each (3.7).
_SRGB = bytes.fromhex("ee91a3544c99260f5054")
_UNUSED_STANDARD_TIMING = b"\x01\x01"
_NAME, _RANGE, _DUMMY = 0xFC, 0xFD, 0x10
_REFRESH = 60  # Hz
_MAX_CLOCK = 0xFFFF  # in 10 kHz
_MILLIMETRES_PER_PIXEL = 0.254  # 100 pixels an inch
# Reduced blanking, as flat panels have it (CVT 1.2): front porch, sync and total of blanking, in pixels and in rows.
_H_FRONT, _H_SYNC, _H_BLANK = 48, 32, 160
_V_FRONT, _V_SYNC, _V_BLANK = 3, 6, 30


def edid(width: int, height: int, serial: int = 0, name: str = "polyvisor") -> bytes:
    """The 128 bytes for a panel of ``width`` by ``height`` pixels at 60 Hz, or as near as its clock can be told.

    ``name`` has up to 13 ASCII characters. Raises ValueError if one of these is impossible.
    """
    if not (1 <= width <= MAX_SIZE and 1 <= height <= MAX_SIZE):
        raise ValueError(f"a screen of {width} by {height} pixels; each is to be 1 to {MAX_SIZE}")
    millimetres = [max(1, round(pixels * _MILLIMETRES_PER_PIXEL)) for pixels in (width, height)]
    block = b"".join(
        (
            _HEADER,
            struct.pack(">H", _VENDOR),
            struct.pack("<HIBB", 1, serial, 0, _YEAR - 1990),
            bytes([1, 4]),
            bytes([_DIGITAL_8_BITS, *(min(255, -(-each // 10)) for each in millimetres), 120, _FEATURES]),
            _SRGB,
            bytes(3),
            _UNUSED_STANDARD_TIMING * 8,
            _timing(width, height, *millimetres),
            _text(_NAME, name),
            _descriptor(_RANGE, bytes([1, 255, 1, 255, 66, 1]) + b"\n" + b" " * 6),
            _descriptor(_DUMMY, bytes(13)),
            bytes(1),
        )
    )
    return block + bytes([-sum(block) & 0xFF])


def _timing(width: int, height: int, width_mm: int, height_mm: int) -> bytes:
    """A detailed timing descriptor (3.10.2): values of 12 bits whose high parts share bytes."""
    clock = (width + _H_BLANK) * (height + _V_BLANK) * _REFRESH // 10_000
    return struct.pack(
        "<H16B",
        min(_MAX_CLOCK, max(1, clock)),
        *(width & 0xFF, _H_BLANK, width >> 8 << 4),
        *(height & 0xFF, _V_BLANK, height >> 8 << 4),
        *(_H_FRONT, _H_SYNC, _V_FRONT << 4 | _V_SYNC, 0),
        *(width_mm & 0xFF, height_mm & 0xFF, width_mm >> 8 << 4 | height_mm >> 8),
        *(0, 0, 0x1E),
    )


def _descriptor(tag: int, data: bytes) -> bytes:
    """A display descriptor (3.10.3)."""
    return bytes([0, 0, 0, tag, 0]) + data


def _text(tag: int, text: str) -> bytes:
    raw = text.encode("ascii")
    if len(raw) > 13:
        raise ValueError(f"{text!r} is longer than 13 characters")
    return _descriptor(tag, raw if len(raw) == 13 else (raw + b"\n").ljust(13))
