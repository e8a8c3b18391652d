"""A host whose disk is full: what is written says so, and what was written before stays."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from polyvisor.storage.disk import DiskError
from polyvisor.storage.open import open_disk
from polyvisor.storage.qcow2 import check
from polyvisor.storage.qcow2.create import create_qcow2
from polyvisor.storage.qcow2.file import ImageFile
from polyvisor.storage.qcow2.image import Qcow2
from support.disks import no_backing, read, write

BLOCK = 4096


class Crowded(ImageFile):
    """A file on a file system that has room for ``room`` more blocks."""

    room: int
    taken: set[int]

    @classmethod
    def on(cls, path: Path, room: int) -> Crowded:
        file = cls.open(path, False)
        file.room, file.taken = room, set()
        end, size = 0, file.size
        while end < size:
            try:
                start = os.lseek(file.fd, end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fd, start, os.SEEK_HOLE)
            file.taken.update(range(start // BLOCK, -(-end // BLOCK)))
        return file

    def write(self, views: list[memoryview], offset: int) -> None:
        end = offset + sum(map(len, views))
        new = set(range(offset // BLOCK, -(-end // BLOCK))) - self.taken
        if len(new) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= len(new)
        self.taken |= new
        super().write(views, offset)

    def flush(self) -> None:
        pass  # not slowed down by the host's disk

    def discard(self, offset: int, length: int) -> None:
        gone = self.taken & set(range(-(-offset // BLOCK), (offset + length) // BLOCK))
        self.room += len(gone)
        self.taken -= gone
        super().discard(offset, length)


def fill(disk: Qcow2, rnd: random.Random, steps: int, most: int) -> tuple[list[set[bytes]], int]:
    """Random operations on up to ``most`` sectors; gives what each sector may have then, and how many found no room."""
    may: list[set[bytes]] = [{read(disk, 512 * n, 512)} for n in range(disk.size // 512)]
    refused = 0
    for step in range(steps):
        offset = rnd.randrange(disk.size // 512)
        count = min(disk.size // 512 - offset, rnd.choice([1, 8, rnd.randrange(1, most)]))
        data = bytes(512 * count) if rnd.random() < 0.2 else rnd.randbytes(512 * count)
        sectors = [data[512 * n : 512 * n + 512] for n in range(count)]
        try:
            if not any(data):
                disk.zero(512 * offset, 512 * count, rnd.random() < 0.7)
            elif rnd.random() < 0.03:
                disk.snapshot(f"s{step}", seconds=1)
                continue
            else:
                write(disk, 512 * offset, data)
        except OSError as error:
            assert error.errno == errno.ENOSPC or "No space left" in str(error)
            refused += 1
            if any(data):
                for place, sector in enumerate(sectors, offset):
                    may[place].add(sector)
            else:
                for place in range(offset, offset + count):
                    may[place].add(bytes(512))
            continue
        for place, sector in enumerate(sectors, offset):
            may[place] = {sector}
        if rnd.random() < 0.1:
            disk.flush()
    return may, refused


@pytest.mark.parametrize(
    ("bits", "order", "clusters", "room", "most"),
    [(9, 4, 400, 60, 60), (9, 6, 6000, 800, 500), (12, 4, 400, 60, 60), (12, 6, 2000, 700, 500), (16, 4, 60, 60, 60)],
)
def test_what_was_written_before_the_host_was_full_stays(
    tmp_path: Path, bits: int, order: int, clusters: int, room: int, most: int
) -> None:
    for seed in range(8):
        rnd = random.Random(1000 * bits + 10 * order + seed)
        path = tmp_path / f"disk{seed}"
        create_qcow2(path, clusters << bits, cluster_size=1 << bits, refcount_bits=1 << order)
        file = Crowded.on(path, rnd.randrange(4, room))
        disk = Qcow2(file, str(path), no_backing)
        may, refused = fill(disk, rnd, 150, most)
        assert refused
        disk.flush()  # needs no more room
        disk.close()
        after = open_disk(path, False)
        assert isinstance(after, Qcow2)
        report = check.examine(after.file, after.header, after.snapshots)
        assert not report.errors
        for place, allowed in enumerate(may):
            assert read(after, 512 * place, 512) in allowed, (seed, place)
        write(after, 0, b"x" * 512)
        after.close()


def test_a_snapshot_that_has_no_room_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 64 << 20)
    file = Crowded.on(path, 100)
    disk = Qcow2(file, str(path), no_backing)
    write(disk, 0, b"a" * 65536)
    file.room = 0
    with pytest.raises(DiskError, match=r"disk: .*No space left"):
        disk.snapshot("one")
    write(disk, 0, b"b" * 65536)
    file.room = 100
    disk.snapshot("two")
    disk.close()
    after = open_disk(path, False)
    assert isinstance(after, Qcow2)
    assert [each.name for each in after.snapshots] == ["two"]
    assert not after.examine().errors
    assert read(after, 0, 65536) == b"b" * 65536
    after.close()


@pytest.mark.parametrize("writes", range(7))
def test_a_table_of_counts_that_has_no_room_to_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    path = tmp_path / "disk"
    size = 4 << 20
    create_qcow2(path, size, cluster_size=512, refcount_bits=64)
    file = Crowded.on(path, 1 << 20)
    disk = Qcow2(file, str(path), no_backing)
    counts = disk.refcounts
    assert counts is not None
    put, grow, times = file.put, counts._grow_table, 0

    def some(data: bytes, offset: int) -> None:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= 1
        put(data, offset)

    def crowded() -> None:
        nonlocal times
        times += 1
        with monkeypatch.context() as patch:
            if times == 1:
                patch.setattr(file, "put", some)
            grow()

    left = writes
    monkeypatch.setattr(counts, "_grow_table", crowded)
    data = random.Random(writes).randbytes(size)
    refused = 0
    for offset in range(0, size, 16384):
        piece = data[offset : offset + 16384]
        try:
            write(disk, offset, piece)
        except OSError:
            refused += 1
            disk.flush()
            write(disk, offset, piece)
    assert refused == 1 and times > 1
    disk.close()
    after = open_disk(path, False)
    assert isinstance(after, Qcow2)
    assert not after.examine().errors
    assert read(after) == data
    after.close()
