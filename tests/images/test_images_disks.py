"""Images with a root disk: kept, listed, carried as archives, cleaned up."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyvisor import images
from polyvisor.cli.main import make_app
from polyvisor.images import ImageError, store, transfer

NAME = "debian:web"
DISK = b"start" + bytes(5 << 20) + b"middle" + bytes((3 << 20) - 11) + b"end" + bytes(4093)


def publish(name: str = NAME, disk: bytes | None = DISK, **changes: Any) -> images.Image:
    with store.exclusive(name), store.staging(name) as directory:
        names = [store.KERNEL, store.INITRD, store.IMAGE_JSON]
        (directory / store.KERNEL).write_bytes(b"kernel")
        (directory / store.INITRD).write_bytes(b"initrd")
        description = {
            "name": name, "version": "1", "arch": "riscv64", "kernel_version": "7.2", "suite": "sid",
            "created": "2026-10-30T08:08:01+00:00", "append": "root=UUID=x",
        }
        if disk is not None:
            names.append(store.DISK)
            description["disk"] = {"format": "raw", "size": len(disk)}
            with (directory / store.DISK).open("wb") as file:
                for start in range(0, len(disk), 4096):
                    if any(disk[start : start + 4096]):
                        file.seek(start)
                        file.write(disk[start : start + 4096])
                file.truncate(len(disk))
        store.write_json(directory / store.IMAGE_JSON, {**description, **changes})
        lock = {
            "packages": [{"name": "dash", "version": "0.5", "architecture": "riscv64", "size": 9, "sha256": "ab" * 32}],
            "files": store.describe_files(directory, names),
        }
        store.write_json(directory / store.LOCK_JSON, lock)
        return store.publish(name, directory)


def test_an_image_with_a_disk_is_found_whole() -> None:
    image = publish()
    assert image == store.get(NAME) and image.disk is not None and image.disk.read_bytes() == DISK
    assert image.size < len(DISK), "what is not used takes no space"
    assert store.verify(NAME) == image
    assert images.ensure(NAME) == image, "an image of the user's own is only looked up"
    with (image.directory / "disk").open("r+b") as file:
        file.write(b"S")
    with pytest.raises(ImageError, match="disk is not what was built"):
        store.verify(NAME)
    (image.directory / "disk").unlink()
    with pytest.raises(ImageError, match=r"disk is missing\): run `polyvisor image build debian:web`"):
        store.get(NAME)


def test_an_image_survives_a_crash_once_it_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    certain: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: certain.append(os.fstat(descriptor).st_ino))
    rename = Path.replace

    def replace(path: Path, target: Path) -> Path:
        directory = path.resolve()
        assert {directory.stat().st_ino, *(file.stat().st_ino for file in directory.iterdir())} <= set(certain)
        certain.append(0)
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    image = publish()
    assert certain[-2:] == [0, image.directory.parent.stat().st_ino]


def test_an_image_that_is_made_again_is_there_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    image = publish()
    remove = store.shutil.rmtree
    looks: list[bool] = []

    def remove_and_look(path: Path, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors)
        looks.append(store.find(NAME) == image)

    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", remove_and_look)
        assert publish() == image and looks and all(looks)
    assert store.verify(NAME) == image
    assert {path.name for path in image.directory.parent.iterdir()} == {"current", image.directory.name}


def test_images_without_a_disk_stay_readable() -> None:
    image = publish("debian", None)
    assert image.disk is None and store.verify("debian").disk is None
    assert [each.name for each in images.local()] == ["debian"]


def test_names() -> None:
    for good in ("a", "debian:full", "my.image-2:V1.0_x"):
        store.check_name(good)
    for bad in ("", "A", "a:", ":b", "a:b:c", "../x", "a/b", ".new", "a b", "a\n", "x" * 65):
        with pytest.raises(ImageError, match="is not a name for an image"):
            store.check_name(bad)
        assert store.find(bad) is None
        with pytest.raises(ImageError, match="no image"):
            store.remove(bad)
    with pytest.raises(ImageError, match="there is no image 'other:image'; known are debian, debian:full"):
        images.ensure("other:image")


def test_an_exported_image_is_small_and_comes_back_the_same(tmp_path: Path, cache: Path) -> None:
    image = publish()
    lock = image.lock
    archive = tmp_path / "image.tar"
    transfer.export(NAME, archive)
    assert archive.stat().st_size < 200_000
    images.remove(NAME)
    back = transfer.import_image(archive)
    assert back == image and back.disk is not None and back.disk.read_bytes() == DISK and back.lock == lock
    assert back.size < len(DISK)
    assert store.verify(NAME) == back
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]


def test_python_and_gnu_tar_read_the_archive(tmp_path: Path) -> None:
    publish()
    archive = tmp_path / "image.tar"
    transfer.export(NAME, archive)
    with tarfile.open(archive) as tar:
        assert tar.getnames() == ["image.json", "lock.json", "disk", "initrd", "kernel"]
        disk = tar.extractfile("disk")
        assert disk is not None and disk.read() == DISK
    (tmp_path / "out").mkdir()
    assert os.system(f"tar -xf {archive} -C {tmp_path}/out") == 0
    assert (tmp_path / "out" / "disk").read_bytes() == DISK


def changed_archive(tmp_path: Path, change: Any) -> Path:
    """An exported image, every member of which ``change`` may replace: it gets name and contents, gives new ones."""
    publish()
    transfer.export(NAME, tmp_path / "good.tar")
    with tarfile.open(tmp_path / "good.tar") as old, tarfile.open(tmp_path / "bad.tar", "w") as new:
        for member in old:
            stream = old.extractfile(member)
            assert stream is not None
            for name, data in change(member.name, stream.read()):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    images.remove(NAME)
    return tmp_path / "bad.tar"


def rename(field: str, value: Any) -> Any:
    def change(name: str, data: bytes) -> list[tuple[str, bytes]]:
        if name == "image.json":
            data = json.dumps({**json.loads(data), field: value}).encode()
        return [(name, data)]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, data: [(name, data + b"x" if name == "kernel" else data)], "kernel in .* is not what its lock"),
        (lambda name, data: [(name, data.upper() if name == "kernel" else data)], "kernel in .* is not what its lock"),
        (lambda name, data: [] if name == "lock.json" else [(name, data)], "not an image that polyvisor exported"),
        (lambda name, data: [] if name == "initrd" else [(name, data)], "not an image that polyvisor exported"),
        (lambda name, data: [(name, data), (f"../{name}", data)], "not an image that polyvisor exported"),
        (lambda name, data: [] if name == "disk" else [(name, data)], "does not have the files that its lock"),
        (lambda name, data: [(name, b"[" if name == "lock.json" else data)], "lock.json in .* is not JSON"),
        (lambda name, data: [(name, b"[]" if name == "lock.json" else data)], "does not describe its image"),
        (rename("name", "../../etc"), "not a name for an image"),
        (rename("name", 5), "does not describe its image"),
    ],
)
def test_what_is_not_a_good_archive_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    archive = changed_archive(tmp_path, change)
    with pytest.raises(ImageError, match=message):
        transfer.import_image(archive)
    assert images.local() == []


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    for content in (b"", b"nothing of the kind" * 100):
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"not a whole tar archive|not an image that"):
            transfer.import_image(path)
    with pytest.raises(ImageError, match="cannot read"):
        transfer.import_image(tmp_path / "nothing")
    publish()
    transfer.export(NAME, path)
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ImageError, match=r"not a whole tar archive|is not what its lock file says|not an image"):
        transfer.import_image(path)


@pytest.mark.parametrize("damage", ["sparse", "gzip", "xz"])
def test_archives_that_pythons_modules_fail_on_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.tar"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("kernel")
        if damage == "sparse":
            member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "x"}
        member.size = 20_000
        archive.addfile(member, io.BytesIO(bytes(range(250)) * 80))
    data = {"sparse": bytes, "gzip": gzip.compress, "xz": lzma.compress}[damage](stream.getvalue())
    if damage != "sparse":
        # Behind the start, by which the kind of the file is found.
        middle = len(data) * 3 // 4
        data = data[:middle] + b"\xff" * 8 + data[middle + 8 :]
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"not a whole tar archive|cannot read .*x.tar"):
        transfer.import_image(path)


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    publish()
    with pytest.raises(ImageError, match="cannot"):
        transfer.export(NAME, tmp_path / "nowhere" / "x.tar")
    with pytest.raises(ImageError, match="no image other"):
        transfer.export("other", tmp_path / "x.tar")
    assert list(tmp_path.glob("*.tar*")) == []


def test_prune_keeps_what_is_used(cache: Path) -> None:
    first = publish(version="1")
    second = publish(version="2")
    assert first.directory.exists(), "who was about to read it still can"
    downloads = store.downloads()
    downloads.mkdir(parents=True)
    (downloads / ("ab" * 32)).write_bytes(b"of the image")
    (downloads / ("cd" * 32)).write_bytes(b"x" * 5000)
    stale = cache / "images" / NAME / ".new-stale"
    stale.mkdir()
    assert images.prune() > 5000
    assert not first.directory.exists() and not stale.exists()
    assert [path.name for path in downloads.iterdir()] == ["ab" * 32]
    assert store.verify(NAME) == second


def test_the_command_lists_inspects_and_carries(tmp_path: Path) -> None:
    image = publish()
    run = CliRunner()
    listed = json.loads(run.invoke(make_app(()), ["image", "list", "--json"]).stdout)
    assert [(each["name"], each["disk"], each["directory"]) for each in listed] == [(NAME, True, str(image.directory))]
    shown = json.loads(run.invoke(make_app(()), ["image", "inspect", NAME, "--json"]).stdout)
    assert shown["packages"] == image.lock["packages"] and shown["append"] == "root=UUID=x"
    assert shown["files"]["disk"]["sha256"] == store.sha256_file(image.directory / "disk")
    text = run.invoke(make_app(()), ["image", "inspect", NAME]).stdout
    assert "root=UUID=x" in text and "dash" in text
    archive = str(tmp_path / "x.tar")
    assert run.invoke(make_app(()), ["image", "export", NAME, archive]).exit_code == 0
    assert run.invoke(make_app(()), ["image", "remove", NAME]).exit_code == 0
    assert run.invoke(make_app(()), ["image", "import", archive]).stdout.strip() == str(image.directory)
    assert "freed" in run.invoke(make_app(()), ["image", "prune"]).stdout
    assert run.invoke(make_app(()), ["image", "inspect", "nothing"]).exit_code == 1
