"""What a disk is: a number of bytes that can be read, and mostly also written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

SECTOR = 512
"""Bytes in a sector; every disk has a whole number of them."""


class DiskError(OSError):
    """A file cannot be used as a disk; the message is one line for the user."""


class Disk(Protocol):
    """A disk of ``size`` bytes. Offsets and lengths are in bytes; all calls but ``close`` may raise OSError.

    Callers keep offsets and lengths inside the size, make one call at a time, and change nothing on a disk that is
    ``read_only``. What was written is certain to survive a crash only after :meth:`flush`.
    """

    @property
    def size(self) -> int:
        """Bytes, a multiple of 512."""
        ...

    @property
    def read_only(self) -> bool:
        """Whether writing is forbidden."""
        ...

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on."""
        ...

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on."""
        ...

    def flush(self) -> None:
        """Make all that was written survive a crash of the host."""
        ...

    def discard(self, offset: int, length: int) -> None:
        """The range is not needed any more: give its space back where that is possible, else leave it alone."""
        ...

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeroes; only with ``unmap`` may its space be given back."""
        ...

    def extent(self, offset: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on may be other than zero, and for how many bytes, at least one, that holds."""
        ...

    def close(self) -> None:
        """Write what is not written yet and release the file; may be repeated."""
        ...


def total(views: Iterable[memoryview]) -> int:
    """Bytes in ``views``."""
    return sum(map(len, views))


def divide(views: list[memoryview], count: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first ``count`` bytes of ``views``, and the rest."""
    first: list[memoryview] = []
    for index, view in enumerate(views):
        if not count:
            return first, views[index:]
        if len(view) >= count:
            first.append(view[:count])
            return first, [view[count:], *views[index + 1 :]] if len(view) > count else views[index + 1 :]
        first.append(view)
        count -= len(view)
    return first, []


_ZEROES = memoryview(bytes(1 << 20))


def clear(views: Iterable[memoryview]) -> None:
    """Fill ``views`` with zeroes."""
    for view in views:
        for at in range(0, len(view), len(_ZEROES)):
            piece = view[at : at + len(_ZEROES)]
            piece[:] = _ZEROES[: len(piece)]


def zeroes(count: int) -> list[memoryview]:
    """``count`` bytes of zeroes, to be written."""
    whole, rest = divmod(count, len(_ZEROES))
    return [_ZEROES] * whole + ([_ZEROES[:rest]] if rest else [])
