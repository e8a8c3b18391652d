"""Building an image with a root file system, in a machine.

The host chooses, fetches and verifies packages, and puts them on a disk; Debian's own dpkg installs them, in a machine
that runs the kernel which the image will have. See :mod:`polyvisor.builder.guest_script` for what happens there.
"""

from __future__ import annotations

import io
import re
import tarfile
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

from polyvisor.cachedir import cache_root
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.images import ImageError, Progress, debian, store
from polyvisor.images.contents import stored_package
from polyvisor.images.errors import storage_errors
from polyvisor.images.progress import Silent
from polyvisor.images.store import Image
from polyvisor.storage.convert import convert, create_raw
from polyvisor.storage.open import open_disk
from polyvisor.vm.errors import VMError
from polyvisor.vm.software import Software
from polyvisor.vm.virtual_machine import VM

from .guest_script import BUILD
from .plan import Plan, make_plan, read_plan, same
from .recipe import Recipe

_MEMORY = 1 << 30
_LOG_LINES = 12
# In seconds. A machine that says nothing for so long is stuck.
_LONGEST_SILENCE = 3600.0
_SECTOR_ROUND = 1 << 20


def build(
    recipe: Recipe,
    *,
    lock: Path | None = None,
    options: debian.Sources | None = None,
    progress: Progress | None = None,
    cpus: int = 1,
) -> Image:
    """Build the image of ``recipe`` and make it the current one of its name.

    With a ``lock`` file that exists, it is built of exactly the packages that are named there, and comes out the same
    to the last bit; with one that does not exist, that is written. Without, the newest packages are taken, and when
    the image that is there was made of just these, it stays. ``cpus``: harts of the machine; dpkg does one thing at a
    time, so more than one gain next to nothing. Raises :class:`ImageError`.
    """
    progress = progress or Silent()
    with store.exclusive(recipe.name, progress):
        return build_locked(recipe, lock=lock, options=options, progress=progress, cpus=cpus)


def build_locked(
    recipe: Recipe, *, lock: Path | None, options: debian.Sources | None, progress: Progress, cpus: int = 1
) -> Image:
    """As :func:`build`, for a caller who holds the image's lock."""
    options = options or debian.Sources()
    if lock is not None and lock.exists():
        plan = read_plan(lock, recipe)
        lock = None
    else:
        plan = make_plan(recipe, options, progress)
        current = _current(recipe.name)
        if current is not None and same(plan, current.lock):
            progress.stage(f"{recipe.name} is up to date: {current.version} ({current.suite})")
            _copy_lock(current, lock)
            return current
    files = plan.fetch(options, progress)
    with storage_errors(cache_root()), store.staging(recipe.name) as directory:
        kernel_version = debian.write_boot_files(
            [files[each.sha256] for each in plan.packages("boot")], directory, progress
        )
        _make_disk(plan, files, directory, progress, cpus)
        store.write_json(directory / store.IMAGE_JSON, {
            "name": recipe.name,
            "version": debian.package_version(plan.lock["boot"]) or kernel_version,
            "arch": debian.ARCHITECTURE,
            "kernel_version": kernel_version,
            "suite": plan.lock["suite"],
            "created": datetime.fromtimestamp(plan.lock["epoch"], UTC).isoformat(timespec="seconds"),
            "append": _command_line(plan),
            "disk": {"format": "raw", "size": recipe.size, "uuid": plan.uuid("root")},
        })
        names = (store.KERNEL, store.INITRD, store.DISK, store.IMAGE_JSON)
        made = store.describe_files(directory, names)
        store.write_json(directory / store.LOCK_JSON, {**plan.lock, "files": made})
        image = store.publish(recipe.name, directory)
    _copy_lock(image, lock)
    if different := plan.differences(made):
        progress.stage(f"other than when the lock file was written: {', '.join(different)}")
    store.prune_downloads()
    return image


def _current(name: str) -> Image | None:
    try:
        return store.verify(name)
    except ImageError:
        return None


def _copy_lock(image: Image, target: Path | None) -> None:
    if target is not None:
        try:
            target.write_bytes((image.directory / store.LOCK_JSON).read_bytes())
        except OSError as error:
            raise ImageError(
                f"the image is built, but the lock file {target} cannot be written: {error.strerror}", "storage"
            ) from error


def _command_line(plan: Plan) -> str:
    words = [debian.APPEND, f"root=UUID={plan.uuid('root')}", "rw"]
    if plan.recipe.init != "/sbin/init":
        words.append(f"init={plan.recipe.init}")
    if plan.recipe.append:
        words.append(plan.recipe.append)
    return " ".join(words)


