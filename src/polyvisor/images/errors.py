"""The one error of :mod:`polyvisor.images`, and how failures of the host's file system become that error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

Kind = Literal[
    "corrupt",  # the bytes are not those that the signed index promised
    "damaged",  # a cached image is incomplete or was changed
    "expired",  # the index is older than its own Valid-Until
    "missing",  # the server, the index or the cache does not have it
    "network",  # the server cannot be reached or hung up
    "signature",  # no trusted key signed the index
    "space",  # the disk or quota is full
    "storage",  # the cache cannot be written, for another reason
    "unsupported",  # a file format that we do not read
    "build",  # the machine that builds an image failed
    "conflict",  # the packages that were asked for cannot be together
    "usage",  # the caller asked for something that does not exist
]


class ImageError(Exception):
    """An image could not be fetched, built, verified or found.

    ``str(error)`` is one line that says what happened and what to do about it; ``kind`` is for programs.
    """

    def __init__(self, message: str, kind: Kind) -> None:
        super().__init__(" ".join(message.split()))
        self.kind: Kind = kind


@contextmanager
def storage_errors(directory: Path) -> Iterator[None]:
    """Turn an OSError about files under ``directory`` (the cache) into an :class:`ImageError` that names it."""
    try:
        yield
    except OSError as error:
        where = error.filename or directory
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ImageError(
                f"no space left for {directory}: free some, or set POLYVISOR_CACHE to a directory on a larger disk",
                "space",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ImageError(
                f"cannot write {where}: {error.strerror}; set POLYVISOR_CACHE to a directory you can write", "storage"
            ) from error
        raise ImageError(
            f"cannot use {where}: {error.strerror or error}; POLYVISOR_CACHE names another directory", "storage"
        ) from error
