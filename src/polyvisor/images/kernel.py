"""From whatever form a distribution ships its kernel in to the flat ``Image`` that a board loads.

Formats: the riscv ``Image`` header (kernel, Documentation/arch/riscv/boot-image-header.rst), which is also an EFI
program; a gzip'ed Image; and EFI zboot (kernel, drivers/firmware/efi/libstub/zboot-header.S), an EFI program that
holds a compressed Image: "MZ", two zero bytes, "zimg", offset and size of the payload, the compression's name.
"""

from __future__ import annotations

import lzma
import struct
import zlib

import zstandard

from .errors import ImageError

_RISCV_MAGIC = b"RSC\x05"
_RISCV_MAGIC_OFFSET = 0x38


def flat_image(data: bytes) -> bytes:
    """The flat riscv Image inside ``data``, the contents of a kernel package's vmlinuz or vmlinux.

    Raises :class:`ImageError`: "unsupported" for a form that is not known, "corrupt" when decompression fails.
    """
    for _ in range(3):  # a compressed Image may be wrapped once more
        if data[_RISCV_MAGIC_OFFSET : _RISCV_MAGIC_OFFSET + 4] == _RISCV_MAGIC:
            return data
        try:
            if data.startswith(b"\x1f\x8b"):
                data = zlib.decompressobj(31).decompress(data)
            elif data[4:8] == b"zimg":
                data = _zboot_payload(data)
            else:
                break
        except (zlib.error, zstandard.ZstdError, lzma.LZMAError, struct.error) as error:
            message = f"the kernel cannot be decompressed ({error}): fetch its package again"
            raise ImageError(message, "corrupt") from error
    what = "an ELF file" if data.startswith(b"\x7fELF") else f"of an unknown form (it starts {data[:4].hex()})"
    raise ImageError(f"the kernel is {what}, not a riscv64 Image: use another suite or package", "unsupported")


def _zboot_payload(data: bytes) -> bytes:
    offset, size = struct.unpack_from("<II", data, 8)
    compression = data[24:56].split(b"\0")[0].decode(errors="replace")
    payload = data[offset : offset + size]
    # Decompressor objects stop at the end of the stream: a size field may follow it.
    if compression == "gzip":
        return zlib.decompressobj(31).decompress(payload)
    if compression.startswith("zstd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(payload)
    if compression.startswith(("xz", "lzma")):
        return lzma.LZMADecompressor().decompress(payload)
    raise ImageError(f"the kernel is compressed with {compression!r}, which is not supported", "unsupported")
