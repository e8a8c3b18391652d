"""Writing a snapshot file (see ``file``)."""

from __future__ import annotations

import binascii
import contextlib
import fcntl
import glob
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from polyvisor.engine.memory import PAGE_SIZE

from .file import BYTES, HEADER, MAGIC, VERSION, Run, Section, chunks

_ALIGNMENT = 1 << 16


class Writer:
    """Makes a snapshot file beside ``path``, and gives it that name when it is complete. Raises OSError."""

    def __init__(self, path: Path, identity: bytes) -> None:
        self._path = path
        self._identity = identity
        self.fd, self._temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        fcntl.flock(self.fd, fcntl.LOCK_EX)
        self._end = _ALIGNMENT
        self._done = False

    def section(self, size: int, unit: int, runs: list[Run], read: Callable[[int, int], Any]) -> Section:
        """Write ``runs`` of a range of ``size`` bytes; ``read(offset, length)`` gives what is in them.

        It is called on several threads at once.
        """
        made = Section(self._end, size, unit, runs)
        # Room for all of it, so that mapping it never reaches behind the end of the file.
        self._end = _aligned(made.offset + size)
        os.ftruncate(self.fd, self._end)

        def write(chunk: tuple[int, list[Run]]) -> bytes:
            digest = hashlib.sha256()
            for offset, length in chunk[1]:
                data = memoryview(read(offset, length))
                digest.update(data)
                at = made.offset + offset
                while len(data):
                    count = os.pwrite(self.fd, data, at)
                    data, at = data[count:], at + count
            return digest.digest()

        with ThreadPoolExecutor(max_workers=max(1, min(4, os.cpu_count() or 1))) as pool:
            made.checksums = b"".join(pool.map(write, chunks(runs)))
        return made

    def finish(self, document: dict[str, Any]) -> None:
        """Write what all is about. The file is complete then, and still to be saved."""
        text = json.dumps(document, default=_json, separators=(",", ":"), allow_nan=False).encode()
        _write(self.fd, text, self._end)
        size = self._end + len(text)
        header = HEADER.pack(
            MAGIC, VERSION, PAGE_SIZE, size, self._end, len(text), hashlib.sha256(text).digest(), self._identity
        )
        _write(self.fd, (header + hashlib.sha256(header).digest()).ljust(PAGE_SIZE, b"\0"), 0)

    def save(self) -> None:
        """Make it survive a crash of the host, and let it have its name, in place of what had that."""
        os.fsync(self.fd)
        os.fchmod(self.fd, 0o600)
        Path(self._temporary).replace(self._path)
        self._done = True
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def close(self) -> None:
        """Close it; what is not complete is deleted."""
        os.close(self.fd)
        if not self._done:
            with contextlib.suppress(OSError):
                Path(self._temporary).unlink()


def remove_stale(path: Path) -> None:
    """Delete what processes that were killed left of a file that was to be at ``path``."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError), stale.open("rb") as file:
            # Who still writes it holds a lock.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            stale.unlink()


def _aligned(value: int) -> int:
    return -(-value // _ALIGNMENT) * _ALIGNMENT


def _write(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, at)
        view, at = view[count:], at + count


def _json(value: Any) -> Any:
    if isinstance(value, bytes):
        return {BYTES: binascii.b2a_base64(value, newline=False).decode()}
    raise TypeError(f"{type(value).__name__} is not plain data")
