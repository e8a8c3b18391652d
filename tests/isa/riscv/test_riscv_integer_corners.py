"""Corner cases of the integer instructions, with the results the manual states."""

from collections.abc import Iterator
from typing import Any

import pytest

from polyvisor.adl import Trap
from polyvisor.adl.assembler import assemble
from polyvisor.engine.memory import Memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.riscv import rv64

ORIGIN = 0x8000_0000
MIN, ONES = 1 << 63, (1 << 64) - 1
MIN32 = 0xFFFF_FFFF_8000_0000


@pytest.fixture
def cpu() -> Iterator[Any]:
    memory = Memory()
    memory.add_ram(ORIGIN, 0x4000)
    made = reference_cpu(rv64, memory)
    made.pc = ORIGIN
    yield made
    memory.close()


def execute(cpu: Any, text: str) -> None:
    """Execute the instructions of ``text`` one after the other, wherever they jump; a Trap passes through."""
    data = assemble(rv64, text, int(cpu.pc)).bytes
    while data:
        instruction = rv64.decode(int.from_bytes(data[:4], "little"))
        assert instruction is not None
        length = instruction.encoding.length
        cpu.word = int.from_bytes(data[:length], "little")
        cpu.next_pc = type(cpu.pc)(int(cpu.pc) + length)
        values = instruction.operand_values(cpu.word)
        instruction.function.python(cpu, *(t(values[n]) for n, t in instruction.types.items()))
        cpu.pc = cpu.next_pc
        data = data[length:]


@pytest.mark.parametrize(
    ("mnemonic", "a", "b", "result"),
    [
        # Division by zero and overflow: the manual's table
        ("div", 7, 0, ONES), ("divu", 7, 0, ONES), ("rem", 7, 0, 7), ("remu", 7, 0, 7),
        ("rem", MIN, 0, MIN), ("div", MIN, ONES, MIN), ("rem", MIN, ONES, 0),
        ("divw", 7, 0, ONES), ("divuw", 7, 0, ONES), ("remw", MIN32, 0, MIN32),
        ("remuw", 0x8000_0000, 0, MIN32), ("divw", 0x8000_0000, ONES, MIN32), ("remw", 0x8000_0000, ONES, 0),
        ("divw", 1 << 32 | 7, 1 << 40 | 2, 3),
        # Truncation towards zero, the remainder has the dividend's sign
        ("div", -7, 2, -3), ("rem", -7, 2, -1), ("div", 7, -2, -3), ("rem", 7, -2, 1), ("div", 5, -1, -5),
        # High products
        ("mulh", MIN, MIN, 1 << 62), ("mulhu", ONES, ONES, ONES - 1), ("mulhsu", ONES, ONES, ONES),
        ("mulhsu", MIN, ONES, MIN), ("mulhsu", 2, ONES, 1), ("mulh", -1, 1, ONES),
        ("mulw", 0x10000, 0x8000, MIN32),
        # Shift amounts are taken modulo the width
        ("sll", 1, 63, MIN), ("sll", 1, 64, 1), ("srl", MIN, 63, 1), ("sra", MIN, 63, ONES), ("sra", MIN, 127, ONES),
        ("sllw", 1, 31, MIN32), ("sllw", 1, 32, 1), ("srlw", 0x8000_0000, 31, 1), ("srlw", ONES, 32, ONES),
        ("sraw", 0x8000_0000, 31, ONES), ("sraw", 0x1_7FFF_FFFF, 31, 0),
        # Words are sign-extended
        ("addw", 0x7FFF_FFFF, 1, MIN32), ("subw", 0, 0x8000_0000, MIN32), ("addw", ONES, 1, 0),
        # Comparisons
        ("slt", MIN, MIN - 1, 1), ("sltu", MIN, MIN - 1, 0),
        # Bit manipulation
        ("rol", 0x8000_0000_0000_0001, 1, 3), ("ror", 3, 65, 0x8000_0000_0000_0001), ("rol", 5, 0, 5),
        ("rolw", 0x4000_0000, 1, MIN32), ("rorw", 1, 33, MIN32), ("add.uw", ONES, 1, 1 << 32),
        ("sh3add.uw", ONES, 0, 0xFFFF_FFFF << 3), ("bset", 0, 64, 1), ("bclr", ONES, 63, MIN - 1),
        ("bext", MIN, 127, 1), ("max", MIN, 1, 1), ("maxu", MIN, 1, MIN), ("min", MIN, 1, MIN), ("minu", MIN, 1, 1),
    ],
)  # fmt: skip
def test_register_register(cpu: Any, mnemonic: str, a: int, b: int, result: int) -> None:
    cpu.x[11], cpu.x[12] = a % 2**64, b % 2**64
    execute(cpu, f"{mnemonic} a0, a1, a2")
    assert int(cpu.x[10]) == result % 2**64


