"""Snapshots of a machine with Linux, in files: what is in them, what becomes of them, what they refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyvisor
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.network.switch import Switch
from polyvisor.storage.convert import create_raw
from polyvisor.storage.open import open_disk
from polyvisor.storage.qcow2.create import create_qcow2
from polyvisor.storage.qcow2.image import Qcow2
from polyvisor.vm.equipment import Disk, Nic, Screen, Share
from polyvisor.vm.errors import SnapshotError
from polyvisor.vm.snapshot import store
from polyvisor.vm.snapshot.store import Snapshot
from polyvisor.vm.snapshot.writer import Writer
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image

DISK = 1 << 20
PICTURE = b"U" * (4 * 320 * 200)
PREPARE = """
echo in memory > /tmp/file
(i=0; while true; do echo $i > /tmp/count; i=$((i+1)); sleep 0.02; done) > /dev/null 2>&1 &
exec 5>>/mnt/host/open; echo first >&5
(while true; do read line < /tmp/fifo && echo "$line" >&5; done) > /dev/null 2>&1 &
mkfifo /tmp/fifo
modprobe virtio_blk
printf before | dd of=/dev/vda bs=4096 seek=3 conv=fsync 2> /dev/null
printf kept | dd of=/dev/vdb bs=4096 seek=5 conv=fsync 2> /dev/null
while ! [ -e /dev/fb0 ]; do sleep 0.05; done
printf '\\033[?25l' > /dev/tty1
echo 0 > /sys/class/vtconsole/vtcon1/bind
tr '\\0' U < /dev/zero | head -c 256000 > /dev/fb0
"""


def read_disk(vm: VM, disk: str, block: int) -> str:
    return str(vm.run(f"dd if=/dev/{disk} bs=4096 skip={block} count=1 iflag=direct 2> /dev/null | tr -d '\\0'").stdout)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def inner_names(made: Made) -> set[str]:
    disk = open_disk(made.directory / "image.qcow2", True)
    names = {each.name for each in disk.snapshots}  # type: ignore[attr-defined]
    disk.close()
    return names


class Made:
    """A machine, and the snapshot ``first`` of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.share = directory / "share"
        self.share.mkdir()
        create_raw(directory / "raw", DISK)
        (directory / "raw").open("r+b").write(b"from the host")
        create_qcow2(directory / "image.qcow2", DISK)
        self.switch = Switch()
        self.vm = VM(
            guest_image(), memory="128M", cpus=2, timeout=60, name="original",
            disks=[Disk(str(directory / "raw"), snapshot=True), str(directory / "image.qcow2")],
            shares=[Share(str(self.share))], networks=[Nic(self.switch, name="card", address="10.0.0.1/24")],
            display=Screen(320, 200, bare=True),
        ).boot()  # fmt: skip
        self.vm.run(PREPARE, check=True)
        assert self.vm.screen is not None
        display = self.vm.screen.display
        while display.frame().pixels != PICTURE:
            assert display.wait_for_change(30, since=display.changes - 1)
        self.first = self.vm.snapshot("first")

    def restore(self, snapshot: str = "first", /, **options: Any) -> VM:
        return VM.restore(snapshot, timeout=60, **{"networks": [Switch()], **options})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    directory = tmp_path_factory.mktemp("snapshots")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYVISOR_DATA", str(directory / "data"))
        made = Made(directory)
        try:
            yield made
        finally:
            made.vm.kill()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Going on


def test_a_machine_goes_on_as_it_was(made: Made) -> None:
    before = digest(made.first.path)
    with made.restore() as vm, made.restore(name="other") as other:
        assert (vm.name, other.name, vm.config.cpus, vm.config.memory) == ("original", "other", 2, 128 << 20)
        assert vm.run("cat /tmp/file").stdout == "in memory\n"
        first = int(vm.run("cat /tmp/count").stdout)
        # What ran goes on running.
        assert vm.run(f"while [ $(cat /tmp/count) -le {first} ]; do sleep 0.02; done; nproc").stdout == "2\n"
        assert vm.screen is not None and vm.screen.display.frame().pixels == PICTURE
        # Two of them share nothing.
        vm.run("echo changed > /tmp/file; printf mine | dd of=/dev/vda bs=4096 seek=3 conv=fsync,notrunc")
        assert other.run("cat /tmp/file").stdout == "in memory\n"
        assert read_disk(other, "vda", 3) == "before" and read_disk(vm, "vda", 3) == "minere"
        assert read_disk(other, "vda", 0) == "from the host"
    assert digest(made.first.path) == before
    made.first.check()


