"""Disks in a snapshot: what was changed of them, or where it is kept.

A disk that cannot be written is as it was as long as its file is. Of changes that are thrown away with the machine, the
snapshot has a copy. A qcow2 image that is written to keeps the disk inside, as an internal snapshot.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.storage.disk import Disk as DiskProtocol
from polyvisor.storage.disk import DiskError
from polyvisor.storage.open import guess_format, open_disk
from polyvisor.storage.overlay import Layer, Overlay, block_size, kept
from polyvisor.storage.qcow2.image import Qcow2
from polyvisor.storage.raw import RawFile
from polyvisor.vm.equipment.disk import Disk
from polyvisor.vm.errors import SnapshotError

from .disk_state import DiskState
from .file import Section, SnapshotFile
from .writer import Writer


@dataclass
class _Inside:
    """A snapshot that was made inside the image that a device has."""

    device: BlockDevice
    image: Qcow2
    name: str


@dataclass
class RestoredDisk(Disk):
    """A disk as a snapshot has it, with changes that are thrown away."""

    state: DiskState | None = None
    layers: list[tuple[SnapshotFile, Section]] = field(default_factory=list, repr=False, compare=False)
    """What snapshots have of it, the oldest first."""

    def open_base(self) -> DiskProtocol:
        """The disk as it was. Raises DiskError."""
        assert self.state is not None
        disk = self._open_file(self.state)
        try:
            if disk.size != self.state.size:
                raise DiskError(f"{self.path}: the disk has another size than when the snapshot was taken")
            for file, section in self.layers:
                here = bytearray(-(-disk.size // block_size(disk.size)))
                for offset, length in section.runs:
                    first, end = offset // section.unit, -(-(offset + length) // section.unit)
                    here[first:end] = b"\1" * (end - first)
                disk = Layer(disk, RawFile(os.dup(file.fd), disk.size, True), section.offset, here)
        except BaseException:
            disk.close()
            raise
        return disk

    def _open_file(self, state: DiskState) -> DiskProtocol:
        if state.inner is None:
            return open_disk(self.path, True, self.format, shared=True)
        try:
            disk = open_disk(self.path, True, self.format, shared=True)
        except DiskError:
            # A machine that still writes to the image leaves alone what its snapshots have.
            disk = open_disk(self.path, True, self.format)
        assert isinstance(disk, Qcow2)
        try:
            disk.look_at_snapshot(state.inner)
        except BaseException:
            disk.close()
            raise
        return disk


# Taking


class Disks:
    """The disks of a machine that stands still; ``known`` are those that the machine was described with, in order."""

    def __init__(self, known: Sequence[Disk], devices: Sequence[BlockDevice]) -> None:
        """Raises SnapshotError, with a line for the user, if one of them cannot be kept."""
        self._disks = list(zip(known, devices, strict=False))
        self._inside: list[_Inside] = []
        for device in devices[len(known) :]:
            if not device.disk.read_only:
                raise SnapshotError("no snapshot can be taken: a disk that was given as a device is written to")
        for disk, device in self._disks:
            kept_apart = device.disk.read_only or isinstance(device.disk, Overlay | Qcow2)
            if not kept_apart:
                raise SnapshotError(
                    f"no snapshot can be taken: the raw disk {disk.path} is written to, and would not be as it was: "
                    "use a qcow2 image (polyvisor disk convert), or give it as FILE,snapshot or FILE,ro"
                )

    def write(self, writer: Writer, inner: str, changed_only: bool) -> list[DiskState]:
        """Write what is to be kept; ``inner`` is what to call snapshots inside of images.

        ``changed_only``: what was written since the last mark. Raises SnapshotError, OSError.
        """
        return [self._write(writer, disk, device, inner, changed_only) for disk, device in self._disks]

    def _write(
        self, writer: Writer, disk: Disk, device: BlockDevice, inner: str, changed_only: bool
    ) -> DiskState:
        found = device.disk
        status = Path(disk.path).stat()
        size, changed = (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (0, 0)
        form = disk.format or guess_format(disk.path)
        state = DiskState(str(Path(disk.path).absolute()), form, disk.serial, found.size, size, changed, None, None)
        if isinstance(disk, RestoredDisk) and disk.state is not None:
            state.file_size, state.file_time = disk.state.file_size, disk.state.file_time
            state.inner = disk.state.inner
        if isinstance(found, Qcow2) and not found.read_only:
            try:
                found.snapshot(inner)
            except OSError as error:
                raise SnapshotError(f"no snapshot can be taken of the disk {disk.path}: {error}") from error
            self._inside.append(_Inside(device, found, inner))
            state.inner, state.file_size, state.file_time = inner, 0, 0
            state.section = writer.section(0, block_size(found.size), [], _nothing)
        elif isinstance(found, Overlay):
            runs = found.changed() if changed_only else kept(found)
            state.section = writer.section(found.size, block_size(found.size), runs, _reader(found))
        return state

    def mark(self) -> None:
        """From now on, what is written is a change to this snapshot."""
        for _, device in self._disks:
            if isinstance(device.disk, Overlay):
                device.disk.mark()

    def forget(self, inner: str | None) -> None:
        """Delete the snapshots called ``inner`` inside of the images, where that is possible now."""
        for _, device in self._disks:
            found = device.disk
            if isinstance(found, Qcow2) and not found.read_only:
                with device.lock, contextlib.suppress(OSError):
                    if any(each.name == inner for each in found.snapshots):
                        found.delete_snapshot(inner or "")

    def undo(self) -> None:
        """There will be no snapshot: forget those inside of images. The machine may be running again."""
        for made in self._inside:
            with made.device.lock, contextlib.suppress(OSError):
                made.image.delete_snapshot(made.name)


def _nothing(offset: int, length: int) -> bytes:
    return b""


def _reader(disk: Layer) -> Any:
    def read(offset: int, length: int) -> memoryview:
        data = memoryview(bytearray(length))
        disk.read([data], offset)
        return data

    return read


# Restoring


def restored(chain: Sequence[SnapshotFile], states: Sequence[Sequence[DiskState]]) -> list[Disk]:
    """The disks of the last snapshot of ``chain``; ``states``: what each of them says of the disks.

    Raises SnapshotError if their files are not as they were.
    """
    disks: list[Disk] = []
    for index, state in enumerate(states[-1]):
        _check_file(chain[-1].path, state)
        if state.section is None:
            disks.append(Disk(state.path, read_only=True, format=state.format, serial=state.serial))
            continue
        # The image has all of it, unless the changes were kept apart from it.
        layers = []
        for file, theirs in zip(chain, states, strict=True):
            section = theirs[index].section if index < len(theirs) else None
            if section is None:
                raise SnapshotError(f"{file.path}: has other disks than {chain[-1].path}, which is based on it")
            if section.runs:
                file.check_section(section)
                if section.unit != block_size(state.size) or section.size != state.size:
                    raise SnapshotError(f"{file.path}: the snapshot makes no sense: blocks of {section.unit}")
                layers.append((file, section))
        disks.append(RestoredDisk(state.path, False, True, state.format, state.serial, state=state, layers=layers))
    return disks


def _check_file(path: Path, state: DiskState) -> None:
    try:
        status = Path(state.path).stat()
    except OSError as error:
        raise SnapshotError(f"{path}: needs the disk {state.path}: {error.strerror}") from error
    if state.file_time and (status.st_size, status.st_mtime_ns) != (state.file_size, state.file_time):
        raise SnapshotError(f"{path}: needs the disk {state.path} as it was, and that was changed since")


def forget(states: Sequence[DiskState], inner: str) -> None:
    """Delete the snapshots called ``inner`` inside of images. Raises SnapshotError, with a line for the user."""
    for state in states:
        if state.inner != inner or not Path(state.path).exists():
            continue
        try:
            disk = open_disk(state.path, False, state.format)
            try:
                if isinstance(disk, Qcow2) and any(each.name == inner for each in disk.snapshots):
                    disk.delete_snapshot(inner)
            finally:
                disk.close()
        except OSError as error:
            raise SnapshotError(f"what the disk {state.path} has of it cannot be deleted: {error}") from error
