"""What is in a qcow2 file, as bytes: header, header extensions, snapshot table, tables of numbers."""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from polyvisor.storage.disk import SECTOR, DiskError

MAGIC = b"QFI\xfb"
MIN_CLUSTER_BITS = 9
MAX_CLUSTER_BITS = 21

# Incompatible features of the header.
DIRTY = 1 << 0
CORRUPT = 1 << 1
EXTERNAL_DATA = 1 << 2
COMPRESSION_TYPE = 1 << 3
EXTENDED_L2 = 1 << 4
_SUPPORTED = DIRTY | CORRUPT | COMPRESSION_TYPE
# Compatible and autoclear ones.
LAZY_REFCOUNTS = 1 << 0
BITMAPS = 1 << 0

# Entries of L1 and L2 tables.
COPIED = 1 << 63
COMPRESSED = 1 << 62
ZERO = 1
OFFSET = ((1 << 56) - 1) & ~0x1FF
# All bits of an uncompressed entry that mean something.
_KNOWN = COPIED | OFFSET | ZERO

# Limits, as QEMU has them; they bound what a bad header can make us read.
MAX_L1_BYTES = 32 << 20
MAX_REFCOUNT_TABLE_BYTES = 8 << 20
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_TABLE_BYTES = 64 << 20
MAX_BACKING_NAME = 1023

_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_BITMAPS = 0x23852875

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
# Parts of the header that change together, with their places: none crosses a sector.
SIZE_AND_L1 = (24, struct.Struct(">QIIQ"))
REFCOUNT_TABLE = (48, struct.Struct(">QI"))
SNAPSHOT_TABLE = (60, struct.Struct(">IQ"))
INCOMPATIBLE = (72, struct.Struct(">Q"))
AUTOCLEAR = (88, struct.Struct(">Q"))

_NAMES = {EXTERNAL_DATA: "an external data file", EXTENDED_L2: "extended L2 entries (subclusters)"}
_COMPRESSION = {0: "zlib", 1: "zstd"}


class CorruptError(OSError):
    """The image contradicts itself; the message says where."""


