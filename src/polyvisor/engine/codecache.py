"""Compiled code on disk, shared by all processes: a directory per key, a checked file per unit.

A key stands for everything the code depends on: the description, the engine, LLVM and the host's CPU.  A file
is written whole under another name and then renamed, so concurrent processes and crashes never leave half a
file under its name; one that is damaged all the same fails its checksum and is compiled anew.

The whole is bounded: what was not used for longest goes first, that of other keys before that of the one in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from polyvisor.cachedir import cache_root

_MAGIC = b"polyvisor-code-1\n"
# MiB of compiled code that are kept, unless POLYVISOR_CODE_CACHE_SIZE says otherwise.
_DEFAULT_LIMIT = 512
# After so many bytes written by this process the size of the whole is looked at, and then cut to this part of the
# limit.
_LOOK_AFTER = 16 << 20
_CUT_TO = 0.8
# A file that is read is marked as used, at most so often (in seconds).
_MARK_AFTER = 86_400.0


def _digest(name: str, content: bytes) -> bytes:
    digest = hashlib.sha256(name.encode() + b"\0")
    digest.update(content)
    return digest.digest()


def code_root(root: Path | None = None) -> Path:
    """The directory of all compiled code."""
    return (root or cache_root()) / "handlers"


def size_limit() -> int:
    """How many bytes of compiled code are kept."""
    given = os.environ.get("POLYVISOR_CODE_CACHE_SIZE", "")
    return (int(given) if given.isdigit() else _DEFAULT_LIMIT) << 20


class CodeCache:
    """The units of one key. Where the disk cannot be used, nothing is kept and nothing fails.

    A unit's name starts with its kind: ``core``, ``group`` (of handlers), ``helper``, ``image``, ``region``, ``page``;
    for hooks ``handler``, ``effects``, ``events``, ``thunks``.
    """

    def __init__(self, key: str, root: Path | None = None) -> None:
        self.root = code_root(root)
        self.directory = self.root / key
        self.hits = 0
        self.misses = 0
        self._written = 0

    def _path(self, name: str) -> Path:
        kind = name.partition(" ")[0]
        return self.directory / f"{kind}-{hashlib.sha256(name.encode()).hexdigest()[:32]}.o"

    def get(self, name: str) -> bytes | None:
        """The unit called ``name``; None if it is not there or not whole."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        head = len(_MAGIC) + 32
        content = data[head:]
        if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : head] != _digest(name, content):
            self.misses += 1
            return None
        self.hits += 1
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _MARK_AFTER:
                os.utime(path)
        return content

    def put(self, name: str, content: bytes) -> None:
        """Keep a unit."""
        with contextlib.suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            import tempfile  # only here, because it takes longer to import than all of this module

            descriptor, temporary = tempfile.mkstemp(dir=self.directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_MAGIC + _digest(name, content) + content)
                Path(temporary).replace(self._path(name))
            except OSError:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
        self._written += len(content)
        if self._written > _LOOK_AFTER:
            self._written = 0
            self.trim()

    def trim(self, limit: int | None = None) -> int:
        """Remove what was not used for longest until the whole fits the limit; gives how many bytes went."""
        limit = size_limit() if limit is None else limit
        files = [(path.parent == self.directory, used, size, path) for path, size, used in _files(self.root)]
        total = sum(size for _, _, size, _ in files)
        if total <= limit:
            return 0
        gone = 0
        for _, _, size, path in sorted(files):
            if total - gone <= limit * _CUT_TO:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                gone += size
        return gone


class Contents(NamedTuple):
    """What is kept for one key: by kind of unit, how many files and bytes."""

    key: str
    kinds: dict[str, tuple[int, int]]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(size for _, size in self.kinds.values())


def contents(root: Path | None = None) -> list[Contents]:
    """All that is kept, key by key."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for path, size, _ in _files(code_root(root)):
        kinds = found.setdefault(path.parent.name, {})
        kind, dash, _ = path.name.partition("-")
        if not dash:
            kind = "other"
        count, total = kinds.get(kind, (0, 0))
        kinds[kind] = (count + 1, total + size)
    return [Contents(key, dict(sorted(kinds.items()))) for key, kinds in sorted(found.items())]


def clear(root: Path | None = None) -> int:
    """Remove all compiled code; gives how many bytes it took. Processes that run compile what they miss anew."""
    import shutil

    place = code_root(root)
    size = sum(size for _, size, _ in _files(place))
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(place)
    return size


def _files(root: Path) -> Iterator[tuple[Path, int, float]]:
    """Every file below, with its size and when it was last used; others may be removing them meanwhile."""
    try:
        keys = list(root.iterdir())
    except OSError:
        return
    for directory in keys:
        try:
            paths = list(directory.iterdir())
        except OSError:
            continue
        for path in paths:
            with contextlib.suppress(OSError):
                status = path.stat()
                yield path, status.st_size, status.st_mtime
