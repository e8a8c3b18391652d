"""Linux with a directory of the host by virtio-fs: its own file system client, and the real virtiofsd."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.fs import ShareError, VirtioFsDevice, find_virtiofsd
from polyvisor.devices.virtio.vhost_backend import BackEndProcess
from polyvisor.vm.machine import Machine
from support.guests import guest_image


@pytest.fixture(scope="module", autouse=True)
def virtiofsd() -> str:
    """Skips the tests where it cannot be had."""
    try:
        program = find_virtiofsd()
    except ShareError as error:
        pytest.skip(str(error))
    if os.geteuid() and "/qemu/" in program:
        pytest.skip("this virtiofsd needs root")
    return program


def machine(
    command: str, out: bytearray, *shares: partial[VirtioFsDevice], words: str = "", **options: object
) -> Machine:
    image = guest_image()
    config = VirtConfig(memory=256 << 20, devices=shares, **options)  # type: ignore[arg-type]
    made = Machine(config, out.extend)
    line = f"{image.command_line(run='set -e; ' + command)} {words}"
    made.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), line)
    return made


def run_linux(command: str, *shares: partial[VirtioFsDevice], words: str = "", **options: object) -> str:
    """What ``command`` prints; fails unless its status is 0. ``words`` are added to the kernel's command line."""
    out = bytearray()
    with machine(command, out, *shares, words=words, **options) as running:
        running.start()
        assert running.wait(180), out.decode(errors="replace")[-3000:]
        assert not running.exit_code, out.decode(errors="replace")[-3000:]
    return out.decode().replace("\r\n", "\n")


def tree(path: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for each in path.rglob("*"):
        mode = each.lstat().st_mode
        content = b""
        if stat.S_ISLNK(mode):
            content = os.fsencode(each.readlink())
        elif stat.S_ISREG(mode):
            content = each.read_bytes()
        found[str(each.relative_to(path))] = (mode, content)
    return found


WORK = r"""
cd /mnt/host
cp -a src copy
tar cf /tmp/a.tar src
mkdir untarred; tar xf /tmp/a.tar -C untarred
mv copy moved
find src | wc -l
sha256sum src/large
dd if=src/large of=again bs=1M 2>/dev/null
cp again /tmp/local
umount /data/x
cd /; umount /mnt/host; mount -t virtiofs host /mnt/host; mount -t virtiofs other /data/x; cd /mnt/host
cmp again src/large; cmp again /tmp/local
ln src/d0/f0 hard; [ $(stat -c %h hard) = 2 ]
exec 3<> open; echo before >&3; rm open; echo after >&3; exec 3>&-
dd if=/dev/zero of=far bs=1 count=1 seek=4294967299 2>/dev/null
[ $(stat -c %s far) = 4294967300 ]
mkdir -p deep/a/b/c; rm -rf deep
touch -d @1000000000 old
df . | grep -q host
[ $(cat seen) = one ]
touch asked
while ! [ -e answered ]; do sleep 0.1; done
sleep 1.1
[ $(cat seen) = changed ]
! touch /data/x/new 2>/dev/null
! rm /data/x/here 2>/dev/null
cat /data/x/here
"""


def change_when_asked(shared: Path, ended: threading.Event) -> None:
    """The host's part: change a file that the guest has seen, and say so."""
    while not (shared / "asked").exists():
        if ended.wait(0.05):
            return
    (shared / "seen").write_text("changed")
    (shared / "answered").touch()


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"bus": "pci", "packed": True}, marks=pytest.mark.slow)], ids=["mmio", "pci-packed"]
)
def test_a_day_of_work(tmp_path: Path, options: dict[str, object]) -> None:
    rng = random.Random(1)
    shared, other = tmp_path / "shared", tmp_path / "other"
    (shared / "src").mkdir(parents=True)
    other.mkdir()
    for i in range(12):
        (shared / "src" / f"d{i}").mkdir()
        for j in range(12):
            (shared / "src" / f"d{i}" / f"f{j}").write_bytes(rng.randbytes(rng.randrange(3000)))
    (shared / "src" / "link").symlink_to("d0/f0")
    large = rng.randbytes(6_000_001)
    (shared / "src" / "large").write_bytes(large)
    (shared / "seen").write_text("one")
    (shared / "work").write_text(WORK)
    (other / "here").write_text("the other one\n")
    before = tree(shared / "src")
    ended = threading.Event()
    host = threading.Thread(target=change_when_asked, args=(shared, ended))
    host.start()
    try:
        out = run_linux(
            "cp /mnt/host/work /tmp; sh -e /tmp/work", partial(VirtioFsDevice.spawn, shared),
            partial(VirtioFsDevice.spawn, other, "other", read_only=True), words="polyvisor.share=other:/data/x",
            **options,
        )
    finally:
        ended.set()
        host.join()
    assert out.split()[0] == str(len(before) + 1)
    assert hashlib.sha256(large).hexdigest() in out and "the other one" in out
    assert tree(shared / "moved") == tree(shared / "untarred" / "src") == before
    assert (shared / "again").read_bytes() == large
    assert (shared / "hard").stat().st_ino == (shared / "src" / "d0" / "f0").stat().st_ino
    assert not (shared / "open").exists() and not (shared / "deep").exists()
    assert (shared / "far").stat().st_size == 4294967300 and (shared / "old").stat().st_mtime == 1_000_000_000
    assert [path.name for path in other.iterdir()] == ["here"]


