"""Making an empty image."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from polyvisor.storage.disk import SECTOR, DiskError
from polyvisor.storage.qcow2.layout import (
    MAX_CLUSTER_BITS,
    MAX_L1_BYTES,
    MIN_CLUSTER_BITS,
    Header,
    empty_counts,
    pack_counts,
    pack_table,
)
from polyvisor.storage.raw import lock_file, reason


def create_qcow2(
    path: str | os.PathLike[str], size: int, *, cluster_size: int = 65536, version: int = 3, refcount_bits: int = 16,
    backing: str | None = None, backing_format: str | None = None, replace: bool = False,
) -> None:
    """Make an image with a disk of ``size`` bytes, all zeroes or as the ``backing`` file has it.

    ``backing`` is a name as it is to be in the header: if relative, then to the image's directory; ``backing_format``
    (``raw`` or ``qcow2``) goes with it. Raises DiskError, also if the file exists, unless ``replace``.
    """
    name = os.fspath(path)
    bits = cluster_size.bit_length() - 1
    if 1 << bits != cluster_size or not MIN_CLUSTER_BITS <= bits <= MAX_CLUSTER_BITS:
        raise DiskError(f"{name}: clusters of {cluster_size} bytes; give a power of two from 512 to 2 MiB")
    order = refcount_bits.bit_length() - 1
    if refcount_bits < 1 or 1 << order != refcount_bits or order > 6 or (version < 3 and order != 4):
        raise DiskError(f"{name}: counts of {refcount_bits} bits are not possible")
    if version not in (2, 3):
        raise DiskError(f"{name}: qcow2 version {version} is not supported")
    if size <= 0 or size % SECTOR:
        raise DiskError(f"{name}: the size of the disk ({size} bytes) is not a multiple of {SECTOR} above 0")
    if backing is not None and backing_format not in ("raw", "qcow2"):
        raise DiskError(f"{name}: the format of the backing file must be raw or qcow2")
    header = Header(version, backing, backing_format, bits, size, 0, 0, cluster_size, 0, refcount_order=order)
    header.l1_size = header.l1_entries(size)
    if 8 * header.l1_size > MAX_L1_BYTES:
        raise DiskError(f"{name}: {size} bytes are too many for clusters of {cluster_size} bytes")
    l1_clusters = -(-8 * header.l1_size // cluster_size)
    per_block = 8 * cluster_size >> order
    blocks = table_clusters = 1
    while True:
        used = 1 + table_clusters + blocks + l1_clusters
        needed = -(-used // per_block), -(-8 * blocks // cluster_size)
        if needed == (blocks, table_clusters):
            break
        blocks, table_clusters = max(blocks, needed[0]), max(table_clusters, needed[1])
    header.refcount_table_clusters = table_clusters
    header.l1_offset = (1 + table_clusters + blocks) * cluster_size
    counts = empty_counts(blocks * per_block, order)
    for cluster in range(used):
        counts[cluster] = 1
    places = [(1 + table_clusters + index) * cluster_size for index in range(blocks)]
    data = header.pack().ljust(cluster_size, b"\0")
    data += pack_table(array("Q", places)).ljust(table_clusters * cluster_size, b"\0")
    data += pack_counts(counts, order)
    with new_file(name, replace) as file:
        file.write(data)
        file.truncate(used * cluster_size)


@contextmanager
def new_file(name: str, replace: bool) -> Iterator[BinaryIO]:
    """An empty file to fill, locked; one that exists is emptied if ``replace``. Errors become DiskError.

    A file that was not there before is removed if it cannot be filled.
    """
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if replace else os.O_EXCL), 0o666)
        try:
            with os.fdopen(fd, "wb") as file:
                lock_file(fd, name, shared=False)
                file.truncate(0)
                yield file
        except BaseException:
            if not replace:
                with suppress(OSError):
                    Path(name).unlink()
            raise
    except DiskError:
        raise
    except (OSError, ValueError) as error:
        raise DiskError(f"{name}: cannot make the image: {reason(error)}") from error
