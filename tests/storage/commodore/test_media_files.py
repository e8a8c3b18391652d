"""Programs, tape archives, cartridges, and the character set."""

import random
import struct
from pathlib import Path

import pytest

from polyvisor.storage.commodore import petscii
from polyvisor.storage.commodore.cartridge import Cartridge, Hardware
from polyvisor.storage.commodore.d64 import D64
from polyvisor.storage.commodore.files import ImageError, matches
from polyvisor.storage.commodore.open import open_medium
from polyvisor.storage.commodore.tape import Tape, parse_t64, write_t64

PROGRAM = b"\x01\x08" + b"A" * 100


def test_petscii_of_text() -> None:
    assert petscii.from_unicode("Hello, 64!\n") == b"HELLO, 64!\r"
    assert petscii.from_unicode("Hello", lower=True) == b"\xc8ELLO"
    assert petscii.to_unicode(b"\xc8ELLO\x5e\x5f\x5c", lower=True) == "Hello↑←£"
    assert petscii.to_unicode(b"\xd3\xff\x12") == "♥π�"
    with pytest.raises(ValueError, match="'€' is not in PETSCII's set with upper case"):
        petscii.from_unicode("€")


@pytest.mark.parametrize("lower", [False, True])
def test_every_character_has_its_code(lower: bool) -> None:
    for code in (*range(0x20, 0x80), *range(0xA0, 0x100)):
        character = petscii.to_unicode(bytes([code]), lower)
        assert petscii.to_unicode(petscii.from_unicode(character, lower), lower) == character
    shown = petscii.screen_text(bytes(range(128)), lower)
    assert len(set(shown)) == 127  # two spaces


def test_screen_codes() -> None:
    # Programmer's Reference Guide, appendix B.
    pairs = {0x40: 0, 0x41: 1, 0x20: 0x20, 0x30: 0x30, 0x60: 0x40, 0xC1: 0x41, 0xA1: 0x61, 0xFF: 0x5E, 0xE1: 0x61}
    assert {code: petscii.screen_code(code) for code in pairs} == pairs
    assert all(petscii.screen_code(petscii.from_screen_code(code)) == code for code in range(128))


@pytest.mark.parametrize(
    ("pattern", "name", "wanted"),
    [
        (b"*", b"", True), (b"A*", b"ABC", True), (b"A?C", b"ABC", True), (b"A?", b"ABC", False),
        (b"ABC", b"AB", False), (b"", b"", True), (b"AB?", b"AB", False), (b"A*X", b"ABC", True),
    ],
)  # fmt: skip
def test_patterns(pattern: bytes, name: bytes, wanted: bool) -> None:
    assert matches(pattern, name) is wanted


def test_a_program_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "My Game,1.prg"
    path.write_bytes(PROGRAM)
    tape = open_medium(path)
    (entry,) = tape.entries()
    assert (entry.name, tape.read(entry)) == (b"MY GAME.1", PROGRAM)
    for data, message in ((b"\x01\x08", "at least one more"), (b"\xff\xff" + bytes(2), r"goes beyond \$ffff")):
        path.write_bytes(data)
        with pytest.raises(ImageError, match=message):
            open_medium(path)
    path.write_bytes(bytes(70000))
    with pytest.raises(ImageError, match="more than 65538 bytes"):
        open_medium(path)


def test_a_tape_archive(tmp_path: Path) -> None:
    programs = [(b"ONE", PROGRAM), (b"TWO", b"\x00\xc0" + b"B" * 10)]
    data = write_t64(programs, b"BOTH")
    assert parse_t64(data) == Tape(b"BOTH", tuple(programs))
    # Files of others: end address wrong, nothing said to be used, no places.
    wrong = bytearray(data)
    struct.pack_into("<H", wrong, 64 + 4, 0xC3C6)
    struct.pack_into("<H", wrong, 0x24, 0)
    assert parse_t64(bytes(wrong)).programs == tuple(programs)
    single = bytearray(write_t64(programs[:1]))
    struct.pack_into("<HH", single, 0x22, 0, 0)
    assert parse_t64(bytes(single)).programs == (programs[0],)
    (tmp_path / "x.t64").write_bytes(data)
    assert open_medium(tmp_path / "x.t64").title == b"BOTH"


