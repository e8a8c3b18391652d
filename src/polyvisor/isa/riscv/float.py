"""F: single-precision floating point (Unprivileged Architecture, chapter "F")."""

from polyvisor.adl import i32, i64, sext, u32, u64

from .architecture import rv64
from .floating import (
    SINGLE,
    add,
    class_mask,
    div,
    equal,
    fma,
    from_integer,
    less,
    less_equal,
    min_max,
    mul,
    negated,
    read,
    reads_f,
    sqrt,
    sub,
    to_integer,
    with_sign,
    write,
    writes_f,
)


@rv64.instruction("imm[11:0] rs1:5 010 rd:5 0000111", "flw {rd:f}, {imm}({rs1})", extension="F")
def flw(cpu, rd, rs1, imm: i32):
    """Load."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, u64(cpu.load(u32, cpu.x[rs1] + u64(imm))))


@rv64.instruction("imm[11:5] rs2:5 rs1:5 010 imm[4:0] 0100111", "fsw {rs2:f}, {imm}({rs1})", extension="F")
def fsw(cpu, rs1, rs2, imm: i32):
    """Store the low half of the register, boxed or not."""
    reads_f(cpu)
    cpu.store(u32, cpu.x[rs1] + u64(imm), u32(cpu.f[rs2]))


@rv64.instruction(
    "rs3:5 00 rs2:5 rs1:5 rm:3 rd:5 1000011", "fmadd.s {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="F"
)
def fmadd_s(cpu, rd, rs1, rs2, rs3, rm):
    """rs1 * rs2 + rs3, rounded once."""
    writes_f(cpu)
    a = read(cpu, SINGLE, rs1)
    c = read(cpu, SINGLE, rs3)
    write(cpu, SINGLE, rd, fma(cpu, SINGLE, a, read(cpu, SINGLE, rs2), c, rm))


@rv64.instruction(
    "rs3:5 00 rs2:5 rs1:5 rm:3 rd:5 1000111", "fmsub.s {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="F"
)
def fmsub_s(cpu, rd, rs1, rs2, rs3, rm):
    """rs1 * rs2 - rs3, rounded once."""
    writes_f(cpu)
    a = read(cpu, SINGLE, rs1)
    c = negated(SINGLE, read(cpu, SINGLE, rs3))
    write(cpu, SINGLE, rd, fma(cpu, SINGLE, a, read(cpu, SINGLE, rs2), c, rm))


@rv64.instruction(
    "rs3:5 00 rs2:5 rs1:5 rm:3 rd:5 1001011", "fnmsub.s {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="F"
)
def fnmsub_s(cpu, rd, rs1, rs2, rs3, rm):
    """-(rs1 * rs2) + rs3, rounded once."""
    writes_f(cpu)
    a = negated(SINGLE, read(cpu, SINGLE, rs1))
    c = read(cpu, SINGLE, rs3)
    write(cpu, SINGLE, rd, fma(cpu, SINGLE, a, read(cpu, SINGLE, rs2), c, rm))


@rv64.instruction(
    "rs3:5 00 rs2:5 rs1:5 rm:3 rd:5 1001111", "fnmadd.s {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="F"
)
def fnmadd_s(cpu, rd, rs1, rs2, rs3, rm):
    """-(rs1 * rs2) - rs3, rounded once."""
    writes_f(cpu)
    a = negated(SINGLE, read(cpu, SINGLE, rs1))
    c = negated(SINGLE, read(cpu, SINGLE, rs3))
    write(cpu, SINGLE, rd, fma(cpu, SINGLE, a, read(cpu, SINGLE, rs2), c, rm))


@rv64.instruction("0000000 rs2:5 rs1:5 rm:3 rd:5 1010011", "fadd.s {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="F")
def fadd_s(cpu, rd, rs1, rs2, rm):
    """rs1 + rs2."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, add(cpu, SINGLE, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2), rm))


