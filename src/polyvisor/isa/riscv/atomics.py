"""A: atomic instructions (Unprivileged ISA, "A" Standard Extension for Atomic Instructions).

Addresses must be aligned.  Read-modify-write primitives are sequentially consistent, which is all that aq and rl
can ask for; the plain load of LR gets fences where it carries one of them.
"""

from collections.abc import Callable
from typing import Any

from polyvisor.adl import Function, Trap, function, i32, u32, u64

from .architecture import rv64
from .causes import MISALIGNED_LOAD, MISALIGNED_STORE

NO_RESERVATION = 2**64 - 1
ORDERINGS = {".rl": "01", ".aq": "10", ".aqrl": "11"}


def instruction(
    pattern: str, syntax: str, suffixes: tuple[str, ...] = ("", *ORDERINGS)
) -> Callable[[Callable[..., Any]], Function]:
    """Decorator: an instruction with aq and rl bits, which its mnemonic shows as a suffix."""

    def register(python: Callable[..., Any]) -> Function:
        described = Function(python)
        mnemonic, operands = syntax.split(" ", 1)
        for suffix in suffixes:
            encoded = pattern.replace("aqrl", ORDERINGS.get(suffix, "00"))
            rv64.instruction(encoded, f"{mnemonic}{suffix} {operands}", extension="A")(described)
        return described

    return register


@function
def store_aligned(address: u64, mask: u64):
    if address & mask != 0:
        raise Trap(MISALIGNED_STORE, address)


# Load-Reserved/Store-Conditional Instructions.  SC succeeds if the memory still holds what LR loaded.


@instruction("00010 aqrl 00000 rs1:5 010 rd:5 0101111", "lr.w {rd}, ({rs1})", ("",))
def lr_w(cpu, rd, rs1):
    address = cpu.x[rs1]
    if address & 3 != 0:
        raise Trap(MISALIGNED_LOAD, address)
    value = cpu.load(u32, address)
    cpu.reservation = address
    cpu.reserved_value = u64(value)
    cpu.x[rd] = u64(i32(value))


@instruction("00010 aqrl 00000 rs1:5 011 rd:5 0101111", "lr.d {rd}, ({rs1})", ("",))
def lr_d(cpu, rd, rs1):
    address = cpu.x[rs1]
    if address & 7 != 0:
        raise Trap(MISALIGNED_LOAD, address)
    value = cpu.load(u64, address)
    cpu.reservation = address
    cpu.reserved_value = value
    cpu.x[rd] = value


@instruction("00010 aqrl 00000 rs1:5 010 rd:5 0101111", "lr.w {rd}, ({rs1})", tuple(ORDERINGS))
def lr_w_ordered(cpu, rd, rs1):
    cpu.fence()
    lr_w(cpu, rd, rs1)
    cpu.fence()


@instruction("00010 aqrl 00000 rs1:5 011 rd:5 0101111", "lr.d {rd}, ({rs1})", tuple(ORDERINGS))
def lr_d_ordered(cpu, rd, rs1):
    cpu.fence()
    lr_d(cpu, rd, rs1)
    cpu.fence()


@instruction("00011 aqrl rs2:5 rs1:5 010 rd:5 0101111", "sc.w {rd}, {rs2}, ({rs1})")
def sc_w(cpu, rd, rs1, rs2):
    """Store rs2 and set rd to 0 if the reservation holds; else set rd to 1."""
    address = cpu.x[rs1]
    store_aligned(address, 3)
    failed = u64(1)
    if cpu.reservation == address:
        expected = u32(cpu.reserved_value)
        failed = u64(cpu.compare_exchange(u32, address, expected, u32(cpu.x[rs2])) != expected)
    cpu.reservation = u64(NO_RESERVATION)
    cpu.x[rd] = failed


@instruction("00011 aqrl rs2:5 rs1:5 011 rd:5 0101111", "sc.d {rd}, {rs2}, ({rs1})")
def sc_d(cpu, rd, rs1, rs2):
    address = cpu.x[rs1]
    store_aligned(address, 7)
    failed = u64(1)
    if cpu.reservation == address:
        expected = cpu.reserved_value
        failed = u64(cpu.compare_exchange(u64, address, expected, cpu.x[rs2]) != expected)
    cpu.reservation = u64(NO_RESERVATION)
    cpu.x[rd] = failed


# Atomic Memory Operations: rd gets the old value of the memory at rs1, which is combined with rs2


@function
def amo_w(cpu, operation, rd, rs1, rs2):
    address = cpu.x[rs1]
    store_aligned(address, 3)
    cpu.x[rd] = u64(i32(cpu.atomic(operation, u32, address, u32(cpu.x[rs2]))))


@function
def amo_d(cpu, operation, rd, rs1, rs2):
    address = cpu.x[rs1]
    store_aligned(address, 7)
    cpu.x[rd] = cpu.atomic(operation, u64, address, cpu.x[rs2])


@instruction("00001 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amoswap.w {rd}, {rs2}, ({rs1})")
def amoswap_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "swap", rd, rs1, rs2)


@instruction("00000 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amoadd.w {rd}, {rs2}, ({rs1})")
def amoadd_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "add", rd, rs1, rs2)


@instruction("00100 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amoxor.w {rd}, {rs2}, ({rs1})")
def amoxor_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "xor", rd, rs1, rs2)


@instruction("01100 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amoand.w {rd}, {rs2}, ({rs1})")
def amoand_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "and", rd, rs1, rs2)


@instruction("01000 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amoor.w {rd}, {rs2}, ({rs1})")
def amoor_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "or", rd, rs1, rs2)


@instruction("10000 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amomin.w {rd}, {rs2}, ({rs1})")
def amomin_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "min", rd, rs1, rs2)


@instruction("10100 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amomax.w {rd}, {rs2}, ({rs1})")
def amomax_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "max", rd, rs1, rs2)


@instruction("11000 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amominu.w {rd}, {rs2}, ({rs1})")
def amominu_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "minu", rd, rs1, rs2)


@instruction("11100 aqrl rs2:5 rs1:5 010 rd:5 0101111", "amomaxu.w {rd}, {rs2}, ({rs1})")
def amomaxu_w(cpu, rd, rs1, rs2):
    amo_w(cpu, "maxu", rd, rs1, rs2)


@instruction("00001 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amoswap.d {rd}, {rs2}, ({rs1})")
def amoswap_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "swap", rd, rs1, rs2)


@instruction("00000 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amoadd.d {rd}, {rs2}, ({rs1})")
def amoadd_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "add", rd, rs1, rs2)


@instruction("00100 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amoxor.d {rd}, {rs2}, ({rs1})")
def amoxor_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "xor", rd, rs1, rs2)


@instruction("01100 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amoand.d {rd}, {rs2}, ({rs1})")
def amoand_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "and", rd, rs1, rs2)


@instruction("01000 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amoor.d {rd}, {rs2}, ({rs1})")
def amoor_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "or", rd, rs1, rs2)


@instruction("10000 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amomin.d {rd}, {rs2}, ({rs1})")
def amomin_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "min", rd, rs1, rs2)


@instruction("10100 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amomax.d {rd}, {rs2}, ({rs1})")
def amomax_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "max", rd, rs1, rs2)


@instruction("11000 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amominu.d {rd}, {rs2}, ({rs1})")
def amominu_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "minu", rd, rs1, rs2)


@instruction("11100 aqrl rs2:5 rs1:5 011 rd:5 0101111", "amomaxu.d {rd}, {rs2}, ({rs1})")
def amomaxu_d(cpu, rd, rs1, rs2):
    amo_d(cpu, "maxu", rd, rs1, rs2)
