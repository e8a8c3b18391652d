"""Linux with a directory of the host: its own driver and file system client, and what programs do to files."""

from __future__ import annotations

import importlib.util
import os
import random
import stat
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from polyvisor.boards.virt import VirtConfig
from polyvisor.cachedir import cache_root
from polyvisor.devices.virtio.p9 import P9Device
from polyvisor.storage.p9 import descriptors
from polyvisor.vm.machine import Machine
from support.guests import guest_image


def run_linux(command: str, *shares: partial[P9Device], words: str = "") -> str:
    """What ``command`` prints; fails unless its status is 0. ``words`` are added to the kernel's command line."""
    image = guest_image()
    out = bytearray()
    with Machine(VirtConfig(memory=256 << 20, devices=shares), out.extend) as machine:
        line = f"{image.command_line(run='set -e; ' + command)} {words}"
        machine.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), line)
        machine.start()
        assert machine.wait(180), out.decode(errors="replace")[-3000:]
        assert not machine.exit_code, out.decode(errors="replace")[-3000:]
    return out.decode().replace("\r\n", "\n")


def tree(path: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for each in path.rglob("*"):
        mode = each.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = os.fsencode(each.readlink())
        elif stat.S_ISREG(mode):
            content = each.read_bytes()
        else:
            content = b""
        found[str(each.relative_to(path))] = (mode, content)
    return found


WORK = r"""
cd /mnt/host
cp -a src copy
tar cf /tmp/a.tar src
mkdir untarred; tar xf /tmp/a.tar -C untarred
find src | wc -l
cat src/large | sha256sum
mv copy moved
ln -s ../outside/secret trap
! cat trap 2>/dev/null
ln src/d0/f0 hard
[ $(stat -c %h hard) = 2 ]
chmod 4750 hard; [ $(stat -c %a hard) = 4750 ]
touch theirs; chown 1000:50 theirs; [ $(stat -c %u:%g theirs) = 1000:50 ]
mknod null c 1 3; echo x > null
mkfifo pipe; (echo through > pipe &); read word < pipe; [ $word = through ]
exec 3<> open; echo before >&3; rm open; echo after >&3; exec 3>&-
dd if=/dev/zero of=far bs=1 count=1 seek=4294967299 2>/dev/null
[ $(stat -c %s far) = 4294967300 ]
touch -d @1000000000 old
mkdir -p deep/a/b/c; rm -rf deep
echo changed > src/d1/f1
df . | grep -q host
su -s /bin/sh nobody -c '! cat private 2>/dev/null; ! touch not-mine 2>/dev/null'
mkdir /mnt/host/nobodys; chown nobody nobodys
su -s /bin/sh nobody -c 'touch nobodys/mine'
[ $(stat -c %U nobodys/mine) = nobody ]
[ $(cat seen) = one ]
touch asked
while ! [ -e answered ]; do sleep 0.1; done
[ $(cat seen) = changed ]
! touch /data/x/new 2>/dev/null
cat /data/x/here
cd /
"""


def change_when_asked(shared: Path, ended: threading.Event) -> None:
    """The host's part: change a file that the guest has seen, and say so."""
    while not (shared / "asked").exists():
        if ended.wait(0.05):
            return
    (shared / "seen").write_text("changed")
    (shared / "answered").touch()


def test_a_day_of_work(tmp_path: Path) -> None:
    rng = random.Random(1)
    shared, other, outside = tmp_path / "shared", tmp_path / "other", tmp_path / "outside"
    for path in (shared / "src", other, outside):
        path.mkdir(parents=True)
    (outside / "secret").write_text("secret")
    for i in range(12):
        (shared / "src" / f"d{i}").mkdir()
        for j in range(12):
            (shared / "src" / f"d{i}" / f"f{j}").write_bytes(rng.randbytes(rng.randrange(3000)))
    (shared / "src" / "run").write_text("#!/bin/sh")
    (shared / "src" / "run").chmod(0o755)
    (shared / "src" / "readonly").touch(0o444)
    (shared / "src" / "link").symlink_to("d0/f0")
    (shared / "src" / "dangling").symlink_to("/nowhere/at/all")
    (shared / "src" / "large").write_bytes(rng.randbytes(3_000_001))
    (shared / "private").write_text("private")
    (shared / "private").chmod(0o600)
    (other / "here").write_text("the other one\n")
    before = tree(shared / "src")
    held = descriptors.held()
    (shared / "work").write_text(WORK)
    (shared / "seen").write_text("one")
    ended = threading.Event()
    host = threading.Thread(target=change_when_asked, args=(shared, ended))
    host.start()
    try:
        out = run_linux(
            "sh -e /mnt/host/work",
            *(partial(P9Device.open, shared), partial(P9Device.open, other, "other", read_only=True)),
            words="polyvisor.share=other:/data/x",
        )
    finally:
        ended.set()
        host.join()
    assert descriptors.held() == held
    assert out.split()[0] == str(len(before) + 1)
    sha256 = subprocess.run(["sha256sum", shared / "src" / "large"], capture_output=True, text=True, check=True)
    assert sha256.stdout.split()[0] in out
    assert "the other one" in out and "secret" not in out
    assert tree(shared / "moved") == tree(shared / "untarred" / "src") == before
    assert (shared / "hard").stat().st_ino == (shared / "src" / "d0" / "f0").stat().st_ino
    assert stat.S_IMODE((shared / "hard").stat().st_mode) == 0o750
    assert (shared / "theirs").stat().st_uid == os.geteuid()
    assert (shared / "null").is_file() and (shared / "pipe").is_file()
    assert not (shared / "open").exists() and not (shared / "deep").exists()
    far = (shared / "far").stat()
    assert far.st_size == 4294967300 and far.st_blocks < 1000
    assert (shared / "old").stat().st_mtime == 1_000_000_000
    assert (shared / "src" / "d1" / "f1").read_text() == "changed\n"
    assert [path.name for path in other.iterdir()] == ["here"]


def compiled() -> Path:
    """The guest's program. Skips the test where its compiler is not installed."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("ziglang is not installed")
    source = Path(__file__).with_name("shared_files.c")
    directory = cache_root() / "tests" / "programs"
    directory.mkdir(parents=True, exist_ok=True)
    output = directory / f"shared-files-{os.getpid()}"
    cache = str(cache_root() / "benchmarks" / "zig")
    environment = {"ZIG_GLOBAL_CACHE_DIR": cache, "ZIG_LOCAL_CACHE_DIR": cache, **os.environ}
    command = [sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-linux-musl", "-static", "-O1", "-s"]
    done = subprocess.run([*command, str(source), "-o", str(output)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return output


def test_programs_in_all_cache_modes(tmp_path: Path) -> None:
    program = compiled()
    program.replace(tmp_path / "program")
    modes = {"mmap": 1, "loose": 1, "none": 0}
    commands = [
        f"cd /; umount /mnt/host; mount -t 9p -o trans=virtio,version=9p2000.L,cache={mode} host /mnt/host;"
        f"mkdir /mnt/host/{mode}; cd /mnt/host/{mode}; ../program {writable}"
        for mode, writable in modes.items()
    ]
    out = run_linux("; ".join([*commands, "cd /", "umount /mnt/host"]), partial(P9Device.open, tmp_path))
    assert out.count("all is well") == 3, out
    for mode, writable in modes.items():
        mapped = (tmp_path / mode / "mapped").read_bytes()
        assert len(mapped) == 20000 and mapped.startswith(b"start")
        assert (mapped[9000:9019] == b"through the mapping") == bool(writable)
        assert (tmp_path / mode / "db").read_bytes()[:3] == b"new"
        assert sorted((tmp_path / mode / "log").read_bytes().splitlines()) == [
            b"%d %06d" % (child, i) for child in range(2) for i in range(50)
        ]
        assert (tmp_path / mode / "sparse").stat().st_size == 10
