"""From a made-up mirror to a published image, and what can go wrong on the way."""

from __future__ import annotations

import errno
import json
import re
import struct
import subprocess
import sys
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pysequoia
import pytest
import zstandard
from fake_mirror import (
    BUSYBOX,
    KERNEL,
    VERSION,
    Server,
    Suite,
    deb,
    debian_suite,
    generate_key,
    kernel_files,
    public,
)
from typer.testing import CliRunner

from conftest import Record
from polyvisor import images
from polyvisor.cli.image import app
from polyvisor.images import ImageError, cpio, initramfs, kernel, modules, store


def serve(server: Server, *suites: Suite) -> None:
    for suite in suites:
        server.files.update(suite.files())


def options(server: Server, keyring: Path, *suites: str) -> images.Options:
    return {"mirror": server.url, "keyring": keyring, "suites": suites or ("sid", "trixie")}


def test_pull(server: Server, keyring: Path, key: pysequoia.Tsk, record: Record) -> None:
    serve(server, debian_suite("sid", key))
    image = images.pull("debian", progress=record, **options(server, keyring))
    assert image.kernel.read_bytes() == KERNEL
    assert (image.name, image.version, image.kernel_version, image.suite, image.arch) == (
        "debian",
        "9.9.9-1",
        VERSION,
        "sid",
        "riscv64",
    )
    files = {entry.name: entry for entry in cpio.read(image.initrd.read_bytes())}
    base = f"usr/lib/modules/{VERSION}"
    assert f"{base}/kernel/drivers/unrelated.ko" not in files
    assert files[f"{base}/modules.dep"].data.decode().splitlines() == [
        "kernel/drivers/virtio-gpu.ko:",
        "kernel/drivers/virtio_mmio.ko:",
        "kernel/fs/ext4/ext4.ko: kernel/fs/jbd2.ko kernel/lib/crc-16.ko",
        "kernel/fs/jbd2.ko: kernel/lib/crc-16.ko",
        "kernel/lib/crc-16.ko:",
    ]
    assert files[f"{base}/modules.alias"].data == b"alias virtio:d00000010v* virtio_gpu\n"
    assert files["usr/bin/busybox"].data == BUSYBOX
    assert files["usr/bin/base64"].data == b"busybox"
    lock = image.lock
    assert [package["name"] for package in lock["packages"]][-1] == "busybox-static"
    assert all(package["path"].startswith("pool/main/") for package in lock["packages"])
    assert lock["release"]["signed_by"] == [key.extract_certificate().fingerprint]
    assert images.verify("debian") == image and images.local() == [image]
    assert server.url not in json.dumps(lock)

    requests = len(server.log)
    assert images.ensure("debian") == image
    assert len(server.log) == requests
    assert images.pull("debian", progress=record, **options(server, keyring)) == image
    assert "up to date" in record.stages[-1]

    serve(server, debian_suite("sid", key, "9.9.9-2"))
    newer = images.pull("debian", **options(server, keyring))
    assert newer.version == "9.9.9-2" and image.kernel.exists()


def test_same_packages_same_initrd(server: Server, keyring: Path, key: pysequoia.Tsk) -> None:
    serve(server, debian_suite("sid", key))
    first = images.pull("debian", **options(server, keyring)).initrd.read_bytes()
    images.remove("debian")
    assert images.pull("debian", **options(server, keyring)).initrd.read_bytes() == first


def break_packages(server: Server, suite: str) -> None:
    (path,) = (path for path in server.files if path.startswith(f"dists/{suite}/main"))
    server.files[path] = server.files[path][:-1] + b"?"


def drop_packages(server: Server, suite: str) -> None:
    (path,) = (path for path in server.files if path.startswith(f"dists/{suite}/main"))
    del server.files[path]


def break_package(server: Server, suite: str) -> None:
    path = next(path for path in server.files if path.startswith(f"pool/main/{suite}/linux-binary"))
    server.files[path] = bytes(len(server.files[path]))


def break_release(server: Server, suite: str) -> None:
    path = f"dists/{suite}/InRelease"
    server.files[path] = server.files[path].replace(b"Origin: Debian", b"Origin: Debiam")


@pytest.mark.parametrize("damage", [break_packages, drop_packages, break_package, break_release])
def test_the_next_suite_is_taken(
    damage: Any, server: Server, keyring: Path, key: pysequoia.Tsk, record: Record
) -> None:
    serve(server, debian_suite("sid", key), debian_suite("trixie", key, "9.9.9-0"))  # no package in common
    damage(server, "sid")
    assert images.pull("debian", progress=record, **options(server, keyring)).suite == "trixie"
    assert any(stage.startswith("suite sid cannot be used now") for stage in record.stages)
    with pytest.raises(ImageError):
        images.pull("debian", **options(server, keyring, "sid"))
    assert images.ensure("debian").suite == "trixie"


