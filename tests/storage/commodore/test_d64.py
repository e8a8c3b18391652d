"""D64: layout as the 1541's manual gives it, files written and read, and images that are damaged."""

import random
from pathlib import Path

import pytest

from polyvisor.storage.commodore.d64 import D64, DiskFullError, ReadError
from polyvisor.storage.commodore.files import Entry, FileType, ImageError
from polyvisor.storage.commodore.geometry import offset_of


def counted(disk: D64) -> None:
    """The map, made anew from the files, is the one that is there."""
    before = bytes(disk.data)
    disk.validate()
    assert bytes(disk.data) == before


def test_an_empty_disk() -> None:
    disk = D64.formatted(b"WORK", b"A1")
    assert (len(disk.image()), disk.free, disk.title, disk.id) == (174848, 664, b"WORK", b"A1 2A")
    head = disk.sector(18, 0)
    # Track 18, sector 1; format A; then for track 1: 21 free sectors.
    assert head[:8] == bytes.fromhex("12 01 41 00 15 ff ff 1f")
    assert head[4 * 18 : 4 * 18 + 4] == bytes.fromhex("11 fc ff 07")
    assert head[4 * 35 : 4 * 35 + 4] == bytes.fromhex("11 ff ff 01")
    assert head[0x90:0xAB] == b"WORK".ljust(18, b"\xa0") + b"A1\xa02A\xa0\xa0\xa0\xa0"
    assert disk.entries() == []
    counted(disk)


def test_places_of_sectors() -> None:
    # Offsets in bytes, from the table in "Inside Commodore DOS".
    for track, offset in ((1, 0), (18, 0x16500), (19, 0x17800), (25, 0x1EA00), (31, 0x25600), (35, 0x29A00)):
        assert offset_of(track, 0) * 256 == offset
    with pytest.raises(ImageError, match="there is no track 18, sector 19"):
        offset_of(18, 19)


