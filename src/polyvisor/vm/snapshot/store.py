"""Snapshots by their names: files in a directory of the user's, or anywhere by their paths.

A name stands for ``snapshots/NAME.pvsnap`` in ``$POLYVISOR_DATA``, else in ``polyvisor`` in ``$XDG_DATA_HOME`` or
``~/.local/share``. What has a slash in it, or ends in ``.pvsnap``, is a path.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from polyvisor.cachedir import data_root
from polyvisor.dataclass import dataclass
from polyvisor.vm.errors import SnapshotError

from .description import VMState
from .disk_state import DiskState
from .file import Section, SnapshotFile

SUFFIX = ".pvsnap"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_DEEPEST = 64


@dataclass
class Parent:
    """The snapshot that another has the changes to; ``path`` is relative to the directory of that one."""

    identity: str
    path: str


@dataclass
class RamSection:
    """What a file has of the RAM at ``base``."""

    base: int
    section: Section


@dataclass(frozen=True)
class Snapshot:
    """A snapshot in a file. ``stored``: bytes of RAM and disks that it has itself; ``parent`` has the others."""

    name: str
    path: Path
    identity: str
    created: str
    """An ISO 8601 time, UTC."""
    vm: str
    """What the machine was called."""
    what: str
    """What it ran."""
    memory: int
    cpus: int
    stored: int
    parent: Path | None = None

    @classmethod
    def of(cls, file: SnapshotFile) -> Snapshot:
        """The snapshot in an open file. Raises SnapshotError."""
        vm = vm_of(file)
        parent = file.take(Parent | None, "parent")
        sections = [each.section for each in file.take(list[RamSection], "ram")]
        sections += [each.section for each in file.take(list[DiskState], "disks") if each.section is not None]
        return cls(
            file.path.name.removesuffix(SUFFIX), file.path, file.identity, file.take(str, "created"), vm.name,
            vm.software.program or vm.software.kernel or "", vm.memory, vm.cpus,
            sum(section.length for section in sections),
            _parent_path(file.path, parent) if parent is not None else None,
        )  # fmt: skip

    def check(self) -> None:
        """Compare all that it and those before it have with their checksums. Raises SnapshotError."""
        for file in open_chain(self.path):
            sections = [each.section for each in file.take(list[RamSection], "ram")]
            sections += [each.section for each in file.take(list[DiskState], "disks") if each.section is not None]
            try:
                for section in sections:
                    file.verify(section)
            except OSError as error:
                raise SnapshotError(f"{file.path}: cannot read the snapshot: {error.strerror}") from error

    def delete(self) -> None:
        """Delete it. Machines that were restored from it go on. Raises SnapshotError if others are based on it."""
        delete(self.path)


@dataclass(frozen=True)
class Last:
    """The snapshot that a machine went on from, and since when its pages of RAM are noted."""

    identity: str
    path: Path
    mark: int


def directory() -> Path:
    """Where snapshots with names are."""
    return data_root() / "snapshots"


def path_of(name: str | os.PathLike[str]) -> Path:
    """The file of a snapshot. Raises SnapshotError for what cannot be a name."""
    text = os.fspath(name)
    if os.sep in text or text.endswith(SUFFIX):
        return Path(text).absolute()
    if not _NAME.fullmatch(text):
        raise SnapshotError(f"{text!r} cannot be a snapshot's name: use letters, digits, '.', '_' and '-'")
    return directory() / f"{text}{SUFFIX}"


def find(name: str | os.PathLike[str]) -> Snapshot:
    """The snapshot with that name or path. Raises SnapshotError."""
    return Snapshot.of(open_file(name))


def vm_of(file: SnapshotFile) -> VMState:
    """How the VM was made that a snapshot is of. Raises SnapshotError, also for other machines than VMs."""
    if file.document.get("board") == "c64":
        raise SnapshotError(f"{file.path}: is of a Commodore 64: polyvisor run c64 --restore goes on from it")
    found: VMState = file.take(VMState, "vm")
    return found


def open_file(name: str | os.PathLike[str]) -> SnapshotFile:
    """Its open file. Raises SnapshotError, which names those there are if this one is not."""
    path = path_of(name)
    if not path.exists() and path.parent == directory():
        there = ", ".join(sorted(each.name.removesuffix(SUFFIX) for each in directory().glob(f"*{SUFFIX}")))
        raise SnapshotError(f"there is no snapshot {os.fspath(name)!r}" + (f"; there are: {there}" if there else ""))
    return SnapshotFile(path)


def paths() -> list[Path]:
    """The files of all snapshots with names."""
    return sorted(directory().glob(f"*{SUFFIX}"))


def _parent_path(path: Path, parent: Parent) -> Path:
    return Path(os.path.normpath(path.parent / parent.path))


def open_chain(path: Path) -> list[SnapshotFile]:
    """A snapshot and those that it is based on, the first one first. Raises SnapshotError."""
    files = [SnapshotFile(path)]
    while True:
        parent = files[-1].take(Parent | None, "parent")
        if parent is None:
            return files[::-1]
        below = _parent_path(files[-1].path, parent)
        if not below.exists():
            raise SnapshotError(f"{files[-1].path}: is based on the snapshot {below}, which is not there")
        file = SnapshotFile(below)
        if file.identity != parent.identity:
            raise SnapshotError(f"{files[-1].path}: is based on another snapshot than {below}, which has been replaced")
        files.append(file)
        if len(files) > _DEEPEST:
            raise SnapshotError(f"{path}: is based on more than {_DEEPEST} others")


def inner_name(identity: str) -> str:
    """What the snapshots that it has inside of disk images are called."""
    return f"polyvisor-{identity}"


def dependents(path: Path, identity: str) -> Iterator[Path]:
    """The snapshots in the same directory that need the one at ``path``."""
    for other in sorted(path.parent.glob(f"*{SUFFIX}")):
        if other == path:
            continue
        try:
            file = SnapshotFile(other)
            parent = file.take(Parent | None, "parent")
            inside = any(each.inner == inner_name(identity) for each in file.take(list[DiskState], "disks"))
        except SnapshotError:
            continue
        if inside or (parent is not None and parent.identity == identity):
            yield other


def check_free(path: Path) -> None:
    """Raise SnapshotError if ``path`` must stay what it is: other snapshots need it, or it is none."""
    if not path.exists():
        return
    if not path.is_file():
        raise SnapshotError(f"{path}: is not a file")
    try:
        identity = SnapshotFile(path).identity
    except SnapshotError as error:
        if path.stat().st_size and "is not a snapshot" in str(error):
            raise SnapshotError(f"{path}: is there already, and is not a snapshot") from None
        return  # a damaged one is no loss
    for other in dependents(path, identity):
        raise SnapshotError(f"{path}: is needed by the snapshot {other}")


def delete(name: str | os.PathLike[str]) -> None:
    """Delete a snapshot, and what images of disks have of it. Raises SnapshotError if another is based on it."""
    path = path_of(name)
    if not path.exists():
        open_file(name)  # which says what there is
    check_free(path)
    forget_inside(path)
    try:
        path.unlink()
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be deleted: {error.strerror}") from error


def inside(path: Path) -> str | None:
    """What the snapshot at ``path`` is called inside of disk images; None if there is none."""
    try:
        return inner_name(SnapshotFile(path).identity) if path.exists() else None
    except SnapshotError:
        return None


def forget_inside(path: Path) -> None:
    """Delete what images of disks have of a snapshot. Raises SnapshotError."""
    try:
        file = SnapshotFile(path)
        states: list[Any] = file.take(list[DiskState], "disks")
    except SnapshotError:
        return  # nobody can tell what it was
    if states:
        from . import disks

        disks.forget(states, inner_name(file.identity))
