"""The block device: requests, limits, and files that cannot be disks."""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

import pytest

from polyvisor.devices.virtio.block import BlockDevice
from support.virtio import Driver

IN, OUT, FLUSH, GET_ID, DISCARD, ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPPORTED = b"\0", b"\1", b"\2"
SECTORS = 64


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "disk"
    file.write_bytes(random.Random(0).randbytes(SECTORS * 512))
    return file


@pytest.fixture
def disk(path: Path) -> Driver:
    made = Driver(BlockDevice.open(str(path)), size=16)
    made.start()
    return made


def test_the_capacity_is_in_sectors(disk: Driver) -> None:
    assert disk.mmio.read(0x100, 8) == SECTORS
    assert disk.mmio.read(0x114, 4) == 512


def test_reading_scatters(disk: Driver, path: Path) -> None:
    written, (a, b, status) = disk.request([header(IN, 3)], [512, 1024, 1])
    assert (written, status) == (1537, OK)
    assert a + b == path.read_bytes()[3 * 512 : 6 * 512]


def test_writing_gathers(disk: Driver, path: Path) -> None:
    data = random.Random(1).randbytes(1024)
    assert disk.request([header(OUT, 5), data[:300], data[300:]], [1])[1] == [OK]
    assert path.read_bytes()[5 * 512 : 7 * 512] == data


def test_the_status_can_share_the_last_buffer(disk: Driver, path: Path) -> None:
    written, (data,) = disk.request([header(IN)], [513])
    assert (written, data) == (513, path.read_bytes()[:512] + OK)


def test_flush_and_identity(disk: Driver) -> None:
    assert disk.request([header(FLUSH)], [1])[1] == [OK]
    assert disk.request([header(GET_ID)], [20, 1])[1] == [b"disk".ljust(20, b"\0"), OK]


@pytest.mark.parametrize("kind", [DISCARD, ZEROES])
def test_ranges_are_cleared(disk: Driver, path: Path, kind: int) -> None:
    before = path.read_bytes()
    assert disk.request([header(kind), struct.pack("<QII", 8, 16, 0)], [1])[1] == [OK]
    after = path.read_bytes()
    assert after[: 8 * 512] == before[: 8 * 512]
    assert after[8 * 512 : 24 * 512] == bytes(16 * 512)
    assert after[24 * 512 :] == before[24 * 512 :]


@pytest.mark.parametrize(
    ("request_header", "data", "incoming", "status"),
    [
        (header(IN, SECTORS), [], [512, 1], IOERR),
        (header(IN, 2**63), [], [512, 1], IOERR),
        (header(IN, SECTORS - 1), [], [1024, 1], IOERR),
        (header(IN), [], [100, 1], IOERR),
        (header(OUT, SECTORS), [bytes(512)], [1], IOERR),
        (header(99), [], [1], UNSUPPORTED),
        (header(DISCARD), [struct.pack("<QII", 0, SECTORS + 1, 0)], [1], IOERR),
        (header(DISCARD), [struct.pack("<QII", 0, 1, 1)], [1], UNSUPPORTED),
        (header(ZEROES), [b"short"], [1], IOERR),
    ],
)
def test_impossible_requests_get_a_status(
    disk: Driver, path: Path, request_header: bytes, data: list[bytes], incoming: list[int], status: bytes
) -> None:
    before = path.read_bytes()
    assert disk.request([request_header, *data], incoming)[1][-1] == status
    assert path.read_bytes() == before


def test_a_read_only_disk_is_not_written(path: Path) -> None:
    made = Driver(BlockDevice.open(str(path), read_only=True))
    assert made.features() >> 5 & 1
    made.start()
    assert made.request([header(OUT), bytes(512)], [1])[1] == [IOERR]
    assert made.request([header(IN)], [512, 1])[1][1] == OK


def test_a_request_without_a_status_asks_for_a_reset(disk: Driver) -> None:
    disk.describe(0, 0x8001_0000, 16)
    disk.offer(0)
    assert disk.read(0x070) & 64


@pytest.mark.parametrize(
    ("content", "says"), [(None, "No such file"), (b"", "multiple of 512"), (bytes(513), "multiple of 512")]
)
def test_files_that_are_no_disks(tmp_path: Path, content: bytes | None, says: str) -> None:
    path = tmp_path / "disk"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=says):
        BlockDevice.open(str(path))
    with pytest.raises(ValueError, match=r"neither a file|Is a directory"):
        BlockDevice.open(str(tmp_path), read_only=True)


def test_writers_exclude_each_other_and_readers(path: Path) -> None:
    first = BlockDevice.open(str(path))
    for read_only in (False, True):
        with pytest.raises(ValueError, match="in use"):
            BlockDevice.open(str(path), read_only)
    first.close()
    readers = [BlockDevice.open(str(path), read_only=True) for _ in range(2)]
    for reader in readers:
        reader.close()


def test_an_error_of_the_host_is_an_error_of_the_disk(disk: Driver) -> None:
    os.close(disk.mmio.device.descriptor)  # type: ignore[union-attr]
    assert disk.request([header(IN)], [512, 1])[1][-1] == IOERR
