"""Putting what a machine starts with into its RAM: where there is room, and what is said where there is none."""

from __future__ import annotations

from polyvisor.boards.memory_map import DRAM_BASE
from polyvisor.boards.stored_file import StoredFile
from polyvisor.engine.memory import PAGE_SIZE, Memory, Ram

Data = bytes | StoredFile

MIB = 1 << 20


class LoadError(Exception):
    """A file cannot be loaded; the message is one line that says why."""


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
    ram = ram_at(memory, dram_base)
    top = ram.end if ceiling is None else min(ceiling, ram.end)
    address = (top - len(data)) & -alignment
    if address < floor:
        room = max(0, top - floor)
        raise LoadError(
            f"RAM of {size_text(ram.size)} is too small: the {what} needs {size_text(len(data))}, "
            f"beside the kernel there are {size_text(room)}"
        )
    place(memory, address, data)
    return address


def place(memory: Memory, address: int, data: Data) -> None:
    """Write ``data`` to RAM. Raises BusError outside it."""
    if isinstance(data, StoredFile):
        data.place(memory, address)
    else:
        memory.write(address, data)


def ram_at(memory: Memory, base: int) -> Ram:
    """The RAM that begins at ``base``. Raises LoadError."""
    for ram in memory.ram:
        if ram.base == base:
            return ram
    raise LoadError(f"the machine has no RAM at {base:#x}")


def truncated(what: str, needed: int, length: int) -> LoadError:
    """What to raise for a file of ``length`` bytes that needs more."""
    return LoadError(f"the {what} file is truncated: it has {length} of at least {needed} bytes")


def size_text(size: int) -> str:
    """Bytes for people, rounded up."""
    if size >= MIB:
        return f"{-(-size // MIB)} MiB"
    return f"{-(-size // 1024)} KiB"
