"""M: integer multiplication and division (Unprivileged ISA, "M" Standard Extension)."""

from functools import partial

from polyvisor.adl import function, i32, i64, i128, sext, u32, u64, u128

from .architecture import rv64

instruction = partial(rv64.instruction, extension="M")


# Multiplication Operations


@instruction("0000001 rs2:5 rs1:5 000 rd:5 0110011", "mul {rd}, {rs1}, {rs2}")
def mul(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] * cpu.x[rs2]


@instruction("0000001 rs2:5 rs1:5 001 rd:5 0110011", "mulh {rd}, {rs1}, {rs2}")
def mulh(cpu, rd, rs1, rs2):
    """The high half of signed times signed."""
    cpu.x[rd] = u64((i128(i64(cpu.x[rs1])) * i128(i64(cpu.x[rs2]))) >> 64)


@instruction("0000001 rs2:5 rs1:5 010 rd:5 0110011", "mulhsu {rd}, {rs1}, {rs2}")
def mulhsu(cpu, rd, rs1, rs2):
    """The high half of signed rs1 times unsigned rs2."""
    cpu.x[rd] = u64((i128(i64(cpu.x[rs1])) * i128(cpu.x[rs2])) >> 64)


@instruction("0000001 rs2:5 rs1:5 011 rd:5 0110011", "mulhu {rd}, {rs1}, {rs2}")
def mulhu(cpu, rd, rs1, rs2):
    """The high half of unsigned times unsigned."""
    cpu.x[rd] = u64((u128(cpu.x[rs1]) * u128(cpu.x[rs2])) >> 64)


@instruction("0000001 rs2:5 rs1:5 000 rd:5 0111011", "mulw {rd}, {rs1}, {rs2}")
def mulw(cpu, rd, rs1, rs2):
    cpu.x[rd] = sext(cpu.x[rs1] * cpu.x[rs2], 32)


# Division Operations: no traps; the table "Semantics for division by zero and division overflow" gives these results.
# Division by -1 is negation, which overflows to the result wanted.  Each divides in any case, by 1 where the divisor
# does not allow it, and then chooses: so a host can make one division of a quotient and a remainder.


@function
def quotient(a: i64, b: i64) -> i64:
    plain = a // (i64(1) if b == 0 or b == i64(-1) else b)
    return i64(-1) if b == 0 else -a if b == i64(-1) else plain


@function
def remainder(a: i64, b: i64) -> i64:
    plain = a % (i64(1) if b == 0 or b == i64(-1) else b)
    return a if b == 0 else plain


@function
def quotient_word(a: i32, b: i32) -> i32:
    plain = a // (i32(1) if b == 0 or b == i32(-1) else b)
    return i32(-1) if b == 0 else -a if b == i32(-1) else plain


@function
def remainder_word(a: i32, b: i32) -> i32:
    plain = a % (i32(1) if b == 0 or b == i32(-1) else b)
    return a if b == 0 else plain


@instruction("0000001 rs2:5 rs1:5 100 rd:5 0110011", "div {rd}, {rs1}, {rs2}")
def div(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(quotient(i64(cpu.x[rs1]), i64(cpu.x[rs2])))


@instruction("0000001 rs2:5 rs1:5 101 rd:5 0110011", "divu {rd}, {rs1}, {rs2}")
def divu(cpu, rd, rs1, rs2):
    divisor = cpu.x[rs2]
    plain = cpu.x[rs1] // (u64(1) if divisor == 0 else divisor)
    cpu.x[rd] = u64(-1) if divisor == 0 else plain


@instruction("0000001 rs2:5 rs1:5 110 rd:5 0110011", "rem {rd}, {rs1}, {rs2}")
def rem(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(remainder(i64(cpu.x[rs1]), i64(cpu.x[rs2])))


@instruction("0000001 rs2:5 rs1:5 111 rd:5 0110011", "remu {rd}, {rs1}, {rs2}")
def remu(cpu, rd, rs1, rs2):
    dividend, divisor = cpu.x[rs1], cpu.x[rs2]
    plain = dividend % (u64(1) if divisor == 0 else divisor)
    cpu.x[rd] = dividend if divisor == 0 else plain


@instruction("0000001 rs2:5 rs1:5 100 rd:5 0111011", "divw {rd}, {rs1}, {rs2}")
def divw(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(quotient_word(i32(cpu.x[rs1]), i32(cpu.x[rs2])))


@instruction("0000001 rs2:5 rs1:5 101 rd:5 0111011", "divuw {rd}, {rs1}, {rs2}")
def divuw(cpu, rd, rs1, rs2):
    divisor = u32(cpu.x[rs2])
    plain = u32(cpu.x[rs1]) // (u32(1) if divisor == 0 else divisor)
    cpu.x[rd] = u64(i32(u32(-1) if divisor == 0 else plain))


@instruction("0000001 rs2:5 rs1:5 110 rd:5 0111011", "remw {rd}, {rs1}, {rs2}")
def remw(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(remainder_word(i32(cpu.x[rs1]), i32(cpu.x[rs2])))


@instruction("0000001 rs2:5 rs1:5 111 rd:5 0111011", "remuw {rd}, {rs1}, {rs2}")
def remuw(cpu, rd, rs1, rs2):
    dividend, divisor = u32(cpu.x[rs1]), u32(cpu.x[rs2])
    plain = dividend % (u32(1) if divisor == 0 else divisor)
    cpu.x[rd] = u64(i32(dividend if divisor == 0 else plain))
