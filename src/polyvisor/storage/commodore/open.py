"""Opening a medium by its file, whatever its format."""

from __future__ import annotations

import os
from pathlib import Path

from .cartridge import Cartridge
from .d64 import D64
from .files import ImageError
from .geometry import SIZES
from .tape import Tape, open_prg, open_t64

Medium = D64 | Tape | Cartridge


def open_medium(path: str | os.PathLike[str]) -> Medium:
    """The disk, tape, program or cartridge in a file: by what it begins with, then by its size and name. Raises
    ImageError."""
    name = Path(path)
    try:
        with name.open("rb") as file:
            start = file.read(16)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ImageError(f"{name}: {error.strerror or error}") from error
    suffix = name.suffix.lower()
    if start == b"C64 CARTRIDGE   " or suffix == ".crt":
        return Cartridge.open(path)
    if suffix == ".t64" or (suffix != ".prg" and start.startswith(b"C64")):
        return open_t64(path)
    if suffix == ".d64" or (suffix != ".prg" and size in SIZES):
        return D64.open(path)
    if suffix in (".prg", ""):
        return open_prg(path)
    raise ImageError(f"{name}: is no program (.prg), disk (.d64), tape (.t64) or cartridge (.crt)")
