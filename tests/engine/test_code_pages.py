"""Records of decoded pages."""

from __future__ import annotations

import ctypes
import struct

from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64

BASE = 0x2000_0000
PAGE = 4096


def jump(offset: int) -> int:
    """``j .+offset``."""
    bits = offset & 0x1F_FFFF
    return 0x6F | (bits >> 20) << 31 | (bits >> 1 & 0x3FF) << 21 | (bits >> 11 & 1) << 20 | (bits >> 12 & 0xFF) << 12


def test_pages_that_are_prepared_are_used_and_more_than_there_is_room_for() -> None:
    memory = Memory()
    count = 24
    memory.add_ram(BASE, (count + 1) * PAGE)
    for page in range(count):
        memory.write(BASE + page * PAGE, struct.pack("<II", 0x0015_0513, jump(PAGE - 4)))
    native = native_code(rv64)
    pages = CodePages(native, memory, limit=10)
    cpu = Cpu(native, memory, pages, virtual=True)
    cpu.state.mtvec = BASE + count * PAGE
    for ahead in (0, 3, 100):
        pages.prepare(ahead)
        assert pages._prepared == min(10, max(pages._prepared, pages._used + ahead))
        # One that nobody has used is as one that is made when it is wanted.
        if pages._prepared > pages._used:
            made = ctypes.string_at(pages._first + pages._used * pages.layout.slot_size, len(pages._template))
            assert made == pages._template
        cpu.state.pc, cpu.state.x[10] = BASE, 0
        cpu.run(2 * count)
        assert cpu.state.x[10] == count
    assert pages.discards >= 3 and pages._used <= pages._prepared <= 10
    memory.close()
