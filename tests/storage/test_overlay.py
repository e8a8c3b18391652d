"""Changes that are thrown away."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from polyvisor.storage.convert import convert
from polyvisor.storage.open import open_disk
from polyvisor.storage.overlay import Overlay
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
