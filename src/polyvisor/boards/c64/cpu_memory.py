"""Memory of a Commodore 64 as its CPU would read and write it now: banks, chips, and the CPU's own port."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from polyvisor.adl import READ, WRITE, u8, u16, u32, u64
from polyvisor.devices.c64 import memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.mos6502.bus import read_port, write_port

from .architecture import IO, PAGE_BITS

if TYPE_CHECKING:
    from .machine import Commodore64

PORT_SIZE = 2
DRIVE_PORT = IO + 0xE00
_PAGE = 1 << PAGE_BITS


def look(machine: Commodore64, address: int, length: int) -> bytes:
    """What reads by the CPU would give, without any of their effects. Raises ValueError behind $FFFF."""
    _check(address, length)
    cpu = _likeness(machine)
    out = bytearray()
    for each, size, place in _pieces(cpu, address, length, READ):
        if each < PORT_SIZE:
            out.append(int(read_port(cpu, u16(each))))
        elif IO <= place < memory.CARTRIDGE:
            for offset in range(size):
                value, answered = cpu.architecture.hooks["read_device"](cpu, u64(place + offset), u64(1))
                out.append(int(value) if answered else machine.port.read(place + offset - DRIVE_PORT, 1))
        else:
            out += machine.memory.read(place, size)
    return bytes(out)


def store(machine: Commodore64, address: int, data: bytes) -> None:
    """Do what writes by the CPU would, in no time; the drive's registers are left out. Raises ValueError likewise."""
    _check(address, len(data))
    cpu = machine.cpu.view
    cpu.retired = machine.cycles
    for at, value in enumerate(data, address):
        # One by one: each may change what the next one reaches.
        ((each, _, place),) = _pieces(cpu, at, 1, WRITE)
        if each < PORT_SIZE:
            write_port(cpu, u16(each), u8(value))
        elif IO <= place < memory.CARTRIDGE:
            cpu.architecture.hooks["write_device"](cpu, u64(place), u64(1), u64(value))
        else:
            machine.memory.write(place, bytes([value]))
    machine.cpu.flush()


def _check(address: int, length: int) -> None:
    if not 0 <= address <= address + length <= 0x10000:
        raise ValueError(f"${address:x} to ${address + length - 1:x}: addresses are $0 to $ffff")


def _pieces(cpu: Any, address: int, length: int, access: int) -> Iterator[tuple[int, int, int]]:
    """(address, size, physical address) of a range's parts: the port's bytes, and what lies in one page."""
    while length:
        size = 1 if address < PORT_SIZE else min(length, _PAGE - address % _PAGE)
        context = cpu.architecture.hooks["data_context"](cpu)
        yield address, size, int(cpu.architecture.hooks["translate"](cpu, u64(address), u32(access), context)[0])
        address, length = address + size, length - size


def _likeness(machine: Commodore64) -> Any:
    """Another CPU with the same state: what chips do when they are read, they do in that."""
    state = machine.state
    cpu = reference_cpu(machine.model.architecture, machine.memory, bytearray(state.block[: state.size]))
    cpu.retired = machine.cycles
    cpu.phys_store = lambda kind, where, value: True
    return cpu
