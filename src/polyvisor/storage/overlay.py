"""Changes to a disk that are thrown away."""

from __future__ import annotations

import os
import tempfile

from polyvisor.storage.disk import Disk, divide, total
from polyvisor.storage.raw import RawFile

_BLOCK = 4096
_MOST_BLOCKS = 1 << 28


class Overlay:
    """A disk that starts as ``base``, which is only read, and keeps what is written in a temporary file without a name.

    The file is in ``directory``: by default ``$TMPDIR``, else ``/var/tmp``. ``base`` is closed together with this.
    """

    read_only = False

    def __init__(self, base: Disk, directory: str | os.PathLike[str] | None = None) -> None:
        """Raises OSError if no temporary file can be made."""
        self.base = base
        self.size = base.size
        self._block = _BLOCK
        while self.size // self._block > _MOST_BLOCKS:
            self._block *= 2
        # A byte for each block, 1 where it is in the file. The host gives memory for what is touched.
        self._here = bytearray(-(-self.size // self._block))
        place = directory if directory is not None else os.environ.get("TMPDIR", "/var/tmp")
        with tempfile.TemporaryFile(dir=place) as file:
            fd = os.dup(file.fileno())
        try:
            os.ftruncate(fd, self.size)
        except OSError:
            os.close(fd)
            raise
        self._file = RawFile(fd, self.size, False)

    def _run(self, offset: int, length: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on are in the file, and how many, up to ``length``, are in the same place."""
        first = offset // self._block
        here = self._here[first]
        end = self._here.find(1 - here, first, -(-(offset + length) // self._block))
        return bool(here), length if end < 0 else end * self._block - offset

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError."""
        length = total(views)
        while length:
            here, count = self._run(offset, length)
            first, views = (views, []) if count == length else divide(views, count)
            (self._file if here else self.base).read(first, offset)
            offset += count
            length -= count

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError."""
        end = offset + total(views)
        self._complete(offset, end)
        self._file.write(views, offset)
        self._mark(offset, end)

    def _complete(self, offset: int, end: int) -> None:
        """Copy what a change of a range leaves as it is of the first and the last block."""
        for at in {offset - offset % self._block, end - end % self._block}:
            block = at // self._block
            stop = min(at + self._block, self.size)
            if at < end and not self._here[block] and not (offset <= at and end >= stop):
                data = memoryview(bytearray(stop - at))
                self.base.read([data], at)
                self._file.write([data], at)
                self._here[block] = 1

    def _mark(self, offset: int, end: int) -> None:
        first, last = offset // self._block, -(-end // self._block)
        self._here[first:last] = b"\1" * (last - first)

    def flush(self) -> None:
        """Nothing of it is to survive."""

    def discard(self, offset: int, length: int) -> None:
        """Give back the space of whole blocks, which read as zeroes then. Raises OSError."""
        first = -(-offset // self._block) * self._block
        last = (offset + length) // self._block * self._block
        if first < last:
            self.zero(first, last - first, True)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeroes. Raises OSError."""
        if length:
            self._complete(offset, offset + length)
            self._file.zero(offset, length, unmap)
            self._mark(offset, offset + length)

    def extent(self, offset: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on may be other than zero, and for how many bytes that holds."""
        here, count = self._run(offset, self.size - offset)
        data, inside = (self._file if here else self.base).extent(offset)
        return data, min(count, inside)

    def close(self) -> None:
        """Throw the changes away and close the base; may be repeated."""
        self._file.close()
        self.base.close()
