"""The drive and its registers, as the KERNAL's serial routines use them."""

import random
from pathlib import Path

import pytest

from polyvisor.boards.c64.drive import COMMAND, DATA, IDENTITY, STATUS, Drive, DrivePort, directory_listing
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.files import FileType
from polyvisor.storage.commodore.tape import Tape


class Bus:
    """What the KERNAL does, with the drive's registers."""

    def __init__(self, medium=None, **how) -> None:
        self.drive = Drive(8)
        self.drive.insert(medium, **how)
        self.port = DrivePort([self.drive])

    def do(self, command: int, byte: int | None = None) -> int:
        if byte is not None:
            self.port.write(DATA, 1, byte)
        self.port.write(COMMAND, 1, command)
        return self.port.read(STATUS, 1)

    def open(self, channel: int, name: bytes) -> int:
        status = self.do(1, 0x28) | self.do(1, 0xF0 | channel)
        for byte in name:
            status |= self.do(2, byte)
        return status | self.do(1, 0x3F)

    def close(self, channel: int) -> None:
        self.do(1, 0x28)
        self.do(1, 0xE0 | channel)
        self.do(1, 0x3F)

    def write(self, channel: int, data: bytes) -> int:
        status = self.do(1, 0x28) | self.do(1, 0x60 | channel)
        for at, byte in enumerate(data):
            status |= self.do(3 if at == len(data) - 1 else 2, byte)
        return status | self.do(1, 0x3F)

    def read(self, channel: int, most: int = 100_000) -> tuple[bytes, int]:
        self.do(1, 0x48)
        self.do(1, 0x60 | channel)
        out = bytearray()
        for _ in range(most):
            status = self.do(4)
            if status & 2:
                break
            out.append(self.port.read(DATA, 1))
            if status:
                break
        self.do(1, 0x5F)
        return bytes(out), status

    def status(self) -> str:
        return self.read(15)[0].decode()

    def command(self, text: bytes) -> str:
        self.write(15, text)
        return self.status()


def disk() -> D64:
    made = D64.formatted(b"WORK", b"A1")
    made.write(b"GAME", b"\x01\x08" + bytes(range(256)) * 3)
    made.write(b"NOTES", b"HELLO", FileType.SEQ)
    return made


def test_a_program_is_read_byte_by_byte() -> None:
    bus = Bus(disk())
    assert bus.port.read(IDENTITY, 1) == 0x56
    assert bus.status() == "73,CBM DOS V2.6 1541,00,00\r"
    assert bus.open(0, b"GA*") == 0
    assert bus.read(0) == (b"\x01\x08" + bytes(range(256)) * 3, 0x40)
    assert bus.read(0) == (b"", 0x42)
    bus.close(0)
    assert bus.read(0) == (b"", 0x42)
    assert bus.status() == "00, OK,00,00\r"


@pytest.mark.parametrize(
    ("channel", "name", "status"),
    [
        (0, b"NONE", "62, FILE NOT FOUND,00,00\r"),
        (2, b"NOTES,P", "64, FILE TYPE MISMATCH,00,00\r"),
        (2, b"NOTES,S,W", "63, FILE EXISTS,00,00\r"),
        (2, b"N*,S,W", "33,SYNTAX ERROR,00,00\r"),
        (2, b"", "34,SYNTAX ERROR,00,00\r"),
        (2, b"NEW,S,A", "62, FILE NOT FOUND,00,00\r"),
        (2, b"#", "70,NO CHANNEL,00,00\r"),
        (2, b"NOTES,S,R", "00, OK,00,00\r"),
        (0, b"0:GAME", "00, OK,00,00\r"),
        (0, b":GAME", "00, OK,00,00\r"),
    ],
)
def test_what_opening_leads_to(channel: int, name: bytes, status: str) -> None:
    bus = Bus(disk())
    assert bus.open(channel, name) == 0
    assert bus.status() == status
    assert (bus.read(channel)[1] & 2 == 0) == status.startswith("00")


def test_files_are_written_and_saved_when_they_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "work.d64"
    bus = Bus(disk(), path=path)
    bus.open(2, b"NEW,S,W")
    assert bus.write(2, b"ONE") == bus.write(2, b"TWO") == 0
    assert not path.exists()
    bus.open(3, b"NEW,S,R")
    assert bus.status().startswith("62")  # not on the disk yet
    bus.close(2)
    entry = D64.open(path).find(b"NEW")
    assert (entry.type, D64.open(path).read(entry)) == (FileType.SEQ, b"ONETWO")
    bus.open(2, b"NEW,S,A")
    bus.write(2, b"3")
    bus.close(2)
    bus.open(1, b"@0:GAME")
    bus.write(1, b"\x00\xc0X")
    bus.close(1)
    now = D64.open(path)
    assert [now.read(now.find(name)) for name in (b"NEW", b"GAME")] == [b"ONETWO3", b"\x00\xc0X"]
    assert bus.drive.medium.image() == now.image()


