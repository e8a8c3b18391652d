"""Put a kernel, its initrd and its device tree, or a bare-metal program, into a machine's RAM.

Formats: the RISC-V Linux boot image header (Linux, Documentation/arch/riscv/boot-image-header.rst and boot.rst),
the PE/COFF header it may carry (Microsoft PE Format), ELF-64 (System V gABI), gzip (RFC 1952).
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from polyvisor.boards.memory_map import DRAM_BASE
from polyvisor.boards.stored_file import StoredFile
from polyvisor.engine.memory import PAGE_SIZE, Memory, Ram

if TYPE_CHECKING:  # imported where an ELF file is read: most kernels are none
    from elftools.elf.elffile import ELFFile

Data = bytes | StoredFile

MIB = 1 << 20
# Where a kernel that does not say belongs, in bytes from the start of RAM (the size of a level-1 page, boot.rst).
DEFAULT_TEXT_OFFSET = 2 * MIB
# A device tree longer than this does not fit the window Linux maps early for it.
MAX_DEVICE_TREE = 2 * MIB

_HEADER_SIZE = 0x40
# Sizes of ELF-64 header table entries, in bytes.
_PROGRAM_HEADER = 56
_SECTION_HEADER = 64
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
# What the ELF library raises for damaged headers.
_DAMAGE = (struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


class LoadError(Exception):
    """A file cannot be loaded; the message is one line that says why."""


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


class ElfProgram(NamedTuple):
    """A bare-metal program in RAM.

    ``entry``, ``tohost``, ``fromhost`` and ``end`` (after its last byte, bss included) are guest physical;
    ``symbols`` are the values in the file's symbol table.
    """

    entry: int
    symbols: dict[str, int]
    tohost: int | None
    fromhost: int | None
    end: int


class _Segment(NamedTuple):
    virtual: int
    physical: int
    data: bytes
    size: int


# Whole machines


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
        raise LoadError(f"the device tree is longer than {_size(MAX_DEVICE_TREE)}")
    address = place_high(memory, tree, dram_base, floor=loaded.end, ceiling=ceiling, what="device tree")
    return Boot(loaded.entry, address, where, loaded)


def place_high(
    memory: Memory,
    data: Data,
    dram_base: int = DRAM_BASE,
    *,
    floor: int,
    ceiling: int | None = None,
    alignment: int = PAGE_SIZE,
    what: str = "data",
) -> int:
    """Write ``data`` as high in RAM as fits between ``floor`` and ``ceiling`` (the end of RAM); its address.

    ``alignment`` is a power of two, in bytes. Raises LoadError if there is no room.
    """
    ram = _ram(memory, dram_base)
    top = ram.end if ceiling is None else min(ceiling, ram.end)
    address = (top - len(data)) & -alignment
    if address < floor:
        room = max(0, top - floor)
        raise LoadError(
            f"RAM of {_size(ram.size)} is too small: the {what} needs {_size(len(data))}, "
            f"beside the kernel there are {_size(room)}"
        )
    _place(memory, address, data)
    return address


def load_kernel(memory: Memory, data: Data, dram_base: int = DRAM_BASE, *, reserve: int = 0) -> LoadedKernel:
    """Load a Linux kernel: a RISC-V ``Image``, the same compressed with gzip, or an ELF ``vmlinux``.

    ``reserve`` is how many bytes must remain free for an initrd. Raises LoadError.
    """
    ram = _ram(memory, dram_base)
    if isinstance(data, StoredFile):
        if data[0x38:0x3C] == _MAGIC2 and len(data) >= _HEADER_SIZE:
            return _load_image(memory, data, ram, reserve)
        data = data[:]
    data = _unpack(data, ram)
    if data[:4] == b"\x7fELF":
        return _load_vmlinux(memory, data, ram, reserve)
    _refuse_other(data)
    return _load_image(memory, data, ram, reserve)


def load_elf(memory: Memory, data: bytes) -> ElfProgram:
    """Load a bare-metal program: every PT_LOAD segment at its physical address, its bss zeroed.

    Raises LoadError, before anything is written, if the file is not a 64-bit RISC-V program or a segment
    is not in RAM.
    """
    elf, segments = _read_elf(data, "program")
    for segment in segments:
        if not memory.is_ram(segment.physical, segment.size):
            last = segment.physical + segment.size - 1
            raise LoadError(f"the program's segment at {segment.physical:#x}..{last:#x} is outside RAM")
    symbols = _symbols(elf)
    program = ElfProgram(
        entry=_physical(segments, int(elf["e_entry"]), "entry point"),
        symbols=symbols,
        tohost=_physical(segments, symbols["tohost"], "tohost") if "tohost" in symbols else None,
        fromhost=_physical(segments, symbols["fromhost"], "fromhost") if "fromhost" in symbols else None,
        end=max(segment.physical + segment.size for segment in segments),
    )
    for segment in segments:
        _write_segment(memory, segment, segment.physical)
    return program


# Images


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
    _place(memory, start, data)
    return LoadedKernel(start, start, start + size)


def _check_pe(data: Data) -> None:
    """Check what the PE/COFF header says of the machine and of the file's length."""
    header = int.from_bytes(data[0x3C:0x40], "little")
    if len(data) < header + 24:
        raise _truncated("kernel", header + 24, len(data))
    if data[header : header + 4] != b"PE\0\0":
        raise LoadError("the kernel's PE header is damaged")
    machine, sections = struct.unpack("<HH", data[header + 4 : header + 8])
    if machine != _PE_RISCV64:
        raise LoadError(f"the kernel is for {_PE_MACHINES.get(machine, f'PE machine {machine:#x}')}, not 64-bit RISC-V")
    table = header + 24 + int.from_bytes(data[header + 20 : header + 22], "little")
    needed = table + 40 * sections
    if len(data) < needed:
        raise _truncated("kernel", needed, len(data))
    for index in range(sections):
        entry = table + 40 * index + 16
        raw_size, raw_offset = struct.unpack("<II", data[entry : entry + 8])
        if raw_size:
            needed = max(needed, raw_offset + raw_size)
    if len(data) < needed:
        raise _truncated("kernel", needed, len(data))


