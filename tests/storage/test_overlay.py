"""Changes that are thrown away."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from polyvisor.storage.convert import convert
from polyvisor.storage.open import open_disk
from polyvisor.storage.overlay import Layer, Overlay, block_runs, block_size, kept
from polyvisor.storage.raw import RawFile
from support.disks import fill, read, write


def test_whole_blocks_are_written_without_a_look_at_the_base(tmp_path: Path) -> None:
    fill(tmp_path / "raw", 64 << 10, 1)
    base = open_disk(tmp_path / "raw", True)
    reads: list[int] = []
    base.read = lambda views, offset: reads.append(offset)  # type: ignore[method-assign]
    disk = Overlay(base, tmp_path)
    for offset in range(0, 32 << 10, 8192):
        write(disk, offset, b"x" * 8192)
    disk.zero(32 << 10, 4096, True)
    assert reads == []
    write(disk, 40 << 10, b"x" * 4608)
    assert reads == [44 << 10]
    disk.close()


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_random_operations_leave_the_base_alone(tmp_path: Path, form: str) -> None:
    model = bytearray(fill(tmp_path / "raw", 1_234_432, 4))
    base = tmp_path / "base"
    source = open_disk(tmp_path / "raw", True)
    convert(source, base, form)
    source.close()
    before = base.read_bytes()
    disk = Overlay(open_disk(base, True, form), tmp_path)
    assert disk.size == len(model) and not disk.read_only
    rnd = random.Random(2)
    for _ in range(600):
        offset = rnd.randrange(len(model) // 512) * 512
        length = min(len(model) - offset, rnd.choice([512, 4096, 512 * rnd.randrange(1, 100)]))
        chance = rnd.random()
        if chance < 0.4:
            data = rnd.randbytes(length)
            write(disk, offset, data, rnd.randrange(length))
            model[offset : offset + length] = data
        elif chance < 0.5:
            disk.zero(offset, length, rnd.random() < 0.5)
            model[offset : offset + length] = bytes(length)
        elif chance < 0.6:
            disk.discard(offset, length)
            model[offset : offset + length] = read(disk, offset, length)
        elif chance < 0.7:
            data_here, run = disk.extent(offset)
            assert run > 0 and (data_here or not any(model[offset : offset + run]))
        else:
            assert read(disk, offset, length) == model[offset : offset + length]
    disk.flush()
    assert read(disk) == model
    disk.close()
    disk.close()
    assert base.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "raw"]


def test_changes_stand_on_changes_and_can_be_told(tmp_path: Path) -> None:
    size = 1_234_432
    model = bytearray(fill(tmp_path / "raw", size, 4))
    rnd = random.Random(3)
    disk = Overlay(open_disk(tmp_path / "raw", True), tmp_path)

    def change(times: int) -> None:
        for _ in range(times):
            offset = rnd.randrange(size // 512) * 512
            data = rnd.randbytes(min(size - offset, 512 * rnd.randrange(1, 20)))
            write(disk, offset, data, rnd.randrange(len(data)))
            model[offset : offset + len(data)] = data

    def stored(runs: list[tuple[int, int]], name: str) -> Layer:
        """The blocks in a file, over what was there before."""
        here = bytearray(-(-size // block_size(size)))
        path = tmp_path / name
        with path.open("wb") as file:
            file.truncate(4096 + size)
            for offset, length in runs:
                file.seek(4096 + offset)
                file.write(read(disk, offset, length))
                first, end = offset // block_size(size), -(-(offset + length) // block_size(size))
                here[first:end] = b"\1" * (end - first)
        below = layers[-1] if layers else open_disk(tmp_path / "raw", True)
        return Layer(below, RawFile(os.open(path, os.O_RDONLY), size, True), 4096, here)

    layers: list[Layer] = []
    for number in range(3):
        before = bytes(model)
        change(10)
        runs = disk.changed()
        differ = [at for at in range(0, size, 512) if before[at : at + 512] != model[at : at + 512]]
        assert all(any(start <= at < start + length for start, length in runs) for at in differ)
        assert sum(length for _, length in runs) < size // 3
        layers.append(stored(runs, f"layer{number}"))
        disk.mark()
        assert disk.changed() == []
        assert read(layers[-1]) == model
    top = Overlay(layers[-1], tmp_path)
    write(top, 8192, b"on top of it".ljust(512), 5)
    model[8192:8704] = b"on top of it".ljust(512)
    assert read(top) == model
    # All that is not in the base.
    runs = kept(top)
    for layer in layers:
        for at, length in block_runs(layer.here, size):
            assert any(start <= at and at + length <= start + count for start, count in runs)
    offset = 0
    while offset < size:
        data, count = top.extent(offset)
        assert count > 0 and (data or not any(model[offset : offset + count]))
        offset += count
    with pytest.raises(NotImplementedError):
        layers[0].write([], 0)
    top.close()
    disk.close()
