"""Opening a disk by its file's name, whatever its format."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path

from polyvisor.storage.disk import Disk, DiskError, divide
from polyvisor.storage.qcow2.image import Qcow2
from polyvisor.storage.qcow2.layout import MAGIC
from polyvisor.storage.raw import RawFile, open_file, reason

FORMATS = ("raw", "qcow2")
_DEEPEST = 64


class GuessedRawFile(RawFile):
    """A raw disk that was not said to be one: it must not be turned into something else from inside.

    Otherwise a guest could write the header of a format to it, and have the host open what that names the next time.
    """

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError, also if that would look like another format."""
        if offset < len(MAGIC):
            start = bytearray(len(MAGIC))
            if offset:
                self.read([memoryview(start)[:offset]], 0)
            first, rest = divide(views, len(MAGIC) - offset)
            # Copied: the guest may change its memory between the look and the writing.
            new = b"".join(first)
            start[offset : offset + len(new)] = new
            if start == MAGIC:
                raise OSError(errno.EPERM, "the header of a qcow2 image on a disk that was not said to be raw")
            views = [memoryview(new), *rest] if new else rest
        super().write(views, offset)


def open_disk(
    path: str | os.PathLike[str], read_only: bool, format: str | None = None, *, shared: bool = False
) -> Disk:
    """Open the disk in the file ``path``; unless ``read_only``, lock it against others that write.

    ``format`` is ``raw`` or ``qcow2``; without it, a file that begins as qcow2 images do is one, and anything else is
    raw. ``shared``: lock a file that is only read too, against being written meanwhile. Raises DiskError.
    """
    return _open(path, read_only, format, shared, {})


def guess_format(path: str | os.PathLike[str]) -> str:
    """The format that a file seems to have. Raises DiskError if it cannot be opened."""
    fd = open_file(os.fspath(path), True, False)
    try:
        return "qcow2" if os.pread(fd, len(MAGIC), 0) == MAGIC else "raw"
    except OSError as error:
        raise DiskError(f"{os.fspath(path)}: cannot read the disk: {reason(error)}") from error
    finally:
        os.close(fd)


def backing_path(image: str | os.PathLike[str], name: str) -> str:
    """The path of the backing file that the header of ``image`` calls ``name``. Raises DiskError if it has none."""
    if name.startswith("file:"):
        name = name.removeprefix("file:")
    elif ":" in name.split("/", 1)[0]:
        raise DiskError(f"{os.fspath(image)}: the backing file {name!r} is not a file's name, which is not supported")
    return os.fspath(Path(image).resolve().parent / name)


def _open(
    path: str | os.PathLike[str], read_only: bool, format: str | None, shared: bool,
    above: Mapping[tuple[int, int], str],
) -> Disk:
    name = os.fspath(path)
    if format is not None and format not in FORMATS:
        raise DiskError(f"{name}: there is no format {format!r}; there are {', '.join(FORMATS)}")
    if (format or guess_format(path)) == "raw":
        return (RawFile if format is not None or read_only else GuessedRawFile).open(path, read_only, shared)

    def open_backing(below: str, below_format: str | None) -> Disk:
        found = backing_path(path, below)
        status = Path(path).stat()
        images = {**above, (status.st_dev, status.st_ino): name}
        try:
            there = Path(found).stat()
            if (there.st_dev, there.st_ino) in images:
                raise DiskError(f"{name}: its backing files lead back to {found}")
            if len(images) > _DEEPEST:
                raise DiskError(f"{name}: there are more than {_DEEPEST} backing files")
            if below_format is None and guess_format(found) != "raw":
                raise DiskError(
                    f"{name}: does not say which format its backing file has, and {found} looks like qcow2; say it "
                    f"with: qemu-img rebase -u -b {below} -F qcow2 {name}"
                )
            return _open(found, True, below_format or "raw", True, images)
        except DiskError as error:
            raise DiskError(str(error) if name in str(error) else f"{name}: backing file {error}") from error
        except OSError as error:
            raise DiskError(f"{name}: backing file {found}: {reason(error)}") from error

    return Qcow2.open(path, read_only, open_backing, shared)
