"""Taking a snapshot of a VM into a file."""

from __future__ import annotations

import datetime
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import polyvisor
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.engine.memory import PAGE_SIZE
from polyvisor.vm.errors import SnapshotError
from polyvisor.vm.machine import Machine

from . import ram, store
from .codec import to_plain
from .description import VMState
from .disks import Disks
from .file import Run
from .machine_state import at_rest, capture_devices
from .store import Last, Parent, RamSection, Snapshot
from .writer import Writer, remove_stale

if TYPE_CHECKING:
    from polyvisor.vm.virtual_machine import VM

# Each piece of RAM that is not in a file's parent becomes a mapping; the host allows some 65,000 in a process.
_MOST_RUNS = 2048


class Taken:
    """A snapshot that is written, and not saved yet: the machine may go on. ``reached``: where it does from then."""

    def __init__(self, writer: Writer, disks: Disks, path: Path, reached: Last | None) -> None:
        self.reached = reached
        self._writer = writer
        self._disks = disks
        self._path = path

    def save(self) -> Snapshot:
        """Let the file have its name, when it is certain to survive a crash. Raises SnapshotError."""
        try:
            replaced = store.inside(self._path)
            self._writer.save()
        except OSError as error:
            self._disks.undo()
            raise SnapshotError(f"{self._path}: the snapshot cannot be written: {error.strerror}") from error
        finally:
            self._writer.close()
        self._disks.forget(replaced)
        return store.find(self._path)


def take(vm: VM, machine: Machine, path: Path, last: Last | None) -> Taken:
    """Write the state of ``vm``, whose ``machine`` stands still; with ``last``, only what changed since.

    Raises SnapshotError.
    """
    identity = uuid.uuid4().bytes
    devices = [device for device in machine.board.virtio_devices if isinstance(device, BlockDevice)]
    with at_rest(machine):
        disks = Disks(vm.all_disks, devices)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(path)
            writer = Writer(path, identity)
        except OSError as error:
            raise SnapshotError(f"{path}: the snapshot cannot be written: {error.strerror}") from error
        try:
            state = capture_devices(machine)
            document = {
                "by": f"polyvisor {polyvisor.__version__}",
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "parent": to_plain(_parent(path, last)),
                "vm": to_plain(VMState.of(vm)),
                "shape": to_plain(state.shape),
                "board": state.board,
                "virtio": state.virtio,
                "disks": to_plain(disks.write(writer, store.inner_name(identity.hex()), last is not None)),
                "ram": to_plain(_write_ram(writer, machine, last)),
            }
            writer.finish(document)
        except BaseException as error:
            writer.close()
            disks.undo()
            if isinstance(error, OSError):
                raise SnapshotError(f"{path}: the snapshot cannot be written: {error.strerror or error}") from error
            raise
        pages = machine.board.pages
        if pages is None:
            return Taken(writer, disks, path, None)
        disks.mark()
        return Taken(writer, disks, path, Last(identity.hex(), path, pages.mark()))


def _parent(path: Path, last: Last | None) -> Parent | None:
    return None if last is None else Parent(last.identity, os.path.relpath(last.path, path.parent))


def _write_ram(writer: Writer, machine: Machine, last: Last | None) -> list[RamSection]:
    memory, pages = machine.board.memory, machine.board.pages
    found = []
    written = pages.written_since(last.mark) if last is not None and pages is not None else None
    for index, each in enumerate(memory.ram):
        view = each.view
        if written is not None:
            runs: list[Run] = ram.coalesced(
                [(first * PAGE_SIZE, count * PAGE_SIZE) for first, count in written[index]], _MOST_RUNS
            )
        else:
            runs = list(ram.merged(ram.nonzero(view, ram.runs(memory, pages, index))))

        def read(offset: int, length: int, view: memoryview = view) -> memoryview:
            return view[offset : offset + length]

        found.append(RamSection(each.base, writer.section(each.size, PAGE_SIZE, runs, read)))
    return found


def find_base(base: str | os.PathLike[str] | Snapshot | bool | None, last: Last | None, path: Path) -> Last | None:
    """The snapshot that one at ``path`` is to be based on. Raises SnapshotError if it cannot be."""
    if base is None or base is False:
        return None
    if last is None:
        raise SnapshotError("there is no snapshot to be based on: the machine has not gone on from one")
    if base is not True:
        wanted = base.path if isinstance(base, Snapshot) else store.path_of(base)
        if wanted != last.path:
            raise SnapshotError(f"only {last.path} can be the base: that is what the machine went on from")
    if last.path == path:
        raise SnapshotError(f"{path}: cannot replace the snapshot that it is based on")
    if store.open_chain(last.path)[-1].identity != last.identity:
        raise SnapshotError(f"{last.path}: has been replaced, and cannot be the base any more")
    return last