@pytest.mark.parametrize(
    ("text", "a", "result"),
    [
        ("srai a0, a1, 63", MIN, ONES), ("slli a0, a1, 63", 3, MIN), ("sraiw a0, a1, 31", 0x8000_0000, ONES),
        ("addiw a0, a1, 0", 0x1_8000_0000, MIN32), ("sltiu a0, a1, -1", ONES - 1, 1), ("sltiu a0, a1, 1", 0, 1),
        ("xori a0, a1, -1", 5, ONES - 5), ("lui a0, 0x80000", 0, MIN32), ("auipc a0, 0xfffff", 0, ORIGIN - 0x1000),
        ("clz a0, a1", 0, 64), ("ctz a0, a1", 0, 64), ("clzw a0, a1", 1 << 32, 32), ("ctzw a0, a1", MIN, 32),
        ("cpopw a0, a1", ONES, 32), ("orc.b a0, a1", 0x0100_8000_0010_00FF, 0xFF00_FF00_00FF_00FF),
        ("rev8 a0, a1", 0x0102_0304_0506_0708, 0x0807_0605_0403_0201), ("zext.h a0, a1", ONES, 0xFFFF),
        ("sext.b a0, a1", 0x80, ONES - 0x7F), ("sext.h a0, a1", 0x7FFF, 0x7FFF), ("roriw a0, a1, 31", 1, 2),
        ("slli.uw a0, a1, 63", 3, MIN), ("rori a0, a1, 0", 9, 9),
    ],
)  # fmt: skip
def test_one_register(cpu: Any, text: str, a: int, result: int) -> None:
    cpu.x[11] = a
    execute(cpu, text)
    assert int(cpu.x[10]) == result


def test_the_zero_register_stays_zero(cpu: Any) -> None:
    execute(cpu, "addi zero, zero, 5; c.li zero, 7; jal zero, .+8")
    assert int(cpu.x[0]) == 0


def test_links_of_compressed_jumps(cpu: Any) -> None:
    """The link is the address after the instruction, however long it is; jalr reads its base before it links."""
    cpu.x[1] = ORIGIN + 0x101
    execute(cpu, "c.jalr ra")
    assert (int(cpu.pc), int(cpu.x[1])) == (ORIGIN + 0x100, ORIGIN + 2)
    execute(cpu, "jalr ra, 3(ra)")
    assert (int(cpu.pc), int(cpu.x[1])) == (ORIGIN + 4, ORIGIN + 0x104)


def test_misaligned_atomics_trap_before_they_do_anything(cpu: Any) -> None:
    cpu.x[10] = ORIGIN + 0x104
    before = bytes(cpu.block)
    for text, offset, cause in (
        ("lr.w a1, (a0)", 2, 4), ("lr.d a1, (a0)", 0, 4), ("lr.d.aq a1, (a0)", 0, 4), ("sc.w a1, a2, (a0)", 1, 6),
        ("sc.d a1, a2, (a0)", 0, 6), ("amoadd.w a1, a2, (a0)", 2, 6), ("amoswap.d.aqrl a1, a2, (a0)", 0, 6),
    ):  # fmt: skip
        cpu.x[10] = ORIGIN + 0x104 + offset
        with pytest.raises(Trap) as caught:
            execute(cpu, text)
        assert caught.value.values == (cause, ORIGIN + 0x104 + offset), text
    cpu.x[10] = ORIGIN + 0x104
    assert bytes(cpu.block) == before


