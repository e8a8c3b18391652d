"""ELF files (System V gABI, ELF-64) for RISC-V: what is to be loaded of them, and bare-metal programs."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING, NamedTuple

from polyvisor.engine.memory import Memory

from .placing import MIB, LoadError, truncated

if TYPE_CHECKING:  # imported where an ELF file is read: most kernels are none
    from elftools.elf.elffile import ELFFile

# Sizes of ELF-64 header table entries, in bytes.
_PROGRAM_HEADER = 56
_SECTION_HEADER = 64
# What the ELF library raises for damaged headers.
_DAMAGE = (struct.error, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)


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


class Segment(NamedTuple):
    """What takes memory: ``data``, and zeroes behind it up to ``size`` bytes."""

    virtual: int
    physical: int
    data: bytes
    size: int


def load_elf(memory: Memory, data: bytes) -> ElfProgram:
    """Load a bare-metal program: every PT_LOAD segment at its physical address, its bss zeroed.

    Raises LoadError, before anything is written, if the file is not a 64-bit RISC-V program or a segment
    is not in RAM.
    """
    elf, segments = read_elf(data, "program")
    for segment in segments:
        if not memory.is_ram(segment.physical, segment.size):
            last = segment.physical + segment.size - 1
            raise LoadError(f"the program's segment at {segment.physical:#x}..{last:#x} is outside RAM")
    symbols = _symbols(elf)
    program = ElfProgram(
        entry=physical_address(segments, int(elf["e_entry"]), "entry point"),
        symbols=symbols,
        tohost=physical_address(segments, symbols["tohost"], "tohost") if "tohost" in symbols else None,
        fromhost=physical_address(segments, symbols["fromhost"], "fromhost") if "fromhost" in symbols else None,
        end=max(segment.physical + segment.size for segment in segments),
    )
    for segment in segments:
        write_segment(memory, segment, segment.physical)
    return program


def read_elf(data: bytes, what: str) -> tuple[ELFFile, list[Segment]]:
    """The file and its PT_LOAD segments that take memory. Raises LoadError, which calls it ``what``."""
    if not data:
        raise LoadError(f"the {what} file is empty")
    if data[:4] != b"\x7fELF":
        raise LoadError(f"the {what} is not an ELF file")
    if len(data) < 64:
        raise truncated(what, 64, len(data))
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
            raise truncated(what, table, len(data))
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
            raise truncated(what, offset + stored, len(data))
        virtual, physical = int(header["p_vaddr"]), int(header["p_paddr"])
        segments.append(Segment(virtual, physical, data[offset : offset + stored], size))
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


def physical_address(segments: list[Segment], address: int, what: str) -> int:
    """The physical address of one the program is linked to. Raises LoadError, which calls it ``what``."""
    for segment in segments:
        if segment.virtual <= address < segment.virtual + segment.size:
            return segment.physical + address - segment.virtual
    raise LoadError(f"the {what} at {address:#x} is in none of the file's segments")


def write_segment(memory: Memory, segment: Segment, address: int) -> None:
    """Put a segment where it is to be in RAM. Raises BusError outside it."""
    memory.write(address, segment.data)
    position, end = address + len(segment.data), address + segment.size
    while position < end:
        length = min(MIB, end - position)
        memory.write(position, bytes(length))
        position += length


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
