"""Zba, Zbb, Zbs: bit manipulation (Unprivileged ISA, "B" Standard Extension for Bit Manipulation)."""

from functools import partial

from polyvisor.adl import bswap, clz, ctz, i64, popcount, sext, u32, u64

from .architecture import rv64

zba = partial(rv64.instruction, extension="Zba")
zbb = partial(rv64.instruction, extension="Zbb")
zbs = partial(rv64.instruction, extension="Zbs")


# Zba: address generation.  The instructions with .uw take the low 32 bits of rs1, zero-extended.


@zba("0010000 rs2:5 rs1:5 010 rd:5 0110011", "sh1add {rd}, {rs1}, {rs2}")
def sh1add(cpu, rd, rs1, rs2):
    cpu.x[rd] = (cpu.x[rs1] << 1) + cpu.x[rs2]


@zba("0010000 rs2:5 rs1:5 100 rd:5 0110011", "sh2add {rd}, {rs1}, {rs2}")
def sh2add(cpu, rd, rs1, rs2):
    cpu.x[rd] = (cpu.x[rs1] << 2) + cpu.x[rs2]


@zba("0010000 rs2:5 rs1:5 110 rd:5 0110011", "sh3add {rd}, {rs1}, {rs2}")
def sh3add(cpu, rd, rs1, rs2):
    cpu.x[rd] = (cpu.x[rs1] << 3) + cpu.x[rs2]