def test_open_files_of_a_share_stay_open(made: Made) -> None:
    with made.restore(shares=[Share(str(made.share))]) as vm:
        vm.run("echo again > /tmp/fifo; sync; while ! grep -q again /mnt/host/open; do sleep 0.02; done", check=True)
    assert (made.share / "open").read_text() == "first\nagain\n"


def test_an_image_that_is_written_to_keeps_the_disk_inside(made: Made) -> None:
    made.vm.run("printf later | dd of=/dev/vdb bs=4096 seek=5 conv=fsync")
    with made.restore() as vm:
        assert read_disk(vm, "vdb", 5) == "kept"
        vm.run("printf thrown | dd of=/dev/vdb bs=4096 seek=5 conv=fsync")
        assert read_disk(vm, "vdb", 5) == "thrown"
        # A snapshot of a restored machine has all that it needs.
        vm.snapshot("second")
        with pytest.raises(SnapshotError, match=r"first.pvsnap: is needed by the snapshot .*second"):
            store.delete("first")
        with made.restore("second") as again:
            assert read_disk(again, "vdb", 5) == "thrown" and read_disk(again, "vda", 3) == "before"
    assert read_disk(made.vm, "vdb", 5) == "later"
    store.delete("second")


def test_the_guest_may_restart(made: Made) -> None:
    with made.restore() as vm:
        vm.restart()
        vm.events.wait("ready", 60, count=2)
        assert not vm.run("cat /tmp/file").ok
        vm.run("modprobe virtio_blk")
        assert read_disk(vm, "vda", 3) == "before"
        with pytest.raises(SnapshotError, match="has not gone on from one"):
            vm.snapshot("changes", base=True)


def test_the_machine_is_in_the_network_again(made: Made) -> None:
    switch = Switch()
    with made.restore(networks=[switch]) as vm, made.restore(networks=[switch]) as other:
        assert vm.networks[0].mac == made.vm.networks[0].mac
        other.run("ip addr flush dev eth0; ip link set eth0 address 02:00:00:00:00:77", check=True)
        other.run("ip addr add 10.0.0.2/24 dev eth0; ip link set eth0 up", check=True)
        assert vm.run("ping -c 1 -W 20 10.0.0.2").ok


def test_what_is_asked_of_it_meanwhile_is_not_lost(made: Made, tmp_path: Path) -> None:
    found: list[str] = []
    command = "for i in 1 2 3 4 5 6 7 8; do echo $i; sleep 0.05; done"
    asking = threading.Thread(target=lambda: found.append(made.vm.run(command).stdout))
    asking.start()
    for n in range(3):
        made.vm.snapshot(tmp_path / f"{n}.pvsnap")
    asking.join()
    assert found == ["1\n2\n3\n4\n5\n6\n7\n8\n"]
    # The agent of the restored machine ends what it did for a host that is not there any more.
    with made.restore(str(tmp_path / "0.pvsnap")) as vm:
        vm.run("while ps -o args | grep -q '[f]or i in 1 2 3'; do sleep 0.05; done", timeout=30)
    with pytest.raises(SnapshotError, match=r"image.qcow2 has of it cannot be deleted: .* in use"):
        store.delete(tmp_path / "0.pvsnap")


def test_the_agent_answers_right_after_it_has(made: Made) -> None:
    with made.restore() as vm:
        for n in range(3):
            assert vm.run(f"echo {n}").stdout == f"{n}\n"
            vm.snapshot("busy")
            # The guest may still know the connections that are gone.
            with made.restore("busy") as other:
                assert other.run("echo on").stdout == "on\n"
    store.delete("busy")


