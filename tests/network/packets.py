"""Packets for tests, made and checked with nothing of ours: checksums word by word, headers by `struct`."""

from __future__ import annotations

import struct

from polyvisor.network.frame import Frame

A = bytes.fromhex("525400000001")
B = bytes.fromhex("525400000002")
C = bytes.fromhex("525400000003")
BROADCAST = b"\xff" * 6


def words(data: bytes) -> int:
    """RFC 1071, as it says."""
    if len(data) % 2:
        data += b"\0"
    total = 0
    for (word,) in struct.iter_unpack(">H", data):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ethernet(target: bytes, source: bytes, payload: bytes = b"x" * 46, kind: int = 0x88B5) -> Frame:
    return Frame(target + source + struct.pack(">H", kind) + payload)


def pseudo(version: int, protocol: int, length: int) -> bytes:
    if version == 4:
        return bytes([10, 0, 0, 1, 10, 0, 0, 2]) + struct.pack(">BBH", 0, protocol, length)
    return bytes([0xFD] + [1] * 15 + [0xFD] + [2] * 15) + struct.pack(">II", length, protocol)


def packet(
    version: int, protocol: int, payload: bytes, *, flags: int = 0x18, sequence: int = 1000, vlan: bool = False
) -> tuple[bytes, int]:
    """A TCP (6) or UDP (17) packet, with the sum of its pseudo header for a checksum; and where that header starts."""
    if protocol == 6:
        options = bytes([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2])
        transport = struct.pack(">HHIIBBHHH", 1, 2, sequence, 7, 8 << 4, flags, 500, 0, 0) + options
        at = 16
    else:
        transport = struct.pack(">HHHH", 1, 2, min(8 + len(payload), 0xFFFF), 0)
        at = 6
    length = len(transport) + len(payload)
    partial = words(pseudo(version, protocol, length))
    transport = transport[:at] + partial.to_bytes(2, "big") + transport[at + 2 :]
    addresses = pseudo(version, protocol, 0)
    if version == 4:
        header = struct.pack(">BBHHHBBH", 0x45, 0, min(20 + length, 0xFFFF), 0xFFFE, 0x4000, 64, protocol, 0)
        header += addresses[:8]
        header = header[:10] + (0xFFFF - words(header)).to_bytes(2, "big") + header[12:]
    else:
        header = struct.pack(">IHBB", 0x60000000, min(length, 0xFFFF), protocol, 64) + addresses[:32]
    tag = b"\x81\x00\x00\x05" if vlan else b""
    start = B + A + tag + (b"\x08\x00" if version == 4 else b"\x86\xdd") + header
    return start + transport + payload, len(start)


def check(data: bytes, version: int, protocol: int, transport: int) -> tuple[bytes, int, int]:
    """Assert that a frame is what may go on a wire; gives payload, sequence number and flags."""
    internet = transport - (20 if version == 4 else 40)
    length = len(data) - transport
    if version == 4:
        assert words(data[internet:transport]) == 0xFFFF
        assert struct.unpack_from(">H", data, internet + 2)[0] == len(data) - internet
    else:
        assert struct.unpack_from(">H", data, internet + 4)[0] == length
    assert words(pseudo(version, protocol, length) + data[transport:]) == 0xFFFF
    if protocol == 17:
        assert struct.unpack_from(">H", data, transport + 4)[0] == length
        assert data[transport + 6 : transport + 8] != b"\0\0"
        return data[transport + 8 :], 0, 0
    header = (data[transport + 12] >> 4) * 4
    return data[transport + header :], int.from_bytes(data[transport + 4 : transport + 8], "big"), data[transport + 13]
