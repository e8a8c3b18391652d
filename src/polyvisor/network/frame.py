"""Ethernet frames with the work that is left to do on them: checksums to complete, segments to cut.

The fields are those of ``struct virtio_net_hdr`` (VIRTIO 1.2, 5.1.6), so a large TCP segment goes from one machine to
another as it is, and :mod:`polyvisor.network.offload` does the work where a receiver cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

ETHERNET_HEADER = 14
MAX_FRAME = 65536 + 64
"""Bytes of the longest frame: 64 KiB, and the headers in front of them."""
MAX_SEGMENTS = 1500
"""Segments in one frame; 64 KiB with the smallest TCP segments have fewer."""

# Kinds of segmentation (5.1.6: gso_type).
GSO_NONE = 0
GSO_TCP4 = 1
GSO_TCP6 = 4
GSO_UDP = 5
GSO_ECN = 0x80

# What a frame needs, and what a receiver takes.
CSUM = 1
TSO4 = 2
TSO6 = 4
ECN = 8
USO4 = 16
USO6 = 32
EVERYTHING = CSUM | TSO4 | TSO6 | ECN | USO4 | USO6


class FrameError(ValueError):
    """A frame's metadata do not fit the frame."""


class Frame:
    """An Ethernet frame without its check sequence: ``head``, which is private to it, followed by ``body``.

    ``body`` may be views of memory that a guest changes at any time, and that are only good until the call a frame was
    passed to returns: who keeps a frame keeps what :meth:`kept` gives. Nobody changes a frame's bytes.
    """

    __slots__ = ("body", "csum_offset", "csum_start", "gso_size", "gso_type", "head", "length", "needs", "valid")

    def __init__(self, head: bytes, body: Sequence[memoryview] = (), *, valid: bool = False) -> None:
        """A frame that needs nothing; ``valid``: its TCP or UDP checksum is known to be right."""
        self.head = head
        self.body = body
        self.length = len(head) + sum(map(len, body)) if body else len(head)
        self.valid = valid
        self.needs = 0
        """What must be done before it can go on a wire: CSUM, and one of the others for segmentation."""
        self.csum_start = 0
        """With CSUM: the checksum of all bytes from here on is to be put at ``csum_start + csum_offset``, where the
        sum of the pseudo header is now."""
        self.csum_offset = 0
        self.gso_type = GSO_NONE
        self.gso_size = 0
        """With ``gso_type``: payload bytes of each segment but the last."""

    def offload(self, csum_start: int, csum_offset: int, gso_type: int = GSO_NONE, gso_size: int = 0) -> None:
        """Say what is left to do. Raises FrameError if that cannot be done to this frame."""
        end = csum_start + csum_offset + 2
        if csum_start < ETHERNET_HEADER or end > len(self.head):
            raise FrameError(f"checksum of bytes from {csum_start} on at +{csum_offset} of {self.length} bytes")
        self.needs = CSUM
        self.csum_start = csum_start
        self.csum_offset = csum_offset
        if gso_type == GSO_NONE:
            return
        if gso_size < 1 or self.length > gso_size * MAX_SEGMENTS:
            raise FrameError(f"{self.length} bytes in segments of {gso_size}")
        kind = gso_type & ~GSO_ECN
        if kind == GSO_TCP4:
            self.needs |= TSO4
        elif kind == GSO_TCP6:
            self.needs |= TSO6
        elif kind == GSO_UDP:
            self.needs |= USO4 if self.head[network_offset(self.head)] >> 4 == 4 else USO6
        else:
            raise FrameError(f"segmentation {gso_type:#x} is unknown")
        if gso_type & GSO_ECN:
            self.needs |= ECN
        self.gso_type = gso_type
        self.gso_size = gso_size
        self.header_length()

    def header_length(self) -> int:
        """Bytes of all headers of a frame with ``gso_type``. Raises FrameError if they are not all in ``head``."""
        if self.gso_type & ~GSO_ECN == GSO_UDP:
            length = self.csum_start + 8
        elif self.csum_start + 12 < len(self.head):
            length = self.csum_start + (self.head[self.csum_start + 12] >> 4) * 4
            if length < self.csum_start + 20:
                raise FrameError("a TCP header of less than 20 bytes")
        else:
            raise FrameError("a TCP header that is cut off")
        if length > len(self.head):
            raise FrameError(f"headers of {length} bytes, of which {len(self.head)} are there")
        return length

    def __bytes__(self) -> bytes:
        return b"".join((self.head, *self.body)) if self.body else self.head

    def kept(self) -> Frame:
        """The same frame with bytes of its own."""
        return self.with_bytes(bytes(self)) if self.body else self

    def with_bytes(self, data: bytes) -> Frame:
        """A frame of the bytes ``data`` that needs what this one does."""
        frame = Frame(data, valid=self.valid)
        frame.needs = self.needs
        frame.csum_start = self.csum_start
        frame.csum_offset = self.csum_offset
        frame.gso_type = self.gso_type
        frame.gso_size = self.gso_size
        return frame

    def __repr__(self) -> str:
        return f"<Frame of {self.length} bytes from {format_mac(self.head[6:12])} to {format_mac(self.head[:6])}>"


def network_offset(head: bytes) -> int:
    """Where the header behind the Ethernet header and VLAN tags (IEEE 802.1Q, 802.1ad) begins. Raises FrameError."""
    offset = ETHERNET_HEADER
    while head[offset - 2 : offset] in (b"\x81\x00", b"\x88\xa8"):
        offset += 4
    if offset >= len(head):
        raise FrameError("there is nothing behind the Ethernet header")
    return offset


def format_mac(mac: bytes) -> str:
    """``52:54:00:12:34:56``"""
    return mac.hex(":")


def parse_mac(text: str) -> bytes:
    """The six bytes of a station's address. Raises ValueError, with a line for the user."""
    try:
        mac = bytes(int(part, 16) for part in text.split(":") if 1 <= len(part) <= 2)
    except ValueError:
        mac = b""
    if len(mac) != 6 or text.count(":") != 5:
        raise ValueError(f"MAC address {text!r}: give six bytes such as 52:54:00:12:34:56")
    if mac[0] & 1 or not any(mac):
        raise ValueError(f"MAC address {text!r}: is not the address of one machine")
    return mac