def test_a_disk_that_cannot_be_written_or_saved(tmp_path: Path) -> None:
    for bus in (Bus(disk(), read_only=True), Bus(Tape(b"T", ((b"GAME", b"\x01\x08A"),)))):
        bus.open(1, b"NEW")
        assert bus.status() == "26,WRITE PROTECT ON,00,00\r"
        assert bus.write(1, b"A") == 1
        assert bus.command(b"S:GAME").startswith("26")
        bus.open(0, b"*")
        assert bus.read(0)[0][:2] == b"\x01\x08"
    bus = Bus(disk(), path=tmp_path / "none" / "x.d64")
    bus.open(1, b"NEW")
    bus.write(1, b"A")
    bus.close(1)
    assert bus.status() == "25,WRITE ERROR,00,00\r" and "No such file" in bus.drive.failure


def test_without_a_disk() -> None:
    bus = Bus()
    bus.open(0, b"$")
    assert bus.status() == "74,DRIVE NOT READY,00,00\r"
    assert bus.command(b"I").startswith("74")


def test_commands() -> None:
    bus = Bus(disk())
    assert bus.command(b"R0:TEXT=NOTES") == "00, OK,00,00\r"
    assert bus.command(b"R:TEXT=GAME") == "63, FILE EXISTS,00,00\r"
    assert bus.command(b"C:BOTH=TEXT,GAME") == "00, OK,00,00\r"
    assert bus.command(b"S0:T*,BOTH\r") == "01, FILES SCRATCHED,02,00\r"
    assert bus.status() == "00, OK,00,00\r"
    assert [entry.name for entry in bus.drive.medium.entries()] == [b"GAME"]
    assert bus.command(b"V") == bus.command(b"I0") == "00, OK,00,00\r"
    assert bus.command(b"N:FRESH,B2") == "00, OK,00,00\r"
    assert (bus.drive.medium.title, bus.drive.medium.id, bus.drive.medium.free) == (b"FRESH", b"B2 2A", 664)
    assert bus.command(b"UJ") == "73,CBM DOS V2.6 1541,00,00\r"
    assert bus.command(b"M-W\0\0\1A") == "31,SYNTAX ERROR,00,00\r"
    bus.open(15, b"R:A=B")
    assert bus.status() == "62, FILE NOT FOUND,00,00\r"


def test_a_full_disk_keeps_what_it_had() -> None:
    made = disk()
    made.write(b"BIG", bytes(254 * 650))
    before = made.image()
    bus = Bus(made)
    bus.open(1, b"NEW")
    bus.write(1, bytes(254 * 20))
    bus.close(1)
    assert bus.status() == "72,DISK FULL,00,00\r" and bus.drive.medium.image() == before
    bus.open(1, b"@:GAME")
    bus.write(1, bytes(254 * 20))
    bus.close(1)
    assert bus.drive.medium.image() == before


def test_the_directory_is_a_program() -> None:
    made = disk()
    made.write(b"SIXTEEN LETTERS!", bytes(254 * 100))
    listing = directory_listing(made)
    lines = []
    at = 2
    while listing[at] or listing[at + 1]:
        end = listing.index(0, at + 4)
        lines.append((int.from_bytes(listing[at + 2 : at + 4], "little"), listing[at + 4 : end].decode("latin-1")))
        at = end + 1
    assert at == len(listing) - 2 and listing[:2] == b"\x01\x04"
    assert lines == [
        (0, '\x12"WORK            " A1 2A'),
        (4, '   "GAME"             PRG '),
        (1, '   "NOTES"            SEQ '),
        (100, ' "SIXTEEN LETTERS!" PRG '),
        (559, "BLOCKS FREE."),
    ]
    bus = Bus(made)
    bus.open(0, b"$0:G*")
    assert bus.read(0)[0].count(b"PRG") == 1


def test_devices_that_are_not_there() -> None:
    bus = Bus(disk())
    assert bus.do(1, 0x29) == bus.do(1, 0x49) == 0x80
    assert bus.do(1, 0xF0) == bus.do(2, 0x41) == 0x80
    assert bus.do(4) == 0x42


def test_whatever_a_guest_does() -> None:
    rng = random.Random(8)
    bus = Bus(disk())
    interesting = [0x28, 0x48, 0x3F, 0x5F, 0x60, 0x61, 0x62, 0x6F, 0xE0, 0xE2, 0xEF, 0xF0, 0xF1, 0xF2, 0xFF]
    for _ in range(30_000):
        offset = rng.choice([COMMAND, COMMAND, DATA, DATA, DATA, rng.randrange(0x200)])
        bytes_sent = [*interesting, *b"$:*,=@NSRVGAME", rng.randrange(256)]
        value = rng.randrange(6) if offset == COMMAND else rng.choice(bytes_sent)
        bus.port.write(offset, 1, value)
        assert 0 <= bus.port.read(rng.randrange(0x200), 1) <= 255
    assert bus.drive.medium.free <= 664
