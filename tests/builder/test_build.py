"""Building images: from a made-up mirror with a busybox system, and Debian itself where there is a mirror of it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_mirror import Server, Suite, deb, generate_key, public

from polyvisor import images
from polyvisor.builder.build import build
from polyvisor.builder.builtin import RECIPE
from polyvisor.builder.plan import make_plan, read_plan
from polyvisor.builder.recipe import File, Recipe, User
from polyvisor.cachedir import cache_root
from polyvisor.images import ImageError, cpio, debian, sources, store
from polyvisor.images.progress import Silent
from polyvisor.vm.virtual_machine import VM
from support.guests import frozen_packages, guest_image

# Stands for mke2fs: a file system of busybox's own kind, with the UUID that was asked for (at byte 104 of the
# superblock) and the files of a directory.
MKE2FS = rb"""#!/usr/bin/busybox sh
set -e
b=/usr/bin/busybox
while [ $# -gt 1 ]; do
    case $1 in -U) uuid=$2; shift ;; -d) from=$2; shift ;; -[tLE]) shift ;; esac
    shift
done
$b mke2fs "$1" > /dev/null
$b printf "$(echo "$uuid" | $b sed 's/-//g; s/../\\x&/g')" | $b dd of="$1" bs=1 seek=1128 conv=notrunc 2> /dev/null
$b mkdir -p /mnt
$b mount -t ext4 "$1" /mnt
$b cp -a "$from/." /mnt/
$b umount /mnt
"""
E2FSCK = b"#!/usr/bin/busybox true\n"
_APPLETS = ("sh", "env", "cat", "echo", "ls", "grep")


@pytest.fixture(scope="module")
def busybox_suite() -> Iterator[tuple[Server, bytes]]:
    """A server with a kernel that boots, a busybox, and what stands for e2fsprogs; and the key that signed it."""
    frozen = frozen_packages()
    if frozen is None:
        pytest.skip("no frozen guest packages: set POLYVISOR_GUESTS")
    (kernel,) = frozen.glob("linux-binary-*.deb")
    (modules,) = frozen.glob("linux-modules-*.tar")
    (static,) = frozen.glob("busybox-static_*.deb")
    release = modules.name.removeprefix("linux-modules-").removesuffix(".tar")
    with tarfile.open(modules) as tar:
        members = [member for member in tar if member.isreg()]
        contents = [(member.name.removeprefix("./"), tar.extractfile(member)) for member in members]
        files = {name: stream.read() for name, stream in contents if stream is not None}
    busybox = next(e.data for e in cpio.read(guest_image().initrd.read_bytes()) if e.name == "usr/bin/busybox")
    key = generate_key()
    tools = {"usr/bin/busybox": busybox, "usr/sbin/mke2fs": MKE2FS, "usr/sbin/e2fsck": E2FSCK}
    system = {"usr/bin/busybox": busybox, **{f"usr/bin/{name}": "busybox" for name in _APPLETS}, "elsewhere": "/etc"}
    suite = Suite(
        "sid",
        key,
        [
            ("linux-image-riscv64", "7.2-1", f"linux-image-{release} (= 7.2-1)", b"unused"),
            (
                f"linux-image-{release}", "7.2-1", f"linux-binary-{release}, linux-modules-{release}",
                deb(f"linux-image-{release}", "7.2-1", {}),
            ),
            (f"linux-binary-{release}", "7.2-1", "", kernel.read_bytes()),
            (f"linux-modules-{release}", "7.2-1", "", deb(f"linux-modules-{release}", "7.2-1", files, "")),
            ("busybox-static", "1:1.38-1", "", static.read_bytes()),
            ("e2fsprogs", "1.47-1", "", deb("e2fsprogs", "1.47-1", tools, "zst")),
            ("busybox-system", "1.0", "", deb("busybox-system", "1.0", system, "zst")),
        ],
    )
    server = Server()
    server.files.update(suite.files())
    yield server, public(key)
    server.close()


@pytest.fixture
def options(busybox_suite: tuple[Server, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> debian.Sources:
    """Where the made-up suite is, with a cache of this test's own but for compiled code."""
    compiled = cache_root() / "handlers"
    compiled.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "handlers").symlink_to(compiled)
    monkeypatch.setenv("POLYVISOR_CACHE", str(tmp_path / "cache"))
    server, key = busybox_suite
    (tmp_path / "keyring.pgp").write_bytes(key)
    server.log.clear()
    return debian.Sources(("sid",), server.url, tmp_path / "keyring.pgp")


