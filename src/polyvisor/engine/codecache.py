"""Compiled code on disk, shared by all processes: a directory per key, a checked file per unit.

A key stands for everything the code depends on: the description, the engine, LLVM and the host's CPU.  A file
is written whole under another name and then renamed, so concurrent processes and crashes never leave half a
file under its name; one that is damaged all the same fails its checksum and is compiled anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

_MAGIC = b"polyvisor-code-1\n"


def cache_root() -> Path:
    """Where caches live: POLYVISOR_CACHE, or polyvisor in XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("POLYVISOR_CACHE"):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "polyvisor"
    return Path.home() / ".cache" / "polyvisor"


class CodeCache:
    """The units of one key. Where the disk cannot be used, nothing is kept and nothing fails."""

    def __init__(self, key: str, root: Path | None = None) -> None:
        self.directory = (root or cache_root()) / "handlers" / key
        self.hits = 0
        self.misses = 0

    def _path(self, name: str) -> Path:
        return self.directory / (hashlib.sha256(name.encode()).hexdigest()[:32] + ".o")

    def get(self, name: str) -> bytes | None:
        """The unit called ``name``; None if it is not there or not whole."""
        try:
            data = self._path(name).read_bytes()
        except OSError:
            data = b""
        head = len(_MAGIC) + 32
        digest = hashlib.sha256(name.encode() + b"\0" + data[head:]).digest()
        if data[: len(_MAGIC)] != _MAGIC or data[len(_MAGIC) : head] != digest:
            self.misses += 1
            return None
        self.hits += 1
        return data[head:]

    def put(self, name: str, content: bytes) -> None:
        """Keep a unit."""
        digest = hashlib.sha256(name.encode() + b"\0" + content).digest()
        with contextlib.suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=self.directory)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_MAGIC + digest + content)
                Path(temporary).replace(self._path(name))
            except OSError:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
