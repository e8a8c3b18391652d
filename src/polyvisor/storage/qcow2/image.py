"""A qcow2 image as a disk.

Data are written at once, tables when the disk is flushed (or too many have changed), in this order, with a flush of the
file after each step: refcount blocks that the refcount table does not know yet; reference counts, which also makes the
data certain; L2 tables; L1 entries of new L2 tables. What nothing refers to any more is counted as free after that. So
a crash at any moment leaves an image with all that was flushed, in which some clusters may be counted as used that are
not. The dirty bit is not needed for that; only changes of snapshots set it.

Tables take their room on the host's disk before any data are written that they are to lead to. So what does not fit
there is an error when it is written, and what has been written can be flushed.
"""

from __future__ import annotations

import errno
import os
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import zstandard

from polyvisor.storage.disk import SECTOR, Disk, DiskError, clear, divide, total, zeroes
from polyvisor.storage.qcow2 import check
from polyvisor.storage.qcow2.file import ImageFile
from polyvisor.storage.qcow2.layout import (
    AUTOCLEAR,
    COMPRESSED,
    COPIED,
    CORRUPT,
    DIRTY,
    INCOMPATIBLE,
    MAX_CLUSTER_BITS,
    MAX_L1_BYTES,
    OFFSET,
    SIZE_AND_L1,
    ZERO,
    CorruptError,
    Header,
    Snapshot,
    bad_bits,
    compressed_range,
    pack_table,
    parse_header,
)
from polyvisor.storage.qcow2.mapping import Mapping
from polyvisor.storage.qcow2.refcounts import Refcounts
from polyvisor.storage.qcow2.snapshots import read_snapshots, replace_snapshots, revert
from polyvisor.storage.raw import reason

_CHANGED_BYTES = 16 << 20
_DECOMPRESSED_BYTES = 8 << 20
_EXTENT = 1 << 34

BackingOpener = Callable[[str, str | None], Disk]
"""Opens a backing file, given its name and format as the header has them. Raises DiskError."""


def read_header(file: ImageFile, name: str) -> Header:
    """The header of ``file``. Raises DiskError."""
    start = file.get(0, min(file.size, SECTOR))
    bits = min(int.from_bytes(start[20:24], "big"), MAX_CLUSTER_BITS)
    return parse_header(file.get(0, min(file.size, max(SECTOR, 1 << bits))), name)


