"""D: double-precision floating point (Unprivileged Architecture, chapter "D")."""

from polyvisor.adl import i32, i64, u32, u64

from .architecture import rv64
from .floating import (
    DOUBLE,
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
    narrow,
    negated,
    read,
    reads_f,
    sqrt,
    sub,
    to_integer,
    widen,
    with_sign,
    write,
    writes_f,
)


@rv64.instruction("imm[11:0] rs1:5 011 rd:5 0000111", "fld {rd:f}, {imm}({rs1})", extension="D")
def fld(cpu, rd, rs1, imm: i32):
    """Load."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, cpu.load(u64, cpu.x[rs1] + u64(imm)))


@rv64.instruction("imm[11:5] rs2:5 rs1:5 011 imm[4:0] 0100111", "fsd {rs2:f}, {imm}({rs1})", extension="D")
def fsd(cpu, rs1, rs2, imm: i32):
    """Store."""
    reads_f(cpu)
    cpu.store(u64, cpu.x[rs1] + u64(imm), cpu.f[rs2])


@rv64.instruction(
    "rs3:5 01 rs2:5 rs1:5 rm:3 rd:5 1000011", "fmadd.d {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="D"
)
def fmadd_d(cpu, rd, rs1, rs2, rs3, rm):
    """rs1 * rs2 + rs3, rounded once."""
    writes_f(cpu)
    a = read(cpu, DOUBLE, rs1)
    c = read(cpu, DOUBLE, rs3)
    write(cpu, DOUBLE, rd, fma(cpu, DOUBLE, a, read(cpu, DOUBLE, rs2), c, rm))


@rv64.instruction(
    "rs3:5 01 rs2:5 rs1:5 rm:3 rd:5 1000111", "fmsub.d {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="D"
)
def fmsub_d(cpu, rd, rs1, rs2, rs3, rm):
    """rs1 * rs2 - rs3, rounded once."""
    writes_f(cpu)
    a = read(cpu, DOUBLE, rs1)
    c = negated(DOUBLE, read(cpu, DOUBLE, rs3))
    write(cpu, DOUBLE, rd, fma(cpu, DOUBLE, a, read(cpu, DOUBLE, rs2), c, rm))


@rv64.instruction(
    "rs3:5 01 rs2:5 rs1:5 rm:3 rd:5 1001011", "fnmsub.d {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="D"
)
def fnmsub_d(cpu, rd, rs1, rs2, rs3, rm):
    """-(rs1 * rs2) + rs3, rounded once."""
    writes_f(cpu)
    a = negated(DOUBLE, read(cpu, DOUBLE, rs1))
    c = read(cpu, DOUBLE, rs3)
    write(cpu, DOUBLE, rd, fma(cpu, DOUBLE, a, read(cpu, DOUBLE, rs2), c, rm))


@rv64.instruction(
    "rs3:5 01 rs2:5 rs1:5 rm:3 rd:5 1001111", "fnmadd.d {rd:f}, {rs1:f}, {rs2:f}, {rs3:f}, {rm}", extension="D"
)
def fnmadd_d(cpu, rd, rs1, rs2, rs3, rm):
    """-(rs1 * rs2) - rs3, rounded once."""
    writes_f(cpu)
    a = negated(DOUBLE, read(cpu, DOUBLE, rs1))
    c = negated(DOUBLE, read(cpu, DOUBLE, rs3))
    write(cpu, DOUBLE, rd, fma(cpu, DOUBLE, a, read(cpu, DOUBLE, rs2), c, rm))


@rv64.instruction("0000001 rs2:5 rs1:5 rm:3 rd:5 1010011", "fadd.d {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="D")
def fadd_d(cpu, rd, rs1, rs2, rm):
    """rs1 + rs2."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, add(cpu, DOUBLE, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2), rm))


