"""Checksums and segmentation against packets that are made and checked by other means."""

from __future__ import annotations

import random

import pytest
from packets import check, ethernet, packet, words

from polyvisor.network import frame as f
from polyvisor.network.frame import Frame, FrameError, format_mac, parse_mac
from polyvisor.network.offload import adapted, completed, internet_sum, segments

KINDS = {(4, 6): f.GSO_TCP4, (6, 6): f.GSO_TCP6, (4, 17): f.GSO_UDP, (6, 17): f.GSO_UDP}
CASES = [*KINDS]


def large(version: int, protocol: int, payload: bytes, size: int, **more: int) -> tuple[Frame, int]:
    data, transport = packet(version, protocol, payload, **more)  # type: ignore[arg-type]
    frame = Frame(data[:200], [memoryview(data)[200:333], memoryview(data)[333:]])
    frame.offload(transport, 16 if protocol == 6 else 6, KINDS[version, protocol], size)
    return frame, transport


def test_sums() -> None:
    rng = random.Random(1)
    for size in [0, 1, 2, 3, 20, 4095, 4096, 4097, 8192, 65535, *(rng.randrange(70000) for _ in range(20))]:
        for data in (rng.randbytes(size), bytes(size), b"\xff" * size):
            assert internet_sum(data) == words(data), size


@pytest.mark.parametrize(("version", "protocol"), CASES)
@pytest.mark.parametrize("length", [0, 1, 99, 1400])
def test_a_checksum_is_completed(version: int, protocol: int, length: int) -> None:
    payload = random.Random(length).randbytes(length)
    data, transport = packet(version, protocol, payload)
    frame = Frame(data)
    frame.offload(transport, 16 if protocol == 6 else 6)
    assert frame.needs == f.CSUM
    assert adapted(frame, f.CSUM) == (frame,)
    done = completed(frame)
    assert check(bytes(done), version, protocol, transport)[0] == payload
    assert not done.needs and done.valid and bytes(frame) == data


def test_a_udp_checksum_is_never_zero() -> None:
    data, transport = packet(4, 17, b"\0\0")
    # The payload that makes the sum 0xFFFF.
    rest = 0xFFFF - words(data[transport:])
    frame = Frame(data[:-2] + rest.to_bytes(2, "big"))
    frame.offload(transport, 6)
    assert bytes(completed(frame))[transport + 6 : transport + 8] == b"\xff\xff"


@pytest.mark.parametrize(("version", "protocol"), CASES)
@pytest.mark.parametrize("vlan", [False, True])
@pytest.mark.parametrize("filled", [False, True])
def test_segments(version: int, protocol: int, vlan: bool, filled: bool) -> None:
    payload = random.Random(3).randbytes(60000)
    frame, transport = large(version, protocol, payload, 1448, flags=0x89, sequence=2**32 - 5000, vlan=vlan)
    parts = adapted(frame, 0) if filled else segments(frame)
    assert len(parts) == -(-60000 // 1448)
    got = b""
    for number, part in enumerate(parts):
        if not filled:
            assert part.needs == f.CSUM
            part = completed(part)
        piece, sequence, flags = check(bytes(part), version, protocol, transport)
        if protocol == 6:
            assert sequence == (2**32 - 5000 + len(got)) % 2**32
            # CWR on the first, FIN and PSH on the last.
            assert flags == (0x80 if number == 0 else 0) | (0x09 if number == len(parts) - 1 else 0)
        if version == 4:
            assert int.from_bytes(bytes(part)[transport - 16 : transport - 14], "big") == (0xFFFE + number) % 65536
        got += piece
    assert got == payload


def test_what_a_receiver_takes_is_left_alone() -> None:
    frame, _ = large(4, 6, bytes(5000), 1000)
    assert adapted(frame, f.CSUM | f.TSO4) == (frame,)
    assert len(adapted(frame, f.CSUM | f.TSO6)) == 5
    assert all(part.needs == f.CSUM for part in adapted(frame, f.CSUM))
    assert all(not part.needs for part in adapted(frame, f.TSO6))
    assert bytes(frame.kept()) == bytes(frame) and frame.kept().needs == frame.needs and not frame.kept().body
    frame.offload(frame.csum_start, 16, f.GSO_TCP4 | f.GSO_ECN, 1000)
    assert len(adapted(frame, f.CSUM | f.TSO4)) == 5
    assert adapted(frame, f.EVERYTHING) == (frame,)


def test_a_segment_that_fits_is_one() -> None:
    frame, transport = large(4, 6, b"abc", 1448, flags=0x99)
    (part,) = adapted(frame, 0)
    assert check(bytes(part), 4, 6, transport) == (b"abc", 1000, 0x99)


@pytest.mark.parametrize(
    ("start", "offset", "kind", "size"),
    [
        (0, 16, 0, 0), (13, 16, 0, 0), (34, 2000, 0, 0), (65535, 65535, 0, 0), (34, 16, 1, 0), (34, 16, 1, 1),
        (34, 16, 3, 1000), (34, 16, 2, 1000), (34, 16, 0x7F, 1000), (180, 6, 1, 1000),
    ],
)
def test_impossible_work_is_refused(start: int, offset: int, kind: int, size: int) -> None:
    data, _ = packet(4, 6, bytes(5000))
    with pytest.raises(FrameError):
        Frame(data[:200], [memoryview(data)[200:]]).offload(start, offset, kind, size)


def test_random_headers_raise_nothing_else() -> None:
    rng = random.Random(9)
    outcomes = set()
    for _ in range(3000):
        data, transport = packet(rng.choice([4, 6]), rng.choice([6, 17]), bytes(rng.randrange(3000)))
        head = bytearray(data)
        for _ in range(rng.randrange(6)):
            head[rng.randrange(min(len(head), 80))] = rng.randrange(256)
        frame = Frame(bytes(head[:256]), [memoryview(head)[256:]])
        try:
            frame.offload(
                rng.choice([transport, transport, rng.randrange(300)]), rng.choice([16, 6, rng.randrange(100)]),
                rng.choice([1, 4, 5, 0x81]), rng.choice([1, 100, 1448]),
            )
            outcomes.add(len(adapted(frame, 0)) > 1)
        except FrameError:
            outcomes.add(None)
    assert outcomes == {True, False, None}


def test_addresses() -> None:
    assert parse_mac("52:54:0:12:34:FF") == bytes.fromhex("5254001234ff")
    assert format_mac(parse_mac("02:00:00:00:00:01")) == "02:00:00:00:00:01"
    short = ("", "52:54:00:12:34", "52:54:00:12:34:zz")
    for wrong in (*short, "01:00:5e:00:00:01", "00:00:00:00:00:00", "5:4:3:2:1:0x1:1"):
        with pytest.raises(ValueError, match="MAC address"):
            parse_mac(wrong)
    assert "of 60 bytes from 52:54:00:00:00:01" in repr(ethernet(b"\2" * 6, b"\x52\x54\0\0\0\1"))
