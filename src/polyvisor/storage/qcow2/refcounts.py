"""Reference counts: which clusters of the file are in use, and finding free ones.

A count is raised before anything refers to the cluster, and lowered after nothing does any more: at every moment the
counts in the file are what is needed, or higher. Changes are kept in memory until :meth:`Refcounts.write_new_blocks`
and :meth:`Refcounts.write` are called, with a flush of the file after each.
"""

from __future__ import annotations

import errno
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress

from polyvisor.storage.qcow2.file import ImageFile
from polyvisor.storage.qcow2.layout import (
    MAX_REFCOUNT_TABLE_BYTES,
    OFFSET,
    REFCOUNT_TABLE,
    CorruptError,
    Header,
    empty_counts,
    pack_counts,
    pack_table,
    unpack_counts,
    unpack_table,
)

CACHE_BYTES = 16 << 20
"""Refcount blocks kept in memory, in bytes of the file; those with changes are kept in any case."""


class Refcounts:
    """The counts of an image. Clusters are named by their number, counted from the file's start."""

    def __init__(self, file: ImageFile, header: Header) -> None:
        """Raises CorruptError or OSError."""
        self.file = file
        self.header = header
        self.cluster_size = header.cluster_size
        self.per_block = 8 * self.cluster_size >> header.refcount_order
        """Counts in a block, and so clusters that a block covers."""
        self.maximum = (1 << (1 << header.refcount_order)) - 1
        self.metadata: set[int] = set()
        """Clusters that hold the header or tables in use, and so never a guest's data."""
        length = header.refcount_table_clusters * self.cluster_size
        offset = header.refcount_table_offset
        if not 0 < length <= MAX_REFCOUNT_TABLE_BYTES or offset % self.cluster_size or not 0 < offset < file.size:
            raise CorruptError(f"the refcount table is at {offset:#x}, with {length} bytes")
        self._table = unpack_table(file.get(offset, length))
        self._blocks: OrderedDict[int, array[int]] = OrderedDict()
        self._most = max(4, CACHE_BYTES // self.cluster_size)
        self._reserved: set[int] = set()  # blocks that have taken their room on the host's disk
        self.dirty: set[int] = set()
        """Numbers of the blocks that the file does not have as they are here."""
        self._new: list[int] = []
        self._released: list[int] = []
        self._hint = 0
        self._end = -(-file.size // self.cluster_size)
        for entry in filter(None, self._table):
            if entry & (self.cluster_size - 1) or entry >= file.size:
                raise CorruptError(f"the refcount table leads to {entry:#x}")
        self.claim(range(1))
        self.claim(self._clusters(offset, length))
        self.claim(entry // self.cluster_size for entry in self._table if entry)

    def _clusters(self, offset: int, length: int) -> range:
        return range(offset // self.cluster_size, -(-(offset + length) // self.cluster_size))

    def claim(self, clusters: Iterable[int]) -> None:
        """Note that a table in use is there. Raises CorruptError if another one is."""
        for cluster in clusters:
            if cluster in self.metadata:
                raise CorruptError(f"two tables are at {cluster * self.cluster_size:#x}")
            self.metadata.add(cluster)

    # One count

    def get(self, cluster: int) -> int:
        """How many refer to ``cluster``. Raises OSError."""
        block = self.block(cluster // self.per_block)
        return block[cluster % self.per_block] if block is not None else 0

    def set(self, cluster: int, count: int) -> None:
        """Change a count in memory; there must be a block for it unless ``count`` is 0. Raises OSError."""
        index, at = divmod(cluster, self.per_block)
        block = self.block(index)
        if block is None:
            if count:
                raise CorruptError(f"cluster {cluster:#x} is in use and has no reference count")
            return
        if block[at] != count:
            block[at] = count
            self.dirty.add(index)
            if not count:
                self._hint = min(self._hint, cluster)

    @property
    def entries(self) -> int:
        """How many blocks the table has room for."""
        return len(self._table)

    def block(self, index: int) -> array[int] | None:
        """The counts of block ``index``, not to be changed; None stands for zeroes. Raises OSError."""
        block = self._blocks.get(index)
        if block is not None:
            self._blocks.move_to_end(index)
            return block
        if index >= len(self._table) or not self._table[index]:
            return None
        data = self.file.get(self._table[index] & OFFSET, self.cluster_size)
        block = self._blocks[index] = unpack_counts(data, self.header.refcount_order)
        if len(self._blocks) > self._most:
            for old in self._blocks:
                if old not in self.dirty and old != index:
                    del self._blocks[old]
                    break
        return block

    def assign(self, counts: array[int], lower: bool) -> None:
        """Let the counts be ``counts``, one for each cluster of the file, but no lower unless ``lower``.

        Raises OSError.
        """
        for index in range(len(self._table)):
            block = self.block(index)
            wanted = counts[index * self.per_block : (index + 1) * self.per_block]
            if block is None:
                if any(wanted):
                    raise CorruptError(f"clusters from {index * self.per_block:#x} on are in use and not counted")
                continue
            for at, (old, new) in enumerate(zip(block, wanted, strict=False)):
                if new > old or (lower and new < old):
                    self.set(index * self.per_block + at, new)
            if lower and any(block[len(wanted) :]):  # of clusters that the file does not have
                for at in range(len(wanted), self.per_block):
                    self.set(index * self.per_block + at, 0)

    # Finding and giving back clusters

    def allocate(self, count: int) -> tuple[int, int]:
        """Take up to ``count`` clusters in a row, at least one: gives the first one and how many. Raises OSError."""
        cluster = self._hint
        while True:
            index, at = divmod(cluster, self.per_block)
            block = self.block(index) or self._add_block(index)
            try:
                at = block.index(0, at)
            except ValueError:
                cluster = (index + 1) * self.per_block
                continue
            first = index * self.per_block + at
            end = at + 1
            while end < min(at + count, self.per_block) and not block[end]:
                end += 1
            self._take(block, index, at, end)
            self._hint = index * self.per_block + end
            return first, end - at

    def allocate_row(self, count: int) -> int:
        """Take ``count`` clusters in a row, at the end of the file: gives the first one. Raises OSError."""
        first = self._end
        while True:
            for cluster in range(first, first + count):
                index, at = divmod(cluster, self.per_block)
                block = self.block(index) or self._add_block(index)
                if block[at]:
                    first = cluster + 1
                    break
            else:
                break
        for cluster in range(first, first + count):
            index, at = divmod(cluster, self.per_block)
            try:
                self._take(self.block(index) or self._add_block(index), index, at, at + 1)
            except OSError:
                self.give_back(first, cluster - first)
                raise
        return first

    def _take(self, block: array[int], index: int, at: int, end: int) -> None:
        first = index * self.per_block
        if index not in self._reserved:  # one that was in the file, and may have been copied without its zeroes
            self.file.reserve(self._table[index] & OFFSET, self.cluster_size)
            self._reserved.add(index)
        if not self.metadata.isdisjoint(range(first + at, first + end)):
            raise CorruptError(f"a table near {(first + at) * self.cluster_size:#x} is counted as free")
        for place in range(at, end):
            block[place] = 1
        self.dirty.add(index)
        self._end = max(self._end, first + end)

    def give_back(self, first: int, count: int) -> None:
        """Free clusters that nothing in the file refers to, at once."""
        for cluster in range(first, first + count):
            self.set(cluster, 0)

    def release(self, clusters: Iterable[int]) -> None:
        """One reference less to each, once the file's tables say so too: see :meth:`lower`."""
        self._released.extend(clusters)

    def lower(self) -> None:
        """Count what was released. To be called when nothing in the file refers to it any more. Raises OSError."""
        released, self._released = sorted(self._released), []
        freed: list[int] = []
        for cluster in released:
            count = self.get(cluster)
            if not count:
                raise CorruptError(f"cluster {cluster:#x} was in use and is counted as free")
            self.set(cluster, count - 1)
            if count == 1:
                freed.append(cluster)
        start = 0
        for at in range(1, len(freed) + 1):
            if at == len(freed) or freed[at] != freed[at - 1] + 1:
                with suppress(OSError):  # the space stays taken
                    self.file.discard(freed[start] * self.cluster_size, (at - start) * self.cluster_size)
                start = at

    # Blocks and the table

    def _add_block(self, index: int) -> array[int]:
        """A block for clusters that nothing counted before: it is in the first of them."""
        while index >= len(self._table):  # more than once where the file has much behind all that is counted
            self._grow_table()
        block = self.block(index)
        if block is not None:
            return block
        return self._put_block(index, index * self.per_block)

    def _put_block(self, index: int, cluster: int) -> array[int]:
        self.file.reserve(cluster * self.cluster_size, self.cluster_size)
        if 8 * index < self.header.refcount_table_clusters * self.cluster_size:
            self.file.reserve(self.header.refcount_table_offset + 8 * index, 8)
        self._reserved.add(index)
        self.claim([cluster])
        block = self._blocks[index] = empty_counts(self.per_block, self.header.refcount_order)
        self._table[index] = cluster * self.cluster_size
        self._new.append(index)
        self.dirty.add(index)
        if cluster // self.per_block == index:
            block[cluster % self.per_block] = 1
        self._end = max(self._end, cluster + 1)
        return block

    def _grow_table(self) -> None:
        """Move the table to where there is room for more entries, behind all that the old one covers."""
        covered = len(self._table)
        start = covered * self.per_block
        entries = covered * 3 // 2 + 1
        while True:
            clusters = -(-8 * entries // self.cluster_size)
            blocks = 1
            while blocks * self.per_block < clusters + blocks:
                blocks += 1
            if clusters * self.cluster_size >= 8 * (covered + blocks):
                break
            entries = covered + blocks
        if clusters * self.cluster_size > MAX_REFCOUNT_TABLE_BYTES:
            raise OSError(errno.EFBIG, "the image cannot become larger with clusters of this size")
        old = self._clusters(self.header.refcount_table_offset, self.header.refcount_table_clusters * self.cluster_size)
        before = self._end
        try:
            self._table.extend([0] * (clusters * self.cluster_size // 8 - covered))
            for number in range(blocks):
                self._put_block(covered + number, start + number)
            for cluster in range(start, start + blocks + clusters):
                index, at = divmod(cluster, self.per_block)
                self._blocks[index][at] = 1
            self.claim(range(start + blocks, start + blocks + clusters))
            self._end = max(self._end, start + blocks + clusters)
            self._write_blocks(self._new)
            self.file.put(pack_table(self._table), (start + blocks) * self.cluster_size)
            self.file.flush()
            self.switch_table((start + blocks) * self.cluster_size, clusters)
        except BaseException:
            # The header leads to the old table, which has no room for the new blocks.
            for index in range(covered, covered + blocks):
                self._blocks.pop(index, None)
            self.dirty.difference_update(range(covered, covered + blocks))
            self._reserved.difference_update(range(covered, covered + blocks))
            self._new = [index for index in self._new if index < covered]
            self.metadata.difference_update(range(start, start + blocks + clusters))
            del self._table[covered:]
            self._end = before
            raise
        self._new.clear()
        self.metadata.difference_update(old)
        self.release(old)

    def switch_table(self, offset: int, clusters: int) -> None:
        """Let the header lead to another table, which is in the file already. Raises OSError."""
        place, form = REFCOUNT_TABLE
        self.file.put(form.pack(offset, clusters), place)
        self.file.flush()
        self.header.refcount_table_offset = offset
        self.header.refcount_table_clusters = clusters

    # Writing

    def has_new_blocks(self) -> bool:
        """Whether there are blocks that the file's table does not lead to yet."""
        return bool(self._new)

    def has_released(self) -> bool:
        """Whether :meth:`lower` has something to do."""
        return bool(self._released)

    def write_new_blocks(self) -> None:
        """Write the blocks that the file's table is to lead to. Raises OSError."""
        self._write_blocks(self._new)

    def write(self) -> None:
        """Write all blocks with changes, and the table's entries for new ones. Raises OSError."""
        for index in self._new:
            self.file.put(self._table[index].to_bytes(8, "big"), self.header.refcount_table_offset + 8 * index)
        self._new.clear()
        self._write_blocks(sorted(self.dirty))
        self.file.extend(self._end * self.cluster_size)
        self.dirty.clear()

    def _write_blocks(self, indexes: Iterable[int]) -> None:
        for index in indexes:
            data = pack_counts(self._blocks[index], self.header.refcount_order)
            self.file.put(data, self._table[index] & OFFSET)
