"""Put a Linux kernel, its initrd and its device tree into a machine's RAM.

Formats: the RISC-V Linux boot image header (Linux, Documentation/arch/riscv/boot-image-header.rst and boot.rst),
the PE/COFF header it may carry (Microsoft PE Format), ELF-64 (System V gABI), gzip (RFC 1952).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import NamedTuple

from polyvisor.boards.memory_map import DRAM_BASE
from polyvisor.boards.stored_file import StoredFile
from polyvisor.engine.memory import PAGE_SIZE, Memory, Ram

from .elf import physical_address, read_elf, write_segment
from .placing import MIB, Data, LoadError, place, place_high, ram_at, size_text, truncated

# Where a kernel that does not say belongs, in bytes from the start of RAM (the size of a level-1 page, boot.rst).
DEFAULT_TEXT_OFFSET = 2 * MIB
# A device tree longer than this does not fit the window Linux maps early for it.
MAX_DEVICE_TREE = 2 * MIB

_HEADER_SIZE = 0x40
_MAGIC2 = b"RSC\x05"
_PE_RISCV64 = 0x5064
_PE_MACHINES = {
    0x014C: "32-bit x86",
    0x01C2: "32-bit Arm",
    0x01C4: "32-bit Arm",
    0x5032: "32-bit RISC-V",
    0x6232: "32-bit LoongArch",
    0x6264: "64-bit LoongArch",
    0x8664: "x86-64",
    0xAA64: "64-bit Arm",
}
_PACKED = {
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x02\x21\x4c\x18": "lz4",
    b"\x89LZO": "lzo",
    b"\x5d\0\0": "lzma",
}


class LoadedKernel(NamedTuple):
    """A kernel in RAM: where it is entered, and the addresses from ``start`` up to ``end`` that it occupies.

    ``end`` counts memory the kernel uses beyond its file (bss). All are guest physical.
    """

    entry: int
    start: int
    end: int


class Boot(NamedTuple):
    """A machine ready to start: guest physical addresses. ``initrd`` is (start, end)."""

    entry: int
    device_tree: int
    initrd: tuple[int, int] | None
    kernel: LoadedKernel


def boot_linux(
    memory: Memory,
    kernel: Data,
    initrd: Data | None,
    make_tree: Callable[[tuple[int, int] | None], bytes],
    dram_base: int = DRAM_BASE,
) -> Boot:
    """Load a kernel, its initrd and the device tree ``make_tree(initrd addresses)`` returns.

    The initrd is at the end of RAM, the device tree below it, both on pages of their own. Raises LoadError.
    """
    if initrd is not None and not len(initrd):
        raise LoadError("the initrd is empty")
    loaded = load_kernel(memory, kernel, dram_base, reserve=len(initrd) if initrd is not None else 0)
    ceiling = None
    where = None
    if initrd is not None:
        start = place_high(memory, initrd, dram_base, floor=loaded.end, what="initrd")
        where = (start, start + len(initrd))
        ceiling = start
    tree = make_tree(where)
    if len(tree) > MAX_DEVICE_TREE:
        raise LoadError(f"the device tree is longer than {size_text(MAX_DEVICE_TREE)}")
    address = place_high(memory, tree, dram_base, floor=loaded.end, ceiling=ceiling, what="device tree")
    return Boot(loaded.entry, address, where, loaded)


def load_kernel(memory: Memory, data: Data, dram_base: int = DRAM_BASE, *, reserve: int = 0) -> LoadedKernel:
    """Load a Linux kernel: a RISC-V ``Image``, the same compressed with gzip, or an ELF ``vmlinux``.

    ``reserve`` is how many bytes must remain free for an initrd. Raises LoadError.
    """
    ram = ram_at(memory, dram_base)
    if isinstance(data, StoredFile):
        if data[0x38:0x3C] == _MAGIC2 and len(data) >= _HEADER_SIZE:
            return _load_image(memory, data, ram, reserve)
        data = data[:]
    data = _unpack(data, ram)
    if data[:4] == b"\x7fELF":
        return _load_vmlinux(memory, data, ram, reserve)
    _refuse_other(data)
    return _load_image(memory, data, ram, reserve)


def _load_image(memory: Memory, data: Data, ram: Ram, reserve: int) -> LoadedKernel:
    text_offset, image_size, flags = struct.unpack("<QQQ", data[8:32])
    if flags & 1:
        raise LoadError("the kernel is for big-endian RISC-V; this machine is little-endian")
    if image_size == 0:
        raise LoadError("the kernel's header gives no image size; the file is damaged")
    if text_offset % PAGE_SIZE:
        raise LoadError(f"the kernel's header asks for an impossible load offset, {text_offset:#x}")
    if data[:2] == b"MZ":
        _check_pe(data)
    size = max(image_size, len(data))
    _check_room(ram, text_offset + size, reserve)
    start = ram.base + text_offset
    place(memory, start, data)
    return LoadedKernel(start, start, start + size)


def _check_pe(data: Data) -> None:
    """Check what the PE/COFF header says of the machine and of the file's length."""
    header = int.from_bytes(data[0x3C:0x40], "little")
    if len(data) < header + 24:
        raise truncated("kernel", header + 24, len(data))
    if data[header : header + 4] != b"PE\0\0":
        raise LoadError("the kernel's PE header is damaged")
    machine, sections = struct.unpack("<HH", data[header + 4 : header + 8])
    if machine != _PE_RISCV64:
        raise LoadError(f"the kernel is for {_PE_MACHINES.get(machine, f'PE machine {machine:#x}')}, not 64-bit RISC-V")
    table = header + 24 + int.from_bytes(data[header + 20 : header + 22], "little")
    needed = table + 40 * sections
    if len(data) < needed:
        raise truncated("kernel", needed, len(data))
    for index in range(sections):
        entry = table + 40 * index + 16
        raw_size, raw_offset = struct.unpack("<II", data[entry : entry + 8])
        if raw_size:
            needed = max(needed, raw_offset + raw_size)
    if len(data) < needed:
        raise truncated("kernel", needed, len(data))


