"""What assembly programmers write beside the instructions (RISC-V Assembly Programmer's Manual)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .architecture import rv64

if TYPE_CHECKING:
    from polyvisor.adl.assembly import Place

# Modifiers of symbols: %hi and %lo are the parts of an absolute address, for lui and an instruction with a 12-bit
# immediate; %pcrel_lo names the auipc that has the %pcrel_hi.


def low_part(value: int) -> int:
    """The signed low 12 bits, as addi adds them."""
    return (value & 0xFFF ^ 0x800) - 0x800


def high_part(value: int) -> int:
    """What lui loads, so that adding the low part gives the value."""
    return value - low_part(value) >> 12 & 0xFFFFF


def absolute_high(value: int, place: Place) -> int:
    """%hi: the high part of an absolute address."""
    if not -(1 << 31) <= value < 1 << 32:
        raise ValueError(f"%hi({value:#x}): the address does not fit 32 bits")
    return high_part(value)


def pcrel_high(value: int, place: Place) -> int:
    """%pcrel_hi: the high part of the distance from here."""
    distance = value - place.address
    if not -(1 << 31) <= distance - low_part(distance) < 1 << 31:
        raise ValueError(f"{value:#x} is too far away: {distance:#x} bytes")
    place.notes[place.address] = distance
    return high_part(distance)


def pcrel_low(value: int, place: Place) -> int:
    """%pcrel_lo: the low part that belongs to the auipc at a label."""
    if value not in place.notes:
        raise ValueError(f"there is no %pcrel_hi at {value:#x}")
    return low_part(place.notes[value])


rv64.modifiers.update(
    hi=absolute_high,
    lo=lambda value, place: low_part(value),
    pcrel_hi=pcrel_high,
    pcrel_lo=pcrel_low,
)


def load_constant(place: Place, rd: str, imm: str) -> str:
    """The instructions of li."""
    from polyvisor.adl.assembly import evaluate

    value = evaluate(imm, place)
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"{value:#x} does not fit 64 bits")
    value &= (1 << 64) - 1
    return "; ".join(constant(rd, value - (1 << 64) if value >> 63 else value))


def constant(rd: str, value: int) -> list[str]:
    """The instructions that put ``value`` (of 64 bits, signed) in ``rd``: 32 bits, then shift in 12 at a time."""
    low = low_part(value)
    if value == low:
        return [f"addi {rd}, zero, {value}"]
    if -(1 << 31) <= value < 1 << 31:
        upper = f"lui {rd}, {value - low >> 12 & 0xFFFFF}"
        return [upper] if low == 0 else [upper, f"addiw {rd}, {rd}, {low}"]
    rest = value - low
    shift = (rest & -rest).bit_length() - 1
    made = [*constant(rd, rest >> shift), f"slli {rd}, {rd}, {shift}"]
    return made if low == 0 else [*made, f"addi {rd}, {rd}, {low}"]


rv64.pseudo_instruction("li {rd}, {imm}", load_constant)

for syntax, expansion in (
    ("nop", "addi zero, zero, 0"),
    ("mv {rd}, {rs1}", "addi {rd}, {rs1}, 0"),
    ("not {rd}, {rs1}", "xori {rd}, {rs1}, -1"),
    ("neg {rd}, {rs2}", "sub {rd}, zero, {rs2}"),
    ("negw {rd}, {rs2}", "subw {rd}, zero, {rs2}"),
    ("sext.w {rd}, {rs1}", "addiw {rd}, {rs1}, 0"),
    ("zext.b {rd}, {rs1}", "andi {rd}, {rs1}, 255"),
    ("zext.w {rd}, {rs1}", "add.uw {rd}, {rs1}, zero"),
    ("seqz {rd}, {rs1}", "sltiu {rd}, {rs1}, 1"),
    ("snez {rd}, {rs2}", "sltu {rd}, zero, {rs2}"),
    ("sltz {rd}, {rs1}", "slt {rd}, {rs1}, zero"),
    ("sgtz {rd}, {rs2}", "slt {rd}, zero, {rs2}"),
    ("sgt {rd}, {rs1}, {rs2}", "slt {rd}, {rs2}, {rs1}"),
    ("sgtu {rd}, {rs1}, {rs2}", "sltu {rd}, {rs2}, {rs1}"),
    # Branches
    ("beqz {rs1}, {target}", "beq {rs1}, zero, {target}"),
    ("bnez {rs1}, {target}", "bne {rs1}, zero, {target}"),
    ("blez {rs1}, {target}", "bge zero, {rs1}, {target}"),
    ("bgez {rs1}, {target}", "bge {rs1}, zero, {target}"),
    ("bltz {rs1}, {target}", "blt {rs1}, zero, {target}"),
    ("bgtz {rs1}, {target}", "blt zero, {rs1}, {target}"),
    ("bgt {rs1}, {rs2}, {target}", "blt {rs2}, {rs1}, {target}"),
    ("ble {rs1}, {rs2}, {target}", "bge {rs2}, {rs1}, {target}"),
    ("bgtu {rs1}, {rs2}, {target}", "bltu {rs2}, {rs1}, {target}"),
    ("bleu {rs1}, {rs2}, {target}", "bgeu {rs2}, {rs1}, {target}"),
    # Jumps and calls
    ("j {target}", "jal zero, {target}"),
    ("jal {target}", "jal ra, {target}"),
    ("jr {rs1}", "jalr zero, 0({rs1})"),
    ("jr {imm}({rs1})", "jalr zero, {imm}({rs1})"),
    ("jalr {rs1}", "jalr ra, 0({rs1})"),
    ("jalr {imm}({rs1})", "jalr ra, {imm}({rs1})"),
    ("jalr {rd}, {rs1}", "jalr {rd}, 0({rs1})"),
    ("jalr {rd}, ({rs1})", "jalr {rd}, 0({rs1})"),
    ("jalr {rd}, {rs1}, {imm}", "jalr {rd}, {imm}({rs1})"),
    ("ret", "jalr zero, 0(ra)"),
    ("call {target}", "auipc ra, %pcrel_hi({target}); jalr ra, %pcrel_lo(.-4)(ra)"),
    ("tail {target}", "auipc t1, %pcrel_hi({target}); jalr zero, %pcrel_lo(.-4)(t1)"),
    ("la {rd}, {target}", "auipc {rd}, %pcrel_hi({target}); addi {rd}, {rd}, %pcrel_lo(.-4)"),
    ("lla {rd}, {target}", "auipc {rd}, %pcrel_hi({target}); addi {rd}, {rd}, %pcrel_lo(.-4)"),
    ("fence", "fence iorw, iorw"),
    # Shifts by a constant, with the names of shifts by a register
    ("sll {rd}, {rs1}, {shamt}", "slli {rd}, {rs1}, {shamt}"),
    ("srl {rd}, {rs1}, {shamt}", "srli {rd}, {rs1}, {shamt}"),
    ("sra {rd}, {rs1}, {shamt}", "srai {rd}, {rs1}, {shamt}"),
    # Control and status registers
    ("csrr {rd}, {csr}", "csrrs {rd}, {csr}, zero"),
    ("csrw {csr}, {rs1}", "csrrw zero, {csr}, {rs1}"),
    ("csrs {csr}, {rs1}", "csrrs zero, {csr}, {rs1}"),
    ("csrc {csr}, {rs1}", "csrrc zero, {csr}, {rs1}"),
    ("csrwi {csr}, {imm}", "csrrwi zero, {csr}, {imm}"),
    ("csrsi {csr}, {imm}", "csrrsi zero, {csr}, {imm}"),
    ("csrci {csr}, {imm}", "csrrci zero, {csr}, {imm}"),
    ("rdcycle {rd}", "csrrs {rd}, 0xc00, zero"),
    ("rdtime {rd}", "csrrs {rd}, 0xc01, zero"),
    ("rdinstret {rd}", "csrrs {rd}, 0xc02, zero"),
    ("frflags {rd}", "csrrs {rd}, 0x001, zero"),
    ("fsflags {rs1}", "csrrw zero, 0x001, {rs1}"),
    ("fsflags {rd}, {rs1}", "csrrw {rd}, 0x001, {rs1}"),
    ("fsflagsi {imm}", "csrrwi zero, 0x001, {imm}"),
    ("frrm {rd}", "csrrs {rd}, 0x002, zero"),
    ("fsrm {rs1}", "csrrw zero, 0x002, {rs1}"),
    ("fsrm {rd}, {rs1}", "csrrw {rd}, 0x002, {rs1}"),
    ("fsrmi {imm}", "csrrwi zero, 0x002, {imm}"),
    ("frcsr {rd}", "csrrs {rd}, 0x003, zero"),
    ("fscsr {rs1}", "csrrw zero, 0x003, {rs1}"),
    ("fscsr {rd}, {rs1}", "csrrw {rd}, 0x003, {rs1}"),
    ("sfence.vma", "sfence.vma zero, zero"),
    ("sfence.vma {rs1}", "sfence.vma {rs1}, zero"),
):
    rv64.pseudo_instruction(syntax, expansion)

for size in ("s", "d"):
    for name, full in (("fmv", "fsgnj"), ("fneg", "fsgnjn"), ("fabs", "fsgnjx")):
        rv64.pseudo_instruction(f"{name}.{size} {{rd:f}}, {{rs1:f}}", f"{full}.{size} {{rd}}, {{rs1}}, {{rs1}}")

# Loads and stores: an offset of 0 may be left out; a load may name a symbol.
for name in ("lb", "lh", "lw", "ld", "lbu", "lhu", "lwu"):
    rv64.pseudo_instruction(f"{name} {{rd}}, ({{rs1}})", f"{name} {{rd}}, 0({{rs1}})")
    rv64.pseudo_instruction(
        f"{name} {{rd}}, {{target}}", f"auipc {{rd}}, %pcrel_hi({{target}}); {name} {{rd}}, %pcrel_lo(.-4)({{rd}})"
    )
for name in ("sb", "sh", "sw", "sd"):
    rv64.pseudo_instruction(f"{name} {{rs2}}, ({{rs1}})", f"{name} {{rs2}}, 0({{rs1}})")
for name in ("flw", "fld"):
    rv64.pseudo_instruction(f"{name} {{rd:f}}, ({{rs1}})", f"{name} {{rd}}, 0({{rs1}})")
for name in ("fsw", "fsd"):
    rv64.pseudo_instruction(f"{name} {{rs2:f}}, ({{rs1}})", f"{name} {{rs2}}, 0({{rs1}})")
