"""CRT: the ROMs of a cartridge, bank by bank, and how they are switched.

Source: P. Schepers and others, the description of the CCS64 emulator's cartridge images: a header of 64 bytes, then
packets ``CHIP``; all numbers are big-endian.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum

from .files import ImageError, naming, read_image

BANK = 0x2000
"""Bytes of a bank."""
LOW, HIGH, ULTIMAX_HIGH = 0x8000, 0xA000, 0xE000
_MOST = 2 << 20
_CHIP = 16


class Hardware(IntEnum):
    """Kinds of cartridges, by their number in the image: those that are known here."""

    NORMAL = 0
    OCEAN = 5
    MAGIC_DESK = 19
    EASYFLASH = 32


_MOST_BANKS = {Hardware.NORMAL: 1, Hardware.OCEAN: 64, Hardware.MAGIC_DESK: 128, Hardware.EASYFLASH: 64}


@dataclass(frozen=True)
class Cartridge:
    """What is in a cartridge.

    ``exrom`` and ``game`` are the levels of these lines when the machine starts, True for high (not pulled down):
    low and high make 8 KiB at $8000, both low 16 KiB, high and low the Ultimax's map. ``low`` and ``high`` are the
    banks at $8000 and at $A000 (or $E000), by number; None where there is no ROM.
    """

    name: str
    hardware: Hardware
    exrom: bool
    game: bool
    low: tuple[bytes | None, ...]
    high: tuple[bytes | None, ...]

    @classmethod
    def parse(cls, data: bytes) -> Cartridge:
        """The cartridge in the bytes of an image. Raises ImageError."""
        if len(data) < 0x40 or not data.startswith(b"C64 CARTRIDGE   "):
            raise ImageError("is not a cartridge image: its header is missing")
        start, _, number, exrom, game = struct.unpack_from(">IHHBB", data, 0x10)
        name = data[0x20:0x40].partition(b"\0")[0].decode("latin-1").strip()
        if number not in list(Hardware):
            known = ", ".join(f"{h.value} ({h.name.lower().replace('_', ' ')})" for h in Hardware)
            raise ImageError(f"the cartridge is of type {number}, which is not supported; there are {known}")
        hardware = Hardware(number)
        # Some images say that their header has 32 bytes; it never has.
        at = max(start, 0x40)
        banks: dict[tuple[int, bool], bytes] = {}
        while at < len(data):
            at = _chip(data, at, hardware, banks)
        if not banks:
            raise ImageError("has no ROM")
        count = max(bank for bank, _ in banks) + 1
        low, high = (tuple(banks.get((bank, upper)) for bank in range(count)) for upper in (False, True))
        return cls(name, hardware, bool(exrom), bool(game), low, high)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Cartridge:
        """The cartridge in a file. Raises ImageError."""
        data = read_image(path, _MOST)
        with naming(path):
            return cls.parse(data)


def _chip(data: bytes, at: int, hardware: Hardware, banks: dict[tuple[int, bool], bytes]) -> int:
    """Take the packet at ``at``; gives where the next one is."""
    if at + _CHIP > len(data) or data[at : at + 4] != b"CHIP":
        raise ImageError(f"at byte {at} a ROM's header should follow")
    length, _, bank, address, size = struct.unpack_from(">IHHHH", data, at + 4)
    rom = data[at + _CHIP : at + _CHIP + size]
    if length < _CHIP + size or len(rom) < size:
        raise ImageError(f"the ROM at byte {at} ends before its {size} bytes")
    if bank >= _MOST_BANKS[hardware]:
        raise ImageError(f"there is no bank {bank} in a cartridge of type {hardware.value}")
    allowed = {LOW: (BANK, 2 * BANK), HIGH: (BANK,), ULTIMAX_HIGH: (BANK, BANK // 2), 0xF000: (BANK // 2,)}
    if hardware is Hardware.NORMAL:
        allowed[LOW] = (BANK // 2, BANK, 2 * BANK)
    if size not in allowed.get(address, ()):
        raise ImageError(f"a ROM of {size} bytes cannot be at ${address:04x}")
    # Smaller ROMs are seen several times. Ocean's banks are seen at both places, wherever the image puts them.
    upper = address != LOW and hardware is not Hardware.OCEAN
    pieces = [rom * (BANK // size)] if size < BANK else [rom[i : i + BANK] for i in range(0, size, BANK)]
    for index, piece in enumerate(pieces):
        place = (bank, upper or index == 1)
        if place in banks:
            raise ImageError(f"bank {bank} is there twice")
        banks[place] = piece
    return at + int(length)
