"""The block device (Virtual I/O Device 1.2, section 5.2) over a raw file."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

from .device import Chain, VirtioDevice
from .queue import MAX_SIZE, QueueError

SECTOR = 512

# Feature bits (5.2.3)
SEG_MAX, RO, BLK_SIZE, FLUSH, DISCARD, WRITE_ZEROES = 2, 5, 6, 9, 13, 14
# Request types (5.2.6)
IN, OUT, FLUSH_REQUEST, GET_ID, DISCARD_REQUEST, WRITE_ZEROES_REQUEST = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPPORTED = 0, 1, 2

_MOST_RANGE = 1 << 22  # sectors of one discard or write-zeroes request
_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_PUNCH_HOLE, _KEEP_SIZE = 2, 1
_MOST_SEGMENTS = 512  # of one system call; IOV_MAX is 1024


class BlockDevice(VirtioDevice):
    """A disk whose contents are a file of whole sectors. Use :meth:`open`."""

    device_id = 2

    def __init__(self, descriptor: int, size: int, read_only: bool, serial: str) -> None:
        super().__init__()
        self.descriptor = descriptor
        self.sectors = size // SECTOR
        self.read_only = read_only
        self.serial = serial.encode()[:20]
        self.features = 1 << SEG_MAX | 1 << BLK_SIZE | 1 << FLUSH
        self.features |= 1 << RO if read_only else 1 << DISCARD | 1 << WRITE_ZEROES

    @classmethod
    def open(cls, path: str, read_only: bool = False) -> BlockDevice:
        """Open a raw disk image. Raises ValueError with one line that says what is wrong.

        A disk that is written to is locked, so that two machines cannot write to it; one that is only read may be
        shared by machines that only read it.
        """
        try:
            descriptor = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except OSError as error:
            hint = "; add ,ro to use it read-only" if error.errno in (errno.EACCES, errno.EROFS) else ""
            raise ValueError(f"disk {path!r}: {error.strerror}{hint}") from None
        try:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise ValueError(f"disk {path!r} is neither a file nor a block device")
            size = os.lseek(descriptor, 0, os.SEEK_END)
            if size == 0 or size % SECTOR:
                raise ValueError(f"disk {path!r} has {size} bytes; a raw disk has a multiple of {SECTOR}")
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_SH if read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"disk {path!r} is in use by another machine") from None
        except ValueError:
            os.close(descriptor)
            raise
        return cls(descriptor, size, read_only, Path(path).name)

    @property
    def config(self) -> bytes:
        """struct virtio_blk_config (5.2.4)."""
        sector_alignment = 8
        limits = struct.pack(
            "<QIIHBBIBBHIBBHIIIIIBBBB",
            self.sectors, 0, MAX_SIZE - 2, 0, 0, 0, SECTOR, 0, 0, 0, 0, 0, 0, 1,
            _MOST_RANGE, 1, sector_alignment, _MOST_RANGE, 1, 1, 0, 0, 0,
        )
        return limits

    def handle(self, index: int, chain: Chain) -> int:
        """One request: a header, data, and a status byte in the last writable buffer."""
        if not chain.writable or chain.writable[-1][1] < 1:
            raise QueueError("a block request without a place for its status")
        last, length = chain.writable[-1]
        place = last + length - 1
        data = [*chain.writable[:-1], (last, length - 1)] if length > 1 else list(chain.writable[:-1])
        header = self._gather(chain.readable, _HEADER.size)
        if len(header) < _HEADER.size:
            raise QueueError("a block request without a header")
        kind, _, sector = _HEADER.unpack(header)
        try:
            status, written = self._serve(kind, sector, _after(chain.readable, _HEADER.size), data)
        except OSError:
            status, written = IOERR, 0
        self.memory.write(place, bytes([status]))
        return written + 1

    def _gather(self, buffers: Sequence[tuple[int, int]], count: int) -> bytes:
        out = b""
        for address, length in buffers:
            out += self.memory.read(address, min(length, count - len(out)))
            if len(out) == count:
                break
        return out

    def _serve(
        self, kind: int, sector: int, outgoing: list[tuple[int, int]], incoming: list[tuple[int, int]]
    ) -> tuple[int, int]:
        """The status, and how many bytes of data were written to the guest."""
        if kind == IN:
            return self._transfer(sector, incoming, reading=True)
        if kind == GET_ID:
            return self._get_id(incoming)
        if kind == FLUSH_REQUEST:
            os.fdatasync(self.descriptor)
            return OK, 0
        if kind not in (OUT, DISCARD_REQUEST, WRITE_ZEROES_REQUEST):
            return UNSUPPORTED, 0
        if self.read_only:
            return IOERR, 0
        if kind == OUT:
            return self._transfer(sector, outgoing, reading=False)
        return self._clear(self._gather(outgoing, _RANGE.size * 64), kind == DISCARD_REQUEST), 0

    def _transfer(self, sector: int, buffers: list[tuple[int, int]], *, reading: bool) -> tuple[int, int]:
        total = sum(length for _, length in buffers)
        if total % SECTOR or sector > self.sectors or total // SECTOR > self.sectors - sector:
            return IOERR, 0
        offset, done = sector * SECTOR, 0
        for first in range(0, len(buffers), _MOST_SEGMENTS):
            part = buffers[first : first + _MOST_SEGMENTS]
            views = [self.memory.view(address, length) for address, length in part if length]
            done += _whole(os.preadv if reading else os.pwritev, self.descriptor, views, offset + done)
        if reading:
            for address, length in buffers:
                self.memory.wrote(address, length)
        if done != total:
            return IOERR, 0
        return OK, total if reading else 0

    def _get_id(self, buffers: list[tuple[int, int]]) -> tuple[int, int]:
        name, written = self.serial.ljust(20, b"\0"), 0
        for address, length in buffers:
            piece = name[written : written + length]
            self.memory.write(address, piece)
            written += len(piece)
        return OK, written

    def _clear(self, ranges: bytes, discard: bool) -> int:
        """Discard sectors, or write zeros to them (5.2.6.2): ranges of sector, count, flags."""
        if not ranges or len(ranges) % _RANGE.size:
            return IOERR
        parsed = list(_RANGE.iter_unpack(ranges))
        if len(parsed) > 1:
            return UNSUPPORTED
        for sector, count, flags in parsed:
            if flags & ~1 or (discard and flags):
                return UNSUPPORTED
            if count > _MOST_RANGE or sector > self.sectors or count > self.sectors - sector:
                return IOERR
            if not _punch_hole(self.descriptor, sector * SECTOR, count * SECTOR) and not discard:
                self._write_zeros(sector * SECTOR, count * SECTOR)
        return OK

    def _write_zeros(self, offset: int, length: int) -> None:
        zeros = bytes(1 << 20)
        while length:
            done = os.pwrite(self.descriptor, zeros[:length], offset)
            offset, length = offset + done, length - done

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.descriptor)


def _after(buffers: Sequence[tuple[int, int]], skip: int) -> list[tuple[int, int]]:
    """The buffers without their first ``skip`` bytes."""
    rest = []
    for address, length in buffers:
        part = min(skip, length)
        skip -= part
        if length > part:
            rest.append((address + part, length - part))
    return rest


def _whole(call: object, descriptor: int, views: list[memoryview], offset: int) -> int:
    """preadv or pwritev until everything is transferred, or no more is."""
    done = 0
    while views:
        count: int = call(descriptor, views, offset + done)  # type: ignore[operator]
        if count == 0:
            break
        done += count
        while views and count >= len(views[0]):
            count -= len(views.pop(0))
        if views and count:
            views[0] = views[0][count:]
    return done


def _punch_hole(descriptor: int, offset: int, length: int) -> bool:
    """Free a range of a file, which then reads as zeros; False where the file system cannot."""
    if length == 0:
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.fallocate(
        descriptor, _PUNCH_HOLE | _KEEP_SIZE, ctypes.c_longlong(offset), ctypes.c_longlong(length)
    )
    return bool(result == 0)
