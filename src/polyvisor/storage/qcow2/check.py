"""Checking an image: counting what its tables refer to, and comparing that with its reference counts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from polyvisor.storage.qcow2.file import ImageFile
from polyvisor.storage.qcow2.layout import (
    BITMAPS,
    COMPRESSED,
    COPIED,
    MAX_REFCOUNT_TABLE_BYTES,
    OFFSET,
    REFCOUNT_TABLE,
    CorruptError,
    Header,
    Snapshot,
    bad_bits,
    compressed_range,
    pack_counts,
    pack_table,
    unpack_table,
)
from polyvisor.storage.qcow2.mapping import read_l1
from polyvisor.storage.qcow2.refcounts import Refcounts

_MOST_ERRORS = 100
_MAX_BITMAP_BYTES = 64 << 20


@dataclass
class Census:
    """How often each cluster of the file is referred to."""

    counts: array[int]
    """One for each cluster of the file."""
    errors: list[str] = field(default_factory=list)
    """What is impossible, up to a hundred lines."""
    allocated: int = 0
    """Clusters of the disk that have data of their own, now."""
    compressed: int = 0
    """How many of them are compressed."""


@dataclass
class Report:
    """What :func:`examine` found."""

    errors: list[str]
    """What may lose data or has, up to a hundred lines."""
    leaks: int
    """Clusters that are counted as used, or more often than they are."""
    clusters: int
    """Clusters that the disk has."""
    allocated: int
    compressed: int

    @property
    def repairable(self) -> bool:
        """Whether only counts and flags are wrong."""
        return all(error.startswith(("cluster ", "flag ")) for error in self.errors)


class _Counting:
    def __init__(self, file: ImageFile, header: Header) -> None:
        self.file = file
        self.bits = header.cluster_bits
        self.size = header.cluster_size
        self.clusters = -(-file.size // self.size)
        self.census = Census(array("I", bytes(4 * self.clusters)))
        self.header = header
        # Clusters that only so many tables may refer to, and nothing else.
        self.expected: dict[int, int] = {}

    def error(self, text: str) -> None:
        if len(self.census.errors) < _MOST_ERRORS:
            self.census.errors.append(text)

    def table(self, offset: int, length: int, what: str, times: int = 1) -> bool:
        """Count a table; gives whether its place is possible."""
        first, end = offset // self.size, -(-(offset + length) // self.size)
        if offset % self.size or not 0 <= first < self.clusters or end > self.clusters:
            self.error(f"{what} is at {offset:#x}, with {length} bytes, in a file of {self.file.size}")
            return False
        for cluster in range(first, end):
            self.census.counts[cluster] += times
            self.expected[cluster] = self.expected.get(cluster, 0) + times
        if any(self.expected[cluster] != times for cluster in range(first, end)):
            self.error(f"{what} at {offset:#x} is where another table is")
            return False
        return True

    def level2(self, offset: int, times: int, active: bool) -> None:
        table = unpack_table(self.file.get(offset, self.size))
        if not any(table):
            return
        counts, clusters, bits = self.census.counts, self.clusters, self.bits
        bad = bad_bits(bits) | (self.header.version < 3)
        allocated = compressed = 0
        for entry in table:
            if not entry:
                continue
            if entry & COMPRESSED:
                start, length = compressed_range(entry & ~COPIED, bits)
                first, last = start >> bits, start + length - 1 >> bits
                if last >= clusters or entry & COPIED or not first:
                    # The last sectors may be behind the end of the file, but not by a whole cluster.
                    self.error(f"the L2 table at {offset:#x} has the impossible entry {entry:#x}")
                    continue
                for cluster in range(first, last + 1):
                    counts[cluster] += times
                compressed += 1
            else:
                cluster = (entry & OFFSET) >> bits
                if entry & bad or cluster >= clusters or (entry & COPIED and not cluster):
                    self.error(f"the L2 table at {offset:#x} has the impossible entry {entry:#x}")
                    continue
                if cluster:
                    counts[cluster] += times
                    allocated += 1
        if active:
            self.census.allocated += allocated + compressed
            self.census.compressed += compressed

    def bitmaps(self, count: int, length: int, offset: int) -> None:
        """The tables of persistent bitmaps, and what they lead to."""
        if length > _MAX_BITMAP_BYTES or not self.table(offset, length, "the bitmap directory"):
            return
        data = self.file.get(offset, length)
        at = 0
        for _ in range(count):
            if at + 24 > length:
                self.error("the bitmap directory is cut off")
                return
            where, entries = int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big")
            name, extra = int.from_bytes(data[at + 18 : at + 20], "big"), int.from_bytes(data[at + 20 : at + 24], "big")
            at += -(-(24 + name + extra) // 8) * 8
            if 8 * entries > _MAX_BITMAP_BYTES or not self.table(where, 8 * entries, "a bitmap table"):
                continue
            for entry in unpack_table(self.file.get(where, 8 * entries)):
                if entry & OFFSET:
                    self.table(entry & OFFSET, self.size, "a bitmap's data")


def count(file: ImageFile, header: Header, snapshots: Sequence[Snapshot], counts_too: bool = True) -> Census:
    """Count all references in ``file``, those of the refcount table only if ``counts_too``. Raises OSError."""
    counting = _Counting(file, header)
    counting.table(0, 1, "the header")
    tables = Counter[int]()
    active: set[int] = set()
    roots = [(header.l1_offset, header.l1_size), *((each.l1_offset, each.l1_size) for each in snapshots)]
    for offset, entries in roots:
        try:
            table = read_l1(file, header, offset, entries)
        except CorruptError as error:
            counting.error(str(error))
            continue
        if entries and counting.table(offset, 8 * entries, "an L1 table"):
            found = [entry & OFFSET for entry in table if entry]
            tables.update(found)
            if (offset, entries) == roots[0]:
                active.update(found)
    for offset, times in sorted(tables.items()):
        if counting.table(offset, counting.size, "an L2 table", times):
            counting.level2(offset, times, offset in active)
    if header.snapshot_count:
        counting.table(header.snapshots_offset, header.snapshots_bytes, "the snapshot table")
    if counts_too:
        length = header.refcount_table_clusters * counting.size
        if counting.table(header.refcount_table_offset, length, "the refcount table"):
            for entry in unpack_table(file.get(header.refcount_table_offset, length)):
                if entry:
                    counting.table(entry & OFFSET, counting.size, "a refcount block")
    if header.bitmaps is not None and header.autoclear & BITMAPS:
        counting.bitmaps(*header.bitmaps)
    for cluster, times in counting.expected.items():
        if counting.census.counts[cluster] != times:
            counting.error(f"a table at {cluster << counting.bits:#x} is also used for something else")
    return counting.census


def compare(census: Census, refcounts: Refcounts) -> tuple[list[str], int]:
    """Counts that are too low, up to a hundred lines, and how many are too high. Raises OSError."""
    errors: list[str] = []
    leaks = 0
    counts, per_block = census.counts, refcounts.per_block
    for index in range(max(-(-len(counts) // per_block), refcounts.entries)):
        block = refcounts.block(index)
        there = counts[index * per_block : (index + 1) * per_block]
        if block is None:
            block = array("Q", bytes(8 * len(there)))
        behind = block[len(there) :]  # of clusters that the file does not have
        if any(behind):
            leaks += len(behind) - behind.count(0)
        counted = block[: len(there)]
        if counted == there:
            continue
        for at, (count, needed) in enumerate(zip(counted, there, strict=True)):
            if count > needed:
                leaks += 1
            elif count < needed and len(errors) < _MOST_ERRORS:
                errors.append(f"cluster {index * per_block + at:#x} is used {needed} times and counted {count} times")
    return errors, leaks


def examine(file: ImageFile, header: Header, snapshots: Sequence[Snapshot]) -> Report:
    """Check everything but the data. Raises OSError."""
    census = count(file, header, snapshots)
    errors, leaks = census.errors, 0
    try:
        more, leaks = compare(census, Refcounts(file, header))
        errors += more
    except CorruptError as error:
        errors.append(str(error))
    if not errors:
        errors += _flags(file, header, census.counts, clear_only=False, write=False)
    clusters = -(-header.size // header.cluster_size)
    return Report(errors[:_MOST_ERRORS], leaks, clusters, census.allocated, census.compressed)


def fix_flags(file: ImageFile, header: Header, counts: array[int], clear_only: bool) -> None:
    """Let the COPIED flags of the active tables say which clusters are used once. Raises OSError."""
    _flags(file, header, counts, clear_only, write=True)


def _flags(file: ImageFile, header: Header, counts: array[int], clear_only: bool, write: bool) -> list[str]:
    """The flags that are wrong. ``write``: correct them; ``clear_only``: only those that are set."""
    bits = header.cluster_bits
    wrong: list[str] = []

    def correct(offset: int, length: int) -> array[int]:
        table = unpack_table(file.get(offset, length))
        changed = False
        for at, entry in enumerate(table):
            if entry & COMPRESSED or not entry & OFFSET:
                continue
            once = counts[(entry & OFFSET) >> bits] == 1
            if once != bool(entry & COPIED) and not (clear_only and once):
                table[at] = entry ^ COPIED
                changed = True
                wrong.append(f"flag of {entry:#x}, in the table at {offset:#x}, is wrong")
        if changed and write:
            file.put(pack_table(table), offset)
        return table

    for entry in correct(header.l1_offset, 8 * header.l1_size):
        if entry:
            correct(entry & OFFSET, header.cluster_size)
    return wrong


def rebuild(file: ImageFile, header: Header, snapshots: Iterable[Snapshot]) -> None:
    """Count anew: write a new refcount table with its blocks behind all else, then correct the flags.

    Nothing that was there is overwritten until the header leads to the new ones. Raises CorruptError if more than that
    is wrong, or OSError.
    """
    census = count(file, header, list(snapshots), counts_too=False)
    if census.errors:
        raise CorruptError(census.errors[0])
    counts, order, size = census.counts, header.refcount_order, header.cluster_size
    if counts and max(counts) >> (1 << order):
        raise CorruptError(f"counts of {1 << order} bits are too small")
    per_block = 8 * size >> order
    start = len(counts)
    blocks = clusters = 1
    while True:
        needed = -(-(start + blocks + clusters) // per_block), -(-8 * blocks // size)
        if needed == (blocks, clusters):
            break
        blocks, clusters = max(blocks, needed[0]), max(clusters, needed[1])
    if clusters * size > MAX_REFCOUNT_TABLE_BYTES:
        raise CorruptError("the file is too large for clusters of its size")
    counts.extend([1] * (blocks + clusters))
    counts.extend([0] * (blocks * per_block - len(counts)))
    table = array("Q", bytes(clusters * size))
    kind = "BBBBHIQ"[order]
    for index in range(blocks):
        block = array(kind, counts[index * per_block : (index + 1) * per_block].tolist())
        file.put(pack_counts(block, order), (start + index) * size)
        table[index] = (start + index) * size
    file.put(pack_table(table), (start + blocks) * size)
    file.flush()
    place, form = REFCOUNT_TABLE
    file.put(form.pack((start + blocks) * size, clusters), place)
    file.flush()
    header.refcount_table_offset, header.refcount_table_clusters = (start + blocks) * size, clusters
    fix_flags(file, header, counts, clear_only=False)
    file.flush()