def test_programs_run_from_it(tmp_path: Path) -> None:
    """Code that the back end wrote into memory is the code that runs, again and again."""
    again = "cd /; umount /mnt/host; mount -t virtiofs host /mnt/host; cd /mnt/host"
    commands = f"cp /bin/busybox busybox.$i; {again}; ./busybox.$i echo ran $i; rm busybox.$i"
    out = run_linux(f"cd /mnt/host; for i in 1 2 3 4; do {commands}; done", partial(VirtioFsDevice.spawn, tmp_path))
    assert [f"ran {i}" in out for i in range(1, 5)] == [True] * 4 and not list(tmp_path.iterdir())


def test_virtiofsd_is_killed_and_comes_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("there\n")
    again = (
        "cat /mnt/host/file; touch /mnt/host/kill; tries=0;"
        "while cat /mnt/host/file > /dev/null 2>&1; do sleep 0.05; tries=$((tries + 1)); [ $tries -lt 400 ]; done;"
        "ls /mnt/host 2>&1 | tail -1; umount -l /mnt/host; cd /sys/bus/virtio/drivers/virtiofs; name=$(ls -d virtio*);"
        "echo $name > unbind; echo $name > bind; mount -t virtiofs host /mnt/host; cat /mnt/host/file"
    )
    out = bytearray()
    with machine(again, out, partial(VirtioFsDevice.spawn, tmp_path)) as running:
        device = running.board.virtio_devices[1]
        assert isinstance(device, VirtioFsDevice) and isinstance(device._back_end, BackEndProcess)
        told: list[str] = []
        device.on_failure = lambda error: told.append(str(error))
        running.start()
        while not (tmp_path / "kill").exists():
            assert not running.wait(0.05), out
        assert device._back_end.pid
        os.kill(device._back_end.pid, signal.SIGKILL)
        assert running.wait(120) and not running.exit_code, out.decode(errors="replace")[-3000:]
        assert told == ["virtiofsd was ended by SIGKILL"] and device.failure is None
        pid = device._back_end.pid
    assert out.count(b"there") == 2 and b"not connected" in out
    assert pid and not Path(f"/proc/{pid}").exists()


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "here").write_text("shared\n")
    image = guest_image()
    command = "cat /mnt/host/here; cp /mnt/host/here /work/copy; ! touch /mnt/host/no; ls -ln /work | tail -1"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "polyvisor", "run", "--kernel", str(image.kernel), "--initrd", str(image.initrd)),
            *("--append", image.command_line(run=command)),
            *("--share", f"{tmp_path},via=virtiofs,ro", "--share", f"{tmp_path}:/work,via=virtiofs"),
        ],
        capture_output=True, timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(b"shared") == 1 and (tmp_path / "copy").read_text() == "shared\n"
    assert not (tmp_path / "no").exists() and not done.stderr


def test_the_command_says_that_virtiofsd_ended(tmp_path: Path) -> None:
    image = guest_image()
    command = "cd /mnt/host; touch kill; while : 2>/dev/null > again; do sleep 0.05; done; exit 5"
    arguments = [
        *(sys.executable, "-m", "polyvisor", "run", "--kernel", str(image.kernel), "--initrd", str(image.initrd)),
        *("--append", image.command_line(run=command), "--share", f"{tmp_path},via=virtiofs"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as running:
        while not (tmp_path / "kill").exists():
            with pytest.raises(subprocess.TimeoutExpired):
                running.wait(0.05)
        children = [
            int(child)
            for thread in Path(f"/proc/{running.pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
            if Path(f"/proc/{child}/comm").read_text().strip() == "virtiofsd"
        ]
        os.kill(children[0], signal.SIGKILL)
        out, errors = running.communicate(timeout=120)
    assert running.returncode, out
    assert errors == b"polyvisor: virtiofsd was ended by SIGKILL\n"
