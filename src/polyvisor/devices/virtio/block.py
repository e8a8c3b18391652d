"""The block device (VIRTIO 1.2, section 5.2)."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Self

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import (
    PAIR_SIZE,
    Chain,
    LongChain,
    QueueError,
    Segment,
    gather,
    length_of,
    scatter,
    split,
    split_last,
)
from polyvisor.storage.disk import SECTOR, Disk, DiskError
from polyvisor.storage.open import open_disk
from polyvisor.storage.overlay import Overlay
from polyvisor.storage.raw import RawFile

__all__ = ["BlockDevice", "BlockState", "DiskError"]

# A chain is not longer than the queue (2.7.5.3.1): enough for a mebibyte in single pages.
QUEUE_SIZE = 512

# Feature bits (5.2.3).
F_SEG_MAX = 1 << 2
F_RO = 1 << 5
F_BLK_SIZE = 1 << 6
F_FLUSH = 1 << 9
F_TOPOLOGY = 1 << 10
F_DISCARD = 1 << 13
F_WRITE_ZEROES = 1 << 14

# Request types and status (5.2.6).
T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13
S_OK = 0
S_IOERR = 1
S_UNSUPP = 2

ID_BYTES = 20
MAX_DISCARD_SECTORS = 1 << 22
MAX_WRITE_ZEROES_SECTORS = 1 << 16
MAX_DISCARD_RANGES = 16
MAX_WRITE_ZEROES_RANGES = 1

_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")
_RANGE_UNMAP = 1
# struct virtio_blk_config (5.2.4) up to write_zeroes_may_unmap and its padding.
_CONFIG = struct.Struct("<QII HBB I BBHI BxH III IIB3x")
# Hints of the topology: physical blocks of 2^3 logical ones, which is also the best minimum (in logical blocks).
_PHYSICAL_BLOCK_EXP = 3


@dataclass
class BlockState:
    """The device keeps nothing between requests."""


class _RequestError(Exception):
    """The request ends with this status."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class BlockDevice(VirtioDevice):
    """``disk`` for the guest; the device closes it. ``serial``: up to 20 ASCII characters.

    Requests are done while the driver's notification is handled, straight between the disk and guest memory.
    """

    device_id = 2

    def __init__(self, disk: Disk, serial: str = "") -> None:
        """Raises ValueError for a serial number that does not fit."""
        self.serial = serial
        self._serial = serial.encode("ascii")
        if len(self._serial) > ID_BYTES:
            raise ValueError(f"serial number {serial!r}: longer than {ID_BYTES} characters")
        features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY
        features |= F_RO if disk.read_only else F_DISCARD | F_WRITE_ZEROES
        super().__init__(features, (QUEUE_SIZE,), BlockState())
        self.disk = disk
        self._config = _CONFIG.pack(
            *(disk.size // SECTOR, 0, QUEUE_SIZE - 2),
            *(0, 0, 0),
            SECTOR,
            *(_PHYSICAL_BLOCK_EXP, 0, 1 << _PHYSICAL_BLOCK_EXP, 0),
            *(0, 1),
            *(MAX_DISCARD_SECTORS, MAX_DISCARD_RANGES, 1 << _PHYSICAL_BLOCK_EXP),
            *(MAX_WRITE_ZEROES_SECTORS, MAX_WRITE_ZEROES_RANGES, 1),
        )

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], read_only: bool = False, serial: str = "", *,
        format: str | None = None, snapshot: bool = False,
    ) -> Self:
        """A device for the disk image at ``path``, of ``format`` as :func:`polyvisor.storage.open.open_disk` takes it.

        With ``snapshot``, the guest writes to a temporary overlay and the file stays as it is. Raises DiskError, an
        OSError with a line for the user.
        """
        disk = open_disk(path, read_only or snapshot, format, shared=snapshot)
        try:
            if snapshot and not read_only:
                disk = Overlay(disk)
            return cls(disk, serial)
        except BaseException:
            disk.close()
            raise

    def close(self) -> None:
        """Close the disk; requests fail from now on. Raises OSError if what was not flushed cannot be written."""
        with self.lock:
            self.disk.close()

    def config(self) -> bytes:
        """struct virtio_blk_config."""
        return self._config

    def notify(self, index: int) -> None:
        """Do all requests. Raises QueueError."""
        self.serve(index, self._request)

    def _request(self, chain: Chain) -> int:
        """Do one request and write its status; returns the bytes written from the start of the writable part."""
        room = length_of(chain.writable)
        if not room:
            raise QueueError("a block request without room for its status")
        data, status_at = split_last(chain.writable)
        memory = self.link.memory
        pairs = chain.pairs[PAIR_SIZE * len(chain.readable) :] if isinstance(chain, LongChain) else b""
        # Where the status has no descriptor of its own, the last pair is another than the last segment.
        alone = len(data) < len(chain.writable)
        done = 0
        try:
            done = self._do(chain.readable, data, pairs[:-PAIR_SIZE] if alone else b"")
            status = S_OK
        except _RequestError as error:
            status = error.status
        except OSError:
            status = S_IOERR
        memory.view(*status_at)[0] = status
        memory.wrote_all(chain.writable, pairs)
        # The count is of leading bytes, so the status counts only if all before it was written.
        return done + 1 if done == room - 1 else done

    def _do(self, readable: list[Segment], writable: list[Segment], pairs: bytes) -> int:
        """Do a request; returns the bytes of data written to the guest. Raises _RequestError or OSError.

        ``pairs``: the same as ``writable``, if there are such.
        """
        header, data = split(readable, _HEADER.size)
        if length_of(header) < _HEADER.size:
            raise _RequestError(S_IOERR)
        kind, _, sector = _HEADER.unpack(gather(self.link.memory, header))
        if kind == T_IN:
            return self._read(sector, writable, pairs)
        if kind == T_OUT:
            self._write(sector, data)
        elif kind == T_FLUSH:
            if not self.disk.read_only:
                self.disk.flush()
        elif kind == T_GET_ID:
            return scatter(self.link.memory, writable, self._serial.ljust(ID_BYTES, b"\0"))
        elif kind == T_DISCARD and self.link.features & F_DISCARD:
            for offset, length, _ in self._ranges(data, MAX_DISCARD_RANGES, MAX_DISCARD_SECTORS, 0):
                self.disk.discard(offset, length)
            self._written()
        elif kind == T_WRITE_ZEROES and self.link.features & F_WRITE_ZEROES:
            ranges = self._ranges(data, MAX_WRITE_ZEROES_RANGES, MAX_WRITE_ZEROES_SECTORS, _RANGE_UNMAP)
            for offset, length, flags in ranges:
                self.disk.zero(offset, length, bool(flags & _RANGE_UNMAP))
            self._written()
        else:
            raise _RequestError(S_UNSUPP)
        return 0

    def _offset(self, sector: int, length: int) -> int:
        """The place of a transfer in the file. Raises _RequestError if it is not whole sectors of the disk."""
        offset = sector * SECTOR
        if length % SECTOR or offset + length > self.disk.size:
            raise _RequestError(S_IOERR)
        return offset

    def _read(self, sector: int, segments: list[Segment], pairs: bytes) -> int:
        length = length_of(segments)
        offset = self._offset(sector, length)
        disk = self.disk
        whole = pairs and isinstance(disk, RawFile) and disk.read_vector(
            self.link.queues[0].vector(pairs), length, offset
        )
        if not whole:
            disk.read(self.link.memory.views(segments), offset)
        return length

    def _write(self, sector: int, segments: list[Segment]) -> None:
        if self.disk.read_only:
            raise _RequestError(S_IOERR)
        offset = self._offset(sector, length_of(segments))
        self.disk.write(self.link.memory.views(segments), offset)
        self._written()

    def _written(self) -> None:
        """A driver that did not negotiate FLUSH gets a write-through cache (5.2.6.2)."""
        if not self.link.features & F_FLUSH:
            self.disk.flush()

    def _ranges(
        self, data: list[Segment], max_ranges: int, max_sectors: int, flags_known: int
    ) -> list[tuple[int, int, int]]:
        """Offset and length in bytes, and flags, of each range of a request. Raises _RequestError (5.2.6.2)."""
        count, odd = divmod(length_of(data), _RANGE.size)
        if odd or not 1 <= count <= max_ranges:
            raise _RequestError(S_IOERR)
        ranges = list(_RANGE.iter_unpack(gather(self.link.memory, data)))
        if any(flags & ~flags_known for _, _, flags in ranges):
            raise _RequestError(S_UNSUPP)
        if any(sectors > max_sectors for _, sectors, _ in ranges):
            raise _RequestError(S_IOERR)
        found = [(self._offset(sector, sectors * SECTOR), sectors * SECTOR, flags) for sector, sectors, flags in ranges]
        return [(offset, length, flags) for offset, length, flags in found if length]