@zba("0000100 rs2:5 rs1:5 000 rd:5 0111011", "add.uw {rd}, {rs1}, {rs2}")
def add_uw(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(u32(cpu.x[rs1])) + cpu.x[rs2]


@zba("0010000 rs2:5 rs1:5 010 rd:5 0111011", "sh1add.uw {rd}, {rs1}, {rs2}")
def sh1add_uw(cpu, rd, rs1, rs2):
    cpu.x[rd] = (u64(u32(cpu.x[rs1])) << 1) + cpu.x[rs2]


@zba("0010000 rs2:5 rs1:5 100 rd:5 0111011", "sh2add.uw {rd}, {rs1}, {rs2}")
def sh2add_uw(cpu, rd, rs1, rs2):
    cpu.x[rd] = (u64(u32(cpu.x[rs1])) << 2) + cpu.x[rs2]


@zba("0010000 rs2:5 rs1:5 110 rd:5 0111011", "sh3add.uw {rd}, {rs1}, {rs2}")
def sh3add_uw(cpu, rd, rs1, rs2):
    cpu.x[rd] = (u64(u32(cpu.x[rs1])) << 3) + cpu.x[rs2]


@zba("000010 shamt:6 rs1:5 001 rd:5 0011011", "slli.uw {rd}, {rs1}, {shamt}")
def slli_uw(cpu, rd, rs1, shamt):
    cpu.x[rd] = u64(u32(cpu.x[rs1])) << shamt


# Zbb: logical with negate


@zbb("0100000 rs2:5 rs1:5 111 rd:5 0110011", "andn {rd}, {rs1}, {rs2}")
def andn(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] & ~cpu.x[rs2]


@zbb("0100000 rs2:5 rs1:5 110 rd:5 0110011", "orn {rd}, {rs1}, {rs2}")
def orn(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] | ~cpu.x[rs2]


@zbb("0100000 rs2:5 rs1:5 100 rd:5 0110011", "xnor {rd}, {rs1}, {rs2}")
def xnor(cpu, rd, rs1, rs2):
    cpu.x[rd] = ~(cpu.x[rs1] ^ cpu.x[rs2])


# Zbb: count zeros, count ones


@zbb("011000000000 rs1:5 001 rd:5 0010011", "clz {rd}, {rs1}")
def clz_(cpu, rd, rs1):
    cpu.x[rd] = clz(cpu.x[rs1])


@zbb("011000000000 rs1:5 001 rd:5 0011011", "clzw {rd}, {rs1}")
def clzw(cpu, rd, rs1):
    cpu.x[rd] = u64(clz(u32(cpu.x[rs1])))


@zbb("011000000001 rs1:5 001 rd:5 0010011", "ctz {rd}, {rs1}")
def ctz_(cpu, rd, rs1):
    cpu.x[rd] = ctz(cpu.x[rs1])


@zbb("011000000001 rs1:5 001 rd:5 0011011", "ctzw {rd}, {rs1}")
def ctzw(cpu, rd, rs1):
    cpu.x[rd] = u64(ctz(u32(cpu.x[rs1])))


@zbb("011000000010 rs1:5 001 rd:5 0010011", "cpop {rd}, {rs1}")
def cpop(cpu, rd, rs1):
    cpu.x[rd] = popcount(cpu.x[rs1])


@zbb("011000000010 rs1:5 001 rd:5 0011011", "cpopw {rd}, {rs1}")
def cpopw(cpu, rd, rs1):
    cpu.x[rd] = u64(popcount(u32(cpu.x[rs1])))


# Zbb: integer minimum and maximum


@zbb("0000101 rs2:5 rs1:5 110 rd:5 0110011", "max {rd}, {rs1}, {rs2}")
def max_(cpu, rd, rs1, rs2):
    a, b = cpu.x[rs1], cpu.x[rs2]
    cpu.x[rd] = b if i64(a) < i64(b) else a


@zbb("0000101 rs2:5 rs1:5 111 rd:5 0110011", "maxu {rd}, {rs1}, {rs2}")
def maxu(cpu, rd, rs1, rs2):
    a, b = cpu.x[rs1], cpu.x[rs2]
    cpu.x[rd] = b if a < b else a


@zbb("0000101 rs2:5 rs1:5 100 rd:5 0110011", "min {rd}, {rs1}, {rs2}")
def min_(cpu, rd, rs1, rs2):
    a, b = cpu.x[rs1], cpu.x[rs2]
    cpu.x[rd] = a if i64(a) < i64(b) else b


@zbb("0000101 rs2:5 rs1:5 101 rd:5 0110011", "minu {rd}, {rs1}, {rs2}")
def minu(cpu, rd, rs1, rs2):
    a, b = cpu.x[rs1], cpu.x[rs2]
    cpu.x[rd] = a if a < b else b


# Zbb: sign- and zero-extension


@zbb("011000000100 rs1:5 001 rd:5 0010011", "sext.b {rd}, {rs1}")
def sext_b(cpu, rd, rs1):
    cpu.x[rd] = sext(cpu.x[rs1], 8)


@zbb("011000000101 rs1:5 001 rd:5 0010011", "sext.h {rd}, {rs1}")
def sext_h(cpu, rd, rs1):
    cpu.x[rd] = sext(cpu.x[rs1], 16)


@zbb("0000100 00000 rs1:5 100 rd:5 0111011", "zext.h {rd}, {rs1}")
def zext_h(cpu, rd, rs1):
    cpu.x[rd] = cpu.x[rs1] & 0xFFFF


# Zbb: bitwise rotation


@zbb("0110000 rs2:5 rs1:5 001 rd:5 0110011", "rol {rd}, {rs1}, {rs2}")
def rol(cpu, rd, rs1, rs2):
    a, n = cpu.x[rs1], cpu.x[rs2]
    cpu.x[rd] = (a << (n & 63)) | (a >> (-n & 63))


@zbb("0110000 rs2:5 rs1:5 001 rd:5 0111011", "rolw {rd}, {rs1}, {rs2}")
def rolw(cpu, rd, rs1, rs2):
    a, n = u32(cpu.x[rs1]), u32(cpu.x[rs2])
    cpu.x[rd] = sext(u64((a << (n & 31)) | (a >> (-n & 31))), 32)


@zbb("0110000 rs2:5 rs1:5 101 rd:5 0110011", "ror {rd}, {rs1}, {rs2}")
def ror(cpu, rd, rs1, rs2):
    a, n = cpu.x[rs1], cpu.x[rs2]
    cpu.x[rd] = (a >> (n & 63)) | (a << (-n & 63))


@zbb("0110000 rs2:5 rs1:5 101 rd:5 0111011", "rorw {rd}, {rs1}, {rs2}")
def rorw(cpu, rd, rs1, rs2):
    a, n = u32(cpu.x[rs1]), u32(cpu.x[rs2])
    cpu.x[rd] = sext(u64((a >> (n & 31)) | (a << (-n & 31))), 32)


@zbb("011000 shamt:6 rs1:5 101 rd:5 0010011", "rori {rd}, {rs1}, {shamt}")
def rori(cpu, rd, rs1, shamt):
    a = cpu.x[rs1]
    cpu.x[rd] = (a >> shamt) | (a << (-shamt & 63))


@zbb("0110000 shamt:5 rs1:5 101 rd:5 0011011", "roriw {rd}, {rs1}, {shamt}")
def roriw(cpu, rd, rs1, shamt):
    a = u32(cpu.x[rs1])
    cpu.x[rd] = sext(u64((a >> shamt) | (a << (-shamt & 31))), 32)


# Zbb: OR-combine and byte-reverse


@zbb("001010000111 rs1:5 101 rd:5 0010011", "orc.b {rd}, {rs1}")
def orc_b(cpu, rd, rs1):
    """Every byte that is not 0 becomes 0xff."""
    a = cpu.x[rs1]
    low = 0x7F7F_7F7F_7F7F_7F7F
    nonzero = ((((a & low) + low) | a) >> 7) & 0x0101_0101_0101_0101
    cpu.x[rd] = nonzero * 0xFF


@zbb("011010111000 rs1:5 101 rd:5 0010011", "rev8 {rd}, {rs1}")
def rev8(cpu, rd, rs1):
    cpu.x[rd] = bswap(cpu.x[rs1])


# Zbs: single-bit instructions; the bit's number is in the low 6 bits of rs2


@zbs("0100100 rs2:5 rs1:5 001 rd:5 0110011", "bclr {rd}, {rs1}, {rs2}")
def bclr(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] & ~(u64(1) << (cpu.x[rs2] & 63))


@zbs("010010 shamt:6 rs1:5 001 rd:5 0010011", "bclri {rd}, {rs1}, {shamt}")
def bclri(cpu, rd, rs1, shamt):
    cpu.x[rd] = cpu.x[rs1] & ~(u64(1) << shamt)


@zbs("0100100 rs2:5 rs1:5 101 rd:5 0110011", "bext {rd}, {rs1}, {rs2}")
def bext(cpu, rd, rs1, rs2):
    cpu.x[rd] = (cpu.x[rs1] >> (cpu.x[rs2] & 63)) & 1


@zbs("010010 shamt:6 rs1:5 101 rd:5 0010011", "bexti {rd}, {rs1}, {shamt}")
def bexti(cpu, rd, rs1, shamt):
    cpu.x[rd] = (cpu.x[rs1] >> shamt) & 1


@zbs("0110100 rs2:5 rs1:5 001 rd:5 0110011", "binv {rd}, {rs1}, {rs2}")
def binv(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] ^ (u64(1) << (cpu.x[rs2] & 63))


@zbs("011010 shamt:6 rs1:5 001 rd:5 0010011", "binvi {rd}, {rs1}, {shamt}")
def binvi(cpu, rd, rs1, shamt):
    cpu.x[rd] = cpu.x[rs1] ^ (u64(1) << shamt)


@zbs("0010100 rs2:5 rs1:5 001 rd:5 0110011", "bset {rd}, {rs1}, {rs2}")
def bset(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] | (u64(1) << (cpu.x[rs2] & 63))


@zbs("001010 shamt:6 rs1:5 001 rd:5 0010011", "bseti {rd}, {rs1}, {shamt}")
def bseti(cpu, rd, rs1, shamt):
    cpu.x[rd] = cpu.x[rs1] | (u64(1) << shamt)