def crt(hardware: int = 0, exrom: int = 0, game: int = 1, chips=((0, 0x8000, b"\1" * 0x2000),)) -> bytes:
    header = b"C64 CARTRIDGE   " + struct.pack(">IHHBB6x", 0x40, 0x100, hardware, exrom, game)
    header += b"NAME".ljust(32, b"\0")
    for bank, address, rom in chips:
        header += b"CHIP" + struct.pack(">IHHHH", 16 + len(rom), 0, bank, address, len(rom)) + rom
    return header


def test_cartridges(tmp_path: Path) -> None:
    one, two = b"\1" * 0x2000, b"\2" * 0x2000
    normal = Cartridge.parse(crt())
    assert normal == Cartridge("NAME", Hardware.NORMAL, False, True, (one,), (None,))
    assert Cartridge.parse(crt(game=0, chips=[(0, 0x8000, one + two)])).high == (two,)
    ultimax = Cartridge.parse(crt(exrom=1, game=0, chips=[(0, 0xE000, one), (0, 0x8000, b"\3" * 0x1000)]))
    assert (ultimax.low, ultimax.high) == ((b"\3" * 0x2000,), (one,))
    ocean = Cartridge.parse(crt(5, chips=[(0, 0x8000, one), (2, 0xA000, two)]))
    assert ocean.low == (one, None, two)
    easyflash = Cartridge.parse(crt(32, 1, 0, [(0, 0x8000, one), (0, 0xA000, two), (63, 0xA000, one)]))
    assert easyflash.high[0] == two and easyflash.high[63] == one and easyflash.low[63] is None
    (tmp_path / "game.crt").write_bytes(crt(19, chips=[(127, 0x8000, one)]))
    found = open_medium(tmp_path / "game.crt")
    assert isinstance(found, Cartridge) and len(found.low) == 128


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"C64", "header is missing"),
        (crt(chips=()), "has no ROM"),
        (crt(1), r"of type 1, which is not supported; there are 0 \(normal\), 5 \(ocean\)"),
        (crt()[:-1], "ends before its 8192 bytes"),
        (crt() + b"x", "a ROM's header should follow"),
        (crt(chips=[(1, 0x8000, bytes(0x2000))]), "no bank 1"),
        (crt(chips=[(0, 0x9000, bytes(0x2000))]), r"cannot be at \$9000"),
        (crt(chips=[(0, 0x8000, bytes(100))]), "a ROM of 100 bytes"),
        (crt(chips=[(0, 0x8000, bytes(0x2000))] * 2), "is there twice"),
    ],
)
def test_cartridges_that_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        Cartridge.parse(data)


def test_what_is_no_medium(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"hello")
    with pytest.raises(ImageError, match=r"x\.txt: is no program"):
        open_medium(tmp_path / "x.txt")
    with pytest.raises(ImageError, match="No such file"):
        open_medium(tmp_path / "none.prg")
    with pytest.raises(ImageError, match="Is a directory"):
        open_medium(tmp_path)
    D64.formatted().save(tmp_path / "disk")
    assert isinstance(open_medium(tmp_path / "disk"), D64)


@pytest.mark.parametrize("parse", [parse_t64, Cartridge.parse], ids=["t64", "crt"])
def test_damaged_images_give_errors_and_nothing_else(parse) -> None:
    rng = random.Random(64)
    whole = write_t64([(b"ONE", PROGRAM), (b"TWO", PROGRAM)]) if parse is parse_t64 else crt(
        32, chips=[(n, 0x8000, bytes(0x2000)) for n in range(3)]
    )
    refused = 0
    for _ in range(2000):
        data = bytearray(whole[: rng.choice([len(whole), rng.randrange(len(whole))])])
        for _ in range(rng.randrange(6)):
            place = rng.randrange(min(len(data), 160) or 1)
            if place < len(data):
                data[place] = rng.choice([0, 1, 0x80, 0xFF, rng.randrange(256)])
        try:
            parse(bytes(data))
        except ImageError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 200