def _load_vmlinux(memory: Memory, data: bytes, ram: Ram, reserve: int) -> LoadedKernel:
    """At its physical addresses where these are RAM, otherwise where an Image would be (the kernel relocates)."""
    elf, segments = read_elf(data, "kernel")
    entry = int(elf["e_entry"])
    if all(ram.base <= s.physical and s.physical + s.size <= ram.end for s in segments):
        start = min(s.physical for s in segments)
        end = max(s.physical + s.size for s in segments)
        placed = [(s, s.physical) for s in segments]
        entry = physical_address(segments, entry, "entry point")
    else:
        lowest = min(s.virtual for s in segments)
        start = ram.base + DEFAULT_TEXT_OFFSET
        end = start + max(s.virtual + s.size for s in segments) - lowest
        placed = [(s, start + s.virtual - lowest) for s in segments]
        if not any(s.virtual <= entry < s.virtual + s.size for s in segments):
            raise LoadError(f"the kernel's entry point {entry:#x} is in none of its segments")
        entry = start + entry - lowest
    _check_room(ram, end - ram.base, reserve)
    for segment, address in placed:
        write_segment(memory, segment, address)
    return LoadedKernel(entry, start, end)


def _unpack(data: bytes, ram: Ram) -> bytes:
    """The kernel inside gzip, if it is, never more than RAM holds."""
    if not data:
        raise LoadError("the kernel file is empty")
    if data[:2] != b"\x1f\x8b":
        return data
    stream = zlib.decompressobj(wbits=31)
    try:
        unpacked = stream.decompress(data, ram.size + 1)
    except zlib.error as error:
        raise LoadError(f"the gzip file of the kernel is damaged: {error}") from None
    if len(unpacked) > ram.size:
        raise LoadError(f"RAM of {size_text(ram.size)} is too small: the unpacked kernel is larger")
    if not stream.eof:
        raise LoadError("the kernel file is truncated: its gzip data ends early")
    if not unpacked:
        raise LoadError("the kernel file is empty inside its gzip wrapper")
    return unpacked


def _refuse_other(data: bytes) -> None:
    """Raise LoadError, naming what the file is instead, unless it has the header of a RISC-V Image."""
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        packed = data[24:56].split(b"\0")[0].decode("ascii", "replace")
        how = f" ({packed})" if packed.isalnum() else ""
        raise LoadError(f"the kernel is a self-extracting EFI zboot image{how}: unpack it to a plain Image first")
    for magic, name in _PACKED.items():
        if data.startswith(magic):
            raise LoadError(f"the kernel is compressed with {name}: unpack it first (only gzip is unpacked here)")
    if data[:4] == b"\x27\x05\x19\x56":
        raise LoadError("the kernel is wrapped in a U-Boot image: extract the Image first")
    if data[:4] == b"\xd0\x0d\xfe\xed":
        raise LoadError("not a kernel: the file is a device tree or a FIT image")
    if data[0x202:0x206] == b"HdrS":
        raise LoadError("the kernel is for x86 (a bzImage), not 64-bit RISC-V")
    if data[0x38:0x3C] == b"ARM\x64":
        raise LoadError("the kernel is for 64-bit Arm, not 64-bit RISC-V")
    if data[0x24:0x28] == b"\x18\x28\x6f\x01":
        raise LoadError("the kernel is for 32-bit Arm (a zImage), not 64-bit RISC-V")
    if data[0x38:0x3C] == _MAGIC2 and len(data) >= _HEADER_SIZE:
        return
    if data[:2] == b"MZ" and len(data) >= _HEADER_SIZE:
        _check_pe(data)
    if data[0x1FE:0x200] == b"\x55\xaa":
        raise LoadError("not a kernel: the file begins with an x86 boot sector")
    if len(data) < _HEADER_SIZE:
        raise truncated("kernel", _HEADER_SIZE, len(data))
    raise LoadError("not a kernel: neither a RISC-V Linux Image (plain or gzip) nor an ELF file")


def _check_room(ram: Ram, kernel: int, reserve: int) -> None:
    """``kernel`` is how far the kernel reaches into RAM; one page at least is left for a device tree."""
    needed = -(-kernel // PAGE_SIZE) * PAGE_SIZE + -(-reserve // PAGE_SIZE) * PAGE_SIZE + PAGE_SIZE
    if needed > ram.size:
        what = f"kernel ({size_text(kernel)})" + (f" and initrd ({size_text(reserve)})" if reserve else "")
        raise LoadError(
            f"RAM of {size_text(ram.size)} is too small for the {what}: at least {size_text(needed)} are needed"
        )
