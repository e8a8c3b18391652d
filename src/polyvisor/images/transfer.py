"""Images as one file, to be carried elsewhere: a tar archive of their files, checked when it is taken in.

The disk is stored as a sparse file, in the format that GNU tar calls "posix 1.0" (GNU tar manual, "Storing Sparse
Files"), so the archive is as large as what is used of it.
"""

from __future__ import annotations

import errno
import io
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from polyvisor.cachedir import cache_root

from . import store
from .errors import ImageError, Kind, storage_errors
from .store import Image

_CHUNK = 1 << 20
_BLOCK = 4096
_ZEROES = bytes(_BLOCK)
_MOST_JSON = 64 << 20
_REQUIRED = (store.KERNEL, store.INITRD, store.IMAGE_JSON)


def export(name: str, target: Path) -> Image:
    """Write the image ``name`` to the archive ``target``, which has its name when it is complete.

    Raises :class:`ImageError`: "missing", "damaged", "storage", "space".
    """
    image = store.verify(name)
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream, tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
            # What tells about the others comes first, so that a reader can judge them as they come.
            for path in sorted(image.files, key=lambda path: (path.suffix != ".json", path.name)):
                _add(tar, path)
        partial.replace(target)
    except OSError as error:
        kind: Kind = "space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "storage"
        raise ImageError(f"cannot write {target}: {error.strerror or error}", kind) from error
    finally:
        with suppress(OSError):
            partial.unlink()
    return image


def _add(tar: tarfile.TarFile, path: Path) -> None:
    with path.open("rb") as file:
        info = tarfile.TarInfo(path.name)
        size = path.stat().st_size
        parts = list(_data_parts(file, size))
        if sum(length for _, length in parts) == size:
            info.size = size
            tar.addfile(info, file)
            return
        numbers = [len(parts), *(number for part in parts for number in part)]
        table = "".join(f"{number}\n" for number in numbers).encode()
        table += bytes(-len(table) % tarfile.BLOCKSIZE)
        info.name = f"GNUSparseFile.0/{path.name}"
        info.size = len(table) + sum(length for _, length in parts)
        info.pax_headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": path.name,
            "GNU.sparse.realsize": str(size),
        }
        tar.addfile(info, _Joined(table, file, parts))


def _data_parts(file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Offset and length of what is not a hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
        except OSError:
            break  # only a hole is left
        yield start, end - start
    file.seek(0)


class _Joined(io.RawIOBase):
    """``table``, and then parts of a file."""

    def __init__(self, table: bytes, file: IO[bytes], parts: list[tuple[int, int]]) -> None:
        self._pieces = self._generate(table, file, parts)
        self._left = b""

    @staticmethod
    def _generate(table: bytes, file: IO[bytes], parts: list[tuple[int, int]]) -> Iterator[bytes]:
        yield table
        for start, length in parts:
            file.seek(start)
            while length:
                data = file.read(min(_CHUNK, length))
                if not data:
                    raise OSError("the file became shorter while it was read")
                length -= len(data)
                yield data

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        # As much as is asked for: tarfile takes less for the end.
        while len(self._left) < size and (piece := next(self._pieces, None)) is not None:
            self._left += piece
        data, self._left = self._left[:size], self._left[size:]
        return data


def import_image(source: Path) -> Image:
    """Take in an archive that :func:`export` made, and make it the current image of its name.

    Every file is compared with its hash. That says that it came through whole, not who made it. Raises
    :class:`ImageError`: "usage", "corrupt", "storage", "space".
    """
    try:
        with source.open("rb") as stream, tarfile.open(fileobj=stream) as tar:
            return _import(tar, source)
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ImageError(f"{source} is not a whole tar archive ({error})", "corrupt") from error
    except OSError as error:
        raise ImageError(f"cannot read {source}: {error.strerror or error}", "usage") from error


def _import(tar: tarfile.TarFile, source: Path) -> Image:
    members = {member.name: member for member in tar if member.isreg()}
    known = {*_REQUIRED, store.LOCK_JSON, store.DISK}
    missing = {*_REQUIRED, store.LOCK_JSON} - members.keys()
    if missing or members.keys() - known:
        raise ImageError(f"{source} is not an image that polyvisor exported", "corrupt")
    lock, description = (_json(tar, members[name], source) for name in (store.LOCK_JSON, store.IMAGE_JSON))
    name, expected = _check(lock, description, source)
    if expected.keys() != members.keys() - {store.LOCK_JSON}:
        raise ImageError(f"{source} does not have the files that its lock file names", "corrupt")
    with storage_errors(cache_root()), store.exclusive(name), store.staging(name) as directory:
        for file, (size, sha256) in expected.items():
            if members[file].size != size:
                raise ImageError(f"{file} in {source} is not what its lock file says", "corrupt")
            _extract(tar, members[file], directory / file)
            if store.sha256_file(directory / file) != sha256:
                raise ImageError(f"{file} in {source} is not what its lock file says", "corrupt")
        _extract(tar, members[store.LOCK_JSON], directory / store.LOCK_JSON)
        return store.publish(name, directory)


def _json(tar: tarfile.TarFile, member: tarfile.TarInfo, source: Path) -> Any:
    stream = tar.extractfile(member)
    assert stream is not None  # it is a regular file
    if member.size > _MOST_JSON:
        raise ImageError(f"{member.name} in {source} is absurdly large", "corrupt")
    try:
        return json.loads(stream.read())
    except ValueError as error:
        raise ImageError(f"{member.name} in {source} is not JSON ({error})", "corrupt") from error


def _check(lock: Any, description: Any, source: Path) -> tuple[str, dict[str, tuple[int, str]]]:
    """The image's name, and the size and hash of each file but the lock file."""
    try:
        texts = [description[key] for key in ("name", "version", "arch", "kernel_version", "created", "append")]
        files = {
            str(file): (int(entry["size"]), str(entry["sha256"])) for file, entry in dict(lock["files"]).items()
        }
        good = all(isinstance(text, str) for text in texts) and isinstance(description["suite"], str | None)
        good = good and (store.DISK in files) == ("disk" in description)
    except (KeyError, TypeError, ValueError, AttributeError):
        good = False
    if not good:
        raise ImageError(f"{source} does not describe its image", "corrupt")
    store.check_name(texts[0])
    return texts[0], files


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    """Write a member to a file, whose zeroes take no space."""
    stream = tar.extractfile(member)
    assert stream is not None
    with target.open("wb") as file:
        offset = 0
        while data := stream.read(_CHUNK):
            view = memoryview(data)
            for start in range(0, len(data), _BLOCK):
                if view[start : start + _BLOCK] != _ZEROES[: len(data) - start]:
                    file.seek(offset + start)
                    file.write(view[start : start + _BLOCK])
            offset += len(data)
        file.truncate(offset)