def _make_disk(plan: Plan, files: Mapping[str, Path], directory: Path, progress: Progress, cpus: int) -> None:
    """Make the root disk in ``directory``, beside kernel and initramfs."""
    source, scratch, target = directory / "input", directory / "scratch", directory / "target"
    progress.stage("preparing the packages")
    with source.open("wb") as stream:
        write_input(stream, plan, files, directory)
    # Unpacked twice at most, and once as they came.
    room = 2 * plan.recipe.size + 3 * source.stat().st_size + (256 << 20)
    create_raw(scratch, -(-room // _SECTOR_ROUND) * _SECTOR_ROUND)
    create_raw(target, plan.recipe.size)
    log = cache_root() / "logs" / f"build-{plan.recipe.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    disks = (
        partial(BlockDevice.open, source, True, "input", format="raw"),
        partial(BlockDevice.open, scratch, False, "scratch", format="raw"),
        partial(BlockDevice.open, target, False, "target", format="raw"),
    )
    software = Software(
        kernel=directory / store.KERNEL, initrd=directory / store.INITRD, append=debian.APPEND, agent=True,
        our_initrd=True,
    )
    progress.stage("starting the machine that builds it")
    machine = VM(
        software=software, memory=_MEMORY, cpus=cpus, devices=disks, reboot=False, timeout=None,
        name=f"the machine that builds {plan.recipe.name}",
    )
    try:
        with machine:
            _run(machine, plan, log, progress)
    except (VMError, TimeoutError, ConnectionError) as error:
        raise ImageError(f"building {plan.recipe.name}: {error}; the log is {log}", "build") from error
    source.unlink()
    scratch.unlink()
    # Once more without its zeroes: a file system's journal, for one, is written and empty.
    made = open_disk(target, True, "raw")
    try:
        convert(made, directory / store.DISK, "raw")
    finally:
        made.close()
    target.unlink()


def _run(machine: VM, plan: Plan, log: Path, progress: Progress) -> None:
    """Run the script; its output goes to ``log``, with the seconds so far. Raises :class:`ImageError` ("build")."""
    tail: list[str] = []
    begin = time.monotonic()
    with log.open("w") as record, machine.popen(
        ["sh", "-c", f"exec 2>&1\n{BUILD}"], env=_variables(plan), encoding="utf-8"
    ) as process:
        process.close_stdin()
        while line := process.stdout.readline(_LONGEST_SILENCE):
            if line.startswith("@@ "):
                progress.stage(line[3:].strip())
            record.write(f"{time.monotonic() - begin:8.1f} {line}")
            record.flush()
            tail = [*tail, line.strip()][-_LOG_LINES:]
        status = process.wait()
    if status:
        said = [line for line in tail if line and not line.startswith("@@ ")]
        why = " / ".join(said[-3:]) or f"status {status}"
        raise ImageError(f"building {plan.recipe.name} failed: {why}; the log is {log}", "build")


def _variables(plan: Plan) -> dict[str, str]:
    recipe = plan.recipe
    return {
        "EPOCH": str(plan.lock["epoch"]),
        "UUID": plan.uuid("root"),
        "SEED": plan.uuid("directories"),
        "LABEL": re.sub(r"[^a-z0-9]+", "-", recipe.name)[:16],
        "SALT": plan.seed[:16],
        "HOSTNAME": recipe.hostname,
        "APT_MIRROR": recipe.mirror or "",
        "SUITE": plan.lock["suite"],
        "ROOT_PASSWORD": _secret("password-root", recipe.root_password),
    }


def _secret(file: str, password: str | None) -> str:
    """How the script is told of a password: by the name of a file that has it."""
    return "none" if password is None else file if password else "empty"


def write_input(stream: IO[bytes], plan: Plan, files: Mapping[str, Path], work: Path) -> None:
    """Write the archive that the build script works from."""
    recipe = plan.recipe
    every = {each.sha256: each for kind in ("tools", "packages") for each in plan.packages(kind)}
    called = {
        sha256: f"{number:04}-{every[sha256].name}"
        for number, sha256 in enumerate(sorted(every, key=lambda key: (every[key].name, key)))
    }
    by_name = {each.name: called[each.sha256] for each in plan.packages("packages")}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(f"in/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))

        def add_lines(name: str, lines: Iterable[str]) -> None:
            add(name, "".join(f"{line}\n" for line in lines).encode())

        for sha256, name in called.items():
            with stored_package(files[sha256], work) as package:
                member = tarfile.TarInfo(f"in/debs/{name}.deb")
                member.size = package.tell()
                package.seek(0)
                archive.addfile(member, package)
        add_lines("tools", (called[each.sha256] for each in plan.packages("tools")))
        add_lines("essential", (by_name[name] for name in plan.lock["essential"]))
        for number, batch in enumerate(plan.lock["batches"]):
            add_lines(f"batch-{number:03}", (by_name[name] for name in batch))
        states = (
            f"Package: {name}\nArchitecture: {debian.ARCHITECTURE}\nAuto-Installed: 1\n"
            for name in plan.lock["automatic"]
        )
        add_lines("extended_states", states)
        if recipe.root_password:
            add("password-root", recipe.root_password.encode())
        lines = []
        for number, user in enumerate(recipe.users):
            if user.password:
                add(f"password-{number}", user.password.encode())
            secret = _secret(f"password-{number}", user.password)
            lines.append(f"{user.name} {secret} {user.shell} {','.join(user.groups)}")
        add_lines("users", lines)
        for number, file in enumerate(recipe.files):
            add(f"files/{number}", file.read())
        add_lines("files.list", (f"{n} {file.mode:o} {file.target}" for n, file in enumerate(recipe.files)))
        for number, command in enumerate(recipe.run):
            add(f"command-{number}", command.encode())
        add_lines("commands", (f"command-{number}" for number in range(len(recipe.run))))
    with suppress(OSError):
        stream.flush()