def test_coroutines_do_the_same(made: Made, tmp_path: Path) -> None:
    import asyncio

    async def main() -> str:
        async with polyvisor.AsyncVM.restore("first", networks=[Switch()]) as vm:
            snapshot = await vm.snapshot(tmp_path / "a.pvsnap", base="first")
            assert snapshot.parent == made.first.path
            return str((await vm.run("cat /tmp/file")).stdout)

    assert asyncio.run(main()) == "in memory\n"


# Changes only


def test_snapshots_with_what_changed(made: Made, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.pvsnap" for n in range(3)]
    with made.restore() as vm:
        last: Snapshot = vm.snapshot(paths[0])
        for n, path in enumerate(paths[1:], 1):
            vm.run(f"echo {n} > /tmp/file; printf {n} | dd of=/dev/vda bs=4096 seek={n + 10} conv=fsync")
            made_of, last = last, vm.snapshot(path, base=last)
            assert last.parent == made_of.path and last.stored < made_of.stored / (8 if n == 1 else 1) + (4 << 20)
        with pytest.raises(SnapshotError, match="can be the base"):
            vm.snapshot(tmp_path / "x.pvsnap", base=paths[0])
        with pytest.raises(SnapshotError, match="is needed by the snapshot"):
            vm.snapshot(paths[0])
        with pytest.raises(SnapshotError, match="cannot replace the snapshot that it is based on"):
            vm.snapshot(paths[2], base=True)
    last.check()
    for n in (2, 1):
        with made.restore(str(paths[n])) as vm:
            assert vm.run("cat /tmp/file").stdout == f"{n}\n"
            blocks = [read_disk(vm, "vda", at + 10) for at in range(1, 3)]
            assert blocks == [str(at) if at <= n else "" for at in range(1, 3)]
            if n == 1:
                # All of it, of pages from several files.
                assert vm.snapshot(tmp_path / "whole.pvsnap").parent is None
    for path in paths[:2]:
        with pytest.raises(SnapshotError, match="is needed by the snapshot"):
            store.delete(path)
    paths[1].rename(tmp_path / "away.pvsnap")
    with pytest.raises(SnapshotError, match=r"2.pvsnap: is based on the snapshot .*1.pvsnap, which is not there"):
        made.restore(str(paths[2]))
    shutil.copyfile(paths[0], paths[1])
    with pytest.raises(SnapshotError, match="which has been replaced"):
        made.restore(str(paths[2]))
    paths[1].unlink()
    (tmp_path / "away.pvsnap").rename(paths[1])
    with made.restore(str(tmp_path / "whole.pvsnap")) as vm:
        assert vm.run("cat /tmp/file").stdout == "1\n" and read_disk(vm, "vda", 11) == "1"
    for path in reversed(paths):
        store.delete(path)


def test_every_page_that_changed_is_known(made: Made) -> None:
    work = "dd if=/dev/vda of=/tmp/copy; cat /mnt/host/open; dd if=/dev/urandom of=/tmp/big bs=64k count=40"
    file = store.open_file("first")
    section = file.document["ram"][-1]["section"]
    before, mark = file.read(section["offset"], section["size"]), 1
    with made.restore() as vm:
        pages = vm.machine.board.pages
        assert pages is not None
        # First what was written since it was restored, then since a moment while it ran.
        for _ in range(2):
            vm.run(f"{work}; ls -lR /usr > /tmp/list; sync", check=True)
            with vm.paused():
                now = bytes(vm.machine.board.memory.view(0x8000_0000, 128 << 20))
                told = {first + n for first, count in pages.written_since(mark)[-1] for n in range(count)}
                mark = pages.mark()
            differ = {at >> 12 for at in range(0, len(now), 4096) if before[at : at + 4096] != now[at : at + 4096]}
            assert len(differ) > 500 and differ <= told
            before = now


# Files


def test_what_fails_leaves_the_old_one(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "it.pvsnap"
    made.vm.snapshot(path)
    before, inside = store.find(path).identity, inner_names(made)

    def full(self: Writer, *document: object) -> None:
        raise OSError(28, os.strerror(28))

    devices = [each for each in made.vm.machine.board.virtio_devices if isinstance(each, BlockDevice)]
    delete = Qcow2.delete_snapshot

    def delete_alone(image: Qcow2, inner: str) -> None:
        # The guest may be writing to it, when it runs again.
        assert any(each.disk is image and each.lock._is_owned() for each in devices)  # type: ignore[attr-defined]
        delete(image, inner)

    for name in ("finish", "save"):
        with monkeypatch.context() as patch:
            patch.setattr(Writer, name, full)
            patch.setattr(Qcow2, "delete_snapshot", delete_alone)
            with pytest.raises(SnapshotError, match="the snapshot cannot be written: No space left on device"):
                made.vm.snapshot(path)
    assert store.find(path).identity == before and names_in(tmp_path) == ["it.pvsnap"]
    assert made.vm.run("echo on").stdout == "on\n"
    # The image has nothing of what failed, and soon nothing of what is replaced.
    assert inner_names(made) == inside and store.inner_name(store.find(path).identity) in inside
    (tmp_path / ".it.pvsnap.left.part").write_bytes(b"by a crash")
    made.vm.snapshot(path)
    assert names_in(tmp_path) == ["it.pvsnap"] and store.find(path).identity != before
    assert len(inner_names(made) - inside) == len(inside - inner_names(made)) == 1
    other = tmp_path / "text.pvsnap"
    other.write_text("the user's")
    with pytest.raises(SnapshotError, match="is there already, and is not a snapshot"):
        made.vm.snapshot(other)


def test_damaged_files_are_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "bad.pvsnap"

    def refused(says: str) -> None:
        for refuse in (lambda: store.find(path).check(), lambda: made.restore(str(path))):
            with pytest.raises(SnapshotError, match=says) as caught:
                refuse()
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)

    for content in (b"", b"#!/bin/sh\n" * 1000):
        path.write_bytes(content)
        refused("is not a snapshot of polyvisor")
    subprocess.run(["cp", "--sparse=always", made.first.path, path], check=True)
    file = store.open_file(path)
    document, ram = file.header.document_at, file.document["ram"][-1]["section"]
    with path.open("r+b") as stream:

        def change(at: int, value: int | None = None) -> int:
            """Change a byte; gives what it was."""
            stream.seek(at)
            before = stream.read(1)[0]
            stream.seek(at)
            stream.write(bytes([before ^ 0x10 if value is None else value]))
            stream.flush()
            return before

        for at, says in (
            (0, "is not a snapshot of polyvisor"), (17, "its header has another checksum"),
            (40, "its header has another checksum"), (100, "its header has another checksum"),
            (document + 100, "what it says of the machine has another checksum"),
        ):
            before = change(at)
            refused(says)
            change(at, before)
        change(8, 2)
        refused("made by a newer polyvisor: it has format 2, and this one knows 1")
        change(8, 1)
        # Pages are looked at only when they are asked for.
        at = ram["offset"] + ram["runs"][0][0] + 5
        before = change(at)
        with pytest.raises(SnapshotError, match=r"the bytes from 0x[0-9a-f]+ on have another checksum"):
            store.find(path).check()
        change(at, before)
        store.find(path).check()
        size = path.stat().st_size
        for wrong, says in ((size + 1, "is damaged: it has"), (size - 1, "is cut short"), (size // 2, "is cut short")):
            os.truncate(path, wrong)
            refused(says)


def test_documents_that_make_no_sense_are_refused(made: Made, tmp_path: Path) -> None:
    path = tmp_path / "odd.pvsnap"
    file = store.open_file("first")
    nothing = {"offset": 65536, "size": 0, "unit": 4096, "runs": [], "checksums": b""}
    without = {"ram": [], "disks": [{**each, "section": nothing} for each in file.document["disks"]]}

    def write(document: Any) -> None:
        path.unlink(missing_ok=True)
        writer = Writer(path, bytes(16))
        writer.finish(document)
        writer.save()
        writer.close()

    for change, says in (
        ({"vm": None}, "vm: not of type dict"),
        ({"ram": [{"base": 0x80000000, "section": {"offset": 0, "size": 1 << 40, "unit": 4096, "runs": [],
                                                   "checksums": b""}}]}, "a section outside of the file"),
        ({"ram": 5}, "ram: not of type list"),
        ({"board": {}}, "is missing"),
        ({"board": []}, "not of type dict"),
        ({"virtio": []}, "devices|shorter|argument"),
        ({"virtio": 5}, "virtio: not of type list"),
        ({"created": {"$bytes": 5}}, "what it says of the machine makes no sense"),
        ({"shape": file.document["shape"] | {"cpus": 3}}, "cpus 3, and this one has 2"),
        ({"disks": []}, "devices"),
        ({"disks": file.document["disks"]}, "a section outside of the file"),
    ):
        write({**file.document, **without, **change})
        with pytest.raises((SnapshotError, ValueError), match=says) as caught:
            made.restore(str(path))
        assert "\n" not in str(caught.value)


def test_disks_that_changed_are_noticed(made: Made, tmp_path: Path) -> None:
    raw = made.directory / "raw"
    status = raw.stat()
    os.utime(raw, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    try:
        with pytest.raises(SnapshotError, match=r"needs the disk .*raw as it was, and that was changed since"):
            made.restore()
    finally:
        os.utime(raw, ns=(status.st_atime_ns, status.st_mtime_ns))
    image = made.directory / "image.qcow2"
    image.rename(tmp_path / "away")
    try:
        with pytest.raises(SnapshotError, match=r"needs the disk .*image.qcow2: No such file"):
            made.restore()
    finally:
        (tmp_path / "away").rename(image)


def test_what_cannot_be_kept_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYVISOR_DATA", str(tmp_path / "data"))
    create_raw(tmp_path / "raw", DISK)
    vm = VM(guest_image(), memory="128M", disks=[str(tmp_path / "raw")])
    with pytest.raises(polyvisor.StoppedError):
        vm.snapshot("x")
    vm.start()
    with pytest.raises(SnapshotError, match=r"the raw disk .*raw is written to.*use a qcow2 image"):
        vm.snapshot("x")
    with pytest.raises(SnapshotError, match="cannot be a snapshot's name"):
        vm.snapshot("a b")
    vm.kill()
    with pytest.raises(SnapshotError, match=r"there is no snapshot 'x'$"):
        VM.restore("x")
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").rglob("*snap*/*"))


def test_what_goes_on_from_a_snapshot_is_not_recorded(made: Made, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="goes on from a snapshot cannot be recorded"):
        made.restore(record=tmp_path / "x.rec")
    assert not list(tmp_path.iterdir())


def test_a_card_needs_its_switch(made: Made) -> None:
    with pytest.raises(SnapshotError, match="was in a switch of the program that made it: give networks="):
        made.restore(networks=None)
    with pytest.raises(SnapshotError, match="2 networks for a machine with 1 cards"):
        made.restore(networks=["user", "user"])


@pytest.mark.slow
def test_a_machine_that_boots_goes_on_booting(tmp_path: Path) -> None:
    vm = VM(guest_image(), memory="128M", timeout=60).start()
    while vm.machine.board.harts[0].cpu.retired < 50_000_000:
        assert not vm.has_ended(0.01)
    snapshot = vm.snapshot(tmp_path / "early.pvsnap")
    vm.kill()
    with VM.restore(snapshot.path) as again:
        assert again.run("uname -m").stdout == "riscv64\n"


def test_the_document_is_json_that_others_can_read(made: Made) -> None:
    with made.first.path.open("rb") as file:
        header = file.read(4096)
        at, length = (int.from_bytes(header[n : n + 8], "little") for n in (24, 32))
        file.seek(at)
        document = json.loads(file.read(length))
    assert document["shape"]["architecture"] == "rv64" and len(document["board"]["harts"]) == 2
    ram = document["ram"][1]
    assert ram["base"] == 0x80000000
    offset, size = ram["section"]["runs"][0]
    with made.first.path.open("rb") as file:
        file.seek(ram["section"]["offset"] + offset)
        assert any(file.read(size))


def test_restored_machines_have_other_random_numbers(made: Made) -> None:
    with made.restore() as vm, made.restore(name="other") as other:
        assert len({each.run("head -c 16 /dev/urandom | od -x").stdout for each in (vm, other)}) == 2
