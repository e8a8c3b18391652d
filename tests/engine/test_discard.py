"""Guest memory that goes back to the host."""

from __future__ import annotations

import os
import struct

import pytest

from polyvisor.engine import layout as at
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import BusError, Memory
from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64

BASE = 0x2000_0000
PAGE = 4096


def test_discarded_pages_are_zero_and_take_no_memory() -> None:
    memory = Memory()
    ram = memory.add_ram(BASE, 8 * PAGE)
    seen: list[tuple[int, int]] = []
    memory.write(BASE, b"x" * 8 * PAGE)
    memory.on_write = lambda address, length: seen.append((address, length))
    before = os.fstat(ram.fd).st_blocks
    memory.discard(BASE + PAGE, 3 * PAGE)
    memory.discard(BASE, 0)
    assert os.fstat(ram.fd).st_blocks == before - 3 * PAGE // 512
    assert memory.read(BASE, 8 * PAGE) == b"x" * PAGE + bytes(3 * PAGE) + b"x" * 4 * PAGE
    assert seen == [(BASE + PAGE, 3 * PAGE)]
    memory.write(BASE + PAGE, b"y")
    assert memory.read(BASE + PAGE, 2) == b"y\0"


@pytest.mark.parametrize(("address", "length"), [(BASE + 1, PAGE), (BASE, 100), (BASE, -PAGE)])
def test_only_whole_pages_are_discarded(address: int, length: int) -> None:
    memory = Memory()
    memory.add_ram(BASE, 2 * PAGE)
    with pytest.raises(ValueError, match="whole pages"):
        memory.discard(address, length)


@pytest.mark.parametrize(("address", "length"), [(BASE - PAGE, PAGE), (BASE + PAGE, 2 * PAGE), (0, PAGE)])
def test_only_ram_is_discarded(address: int, length: int) -> None:
    memory = Memory()
    memory.add_ram(BASE, 2 * PAGE)
    memory.add_ram(BASE + 4 * PAGE, PAGE)
    with pytest.raises(BusError):
        memory.discard(address, length)


def test_code_of_discarded_pages_is_forgotten() -> None:
    memory = Memory()
    memory.add_ram(BASE, 8 * PAGE)
    native = native_code(rv64)
    pages = CodePages(native, memory)
    cpu = Cpu(native, memory, pages, virtual=True)
    nop, wfi = 0x13, 0x1050_0073
    memory.write(BASE, struct.pack("<3I", nop, nop, wfi))
    cpu.state.pc = BASE
    cpu.state.mtvec = BASE + PAGE
    memory.write(BASE + PAGE, struct.pack("<I", wfi))
    cpu.run(100)
    assert cpu.state.mcause == 0
    flag = pages._page(BASE)[2]
    native.change_flags(flag, at.PAGE_DIRTY, 0)
    memory.discard(BASE, PAGE)
    assert native.change_flags(flag, 0, 0) & at.PAGE_DIRTY
    cpu.state.pc = BASE
    cpu.run(100)
    assert cpu.state.mcause == 2 and cpu.state.mepc == BASE  # zeroes are no instruction
    memory.close()
