"""Small bare-metal programs, as ELF files made by our own assembler."""

from __future__ import annotations

import struct

from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64

DRAM = 0x8000_0000

# Ends the machine with the status in a0, through the board's test device.
POWER_OFF = """
power_off:
    slli a0, a0, 16
    li t0, 0x3333
    or a0, a0, t0
    li t0, 0x100000
    sw a0, 0(t0)
stay:
    j stay
"""


def elf(text: str) -> bytes:
    """The program as a bare-metal ELF file at the start of RAM."""
    code = bytes(assemble(rv64, text, base=DRAM))
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, 243, 1, DRAM, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 7, 4096, DRAM, DRAM, len(code), len(code), 4096)
    return (header + segment).ljust(4096, b"\0") + code
