"""Changes to a disk that are kept apart from it."""

from __future__ import annotations

import os
import tempfile

from polyvisor.storage.disk import Disk, divide, total
from polyvisor.storage.raw import RawFile

_BLOCK = 4096
_MOST_BLOCKS = 1 << 28

Run = tuple[int, int]
"""Offset and length in bytes."""


def block_size(size: int) -> int:
    """Bytes in a block of changes to a disk of ``size`` bytes: 4096, more only for a very large one."""
    block = _BLOCK
    while size // block > _MOST_BLOCKS:
        block *= 2
    return block


class Layer:
    """A disk that is ``base`` but for the blocks that are in a file; ``base`` is only read, and closed with this.

    The file has all of the disk's bytes from ``start`` on. ``here`` has a byte for each block, 1 where it is there.
    """

    read_only = True

    def __init__(self, base: Disk, file: RawFile, start: int, here: bytearray) -> None:
        self.base = base
        self.size = base.size
        self.here = here
        self._block = block_size(self.size)
        self._file = file
        self._start = start

    def _run(self, offset: int, length: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on are in the file, and how many, up to ``length``, are in the same place."""
        first = offset // self._block
        here = self.here[first]
        end = self.here.find(1 - here, first, -(-(offset + length) // self._block))
        return bool(here), length if end < 0 else end * self._block - offset

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError."""
        length = total(views)
        while length:
            here, count = self._run(offset, length)
            first, views = (views, []) if count == length else divide(views, count)
            if here:
                self._file.read(first, self._start + offset)
            else:
                self.base.read(first, offset)
            offset += count
            length -= count

    def write(self, views: list[memoryview], offset: int) -> None:
        """Not possible."""
        raise NotImplementedError

    def flush(self) -> None:
        """Nothing can have changed."""

    def discard(self, offset: int, length: int) -> None:
        """Not possible."""
        raise NotImplementedError

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Not possible."""
        raise NotImplementedError

    def extent(self, offset: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on may be other than zero, and for how many bytes that holds."""
        here, count = self._run(offset, self.size - offset)
        if here:
            return True, count
        data, inside = self.base.extent(offset)
        return data, min(count, inside)

    def close(self) -> None:
        """Close the file and the base; may be repeated."""
        self._file.close()
        self.base.close()


class Overlay(Layer):
    """A disk that starts as ``base``, which is only read, and keeps what is written in a temporary file without a name.

    The file is in ``directory``: by default ``$TMPDIR``, else ``/var/tmp``. ``base`` is closed together with this.
    """

    read_only = False

    def __init__(self, base: Disk, directory: str | os.PathLike[str] | None = None) -> None:
        """Raises OSError if no temporary file can be made."""
        place = directory if directory is not None else os.environ.get("TMPDIR", "/var/tmp")
        with tempfile.TemporaryFile(dir=place) as file:
            fd = os.dup(file.fileno())
        try:
            os.ftruncate(fd, base.size)
        except OSError:
            os.close(fd)
            raise
        # The host gives memory for what is touched of the bytes.
        super().__init__(base, RawFile(fd, base.size, False), 0, bytearray(-(-base.size // block_size(base.size))))
        self._changed: bytearray | None = None

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
            if at < end and not self.here[block] and not (offset <= at and end >= stop):
                data = memoryview(bytearray(stop - at))
                self.base.read([data], at)
                self._file.write([data], at)
                self.here[block] = 1

    def _mark(self, offset: int, end: int) -> None:
        first, last = offset // self._block, -(-end // self._block)
        self.here[first:last] = b"\1" * (last - first)
        if self._changed is not None:
            self._changed[first:last] = b"\1" * (last - first)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeroes. Raises OSError."""
        if length:
            self._complete(offset, offset + length)
            self._file.zero(offset, length, unmap)
            self._mark(offset, offset + length)

    def discard(self, offset: int, length: int) -> None:
        """Give back the space of whole blocks, which read as zeroes then. Raises OSError."""
        first = -(-offset // self._block) * self._block
        last = (offset + length) // self._block * self._block
        if first < last:
            self.zero(first, last - first, True)

    def extent(self, offset: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on may be other than zero, and for how many bytes that holds."""
        here, count = self._run(offset, self.size - offset)
        data, inside = (self._file if here else self.base).extent(offset)
        return data, min(count, inside)

    def frozen(self) -> Disk:
        """A disk with what this one holds now, to be read only; this one must not be used any more."""
        return Layer(self.base, self._file, 0, self.here) if any(self.here) else self.base

    # What changed

    def mark(self) -> None:
        """From now on, :meth:`changed` is what is written after this."""
        self._changed = bytearray(len(self.here))

    def changed(self) -> list[Run]:
        """The blocks that were written since the last mark, or since there is this overlay."""
        return block_runs(self.here if self._changed is None else self._changed, self.size)

    def flush(self) -> None:
        """Nothing of it is to survive."""

    def close(self) -> None:
        """Throw the changes away and close the base; may be repeated."""
        super().close()


def kept(disk: Layer) -> list[Run]:
    """The blocks of a disk that are not those of the disk beneath all its layers."""
    here = bytearray(disk.here)
    below: Disk = disk.base
    while isinstance(below, Layer):
        if any(below.here):
            count = len(here)
            together = int.from_bytes(here, "little") | int.from_bytes(below.here, "little")
            here = bytearray(together.to_bytes(count, "little"))
        below = below.base
    return block_runs(here, disk.size)


def block_runs(here: bytearray, size: int) -> list[Run]:
    """The runs of blocks of a disk of ``size`` bytes that are 1 in ``here``."""
    block = block_size(size)
    runs = []
    start = here.find(1)
    while start >= 0:
        end = here.find(0, start)
        if end < 0:
            end = len(here)
        runs.append((start * block, min(end * block, size) - start * block))
        start = here.find(1, end)
    return runs