def test_expired(server: Server, keyring: Path, key: pysequoia.Tsk) -> None:
    suite = debian_suite("sid", key)
    suite.valid_for = timedelta(days=-1)
    serve(server, suite)
    with pytest.raises(ImageError, match="--allow-expired") as caught:
        images.pull("debian", **options(server, keyring, "sid"))
    assert caught.value.kind == "expired"
    image = images.pull("debian", allow_expired=True, **options(server, keyring, "sid"))
    assert image.lock["release"]["expired_accepted"] is True


def test_another_suites_index_is_refused(server: Server, keyring: Path, key: pysequoia.Tsk) -> None:
    suite = debian_suite("sid", key)
    suite.claims = "woody"
    serve(server, suite)
    with pytest.raises(ImageError, match="about suite 'woody'"):
        images.pull("debian", **options(server, keyring, "sid"))


def test_bad_signature(server: Server, keyring: Path, key: pysequoia.Tsk) -> None:
    serve(server, debian_suite("sid", key))
    break_release(server, "sid")
    with pytest.raises(ImageError, match="bad signature") as caught:
        images.pull("debian", **options(server, keyring, "sid"))
    assert caught.value.kind == "signature" and "\n" not in str(caught.value)
    server.files["dists/sid/InRelease"] = b"Origin: Debian\nSuite: sid\n"
    with pytest.raises(ImageError) as caught:
        images.pull("debian", **options(server, keyring, "sid"))
    assert caught.value.kind == "signature"


def test_unknown_key(server: Server, keyring: Path) -> None:
    serve(server, debian_suite("sid", generate_key()))
    with pytest.raises(ImageError, match="pass --keyring") as caught:
        images.pull("debian", **options(server, keyring, "sid"))
    assert caught.value.kind == "signature"


def test_a_newer_keyring_from_a_suite_that_the_old_one_vouches_for(
    server: Server, keyring: Path, key: pysequoia.Tsk, record: Record
) -> None:
    new = generate_key()
    package = deb(
        "debian-archive-keyring", "2", {"usr/share/keyrings/debian-archive-keyring.gpg": public(key) + public(new)}
    )
    old = Suite("bookworm", key, [("debian-archive-keyring", "2", "", package)])
    serve(server, debian_suite("sid", new), old)
    image = images.pull("debian", progress=record, **options(server, keyring, "sid"))
    assert image.lock["release"]["signed_by"] == [new.extract_certificate().fingerprint]
    assert any("signed by a key of debian-archive-keyring 2 (bookworm)" in stage for stage in record.stages)


def test_a_newer_keyring_of_a_stranger_is_not_believed(server: Server, keyring: Path) -> None:
    stranger = generate_key()
    package = deb("debian-archive-keyring", "2", {"usr/share/keyrings/debian-archive-keyring.gpg": public(stranger)})
    old = Suite("bookworm", stranger, [("debian-archive-keyring", "2", "", package)])
    serve(server, debian_suite("sid", stranger), old)
    with pytest.raises(ImageError, match="does not hold"):
        images.pull("debian", **options(server, keyring, "sid"))


def test_full_disk_leaves_the_old_image(
    server: Server, keyring: Path, key: pysequoia.Tsk, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, debian_suite("sid", key))
    image = images.pull("debian", **options(server, keyring))
    serve(server, debian_suite("sid", key, "9.9.9-2"))

    def full(*arguments: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cpio, "write", full)
    with pytest.raises(ImageError, match="no space left") as caught:
        images.pull("debian", **options(server, keyring))
    assert caught.value.kind == "space"
    assert images.verify("debian") == image
    assert sorted(path.name for path in (cache / "images" / "debian").iterdir()) == sorted(
        [image.directory.name, "current"]
    )


def test_unknown_image_and_damage(server: Server, keyring: Path, key: pysequoia.Tsk) -> None:
    with pytest.raises(ImageError, match="known are debian"):
        images.ensure("plan9")
    with pytest.raises(ImageError, match="polyvisor image pull debian"):
        images.get("debian")
    serve(server, debian_suite("sid", key))
    image = images.pull("debian", **options(server, keyring))
    image.initrd.write_bytes(b"?")
    with pytest.raises(ImageError, match="initrd is not what was built"):
        images.verify("debian")
    images.pull("debian", **options(server, keyring))
    images.verify("debian").initrd.unlink()
    with pytest.raises(ImageError, match="damaged"):
        images.get("debian")
    assert images.local() == []
    assert images.ensure("debian", **options(server, keyring)).initrd.exists()


def test_two_processes(server: Server, keyring: Path, key: pysequoia.Tsk) -> None:
    serve(server, debian_suite("sid", key))
    script = (
        "import sys; from polyvisor import images; images.ensure('debian', mirror=sys.argv[1], keyring=sys.argv[2])"
    )
    command = [sys.executable, "-c", script, server.url, str(keyring)]
    for process in [subprocess.Popen(command) for _ in range(2)]:
        assert process.wait() == 0
    assert sum("InRelease" in path for path, _ in server.log) == 1
    images.verify("debian")