def _load_vmlinux(memory: Memory, data: bytes, ram: Ram, reserve: int) -> LoadedKernel:
    """At its physical addresses where these are RAM, otherwise where an Image would be (the kernel relocates)."""
    elf, segments = _read_elf(data, "kernel")
    entry = int(elf["e_entry"])
    if all(ram.base <= s.physical and s.physical + s.size <= ram.end for s in segments):
        start = min(s.physical for s in segments)
        end = max(s.physical + s.size for s in segments)
        placed = [(s, s.physical) for s in segments]
        entry = _physical(segments, entry, "entry point")
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
        _write_segment(memory, segment, address)
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
        raise LoadError(f"RAM of {_size(ram.size)} is too small: the unpacked kernel is larger")
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
        raise _truncated("kernel", _HEADER_SIZE, len(data))
    raise LoadError("not a kernel: neither a RISC-V Linux Image (plain or gzip) nor an ELF file")


# ELF


def _read_elf(data: bytes, what: str) -> tuple[ELFFile, list[_Segment]]:
    """The file and its PT_LOAD segments that take memory."""
    if not data:
        raise LoadError(f"the {what} file is empty")
    if data[:4] != b"\x7fELF":
        raise LoadError(f"the {what} is not an ELF file")
    if len(data) < 64:
        raise _truncated(what, 64, len(data))
    if data[4] != 2 or data[5] != 1:
        bits = {1: "32-bit", 2: "64-bit"}.get(data[4], "damaged")
        order = {1: "little-endian", 2: "big-endian"}.get(data[5], "damaged")
        raise LoadError(f"the {what} is a {bits} {order} ELF file; this machine runs 64-bit little-endian RISC-V")
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        elf = ELFFile(io.BytesIO(data))
        machine = elf["e_machine"]
        if machine != "EM_RISCV":
            name = machine.removeprefix("EM_") if isinstance(machine, str) else f"machine {machine}"
            raise LoadError(f"the {what} is an ELF file for {name}, not RISC-V")
        if elf["e_type"] != "ET_EXEC" and elf["e_type"] != "ET_DYN":
            raise LoadError(f"the {what} is not an executable ELF file (an object file or a core dump)")
        # 65535 would mean that the true number is elsewhere (gABI, "Program Header").
        if elf["e_phnum"] == 0xFFFF or (elf["e_phnum"] and elf["e_phentsize"] != _PROGRAM_HEADER):
            raise LoadError(f"the {what}'s ELF headers are damaged: impossible program header table")
        table = elf["e_phoff"] + elf["e_phnum"] * elf["e_phentsize"]
        if len(data) < table:
            raise _truncated(what, table, len(data))
        headers = [segment.header for segment in elf.iter_segments()]
    except (ELFError, *_DAMAGE) as error:
        raise LoadError(f"the {what}'s ELF headers are damaged: {_one_line(error)}") from None
    segments = []
    for header in headers:
        if header["p_type"] != "PT_LOAD" or not header["p_memsz"]:
            continue
        offset, stored, size = int(header["p_offset"]), int(header["p_filesz"]), int(header["p_memsz"])
        if stored > size:
            raise LoadError(f"the {what}'s ELF headers are damaged: a segment is longer in the file than in memory")
        if offset + stored > len(data):
            raise _truncated(what, offset + stored, len(data))
        virtual, physical = int(header["p_vaddr"]), int(header["p_paddr"])
        segments.append(_Segment(virtual, physical, data[offset : offset + stored], size))
    if not segments:
        raise LoadError(f"the {what} has nothing to load (no PT_LOAD segment)")
    return elf, segments


