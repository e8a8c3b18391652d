"""``polyvisor disk``, and disks of ``polyvisor run``."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from polyvisor.cli.disk import parse_size
from polyvisor.cli.main import make_app
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.files import FileType
from polyvisor.storage.open import open_disk
from polyvisor.storage.qcow2.create import create_qcow2
from polyvisor.vm.equipment import Disk
from support.disks import fill, needs_qemu_img, qemu_img, read, write


def call(*arguments: object, status: int = 0) -> str:
    """Run ``polyvisor disk``; gives what it printed, of an error the line on standard error."""
    done = CliRunner().invoke(make_app(()), ["disk", *map(str, arguments)])
    assert done.exit_code == status, done.output
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.stderr if status == 2 or (status and done.stderr) else done.stdout


def test_create_info_and_resize(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    assert call("create", path, "10M", "--cluster-size", "4K") == f"{path}: qcow2, 10 MiB\n"
    found = json.loads(call("info", path, "--json"))
    assert (found["format"], found["size"], found["cluster_size"]) == ("qcow2", 10 << 20, 4096)
    assert (found["version"], found["refcount_bits"], found["backing_file"]) == (3, 16, None)
    assert found["snapshots"] == [] and not found["dirty"]
    assert call("resize", path, "+5M").endswith("15 MiB\n")
    assert "15728640 bytes" in call("info", path)
    assert "not supported" in call("resize", path, "1M", status=1)
    raw = tmp_path / "disk.raw"
    call("create", raw, "1M", "--format", "raw")
    call("resize", raw, "2M")
    assert raw.stat().st_size == 2 << 20
    assert "smaller" in call("resize", raw, "1M", status=1)
    assert json.loads(call("info", raw, "--json"))["format"] == "raw"


def test_create_over_a_backing_file(tmp_path: Path) -> None:
    data = fill(tmp_path / "base", 1 << 20, 1)
    assert "over base (raw)" in call("create", tmp_path / "top", "--backing", "base")
    disk = open_disk(tmp_path / "top", True)
    assert read(disk) == data
    disk.close()
    found = json.loads(call("info", tmp_path / "top", "--json"))
    assert (found["backing_file"], found["backing_format"]) == ("base", "raw")
    assert found["backing_path"] == str(tmp_path / "base")


def test_an_image_is_not_made_over_what_it_is_to_start_with(tmp_path: Path) -> None:
    base, middle = tmp_path / "base", tmp_path / "middle"
    data = fill(base, 1 << 20, 1)
    call("create", middle, "--backing", "base")
    for backing in ("base", "middle"):
        assert "in use" in call("create", base, "--backing", backing, "--force", status=1)
    assert base.read_bytes() == data


def test_names_inside_an_image_do_not_reach_the_terminal_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    create_qcow2(path, 1 << 20)
    call("snapshot", "create", path, "x\x1b[2J")
    path.write_bytes(path.read_bytes().replace(b"x\x1b[2J", b"\xff\x1b[2J"))
    for shown in (call("info", path), call("snapshot", "list", path)):
        assert "\N{REPLACEMENT CHARACTER}[2J" in shown and "\x1b" not in shown
    assert json.loads(call("snapshot", "list", path, "--json"))[0]["name"] == "\udcff\x1b[2J"


@needs_qemu_img
def test_convert_check_and_snapshots(tmp_path: Path) -> None:
    data = fill(tmp_path / "raw", 3 << 20, 2)
    path = tmp_path / "disk"
    call("convert", tmp_path / "raw", path, "--cluster-size", "2K", "--qcow2-version", "2")
    qemu_img("check", path)
    assert "File exists" in call("convert", tmp_path / "raw", path, status=1)
    call("snapshot", "create", path, "first")
    assert "there is a snapshot" in call("snapshot", "create", path, "first", status=1)
    disk = open_disk(path, False)
    write(disk, 0, b"n" * 4096)
    disk.close()
    call("snapshot", "create", path, "second")
    assert [each["name"] for each in json.loads(call("snapshot", "list", path, "--json"))] == ["first", "second"]
    assert "second" in call("snapshot", "list", path)
    call("convert", path, tmp_path / "old", "--format", "raw", "--snapshot", "first")
    assert (tmp_path / "old").read_bytes() == data
    call("convert", path, tmp_path / "old", "--format", "raw", "--force")
    assert (tmp_path / "old").read_bytes() == b"n" * 4096 + data[4096:]
    call("snapshot", "apply", path, "first")
    call("snapshot", "delete", path, "second")
    assert "no snapshot 'second'" in call("snapshot", "apply", path, "second", status=1)
    qemu_img("convert", "-O", "raw", path, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    assert "clusters written" in call("check", path)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["disk", "old", "out", "raw"]


@needs_qemu_img
def test_check_repairs_counts(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    fill(tmp_path / "raw", 1 << 20, 3)
    call("convert", tmp_path / "raw", path)
    with path.open("r+b") as file:
        file.seek(2 * 65536 + 2 * 5)
        file.write(random.Random(1).randbytes(1) + b"\7\0\0")
        file.seek(2 * 65536 + 2 * 500)
        file.write(b"\0\1")
    assert "is used 1 times and counted" in call("check", path, status=1)
    assert "repaired" in call("check", path, "--repair")
    qemu_img("check", path)
    disk = open_disk(path, True)
    assert read(disk) == (tmp_path / "raw").read_bytes()
    disk.close()
    with path.open("r+b") as file:
        file.seek(disk.header.refcount_table_offset)  # type: ignore[attr-defined]
        block = int.from_bytes(file.read(8), "big")
        file.seek(block + 2 * 1000)
        file.write(b"\0\1")
    assert "counted as used and are not" in call("check", path, status=3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "{tmp}/new"], "how large"),
        (["create", "{tmp}/new", "12Q"], "is not a size"),
        (["create", "{tmp}/new", "0"], "above 0"),
        (["create", "{tmp}/new", "100000P", "--format", "raw"], "too large"),
        (["resize", "{tmp}/there", "100000P"], "too large"),
        (["create", "{tmp}/new", "1M", "--format", "vdi"], "raw, qcow2"),
        (["create", "{tmp}/new", "1M", "--cluster-size", "3000"], "power of two"),
        (["create", "{tmp}/new", "1M", "--backing", "none"], "none: cannot open"),
        (["create", "{tmp}/there", "1M"], "File exists"),
        (["create", "{tmp}/no/new", "1M"], "No such file"),
        (["info", "{tmp}/none"], "No such file"),
        (["info", "{tmp}"], "is a directory"),
        (["snapshot", "list", "{tmp}/there"], "only qcow2 images"),
        (["convert", "{tmp}/there", "{tmp}/no/new"], "No such file"),
        (["convert", "{tmp}/there", "{tmp}/new", "--format", "x"], "there is no format"),
        (["convert", "{tmp}/there", "{tmp}/new", "--from", "qcow2"], "is not a qcow2 image"),
    ],
)
def test_mistakes_get_one_line(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "there").write_bytes(bytes(1024))
    done = CliRunner().invoke(make_app(()), ["disk", *(each.format(tmp=tmp_path) for each in arguments)])
    assert done.exit_code in (1, 2) and isinstance(done.exception, SystemExit)
    assert words in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("polyvisor: ")
    assert [each.name for each in tmp_path.iterdir()] == ["there"]


def test_sizes() -> None:
    assert [parse_size(text) for text in ("512", "1K", "2MiB", "3g", "1T")] == [512, 1024, 2 << 20, 3 << 30, 1 << 40]


def test_disks_of_run(tmp_path: Path) -> None:
    fill(tmp_path / "raw", 1 << 20, 1)
    call("convert", tmp_path / "raw", tmp_path / "disk")
    before = (tmp_path / "disk").read_bytes()

    def disk_of(words: str) -> BlockDevice:
        return Disk.parse(f"{tmp_path}/{words}").make()

    for words, read_only, size in (
        ("disk", False, 1 << 20), ("disk,ro", True, 1 << 20), ("disk,rw,format=qcow2", False, 1 << 20),
        ("disk,ro,format=raw", True, len(before)), ("disk,format=qcow2,snapshot", False, 1 << 20),
        ("disk,snapshot,ro", True, 1 << 20),
    ):
        device = disk_of(words)
        assert bool(device.features & 1 << 5) == read_only
        assert int.from_bytes(device.config()[:8], "little") * 512 == size
        device.close()
    assert (tmp_path / "disk").read_bytes() == before
    for words in ("disk,ro,rw", "disk,format=vdi", "disk,format=raw,format=qcow2"):
        with pytest.raises(ValueError, match="disk"):
            Disk.parse(f"{tmp_path}/{words}")
    (tmp_path / "odd,ro").write_bytes(bytes(512))
    assert not disk_of("odd,ro").features & 1 << 5


def test_a_snapshot_disk_lasts_while_the_machine_restarts(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(65536))
    make = Disk.parse(f"{path},snapshot").make
    device = make()
    write(device.disk, 512, b"kept" * 128)
    device.close()
    assert read(make().disk, 512, 512) == b"kept" * 128
    assert path.read_bytes() == bytes(65536)
    assert read(Disk.parse(f"{path},snapshot").make().disk, 512, 512) == bytes(512)
    # BlockDevice by itself throws them away.
    maker = partial(BlockDevice.open, path, snapshot=True)
    device = maker()
    write(device.disk, 512, b"lost" * 128)
    device.close()
    assert read(maker().disk, 512, 512) == bytes(512)


def test_what_is_on_media_of_commodore(tmp_path: Path) -> None:
    disk = D64.formatted(b"WORK", b"A1")
    disk.write(b"GAME", bytes(1000))
    disk.write(b"A\x1b\x13B", b"1", FileType.SEQ)
    disk.save(tmp_path / "work.d64")
    assert call("ls", tmp_path / "work.d64") == (
        "WORK\n    4 prg GAME\n    1 seq A\ufffd\ufffdB\n  659 blocks free\n"
    )
    found = json.loads(call("ls", tmp_path / "work.d64", "--json"))
    assert found["files"][0] == {"name": "GAME", "type": "prg", "blocks": 4, "locked": False}
    (tmp_path / "x.crt").write_bytes(b"C64")
    assert "header is missing" in call("ls", tmp_path / "x.crt", status=1)
    assert "No such file" in call("ls", tmp_path / "none.prg", status=1)