@rv64.instruction("0000100 rs2:5 rs1:5 rm:3 rd:5 1010011", "fsub.s {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="F")
def fsub_s(cpu, rd, rs1, rs2, rm):
    """rs1 - rs2."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, sub(cpu, SINGLE, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2), rm))


@rv64.instruction("0001000 rs2:5 rs1:5 rm:3 rd:5 1010011", "fmul.s {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="F")
def fmul_s(cpu, rd, rs1, rs2, rm):
    """rs1 * rs2."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, mul(cpu, SINGLE, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2), rm))


@rv64.instruction("0001100 rs2:5 rs1:5 rm:3 rd:5 1010011", "fdiv.s {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="F")
def fdiv_s(cpu, rd, rs1, rs2, rm):
    """rs1 / rs2."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, div(cpu, SINGLE, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2), rm))


@rv64.instruction("0101100 00000 rs1:5 rm:3 rd:5 1010011", "fsqrt.s {rd:f}, {rs1:f}, {rm}", extension="F")
def fsqrt_s(cpu, rd, rs1, rm):
    """The square root of rs1."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, sqrt(cpu, SINGLE, read(cpu, SINGLE, rs1), rm))


@rv64.instruction("0010000 rs2:5 rs1:5 000 rd:5 1010011", "fsgnj.s {rd:f}, {rs1:f}, {rs2:f}", extension="F")
def fsgnj_s(cpu, rd, rs1, rs2):
    """rs1 with the sign of rs2."""
    writes_f(cpu)
    a = read(cpu, SINGLE, rs1)
    b = read(cpu, SINGLE, rs2)
    write(cpu, SINGLE, rd, with_sign(SINGLE, a, b))


@rv64.instruction("0010000 rs2:5 rs1:5 001 rd:5 1010011", "fsgnjn.s {rd:f}, {rs1:f}, {rs2:f}", extension="F")
def fsgnjn_s(cpu, rd, rs1, rs2):
    """rs1 with the opposite of the sign of rs2."""
    writes_f(cpu)
    a = read(cpu, SINGLE, rs1)
    b = read(cpu, SINGLE, rs2)
    write(cpu, SINGLE, rd, with_sign(SINGLE, a, negated(SINGLE, b)))


@rv64.instruction("0010000 rs2:5 rs1:5 010 rd:5 1010011", "fsgnjx.s {rd:f}, {rs1:f}, {rs2:f}", extension="F")
def fsgnjx_s(cpu, rd, rs1, rs2):
    """rs1 with the exclusive or of both signs."""
    writes_f(cpu)
    a = read(cpu, SINGLE, rs1)
    b = read(cpu, SINGLE, rs2)
    write(cpu, SINGLE, rd, with_sign(SINGLE, a, b ^ a))


@rv64.instruction("0010100 rs2:5 rs1:5 000 rd:5 1010011", "fmin.s {rd:f}, {rs1:f}, {rs2:f}", extension="F")
def fmin_s(cpu, rd, rs1, rs2):
    """The smaller number; a NaN counts only if both are."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, min_max(cpu, SINGLE, False, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2)))


@rv64.instruction("0010100 rs2:5 rs1:5 001 rd:5 1010011", "fmax.s {rd:f}, {rs1:f}, {rs2:f}", extension="F")
def fmax_s(cpu, rd, rs1, rs2):
    """The greater number; a NaN counts only if both are."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, min_max(cpu, SINGLE, True, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2)))


@rv64.instruction("1100000 00000 rs1:5 rm:3 rd:5 1010011", "fcvt.w.s {rd}, {rs1:f}, {rm}", extension="F")
def fcvt_w_s(cpu, rd, rs1, rm):
    """rs1 as a signed 32-bit integer."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, SINGLE, i32, read(cpu, SINGLE, rs1), rm)


@rv64.instruction("1100000 00001 rs1:5 rm:3 rd:5 1010011", "fcvt.wu.s {rd}, {rs1:f}, {rm}", extension="F")
def fcvt_wu_s(cpu, rd, rs1, rm):
    """rs1 as an unsigned 32-bit integer, sign-extended."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, SINGLE, u32, read(cpu, SINGLE, rs1), rm)


@rv64.instruction("1100000 00010 rs1:5 rm:3 rd:5 1010011", "fcvt.l.s {rd}, {rs1:f}, {rm}", extension="F")
def fcvt_l_s(cpu, rd, rs1, rm):
    """rs1 as a signed 64-bit integer."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, SINGLE, i64, read(cpu, SINGLE, rs1), rm)


@rv64.instruction("1100000 00011 rs1:5 rm:3 rd:5 1010011", "fcvt.lu.s {rd}, {rs1:f}, {rm}", extension="F")
def fcvt_lu_s(cpu, rd, rs1, rm):
    """rs1 as an unsigned 64-bit integer."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, SINGLE, u64, read(cpu, SINGLE, rs1), rm)


@rv64.instruction("1101000 00000 rs1:5 rm:3 rd:5 1010011", "fcvt.s.w {rd:f}, {rs1}, {rm}", extension="F")
def fcvt_s_w(cpu, rd, rs1, rm):
    """The signed 32-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, from_integer(cpu, SINGLE, i32, cpu.x[rs1], rm))


@rv64.instruction("1101000 00001 rs1:5 rm:3 rd:5 1010011", "fcvt.s.wu {rd:f}, {rs1}, {rm}", extension="F")
def fcvt_s_wu(cpu, rd, rs1, rm):
    """The unsigned 32-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, from_integer(cpu, SINGLE, u32, cpu.x[rs1], rm))


@rv64.instruction("1101000 00010 rs1:5 rm:3 rd:5 1010011", "fcvt.s.l {rd:f}, {rs1}, {rm}", extension="F")
def fcvt_s_l(cpu, rd, rs1, rm):
    """The signed 64-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, from_integer(cpu, SINGLE, i64, cpu.x[rs1], rm))


@rv64.instruction("1101000 00011 rs1:5 rm:3 rd:5 1010011", "fcvt.s.lu {rd:f}, {rs1}, {rm}", extension="F")
def fcvt_s_lu(cpu, rd, rs1, rm):
    """The unsigned 64-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, from_integer(cpu, SINGLE, u64, cpu.x[rs1], rm))


