"""Snapshots inside an image: L1 tables kept beside the active one, so that what both lead to must not be written.

Each change counts all references as they will be, raises counts to that, lets the header lead to the new tables, and
lowers counts: a crash leaves the image as it was or as it was to be. It is marked as dirty meanwhile, because flags and
counts may then differ, which opening it for writing repairs.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from polyvisor.storage.disk import DiskError
from polyvisor.storage.qcow2 import check
from polyvisor.storage.qcow2.file import ImageFile
from polyvisor.storage.qcow2.layout import (
    COPIED,
    MAX_SNAPSHOT_TABLE_BYTES,
    MAX_SNAPSHOTS,
    SIZE_AND_L1,
    SNAPSHOT_TABLE,
    CorruptError,
    Header,
    Snapshot,
    pack_table,
    parse_snapshots,
)
from polyvisor.storage.qcow2.mapping import read_l1
from polyvisor.storage.raw import reason

if TYPE_CHECKING:
    from polyvisor.storage.qcow2.image import Qcow2


def read_snapshots(file: ImageFile, header: Header) -> list[Snapshot]:
    """The snapshot table; its length is noted in the header. Raises CorruptError or OSError."""
    count, offset = header.snapshot_count, header.snapshots_offset
    header.snapshots_bytes = 0
    if not count:
        return []
    if count > MAX_SNAPSHOTS or offset % header.cluster_size or not 0 < offset < file.size:
        raise CorruptError(f"the snapshot table is at {offset:#x}, with {count} entries")
    length = 256 * count
    while True:
        whole = length >= min(MAX_SNAPSHOT_TABLE_BYTES, file.size - offset)
        try:
            found, header.snapshots_bytes = parse_snapshots(file.get(offset, min(length, file.size - offset)), count)
            return found
        except CorruptError:
            if whole:
                raise
            length *= 4


def replace_snapshots(image: Qcow2, wanted: Sequence[Snapshot], new: Snapshot | None) -> None:
    """Write another snapshot table; ``new`` is what it has of the disk as it is now. Raises DiskError or OSError."""
    census = _census(image)
    refcounts, file = image.refcounts, image.file
    assert refcounts is not None
    if new is not None and census.counts and max(census.counts) >= refcounts.maximum:
        raise DiskError(f"{image.name}: counts of {1 << image.header.refcount_order} bits have no room for a snapshot")
    if len(wanted) > MAX_SNAPSHOTS:
        raise DiskError(f"{image.name}: there are {MAX_SNAPSHOTS} snapshots, and there cannot be more")
    with image.snapshots_changing():
        if new is not None:
            copy = _without_flags(image.mapping.l1)
            new.l1_offset = _write_row(image, copy)
        table = b"".join(each.pack() for each in wanted)
        try:
            offset = _write_row(image, table) if table else 0
        except DiskError:
            if new is not None:
                _take_row_back(image, new.l1_offset, len(copy))
            raise
        after = replace(
            image.header, snapshot_count=len(wanted), snapshots_offset=offset, snapshots_bytes=len(table)
        )
        target = _raise(image, after, wanted)
        place, form = SNAPSHOT_TABLE
        file.put(form.pack(len(wanted), offset), place)
        file.flush()
        image.snapshots = list(wanted)
        _settle(image, after, target)


def revert(image: Qcow2, snapshot: Snapshot) -> None:
    """Make the tables of ``snapshot`` the active ones. Raises DiskError or OSError."""
    _census(image)
    size = image.size if snapshot.disk_size is None else snapshot.disk_size
    table = read_l1(image.file, image.header, snapshot.l1_offset, snapshot.l1_size)
    if size % 512 or not size or len(table) < image.header.l1_entries(size):
        raise DiskError(f"{image.name}: the snapshot {snapshot.name!r} is damaged")
    with image.snapshots_changing():
        offset = _write_row(image, _without_flags(table))
        after = replace(image.header, l1_offset=offset, l1_size=len(table), size=size)
        try:
            target = _raise(image, after, image.snapshots)
        except DiskError:
            _take_row_back(image, offset, 8 * len(table))
            raise
        place, form = SIZE_AND_L1
        image.file.put(form.pack(size, 0, len(table), offset), place)
        image.file.flush()
        _settle(image, after, target)


def _census(image: Qcow2) -> check.Census:
    """Count what there is. Raises DiskError if it is not as it should be."""
    assert image.refcounts is not None
    census = check.count(image.file, image.header, image.snapshots)
    errors = census.errors or check.compare(census, image.refcounts)[0]
    if errors:
        raise DiskError(f"{image.name}: the image is damaged: {errors[0]}")
    return census


def _without_flags(table: array[int]) -> bytes:
    return pack_table(array("Q", [entry & ~COPIED for entry in table]))


def _write_row(image: Qcow2, data: bytes) -> int:
    """Write ``data`` to new clusters in a row; gives where. The last one is filled with zeroes.

    Raises DiskError where there is no room for it; then nothing is changed.
    """
    assert image.refcounts is not None
    size = image.header.cluster_size
    clusters = -(-len(data) // size)
    try:
        first = image.refcounts.allocate_row(clusters)
        try:
            image.file.put(data.ljust(clusters * size, b"\0"), first * size)
        except OSError:
            image.refcounts.give_back(first, clusters)
            raise
    except CorruptError:
        raise
    except OSError as error:
        raise DiskError(f"{image.name}: {reason(error)}") from error
    return first * size


def _take_row_back(image: Qcow2, offset: int, length: int) -> None:
    assert image.refcounts is not None
    size = image.header.cluster_size
    image.refcounts.give_back(offset // size, -(-length // size))
    image.flush()


def _raise(image: Qcow2, after: Header, snapshots: Sequence[Snapshot]) -> array[int]:
    """Make counts high enough for the tables as they will be, and give those counts.

    Raises DiskError if they cannot be that high; then nothing is changed.
    """
    assert image.refcounts is not None
    image.flush()
    target = check.count(image.file, after, snapshots)
    if target.errors:
        raise CorruptError(target.errors[0])
    if max(target.counts) > image.refcounts.maximum:
        raise DiskError(f"{image.name}: counts of {1 << image.header.refcount_order} bits have no room for that")
    image.refcounts.assign(target.counts, lower=False)
    image.flush()
    check.fix_flags(image.file, after, target.counts, clear_only=True)
    image.file.flush()
    return target.counts


def _settle(image: Qcow2, after: Header, target: array[int]) -> None:
    """The header leads to the new tables: lower counts and set flags as they are to be."""
    assert image.refcounts is not None
    image.mapping.forget()
    for name in ("l1_offset", "l1_size", "size", "snapshot_count", "snapshots_offset", "snapshots_bytes"):
        setattr(image.header, name, getattr(after, name))
    image.refcounts.assign(target, lower=True)
    image.refcounts.write()
    image.file.flush()
    check.fix_flags(image.file, after, target, clear_only=False)
    image.file.flush()
    image.mapping.load()
