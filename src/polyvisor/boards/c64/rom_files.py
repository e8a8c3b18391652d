"""ROMs of a real machine, from the user's files; and what lets its KERNAL use our drive.

Files are found by what is in them, whatever their names: the SHA-1 sums are those that MAME's driver for the machine
lists. Other images, such as changed KERNALs, are found by their names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from . import roms
from .roms import CHARACTERS_SIZE, SIZE, Roms

SIZES = {"basic": SIZE, "kernal": SIZE, "characters": CHARACTERS_SIZE}
"""Bytes of each ROM, by the names that files may have."""
KNOWN = {
    "79015323128650c742a3694c9429aa91f355905e": "basic",  # 901226-01
    "87cc04d61fc748b82df09856847bb5c2754a2033": "kernal",  # 901227-01
    "0e2e4ee3f2d41f00bed72f9ab588b83e306fdb13": "kernal",  # 901227-02
    "1d503e56df85a62fee696e7618dc5b4e781df1bb": "kernal",  # 901227-03
    "adc7c31e18c7c7413d54802ef2f4193da14711aa": "characters",  # 901225-01
}
"""The ROM of each well-known image, by its SHA-1."""
_NAMES = {"basic": ("basic",), "kernal": ("kernal", "kernel"), "characters": ("characters", "chargen", "character")}
_MOST_FILES = 4096


class RomError(ValueError):
    """The user's ROMs cannot be used; the message is a line for them."""


def user_roms(directory: str | os.PathLike[str]) -> Roms:
    """The three ROMs in a directory: by their contents, else by names that begin with basic, kernal, or characters.

    Of several KERNALs with well-known contents, the latest is taken. Raises RomError.
    """
    place = Path(directory)
    found: dict[str, bytes] = {}
    named: dict[str, tuple[Path, bytes]] = {}
    ranks = list(KNOWN)
    ranked: dict[str, int] = {}
    wrong = []
    for path, size in _files(place):
        name = _named(path)
        if size not in SIZES.values():
            if name is not None:
                wrong.append(f"{path.name} has {size} bytes instead of {SIZES[name]}")
            continue
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RomError(f"{path}: {error.strerror}") from error
        digest = hashlib.sha1(data, usedforsecurity=False).hexdigest()
        if digest in KNOWN:
            known = KNOWN[digest]
            if ranks.index(digest) >= ranked.get(known, -1):
                found[known], ranked[known] = data, ranks.index(digest)
        elif name is not None and len(data) == SIZES[name]:
            if name in named and named[name][1] != data:
                other = named[name][0].name
                raise RomError(f"{place}: {other} and {path.name} could both be the ROM {name!r}; keep one")
            named[name] = path, data
        elif name is not None:
            wrong.append(f"{path.name} has {len(data)} bytes instead of {SIZES[name]}")
    for name, (_, data) in named.items():
        found.setdefault(name, data)
    missing = [f"{name} ({size} bytes)" for name, size in SIZES.items() if name not in found]
    if missing:
        also = f"; {'; '.join(wrong)}" if wrong else ""
        raise RomError(f"{place}: has no ROM {', no '.join(missing)}{also}")
    return Roms(**found)


def _files(place: Path) -> Iterator[tuple[Path, int]]:
    """Plain files there, in order, and their sizes. Raises RomError."""
    try:
        entries = sorted(place.iterdir())[:_MOST_FILES]
    except OSError as error:
        raise RomError(f"{place}: {error.strerror}") from error
    for path in entries:
        if path.is_file():
            yield path, path.stat().st_size


def _named(path: Path) -> str | None:
    name = path.name.lower()
    return next((rom for rom, starts in _NAMES.items() if name.startswith(starts)), None)


_TALK = bytes.fromhex("0940 2c 0920")
"""What TALK and LISTEN begin with in Commodore's KERNALs: ORA #$40, BIT to skip, ORA #$20."""


def reaching_drives(kernal: bytes) -> bytes:
    """A KERNAL with our serial routines (`roms.with_drive`); one that has others than Commodore's as it is."""
    start = 0xED09 - roms.KERNAL
    return roms.with_drive(kernal) if kernal[start : start + len(_TALK)] == _TALK else kernal