@rv64.instruction("1110000 00000 rs1:5 000 rd:5 1010011", "fmv.x.w {rd}, {rs1:f}", extension="F")
def fmv_x_w(cpu, rd, rs1):
    """The low half of the register, boxed or not, sign-extended."""
    reads_f(cpu)
    cpu.x[rd] = sext(cpu.f[rs1], 32)


@rv64.instruction("1111000 00000 rs1:5 000 rd:5 1010011", "fmv.w.x {rd:f}, {rs1}", extension="F")
def fmv_w_x(cpu, rd, rs1):
    """The bits of the integer register, boxed."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, cpu.x[rs1] & 0xFFFF_FFFF)


@rv64.instruction("1010000 rs2:5 rs1:5 010 rd:5 1010011", "feq.s {rd}, {rs1:f}, {rs2:f}", extension="F")
def feq_s(cpu, rd, rs1, rs2):
    """1 if rs1 == rs2, else 0; quiet."""
    reads_f(cpu)
    cpu.x[rd] = equal(cpu, SINGLE, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2))


@rv64.instruction("1010000 rs2:5 rs1:5 001 rd:5 1010011", "flt.s {rd}, {rs1:f}, {rs2:f}", extension="F")
def flt_s(cpu, rd, rs1, rs2):
    """1 if rs1 < rs2, else 0; signaling."""
    reads_f(cpu)
    cpu.x[rd] = less(cpu, SINGLE, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2))


@rv64.instruction("1010000 rs2:5 rs1:5 000 rd:5 1010011", "fle.s {rd}, {rs1:f}, {rs2:f}", extension="F")
def fle_s(cpu, rd, rs1, rs2):
    """1 if rs1 <= rs2, else 0; signaling."""
    reads_f(cpu)
    cpu.x[rd] = less_equal(cpu, SINGLE, read(cpu, SINGLE, rs1), read(cpu, SINGLE, rs2))


@rv64.instruction("1110000 00000 rs1:5 001 rd:5 1010011", "fclass.s {rd}, {rs1:f}", extension="F")
def fclass_s(cpu, rd, rs1):
    """The class of rs1, as one of ten bits."""
    reads_f(cpu)
    cpu.x[rd] = class_mask(SINGLE, read(cpu, SINGLE, rs1))
