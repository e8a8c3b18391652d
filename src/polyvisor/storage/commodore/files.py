"""What the formats have in common: files of Commodore's drives, volumes that hold them, and what goes wrong."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Protocol

PADDING = 0xA0
"""What ends names that are shorter than their place: a shifted space."""


class ImageError(ValueError):
    """A file is not what it should be; the message is one line for the user."""


class FileType(IntEnum):
    """What a directory says a file is."""

    DEL, SEQ, PRG, USR, REL = range(5)


@dataclass(frozen=True)
class Entry:
    """One file: its ``name`` in PETSCII, without padding, and its size in ``blocks`` of 254 bytes as it is shown.

    ``number`` says which of its volume's directory entries it is. A file that is not ``closed`` was never completed;
    one that is ``locked`` must not be scratched. ``record`` is the length of a relative file's records.
    """

    number: int
    name: bytes
    type: FileType
    blocks: int
    closed: bool = True
    locked: bool = False
    record: int = 0


class Volume(Protocol):
    """Something that files are read from. ``title`` and ``id`` are in PETSCII, as a directory's first line has them."""

    @property
    def title(self) -> bytes:
        """The name of all."""
        ...

    @property
    def id(self) -> bytes:
        """Five characters that follow it: the disk's identity, a space, and the version of the format."""
        ...

    @property
    def free(self) -> int:
        """Blocks that can be written."""
        ...

    def entries(self) -> list[Entry]:
        """What the directory lists. Raises ImageError if that is damaged."""
        ...

    def read(self, entry: Entry) -> bytes:
        """All of a file; a program begins with its address. Raises ImageError if it is damaged."""
        ...


def matches(pattern: bytes, name: bytes) -> bool:
    """Whether a file's name is meant by a pattern: ``?`` stands for any character, ``*`` for all that follows."""
    for at, code in enumerate(pattern):
        if code == ord("*"):
            return True
        if at >= len(name) or code not in (ord("?"), name[at]):
            return False
    return len(pattern) == len(name)


def blocks_of(length: int) -> int:
    """Blocks that so many bytes take."""
    return max(1, -(-length // 254))


def read_image(path: str | os.PathLike[str], most: int) -> bytes:
    """The bytes of a file of at most ``most``. Raises ImageError."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ImageError(f"{os.fspath(path)}: {error.strerror or error}") from error
    if len(data) > most:
        raise ImageError(f"{os.fspath(path)}: has more than {most} bytes")
    return data


def save_image(path: str | os.PathLike[str], data: bytes | bytearray) -> None:
    """Replace a file as a whole: it has the old contents or the new ones, whatever happens. Raises ImageError."""
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name}.{os.getpid()}.new")
    try:
        rights = target.stat().st_mode & 0o777 if target.exists() else 0o666
        try:
            fd = os.open(new, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_NOFOLLOW, rights)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"{os.fspath(path)}: cannot be saved: {error.strerror or error}") from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An ImageError about what is in a file begins with the file's name."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{os.fspath(path)}: {error}") from error


def padded(name: bytes, length: int = 16) -> bytes:
    """A name as directories hold it."""
    return name[:length].ljust(length, bytes([PADDING]))
