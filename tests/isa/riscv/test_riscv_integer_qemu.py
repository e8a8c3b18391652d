"""The integer instructions under the reference executor, against QEMU's user-mode emulation."""

import random
import struct
from collections.abc import Callable

import pytest

from polyvisor.adl import Instruction
from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64
from support import qemu_user, riscv_native, riscv_reference
from support.qemu_user import SCRATCH_SIZE, Case, scratch_address

pytestmark = pytest.mark.skipif(qemu_user.QEMU is None, reason=qemu_user.REASON)

EXTENSIONS = ("I", "Zifencei", "M", "A", "C", "Zba", "Zbb", "Zbs")
INTEGER = [i for i in rv64.instructions if i.extension in EXTENSIONS and not i.name.startswith("c.f")]
EDGES = [
    0, 1, 2, 2**64 - 1, 2**64 - 2, 2**63, 2**63 - 1, 2**63 + 1, 2**31, 2**31 - 1, 2**32, 2**32 - 1, 2**31 + 1,
    0xFFFF_FFFF_8000_0000, 0xFFFF_FFFF_7FFF_FFFF, 0x80, 0x7F, 0xFF, 0x8000, 0x7FFF, 63, 64, 31, 32,
    0x0100_0000_0000_0000, 0x00FF_00FF_0000_0001,
]  # fmt: skip
JUMPS = {"jal", "jalr", "c.j", "c.jr", "c.jalr"}
BRANCHES = {"beq", "bne", "blt", "bge", "bltu", "bgeu", "c.beqz", "c.bnez"}
NOT_HERE = {"ecall", "ebreak", "c.ebreak"}
ATOMIC = ("lr", "sc", "amo")


def value(rng: random.Random) -> int:
    """A random register value: often an edge case, often few bits."""
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(EDGES)
    if kind == 1:
        small = rng.getrandbits(rng.randrange(1, 65))
        return small if rng.random() < 0.5 else -small % 2**64
    return rng.getrandbits(64)


def registers(rng: random.Random) -> list[int]:
    x = [value(rng) for _ in range(32)]
    for _ in range(6):  # equal values, for branches and comparisons
        x[rng.randrange(32)] = x[rng.randrange(32)]
    return x


def operands(rng: random.Random, instruction: Instruction) -> dict[str, int] | None:
    """Random operands that the encoding allows and that leave the harness's pointer alone."""
    for _ in range(200):
        encoding = instruction.encoding
        word = rng.getrandbits(8 * encoding.length) & ~encoding.mask | encoding.value
        values = instruction.operand_values(word)
        if instruction.matches(word) and not any(values.get(n) == 31 for n in ("rd", "rs1", "rs2")):
            return values
    return None


def encode(instruction: Instruction, values: dict[str, int]) -> bytes:
    return instruction.encoding.encode(values)


