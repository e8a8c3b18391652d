"""qcow2 images against QEMU's own tool: theirs read here, ours checked and read there."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import struct
from pathlib import Path

import pytest

from polyvisor.storage.disk import DiskError
from polyvisor.storage.open import backing_path, open_disk
from polyvisor.storage.overlay import Overlay
from polyvisor.storage.qcow2.create import create_qcow2, new_file
from polyvisor.storage.qcow2.image import Qcow2
from polyvisor.storage.raw import RawFile
from support.disks import fill, needs_qemu_img, qemu_img, qemu_io, read, write

pytestmark = needs_qemu_img
needs_qemu_io = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")


def opened(path: Path, read_only: bool = True) -> Qcow2:
    disk = open_disk(path, read_only)
    assert isinstance(disk, Qcow2)
    return disk


def content(path: Path) -> bytes:
    disk = open_disk(path, True)
    try:
        return read(disk)
    finally:
        disk.close()


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize("bits", [9, 12, 16, 21])
@pytest.mark.parametrize("options", ["compat=0.10", "compat=1.1", "compat=1.1,refcount_bits=1", "refcount_bits=64"])
def test_images_of_qemu_read_the_same(tmp_path: Path, bits: int, options: str) -> None:
    data = fill(tmp_path / "raw", 3_000_320 if bits < 21 else 9 << 20, bits)
    options += f",cluster_size={1 << bits}"
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", options, tmp_path / "raw", tmp_path / "disk")
    disk = opened(tmp_path / "disk")
    assert read(disk) == data
    rnd = random.Random(bits)
    for _ in range(200):
        offset = rnd.randrange(len(data))
        length = min(rnd.choice([1, 512, 4096, 100_000]), len(data) - offset)
        assert read(disk, offset, length) == data[offset : offset + length]
    assert disk.examine().errors == [] and disk.examine().leaks == 0
    disk.close()


@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("bits", [9, 12, 16, 20])
def test_compressed_images_read_the_same_and_can_be_written(tmp_path: Path, kind: str, bits: int) -> None:
    rnd = random.Random(bits)
    data = bytearray(b"".join(rnd.choice([rnd.randbytes(512), bytes([rnd.randrange(9)]) * 512]) for _ in range(5000)))
    (tmp_path / "raw").write_bytes(data)
    options = f"cluster_size={1 << bits},compression_type={kind}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, tmp_path / "raw", tmp_path / "disk")
    assert content(tmp_path / "disk") == data
    disk = opened(tmp_path / "disk", False)
    assert disk.examine().compressed > 0
    for _ in range(40):
        offset = rnd.randrange(4900) * 512
        piece = rnd.randbytes(512 * rnd.randrange(1, 99))[: len(data) - offset]
        write(disk, offset, piece)
        data[offset : offset + len(piece)] = piece
        disk.discard(1 << 20, 1 << bits)
        data[1 << 20 : (1 << 20) + (1 << bits)] = read(disk, 1 << 20, 1 << bits)
    disk.close()
    qemu_img("check", tmp_path / "disk")
    assert content(tmp_path / "disk") == data


def test_damaged_compressed_data_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"abc" * 65536 + bytes(65536))
    for kind in ("zlib", "zstd"):
        qemu_img(
            "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", tmp_path / "raw",
            tmp_path / "disk",
        )
        where = json.loads(qemu_img("map", "--output=json", tmp_path / "disk"))
        assert where[0]["data"]
        disk = opened(tmp_path / "disk")
        entry = disk.mapping.entry(0)
        disk.close()
        patch(tmp_path / "disk", entry & (1 << 50) - 1, b"\xff" * 40)
        disk = opened(tmp_path / "disk")
        with pytest.raises(OSError, match="compressed cluster"):
            read(disk, 0, 512)
        disk.close()


@needs_qemu_io
@pytest.mark.parametrize("version", ["0.10", "1.1"])
def test_backing_files_of_qemu(tmp_path: Path, version: str) -> None:
    base = fill(tmp_path / "base.raw", 1 << 20, 1)
    (tmp_path / "sub").mkdir()
    option = f"compat={version},cluster_size=4096"
    middle, top = tmp_path / "sub" / "middle.qcow2", tmp_path / "top.qcow2"
    qemu_img("create", "-f", "qcow2", "-o", option, "-b", "../base.raw", "-F", "raw", middle, 3 << 20)
    qemu_io(middle, "write -P 7 100k 50k", "write -P 9 2M 5000")
    qemu_img("create", "-f", "qcow2", "-o", option, "-b", "sub/middle.qcow2", "-F", "qcow2", top, 4 << 20)
    qemu_io(top, "write -P 5 120k 1k", *(["write -z 0 64k"] if version == "1.1" else []))
    expected = bytearray(base + bytes(3 << 20))
    expected[102400:153600] = b"\7" * 51200
    expected[2 << 20 : (2 << 20) + 5000] = b"\t" * 5000
    expected[122880:123904] = b"\5" * 1024
    if version == "1.1":
        expected[:65536] = bytes(65536)
    assert content(top) == expected
    disk = opened(top, False)
    write(disk, 200_000, b"here" * 9000)
    expected[200_000:236_000] = b"here" * 9000
    write(disk, (1 << 20) - 1024, b"x" * 2048)
    expected[(1 << 20) - 1024 : (1 << 20) + 1024] = b"x" * 2048
    disk.zero(300_032, 200_192, True)
    expected[300_032:500_224] = bytes(200_192)
    assert read(disk) == expected
    disk.close()
    qemu_img("check", top)
    qemu_img("convert", "-O", "raw", top, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == expected
    assert (tmp_path / "base.raw").read_bytes() == base


def random_operations(tmp_path: Path, seed: int, steps: int) -> None:
    """Any operations in any order, on an image of any kind, against a model; checked by QEMU at the end and between."""
    rnd = random.Random(seed)
    path = tmp_path / "disk.qcow2"
    bits, version = rnd.choice([9, 10, 12, 16, 18]), rnd.choice([2, 3, 3])
    counts = 16 if version == 2 else rnd.choice([1, 2, 4, 8, 16, 32, 64])
    model = bytearray(rnd.randrange(1, 6000 if bits < 16 else 20000) * 512)
    backing: dict[str, str] = {}
    if rnd.random() < 0.4:
        below = fill(tmp_path / "base.raw", rnd.randrange(1, 8000) * 512, seed)[: len(model)]
        model[: len(below)] = below
        backing = {"backing": "base.raw", "backing_format": "raw"}
    create_qcow2(path, len(model), cluster_size=1 << bits, version=version, refcount_bits=counts, **backing)
    disk = opened(path, False)
    kept: dict[str, bytes] = {}
    for step in range(steps):
        chance, size = rnd.random(), len(model)
        offset = rnd.randrange(size // 512) * 512
        length = min(size - offset, rnd.choice([512, 4096, rnd.randrange(1, 300) * 512]))
        if chance < 0.45:
            data = rnd.randbytes(length)
            write(disk, offset, data, rnd.randrange(length))
            model[offset : offset + length] = data
        elif chance < 0.68:
            assert read(disk, offset, length) == model[offset : offset + length], f"step {step}"
        elif chance < 0.78:
            disk.zero(offset, length, rnd.random() < 0.5)
            model[offset : offset + length] = bytes(length)
        elif chance < 0.83:
            disk.discard(offset, length)
            for at in range(offset, offset + length, 512):
                now = read(disk, at, 512)
                assert now in (bytes(512), model[at : at + 512])
                model[at : at + 512] = now
        elif chance < 0.88:
            disk.flush()
        elif chance < 0.9:
            data_here, run = disk.extent(offset)
            assert run > 0 and (data_here or not any(model[offset : offset + run]))
        elif chance < 0.92 and len(kept) < 3:
            try:
                disk.snapshot(f"s{step}")
                kept[f"s{step}"] = bytes(model)
            except DiskError as error:
                assert counts < 4 and "no room" in str(error)
        elif chance < 0.94 and kept:
            name = rnd.choice(sorted(kept))
            try:
                disk.apply_snapshot(name)
                model[:] = kept[name]
            except DiskError as error:
                assert counts < 4 and "no room" in str(error)
        elif chance < 0.96 and kept:
            name = rnd.choice(sorted(kept))
            disk.delete_snapshot(name)
            del kept[name]
        elif chance < 0.98:
            disk.close()
            qemu_img("check", path)
            disk = opened(path, False)
        else:
            more = rnd.randrange(100) * 512
            try:
                disk.resize(size + more)
                model.extend(bytes(more))
            except DiskError as error:
                assert version == 2 and ("version 2" in str(error))
    assert read(disk) == model and disk.size == len(model)
    disk.close()
    qemu_img("check", path)
    qemu_img("convert", "-O", "raw", path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == model
    for name, then in kept.items():
        disk = opened(path)
        disk.look_at_snapshot(name)
        assert read(disk) == then
        disk.close()
    if kept and counts > 2:  # QEMU counts one more before it counts one less
        name = sorted(kept)[0]
        qemu_img("snapshot", "-a", name, path)
        assert content(path)[: len(kept[name])] == kept[name]


@pytest.mark.parametrize("seed", range(6))
def test_random_operations(tmp_path: Path, seed: int) -> None:
    random_operations(tmp_path, seed, 150)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_operations(tmp_path: Path, seed: int) -> None:
    random_operations(tmp_path, seed, 500)


def test_snapshots_of_qemu(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    first = fill(tmp_path / "raw", 2 << 20, 3)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4096", tmp_path / "raw", path)
    qemu_img("snapshot", "-c", "one", path)
    disk = opened(path, False)
    assert [(s.identity, s.name) for s in disk.snapshots] == [("1", "one")]
    write(disk, 4096, b"z" * 100_352)
    disk.snapshot("two")
    write(disk, 0, b"y" * 512)
    disk.close()
    qemu_img("check", path)
    assert [s["name"] for s in json.loads(qemu_img("info", "--output=json", path))["snapshots"]] == ["one", "two"]
    disk = opened(path, False)
    disk.apply_snapshot("1")
    assert read(disk) == first
    disk.delete_snapshot("one")
    disk.delete_snapshot("two")
    with pytest.raises(DiskError, match="no snapshot 'two'"):
        disk.delete_snapshot("two")
    assert read(disk) == first and disk.examine().leaks == 0
    disk.close()
    qemu_img("check", path)


def test_a_disk_of_many_tables(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 64 << 40)
    disk = opened(path, False)
    write(disk, (64 << 40) - 512, b"end!" * 128)
    disk.discard(0, (64 << 40) - 65536)
    disk.flush()
    assert read(disk, (64 << 40) - 1024, 1024) == bytes(512) + b"end!" * 128
    assert disk.extent(0) == (False, 1 << 34)
    disk.close()
    qemu_img("check", path)
    with pytest.raises(DiskError, match="too many for clusters of 512"):
        create_qcow2(tmp_path / "no", 1 << 40, cluster_size=512)


@pytest.mark.parametrize("length", [255, 40000])
def test_names_of_snapshots_that_are_not_utf8_stay_as_they_are(tmp_path: Path, length: int) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20)
    disk = opened(path, False)
    disk.snapshot("n")
    # What other tools let be; and an ID that Python takes for no number.
    disk.snapshots[0].name, disk.snapshots[0].identity = "n" * length, "7" * 5000
    disk.snapshot("other")
    disk.delete_snapshot("other")
    disk.close()
    name = b"\xffn" * (length // 2)
    path.write_bytes(path.read_bytes().replace(b"n" * (length - length % 2), name))
    disk = opened(path, False)
    disk.snapshot("one more")
    disk.close()
    disk = opened(path)
    assert disk.snapshots[0].name.encode(errors="surrogateescape")[: len(name)] == name
    assert disk.snapshots[1].name == "one more"
    disk.close()


def test_a_snapshot_of_an_image_with_much_behind_its_end(tmp_path: Path) -> None:
    """Clusters that no refcount block, nor the refcount table as it is, has a count for."""
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20, cluster_size=512)
    with path.open("r+b") as file:
        file.truncate(60 << 20)
    disk = opened(path, False)
    write(disk, 0, b"x" * 512)
    disk.snapshot("kept")
    write(disk, 0, b"y" * 512)
    disk.close()
    qemu_img("check", path)
    disk = opened(path)
    disk.look_at_snapshot("kept")
    assert read(disk, 0, 512) == b"x" * 512
    disk.close()


def test_nothing_can_be_read_and_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 64 * 512, cluster_size=512)
    for disk in (opened(path, False), Overlay(opened(path), tmp_path)):
        for offset in (0, 64 * 512):
            disk.read([], offset)
            disk.write([], offset)
            disk.zero(offset, 0, True)
            disk.discard(offset, 0)
        disk.close()


@pytest.mark.parametrize("kind", ["off", "metadata", "falloc", "full"])
def test_preallocated_images(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", "-o", f"preallocation={kind}", path, "3M")
    disk = opened(path, False)
    assert read(disk) == bytes(3 << 20)
    write(disk, 1 << 20, b"x" * 512)
    size = path.stat().st_size
    disk.zero(1 << 20, 65536, False)
    write(disk, (1 << 20) + 512, b"y" * 512)
    disk.close()
    assert path.stat().st_size == size or kind == "off"
    qemu_img("check", path)
    assert content(path) == bytes((1 << 20) + 512) + b"y" * 512 + bytes((2 << 20) - 1024)


def test_freed_space_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20, cluster_size=4096)
    disk = opened(path, False)
    write(disk, 0, b"x" * (1 << 20))
    disk.flush()
    before = path.stat().st_size
    for _ in range(5):
        disk.discard(0, 1 << 20)
        disk.flush()
        write(disk, 0, b"y" * (1 << 20))
        disk.flush()
    disk.close()
    assert path.stat().st_size < before + (1 << 20) + 65536


def test_a_dirty_image_is_repaired_when_it_is_opened_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    data = fill(tmp_path / "raw", 1 << 20, 5)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "lazy_refcounts=on", tmp_path / "raw", path)
    header = path.read_bytes()[:112]
    (table,) = struct.unpack_from(">Q", header, 48)
    (block,) = struct.unpack_from(">Q", path.read_bytes(), table)
    patch(path, block + 2 * 5, bytes(8))
    patch(path, 79, b"\1")
    assert content(path) == data  # reading does not need the counts
    qemu_img("check", path, status=2)
    disk = opened(path, False)
    assert disk.repaired
    write(disk, 0, b"n" * 512)
    disk.close()
    qemu_img("check", path)
    assert content(path) == b"n" * 512 + data[512:]


def test_autoclear_bits_are_cleared_before_writing(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20)
    patch(path, 95, b"\x84")
    opened(path).close()
    assert path.read_bytes()[95] == 0x84
    opened(path, False).close()
    assert path.read_bytes()[88:96] == bytes(8)


def test_bitmaps_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-f", "qcow2", path, "1M")
    qemu_img("bitmap", "--add", path, "b")
    disk = opened(path)
    report = disk.examine()
    assert (report.errors, report.leaks) == ([], 0)
    disk.close()
    opened(path, False).close()
    disk = opened(path)
    assert disk.examine().leaks > 0
    disk.close()


# What is refused

U64, U32 = ">Q", ">I"
FIELDS = [
    (4, U32, 4, "version 4"),
    (20, U32, 8, "clusters of 2"),
    (20, U32, 22, "clusters of 2"),
    (24, U64, 1000, "not a multiple of 512"),
    (24, U64, 0, "not a multiple of 512"),
    (24, U64, 1 << 60, "too few"),
    (32, U32, 1, "encrypted"),
    (36, U32, 0, "too few"),
    (36, U32, 0xFFFFFFFF, "L1 table"),
    (40, U64, 0x30001, "L1 table"),
    (40, U64, 1 << 55, "outside the file"),
    (48, U64, 0, "refcount table"),
    (48, U64, 1 << 50, "refcount table"),
    (56, U32, 0xFFFFFF, "refcount table"),
    (60, U32, 70000, "snapshot table"),
    (60, U32, 3, "snapshot table"),
    (72, U64, 2, "marked as corrupt"),
    (72, U64, 4, "external data file"),
    (72, U64, 16, "extended L2"),
    (72, U64, 1 << 40, "feature bit 40"),
    (96, U32, 7, "reference counts"),
    (100, U32, 99, "impossible length"),
    (100, U32, 1 << 31, "impossible length"),
    (104, ">B", 1, "compression type 1"),
]


@pytest.mark.parametrize(("offset", "form", "value", "words"), FIELDS)
def test_bad_headers_are_refused_and_left_alone(
    tmp_path: Path, offset: int, form: str, value: int, words: str
) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20)
    patch(path, offset, struct.pack(form, value))
    before = path.read_bytes()
    with pytest.raises(DiskError, match=words) as caught:
        open_disk(path, False)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    if value == 2 and offset == 72:
        assert content(path) == bytes(1 << 20)


def test_files_that_are_cut_off_or_random(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20, cluster_size=512)
    disk = opened(path, False)
    write(disk, 0, b"x" * 5000)
    disk.snapshot("one")
    disk.close()
    whole = path.read_bytes()
    rnd = random.Random(1)
    for number in range(150):
        data = bytearray(whole[: rnd.randrange(4, len(whole))] if number % 3 == 0 else whole)
        for _ in range(rnd.randrange(4)):
            data[rnd.randrange(4, min(len(data), 2048))] = rnd.randrange(256)
        for _ in range(rnd.randrange(9)):
            data[rnd.randrange(4, len(data))] ^= 1 << rnd.randrange(8)
        path.write_bytes(data)
        for read_only in (True, False):
            try:
                disk = opened(path, read_only)
            except DiskError as error:
                assert str(path) in str(error)
                assert read_only or path.read_bytes() == data or data[79] & 1 or any(data[88:96])
                continue
            try:
                length = min(disk.size, 1 << 20)
                read(disk, 0, length)
                disk.examine()
                if not read_only:
                    write(disk, 512 * rnd.randrange(length // 512), b"w" * 512)
                    disk.discard(0, length // 2)
                    disk.snapshot("more")
                disk.close()
            except OSError:
                pass
            finally:
                disk.file.close()


def test_data_where_a_table_is_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20)
    disk = opened(path, False)
    write(disk, 0, b"x" * 512)
    disk.close()
    disk = opened(path)
    (l2, header) = (disk.mapping.l1[0] & (1 << 56) - 1, disk.header)
    disk.close()
    for place in (header.cluster_size, header.l1_offset, l2):
        patch(path, l2, struct.pack(">Q", 1 << 63 | place))
        before = path.read_bytes()
        disk = opened(path, False)
        with pytest.raises(OSError, match="where a table is"):
            write(disk, 0, b"bad" * 512)
        with pytest.raises(OSError, match="where a table is"):
            write(disk, 65536, b"good" * 128)  # nor anything else
        disk.close()
        assert path.read_bytes() == before


def test_backing_files_that_cannot_be_used(tmp_path: Path) -> None:
    def make(name: str, backing: str, form: str = "qcow2") -> Path:
        path = tmp_path / name
        create_qcow2(path, 1 << 20, backing=backing, backing_format=form, replace=True)
        return path

    for backing, form, words in (
        ("missing", "raw", "No such file"),
        ("json:{}", "raw", "not a file's name"),
        ("nbd://host/x", "raw", "not a file's name"),
        ("self", "qcow2", "lead back"),
    ):
        with pytest.raises(DiskError, match=words):
            open_disk(make("self", backing, form), True)
    make("a", "b")
    make("b", "a")
    with pytest.raises(DiskError, match="lead back"):
        open_disk(tmp_path / "a", False)
    assert backing_path("/images/top", "file:base") == "/images/base"
    assert backing_path("/images/top", "/other/base") == "/other/base"


def test_what_a_guest_wrote_to_a_raw_disk_does_not_become_an_image(tmp_path: Path) -> None:
    base, top, secret = tmp_path / "base", tmp_path / "top", tmp_path / "secret"
    secret.write_bytes(b"secret!!" * 64)
    create_qcow2(tmp_path / "evil", 65536, backing=str(secret), backing_format="raw")
    base.write_bytes((tmp_path / "evil").read_bytes())
    # Said to be raw: it is raw.
    create_qcow2(top, 65536, backing="base", backing_format="raw")
    assert content(top) == base.read_bytes()[:65536]
    # Not said: refused rather than guessed.
    data = top.read_bytes()
    top.write_bytes(data.replace(b"\xe2\x79\x2a\xca", b"\0\0\0\1"))
    with pytest.raises(DiskError, match="does not say which format"):
        open_disk(top, True)
    base.write_bytes(b"plain" + bytes(65531))
    assert content(top) == base.read_bytes()
    # A disk that was only guessed to be raw cannot be made into an image from inside.
    disk = open_disk(base, False)
    for cut in (0, 2):
        with pytest.raises(OSError, match="qcow2"):
            write(disk, 0, b"QFI\xfb" + bytes(508), cut)
    write(disk, 0, b"QFI!" + bytes(508))
    with pytest.raises(OSError, match="qcow2"):
        write(disk, 3, b"\xfb")
    disk.close()
    disk = open_disk(base, False, "raw")
    write(disk, 0, b"QFI\xfb" + bytes(508))
    disk.close()


def test_a_guest_cannot_slip_in_a_header_while_it_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "raw"
    path.write_bytes(bytes(65536))
    disk = open_disk(path, False)
    memory = bytearray(4096)
    write_raw = RawFile.write

    def change_and_write(self: RawFile, views: list[memoryview], offset: int) -> None:
        memory[:8] = b"QFI\xfblate"  # another hart of the guest
        write_raw(self, views, offset)

    monkeypatch.setattr(RawFile, "write", change_and_write)
    disk.write([memoryview(memory)], 0)
    disk.close()
    assert path.read_bytes()[:8] == b"\0\0\0\0late"


def test_locks(tmp_path: Path) -> None:
    create_qcow2(tmp_path / "base", 65536)
    create_qcow2(tmp_path / "top", 65536, backing="base", backing_format="qcow2")
    create_qcow2(tmp_path / "other", 65536, backing="base", backing_format="qcow2")
    top, other = opened(tmp_path / "top", False), opened(tmp_path / "other", False)
    for name in ("top", "base"):
        with pytest.raises(DiskError, match="in use"):
            open_disk(tmp_path / name, False)
        open_disk(tmp_path / name, True).close()
    top.close()
    top.close()
    other.close()
    base = opened(tmp_path / "base", False)
    with pytest.raises(DiskError, match="in use"):
        open_disk(tmp_path / "top", False)
    base.close()


def test_what_cannot_be_written_at_the_end_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20)
    disk = opened(path, False)
    write(disk, 0, b"x" * 512)

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(disk.file, "write", full)
    with pytest.raises(DiskError, match="disk: what was written last is lost: No space left"):
        disk.close()
    disk.close()
    open_disk(path, False).close()


def test_an_image_that_cannot_be_made_is_not_left(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    with pytest.raises(DiskError, match="No space left"), new_file(str(path), False):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not path.exists()
    create_qcow2(path, 65536)
    with pytest.raises(DiskError, match="File exists"), new_file(str(path), False):
        pass
    assert path.exists()


def test_nothing_is_left_open(tmp_path: Path) -> None:
    create_qcow2(tmp_path / "top", 65536, backing="missing", backing_format="raw")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for read_only in (True, False):
        with pytest.raises(DiskError):
            open_disk(tmp_path / "top", read_only)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
