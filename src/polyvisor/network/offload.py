"""Checksums and segmentation in software, for receivers that cannot do them.

The checksum is that of RFC 1071. A number made of 16-bit words is congruent to their sum modulo 2^16 - 1, so Python's
long integers add the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .frame import CSUM, GSO_ECN, GSO_TCP4, GSO_UDP, Frame, FrameError, network_offset

_MODULUS = 0xFFFF
# Dividing takes longer than adding: data are added up in pieces of this many bytes first.
_PIECE = 4096
_GSO = ~CSUM

_TCP_FIN_PSH = 0x09
_TCP_CWR = 0x80
_UDP_CHECKSUM = 6


def internet_sum(data: bytes | bytearray | memoryview) -> int:
    """The ones' complement sum of the big-endian 16-bit words of ``data``, an odd last byte padded with 0."""
    size = len(data)
    if size <= _PIECE:
        total = int.from_bytes(data, "big")
    else:
        view = memoryview(data)
        whole = size - size % _PIECE
        total = sum(int.from_bytes(view[at : at + _PIECE], "big") for at in range(0, whole, _PIECE))
        total = _shift(total, size - whole) + int.from_bytes(view[whole:], "big")
    if size & 1:
        total <<= 8
    return total % _MODULUS or (_MODULUS if total else 0)


def _shift(total: int, size: int) -> int:
    """``total`` as if ``size`` more bytes followed: modulo 2^16 - 1 only whether that is odd matters."""
    return total << 8 if size & 1 else total


def completed(frame: Frame) -> Frame:
    """A frame with its checksum filled in if that was left to do; a large segment stays one."""
    if not frame.needs & CSUM:
        return frame
    data = bytearray(bytes(frame))
    _fill(data, frame.csum_start, frame.csum_start + frame.csum_offset, frame.csum_offset == _UDP_CHECKSUM)
    return Frame(bytes(data), valid=True)


def _fill(data: bytearray, start: int, at: int, udp: bool) -> None:
    """Put the checksum of ``data`` from ``start`` on at ``at``."""
    checksum = _MODULUS - internet_sum(memoryview(data)[start:])
    # RFC 768: 0 would mean that there is none.
    if udp and not checksum:
        checksum = _MODULUS
    data[at : at + 2] = checksum.to_bytes(2, "big")


def segments(frame: Frame) -> Sequence[Frame]:
    """The frames that go on a wire for ``frame``; their checksums are left to do if its was. Raises FrameError."""
    return list(_cut(frame, False)) if frame.gso_type else (frame,)


def adapted(frame: Frame, takes: int) -> Sequence[Frame]:
    """``frame`` as frames that need nothing but what ``takes`` has. Raises FrameError for impossible headers."""
    if not frame.needs & ~takes:
        return (frame,)
    if frame.gso_type and frame.needs & _GSO & ~takes:
        return list(_cut(frame, not takes & CSUM))
    return (completed(frame),)


def _cut(frame: Frame, fill: bool) -> Iterator[Frame]:
    """Segment a TCP or UDP packet (RFC 9293, RFC 768); ``fill``: with complete checksums."""
    header_length = frame.header_length()
    head = frame.head
    network = network_offset(head)
    transport = frame.csum_start
    kind = frame.gso_type & ~GSO_ECN
    udp = kind == GSO_UDP
    version = head[network] >> 4
    if version == 4 and (kind == GSO_TCP4 or udp):
        internet_header = (head[network] & 15) * 4
    elif version == 6 and kind != GSO_TCP4:
        internet_header = 40
    else:
        raise FrameError(f"segmentation {kind} of IP version {version}")
    if internet_header < 20 or network + internet_header > transport:
        raise FrameError("an IP header that is cut off")
    data = memoryview(bytes(frame))
    payload = len(data) - header_length
    size = frame.gso_size
    checksum_at = transport + frame.csum_offset
    template = bytearray(data[:header_length])
    # What is in the place of the checksum is the sum of the pseudo header, with the whole packet's length in it.
    pseudo = int.from_bytes(template[checksum_at : checksum_at + 2], "big") - (len(data) - transport)
    identification = int.from_bytes(template[network + 4 : network + 6], "big")
    sequence = 0 if udp else int.from_bytes(template[transport + 4 : transport + 8], "big")
    if not udp:
        last_flags = template[transport + 13]
        template[transport + 13] = last_flags & ~_TCP_FIN_PSH
        last_flags &= ~_TCP_CWR if payload > size else 0xFF
    if version == 4:
        template[network + 10 : network + 12] = b"\0\0"
    for number, offset in enumerate(range(0, payload, size) if payload else (0,)):
        piece = data[header_length + offset : header_length + offset + size]
        packet = bytearray(template)
        length = header_length + len(piece) - transport
        if version == 4:
            packet[network + 2 : network + 4] = (length + transport - network).to_bytes(2, "big")
            packet[network + 4 : network + 6] = ((identification + number) & 0xFFFF).to_bytes(2, "big")
            header_sum = internet_sum(packet[network : network + internet_header])
            packet[network + 10 : network + 12] = (_MODULUS - header_sum).to_bytes(2, "big")
        else:
            packet[network + 4 : network + 6] = (length + transport - network - 40).to_bytes(2, "big")
        if udp:
            packet[transport + 4 : transport + 6] = length.to_bytes(2, "big")
        else:
            packet[transport + 4 : transport + 8] = ((sequence + offset) & 0xFFFFFFFF).to_bytes(4, "big")
            if offset + size >= payload:
                packet[transport + 13] = last_flags
        packet[checksum_at : checksum_at + 2] = ((pseudo + length) % _MODULUS).to_bytes(2, "big")
        packet += piece
        if fill:
            _fill(packet, transport, checksum_at, udp)
            yield Frame(bytes(packet), valid=True)
        else:
            segment = Frame(bytes(packet))
            segment.offload(transport, frame.csum_offset)
            yield segment
        if not udp:
            template[transport + 13] &= ~_TCP_CWR