class Qcow2:
    """A disk in the qcow2 image ``file``; see :class:`polyvisor.storage.disk.Disk` for what is not described here."""

    def __init__(self, file: ImageFile, name: str, open_backing: BackingOpener) -> None:
        """Takes ``file`` over. Raises DiskError if it cannot be used, or not be written although it is to be."""
        self.file = file
        self.name = name
        self.read_only = file.read_only
        self.backing: Disk | None = None
        self._broken: OSError | None = None
        try:
            header = self.header = read_header(file, name)
            if not self.read_only and header.incompatible & CORRUPT:
                raise DiskError(f"{name}: the image is marked as corrupt, and so can only be read")
            self.snapshots: list[Snapshot] = read_snapshots(file, header)
            self.repaired = False
            if not self.read_only and header.incompatible & DIRTY:
                check.rebuild(file, header, self.snapshots)
                self.repaired = True
            self.refcounts = None if self.read_only else Refcounts(file, header)
            self.mapping = Mapping(file, header, self.refcounts)
            if header.backing_file is not None:
                self.backing = open_backing(header.backing_file, header.backing_format)
            if self.repaired:
                self._set_dirty(False)
            if not self.read_only and header.autoclear:
                header.autoclear = 0
                self._patch(AUTOCLEAR, 0)
        except CorruptError as error:
            self._close()
            raise DiskError(f"{name}: the image is damaged: {error}") from error
        except DiskError:
            self._close()
            raise
        except OSError as error:
            self._close()
            raise DiskError(f"{name}: cannot read the image: {reason(error)}") from error
        self._bits = header.cluster_bits
        self._cluster = header.cluster_size
        self._mask = header.cluster_size - 1
        self._zero = ZERO if header.version >= 3 else 0
        self._bad = bad_bits(header.cluster_bits) | (ZERO ^ self._zero)
        self._special = COMPRESSED | self._zero
        self._most_changed = max(8, min(4096, _CHANGED_BYTES >> header.cluster_bits))
        self._decompressed: OrderedDict[int, bytes] = OrderedDict()

    def examine(self) -> check.Report:
        """Check all tables. Raises OSError."""
        if not self.read_only:
            self.flush()
        return check.examine(self.file, self.header, self.snapshots)

    def repair(self) -> None:
        """Count all references anew, which frees what is lost, and correct flags. Raises OSError."""
        with self._changing():
            self._commit_all()
            self._set_dirty(True)
            check.rebuild(self.file, self.header, self.snapshots)
            self._set_dirty(False)
            refcounts = self.refcounts = self.mapping.refcounts = Refcounts(self.file, self.header)
            assert refcounts is not None
            self.mapping.load()

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], read_only: bool, open_backing: BackingOpener, shared: bool = False
    ) -> Self:
        """Open and lock as :meth:`polyvisor.storage.raw.RawFile.open` does. Raises DiskError."""
        return cls(ImageFile.open(path, read_only, shared), os.fspath(path), open_backing)

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.header.size

    # Reading

    def read(self, views: list[memoryview], offset: int) -> None:
        """Fill ``views`` from ``offset`` on. Raises OSError."""
        length = total(views)
        within = offset & self._mask
        if 0 < length <= self._cluster - within:
            entry = self.mapping.entry(offset >> self._bits)
            if entry & OFFSET and not entry & (self._special | self._bad):
                # The most frequent case, without what the others need.
                self.file.read(views, (entry & OFFSET) + within)
                return
        while length:
            entry, count = self._run(offset, length)
            if count == length:
                self._read(entry, views, offset)
                return
            first, views = divide(views, count)
            self._read(entry, first, offset)
            offset += count
            length -= count

    def _run(self, offset: int, length: int) -> tuple[int, int]:
        """The entry for ``offset``, and how many bytes, up to ``length``, go on the same way.

        That is: in the same compressed cluster, in clusters of zeroes, in ones that were not written, or one behind
        the other in the file. Raises OSError.
        """
        entry_of = self.mapping.entry
        cluster = offset >> self._bits
        entry = entry_of(cluster)
        span = self._cluster - (offset & self._mask)
        if not entry:
            end = offset + length + self._mask >> self._bits
            while span < length:
                cluster = offset + span >> self._bits
                run = self.mapping.empty_run(cluster, end) or (not entry_of(cluster))
                if not run:
                    break
                span += run << self._bits
        elif entry & COMPRESSED:
            pass
        elif entry & self._bad or not entry & (OFFSET | self._zero):
            raise CorruptError(f"the disk's cluster {cluster:#x} has the impossible entry {entry:#x}")
        elif entry & self._zero:
            while span < length and entry_of(offset + span >> self._bits) & self._special == self._zero:
                span += self._cluster
        else:
            following = entry & ~COPIED
            while span < length:
                following += self._cluster
                if entry_of(offset + span >> self._bits) & ~COPIED != following:
                    break
                span += self._cluster
        return entry, min(span, length)

    def _read(self, entry: int, views: list[memoryview], offset: int) -> None:
        """Fill ``views``, whose bytes all are where ``entry`` says."""
        if not entry:
            if self.backing is None or offset >= self.backing.size:
                clear(views)
                return
            inside = self.backing.size - offset
            if total(views) > inside:
                views, outside = divide(views, inside)
                clear(outside)
            self.backing.read(views, offset)
        elif entry & COMPRESSED:
            data = memoryview(self._decompress(entry))
            at = offset & self._mask
            for view in views:
                view[:] = data[at : at + len(view)]
                at += len(view)
        elif entry & self._zero:
            clear(views)
        else:
            self.file.read(views, (entry & OFFSET) + (offset & self._mask))

    def _decompress(self, entry: int) -> bytes:
        known = self._decompressed.get(entry)
        if known is not None:
            self._decompressed.move_to_end(entry)
            return known
        offset, length = compressed_range(entry & ~COPIED, self._bits)
        packed = self.file.get(offset, length)
        try:
            if self.header.compression == "zstd":
                data = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed).read(self._cluster)
            else:
                # There are at most 12 bits of window, and no checksum.
                data = zlib.decompressobj(-15).decompress(packed, self._cluster)
        except (zlib.error, zstandard.ZstdError) as error:
            raise CorruptError(f"the compressed cluster at {offset:#x} is damaged: {error}") from error
        if len(data) != self._cluster:
            raise CorruptError(f"the compressed cluster at {offset:#x} has {len(data)} bytes")
        self._decompressed[entry] = data
        if len(self._decompressed) > max(1, _DECOMPRESSED_BYTES // self._cluster):
            self._decompressed.popitem(last=False)
        return data

    def extent(self, offset: int) -> tuple[bool, int]:
        """Whether bytes from ``offset`` on may be other than zero, and for how many bytes that holds."""
        return self._extent(offset, min(self.size - offset, _EXTENT))

    def _extent(self, offset: int, length: int) -> tuple[bool, int]:
        """As :meth:`extent`, up to ``length`` bytes."""
        entry, count = self._run(offset, length)
        if entry:
            return bool(entry & COMPRESSED or not entry & self._zero), count
        if self.backing is None or offset >= self.backing.size:
            return False, count
        data, below = self.backing.extent(offset)
        return data, min(count, below)

    # Writing

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Around every change: there is none any more after the image has turned out to be damaged."""
        if self.read_only:
            raise OSError(errno.EROFS, "the image is open for reading only")
        if self._broken is not None:
            raise self._broken
        try:
            yield
        except CorruptError as error:
            self._broken = error
            raise

    def _mutable(self) -> Refcounts:
        assert self.refcounts is not None
        return self.refcounts

    def write(self, views: list[memoryview], offset: int) -> None:
        """Write ``views`` to ``offset`` on. Raises OSError."""
        with self._changing():
            length = total(views)
            while length:
                entry, count = self._run(offset, length)
                in_place = entry & COPIED and not entry & self._special
                if in_place:
                    count = self._copied_run(offset, count)
                first, rest = (views, []) if count == length else divide(views, count)
                if in_place:
                    self._write_in_place(first, (entry & OFFSET) + (offset & self._mask), count)
                else:
                    done = self._write_new(entry, first, offset, count)
                    if done < count:
                        _, rest = divide(views, done)
                        count = done
                views = rest
                offset += count
                length -= count
            self._limit()

    def _copied_run(self, offset: int, count: int) -> int:
        """How many of ``count`` bytes are in clusters in a row that all are this disk's alone."""
        span = self._cluster - (offset & self._mask)
        while span < count and self.mapping.entry(offset + span >> self._bits) & COPIED:
            span += self._cluster
        return min(span, count)

    def _write_in_place(self, views: list[memoryview], host: int, count: int) -> None:
        if not self._mutable().metadata.isdisjoint(range(host >> self._bits, host + count + self._mask >> self._bits)):
            raise CorruptError(f"data at {host:#x} are where a table is")
        self.file.write(views, host)

    def _write_new(self, entry: int, views: list[memoryview], offset: int, count: int) -> int:
        """Write what now is as ``entry`` says to clusters of its own; gives how many bytes were written."""
        refcounts, mapping = self._mutable(), self.mapping
        cluster = offset >> self._bits
        head = offset & self._mask
        in_table = (1 << self.header.l2_bits) - (cluster & (1 << self.header.l2_bits) - 1)
        wanted = min(head + count + self._mask >> self._bits, in_table)
        mapping.prepare(cluster, wanted)
        reused = entry & COPIED and entry & OFFSET and not entry & COMPRESSED
        if reused:
            # Zeroes that have a place in the file.
            first, number, fresh = (entry & OFFSET) >> self._bits, 1, False
            if first in refcounts.metadata:
                raise CorruptError(f"data at {entry & OFFSET:#x} are where a table is")
        else:
            first, number = refcounts.allocate(wanted)
            fresh = first << self._bits >= self.file.size
        host = first << self._bits
        count = min(count, (number << self._bits) - head)
        try:
            views, _ = divide(views, count)
            before = self._old(offset - head, head)
            after = self._old(offset + count, -(head + count) & self._mask)
            at = host
            if before is not None:
                views = before + views
            elif fresh:
                at += head
            else:
                views = zeroes(head) + views
            if after is not None:
                views = views + after
            elif not fresh:
                views = views + zeroes(-(head + count) & self._mask)
            self.file.write(views, at)
        except BaseException:
            if not reused:
                refcounts.give_back(first, number)
            raise
        old = [mapping.entry(cluster + i) for i in range(number)]
        for i in range(number):
            mapping.set(cluster + i, host + (i << self._bits) | COPIED)
        if not reused:
            for each in old:
                self._release(each)
        return count

    def _old(self, offset: int, length: int) -> list[memoryview] | None:
        """What the disk has there, and zeroes behind its end; None if all is zeroes."""
        inside = max(0, min(length, self.size - offset))
        at, end = offset, offset + inside
        while at < end:
            data, count = self._extent(at, end - at)
            if data:
                break
            at += count
        else:
            return None
        buffer = memoryview(bytearray(length))
        self.read([buffer[:inside]], offset)
        return [buffer]

    def _release(self, entry: int) -> None:
        """Nothing uses what ``entry`` leads to any more."""
        if entry & COMPRESSED:
            offset, length = compressed_range(entry & ~COPIED, self._bits)
            self._decompressed.pop(entry, None)
            self._mutable().release(range(offset >> self._bits, (offset + length - 1 >> self._bits) + 1))
        elif entry & OFFSET:
            self._mutable().release([(entry & OFFSET) >> self._bits])

    # Giving back

    def discard(self, offset: int, length: int) -> None:
        """Free the whole clusters in the range, which read as zeroes then; leave the rest alone. Raises OSError."""
        if self.backing is not None and not self._zero:
            return  # nothing but data can hide what the backing file has
        with self._changing():
            self._each(offset, length, self._discard_run)

    def zero(self, offset: int, length: int, unmap: bool) -> None:
        """Let the range read as zeroes; only with ``unmap`` may its space be given back. Raises OSError."""
        with self._changing():
            end = offset + length
            first = min(-(-offset // self._cluster) * self._cluster, end)
            last = end if end == self.size else max(first, end // self._cluster * self._cluster)
            self._write_zeroes(offset, first)
            self._each(first, last - first, self._unmap_run if unmap else self._zero_run)
            self._write_zeroes(last, end)

    def _each(self, offset: int, length: int, change: Callable[[int, int, int], None]) -> None:
        """Call ``change(entry, first, end)`` for each run of whole clusters in the range."""
        end = offset + length
        end = -(-end // self._cluster) * self._cluster if end == self.size else end // self._cluster * self._cluster
        offset = -(-offset // self._cluster) * self._cluster
        while offset < end:
            entry, count = self._run(offset, end - offset)
            change(entry, offset >> self._bits, offset + count >> self._bits)
            offset += count
            self._limit()

    def _set_run(self, first: int, end: int, entry_for: Callable[[int], int]) -> None:
        for cluster in range(first, end):
            self.mapping.prepare(cluster)
            old = self.mapping.entry(cluster)
            new = entry_for(old)
            if new != old:
                self.mapping.set(cluster, new)
                if not new & OFFSET:
                    self._release(old)

    def _discard_run(self, entry: int, first: int, end: int) -> None:
        if entry & ~(COPIED | self._zero):
            self._set_run(first, end, lambda old: self._zero if self.backing is not None else 0)

    def _unmap_run(self, entry: int, first: int, end: int) -> None:
        if not entry and not self._backed(first):
            return
        if self.backing is not None and not self._zero:
            self._write_zeroes(first << self._bits, end << self._bits)
        elif entry & ~(COPIED | self._zero) or not entry:
            self._set_run(first, end, lambda old: self._zero if self.backing is not None else 0)

    def _zero_run(self, entry: int, first: int, end: int) -> None:
        """Without giving back what has a place: such clusters keep it, and read as zeroes by their flag."""
        if not entry and not self._backed(first):
            return
        if not self._zero:
            self._write_zeroes(first << self._bits, end << self._bits)
            return

        def flagged(old: int) -> int:
            return self._zero | (old & (OFFSET | COPIED) if old & COPIED and not old & COMPRESSED else 0)

        if entry & COMPRESSED or not entry & self._zero:
            self._set_run(first, end, flagged)

    def _backed(self, cluster: int) -> bool:
        return self.backing is not None and cluster << self._bits < self.backing.size

    def _write_zeroes(self, offset: int, end: int) -> None:
        end = min(end, self.size)
        while offset < end:
            data, count = self._extent(offset, min(end - offset, 1 << 20))
            if data:
                self.write(zeroes(count), offset)
            offset += count

    # Flushing

    def _limit(self) -> None:
        """Write tables when many have changed, so that they do not fill memory."""
        if self.mapping.changed + len(self._mutable().dirty) > self._most_changed:
            self._commit()

    def _commit(self) -> None:
        refcounts, mapping, file = self._mutable(), self.mapping, self.file
        if refcounts.has_new_blocks():
            refcounts.write_new_blocks()
            file.flush()
        if refcounts.dirty:
            refcounts.write()
        file.flush()
        if mapping.changed:
            mapping.write_tables()
            if mapping.l1_changed():
                file.flush()
                mapping.write_l1()
            file.flush()
            mapping.written()
        if refcounts.has_released():
            refcounts.lower()

    def flush(self) -> None:
        """Make all that was written survive a crash of the host. Raises OSError."""
        if not self.read_only:
            with self._changing():
                self._commit()

    def close(self) -> None:
        """Write what is not written yet and release the files; may be repeated. DiskError: closed all the same."""
        try:
            if self.file.fd >= 0 and not self.read_only and self._broken is None:
                with self._changing():
                    self._commit_all()
        except OSError as error:
            raise DiskError(f"{self.name}: what was written last is lost: {reason(error)}") from error
        finally:
            self._close()

    def _close(self) -> None:
        self.file.close()
        if self.backing is not None:
            self.backing.close()

    # Changes of the header

    def _patch(self, part: tuple[int, object], *values: int) -> None:
        place, form = part
        self.file.put(form.pack(*values), place)  # type: ignore[attr-defined]
        self.file.flush()

    def _set_dirty(self, dirty: bool) -> None:
        if self.header.version >= 3:
            wanted = self.header.incompatible & ~DIRTY | (DIRTY if dirty else 0)
            self._patch(INCOMPATIBLE, wanted)
            self.header.incompatible = wanted

    def _switch_l1(self, offset: int, entries: int, size: int) -> None:
        """Let the header lead to another L1 table, and say another size. All in it must be in the file for certain."""
        self.mapping.forget()
        self._patch(SIZE_AND_L1, size, 0, entries, offset)
        self.header.l1_offset, self.header.l1_size, self.header.size = offset, entries, size
        self.mapping.load()

    # Size and snapshots

    def resize(self, size: int) -> None:
        """Let the disk have ``size`` bytes; what is new reads as zeroes. Raises DiskError, also if it would shrink."""
        old = self.size
        if size < old:
            raise DiskError(f"{self.name}: the disk has {old} bytes; making it smaller is not supported")
        if size % SECTOR:
            raise DiskError(f"{self.name}: {size} bytes are not a multiple of {SECTOR}")
        entries = self.header.l1_entries(size)
        if 8 * entries > MAX_L1_BYTES:
            raise DiskError(f"{self.name}: {size} bytes are too many for clusters of {self._cluster} bytes")
        if self.header.version < 3 and self.snapshots:
            raise DiskError(f"{self.name}: an image of version 2 with snapshots cannot be resized")
        covered = self.backing.size if self.backing is not None else 0
        if not self._zero and covered > old:
            raise DiskError(f"{self.name}: version 2 cannot hide the rest of the larger backing file")
        with self._changing():
            self._commit()
            refcounts, mapping = self._mutable(), self.mapping
            l1_size, l1_offset = len(mapping.l1), self.header.l1_offset
            if entries > l1_size:
                row = -(-8 * entries // self._cluster)
                first = refcounts.allocate_row(row)
                data = pack_table(mapping.l1).ljust(row * self._cluster, b"\0")
                self.file.put(data, first << self._bits)
                self._commit()
                self._switch_l1(first << self._bits, entries, old)
                if l1_size:
                    start = l1_offset >> self._bits
                    refcounts.release(range(start, start - (-8 * l1_size // self._cluster)))
            # Behind the old end the backing file must not appear, nor what is left in the last cluster.
            self.header.size = size
            try:
                if old & self._mask:
                    self._write_zeroes(old, min(size, (old | self._mask) + 1))
                if covered > old:
                    self.zero(old, min(size, covered) - old, True)
                self._commit()
            finally:
                self.header.size = old
            self._patch(SIZE_AND_L1, size, 0, self.header.l1_size, self.header.l1_offset)
            self.header.size = size

    def snapshot(self, name: str, seconds: int | None = None) -> Snapshot:
        """Keep the disk's content under ``name``; ``seconds``: when, since 1970. Raises DiskError or OSError."""
        if any(name == each.name for each in self.snapshots):
            raise DiskError(f"{self.name}: there is a snapshot {name!r} already")
        if not name or len(name.encode(errors="surrogateescape")) > 255:
            raise DiskError(f"{self.name}: the name of a snapshot has 1 to 255 bytes")
        numbers = (int(s.identity) for s in self.snapshots if s.identity.isdecimal() and len(s.identity) < 20)
        identity = str(max(numbers, default=0) + 1)
        now = time.time_ns() if seconds is None else seconds * 1_000_000_000
        new = Snapshot(
            identity, name, 0, len(self.mapping.l1), now // 1_000_000_000, now % 1_000_000_000, disk_size=self.size
        )
        with self._changing():
            self._commit_all()
            replace_snapshots(self, [*self.snapshots, new], new)
        return new

    def find_snapshot(self, name: str) -> Snapshot:
        """The snapshot with this name, or else this ID. Raises DiskError."""
        for each in self.snapshots:
            if each.name == name:
                return each
        for each in self.snapshots:
            if each.identity == name:
                return each
        raise DiskError(f"{self.name}: there is no snapshot {name!r}")

    def look_at_snapshot(self, name: str) -> None:
        """Let the disk, open for reading only, have what the snapshot kept. Raises DiskError or OSError."""
        wanted = self.find_snapshot(name)
        if not self.read_only:
            raise DiskError(f"{self.name}: only a disk that is open for reading can show a snapshot")
        self.header.l1_offset, self.header.l1_size = wanted.l1_offset, wanted.l1_size
        if wanted.disk_size is not None:
            self.header.size = wanted.disk_size
        try:
            self.mapping.load()
        except CorruptError as error:
            raise DiskError(f"{self.name}: the snapshot {name!r} is damaged: {error}") from error

    def delete_snapshot(self, name: str) -> None:
        """Forget the snapshot with this name or ID. Raises DiskError or OSError."""
        old = self.find_snapshot(name)
        with self._changing():
            self._commit_all()
            replace_snapshots(self, [each for each in self.snapshots if each is not old], None)

    def apply_snapshot(self, name: str) -> None:
        """Let the disk be as it was when the snapshot with this name or ID was made. Raises DiskError or OSError."""
        wanted = self.find_snapshot(name)
        with self._changing():
            self._commit_all()
            revert(self, wanted)

    def _commit_all(self) -> None:
        """Write all tables, and counts that only then become lower too."""
        self._commit()
        self._commit()

    @contextmanager
    def snapshots_changing(self) -> Iterator[None]:
        """Mark the image as dirty meanwhile; after an OSError it stays that, and is to be opened anew."""
        self._set_dirty(True)
        try:
            yield
        except DiskError:  # refused, and nothing changed
            self._set_dirty(False)
            raise
        except OSError as error:
            self._broken = error
            raise
        self._set_dirty(False)
