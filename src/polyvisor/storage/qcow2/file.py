"""The file that an image is in."""

from __future__ import annotations

import os
from typing import Self

from polyvisor.storage.disk import clear, divide, total
from polyvisor.storage.raw import RawFile, open_file


class ImageFile(RawFile):
    """A file of any length: what is behind its end reads as zeroes, and writing there makes it longer."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], read_only: bool, shared: bool = False) -> Self:
        """Open and lock as :meth:`RawFile.open` does, whatever the file's size. Raises DiskError."""
        fd = open_file(os.fspath(path), read_only, shared or not read_only)
        return cls(fd, os.lseek(fd, 0, os.SEEK_END), read_only)

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError."""
        inside = self.size - offset
        if total(views) > inside:
            views, outside = divide(views, max(0, inside))
            clear(outside)
        super().read(views, offset)

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError."""
        try:
            super().write(views, offset)
        except OSError:
            # A part of it may be there, behind what was the end.
            self.size = max(self.size, os.lseek(self.fd, 0, os.SEEK_END))
            raise
        self.size = max(self.size, offset + total(views))

    def get(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``. Raises OSError."""
        data = bytearray(length)
        self.read([memoryview(data)], offset)
        return bytes(data)

    def put(self, data: bytes, offset: int) -> None:
        """Write ``data`` to ``offset``. Raises OSError."""
        self.write([memoryview(data)], offset)

    def reserve(self, offset: int, length: int) -> None:
        """Take the room that a range needs on the host now, and leave its bytes as they are. Raises OSError.

        What is written there later can then not fail because the host's disk is full.
        """
        self.put(self.get(offset, length), offset)

    def extend(self, length: int) -> None:
        """Make the file at least ``length`` bytes long. Raises OSError."""
        if length > self.size:
            os.ftruncate(self.fd, length)
            self.size = length
