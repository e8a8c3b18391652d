"""Disks of recorded machines: what the guest reads and did not write itself comes from outside, once."""

from __future__ import annotations

import os
import tempfile

from polyvisor.engine.outside import Plain, Source
from polyvisor.storage.disk import SECTOR, Disk, total

_BLOCK = 4096


class _Known:
    """The sectors of a disk whose contents follow from the recording."""

    def __init__(self, size: int) -> None:
        self._sectors = bytearray(size // SECTOR)

    def all(self, offset: int, length: int) -> bool:
        """Whether all sectors of a range are known."""
        return self._sectors.find(0, offset // SECTOR, (offset + length) // SECTOR) < 0

    def learn(self, offset: int, length: int) -> None:
        """All of a range is known from now on."""
        first, last = offset // SECTOR, (offset + length) // SECTOR
        self._sectors[first:last] = b"\1" * (last - first)

    def forget(self, offset: int, length: int) -> None:
        """What is in a range is the host's to say."""
        first, last = offset // SECTOR, (offset + length) // SECTOR
        self._sectors[first:last] = bytes(last - first)


class RecordedDisk:
    """``disk``, of which is written down what is read for the first time, and what fails."""

    def __init__(self, disk: Disk, source: Source) -> None:
        self._disk = disk
        self._source = source
        self._known = _Known(disk.size)
        self.size = disk.size
        self.read_only = disk.read_only

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError."""
        length = total(views)

        def read() -> tuple[Plain, ...]:
            try:
                self._disk.read(views, offset)
            except OSError as error:
                return (error.errno or 0,)
            if self._known.all(offset, length):
                return (None,)
            self._known.learn(offset, length)
            return (b"".join(views),)

        _check(self._source.value(read))

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError."""
        self._do(lambda: self._disk.write(views, offset))
        self._known.learn(offset, total(views))

    def flush(self) -> None:
        """Raises OSError."""
        self._do(self._disk.flush)

    def discard(self, offset: int, length: int) -> None:
        """Raises OSError."""
        self._known.forget(offset, length)
        self._do(lambda: self._disk.discard(offset, length))

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Raises OSError."""
        self._do(lambda: self._disk.zero(offset, length, unmap))
        self._known.learn(offset, length)

    def _do(self, call: object) -> None:
        def do() -> tuple[Plain, ...]:
            try:
                call()  # type: ignore[operator]
            except OSError as error:
                return (error.errno or 0,)
            return (None,)

        _check(self._source.value(do))

    def extent(self, offset: int) -> tuple[bool, int]:
        """As the disk says; the guest cannot ask."""
        return self._disk.extent(offset)

    def close(self) -> None:
        """Close the disk."""
        self._disk.close()


class ReplayedDisk:
    """A disk of ``size`` bytes, filled with what was written down as it is read again.

    Blocks that were written are in a temporary file, behind each other: so those of earlier moments are still there.
    """

    def __init__(self, size: int, read_only: bool) -> None:
        """Raises OSError if no temporary file can be made."""
        self.source: Source | None = None
        self.size = size
        self.read_only = read_only
        self.places: dict[int, int] = {}
        """Where in the file each block is that is not zero."""
        self._file = tempfile.TemporaryFile(dir=os.environ.get("TMPDIR", "/var/tmp"))  # noqa: SIM115
        self._end = 0

    def _value(self) -> Plain:
        assert self.source is not None
        return self.source.value(lambda: (None,))[0]

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError as it did then."""
        value = self._value()
        if isinstance(value, bytes):
            self._put(offset, value)
        elif value is not None:
            _check((value,))
        data = memoryview(self._get(offset, total(views)))
        for view in views:
            view[:] = data[: len(view)]
            data = data[len(view) :]

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError as it did then."""
        _check((self._value(),))
        self._put(offset, b"".join(views))

    def flush(self) -> None:
        """Raises OSError as it did then."""
        _check((self._value(),))

    def discard(self, offset: int, length: int) -> None:
        """What is in the range is written down where it is read again. Raises OSError as it did then."""
        _check((self._value(),))

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeroes. Raises OSError as it did then."""
        _check((self._value(),))
        first, last = -(-offset // _BLOCK), (offset + length) // _BLOCK
        if first >= last:
            self._put(offset, bytes(length))
            return
        self._put(offset, bytes(first * _BLOCK - offset))
        for block in range(first, last):
            self.places.pop(block, None)
        self._put(last * _BLOCK, bytes(offset + length - last * _BLOCK))

    def extent(self, offset: int) -> tuple[bool, int]:
        """As for a file without holes."""
        return True, self.size - offset

    def close(self) -> None:
        """Throw it away; may be repeated."""
        self._file.close()

    def _get(self, offset: int, length: int) -> bytes:
        first, last = offset // _BLOCK, -(-(offset + length) // _BLOCK)
        blocks = b"".join(self._block(block) for block in range(first, last))
        start = offset - first * _BLOCK
        return blocks[start : start + length]

    def _block(self, block: int) -> bytes:
        place = self.places.get(block)
        return bytes(_BLOCK) if place is None else os.pread(self._file.fileno(), _BLOCK, place)

    def _put(self, offset: int, data: bytes) -> None:
        if not data:
            return
        first, last = offset // _BLOCK, -(-(offset + len(data)) // _BLOCK)
        before, after = offset - first * _BLOCK, last * _BLOCK - offset - len(data)
        whole = (self._block(first)[:before] if before else b"") + data
        whole += self._block(last - 1)[_BLOCK - after :] if after else b""
        view, at = memoryview(whole), self._end
        while view:
            done = os.pwrite(self._file.fileno(), view, at)
            view, at = view[done:], at + done
        for number in range(last - first):
            self.places[first + number] = self._end + number * _BLOCK
        self._end += len(whole)


def _check(value: tuple[Plain, ...]) -> None:
    if isinstance(value[0], int):
        raise OSError(value[0], "the disk failed")
