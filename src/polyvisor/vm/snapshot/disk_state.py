"""What a snapshot's document says of a disk. (Apart from ``disks``: a machine without disks needs no storage.)"""

from __future__ import annotations

from polyvisor.dataclass import dataclass

from .file import Section


@dataclass
class DiskState:
    """A disk. ``section``: the blocks that are not as in the file at ``path``; None for a disk that is only read."""

    path: str
    format: str
    serial: str
    size: int
    """Bytes of the disk."""
    file_size: int
    file_time: int
    """Of the file, with which it is recognised: bytes, and when it was changed, in nanoseconds since 1970; 0: not to be
    compared."""
    inner: str | None
    """The snapshot inside the qcow2 image that has the disk."""
    section: Section | None
