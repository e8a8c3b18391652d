"""Copying disks from one format to another, and making empty ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from polyvisor.storage.disk import SECTOR, Disk, DiskError
from polyvisor.storage.open import FORMATS, open_disk
from polyvisor.storage.qcow2.create import create_qcow2, new_file
from polyvisor.storage.raw import MAX_FILE_BYTES, open_file, reason

_CHUNK = 2 << 20
_PIECE = 64 << 10
_ZEROES = bytes(_PIECE)


def create_raw(path: str | os.PathLike[str], size: int, *, replace: bool = False) -> None:
    """Make a file of ``size`` bytes that takes no space yet. Raises DiskError if it exists, unless ``replace``."""
    name = os.fspath(path)
    if size <= 0 or size % SECTOR:
        raise DiskError(f"{name}: the size of the disk ({size} bytes) is not a multiple of {SECTOR} above 0")
    if size > MAX_FILE_BYTES:
        raise DiskError(f"{name}: {size} bytes are too large for a file")
    with new_file(name, replace) as file:
        file.truncate(size)


def copy(source: Disk, target: Disk, progress: Callable[[int], None] = lambda done: None) -> None:
    """Write what ``source`` has to ``target``, which reads as zeroes and is as large, and flush it.

    Zeroes are left out. ``progress`` is told how many bytes are done. Raises OSError.
    """
    buffer = memoryview(bytearray(_CHUNK))
    offset = 0
    while offset < source.size:
        data, count = source.extent(offset)
        if data:
            count = min(count, _CHUNK)
            source.read([buffer[:count]], offset)
            _write_nonzero(target, buffer[:count], offset)
        offset += count
        progress(offset)
    target.flush()


def _write_nonzero(target: Disk, data: memoryview, offset: int) -> None:
    start = 0
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        if piece == _ZEROES[: len(piece)]:
            if start < at:
                target.write([data[start:at]], offset + start)
            start = at + len(piece)
    if start < len(data):
        target.write([data[start:]], offset + start)


def convert(
    source: Disk, path: str | os.PathLike[str], format: str, *, cluster_size: int = 65536, version: int = 3,
    replace: bool = False, progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Copy ``source`` to a new file of ``format``, ``raw`` or ``qcow2``. Raises DiskError or OSError.

    The file has its name only when it is complete. One that exists is replaced then if ``replace``, unless in use.
    """
    target = Path(path)
    if format not in FORMATS:
        raise DiskError(f"{target}: there is no format {format!r}; there are {', '.join(FORMATS)}")
    if target.exists():
        if not replace:
            raise DiskError(f"{target}: cannot make the image: File exists")
        if not target.is_file():
            raise DiskError(f"{target}: is not a file")
        os.close(open_file(os.fspath(target), False, True))
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        if format == "raw":
            create_raw(partial, source.size, replace=True)
        else:
            create_qcow2(partial, source.size, cluster_size=cluster_size, version=version, replace=True)
        disk = open_disk(partial, False, format)
        try:
            copy(source, disk, progress)
        finally:
            disk.close()
        partial.replace(target)
    except DiskError as error:
        raise DiskError(str(error).replace(os.fspath(partial), os.fspath(target))) from error
    except OSError as error:
        raise DiskError(f"{target}: cannot write the image: {reason(error)}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
