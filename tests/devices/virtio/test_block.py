"""The block device and its file."""

from __future__ import annotations

import errno
import gc
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from virtio_driver import DATA, FULL, PLAIN, TABLES, Driver, every_wiring

from polyvisor.devices.virtio import block as b
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.storage import raw
from polyvisor.storage.convert import convert
from polyvisor.storage.raw import DiskError, RawFile

SECTORS = 64
HEADER = DATA
BUFFER = DATA + 0x1000
STATUS = DATA + 0x100


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(random.Random(1).randbytes(SECTORS * 512))
    return path


class Disk(Driver):
    """Sends block requests."""

    def request(
        self, kind: int, sector: int = 0, out: bytes = b"", room: int = 0, pieces: int = 1, indirect: bool = False
    ) -> tuple[int, bytes, int]:
        """Returns status, data and the written count."""
        self.put(HEADER, "IIQ", kind, 0, sector)
        self.put(STATUS, "B", 0xEE)
        size = len(out) or room
        if out:
            self.memory.write(BUFFER, out)
        parts = [(HEADER, 16, False)]
        step = -(-size // pieces)
        parts += [(BUFFER + at, min(step, size - at), not out) for at in range(0, size, step or 1)]
        parts.append((STATUS, 1, True))
        self.offer(self.indirect(parts) if indirect else self.chain(parts))
        self.kick()
        ((head, written),) = self.used()
        assert head == 0
        return self.get(STATUS, "B"), self.memory.read(BUFFER, room), written


def disk(path: Path, read_only: bool = False, features: int = FULL, own: int | None = None) -> Disk:
    return Disk(BlockDevice.open(path, read_only, "serial-7"), features, own=own)


@every_wiring
def test_config(image: Path) -> None:
    driver = disk(image)
    config = b"".join(driver.mmio.read(0x100 + i, 4).to_bytes(4, "little") for i in range(0, 60, 4))
    assert struct.unpack_from("<QII", config) == (SECTORS, 0, b.QUEUE_SIZE - 2)
    assert struct.unpack_from("<I", config, 20) == (512,)
    assert struct.unpack_from("<BBHI", config, 24) == (3, 0, 8, 0)
    assert struct.unpack_from("<IIIII", config, 36) == (1 << 22, 16, 8, 1 << 16, 1)
    assert config[56:] == b"\1\0\0\0"
    assert driver.reg(t.DEVICE_ID) == 2
    assert driver.device.features & b.F_DISCARD and not driver.device.features & b.F_RO
    features = disk(image, read_only=True).device.features
    assert features & b.F_RO and not features & (b.F_DISCARD | b.F_WRITE_ZEROES)


@every_wiring
@pytest.mark.parametrize("features", [PLAIN, FULL])
@pytest.mark.parametrize("pieces", [1, 3, 8])
def test_read(image: Path, features: int, pieces: int) -> None:
    driver = disk(image, features=features)
    driver.written.clear()
    status, data, written = driver.request(b.T_IN, 5, room=4096, pieces=pieces)
    assert (status, written) == (b.S_OK, 4097)
    assert data == image.read_bytes()[5 * 512 : 13 * 512]
    changed = [w for w in driver.written if BUFFER <= w[0] < BUFFER + 4096]
    assert sum(length for _, length in changed) == 4096


@every_wiring
def test_write_and_flush(image: Path) -> None:
    driver = disk(image)
    before = image.read_bytes()
    data = os.urandom(2048)
    assert driver.request(b.T_OUT, 7, out=data, pieces=5) == (b.S_OK, b"", 1)
    assert driver.request(b.T_FLUSH) == (b.S_OK, b"", 1)
    assert image.read_bytes() == before[: 7 * 512] + data + before[11 * 512 :]


@every_wiring
def test_many_segments(image: Path) -> None:
    driver = disk(image)
    status, data, written = driver.request(b.T_IN, 0, room=32768 - 512, pieces=250, indirect=True)
    assert (status, written) == (b.S_OK, 32257)
    assert data == image.read_bytes()[: 32768 - 512]


@every_wiring
def test_request_in_odd_pieces(image: Path) -> None:
    driver = disk(image)
    driver.put(HEADER, "IIQ", b.T_IN, 0, 3)
    parts = [(HEADER, 3, False), (HEADER + 3, 13, False), (BUFFER, 100, True), (BUFFER + 100, 413, True)]
    driver.offer(driver.chain(parts))
    driver.kick()
    assert driver.used() == [(0, 513)]
    assert driver.memory.read(BUFFER, 513) == image.read_bytes()[1536:2048] + b"\0"


@every_wiring
@pytest.mark.parametrize("most", [None, 0, 700])
def test_read_through_a_vector(image: Path, monkeypatch: pytest.MonkeyPatch, most: int | None) -> None:
    """``most``: what the system call reads at most; the rest is read in the other way."""
    driver = disk(image, read_only=True)
    calls = []
    preadv = raw._preadv

    def call(fd: int, vector: int, count: int, offset: int) -> int:
        calls.append((count, offset))
        return preadv(fd, vector, count, offset) if most is None else most

    monkeypatch.setattr(raw, "_preadv", call)
    driver.written.clear()
    status, data, written = driver.request(b.T_IN, 3, room=8192, pieces=10, indirect=True)
    assert (status, written) == (b.S_OK, 8193)
    assert data == image.read_bytes()[3 * 512 : 19 * 512]
    assert calls == [(10, 1536)]
    assert sum(length for at, length in driver.written if BUFFER <= at < BUFFER + 8192) == 8192
    # The status is the last byte of the last piece: no vector of the chain's.
    driver.put(HEADER, "IIQ", b.T_IN, 0, 5)
    parts = [(HEADER, 16, False), *((BUFFER + 512 * place, 512, True) for place in range(7))]
    parts.append((BUFFER + 7 * 512, 513, True))
    driver.offer(driver.indirect(parts))
    driver.kick()
    assert driver.used() == [(0, 4097)] and len(calls) == 1
    assert driver.memory.read(BUFFER, 4097) == image.read_bytes()[5 * 512 : 13 * 512] + b"\0"


def test_id(image: Path) -> None:
    driver = disk(image)
    assert driver.request(b.T_GET_ID, room=20) == (b.S_OK, b"serial-7".ljust(20, b"\0"), 21)
    assert driver.request(b.T_GET_ID, room=4) == (b.S_OK, b"seri", 5)
    with pytest.raises(ValueError, match="longer than 20"):
        BlockDevice.open(image, True, "x" * 21)
    with pytest.raises(ValueError, match="ascii"):
        BlockDevice.open(image, True, "\xe4")


@pytest.mark.parametrize(
    ("sector", "size"),
    [(SECTORS, 512), (SECTORS - 1, 1024), (2**64 - 1, 512), (2**55, 512), (0, 511), (0, 513), (SECTORS + 1, 0)],
)
def test_impossible_transfers(image: Path, sector: int, size: int) -> None:
    driver = disk(image)
    before = image.read_bytes()
    assert driver.request(b.T_IN, sector, room=size)[::2] == (b.S_IOERR, 0 if size else 1)
    assert driver.request(b.T_OUT, sector, out=bytes(size))[0] == b.S_IOERR
    assert image.read_bytes() == before
    assert not driver.needs_reset


def test_read_only(image: Path) -> None:
    before = image.read_bytes()
    image.chmod(0o400)
    driver = disk(image, read_only=True)
    assert driver.request(b.T_IN, 0, room=512)[:2] == (b.S_OK, before[:512])
    assert driver.request(b.T_OUT, 0, out=bytes(512))[0] == b.S_IOERR
    assert driver.request(b.T_DISCARD, out=struct.pack("<QII", 0, 8, 0))[0] == b.S_UNSUPP
    assert driver.request(b.T_WRITE_ZEROES, out=struct.pack("<QII", 0, 8, 0))[0] == b.S_UNSUPP
    assert driver.request(b.T_FLUSH)[0] == b.S_OK
    assert image.read_bytes() == before


def test_read_only_device_of_a_writable_file(image: Path) -> None:
    before = image.read_bytes()
    file = RawFile(os.open(image, os.O_RDWR), len(before), True)
    driver = Disk(BlockDevice(file))
    assert driver.request(b.T_OUT, 0, out=bytes(512))[0] == b.S_IOERR
    assert image.read_bytes() == before


@every_wiring
def test_unknown_request_and_short_header(image: Path) -> None:
    driver = disk(image)
    assert driver.request(99, room=8)[0] == b.S_UNSUPP
    driver.offer(driver.chain([(HEADER, 15, False), (STATUS, 1, True)]))
    driver.kick()
    assert driver.used() == [(0, 1)] and driver.get(STATUS, "B") == b.S_IOERR


@every_wiring
def test_no_room_for_status(image: Path) -> None:
    driver = disk(image)
    driver.put(HEADER, "IIQ", b.T_FLUSH, 0, 0)
    driver.offer(driver.chain([(HEADER, 16, False)]))
    driver.kick()
    assert driver.used() == [] and driver.needs_reset


def test_write_zeroes(image: Path) -> None:
    driver = disk(image)
    expected = bytearray(image.read_bytes())
    for flags, sector in ((0, 3), (1, 20)):
        assert driver.request(b.T_WRITE_ZEROES, out=struct.pack("<QII", sector, 9, flags))[0] == b.S_OK
        expected[sector * 512 : (sector + 9) * 512] = bytes(9 * 512)
        assert image.read_bytes() == expected


@pytest.mark.parametrize("unmap", [False, True])
def test_write_zeroes_without_fallocate(image: Path, monkeypatch: pytest.MonkeyPatch, unmap: bool) -> None:
    monkeypatch.setattr(raw, "_fallocate", lambda *arguments: False)
    monkeypatch.setattr(raw, "_ZEROES", bytes(1000))
    driver = disk(image)
    expected = bytearray(image.read_bytes())
    assert driver.request(b.T_WRITE_ZEROES, out=struct.pack("<QII", 3, 9, unmap))[0] == b.S_OK
    expected[3 * 512 : 12 * 512] = bytes(9 * 512)
    assert image.read_bytes() == expected
    assert driver.request(b.T_DISCARD, out=struct.pack("<QII", 40, 9, 0))[0] == b.S_OK
    assert image.read_bytes() == expected


def test_discard_frees_blocks(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(b"x" * (1 << 20))
    driver = disk(path)
    ranges = struct.pack("<QIIQII", 0, 1024, 0, 1024, 1024, 0)
    assert driver.request(b.T_DISCARD, out=ranges)[0] == b.S_OK
    assert path.stat().st_size == 1 << 20
    assert path.read_bytes() in (bytes(1 << 20), b"x" * (1 << 20))


def test_fallocate_modes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(raw, "_fallocate", lambda fd, *arguments: calls.append(arguments) or True)
    driver = disk(image)
    driver.request(b.T_DISCARD, out=struct.pack("<QIIQII", 8, 16, 0, 40, 8, 0))
    driver.request(b.T_WRITE_ZEROES, out=struct.pack("<QII", 1, 2, 0))
    driver.request(b.T_WRITE_ZEROES, out=struct.pack("<QII", 1, 2, 1))
    assert calls == [(3, 4096, 8192), (3, 20480, 4096), (17, 512, 1024), (3, 512, 1024)]


@pytest.mark.parametrize("kind", [b.T_DISCARD, b.T_WRITE_ZEROES])
def test_bad_ranges(image: Path, kind: int) -> None:
    driver = disk(image)
    before = image.read_bytes()
    good = struct.pack("<QII", 0, 1, 0)
    assert driver.request(kind, out=good + b"x")[0] == b.S_IOERR
    assert driver.request(kind)[0] == b.S_IOERR
    assert driver.request(kind, out=good * 17)[0] == b.S_IOERR
    for sector, count in ((SECTORS, 1), (0, SECTORS + 1), (2**64 - 1, 1), (0, 0xFFFFFFFF)):
        assert driver.request(kind, out=struct.pack("<QII", sector, count, 0))[0] == b.S_IOERR
    assert driver.request(kind, out=struct.pack("<QII", 0, 1, 2))[0] == b.S_UNSUPP
    assert image.read_bytes() == before
    assert driver.request(kind, out=struct.pack("<QII", 0, 0, 0))[0] == b.S_OK
    assert driver.request(b.T_DISCARD, out=struct.pack("<QII", 0, 1, 1))[0] == b.S_UNSUPP


def test_ranges_need_their_feature(image: Path) -> None:
    driver = disk(image, own=b.F_FLUSH)
    assert driver.request(b.T_DISCARD, out=struct.pack("<QII", 0, 1, 0))[0] == b.S_UNSUPP
    assert driver.request(b.T_WRITE_ZEROES, out=struct.pack("<QII", 0, 1, 0))[0] == b.S_UNSUPP


@pytest.mark.parametrize(("own", "flushes"), [(None, 1), (0, 2)])
def test_write_through_without_flush(
    image: Path, monkeypatch: pytest.MonkeyPatch, own: int | None, flushes: int
) -> None:
    calls = []
    monkeypatch.setattr(os, "fdatasync", calls.append)
    driver = disk(image, own=own)
    driver.request(b.T_OUT, out=bytes(512))
    driver.request(b.T_FLUSH)
    assert len(calls) == flushes


def fail(*arguments: object) -> None:
    raise OSError(errno.EIO, "broken")


@every_wiring
@pytest.mark.parametrize("name", ["preadv", "pwritev", "fdatasync"])
def test_host_errors(image: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    driver = disk(image)
    monkeypatch.setattr(os, name, fail)
    results = [
        driver.request(b.T_IN, room=512)[::2],
        driver.request(b.T_OUT, out=bytes(512))[::2],
        driver.request(b.T_FLUSH)[::2],
    ]
    index = ["preadv", "pwritev", "fdatasync"].index(name)
    expected = [(b.S_OK, 513), (b.S_OK, 1), (b.S_OK, 1)]
    expected[index] = (b.S_IOERR, 0 if index == 0 else 1)
    assert results == expected


def test_short_transfers_go_on(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, pwritev = os.preadv, os.pwritev
    monkeypatch.setattr(os, "preadv", lambda fd, views, at: preadv(fd, [views[0][:7]], at))
    monkeypatch.setattr(os, "pwritev", lambda fd, views, at: pwritev(fd, [views[0][:7]], at))
    driver = disk(image)
    before = image.read_bytes()
    assert driver.request(b.T_IN, 2, room=1024, pieces=3)[:2] == (b.S_OK, before[1024:2048])
    assert driver.request(b.T_OUT, 9, out=before[:1024], pieces=3)[0] == b.S_OK
    assert image.read_bytes()[9 * 512 : 11 * 512] == before[:1024]


def test_file_that_shrank(image: Path) -> None:
    driver = disk(image)
    os.truncate(image, 512)
    assert driver.request(b.T_IN, 0, room=1024)[0] == b.S_IOERR
    assert driver.request(b.T_IN, 0, room=512)[0] == b.S_OK


def test_closed(image: Path) -> None:
    driver = disk(image)
    driver.device.close()
    driver.device.close()
    assert driver.request(b.T_IN, 0, room=512)[0] == b.S_IOERR


def check_refused(path: Path, read_only: bool, words: str) -> None:
    with pytest.raises(DiskError, match=words) as caught:
        BlockDevice.open(path, read_only)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("read_only", [False, True])
def test_unusable_files(tmp_path: Path, read_only: bool) -> None:
    gc.collect()  # so that nobody else's descriptors go while we count
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    check_refused(tmp_path / "missing", read_only, "No such file")
    check_refused(tmp_path, read_only, "directory")
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(1000))
    check_refused(odd, read_only, r"\(1000 bytes\) is not a multiple of 512")
    empty = tmp_path / "empty"
    empty.touch()
    check_refused(empty, read_only, "empty")
    os.mkfifo(tmp_path / "pipe")
    check_refused(tmp_path / "pipe", read_only, "neither")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_one_writer(image: Path) -> None:
    device = BlockDevice.open(image)
    check_refused(image, False, "in use")
    code = (
        "import sys; from polyvisor.devices.virtio.block import *; from polyvisor.storage.raw import *\n"
        "try: BlockDevice.open(sys.argv[1])\n"
        "except DiskError as error: print(error)"
    )
    other = subprocess.run([sys.executable, "-c", code, str(image)], capture_output=True, text=True, check=True)
    assert "in use" in other.stdout
    BlockDevice.open(image, read_only=True).close()
    device.close()
    BlockDevice.open(image).close()


def test_more_views_than_the_host_takes_at_once(image: Path) -> None:
    file = RawFile.open(image, True)
    buffer = bytearray(20000)
    views = [memoryview(buffer)[i : i + 5] for i in range(0, 20000, 5)]
    file.read(views, 512)
    assert buffer == image.read_bytes()[512:20512]
    file.close()


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_qcow2_image(tmp_path: Path, image: Path, snapshot: bool) -> None:
    path = tmp_path / "disk.qcow2"
    source = RawFile.open(image, True)
    convert(source, path, "qcow2", cluster_size=1024)
    source.close()
    before = path.read_bytes()
    expected = bytearray(image.read_bytes())
    driver = Disk(BlockDevice.open(path, snapshot=snapshot))
    assert driver.request(b.T_OUT, 7, out=b"new!" * 512, pieces=5) == (b.S_OK, b"", 1)
    expected[7 * 512 : 11 * 512] = b"new!" * 512
    assert driver.request(b.T_WRITE_ZEROES, out=struct.pack("<QII", 20, 9, 1))[0] == b.S_OK
    expected[20 * 512 : 29 * 512] = bytes(9 * 512)
    assert driver.request(b.T_DISCARD, out=struct.pack("<QII", 40, 8, 0))[0] == b.S_OK
    expected[40 * 512 : 48 * 512] = bytes(8 * 512)
    assert driver.request(b.T_FLUSH)[0] == b.S_OK
    for sector, size in ((SECTORS, 512), (SECTORS - 1, 1024), (2**64 - 1, 512), (2**55, 512), (0, 511)):
        assert driver.request(b.T_IN, sector, room=size)[::2] == (b.S_IOERR, 0)
        assert driver.request(b.T_OUT, sector, out=bytes(size))[0] == b.S_IOERR
    assert driver.request(b.T_IN, SECTORS)[::2] == (b.S_OK, 1)
    assert driver.request(b.T_OUT, SECTORS)[::2] == (b.S_OK, 1)
    assert driver.request(b.T_IN, 0, room=SECTORS * 512, pieces=3)[:2] == (b.S_OK, expected)
    driver.device.close()
    assert driver.request(b.T_IN, 0, room=512)[0] == b.S_IOERR
    assert (path.read_bytes() == before) == snapshot
    if not snapshot:
        assert Disk(BlockDevice.open(path, True)).request(b.T_IN, 0, room=SECTORS * 512)[:2] == (b.S_OK, expected)


def test_indirect_tables_are_not_data(image: Path) -> None:
    driver = disk(image)
    assert driver.request(b.T_IN, 1, room=512, indirect=True)[0] == b.S_OK
    assert driver.memory.read(TABLES, 8) == struct.pack("<Q", HEADER)
