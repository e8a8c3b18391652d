"""Disks for tests: reading and writing bytes, QEMU's tool as the second opinion, and files that remember."""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from polyvisor.storage.disk import Disk, DiskError
from polyvisor.storage.qcow2.file import ImageFile
from polyvisor.storage.qcow2.image import Qcow2

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed")


def qemu_img(*arguments: object, status: int = 0) -> str:
    """Run qemu-img; gives what it printed."""
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


def qemu_io(path: Path, *commands: str) -> None:
    """Run commands of qemu-io on an image."""
    each = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(["qemu-io", *each, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "error" not in done.stdout.lower(), done.stdout


def read(disk: Disk, offset: int = 0, length: int | None = None) -> bytes:
    """Bytes of a disk: all, unless told."""
    data = bytearray(disk.size - offset if length is None else length)
    disk.read([memoryview(data)], offset)
    return bytes(data)


def write(disk: Disk, offset: int, data: bytes, cut: int = 0) -> None:
    """Write ``data``, from two buffers if ``cut`` is inside."""
    views = [memoryview(data)] if not 0 < cut < len(data) else [memoryview(data)[:cut], memoryview(data)[cut:]]
    disk.write(views, offset)


def no_backing(name: str, form: str | None) -> Disk:
    raise DiskError(f"a backing file {name} of format {form}")


class Recorder(ImageFile):
    """Remembers what is done to the file."""

    log: list[tuple[object, ...]]

    @classmethod
    def record(cls, path: Path) -> Recorder:
        file = cls.open(path, False)
        file.log = []
        return file

    def write(self, views: list[memoryview], offset: int) -> None:
        self.log.append(("write", offset, b"".join(views)))
        super().write(views, offset)

    def flush(self) -> None:
        self.log.append(("flush",))  # not slowed down by the host's disk

    def extend(self, length: int) -> None:
        if length > self.size:
            self.log.append(("extend", length))
        super().extend(length)

    def discard(self, offset: int, length: int) -> None:
        self.log.append(("punch", offset, length))
        super().discard(offset, length)


@dataclass
class History:
    """What a disk's sectors were told to be, against the operations on its file, so that crashes can be judged."""

    recorder: Recorder
    disk: Qcow2
    start: bytes
    model: bytearray
    versions: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    flushes: list[tuple[int, bytes]] = field(default_factory=list)

    @classmethod
    def of(cls, path: Path) -> History:
        recorder = Recorder.record(path)
        disk = Qcow2(recorder, str(path), no_backing)
        recorder.log.clear()
        content = read(disk)
        return cls(recorder, disk, path.read_bytes(), bytearray(content), flushes=[(0, content)])

    def changed(self, began: int, offset: int, data: bytes) -> None:
        """``data`` were written, by operations from ``began`` on."""
        self.model[offset : offset + len(data)] = data
        for at in range(0, len(data), 512):
            self.versions.setdefault((offset + at) // 512, []).append((began, data[at : at + 512]))

    def flushed(self) -> None:
        """All is certain now."""
        self.flushes.append((len(self.recorder.log), bytes(self.model)))

    def file_after(self, count: int, rnd: random.Random | None) -> bytes:
        """The file after ``count`` operations, of those since the last flush only some, and in part, with ``rnd``."""
        log = self.recorder.log[:count]
        barrier = max((i for i, op in enumerate(log) if op[0] == "flush"), default=-1)
        data = bytearray(self.start)
        for index, (kind, *arguments) in enumerate(log):
            lossy = rnd is not None and index > barrier
            if lossy and rnd.random() < 0.4:
                continue
            if kind == "write":
                offset, what = arguments
                for at in range(0, len(what), 512 - offset % 512 if offset % 512 else 512):
                    piece = what[at : at + 512]
                    if lossy and rnd.random() < 0.3:
                        continue
                    data.extend(bytes(max(0, offset + at + len(piece) - len(data))))
                    data[offset + at : offset + at + len(piece)] = piece
            elif kind == "extend":
                data.extend(bytes(max(0, arguments[0] - len(data))))
            elif kind == "punch":
                offset, length = arguments
                end = min(len(data), offset + length)
                data[offset:end] = bytes(max(0, end - offset))
        return bytes(data)

    def judge(self, count: int, content: bytes) -> None:
        """Fail unless a crash after ``count`` operations may leave ``content``: flushed data, or newer ones."""
        done, durable = [each for each in self.flushes if each[0] <= count][-1]
        for at in range(0, len(content), 512):
            sector = content[at : at + 512]
            if sector == durable[at : at + 512]:
                continue
            newer = [data for began, data in self.versions.get(at // 512, ()) if done <= began <= count]
            assert sector in newer, f"sector {at // 512} after {count} operations"


def fill(path: Path, size: int, seed: int) -> bytes:
    """A file of random bytes with some holes, so that formats have something to leave out."""
    rnd = random.Random(seed)
    data = bytearray(size)
    for _ in range(12):
        at = rnd.randrange(size // 512) * 512
        piece = rnd.randbytes(min(size - at, rnd.randrange(1, 200) * 512))
        data[at : at + len(piece)] = piece
    path.write_bytes(data)
    return bytes(data)