@dataclass
class Header:
    """The header's fields under the specification's names, those of version 3 with what they mean in version 2."""

    version: int
    backing_file: str | None
    backing_format: str | None
    cluster_bits: int
    size: int
    l1_size: int
    l1_offset: int
    refcount_table_offset: int
    refcount_table_clusters: int
    snapshot_count: int = 0
    snapshots_offset: int = 0
    snapshots_bytes: int = 0
    """Length of the snapshot table, which the header does not say."""
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    compression: str = "zlib"
    bitmaps: tuple[int, int, int] | None = None
    """Number of bitmaps, size and offset of their directory, if the header has the extension."""

    @property
    def cluster_size(self) -> int:
        """Bytes in a cluster."""
        return 1 << self.cluster_bits

    @property
    def l2_bits(self) -> int:
        """An L2 table has two to the power of this entries."""
        return self.cluster_bits - 3

    def l1_entries(self, size: int) -> int:
        """How many L1 entries a disk of ``size`` bytes needs."""
        return -(-size >> self.cluster_bits + self.l2_bits)

    def pack(self) -> bytes:
        """The bytes from the file's start to the backing file's name. Raises DiskError if it has no room."""
        extensions = b""
        if self.backing_format is not None and self.backing_file is not None:
            text = self.backing_format.encode()
            extensions += struct.pack(">II", _EXTENSION_BACKING_FORMAT, len(text))
            extensions += text.ljust(-(-len(text) // 8) * 8, b"\0")
        extensions += bytes(8)
        name = (self.backing_file or "").encode()
        start = (104 + 8 if self.version >= 3 else 72) + len(extensions)
        if len(name) > MAX_BACKING_NAME or start + len(name) > self.cluster_size:
            raise DiskError(f"the backing file's name has {len(name)} bytes, too many for the header")
        data = _V2.pack(
            MAGIC, self.version, start if name else 0, len(name), self.cluster_bits, self.size, 0, self.l1_size,
            self.l1_offset, self.refcount_table_offset, self.refcount_table_clusters, self.snapshot_count,
            self.snapshots_offset,
        )
        if self.version >= 3:
            data += _V3.pack(self.incompatible, self.compatible, self.autoclear, self.refcount_order, 112) + bytes(8)
        return data + extensions + name


def parse_header(data: bytes, name: str) -> Header:
    """The header in ``data``, the start of the file ``name`` (up to 2 MiB). Raises DiskError if it is not usable."""

    def refuse(why: str) -> DiskError:
        return DiskError(f"{name}: {why}")

    if data[:4] != MAGIC:
        raise refuse("is not a qcow2 image")
    if len(data) < _V2.size:
        raise refuse("the qcow2 header is cut off")
    (_, version, backing_at, backing_length, cluster_bits, size, crypt, l1_size, l1_offset, table_offset,
     table_clusters, snapshots, snapshots_offset) = _V2.unpack_from(data)
    if version not in (2, 3):
        raise refuse(f"qcow2 version {version} is not supported")
    if not MIN_CLUSTER_BITS <= cluster_bits <= MAX_CLUSTER_BITS:
        raise refuse(f"clusters of 2^{cluster_bits} bytes; 2^{MIN_CLUSTER_BITS} to 2^{MAX_CLUSTER_BITS} are supported")
    header = Header(
        version, None, None, cluster_bits, size, l1_size, l1_offset, table_offset, table_clusters, snapshots,
        snapshots_offset,
    )
    end = _V2.size
    if version >= 3:
        if len(data) < _V2.size + _V3.size:
            raise refuse("the qcow2 header is cut off")
        header.incompatible, header.compatible, header.autoclear, header.refcount_order, end = _V3.unpack_from(
            data, _V2.size
        )
        if end < 104 or end % 8 or end > min(len(data), header.cluster_size):
            raise refuse(f"the qcow2 header has an impossible length of {end} bytes")
        _check_features(header, data[104] if end > 104 else 0, refuse)
    if crypt:
        raise refuse("the image is encrypted, which is not supported")
    if size % SECTOR or not size:
        raise refuse(f"the size of the disk ({size} bytes) is not a multiple of {SECTOR} above 0")
    _parse_extensions(header, data[: header.cluster_size], end, refuse)
    if backing_at:
        if not 0 < backing_length <= MAX_BACKING_NAME or backing_at + backing_length > header.cluster_size:
            raise refuse("the backing file's name is outside the header")
        raw = data[backing_at : backing_at + backing_length]
        try:
            header.backing_file = raw.decode()
        except UnicodeDecodeError:
            raise refuse("the backing file's name is not UTF-8") from None
        if len(raw) < backing_length or "\0" in header.backing_file:
            raise refuse("the backing file's name is damaged")
    return header


def _check_features(header: Header, compression: int, refuse: Callable[[str], DiskError]) -> None:
    unknown = header.incompatible & ~_SUPPORTED
    if unknown:
        names = [what for bit, what in _NAMES.items() if unknown & bit]
        rest = unknown & ~sum(_NAMES)
        names += [f"feature bit {bit}" for bit in range(64) if rest >> bit & 1]
        raise refuse(f"the image uses {', '.join(names)}, which is not supported")
    if header.refcount_order > 6:
        raise refuse(f"reference counts of 2^{header.refcount_order} bits are not possible")
    if bool(header.incompatible & COMPRESSION_TYPE) != bool(compression) or compression not in _COMPRESSION:
        raise refuse(f"compression type {compression} is not supported")
    header.compression = _COMPRESSION[compression]


def _parse_extensions(header: Header, data: bytes, at: int, refuse: Callable[[str], DiskError]) -> None:
    while at + 8 <= len(data):
        kind, length = struct.unpack_from(">II", data, at)
        at += 8
        if kind == 0:
            return
        body = data[at : at + length]
        if len(body) < length:
            raise refuse("a header extension is longer than the header")
        if kind == _EXTENSION_BACKING_FORMAT:
            header.backing_format = body.decode("ascii", "replace")
        elif kind == _EXTENSION_BITMAPS and length >= 24:
            count, _, size, offset = struct.unpack_from(">IIQQ", body)
            header.bitmaps = (count, size, offset)
        at += -(-length // 8) * 8


@dataclass
class Snapshot:
    """An entry of the snapshot table."""

    identity: str
    """Unique; what other tools show as ID. Here and in names, bytes that are not UTF-8 are lone surrogates."""
    name: str
    l1_offset: int
    l1_size: int
    seconds: int
    nanoseconds: int = 0
    clock: int = 0
    """Nanoseconds the machine had run."""
    state_size: int = 0
    """Bytes of a machine's state, kept behind the end of the disk."""
    disk_size: int | None = None
    """Bytes; None where the image does not say, which means the size it has."""
    extra: bytes = field(default=b"", repr=False)
    """Extra data beyond what is understood, kept as it is."""

    def pack(self) -> bytes:
        """The entry, padded to a multiple of 8 bytes."""
        extra = b""
        if self.disk_size is not None:
            extra = struct.pack(">QQ", self.state_size, self.disk_size) + self.extra
        identity, name = (text.encode(errors="surrogateescape") for text in (self.identity, self.name))
        data = _SNAPSHOT.pack(
            self.l1_offset, self.l1_size, len(identity), len(name), self.seconds, self.nanoseconds, self.clock,
            min(self.state_size, 0xFFFFFFFF), len(extra),
        )
        data += extra + identity + name
        return data.ljust(-(-len(data) // 8) * 8, b"\0")


_SNAPSHOT = struct.Struct(">QIHHIIQII")


def parse_snapshots(data: bytes, count: int) -> tuple[list[Snapshot], int]:
    """The ``count`` entries at the start of ``data``, and their length in bytes. Raises CorruptError."""
    found: list[Snapshot] = []
    at = 0
    for _ in range(count):
        at = -(-at // 8) * 8
        if at + _SNAPSHOT.size > len(data):
            raise CorruptError("the snapshot table is cut off")
        l1_offset, l1_size, id_length, name_length, seconds, nanoseconds, clock, state, extra_length = (
            _SNAPSHOT.unpack_from(data, at)
        )
        at += _SNAPSHOT.size
        end = at + extra_length + id_length + name_length
        if extra_length > 1024 or end > len(data):
            raise CorruptError("the snapshot table is damaged")
        extra, disk_size = data[at : at + extra_length], None
        if extra_length >= 8:
            (state,) = struct.unpack_from(">Q", extra)
        if extra_length >= 16:
            (disk_size,) = struct.unpack_from(">Q", extra, 8)
        at += extra_length
        identity = data[at : at + id_length].decode(errors="surrogateescape")
        name = data[at + id_length : end].decode(errors="surrogateescape")
        at = end
        found.append(
            Snapshot(identity, name, l1_offset, l1_size, seconds, nanoseconds, clock, state, disk_size, extra[16:])
        )
    return found, at


# Tables of numbers

_LITTLE = sys.byteorder == "little"
_TYPES = {3: "B", 4: "H", 5: "I", 6: "Q"}
# For counts of 1, 2 and 4 bits: the counts in each value of a byte, lowest bits first.
_UNPACKED = {
    order: [bytes(byte >> shift & (1 << (1 << order)) - 1 for shift in range(0, 8, 1 << order)) for byte in range(256)]
    for order in (0, 1, 2)
}


def unpack_table(data: bytes) -> array[int]:
    """The entries of 8 bytes in ``data``, an L1, L2 or refcount table."""
    return unpack_counts(data, 6)


def pack_table(table: array[int]) -> bytes:
    """The reverse of :func:`unpack_table`."""
    return pack_counts(table, 6)


def unpack_counts(data: bytes, order: int) -> array[int]:
    """The counts in ``data``, a refcount block with counts of 2^``order`` bits."""
    if order < 3:
        return array("B", b"".join(map(_UNPACKED[order].__getitem__, data)))
    counts = array(_TYPES[order], data)
    if _LITTLE:
        counts.byteswap()
    return counts


def pack_counts(counts: array[int], order: int) -> bytes:
    """The reverse of :func:`unpack_counts`."""
    if order >= 3:
        if _LITTLE:
            counts = counts[:]
            counts.byteswap()
        return counts.tobytes()
    # As whole numbers: counts that share a byte do not overlap in it.
    each = 1 << 3 - order
    packed = 0
    for place in range(each):
        packed |= int.from_bytes(counts[place::each].tobytes(), "little") << (place << order)
    return packed.to_bytes(len(counts) // each, "little")


def empty_counts(number: int, order: int) -> array[int]:
    """``number`` counts of zero, for a refcount block with counts of 2^``order`` bits."""
    kind = _TYPES[max(order, 3)]
    return array(kind, bytes(number * array(kind).itemsize))


def bad_bits(cluster_bits: int) -> int:
    """The bits that are 0 in every uncompressed entry: reserved ones, and the offset's below a cluster."""
    return ((1 << 64) - 1) & ~_KNOWN | ((1 << cluster_bits) - 1) & ~0x1FF


def compressed_range(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Where the data of a compressed cluster are, and how many bytes there are at most."""
    bits = 62 - (cluster_bits - 8)
    offset = entry & (1 << bits) - 1
    sectors = (entry & (1 << 62) - 1) >> bits
    return offset, (sectors + 1) * SECTOR - offset % SECTOR