def small(**changes: object) -> Recipe:
    recipe = Recipe(
        "tiny:test", base="none", packages=("busybox-system",), size=64 << 20, hostname="tiny",
        files=(
            File("/etc/greeting", text="hello\n", mode=0o600),
            # By way of a link to an absolute path.
            File("/elsewhere/place", text="found\n"),
        ),
        run=("echo made by $0 > /etc/made",),
    )
    return dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]


class Stages(Silent):
    """What the build said it does."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        self.said.append(text)


def test_an_image_is_built_and_boots(
    options: debian.Sources, tmp_path: Path, busybox_suite: tuple[Server, bytes]
) -> None:
    stages = Stages()
    lock = tmp_path / "tiny.lock"
    image = build(small(), lock=lock, options=options, progress=stages)
    assert image == store.verify("tiny:test") and image.disk is not None
    assert {"unpacking packages", "running the recipe's commands", "making the file system"} <= set(stages.said)
    assert {path.name for path in image.directory.iterdir()} == {path.name for path in image.files}
    assert json.loads(lock.read_text()) == image.lock
    assert [each["name"] for each in image.lock["packages"]] == ["busybox-system"]

    files = "/etc/greeting /etc/place /etc/made /etc/hostname /etc/hosts"
    command = f"cat {files}; ls -l /etc/greeting; ls /lib/modules; exit 5"
    done = subprocess.run(
        [sys.executable, "-m", "polyvisor", "run", "tiny:test", "--run", command], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=120,
    )
    text = done.stdout.replace("\r\n", "\n")
    assert done.returncode == 5, text + done.stderr
    assert "hello\nfound\nmade by /bin/sh\ntiny\n127.0.0.1\tlocalhost\n127.0.1.1\ttiny\n" in text
    assert "-rw-------" in text and image.kernel_version in text

    server, _ = busybox_suite
    requests = len(server.log)
    again = build(small(), options=options, progress=stages)
    assert again == image and stages.said[-1].startswith("tiny:test is up to date")
    assert len(server.log) == requests + 1, "only the suite's date was asked for"


def test_what_fails_in_the_machine_is_reported_and_leaves_nothing(options: debian.Sources) -> None:
    with pytest.raises(ImageError, match=r"building tiny:test failed: .*no such thing; the log is ") as caught:
        build(small(run=("echo no such thing >&2; exit 3",)), options=options)
    assert caught.value.kind == "build"
    assert "no such thing" in Path(str(caught.value).rpartition("the log is ")[2]).read_text()
    assert store.find("tiny:test") is None
    assert list((cache_root() / "images" / "tiny:test").iterdir()) == []


def test_a_machine_that_ends_while_it_builds_is_reported_as_such(options: debian.Sources) -> None:
    # Out of the chroot: the power goes while the script runs.
    command = "/run/build/busybox devmem 0x100000 32 0x5555; while :; do :; done"
    with pytest.raises(ImageError, match=r"building tiny:test: .* ended.*the log is") as caught:
        build(small(run=(command,)), options=options, progress=Silent())
    assert caught.value.kind == "build" and "POLYVISOR_CACHE" not in str(caught.value)


def test_a_lock_file_holds_all_that_a_build_needs(
    options: debian.Sources, tmp_path: Path, busybox_suite: tuple[Server, bytes]
) -> None:
    recipe = small()
    plan = make_plan(recipe, options, Silent())
    path = tmp_path / "x.lock"
    store.write_json(path, {**plan.lock, "files": {}})
    same = read_plan(path, recipe)
    assert same.lock == plan.lock and same.differences({"disk": 1}) == []
    store.write_json(path, {**plan.lock, "files": {"disk": {"sha256": "a"}, "kernel": {"sha256": "b"}}})
    again = read_plan(path, recipe)
    assert again.differences({"disk": {"sha256": "x"}, "kernel": {"sha256": "b"}}) == ["disk"]
    assert same.uuid("root") == plan.uuid("root")
    # All is here, so no mirror is needed, nor one that could be reached.
    same.fetch(debian.Sources(("sid",), "http://127.0.0.1:9/debian", None), Silent())
    for download in store.downloads().iterdir():
        download.unlink()
    with pytest.raises(ImageError) as caught:
        same.fetch(debian.Sources(("sid",), busybox_suite[0].url + "/elsewhere", options.keyring), Silent())
    assert caught.value.kind == "missing" and "mirror has only the newest packages" in str(caught.value)


def test_lock_files_that_do_not_fit_are_refused(options: debian.Sources, tmp_path: Path) -> None:
    recipe = small()
    good = make_plan(recipe, options, Silent()).lock
    path = tmp_path / "x.lock"

    def check(lock: object, message: str, asked: Recipe = recipe) -> None:
        path.write_text(lock if isinstance(lock, str) else json.dumps(lock))
        with pytest.raises(ImageError, match=message):
            read_plan(path, asked)

    check("{", "is not JSON")
    check([], "not one of an image with a disk")
    check({**good, "format": 1}, "not one of an image with a disk")
    check({**good, "procedure": 999}, "made for build procedure 999, this polyvisor has")
    check(good, "the recipe .* has changed", small(hostname="other"))
    check(good, "the recipe .* has changed", small(files=(File("/etc/greeting", text="bye", mode=0o600),)))
    for key in ("boot", "tools", "packages", "essential", "batches", "automatic", "epoch"):
        check({name: value for name, value in good.items() if name != key}, "it is damaged")
        check({**good, key: 5.5}, "it is damaged")
    check({**good, "batches": [["other"]]}, "it is damaged")
    check({**good, "tools": [{**good["tools"][0], "size": "big"}]}, "an entry of 'tools' is damaged")
    check({**good, "tools": [{**good["tools"][0], "name": "../x"}]}, "'../x' is not the name of a package")
    with pytest.raises(ImageError, match="No such file"):
        read_plan(tmp_path / "nothing", recipe)


def test_a_file_that_is_not_there_is_reported_before_anything_is_fetched(
    options: debian.Sources, busybox_suite: tuple[Server, bytes]
) -> None:
    server, _ = busybox_suite
    requests = len(server.log)
    with pytest.raises(ImageError, match="file /nosuch of the recipe: No such file"):
        build(small(files=(File("/x", source=Path("/nosuch")),)), options=options)
    assert len(server.log) == requests


def test_packages_that_are_not_there_are_reported_before_anything_is_fetched(
    options: debian.Sources, busybox_suite: tuple[Server, bytes]
) -> None:
    with pytest.raises(ImageError, match="no package busybox-sistem in this suite; did you mean busybox-system"):
        build(small(packages=("busybox-sistem",)), options=options)
    assert not [path for path, _ in busybox_suite[0].log if path.startswith("pool/")]


def _debian() -> None:
    try:
        sources.find_archive()
        debian.fetch(debian.Sources(allow_expired=True), lambda index: [], Silent())
    except ImageError as error:
        pytest.skip(f"no Debian mirror: {error}")


# The agent answers before systemd does, and before its bus is there.
STARTED = """
while state=$(systemctl is-system-running --wait 2>/dev/null); [ -z "$state" ] || [ "$state" = offline ]; do
    sleep 1
