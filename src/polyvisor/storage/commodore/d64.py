"""D64: an image of a 5.25" disk of the 1541 drive, sector by sector, with what its software (CBM DOS 2.6) keeps there.

Track 18 has the block availability map (BAM) in its sector 0 and the directory from sector 1 on; files are chains of
sectors whose first two bytes name the next one, or are 0 and the place of the last byte.  Sources: Commodore 1541
User's Guide; R. Immers and G. Neufeld, "Inside Commodore DOS", chapters 4 and 5.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from .files import Entry, FileType, ImageError, blocks_of, matches, naming, padded, read_image, save_image
from .geometry import DIRECTORY_TRACK, SECTOR, SIZES, STANDARD_TRACKS, offset_of, sectors_before, sectors_of

_INTERLEAVE = 10
_DIRECTORY_INTERLEAVE = 3
_ENTRY = 32
_GOOD = 1
"""The error byte of a sector that can be read."""


class DiskFullError(ImageError):
    """There is no room for more."""


class ReadError(ImageError):
    """A sector that the image says cannot be read; ``code`` is the drive's number of the error, 20 to 29."""

    def __init__(self, track: int, sector: int, code: int) -> None:
        super().__init__(f"track {track}, sector {sector} cannot be read (error {code})")
        self.track, self.sector, self.code = track, sector, code


