"""Placing software in memory: Linux kernels, initial RAM file systems, bare-metal ELF programs.

The flat kernel format is that of Linux, Documentation/arch/riscv/boot-image-header.rst.
"""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from dataclasses import dataclass, field

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from polyvisor.engine.memory import BusError, Memory

from . import memory_map as at

_PAGE = 4096
_HEADER = struct.Struct("<IIQQQIIQ8s4sI")
_MAGIC2 = b"RSC\x05"
_ELF = b"\x7fELF"
_RISCV = 243  # e_machine
_MACHINES = {3: "x86", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 40: "ARM", 62: "x86-64", 183: "arm64", 258: "LoongArch"}


class LoadError(Exception):
    """What was given cannot be loaded; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class PlacedKernel:
    """Where a kernel was put: its entry, and the first address after all the memory it claims."""

    entry: int
    end: int


@dataclass(frozen=True)
class ElfProgram:
    """A loaded program: its entry, symbols by name, HTIF's mailboxes if it has them, and its end."""

    entry: int
    end: int
    symbols: dict[str, int] = field(default_factory=dict)
    tohost: int | None = None
    fromhost: int | None = None


def load_kernel(memory: Memory, data: bytes, dram: int, size: int) -> PlacedKernel:
    """Place a RISC-V Linux kernel (Image, Image.gz or vmlinux) in RAM of ``size`` bytes at ``dram``."""
    if not data:
        raise LoadError("the kernel file is empty")
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise LoadError(f"the kernel is gzip'ed, but damaged or truncated: {error}") from None
    if data[:4] == _ELF:
        program = load_elf(memory, data, what="kernel")
        return PlacedKernel(program.entry, program.end)
    _recognise(data)
    _, _, text_offset, image_size, *_ = _HEADER.unpack_from(data)
    image_size = max(image_size, len(data))
    base = dram + (text_offset or at.KERNEL_OFFSET)
    if base + image_size > dram + size:
        raise LoadError(
            f"the kernel needs {_mib(base - dram + image_size)} MiB; the machine has {size >> 20}: give it more with --memory"
        )
    memory.write(base, data)
    return PlacedKernel(base, base + image_size)


def _recognise(data: bytes) -> None:
    """Raise LoadError unless ``data`` is a whole flat RISC-V Image; say what it is instead."""
    if data[0x38:0x3C] == b"ARMd":
        raise LoadError("the kernel is for arm64; this machine is RISC-V (riscv64)")
    if data[0x202:0x206] == b"HdrS":
        raise LoadError("the kernel is for x86 (a bzImage); this machine is RISC-V (riscv64)")
    if data[:2] == b"MZ" and data[4:8] == b"zimg":
        raise LoadError("the kernel is a compressed EFI image (zboot); unpack it, or give the plain Image")
    if len(data) < _HEADER.size or data[0x38:0x3C] != _MAGIC2:
        raise LoadError("the kernel file is not a RISC-V Linux kernel (no RISC-V Image header, no ELF header)")
    if data[:2] == b"MZ":
        end = _efi_end(data)
        if end > len(data):
            raise LoadError(f"the kernel file is truncated: it has {len(data)} bytes of {end}")


def _efi_end(data: bytes) -> int:
    """The file size that an Image's PE section table promises; 0 if it cannot be read."""
    pe = struct.unpack_from("<I", data, 0x3C)[0]
    if data[pe : pe + 4] != b"PE\0\0" or pe + 24 > len(data):
        return 0
    sections, optional = struct.unpack_from("<H", data, pe + 6)[0], struct.unpack_from("<H", data, pe + 20)[0]
    table = pe + 24 + optional
    end = 0
    for i in range(sections):
        if table + 40 * i + 40 > len(data):
            return 0
        raw_size, raw = struct.unpack_from("<II", data, table + 40 * i + 16)
        end = max(end, raw + raw_size)
    return end


def place_high(memory: Memory, data: bytes, top: int, floor: int, what: str) -> int:
    """Put ``data`` as high as it fits below ``top``, on a page boundary, not below ``floor``; gives its address."""
    address = (top - len(data)) // _PAGE * _PAGE
    if address < floor:
        raise LoadError(
            f"the {what} ({_mib(len(data))} MiB) does not fit beside the kernel: give the machine more with --memory"
        )
    memory.write(address, data)
    return address


def _mib(size: int) -> int:
    return -(-size >> 20) if size >= 0 else 0


def load_elf(memory: Memory, data: bytes, what: str = "program") -> ElfProgram:
    """Place a 64-bit RISC-V ELF file by its physical addresses. Raises LoadError."""
    if data[:4] != _ELF:
        raise LoadError(f"the {what} is not an ELF file")
    try:
        elf = ELFFile(io.BytesIO(data))
        if elf.header.e_machine != "EM_RISCV":
            number = struct.unpack_from("<H" if elf.little_endian else ">H", data, 18)[0]
            raise LoadError(f"the {what} is for {_MACHINES.get(number, f'machine {number}')}; this machine is RISC-V (riscv64)")
        if elf.elfclass != 64 or not elf.little_endian:
            raise LoadError(f"the {what} is {elf.elfclass}-bit RISC-V; this machine is 64-bit little-endian (riscv64)")
        segments = [s for s in elf.iter_segments() if s["p_type"] == "PT_LOAD" and s["p_memsz"]]
        if not segments:
            raise LoadError(f"the {what} has nothing to load (no PT_LOAD segment)")
        end = 0
        for segment in segments:
            start, size = segment["p_paddr"], segment["p_memsz"]
            content = segment.data()
            if len(content) != segment["p_filesz"]:
                raise LoadError(f"the {what} is truncated: a segment has {len(content)} of {segment['p_filesz']} bytes")
            if not memory.is_ram(start, size):
                raise LoadError(f"the {what} wants {size:#x} bytes at {start:#x}, where there is no RAM")
            memory.write(start, content)
            end = max(end, start + size)
        symbols = _symbols(elf)
    except (ELFError, struct.error, UnicodeDecodeError, ValueError, KeyError, AttributeError) as error:
        raise LoadError(f"the {what} is damaged or truncated: {error}") from None
    except BusError as error:
        raise LoadError(f"the {what} does not fit: {error}") from None
    return ElfProgram(elf.header.e_entry, end, symbols, symbols.get("tohost"), symbols.get("fromhost"))


def _symbols(elf: ELFFile) -> dict[str, int]:
    found: dict[str, int] = {}
    for section in elf.iter_sections():
        if isinstance(section, SymbolTableSection):
            found |= {s.name: s["st_value"] for s in section.iter_symbols() if s.name}
    return found
