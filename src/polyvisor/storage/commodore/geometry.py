"""Where the sectors of a 1541's disk are in a D64 image: 256 bytes each, track by track."""

from __future__ import annotations

from .files import ImageError

SECTOR = 256
DIRECTORY_TRACK = 18
STANDARD_TRACKS = 35
"""Tracks that the drive's own software uses; files on those beyond are read, but none are put there."""


def sectors_of(track: int) -> int:
    """Sectors of a track, which are numbered from 1: the outer ones are longer."""
    return 21 if track < 18 else 19 if track < 25 else 18 if track < 31 else 17


def sectors_before(track: int) -> int:
    """Sectors of all tracks before ``track``."""
    return sum(sectors_of(number) for number in range(1, track))


SIZES = {
    sectors_before(tracks + 1) * (SECTOR + errors): (tracks, bool(errors)) for tracks in (35, 40) for errors in (0, 1)
}
"""By the size of an image in bytes: its tracks, and whether a byte for each sector follows that tells of read
errors."""


def offset_of(track: int, sector: int, tracks: int = STANDARD_TRACKS) -> int:
    """The number of a sector of the image, from 0. Raises ImageError if the disk has no such."""
    if not 1 <= track <= tracks or not 0 <= sector < sectors_of(track):
        raise ImageError(f"there is no track {track}, sector {sector}")
    return sectors_before(track) + sector