@dataclass
class D64:
    """A disk in memory: ``data`` are its sectors, ``errors`` a byte for each or nothing. `save` writes it to a file."""

    data: bytearray
    errors: bytes = b""
    tracks: int = field(init=False)

    def __post_init__(self) -> None:
        for size, (tracks, with_errors) in SIZES.items():
            if not with_errors and size == len(self.data):
                self.tracks = tracks
                return
        raise ImageError(f"{len(self.data)} bytes of sectors are not those of 35 or 40 tracks")

    @classmethod
    def parse(cls, image: bytes) -> D64:
        """The disk in the bytes of an image. Raises ImageError."""
        if len(image) not in SIZES:
            raise ImageError(f"has {len(image)} bytes, a D64 image has {', '.join(map(str, sorted(SIZES)))}")
        tracks, _ = SIZES[len(image)]
        sectors = sectors_before(tracks + 1)
        return cls(bytearray(image[: sectors * SECTOR]), image[sectors * SECTOR :])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> D64:
        """The disk in a file. Raises ImageError."""
        data = read_image(path, max(SIZES))
        with naming(path):
            return cls.parse(data)

    @classmethod
    def formatted(cls, title: bytes = b"", id: bytes = b"00", tracks: int = STANDARD_TRACKS) -> D64:
        """An empty disk; name and identity in PETSCII."""
        disk = cls(bytearray(sectors_before(tracks + 1) * SECTOR))
        disk.format(title, id)
        return disk

    def image(self) -> bytes:
        """The bytes of the image."""
        return bytes(self.data) + self.errors

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the image to a file, which is replaced as a whole. Raises ImageError."""
        save_image(path, self.image())

    # Sectors

    def sector(self, track: int, sector: int) -> bytearray:
        """A copy of a sector. Raises ImageError, ReadError among them."""
        number = offset_of(track, sector, self.tracks)
        if self.errors and self.errors[number] > _GOOD:
            raise ReadError(track, sector, self.errors[number] + 18)
        return self.data[number * SECTOR : (number + 1) * SECTOR]

    def write_sector(self, track: int, sector: int, contents: bytes | bytearray) -> None:
        """Write a sector of 256 bytes, which then can be read. Raises ImageError."""
        number = offset_of(track, sector, self.tracks)
        assert len(contents) == SECTOR
        self.data[number * SECTOR : (number + 1) * SECTOR] = contents
        if self.errors:
            self.errors = self.errors[:number] + bytes([_GOOD]) + self.errors[number + 1 :]

    def chain(self, track: int, sector: int) -> Iterator[tuple[int, int, bytearray]]:
        """The sectors that follow each other, with their places. Raises ImageError if they go round."""
        seen = set()
        while track:
            if (track, sector) in seen:
                raise ImageError(f"the chain of sectors comes back to track {track}, sector {sector}")
            seen.add((track, sector))
            contents = self.sector(track, sector)
            yield track, sector, contents
            track, sector = contents[0], contents[1]

    # The map of free sectors

    def _map(self, track: int) -> tuple[int, int]:
        """Where a track's four bytes of the BAM are, and which of its sectors are free, a bit each."""
        at = offset_of(DIRECTORY_TRACK, 0) * SECTOR + 4 * track
        bits = int.from_bytes(self.data[at + 1 : at + 4], "little")
        return at, bits & (1 << sectors_of(track)) - 1

    def _set_map(self, track: int, bits: int) -> None:
        at, _ = self._map(track)
        self.data[at : at + 4] = bytes([bits.bit_count()]) + bits.to_bytes(3, "little")

    def is_free(self, track: int, sector: int) -> bool:
        """Whether the map says so; sectors that it does not cover are not."""
        return 1 <= track <= STANDARD_TRACKS and bool(self._map(track)[1] >> sector & 1)

    def allocate(self, track: int, sector: int) -> None:
        """Mark a sector as used. Raises ImageError if there is none."""
        offset_of(track, sector)
        self._set_map(track, self._map(track)[1] & ~(1 << sector))

    def release(self, track: int, sector: int) -> None:
        """Mark a sector as free; those that the map does not cover stay as they are."""
        if track <= STANDARD_TRACKS:
            offset_of(track, sector)
            self._set_map(track, self._map(track)[1] | 1 << sector)

    @property
    def free(self) -> int:
        """Free blocks, those of the directory's track not counted."""
        return sum(
            self._map(track)[1].bit_count() for track in range(1, STANDARD_TRACKS + 1) if track != DIRECTORY_TRACK
        )

    def _next_free(self, track: int, sector: int, step: int) -> int | None:
        """The free sector of a track that is ``step`` after ``sector``, or the first that follows."""
        bits, count = self._map(track)[1], sectors_of(track)
        return next((s for i in range(count) if bits >> (s := (sector + step + i) % count) & 1), None)

    def _first_place(self) -> tuple[int, int]:
        """Where a file begins: as near to the directory as possible."""
        for distance in range(1, STANDARD_TRACKS):
            for track in (DIRECTORY_TRACK - distance, DIRECTORY_TRACK + distance):
                if 1 <= track <= STANDARD_TRACKS and (found := self._next_free(track, 0, 0)) is not None:
                    return track, found
        raise DiskFullError("the disk is full")

    def _place_after(self, track: int, sector: int) -> tuple[int, int]:
        """Where a file goes on: on the track, then away from the directory, then on its other side."""
        away = range(track, 0, -1) if track < DIRECTORY_TRACK else range(track, STANDARD_TRACKS + 1)
        for number in away:
            found = self._next_free(number, sector, _INTERLEAVE if number == track else 0)
            if found is not None:
                return number, found
        return self._first_place()

    # The directory

    @property
    def title(self) -> bytes:
        """The disk's name."""
        return bytes(self._head(0x90, 16)).rstrip(b"\xa0")

    @property
    def id(self) -> bytes:
        """Its identity, a space, and the version of the format."""
        return bytes(self._head(0xA2, 5)).replace(b"\xa0", b" ")

    def _head(self, at: int, length: int) -> bytearray:
        start = offset_of(DIRECTORY_TRACK, 0) * SECTOR + at
        return self.data[start : start + length]

    def _slots(self) -> Iterator[tuple[int, int, int, bytearray]]:
        """All directory entries, used or not: track, sector, place in it, and the 32 bytes."""
        for track, sector, contents in self.chain(DIRECTORY_TRACK, 1):
            for at in range(0, SECTOR, _ENTRY):
                yield track, sector, at, contents[at : at + _ENTRY]

    def _slot(self, entry: Entry) -> tuple[int, int, int, bytearray]:
        for number, slot in enumerate(self._slots()):
            if number == entry.number and slot[3][2]:
                return slot
        raise ImageError(f"there is no directory entry {entry.number}")

    def _set_slot(self, track: int, sector: int, at: int, slot: bytearray) -> None:
        contents = self.sector(track, sector)
        # The first two bytes of the first entry belong to the sector.
        contents[at + 2 : at + _ENTRY] = slot[2:]
        self.write_sector(track, sector, contents)

    def entries(self) -> list[Entry]:
        """What the directory lists. Raises ImageError."""
        found = []
        for number, (_, _, _, slot) in enumerate(self._slots()):
            kind = slot[2]
            if kind:
                found.append(
                    Entry(
                        number, bytes(slot[5:21]).rstrip(b"\xa0"), FileType(min(kind & 7, 4)),
                        int.from_bytes(slot[30:32], "little"), bool(kind & 0x80), bool(kind & 0x40),
                        slot[23] if kind & 7 == FileType.REL else 0,
                    )
                )  # fmt: skip
        return found

    def find(self, pattern: bytes) -> Entry | None:
        """The first file that a name with ``?`` and ``*`` means. Raises ImageError."""
        return next((entry for entry in self.entries() if matches(pattern, entry.name)), None)

    # Files

    def read(self, entry: Entry) -> bytes:
        """All of a file. Raises ImageError."""
        slot = self._slot(entry)[3]
        out = bytearray()
        for _, _, contents in self.chain(slot[3], slot[4]):
            out += contents[2:] if contents[0] else contents[2 : contents[1] + 1]
        return bytes(out)

    def write(self, name: bytes, contents: bytes, type: FileType = FileType.PRG) -> Entry:
        """Add a file. Raises ImageError if there is one of that name, DiskFullError if there is no room."""
        if not 1 <= len(name) <= 16:
            raise ImageError(f"a name has 1 to 16 characters, not {len(name)}")
        if type not in (FileType.SEQ, FileType.PRG, FileType.USR):
            raise ImageError(f"files of type {type.name} cannot be written")
        if any(entry.name == name for entry in self.entries()):
            raise ImageError("there is a file of that name")
        before = bytes(self.data)
        try:
            places = self._places_for(blocks_of(len(contents)))
            for index, (track, sector) in enumerate(places):
                piece = contents[254 * index : 254 * (index + 1)]
                follows = places[index + 1] if index + 1 < len(places) else (0, len(piece) + 1)
                self.write_sector(track, sector, bytes(follows) + piece.ljust(254, b"\0"))
            slot = bytearray(_ENTRY)
            slot[2:5] = bytes([0x80 | type, *places[0]])
            slot[5:21] = padded(name)
            slot[30:32] = len(places).to_bytes(2, "little")
            number, track, sector, at = self._empty_slot()
            self._set_slot(track, sector, at, slot)
        except ImageError:
            self.data[:] = before
            raise
        return Entry(number, name, type, len(places))

    def _places_for(self, count: int) -> list[tuple[int, int]]:
        """So many sectors, marked as used."""
        if count > self.free:
            raise DiskFullError(f"{count} blocks do not fit, {self.free} are free")
        places: list[tuple[int, int]] = []
        for _ in range(count):
            place = self._place_after(*places[-1]) if places else self._first_place()
            self.allocate(*place)
            places.append(place)
        return places

    def _empty_slot(self) -> tuple[int, int, int, int]:
        """Number and place of an entry that is not used, in a new sector of the directory if need be."""
        number, track, sector = 0, DIRECTORY_TRACK, 1
        for number, (track, sector, at, slot) in enumerate(self._slots()):
            if not slot[2]:
                return number, track, sector, at
        found = self._next_free(DIRECTORY_TRACK, sector, _DIRECTORY_INTERLEAVE)
        if found is None or found == 0 or track != DIRECTORY_TRACK:
            raise DiskFullError("the directory is full")
        self.allocate(DIRECTORY_TRACK, found)
        self.write_sector(DIRECTORY_TRACK, found, b"\0\xff" + bytes(254))
        last = self.sector(track, sector)
        last[0:2] = bytes([DIRECTORY_TRACK, found])
        self.write_sector(track, sector, last)
        return number + 1, DIRECTORY_TRACK, found, 0

    def _sectors_of(self, slot: bytearray) -> list[tuple[int, int]]:
        """The places of a file's sectors, those of the index of a relative file too. Raises ImageError."""
        starts = [(slot[3], slot[4])]
        if slot[2] & 7 == FileType.REL:
            starts.append((slot[21], slot[22]))
        return [(track, sector) for start in starts for track, sector, _ in self.chain(*start)]

    def scratch(self, entry: Entry) -> None:
        """Remove a file, and free its sectors. Raises ImageError, also if it is locked; then nothing is changed."""
        track, sector, at, slot = self._slot(entry)
        if slot[2] & 0x40:
            raise ImageError("the file is locked")
        if slot[2] & 0x80:
            for place in self._sectors_of(slot):
                self.release(*place)
        slot[2] = 0
        self._set_slot(track, sector, at, slot)

    def rename(self, entry: Entry, name: bytes) -> None:
        """Give a file another name. Raises ImageError if a file has it."""
        if not 1 <= len(name) <= 16:
            raise ImageError(f"a name has 1 to 16 characters, not {len(name)}")
        if any(other.name == name for other in self.entries()):
            raise ImageError("there is a file of that name")
        track, sector, at, slot = self._slot(entry)
        slot[5:21] = padded(name)
        self._set_slot(track, sector, at, slot)

    # The whole

    def format(self, title: bytes, id: bytes | None) -> None:
        """Make it an empty disk. Without ``id``, the old one stays, and so do the sectors that nothing refers to
        now."""
        if id is not None:
            self.data[:] = bytes(len(self.data))
            self.errors = bytes([_GOOD]) * len(self.errors)
        else:
            id = bytes(self._head(0xA2, 2))
        head = bytearray(SECTOR)
        head[0:4] = bytes([DIRECTORY_TRACK, 1, ord("A"), 0])
        head[0x90:0xAB] = padded(title) + b"\xa0\xa0" + padded(id, 2) + b"\xa02A\xa0\xa0\xa0\xa0"
        self.write_sector(DIRECTORY_TRACK, 0, head)
        self.write_sector(DIRECTORY_TRACK, 1, b"\0\xff" + bytes(254))
        self._clear_map()

    def _clear_map(self) -> None:
        """All is free but for what every disk has."""
        for track in range(1, STANDARD_TRACKS + 1):
            self._set_map(track, (1 << sectors_of(track)) - 1)
        self.allocate(DIRECTORY_TRACK, 0)
        self.allocate(DIRECTORY_TRACK, 1)

    def validate(self) -> None:
        """Make the map anew from the files, and remove those that were never completed. Raises ImageError.

        Nothing is changed if a file is damaged.
        """
        before = bytes(self.data)
        try:
            slots = list(self._slots())
            self._clear_map()
            for track, sector, at, slot in slots:
                self.allocate(track, sector)
                if slot[2] and not slot[2] & 0x80:
                    slot[2] = 0
                    self._set_slot(track, sector, at, slot)
                elif slot[2]:
                    for place in self._sectors_of(slot):
                        if place[0] <= STANDARD_TRACKS:
                            self.allocate(*place)
        except ImageError:
            self.data[:] = before
            raise