def case(rng: random.Random, instruction: Instruction, number: int) -> Case:
    """A case for the instruction; addresses point into its scratch memory, jumps over one instruction."""
    name = instruction.name
    x = registers(rng)
    scratch = rng.randbytes(SCRATCH_SIZE)
    skipped = struct.pack("<I", 0x00150513)  # addi a0, a0, 1
    if name in BRANCHES or name in ("jal", "c.j"):
        values = operands(rng, instruction)
        assert values is not None
        values["imm"] = instruction.encoding.length + 4
        return Case(encode(instruction, values) + skipped, x, scratch)
    values = operands(rng, instruction)
    assert values is not None
    if name.startswith(ATOMIC):
        values = distinct(rng, instruction, values)
        size = 4 if ".w" in name else 8
        x[values["rs1"]] = scratch_address(number) + size * rng.randrange(SCRATCH_SIZE // size)
    elif "(" in instruction.syntax.text and name not in JUMPS:
        base = values.get("rs1", 2)
        if base == 0:
            base = values["rs1"] = rng.randrange(1, 31)
        x[base] = scratch_address(number) + rng.randrange(SCRATCH_SIZE - 8) - values["imm"]
    return Case(encode(instruction, values), x, scratch)


def distinct(rng: random.Random, instruction: Instruction, values: dict[str, int]) -> dict[str, int]:
    while values["rs1"] == 0:
        found = operands(rng, instruction)
        assert found is not None
        values = found
    return values


def compare(cases: list[Case], describe: Callable[[int], str]) -> None:
    expected = qemu_user.run(cases)
    for tier in (riscv_reference, riscv_native):
        for number, (want, got) in enumerate(zip(expected, tier.run(cases), strict=True)):
            if (want.x, want.scratch) != (got.x, got.scratch):
                both = enumerate(zip(want.x, got.x, strict=True))
                wrong = [f"x{n}: {w:#x} expected, not {g:#x}" for n, (w, g) in both if w != g]
                if want.scratch != got.scratch:
                    wrong.append(f"memory: {want.scratch.hex()} expected, not {got.scratch.hex()}")
                before = {f"x{n}": hex(v) for n, v in enumerate(cases[number].x)}
                pytest.fail(f"{describe(number)} ({tier.__name__}): {'; '.join(wrong)}; before: {before}")


def described(cases: list[Case]) -> Callable[[int], str]:
    return lambda number: f"{rv64.disassemble(int.from_bytes(cases[number].code[:4], 'little'))}"


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_random_operands(extension: str) -> None:
    rng = random.Random(f"integer {extension}")
    chosen = [i for i in INTEGER if i.extension == extension and i.name not in NOT_HERE | {"jalr", "c.jr", "c.jalr"}]
    each = 5 if extension == "A" else 12
    cases: list[Case] = []
    for instruction in chosen:
        for _ in range(each if instruction.encoding.operands else 1):
            cases.append(case(rng, instruction, len(cases)))
    compare(cases, described(cases))


def test_jumps_to_registers() -> None:
    """auipc gives the address to jump to; what is jumped over would change a0."""
    rng = random.Random("jumps")
    cases = []
    for jump in ("jalr ra, 14(a5)", "jalr zero, 15(a5)", "jalr a5, 14(a5)", "jalr a0, 14(a5)"):
        text = f"auipc a5, 0; {jump}; addi a0, a0, 1; c.nop"
        cases.append(Case(assemble(rv64, text).bytes, registers(rng)))
    for jump in ("c.jr a5", "c.jalr a5"):
        text = f"auipc a5, 0; addi a5, a5, 14; {jump}; addi a0, a0, 1; c.nop"
        cases.append(Case(assemble(rv64, text).bytes, registers(rng)))
    text = "auipc ra, 0; addi ra, ra, 14; c.jalr ra; addi a0, a0, 1; c.nop"
    cases.append(Case(assemble(rv64, text).bytes, registers(rng)))
    text = "j 2f; 1: addi a1, a1, 1; j 3f; 2: bnez zero, 1b; beqz zero, 1b; addi a1, a1, 2; 3: nop"
    cases.append(Case(assemble(rv64, text).bytes, registers(rng)))
    text = "li a0, 5; li a1, 0; 1: add a1, a1, a0; addi a0, a0, -1; bgtz a0, 1b"
    cases.append(Case(assemble(rv64, text).bytes, registers(rng)))
    compare(cases, lambda n: f"case {n}")


def test_reserved_then_conditional() -> None:
    """LR and SC that succeed; SC without reservation, after another SC, to another address, of a changed value."""
    rng = random.Random("lr/sc")
    texts = []
    for size in "wd":
        texts += [
            f"lr.{size} a1, (a0); sc.{size} a2, a3, (a0)",
            f"lr.{size}.aq a1, (a0); addi a1, a1, 1; sc.{size}.rl a2, a1, (a0); l{size} a3, 0(a0)",
            f"lr.{size}.aqrl a0, (a0); mv a1, a0",
            f"sc.{size} a2, a3, (a0)",
            f"lr.{size} a1, (a0); sc.{size} a2, a3, (a0); sc.{size} a4, a5, (a0)",
            f"lr.{size} a1, (a0); addi a0, a0, 8; sc.{size} a2, a3, (a0)",
            f"lr.{size} a1, (a0); not a1, a1; s{size} a1, 0(a0); sc.{size} a2, a3, (a0)",
            f"lr.{size} zero, (a0); sc.{size} zero, zero, (a0)",
            f"lr.{size} a1, (a0); lr.{size} a1, (a4); sc.{size} a2, a3, (a0)",
        ]
    cases = []
    for number, text in enumerate(texts):
        x = registers(rng)
        x[10], x[14] = scratch_address(number) + 8, scratch_address(number) + 16
        cases.append(Case(assemble(rv64, text).bytes, x, rng.randbytes(SCRATCH_SIZE)))
    compare(cases, lambda n: texts[n])


def test_corners() -> None:
    """Every pair of edge values, through every instruction with two source registers."""
    two = [i for i in INTEGER if set(i.types) == {"rd", "rs1", "rs2"} and i.extension not in ("A",)]
    rng = random.Random("corners")
    pairs = [(a, b) for a in EDGES for b in EDGES]
    batch = []
    for instruction in two:
        for a, b in [*rng.sample(pairs, 40), (2**63, 2**64 - 1), (2**31, 2**64 - 1), (5, 0), (2**63, 0)]:
            x = [0] * 32
            x[11], x[12] = a, b
            batch.append(Case(encode(instruction, {"rd": 10, "rs1": 11, "rs2": 12}), x))
    compare(batch, described(batch))


def test_single_bits() -> None:
    """Every instruction of one source register, on edge values and on each single bit."""
    one = [i for i in INTEGER if set(i.types) == {"rd", "rs1"} and i.extension not in ("A",) and i.name not in JUMPS]
    batch = []
    for instruction in one:
        for a in [*EDGES, *(1 << n for n in range(64)), *(2**64 - 1 << n & 2**64 - 1 for n in range(0, 64, 5))]:
            if instruction.name == "ctzw" and a % 2**32 == 0:
                continue  # QEMU 7 looks into the high half there; see test_riscv_integer_corners
            x = [0] * 32
            x[11] = a
            batch.append(Case(encode(instruction, {"rd": 10, "rs1": 11}), x))
    compare(batch, described(batch))


def test_constants() -> None:
    """li gives every constant, as computed by QEMU."""
    rng = random.Random("li")
    constants = [*EDGES, *(rng.getrandbits(rng.randrange(1, 65)) for _ in range(200)), 0x800, 0x7FF, 0x7FFF_F800]
    constants += [-c for c in constants if c < 2**63]
    cases = [Case(assemble(rv64, f"li a0, {c:#x}").bytes) for c in constants]
    for outcome, constant in zip(qemu_user.run(cases), constants, strict=True):
        assert outcome.x[10] == constant % 2**64, hex(constant)
    assert all(len(c.code) <= 32 for c in cases)
