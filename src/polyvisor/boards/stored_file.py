"""A file of the host that is loaded into a machine's RAM without passing through this process's own memory."""

from __future__ import annotations

import os
import stat
from types import TracebackType

from polyvisor.engine.memory import Memory


class StoredFile:
    """The regular file ``path``, and ``tail`` behind its bytes; slices are read, :meth:`place` copies all of it.

    A context manager, as it holds the file open. Raises OSError, also if the file is of another kind, and EOFError
    where it was cut off meanwhile.
    """

    def __init__(self, path: str | os.PathLike[str], tail: bytes = b"") -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise OSError("not a regular file")
        self._stored = status.st_size
        self.tail = tail

    @property
    def stored(self) -> int:
        """How many bytes are in the file."""
        return self._stored

    def __len__(self) -> int:
        return self._stored + len(self.tail)

    def __getitem__(self, part: slice) -> bytes:
        start, stop, step = part.indices(len(self))
        if step != 1:
            raise ValueError("a stored file has slices of bytes that follow each other only")
        found = bytearray()
        while start + len(found) < min(stop, self._stored):
            at = start + len(found)
            found += self._some(os.pread(self._fd, min(stop, self._stored) - at, at))
        if stop > self._stored:
            found += self.tail[max(0, start - self._stored) : stop - self._stored]
        return bytes(found)

    def place(self, memory: Memory, address: int) -> None:
        """Copy all bytes into RAM. Raises BusError outside RAM."""
        memory.write_file(address, self._fd, self._stored)
        memory.write(address + self._stored, self.tail)

    def _some(self, data: bytes) -> bytes:
        if not data:
            raise EOFError("the file was cut off while it was read")
        return data

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __enter__(self) -> StoredFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
