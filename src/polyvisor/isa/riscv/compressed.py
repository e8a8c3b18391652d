"""C: compressed instructions, the integer ones (Unprivileged ISA, "C" Standard Extension, RV64C).

Each expands to an instruction of the base.  Encodings the manual reserves are excluded by ``where``; those it calls
HINTs need nothing: they write the zero register, or a register with its own value.
"""

from functools import partial

from polyvisor.adl import i64

from .architecture import rv64
from .base import (
    add,
    addi,
    addiw,
    addw,
    and_,
    andi,
    beq,
    bne,
    ebreak,
    jal,
    jalr,
    ld,
    lui,
    lw,
    or_,
    sd,
    slli,
    srai,
    srli,
    sub,
    subw,
    sw,
    xor,
)

instruction = partial(rv64.instruction, extension="C")

ZERO, RA, SP = 0, 1, 2


# Stack-Pointer-Based Loads and Stores: offsets are unsigned multiples of the size


@instruction("010 imm[5] rd:5 imm[4:2|7:6] 10", "c.lwsp {rd}, {imm}(sp)", where="rd != 0")
def c_lwsp(cpu, rd, imm):
    lw(cpu, rd, SP, i64(imm))


@instruction("011 imm[5] rd:5 imm[4:3|8:6] 10", "c.ldsp {rd}, {imm}(sp)", where="rd != 0")
def c_ldsp(cpu, rd, imm):
    ld(cpu, rd, SP, i64(imm))


@instruction("110 imm[5:2|7:6] rs2:5 10", "c.swsp {rs2}, {imm}(sp)")
def c_swsp(cpu, rs2, imm):
    sw(cpu, SP, rs2, i64(imm))


@instruction("111 imm[5:3|8:6] rs2:5 10", "c.sdsp {rs2}, {imm}(sp)")
def c_sdsp(cpu, rs2, imm):
    sd(cpu, SP, rs2, i64(imm))


# Register-Based Loads and Stores


@instruction("010 imm[5:3] rs1':3 imm[2|6] rd':3 00", "c.lw {rd}, {imm}({rs1})")
def c_lw(cpu, rd, rs1, imm):
    lw(cpu, rd, rs1, i64(imm))


@instruction("011 imm[5:3] rs1':3 imm[7:6] rd':3 00", "c.ld {rd}, {imm}({rs1})")
def c_ld(cpu, rd, rs1, imm):
    ld(cpu, rd, rs1, i64(imm))


@instruction("110 imm[5:3] rs1':3 imm[2|6] rs2':3 00", "c.sw {rs2}, {imm}({rs1})")
def c_sw(cpu, rs1, rs2, imm):
    sw(cpu, rs1, rs2, i64(imm))


@instruction("111 imm[5:3] rs1':3 imm[7:6] rs2':3 00", "c.sd {rs2}, {imm}({rs1})")
def c_sd(cpu, rs1, rs2, imm):
    sd(cpu, rs1, rs2, i64(imm))


# Control Transfer Instructions


@instruction("101 imm[11|4|9:8|10|6|7|3:1|5] 01", "c.j {imm:pc}")
def c_j(cpu, imm: i64):
    jal(cpu, ZERO, imm)


@instruction("100 0 rs1:5 00000 10", "c.jr {rs1}", where="rs1 != 0")
def c_jr(cpu, rs1):
    jalr(cpu, ZERO, rs1, i64(0))


@instruction("100 1 rs1:5 00000 10", "c.jalr {rs1}", where="rs1 != 0")
def c_jalr(cpu, rs1):
    jalr(cpu, RA, rs1, i64(0))


@instruction("110 imm[8|4:3] rs1':3 imm[7:6|2:1|5] 01", "c.beqz {rs1}, {imm:pc}")
def c_beqz(cpu, rs1, imm: i64):
    beq(cpu, rs1, ZERO, imm)


@instruction("111 imm[8|4:3] rs1':3 imm[7:6|2:1|5] 01", "c.bnez {rs1}, {imm:pc}")
def c_bnez(cpu, rs1, imm: i64):
    bne(cpu, rs1, ZERO, imm)


# Integer Constant-Generation Instructions


@instruction("010 imm[5] rd:5 imm[4:0] 01", "c.li {rd}, {imm}")
def c_li(cpu, rd, imm: i64):
    addi(cpu, rd, ZERO, imm)


