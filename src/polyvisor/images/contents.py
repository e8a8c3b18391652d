"""The files inside packages: .deb packages and tar archives, seen as one merged tree. Nothing of them is ever run.

Format: deb(5), an ar archive whose member ``data.tar[.gz|.xz|.zst|...]`` holds the files.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import posixpath
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import zstandard
from debian.arfile import ArError, ArFile, ArMember
from debian.deb822 import Deb822
from debian.debfile import DebError, DebFile

from .errors import ImageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer as Buffer  # collections.abc has it from Python 3.12

_CHUNK = 1 << 20
# What the libraries raise for data that is not what it claims to be. (arfile also raises bare OSErrors.)
_CORRUPT = (ArError, DebError, tarfile.TarError, lzma.LZMAError, zstandard.ZstdError, zlib.error, EOFError, KeyError)


class Contents:
    """The regular files of several packages. Use as a context manager; needs room for the unpacked tars in ``work``.

    Paths have no leading slash and are as on a system with a merged /usr: ``usr/lib/modules/...`` also when the
    package says ``lib/modules/...``. When two packages hold one path, the later one counts.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._stack = ExitStack()
        self._files: dict[str, tuple[tarfile.TarFile, tarfile.TarInfo]] = {}

    def __enter__(self) -> Contents:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, path: str) -> bool:
        return path in self._files

    def add(self, path: Path) -> None:
        """Add a .deb package or a tar archive, by what it contains. Raises :class:`ImageError` ("corrupt")."""
        try:
            with path.open("rb") as stream:
                is_deb = stream.read(8) == b"!<arch>\n"
            tar = self._stack.enter_context(self._open_deb(path) if is_deb else tarfile.open(path))  # noqa: SIM115
            for member in tar:
                if member.isreg():
                    self._files[_normal(member.name)] = (tar, member)
        except (*_CORRUPT, ValueError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the host's file system, not the data
            message = f"{path} is not a whole package or tar archive ({error}): fetch it again"
            raise ImageError(message, "corrupt") from error

    def read(self, path: str) -> bytes:
        """The contents of one file; KeyError when no package has it."""
        tar, member = self._files[path]
        stream = tar.extractfile(member)
        assert stream is not None  # only regular files are in the table
        return stream.read()

    def _open_deb(self, path: Path) -> tarfile.TarFile:
        archive = ArFile(str(path))
        for member in archive.getmembers():
            if member.name.startswith("data.tar"):
                break
        else:
            raise ImageError(f"{path} has no data.tar: it is not a Debian package", "corrupt")
        # Unpacked to a file, so that members can be read in any order without keeping 120 MB of modules in memory.
        unpacked = self._stack.enter_context(tempfile.TemporaryFile(dir=self._work))  # noqa: SIM115
        with _decompressed(member) as stream:
            shutil.copyfileobj(stream, unpacked, _CHUNK)
        unpacked.seek(0)
        return tarfile.open(fileobj=unpacked, mode="r:")


def stored_package(path: Path, work: Path) -> IO[bytes]:
    """A .deb package with the same contents and no compression of its files, as an open temporary file in ``work``.

    For a guest, whose CPU is emulated: there, unpacking xz takes longer than all else. Raises :class:`ImageError`
    ("corrupt").
    """
    try:
        with tempfile.TemporaryFile(dir=work) as data:
            members: list[tuple[str, bytes]] = []
            for member in ArFile(str(path)).getmembers():
                if member.name.startswith("data.tar"):
                    with _decompressed(member) as stream:
                        shutil.copyfileobj(stream, data, _CHUNK)
                elif not members or member.name.startswith("control.tar"):
                    members.append((member.name, member.read()))
            if [name.split(".")[0] for name, _ in members] != ["debian-binary", "control"] or not data.tell():
                raise ImageError(f"{path} is not a Debian package: fetch it again", "corrupt")
            out = tempfile.TemporaryFile(dir=work)  # noqa: SIM115
            out.write(b"!<arch>\n")
            for name, content in members:
                out.write(_ar_header(name, len(content)) + content + b"\n" * (len(content) % 2))
            out.write(_ar_header("data.tar", data.tell()))
            odd = data.tell() % 2
            data.seek(0)
            shutil.copyfileobj(data, out, _CHUNK)
            out.write(b"\n" * odd)
            return out
    except (*_CORRUPT, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageError(f"{path} is not a whole package ({error}): fetch it again", "corrupt") from error


def _ar_header(name: str, size: int) -> bytes:
    """The header of a member that has no time and belongs to user 0 (deb(5))."""
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{size:<10}`\n".encode()


def control(path: Path) -> dict[str, str]:
    """The control fields of a .deb package. Raises :class:`ImageError` ("corrupt")."""
    try:
        fields: Deb822 = DebFile(str(path)).debcontrol()
        return dict(fields.items())
    except (*_CORRUPT, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageError(f"{path} is not a Debian package ({error}): fetch it again", "corrupt") from error


def _normal(name: str) -> str:
    name = posixpath.normpath(name).lstrip("/")
    return f"usr/{name}" if name.split("/")[0] in ("bin", "lib", "sbin") else name


class _Raw(io.RawIOBase):
    """An ar member as a plain stream: python-debian's reads everything when asked for nothing."""

    def __init__(self, member: ArMember) -> None:
        self._member = member

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer).cast("B")
        data = self._member.read(len(view)) if view else b""
        view[: len(data)] = data
        return len(data)


def _decompressed(member: ArMember) -> IO[bytes]:
    raw = io.BufferedReader(_Raw(member), _CHUNK)
    kind = member.name.removeprefix("data.tar")
    if kind == ".xz" or kind == ".lzma":
        return lzma.open(raw)
    if kind == ".zst":
        stream: IO[bytes] = zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True)
        return stream
    if kind == ".gz":
        return gzip.open(raw)  # type: ignore[return-value]
    if kind == ".bz2":
        return bz2.open(raw)
    if kind == "":
        return raw
    raise ImageError(f"{member.name} has an unknown compression", "unsupported")