def test_store_conditional(cpu: Any) -> None:
    cpu.memory.write(ORIGIN + 0x100, (0xFFFF_FFFF_8765_4321).to_bytes(8, "little"))
    cpu.x[10], cpu.x[11] = ORIGIN + 0x100, 5
    execute(cpu, "lr.w a2, (a0); sc.w a3, a1, (a0)")
    assert (int(cpu.x[12]), int(cpu.x[13])) == (0xFFFF_FFFF_8765_4321, 0)
    execute(cpu, "sc.w a3, zero, (a0); ld a4, 0(a0)")
    assert (int(cpu.x[13]), int(cpu.x[14])) == (1, 0xFFFF_FFFF_0000_0005)
    # Another hart's store in between, and a trap's handler that gives up the reservation
    execute(cpu, "lr.d a2, (a0)")
    cpu.memory.write(ORIGIN + 0x107, b"\0")
    execute(cpu, "sc.d a3, zero, (a0)")
    assert int(cpu.x[13]) == 1
    execute(cpu, "lr.d a2, (a0)")
    cpu.reservation = ONES
    execute(cpu, "sc.d a3, zero, (a0); ld a4, 0(a0)")
    assert (int(cpu.x[13]), int(cpu.x[14])) == (1, 0x00FF_FFFF_0000_0005)


def test_atomic_words_are_sign_extended(cpu: Any) -> None:
    cpu.memory.write(ORIGIN + 0x100, b"\xff\xff\xff\x7f\x01\0\0\0")
    cpu.x[10], cpu.x[11] = ORIGIN + 0x100, 1
    execute(cpu, "amoadd.w a2, a1, (a0); amomax.w a3, a1, (a0); amominu.w a4, a1, (a0); lwu a5, 4(a0)")
    assert [int(v) for v in cpu.x][12:16] == [0x7FFF_FFFF, MIN32, 1, 1]


def hints() -> list[int]:
    """HINTs of RV64C by the manual's table: they write x0, or shift or add nothing."""
    found = [0x0001 | imm << 2 | high << 12 for imm in range(32) for high in (0, 1)]  # c.nop
    found += [0x0001 | rd << 7 for rd in range(1, 32)]  # c.addi rd, 0
    found += [0x4001 | imm << 2 for imm in range(32)]  # c.li x0
    found += [0x6001 | imm << 2 for imm in range(1, 32)]  # c.lui x0
    found += [0x8002 | rs2 << 2 for rs2 in range(1, 32)]  # c.mv x0
    found += [0x9002 | rs2 << 2 for rs2 in range(1, 32)]  # c.add x0
    found += [0x0002 | shamt << 2 for shamt in range(32)]  # c.slli x0
    found += [0x0002 | rd << 7 for rd in range(1, 32)]  # c.slli rd, 0
    return found + [0x8001 | kind << 10 | rd << 7 for kind in (0, 1) for rd in range(8)]  # c.srli, c.srai by 0


def test_hints_do_nothing(cpu: Any) -> None:
    for n in range(1, 32):
        cpu.x[n] = n * 0x0123_4567_89AB_CDEF % 2**64
    for word in [*hints(), 0x0100_000F, 0x0000_0033, 0x0FF0_000F, 0x8330_000F]:
        cpu.pc = ORIGIN
        cpu.memory.write(ORIGIN, word.to_bytes(4, "little"))
        before = [int(v) for v in cpu.x]
        cpu.step()
        assert [int(v) for v in cpu.x] == before, hex(word)
        assert int(cpu.pc) == ORIGIN + (4 if word & 3 == 3 else 2), hex(word)


@pytest.mark.parametrize(("privilege", "cause"), [(0, 8), (1, 9), (3, 11)])
def test_environment_calls(cpu: Any, privilege: int, cause: int) -> None:
    cpu.privilege = privilege
    with pytest.raises(Trap) as caught:
        execute(cpu, "ecall")
    assert caught.value.values == (cause, 0)


def test_environment_calls_that_the_platform_serves(cpu: Any) -> None:
    cpu.sbi, cpu.privilege = 1, 1
    execute(cpu, "ecall")
    assert (cpu.reason, int(cpu.pc)) == ("sbi", ORIGIN + 4)
    cpu.privilege = 0
    with pytest.raises(Trap) as caught:
        execute(cpu, "ecall")
    assert caught.value.values == (8, 0)


@pytest.mark.parametrize("text", ["ebreak", "c.ebreak"])
def test_breakpoints(cpu: Any, text: str) -> None:
    with pytest.raises(Trap) as caught:
        execute(cpu, text)
    assert caught.value.values == (3, ORIGIN)