@rv64.instruction("0000101 rs2:5 rs1:5 rm:3 rd:5 1010011", "fsub.d {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="D")
def fsub_d(cpu, rd, rs1, rs2, rm):
    """rs1 - rs2."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, sub(cpu, DOUBLE, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2), rm))


@rv64.instruction("0001001 rs2:5 rs1:5 rm:3 rd:5 1010011", "fmul.d {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="D")
def fmul_d(cpu, rd, rs1, rs2, rm):
    """rs1 * rs2."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, mul(cpu, DOUBLE, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2), rm))


@rv64.instruction("0001101 rs2:5 rs1:5 rm:3 rd:5 1010011", "fdiv.d {rd:f}, {rs1:f}, {rs2:f}, {rm}", extension="D")
def fdiv_d(cpu, rd, rs1, rs2, rm):
    """rs1 / rs2."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, div(cpu, DOUBLE, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2), rm))


@rv64.instruction("0101101 00000 rs1:5 rm:3 rd:5 1010011", "fsqrt.d {rd:f}, {rs1:f}, {rm}", extension="D")
def fsqrt_d(cpu, rd, rs1, rm):
    """The square root of rs1."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, sqrt(cpu, DOUBLE, read(cpu, DOUBLE, rs1), rm))


@rv64.instruction("0010001 rs2:5 rs1:5 000 rd:5 1010011", "fsgnj.d {rd:f}, {rs1:f}, {rs2:f}", extension="D")
def fsgnj_d(cpu, rd, rs1, rs2):
    """rs1 with the sign of rs2."""
    writes_f(cpu)
    a = read(cpu, DOUBLE, rs1)
    b = read(cpu, DOUBLE, rs2)
    write(cpu, DOUBLE, rd, with_sign(DOUBLE, a, b))


@rv64.instruction("0010001 rs2:5 rs1:5 001 rd:5 1010011", "fsgnjn.d {rd:f}, {rs1:f}, {rs2:f}", extension="D")
def fsgnjn_d(cpu, rd, rs1, rs2):
    """rs1 with the opposite of the sign of rs2."""
    writes_f(cpu)
    a = read(cpu, DOUBLE, rs1)
    b = read(cpu, DOUBLE, rs2)
    write(cpu, DOUBLE, rd, with_sign(DOUBLE, a, negated(DOUBLE, b)))


@rv64.instruction("0010001 rs2:5 rs1:5 010 rd:5 1010011", "fsgnjx.d {rd:f}, {rs1:f}, {rs2:f}", extension="D")
def fsgnjx_d(cpu, rd, rs1, rs2):
    """rs1 with the exclusive or of both signs."""
    writes_f(cpu)
    a = read(cpu, DOUBLE, rs1)
    b = read(cpu, DOUBLE, rs2)
    write(cpu, DOUBLE, rd, with_sign(DOUBLE, a, b ^ a))


@rv64.instruction("0010101 rs2:5 rs1:5 000 rd:5 1010011", "fmin.d {rd:f}, {rs1:f}, {rs2:f}", extension="D")
def fmin_d(cpu, rd, rs1, rs2):
    """The smaller number; a NaN counts only if both are."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, min_max(cpu, DOUBLE, False, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2)))


@rv64.instruction("0010101 rs2:5 rs1:5 001 rd:5 1010011", "fmax.d {rd:f}, {rs1:f}, {rs2:f}", extension="D")
def fmax_d(cpu, rd, rs1, rs2):
    """The greater number; a NaN counts only if both are."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, min_max(cpu, DOUBLE, True, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2)))


@rv64.instruction("1100001 00000 rs1:5 rm:3 rd:5 1010011", "fcvt.w.d {rd}, {rs1:f}, {rm}", extension="D")
def fcvt_w_d(cpu, rd, rs1, rm):
    """rs1 as a signed 32-bit integer."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, DOUBLE, i32, read(cpu, DOUBLE, rs1), rm)


@rv64.instruction("1100001 00001 rs1:5 rm:3 rd:5 1010011", "fcvt.wu.d {rd}, {rs1:f}, {rm}", extension="D")
def fcvt_wu_d(cpu, rd, rs1, rm):
    """rs1 as an unsigned 32-bit integer, sign-extended."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, DOUBLE, u32, read(cpu, DOUBLE, rs1), rm)


@rv64.instruction("1100001 00010 rs1:5 rm:3 rd:5 1010011", "fcvt.l.d {rd}, {rs1:f}, {rm}", extension="D")
def fcvt_l_d(cpu, rd, rs1, rm):
    """rs1 as a signed 64-bit integer."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, DOUBLE, i64, read(cpu, DOUBLE, rs1), rm)


@rv64.instruction("1100001 00011 rs1:5 rm:3 rd:5 1010011", "fcvt.lu.d {rd}, {rs1:f}, {rm}", extension="D")
def fcvt_lu_d(cpu, rd, rs1, rm):
    """rs1 as an unsigned 64-bit integer."""
    reads_f(cpu)
    cpu.x[rd] = to_integer(cpu, DOUBLE, u64, read(cpu, DOUBLE, rs1), rm)


@rv64.instruction("1101001 00000 rs1:5 rm:3 rd:5 1010011", "fcvt.d.w {rd:f}, {rs1}, {rm}", extension="D")
def fcvt_d_w(cpu, rd, rs1, rm):
    """The signed 32-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, from_integer(cpu, DOUBLE, i32, cpu.x[rs1], rm))


