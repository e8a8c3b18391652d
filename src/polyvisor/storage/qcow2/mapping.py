"""Where a guest's clusters are: the L1 table and L2 tables, with changes kept in memory until they are written."""

from __future__ import annotations

from array import array
from collections import OrderedDict

from polyvisor.storage.qcow2.file import ImageFile
from polyvisor.storage.qcow2.layout import (
    COPIED,
    MAX_L1_BYTES,
    OFFSET,
    CorruptError,
    Header,
    bad_bits,
    pack_table,
    unpack_table,
)
from polyvisor.storage.qcow2.refcounts import Refcounts

CACHE_BYTES = 32 << 20
"""L2 tables kept in memory, in bytes; those with changes are kept in any case."""

_SECTOR_ENTRIES = 64
# The host gives room in blocks of this many bytes, or a multiple.
_PAGE = 4096


def read_l1(file: ImageFile, header: Header, offset: int, entries: int) -> array[int]:
    """The L1 table of ``entries`` entries at ``offset``. Raises CorruptError if a place is impossible."""
    cluster_size = header.cluster_size
    if not 0 <= 8 * entries <= MAX_L1_BYTES or offset % cluster_size:
        raise CorruptError(f"an L1 table is at {offset:#x}, with {entries} entries")
    if entries and not 0 < offset < file.size:
        raise CorruptError(f"an L1 table is at {offset:#x}, outside the file")
    table = unpack_table(file.get(offset, 8 * entries))
    bad = bad_bits(header.cluster_bits) | 1
    for entry in table:
        if entry & bad or (entry & OFFSET) >= file.size or (entry and not entry & OFFSET):
            raise CorruptError(f"an L1 table has the impossible entry {entry:#x}")
    return table