@instruction("011 imm[17] rd:5 imm[16:12] 01", "c.lui {rd}, {imm:upper}", where="rd != 2 and imm != 0")
def c_lui(cpu, rd, imm: i64):
    lui(cpu, rd, imm)


# Integer Register-Immediate Operations


@instruction("000 imm[5] rd:5 imm[4:0] 01", "c.addi {rd}, {imm}", where="rd != 0")
def c_addi(cpu, rd, imm: i64):
    addi(cpu, rd, rd, imm)


@instruction("001 imm[5] rd:5 imm[4:0] 01", "c.addiw {rd}, {imm}", where="rd != 0")
def c_addiw(cpu, rd, imm: i64):
    addiw(cpu, rd, rd, imm)


@instruction("011 imm[9] 00010 imm[4|6|8:7|5] 01", "c.addi16sp sp, {imm}", where="imm != 0")
def c_addi16sp(cpu, imm: i64):
    addi(cpu, SP, SP, imm)


@instruction("000 imm[5:4|9:6|2|3] rd':3 00", "c.addi4spn {rd}, sp, {imm}", where="imm != 0")
def c_addi4spn(cpu, rd, imm):
    addi(cpu, rd, SP, i64(imm))


@instruction("000 shamt[5] rd:5 shamt[4:0] 10", "c.slli {rd}, {shamt}")
def c_slli(cpu, rd, shamt):
    slli(cpu, rd, rd, shamt)


@instruction("100 shamt[5] 00 rd':3 shamt[4:0] 01", "c.srli {rd}, {shamt}")
def c_srli(cpu, rd, shamt):
    srli(cpu, rd, rd, shamt)


@instruction("100 shamt[5] 01 rd':3 shamt[4:0] 01", "c.srai {rd}, {shamt}")
def c_srai(cpu, rd, shamt):
    srai(cpu, rd, rd, shamt)


@instruction("100 imm[5] 10 rd':3 imm[4:0] 01", "c.andi {rd}, {imm}")
def c_andi(cpu, rd, imm: i64):
    andi(cpu, rd, rd, imm)


# Integer Register-Register Operations


@instruction("100 0 rd:5 rs2:5 10", "c.mv {rd}, {rs2}", where="rs2 != 0")
def c_mv(cpu, rd, rs2):
    add(cpu, rd, ZERO, rs2)


@instruction("100 1 rd:5 rs2:5 10", "c.add {rd}, {rs2}", where="rs2 != 0")
def c_add(cpu, rd, rs2):
    add(cpu, rd, rd, rs2)


@instruction("100 0 11 rd':3 11 rs2':3 01", "c.and {rd}, {rs2}")
def c_and(cpu, rd, rs2):
    and_(cpu, rd, rd, rs2)


@instruction("100 0 11 rd':3 10 rs2':3 01", "c.or {rd}, {rs2}")
def c_or(cpu, rd, rs2):
    or_(cpu, rd, rd, rs2)


@instruction("100 0 11 rd':3 01 rs2':3 01", "c.xor {rd}, {rs2}")
def c_xor(cpu, rd, rs2):
    xor(cpu, rd, rd, rs2)


@instruction("100 0 11 rd':3 00 rs2':3 01", "c.sub {rd}, {rs2}")
def c_sub(cpu, rd, rs2):
    sub(cpu, rd, rd, rs2)


@instruction("100 1 11 rd':3 01 rs2':3 01", "c.addw {rd}, {rs2}")
def c_addw(cpu, rd, rs2):
    addw(cpu, rd, rd, rs2)


@instruction("100 1 11 rd':3 00 rs2':3 01", "c.subw {rd}, {rs2}")
def c_subw(cpu, rd, rs2):
    subw(cpu, rd, rd, rs2)


# NOP and Breakpoint


@instruction("000 0 00000 00000 01", "c.nop")
def c_nop(cpu):
    pass


@instruction("000 imm[5] 00000 imm[4:0] 01", "c.nop {imm}", where="imm != 0")
def c_nop_hint(cpu, imm: i64):
    pass


@instruction("100 1 00000 00000 10", "c.ebreak")
def c_ebreak(cpu):
    ebreak(cpu)