done
echo "$state"
"""


@pytest.mark.slow
def test_debian_is_built_the_same_twice_and_is_a_whole_system(tmp_path: Path) -> None:
    """Takes some ten minutes."""
    _debian()
    recipe = dataclasses.replace(
        RECIPE, name="test:full", packages=(*RECIPE.packages, "openssh-server"),
        users=(User("dev", "secret", ("sudo",)),),
    )
    lock = tmp_path / "lock"
    options = debian.Sources(recipe.suites, allow_expired=True)
    try:
        first = build(recipe, lock=lock, options=options)
        hashes = first.lock["files"]
        images.remove(recipe.name)
        image = build(recipe, lock=lock, options=options, cpus=2)
        assert image.lock["files"] == hashes, "from one lock file always the same image"
        with VM(image, memory="1G", timeout=600) as vm:
            assert vm.run(STARTED).stdout == "running\n"
            assert vm.run("python3 -c 'print(6 * 7)'", check=True).stdout == "42\n"
            assert vm.run("apt-get check", check=True).exit_code == 0
            assert vm.run("dpkg --audit", check=True).stdout == ""
            assert vm.run("id -nG dev").stdout == "dev sudo\n"
            assert vm.run("ls /etc/ssh/ssh_host_ed25519_key").exit_code == 0, "made at the first start"
            keys = vm.read_file("/etc/ssh/ssh_host_ed25519_key.pub")
            machine = vm.read_file("/etc/machine-id")
            vm.console.expect("login: ", timeout=300)
            vm.console.send("dev\n")
            vm.console.expect("Password: ", timeout=60)
            vm.console.send("secret\n")
            vm.console.expect(r"dev@debian:~\$", timeout=60)
            assert vm.stop(timeout=300) == 0
        with VM(image, memory="1G", timeout=600) as vm:
            vm.run(STARTED)
            assert vm.read_file("/etc/ssh/ssh_host_ed25519_key.pub") != keys
            assert vm.read_file("/etc/machine-id") != machine
    finally:
        if os.environ.get("POLYVISOR_KEEP_IMAGE") is None:
            images.remove(recipe.name)