@pytest.mark.parametrize("length", [0, 1, 253, 254, 255, 508, 100_000, 664 * 254])
def test_a_file_is_read_as_it_was_written(length: int) -> None:
    contents = random.Random(length).randbytes(length)
    disk = D64.formatted(b"X", b"00")
    entry = disk.write(b"NAME", contents, FileType.SEQ)
    assert disk.read(entry) == contents
    assert disk.entries() == [entry] == [Entry(0, b"NAME", FileType.SEQ, max(1, -(-length // 254)))]
    assert disk.free == 664 - entry.blocks
    counted(disk)
    # Beside the directory, outwards, every tenth sector.
    slot = disk.sector(18, 1)[:32]
    assert slot[2:5] == bytes([0x81, 17, 0])
    if length > 508:
        assert disk.sector(17, 0)[:2] == bytes([17, 10])


def test_what_does_not_fit_changes_nothing() -> None:
    disk = D64.formatted(b"X", b"00")
    disk.write(b"ONE", bytes(600 * 254))
    before = disk.image()
    with pytest.raises(DiskFullError, match="65 blocks do not fit, 64 are free"):
        disk.write(b"TWO", bytes(65 * 254))
    with pytest.raises(ImageError, match="there is a file of that name"):
        disk.write(b"ONE", b"1")
    with pytest.raises(ImageError, match="1 to 16 characters"):
        disk.write(b"N" * 17, b"1")
    with pytest.raises(ImageError, match="REL cannot be written"):
        disk.write(b"TWO", b"1", FileType.REL)
    assert disk.image() == before


def test_the_directory_grows_until_its_track_is_full() -> None:
    disk = D64.formatted(b"X", b"00")
    for number in range(144):
        disk.write(b"%d" % number, b"1")
    with pytest.raises(DiskFullError, match="the directory is full"):
        disk.write(b"MORE", b"1")
    assert [entry.name for entry in disk.entries()] == [b"%d" % n for n in range(144)]
    # The drive's software puts its sectors at 1, 4, 7, ...
    assert [sector for _, sector, _ in disk.chain(18, 1)][:7] == [1, 4, 7, 10, 13, 16, 2]
    counted(disk)


def test_scratch_rename_and_use_again() -> None:
    disk = D64.formatted(b"X", b"00")
    empty = disk.image()
    one, two = disk.write(b"ONE", bytes(1000)), disk.write(b"TWO", b"2")
    disk.scratch(one)
    assert disk.entries() == [two] and disk.free == 663
    disk.rename(two, b"ONE")
    assert disk.find(b"O?E") == disk.find(b"O*") == disk.entries()[0]
    assert disk.find(b"ON") is None
    three = disk.write(b"THREE", b"3")
    assert three.number == 0
    counted(disk)
    for entry in disk.entries():
        disk.scratch(entry)
    assert disk.sector(18, 0) == D64.parse(empty).sector(18, 0)
    with pytest.raises(ImageError, match="no directory entry 1"):
        disk.scratch(two)


def test_a_locked_file_stays() -> None:
    disk = D64.formatted(b"X", b"00")
    disk.write(b"ONE", b"1")
    sector = disk.sector(18, 1)
    sector[2] |= 0x40
    disk.write_sector(18, 1, sector)
    (entry,) = disk.entries()
    assert entry.locked
    with pytest.raises(ImageError, match="locked"):
        disk.scratch(entry)


def test_random_changes_keep_the_map_right() -> None:
    rng = random.Random(1541)
    disk, contents = D64.formatted(b"X", b"00"), {}
    for _ in range(300):
        name = b"F%d" % rng.randrange(20)
        if name in contents:
            disk.scratch(disk.find(name))
            del contents[name]
        else:
            data = rng.randbytes(rng.randrange(20000))
            try:
                disk.write(name, data, rng.choice([FileType.SEQ, FileType.PRG, FileType.USR]))
            except DiskFullError:
                assert disk.free < len(data) / 254 + 1
            else:
                contents[name] = data
    counted(disk)
    assert {entry.name: disk.read(entry) for entry in disk.entries()} == contents


def test_forty_tracks_and_error_bytes(tmp_path: Path) -> None:
    disk = D64.formatted(b"X", b"00", tracks=40)
    assert len(disk.image()) == 196608 and disk.free == 664
    errors = bytearray(b"\1" * 768)
    errors[offset_of(17, 0)] = 5
    image = disk.image() + errors
    disk = D64.parse(image)
    assert disk.image() == image
    with pytest.raises(ReadError, match=r"track 17, sector 0 cannot be read \(error 23\)"):
        disk.sector(17, 0)
    # What is written can be read.
    entry = disk.write(b"ONE", b"1")
    assert disk.read(entry) == b"1"
    # A file beyond track 35 can be read and scratched.
    disk.write_sector(40, 16, b"\0\4ABC".ljust(256, b"\0"))
    sector = disk.sector(18, 1)
    sector[3:5] = bytes([40, 16])
    disk.write_sector(18, 1, sector)
    assert disk.read(entry) == b"ABC"
    disk.scratch(entry)


def test_saving_replaces_the_file_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "work.d64"
    disk = D64.formatted(b"X", b"00")
    disk.save(path)
    path.chmod(0o640)
    disk.write(b"ONE", b"1")
    disk.save(path)
    assert D64.open(path).entries() == disk.entries()
    assert [p.name for p in tmp_path.iterdir()] == ["work.d64"] and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(ImageError, match="cannot be saved: No such file"):
        disk.save(tmp_path / "none" / "work.d64")


def relative(disk: D64) -> None:
    """A relative file of two records of 100 bytes, with its side sector."""
    disk.write(b"REL", b"A" * 100 + b"B" * 100, FileType.SEQ)
    sector = disk.sector(18, 1)
    sector[2], sector[21:24] = 0x84, bytes([19, 5, 100])
    disk.write_sector(18, 1, sector)
    disk.allocate(19, 5)
    disk.write_sector(19, 5, bytes([0, 17, 0, 100, 19, 5]).ljust(16, b"\0") + bytes([17, 0]) + bytes(238))


def test_relative_files_are_read_and_scratched_with_their_index() -> None:
    disk = D64.formatted(b"X", b"00")
    relative(disk)
    (entry,) = disk.entries()
    assert (entry.type, entry.record, disk.read(entry)[100:]) == (FileType.REL, 100, b"B" * 100)
    counted(disk)
    disk.scratch(entry)
    assert disk.free == 664


def test_chains_that_go_round() -> None:
    disk = D64.formatted(b"X", b"00")
    entry = disk.write(b"LOOP", bytes(600))
    disk.write_sector(17, 20, bytes([17, 0]) + bytes(254))
    before = disk.image()
    for action in (disk.read, disk.scratch):
        with pytest.raises(ImageError, match="comes back to track 17, sector 0"):
            action(entry)
    with pytest.raises(ImageError, match="comes back"):
        disk.validate()
    assert disk.image() == before


def test_sizes_that_no_image_has(tmp_path: Path) -> None:
    for size in (0, 1, 174847, 174849, 1 << 20):
        (tmp_path / "x").write_bytes(bytes(size))
        with pytest.raises(ImageError, match=r"^\S+/x: has "):
            D64.open(tmp_path / "x")


def test_damaged_disks_give_errors_and_nothing_else() -> None:
    rng = random.Random(5)
    disk = D64.formatted(b"X", b"00")
    for number in range(20):
        disk.write(b"F%d" % number, rng.randbytes(rng.randrange(3000)))
    whole, places = disk.image(), [offset_of(18, sector) * 256 for sector in range(19)]
    for _ in range(300):
        broken = D64.parse(whole)
        for _ in range(rng.randrange(1, 30)):
            place = rng.choice(places) + rng.randrange(256) if rng.random() < 0.7 else rng.randrange(len(whole))
            broken.data[place] = rng.choice([0, 1, 18, 17, 255, rng.randrange(256)])
        try:
            for entry in broken.entries():
                rng.choice([broken.read, broken.scratch, lambda e, d=broken: d.rename(e, b"NEW")])(entry)
            broken.write(b"OTHER", bytes(5000))
            broken.validate()
        except ImageError as error:
            assert "\n" not in str(error)
