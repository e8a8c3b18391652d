"""Machines whose root file system is on a disk of their image: Linux boots from it, and the agent lives there."""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from polyvisor import images
from polyvisor.images import cpio
from polyvisor.storage.convert import convert
from polyvisor.storage.open import open_disk
from polyvisor.vm.software import Software
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image

UUID = "178a3113-95f5-5c47-8185-506c29640e43"
INITTAB = "::sysinit:/bin/echo the disk is up\n::respawn:/bin/sleep 1000\n"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> images.Image:
    """An image whose disk has busybox, as its init too."""
    if shutil.which("mke2fs") is None:
        pytest.skip("mke2fs is not installed")
    base = guest_image()
    directory = tmp_path_factory.mktemp("image")
    (directory / "kernel").symlink_to(base.kernel)
    (directory / "initrd").symlink_to(base.initrd)
    root = directory / "root"
    for name in ("usr/bin", "etc", "sbin", "root", "proc", "sys", "dev", "run", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    for entry in cpio.read(base.initrd.read_bytes()):
        path = root / entry.name
        if entry.name.startswith("usr/bin/"):
            if stat.S_ISLNK(entry.mode):
                path.symlink_to(entry.data.decode())
            else:
                path.write_bytes(entry.data)
                path.chmod(0o755)
    (root / "sbin/init").symlink_to("/bin/busybox")
    (root / "etc/inittab").write_text(INITTAB)
    (root / "etc/marker").write_text("on the disk\n")
    disk = directory / "disk"
    subprocess.run(
        ["mke2fs", "-q", "-t", "ext4", "-U", UUID, "-L", "rooty", "-d", root, disk, "32M"], check=True
    )
    shutil.rmtree(root)
    return images.Image(
        name="disk:test", version="1", arch="riscv64", kernel_version=base.kernel_version, suite=None,
        created="2026-01-01T00:00:00+00:00", append=f"{base.append} root=UUID={UUID} rw", directory=directory,
        has_disk=True,
    )


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_guest_runs_from_the_disk_and_what_it_writes_is_thrown_away(image: images.Image) -> None:
    assert image.disk is not None
    before = digest(image.disk)
    with VM(image) as vm:
        assert vm.run("cat /etc/marker", check=True).stdout == "on the disk\n"
        vm.console.expect("the disk is up", timeout=60)
        assert vm.run("readlink /proc/1/exe").stdout == "/usr/bin/busybox\n"
        assert vm.read_file("/proc/1/comm") == b"init\n"
        assert vm.run("ls -d /polyvisor /newroot").exit_code != 0, "nothing of the initramfs is left"
        mounts = [line.split()[:2] for line in vm.read_file("/proc/mounts").decode().splitlines()]
        assert ["/dev/vda", "/"] in mounts
        assert {"/proc", "/sys", "/dev", "/dev/pts", "/run"} <= {where for _, where in mounts}
        vm.write_file("/etc/marker", "changed\n")
        vm.run("sync", check=True)
        vm.restart()
        vm.boot()
        assert vm.read_file("/etc/marker") == b"changed\n", "a guest that restarts finds its disk as it was"
        vm.stop(timeout=60)
        assert vm.exit_code == 0
    assert digest(image.disk) == before


def test_what_is_kept_is_there_for_the_next_machine(image: images.Image, tmp_path: Path) -> None:
    assert image.disk is not None
    before = digest(image.disk)
    keep = tmp_path / "mine.qcow2"
    with VM(image, keep=keep) as vm:
        vm.write_file("/root/mine", "kept\n")
    with VM(image, keep=keep, append="root=LABEL=rooty") as vm:
        assert vm.read_file("/root/mine") == b"kept\n"
    assert digest(image.disk) == before
    disk = open_disk(keep, True, "qcow2")
    try:
        convert(disk, tmp_path / "raw", "raw")
    finally:
        disk.close()
    checked = subprocess.run(["e2fsck", "-p", tmp_path / "raw"], capture_output=True, text=True)
    assert checked.returncode in (0, 1), checked.stdout
    assert f"{image.disk}".encode() not in keep.read_bytes()[:65536], "it needs the image's disk no more"


def test_a_command_runs_without_the_disks_init(image: images.Image, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "hello").write_text("from the host\n")
    command = "cat /etc/marker /srv/of-host/hello; cat /proc/1/cmdline; touch /root/made; exit 7"
    software = Software(
        kernel=image.kernel, initrd=image.initrd, append=image.command_line(run=command), agent=True, our_initrd=True,
        disk=image.disk,
    )
    output: list[bytes] = []
    keep = tmp_path / "mine.qcow2"
    vm = VM(software=software, on_output=output.append, keep=keep, shares=[f"{shared}:/srv/of-host"])
    vm.start()
    assert vm.wait(120) == 7
    text = b"".join(output).decode(errors="replace")
    assert "on the disk" in text and "from the host" in text and "/init" in text
    disk = open_disk(keep, True, "qcow2")
    try:
        convert(disk, tmp_path / "raw", "raw")
    finally:
        disk.close()
    checked = subprocess.run(["e2fsck", "-n", tmp_path / "raw"], capture_output=True, text=True)
    assert ": clean," in checked.stdout, "it was unmounted"


@pytest.mark.parametrize(
    ("append", "message"),
    [
        ("root=UUID=00000000-0000-0000-0000-000000000001", "there is no disk UUID=0000"),
        ("rootfstype=squashfs", "/dev/vda cannot be mounted as one of: squashfs"),
        ("init=/no/such", "there is no /no/such on UUID="),
    ],
)
def test_a_root_that_cannot_be_is_reported_and_the_machine_ends(
    image: images.Image, append: str, message: str
) -> None:
    vm = VM(image, append=append)
    vm.start()
    vm.console.expect(message, timeout=120)
    assert vm.wait(60) == 1


def test_only_an_image_with_a_disk_keeps_something() -> None:
    with pytest.raises(ValueError, match="keep goes with an image that has a disk"):
        VM(guest_image(), keep="x.qcow2")