class Mapping:
    """The active L1 table and its L2 tables."""

    def __init__(self, file: ImageFile, header: Header, refcounts: Refcounts | None) -> None:
        """``refcounts`` is None if nothing is going to be changed. Raises CorruptError or OSError."""
        self.file = file
        self.header = header
        self.refcounts = refcounts
        self.cluster_size = header.cluster_size
        self._l2_bits = header.l2_bits
        self._mask = (1 << header.l2_bits) - 1
        self._tables: OrderedDict[int, array[int]] = OrderedDict()
        self._most = max(8, CACHE_BYTES // header.cluster_size)
        # For each L2 table with changes, the first entry that changed and the one behind the last.
        self._changes: dict[int, tuple[int, int]] = {}
        self._l1_changes: set[int] = set()
        # Pages of the file that tables in use have taken on the host's disk.
        self._reserved: set[int] = set()
        self.l1 = array("Q")
        self.load()

    def load(self) -> None:
        """Read the L1 table the header leads to, and forget all else. Raises CorruptError or OSError."""
        header = self.header
        if header.l1_size < header.l1_entries(header.size):
            raise CorruptError(f"the L1 table has {header.l1_size} entries, too few for {header.size} bytes")
        self.l1 = read_l1(self.file, header, header.l1_offset, header.l1_size)
        self._tables.clear()
        if self.refcounts is not None:
            first = header.l1_offset // self.cluster_size
            if self.l1:
                self.refcounts.claim(range(first, first - (-8 * len(self.l1) // self.cluster_size)))
            self.refcounts.claim((entry & OFFSET) // self.cluster_size for entry in self.l1 if entry)

    def forget(self) -> None:
        """Give up what :meth:`load` claimed, before another L1 table is loaded."""
        assert self.refcounts is not None
        first = self.header.l1_offset // self.cluster_size
        self.refcounts.metadata.difference_update(range(first, first - (-8 * len(self.l1) // self.cluster_size)))
        self.refcounts.metadata.difference_update((entry & OFFSET) // self.cluster_size for entry in self.l1 if entry)

    def table(self, index: int) -> array[int] | None:
        """L2 table ``index``, not to be changed; None if there is none, so that all its entries are 0."""
        table = self._tables.get(index)
        if table is not None:
            self._tables.move_to_end(index)
            return table
        entry = self.l1[index]
        if not entry:
            return None
        table = unpack_table(self.file.get(entry & OFFSET, self.cluster_size))
        self._keep(index, table)
        return table

    def entry(self, cluster: int) -> int:
        """The entry of the guest's cluster number ``cluster``. Raises OSError."""
        table = self.table(cluster >> self._l2_bits)
        return 0 if table is None else table[cluster & self._mask]

    def empty_run(self, cluster: int, end: int) -> int:
        """How many clusters from ``cluster`` up to ``end`` certainly have entry 0, because their tables are missing."""
        at = cluster
        while at < end and not self.l1[at >> self._l2_bits]:
            at = (at >> self._l2_bits) + 1 << self._l2_bits
        return min(at, end) - cluster

    def _keep(self, index: int, table: array[int]) -> None:
        self._tables[index] = table
        if len(self._tables) > self._most:
            for old in self._tables:
                if old not in self._changes and old != index:
                    del self._tables[old]
                    break

    # Changing

    def prepare(self, cluster: int, count: int = 1) -> None:
        """Make sure that :meth:`set` cannot fail, nor that writing what it changes finds no room on the host.

        For ``count`` clusters from ``cluster`` on, as far as they are in its table. Raises OSError.
        """
        assert self.refcounts is not None
        index = cluster >> self._l2_bits
        table = self.table(index)
        entry = self.l1[index]
        if table is not None and entry & COPIED:
            at = (entry & OFFSET) + 8 * (cluster & self._mask)
            self._reserve(at, min(at + 8 * count, (entry & OFFSET) + self.cluster_size))
            return
        at = self.header.l1_offset + 8 * index
        self._reserve(at, at + 8)
        (place, _) = self.refcounts.allocate(1)
        try:
            self.file.reserve(place * self.cluster_size, self.cluster_size)
        except BaseException:
            self.refcounts.give_back(place, 1)
            raise
        self.refcounts.claim([place])
        if table is None:
            table = array("Q", bytes(self.cluster_size))
        if entry:
            # A snapshot has this table too.
            old = (entry & OFFSET) // self.cluster_size
            self.refcounts.metadata.discard(old)
            self.refcounts.release([old])
        self.l1[index] = place * self.cluster_size | COPIED
        self._l1_changes.add(index)
        self._changes[index] = (0, len(table))
        self._keep(index, table)

    def _reserve(self, start: int, end: int) -> None:
        for page in range(start // _PAGE, -(-end // _PAGE)):
            if page not in self._reserved:
                self.file.reserve(max(start, page * _PAGE), 8)
                self._reserved.add(page)

    def set(self, cluster: int, entry: int) -> None:
        """Change an entry, after :meth:`prepare`."""
        index, at = cluster >> self._l2_bits, cluster & self._mask
        self._tables[index][at] = entry
        first, end = self._changes.get(index, (at, at + 1))
        self._changes[index] = (min(first, at), max(end, at + 1))

    # Writing

    @property
    def changed(self) -> int:
        """How many tables have changes that are not written."""
        return len(self._changes) + bool(self._l1_changes)

    def write_tables(self) -> None:
        """Write the changed part of the L2 tables, sector by sector. Raises OSError."""
        for index, (first, end) in sorted(self._changes.items()):
            first -= first % _SECTOR_ENTRIES
            end = min(-(-end // _SECTOR_ENTRIES) * _SECTOR_ENTRIES, self.cluster_size // 8)
            self.file.put(pack_table(self._tables[index][first:end]), (self.l1[index] & OFFSET) + 8 * first)

    def l1_changed(self) -> bool:
        """Whether the L1 table has changes."""
        return bool(self._l1_changes)

    def write_l1(self) -> None:
        """Write the changed entries of the L1 table, when what they lead to is certain to be there. Raises OSError."""
        for index in sorted(self._l1_changes):
            self.file.put(self.l1[index].to_bytes(8, "big"), self.header.l1_offset + 8 * index)

    def written(self) -> None:
        """All changes are in the file for certain."""
        self._changes.clear()
        self._l1_changes.clear()
        while len(self._tables) > self._most:
            self._tables.popitem(last=False)