def test_older_kernel_package_and_tar(tmp_path: Path) -> None:
    directory = tmp_path / "packages"
    directory.mkdir()
    files = kernel_files() | {f"boot/vmlinux-{VERSION}": KERNEL}
    (directory / "linux.deb").write_bytes(deb(f"linux-image-{VERSION}", "6.1-1", files))
    (directory / "busybox.deb").write_bytes(deb("busybox-static", "1", {"usr/bin/busybox": b"no table"}))
    image = images.build_from_packages(directory)
    assert (image.version, image.suite) == ("6.1-1", None)
    links = {entry.name for entry in cpio.read(image.initrd.read_bytes())}
    assert "usr/bin/mount" in links and "usr/bin/ls" not in links
    (directory / "more.deb").write_bytes(deb("linux-image-1-x", "1", {"boot/vmlinuz-1-x": KERNEL}))
    with pytest.raises(ImageError, match="hold kernels"):
        images.build_from_packages(directory)
    (directory / "more.deb").write_bytes(b"!<arch>\nrubbish")
    with pytest.raises(ImageError, match="fetch it again"):
        images.build_from_packages(directory)


@pytest.mark.parametrize("missing", ["linux.deb", "busybox.deb"])
def test_incomplete_packages(tmp_path: Path, missing: str) -> None:
    packages = {
        "linux.deb": deb("linux-image-1-x", "1", {"boot/vmlinuz-1-x": KERNEL}),
        "busybox.deb": deb("busybox-static", "1", {"usr/bin/busybox": BUSYBOX}),
    }
    for name, data in packages.items():
        if name != missing:
            (tmp_path / name).write_bytes(data)
    with pytest.raises(ImageError, match="the packages hold no"):
        images.build_from_packages(tmp_path)


def zboot(name: bytes, payload: bytes) -> bytes:
    header = b"MZ\0\0zimg" + struct.pack("<II8x", 64, len(payload)) + name.ljust(32, b"\0")
    return header.ljust(64, b"\0") + payload


def test_kernel_forms() -> None:
    gzipped = zlib.compressobj(wbits=31)
    compressed = gzipped.compress(KERNEL) + gzipped.flush()
    size = struct.pack("<I", len(KERNEL))
    forms = [KERNEL, compressed, zboot(b"gzip", compressed + size)]
    forms.append(zboot(b"zstd22", zstandard.ZstdCompressor().compress(KERNEL) + size))
    assert [kernel.flat_image(form) for form in forms] == [KERNEL] * 4
    for bad, kind in [(b"\x7fELF" + bytes(99), "unsupported"), (compressed[:4] + bytes(50), "corrupt")]:
        with pytest.raises(ImageError) as caught:
            kernel.flat_image(bad)
        assert caught.value.kind == kind


def test_command_line(tmp_path: Path) -> None:
    image = store.Image("debian", "1", "riscv64", "1", None, "", "console=ttyS0", tmp_path)
    assert image.command_line(run="ls -l", winsize=(24, 80)) == (
        "cma=0 console=ttyS0 earlycon=sbi polyvisor.winsize=24x80 polyvisor.run=bHMgLWw="
    )
    with pytest.raises(ImageError, match="too long"):
        image.command_line(run="x" * 1000)


def test_cli(tmp_path: Path, server: Server, keyring: Path, key: pysequoia.Tsk) -> None:
    run = CliRunner().invoke
    assert "run `polyvisor image pull debian`" in run(app, ["path", "debian"]).stderr
    assert run(app, ["verify", "debian"]).exit_code == 1
    serve(server, debian_suite("sid", key))
    pulled = run(app, ["pull", "debian", "--mirror", server.url, "--keyring", str(keyring), "--suite", "sid"])
    assert pulled.exit_code == 0, pulled.output
    assert "building the image" in pulled.stderr
    directory = run(app, ["path", "debian"]).stdout.strip()
    assert pulled.stdout.strip() == directory and (Path(directory) / "kernel").is_file()
    assert "9.9.9-1" in run(app, ["list"]).stdout
    assert run(app, ["verify", "debian"]).exit_code == 0
    assert run(app, ["remove", "debian"]).exit_code == 0
    assert not store.downloads().exists()
    failed = run(app, ["pull", "debian", "--mirror", "http://127.0.0.1:9/debian", "--keyring", str(keyring)])
    assert failed.exit_code == 1 and failed.stderr.startswith("polyvisor: cannot fetch")


def test_frozen_packages(guests: Path) -> None:
    image = images.build_from_packages(guests)
    assert image.kernel.read_bytes()[0x38:0x3C] == b"RSC\x05"
    assert image.initrd.stat().st_size < 40_000_000
    files = {entry.name: entry for entry in cpio.read(image.initrd.read_bytes())}
    dep = files[f"usr/lib/modules/{image.kernel_version}/modules.dep"].data.decode()
    for name in ("virtio_mmio", "virtio_blk", "virtio_net", "virtio-rng", "9pnet_virtio", "ext4", "btrfs", "overlay"):
        assert re.search(rf"/{name}\.ko:", dep), name
    names = initramfs.applets(files["usr/bin/busybox"].data)
    assert {"ash", "sh", "modprobe", "devmem", "setsid", "poweroff", "vi"} <= set(names)
    assert modules.canonical("virtio-gpu") == "virtio_gpu"