@rv64.instruction("1101001 00001 rs1:5 rm:3 rd:5 1010011", "fcvt.d.wu {rd:f}, {rs1}, {rm}", extension="D")
def fcvt_d_wu(cpu, rd, rs1, rm):
    """The unsigned 32-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, from_integer(cpu, DOUBLE, u32, cpu.x[rs1], rm))


@rv64.instruction("1101001 00010 rs1:5 rm:3 rd:5 1010011", "fcvt.d.l {rd:f}, {rs1}, {rm}", extension="D")
def fcvt_d_l(cpu, rd, rs1, rm):
    """The signed 64-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, from_integer(cpu, DOUBLE, i64, cpu.x[rs1], rm))


@rv64.instruction("1101001 00011 rs1:5 rm:3 rd:5 1010011", "fcvt.d.lu {rd:f}, {rs1}, {rm}", extension="D")
def fcvt_d_lu(cpu, rd, rs1, rm):
    """The unsigned 64-bit integer in rs1, as floating point."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, from_integer(cpu, DOUBLE, u64, cpu.x[rs1], rm))


@rv64.instruction("0100000 00001 rs1:5 rm:3 rd:5 1010011", "fcvt.s.d {rd:f}, {rs1:f}, {rm}", extension="D")
def fcvt_s_d(cpu, rd, rs1, rm):
    """Double to single."""
    writes_f(cpu)
    write(cpu, SINGLE, rd, narrow(cpu, read(cpu, DOUBLE, rs1), rm))


@rv64.instruction("0100001 00000 rs1:5 rm:3 rd:5 1010011", "fcvt.d.s {rd:f}, {rs1:f}, {rm}", extension="D")
def fcvt_d_s(cpu, rd, rs1, rm):
    """Single to double."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, widen(cpu, read(cpu, SINGLE, rs1), rm))


@rv64.instruction("1110001 00000 rs1:5 000 rd:5 1010011", "fmv.x.d {rd}, {rs1:f}", extension="D")
def fmv_x_d(cpu, rd, rs1):
    """The bits of the register."""
    reads_f(cpu)
    cpu.x[rd] = cpu.f[rs1]


@rv64.instruction("1111001 00000 rs1:5 000 rd:5 1010011", "fmv.d.x {rd:f}, {rs1}", extension="D")
def fmv_d_x(cpu, rd, rs1):
    """The bits of the integer register."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, cpu.x[rs1])


@rv64.instruction("1010001 rs2:5 rs1:5 010 rd:5 1010011", "feq.d {rd}, {rs1:f}, {rs2:f}", extension="D")
def feq_d(cpu, rd, rs1, rs2):
    """1 if rs1 == rs2, else 0; quiet."""
    reads_f(cpu)
    cpu.x[rd] = equal(cpu, DOUBLE, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2))


@rv64.instruction("1010001 rs2:5 rs1:5 001 rd:5 1010011", "flt.d {rd}, {rs1:f}, {rs2:f}", extension="D")
def flt_d(cpu, rd, rs1, rs2):
    """1 if rs1 < rs2, else 0; signaling."""
    reads_f(cpu)
    cpu.x[rd] = less(cpu, DOUBLE, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2))


@rv64.instruction("1010001 rs2:5 rs1:5 000 rd:5 1010011", "fle.d {rd}, {rs1:f}, {rs2:f}", extension="D")
def fle_d(cpu, rd, rs1, rs2):
    """1 if rs1 <= rs2, else 0; signaling."""
    reads_f(cpu)
    cpu.x[rd] = less_equal(cpu, DOUBLE, read(cpu, DOUBLE, rs1), read(cpu, DOUBLE, rs2))


@rv64.instruction("1110001 00000 rs1:5 001 rd:5 1010011", "fclass.d {rd}, {rs1:f}", extension="D")
def fclass_d(cpu, rd, rs1):
    """The class of rs1, as one of ten bits."""
    reads_f(cpu)
    cpu.x[rd] = class_mask(DOUBLE, read(cpu, DOUBLE, rs1))
