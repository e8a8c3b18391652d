"""What the guest was told is on the disk is there, however the machine ends."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.storage.convert import convert
from polyvisor.storage.open import open_disk
from polyvisor.vm.machine import Machine
from support.guests import guest_image

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None for tool in ("e2fsck", "debugfs")),
    reason="e2fsprogs is not installed",
)

# File N has N % 50 * 700 + 1 bytes of lines with its number; file 1000 + N % 7 is written again and again.
WRITER = """
modprobe virtio_blk 2>/dev/null; modprobe ext4 2>/dev/null; mkdir -p /mnt; mount -t ext4 /dev/vda /mnt || exit 9
n=0; while :; do n=$((n+1));
yes $n | head -c $((n % 50 * 700 + 1)) | dd of=/mnt/$n bs=64k conv=fsync 2>/dev/null || exit 8; echo "SYNCED $n";
yes $n | head -c 5000 | dd of=/mnt/$((1000 + n % 7)) bs=64k conv=fsync,notrunc 2>/dev/null; echo "AGAIN $n";
done
"""

CHILD = """
import sys
from functools import partial
from pathlib import Path
from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.vm.machine import Machine
disk, kernel, initrd, line = sys.argv[1:]
def output(data):
    sys.stdout.buffer.write(data)
    sys.stdout.flush()
machine = Machine(VirtConfig(memory=256 << 20, devices=(partial(BlockDevice.open, disk),)), output)
machine.board.load_linux(Path(kernel).read_bytes(), Path(initrd).read_bytes(), line)
machine.start()
machine.wait()
"""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, "PATH": path})


def make_disk(tmp_path: Path, form: str) -> Path:
    raw = tmp_path / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(32 << 20)
    assert run("mkfs.ext4", "-q", "-O", "^metadata_csum_seed,^orphan_file", raw).returncode == 0
    if form == "raw":
        return raw
    path = tmp_path / "disk.qcow2"
    source = open_disk(raw, True, "raw")
    convert(source, path, "qcow2", cluster_size=4096, replace=True)
    source.close()
    return path


def check_disk(path: Path, tmp_path: Path, console: bytes) -> int:
    """Fail unless everything that the console says was synced is there; gives how many files that are."""
    disk = open_disk(path, False)
    disk.close()
    if path.suffix == ".qcow2":
        disk = open_disk(path, True)
        assert disk.examine().errors == []  # type: ignore[attr-defined]
        disk.close()
    copy, found = tmp_path / "copy.raw", tmp_path / "found"
    source = open_disk(path, True)
    convert(source, copy, "raw", replace=True)
    source.close()
    first = run("e2fsck", "-fy", copy)
    assert first.returncode in (0, 1), first.stdout
    # The totals in the superblock are not in the journal; Linux counts them anew when it mounts.
    others = re.sub(r"Free (blocks|inodes) count wrong \(\d+, counted=\d+\)\.\nFix\? yes\n", "", first.stdout)
    assert not re.search(r"Fix|error|corrupt|illegal|invalid", others, re.I), first.stdout
    second = run("e2fsck", "-fn", copy)
    assert second.returncode == 0, second.stdout
    shutil.rmtree(found, ignore_errors=True)
    found.mkdir()
    run("debugfs", "-R", f"rdump / {found}", copy)
    synced = [int(n) for n in re.findall(rb"SYNCED (\d+)\r?\n", console)]
    for n in synced:
        assert (found / str(n)).read_bytes() == (b"%d\n" % n * 40000)[: n % 50 * 700 + 1], f"file {n} of {len(synced)}"
    last = {int(n) % 7: int(n) for n in re.findall(rb"AGAIN (\d+)\r?\n", console)}
    for rest, n in last.items():
        # What is written over it next may be there in part, so only a file at rest has one content.
        if n + 7 > max(synced):
            assert (found / str(1000 + rest)).read_bytes()[:5000] == (b"%d\n" % n * 5000)[:5000], f"file {1000 + rest}"
    return len(synced)


def kill_process(path: Path, tmp_path: Path, seed: int) -> int:
    rnd = random.Random(seed)
    image = guest_image()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, path, image.kernel, image.initrd, image.command_line(run=WRITER)],
        stdout=subprocess.PIPE,
    )
    console = bytearray()
    enough = threading.Event()
    wanted = rnd.randrange(2, 40)

    def take() -> None:
        assert child.stdout is not None
        while data := os.read(child.stdout.fileno(), 65536):
            console.extend(data)
            if console.count(b"SYNCED") >= wanted:
                enough.set()
        enough.set()

    reader = threading.Thread(target=take)
    reader.start()
    try:
        assert enough.wait(120), bytes(console)
        enough.clear()
        enough.wait(rnd.random() * 0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        reader.join()
    assert console.count(b"SYNCED") >= wanted, bytes(console[-2000:])
    return check_disk(path, tmp_path, bytes(console))


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_killing_the_process_loses_nothing(tmp_path: Path, form: str) -> None:
    assert kill_process(make_disk(tmp_path, form), tmp_path, seed=len(form))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_killing_the_process_many_times_loses_nothing(tmp_path: Path, form: str) -> None:
    for seed in range(20):
        assert kill_process(make_disk(tmp_path, form), tmp_path, seed)


def test_cutting_the_power_loses_nothing(tmp_path: Path) -> None:
    path = make_disk(tmp_path, "qcow2")
    image = guest_image()
    console = bytearray()
    enough = threading.Event()

    def output(data: bytes) -> None:
        console.extend(data)
        if console.count(b"AGAIN") >= 12:
            enough.set()

    config = VirtConfig(memory=256 << 20, devices=(partial(BlockDevice.open, path),))
    with Machine(config, output) as machine:
        machine.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), image.command_line(run=WRITER))
        machine.start()
        assert enough.wait(120), bytes(console)
    assert check_disk(path, tmp_path, bytes(console)) >= 12
