"""RAM as part of a snapshot: which of its pages have something in them, and where their bytes are."""

from __future__ import annotations

import contextlib
import errno
import os
import weakref
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from polyvisor.dataclass import dataclass, field
from polyvisor.engine.codepages import BEGINNING, CodePages
from polyvisor.engine.memory import PAGE_SIZE, Extent, Memory, Ram

Run = tuple[int, int]
"""Offset and length in bytes, whole pages."""

_ZEROES = bytes(PAGE_SIZE)
# What is looked at, and written, at one go.
_CHUNK = 1 << 20


@dataclass(frozen=True)
class RamImage:
    """What a range of RAM has: the extents are bytes of files, all else is zero."""

    base: int
    size: int
    extents: tuple[Extent, ...]
    keep: Any = field(default=None, repr=False, compare=False)
    """What the files are open as long as."""


def runs(memory: Memory, pages: CodePages | None, index: int) -> Iterator[Run]:
    """Where RAM number ``index`` may be other than zero. While the machine stands still."""
    ram = memory.ram[index]
    if ram.fd >= 0:
        return _data(ram)
    if pages is None:
        return iter([(0, ram.size)])
    # Private RAM is what it began with, and what was written since.
    written = [(first * PAGE_SIZE, count * PAGE_SIZE) for first, count in pages.written_since(BEGINNING)[index]]
    began = [run for each in ram.extents for run in each.data or ((each.offset, each.length),)]
    return merged([*began, *written])


def _data(ram: Ram) -> Iterator[Run]:
    at = 0
    while at < ram.size:
        try:
            start = os.lseek(ram.fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        at = os.lseek(ram.fd, start, os.SEEK_HOLE)
        yield start, at - start


def merged(found: Iterable[Run]) -> Iterator[Run]:
    """The same bytes as few runs, in order."""
    start = end = -1
    for offset, length in sorted(found):
        if offset > end:
            if end > start:
                yield start, end - start
            start = offset
            end = offset
        end = max(end, offset + length)
    if end > start:
        yield start, end - start


def coalesced(found: Iterable[Run], most: int) -> list[Run]:
    """``found`` as no more than ``most`` runs, with what is between some of them."""
    kept, gap = list(merged(found)), PAGE_SIZE
    while len(kept) > most:
        joined = [kept[0]]
        for offset, length in kept[1:]:
            start, before = joined[-1]
            if offset - start - before <= gap:
                joined[-1] = (start, offset + length - start)
            else:
                joined.append((offset, length))
        kept, gap = joined, 2 * gap
    return kept


def nonzero(view: memoryview, among: Iterable[Run]) -> Iterator[Run]:
    """Of the pages in ``among``, those that are not all zero; no run is longer than a MiB."""
    for offset, length in among:
        start = -1
        for at in range(offset, offset + length, PAGE_SIZE):
            if view[at : at + PAGE_SIZE] == _ZEROES:
                if start >= 0:
                    yield start, at - start
                start = -1
            elif start < 0:
                start = at
            elif at - start == _CHUNK:
                yield start, _CHUNK
                start = at
        if start >= 0:
            yield start, offset + length - start


def write_run(fd: int, view: memoryview, run: Run, at: int) -> None:
    """Write a run of ``view`` to ``at`` of a file. Raises OSError."""
    offset, length = run
    while length:
        done = os.pwrite(fd, view[offset : offset + length], at)
        offset, length, at = offset + done, length - done, at + done


def copied(memory: Memory, pages: CodePages | None) -> list[RamImage]:
    """All RAM, in memory of its own. While the machine stands still. Raises OSError."""
    images = []
    for index, ram in enumerate(memory.ram):
        fd = os.memfd_create("polyvisor-snapshot", os.MFD_CLOEXEC)
        keep = _Kept(fd)
        os.ftruncate(fd, ram.size)
        extents = []
        for offset, length in nonzero(ram.view, runs(memory, pages, index)):
            write_run(fd, ram.view, (offset, length), offset)
            extents.append((offset, length))
        # Its holes are zeroes: one mapping of all of it will do.
        found = (Extent(0, ram.size, fd, 0, tuple(extents)),) if extents else ()
        images.append(RamImage(ram.base, ram.size, found, keep))
    return images


class _Kept:
    """Closes a file when nobody needs it any more."""

    def __init__(self, fd: int) -> None:
        weakref.finalize(self, os.close, fd)

    def __deepcopy__(self, memo: object) -> _Kept:
        return self


def load(memory: Memory, images: Sequence[RamImage]) -> None:
    """Copy ``images`` into RAM that is there already, of the same sizes. Raises OSError."""
    for image in images:
        memory.discard(image.base, image.size)
        view = memory.view(image.base, image.size)
        for extent in image.extents:
            for offset, length in _file_data(extent):
                at = extent.offset + offset - extent.file_offset
                part = view[at : at + length]
                while len(part):
                    done = os.preadv(extent.fd, [part], offset)
                    if not done:
                        raise OSError(errno.EIO, "the file became shorter")
                    part, offset = part[done:], offset + done
                memory.wrote(image.base + at, length)


def _file_data(extent: Extent) -> Iterator[Run]:
    """Where the file of an extent has data, in the extent."""
    at, end = extent.file_offset, extent.file_offset + extent.length
    while at < end:
        start, stop = at, end
        with contextlib.suppress(OSError):  # a file system that does not tell: all of it
            try:
                start = os.lseek(extent.fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            stop = min(end, os.lseek(extent.fd, start, os.SEEK_HOLE))
        if start >= end:
            return
        yield start, stop - start
        at = stop
