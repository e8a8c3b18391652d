"""A snapshot in a file (docs/snapshots.md describes the format, section by section).

The file begins with a header of one page, ends with a document of JSON, and in between has *sections*: what a range of
RAM or a disk has, at its own offset from where the section begins, so that a mapping of the file is that range. What a
section does not have is a hole. Numbers in the header are little-endian.
"""

from __future__ import annotations

import binascii
import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from polyvisor.dataclass import dataclass, field
from polyvisor.engine.memory import PAGE_SIZE
from polyvisor.vm.errors import SnapshotError

from .codec import from_plain

VERSION = 1
MAGIC = b"POLYSNAP"
# Magic, version, bytes of the header, of the file, where the document is, its length; its SHA-256; the snapshot's
# identity. The SHA-256 of all this follows.
HEADER = struct.Struct("<8sIIQQQ32s16s")
_DIGEST = 32
CHUNK = 1 << 20
"""Bytes of a section that have a checksum together."""
_LONGEST_DOCUMENT = 1 << 30
BYTES = "$bytes"
"""The name under which the document has bytes, in Base64."""

Run = tuple[int, int]
"""Offset and length in bytes."""


@dataclass
class Section:
    """Bytes of a range that a file has. ``runs`` are pairs of offset and length, ``unit`` what those are multiples of.

    ``checksums``: of each chunk of the range, in order, that has any bytes in the file: the SHA-256 of those bytes.
    """

    offset: int
    """Where the range begins in the file."""
    size: int
    unit: int
    runs: list[tuple[int, int]] = field(default_factory=list)
    checksums: bytes = b""

    @property
    def length(self) -> int:
        """Bytes that it has."""
        return sum(length for _, length in self.runs)


@dataclass
class Header:
    """What the first page says."""

    size: int
    document_at: int
    document_length: int
    digest: bytes
    identity: bytes


def chunks(runs: Iterable[Run]) -> Iterator[tuple[int, list[Run]]]:
    """The number of each chunk that has bytes, and what of ``runs`` is in it."""
    number, inside = -1, list[Run]()
    for offset, length in runs:
        while length:
            here = min(length, CHUNK - offset % CHUNK)
            if offset // CHUNK != number:
                if inside:
                    yield number, inside
                number, inside = offset // CHUNK, []
            inside.append((offset, here))
            offset, length = offset + here, length - here
    if inside:
        yield number, inside


class SnapshotFile:
    """An open snapshot file; ``document`` is plain data. It stays open as long as this object is there."""

    def __init__(self, path: Path) -> None:
        """Raises SnapshotError, with a line for the user."""
        self.path = path
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise SnapshotError(f"{path}: there is no such snapshot") from None
        except OSError as error:
            raise SnapshotError(f"{path}: cannot open the snapshot: {error.strerror}") from error
        try:
            self.header = self._read_header()
            self.document: dict[str, Any] = self._read_document()
        except OSError as error:
            raise SnapshotError(f"{path}: cannot read the snapshot: {error.strerror}") from error

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)

    def _read_header(self) -> Header:
        data = os.pread(self.fd, PAGE_SIZE, 0)
        if data[: len(MAGIC)] != MAGIC or len(data) < HEADER.size + _DIGEST:
            raise SnapshotError(f"{self.path}: is not a snapshot of polyvisor")
        _, version, length, *rest = HEADER.unpack_from(data)
        if version > VERSION:
            raise SnapshotError(
                f"{self.path}: was made by a newer polyvisor: it has format {version}, and this one knows {VERSION}"
            )
        if hashlib.sha256(data[: HEADER.size]).digest() != data[HEADER.size : HEADER.size + _DIGEST]:
            raise self._damaged("its header has another checksum")
        header = Header(*rest)
        if version != VERSION or length != PAGE_SIZE or header.document_length > _LONGEST_DOCUMENT:
            raise self._damaged("its header makes no sense")
        size = os.fstat(self.fd).st_size
        if size != header.size or header.document_at + header.document_length > size:
            what = "cut short" if size < header.size else "damaged"
            raise SnapshotError(f"{self.path}: the snapshot is {what}: it has {size} bytes instead of {header.size}")
        return header

    def _read_document(self) -> dict[str, Any]:
        text = self.read(self.header.document_at, self.header.document_length)
        if hashlib.sha256(text).digest() != self.header.digest:
            raise self._damaged("what it says of the machine has another checksum")
        try:
            found = json.loads(text, object_hook=_plain)
        except (ValueError, TypeError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise self._damaged("what it says of the machine makes no sense")
        return found

    def _damaged(self, why: str) -> SnapshotError:
        return SnapshotError(f"{self.path}: the snapshot is damaged: {why}")

    @property
    def identity(self) -> str:
        """What no other snapshot has."""
        return self.header.identity.hex()

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the file. Raises OSError, SnapshotError if they are not there."""
        pieces = []
        while length:
            data = os.pread(self.fd, min(length, 64 << 20), offset)
            if not data:
                raise SnapshotError(f"{self.path}: the snapshot is cut short")
            pieces.append(data)
            offset, length = offset + len(data), length - len(data)
        return b"".join(pieces)

    def take(self, kind: Any, name: str) -> Any:
        """What the document has under ``name``, as a ``kind``. Raises SnapshotError."""
        try:
            return from_plain(kind, self.document.get(name), name)
        except SnapshotError as error:
            raise SnapshotError(f"{self.path}: the snapshot makes no sense: {error}") from error

    def check_section(self, section: Section) -> None:
        """Raise SnapshotError unless the section is inside the file, as its runs are inside it."""
        end = 0
        good = section.unit in (PAGE_SIZE << n for n in range(20)) and section.offset % PAGE_SIZE == 0
        good = good and section.offset >= 0 and section.offset + section.size <= self.header.document_at
        for offset, length in section.runs:
            good = good and end <= offset and length > 0 and offset % section.unit == 0
            end = offset + length
        if not good or end > section.size or len(section.checksums) % _DIGEST:
            raise SnapshotError(f"{self.path}: the snapshot makes no sense: a section outside of the file")

    def verify(self, section: Section) -> None:
        """Compare what a section has with its checksums. Raises SnapshotError, OSError."""
        self.check_section(section)
        parts = list(chunks(section.runs))
        if len(parts) * _DIGEST != len(section.checksums):
            raise self._damaged("a section has other checksums than parts")
        for place, (number, runs) in enumerate(parts):
            digest = hashlib.sha256()
            for offset, length in runs:
                digest.update(self.read(section.offset + offset, length))
            if digest.digest() != section.checksums[place * _DIGEST : (place + 1) * _DIGEST]:
                raise self._damaged(f"the bytes from {section.offset + number * CHUNK:#x} on have another checksum")


def _plain(value: dict[str, Any]) -> Any:
    if value.keys() == {BYTES}:
        return binascii.a2b_base64(value[BYTES], strict_mode=True)
    return value