def _symbols(elf: ELFFile) -> dict[str, int]:
    """Names and values of the symbol table; empty if the file is stripped or the table is damaged."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.sections import SymbolTableSection

    found: dict[str, int] = {}
    if elf["e_shentsize"] != _SECTION_HEADER:
        return found
    try:
        for section in elf.iter_sections():
            if isinstance(section, SymbolTableSection):
                for symbol in section.iter_symbols():
                    if symbol.name and symbol["st_shndx"] != "SHN_UNDEF":
                        found[symbol.name] = int(symbol["st_value"])
    except (ELFError, *_DAMAGE):
        return found
    return found


def _physical(segments: list[_Segment], address: int, what: str) -> int:
    """The physical address of one the program is linked to."""
    for segment in segments:
        if segment.virtual <= address < segment.virtual + segment.size:
            return segment.physical + address - segment.virtual
    raise LoadError(f"the {what} at {address:#x} is in none of the file's segments")


def _write_segment(memory: Memory, segment: _Segment, address: int) -> None:
    memory.write(address, segment.data)
    position, end = address + len(segment.data), address + segment.size
    while position < end:
        length = min(MIB, end - position)
        memory.write(position, bytes(length))
        position += length


# Common


def _place(memory: Memory, address: int, data: Data) -> None:
    if isinstance(data, StoredFile):
        data.place(memory, address)
    else:
        memory.write(address, data)


def _ram(memory: Memory, base: int) -> Ram:
    for ram in memory.ram:
        if ram.base == base:
            return ram
    raise LoadError(f"the machine has no RAM at {base:#x}")


def _check_room(ram: Ram, kernel: int, reserve: int) -> None:
    """``kernel`` is how far the kernel reaches into RAM; one page at least is left for a device tree."""
    needed = -(-kernel // PAGE_SIZE) * PAGE_SIZE + -(-reserve // PAGE_SIZE) * PAGE_SIZE + PAGE_SIZE
    if needed > ram.size:
        what = f"kernel ({_size(kernel)})" + (f" and initrd ({_size(reserve)})" if reserve else "")
        raise LoadError(f"RAM of {_size(ram.size)} is too small for the {what}: at least {_size(needed)} are needed")


def _truncated(what: str, needed: int, length: int) -> LoadError:
    return LoadError(f"the {what} file is truncated: it has {length} of at least {needed} bytes")


def _size(size: int) -> str:
    if size >= MIB:
        return f"{-(-size // MIB)} MiB"
    return f"{-(-size // 1024)} KiB"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
