"""RV64I, the base integer instructions, and Zifencei (Unprivileged ISA, chapters RV32I, RV64I and Zifencei).

Immediates are sign-extended to the width of a register before they are used, logical ones too.
"""

from functools import partial

from polyvisor.adl import Trap, i8, i16, i32, i64, sext, u8, u16, u32, u64

from . import sbi
from .architecture import rv64
from .causes import BREAKPOINT, ECALL_USER

instruction = partial(rv64.instruction, extension="I")

FENCE_SETS = {
    "".join(letter for letter, n in zip("iorw", (8, 4, 2, 1), strict=True) if value & n): value
    for value in range(1, 16)
}
rv64.kind("fence", aliases=FENCE_SETS)
rv64.kind("upper", shift=12, width=20)


# Integer Register-Immediate Instructions


@instruction("imm[11:0] rs1:5 000 rd:5 0010011", "addi {rd}, {rs1}, {imm}")
def addi(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = cpu.x[rs1] + u64(imm)


@instruction("imm[11:0] rs1:5 010 rd:5 0010011", "slti {rd}, {rs1}, {imm}")
def slti(cpu, rd, rs1, imm: i64):
    """Set to 1 if less than, signed."""
    cpu.x[rd] = u64(i64(cpu.x[rs1]) < imm)


@instruction("imm[11:0] rs1:5 011 rd:5 0010011", "sltiu {rd}, {rs1}, {imm}")
def sltiu(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = u64(cpu.x[rs1] < u64(imm))


@instruction("imm[11:0] rs1:5 100 rd:5 0010011", "xori {rd}, {rs1}, {imm}")
def xori(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = cpu.x[rs1] ^ u64(imm)


@instruction("imm[11:0] rs1:5 110 rd:5 0010011", "ori {rd}, {rs1}, {imm}")
def ori(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = cpu.x[rs1] | u64(imm)


@instruction("imm[11:0] rs1:5 111 rd:5 0010011", "andi {rd}, {rs1}, {imm}")
def andi(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = cpu.x[rs1] & u64(imm)


@instruction("000000 shamt:6 rs1:5 001 rd:5 0010011", "slli {rd}, {rs1}, {shamt}")
def slli(cpu, rd, rs1, shamt):
    cpu.x[rd] = cpu.x[rs1] << shamt


@instruction("000000 shamt:6 rs1:5 101 rd:5 0010011", "srli {rd}, {rs1}, {shamt}")
def srli(cpu, rd, rs1, shamt):
    cpu.x[rd] = cpu.x[rs1] >> shamt


@instruction("010000 shamt:6 rs1:5 101 rd:5 0010011", "srai {rd}, {rs1}, {shamt}")
def srai(cpu, rd, rs1, shamt):
    cpu.x[rd] = u64(i64(cpu.x[rs1]) >> shamt)


@instruction("imm[31:12] rd:5 0110111", "lui {rd}, {imm:upper}")
def lui(cpu, rd, imm: i64):
    cpu.x[rd] = u64(imm)


@instruction("imm[31:12] rd:5 0010111", "auipc {rd}, {imm:upper}")
def auipc(cpu, rd, imm: i64):
    cpu.x[rd] = cpu.pc + u64(imm)


# Integer Register-Register Operations


@instruction("0000000 rs2:5 rs1:5 000 rd:5 0110011", "add {rd}, {rs1}, {rs2}")
def add(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] + cpu.x[rs2]


@instruction("0100000 rs2:5 rs1:5 000 rd:5 0110011", "sub {rd}, {rs1}, {rs2}")
def sub(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] - cpu.x[rs2]


@instruction("0000000 rs2:5 rs1:5 001 rd:5 0110011", "sll {rd}, {rs1}, {rs2}")
def sll(cpu, rd, rs1, rs2):
    """The amount is in the low 6 bits of rs2; the others are ignored."""
    cpu.x[rd] = cpu.x[rs1] << (cpu.x[rs2] & 63)


@instruction("0000000 rs2:5 rs1:5 010 rd:5 0110011", "slt {rd}, {rs1}, {rs2}")
def slt(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(i64(cpu.x[rs1]) < i64(cpu.x[rs2]))


@instruction("0000000 rs2:5 rs1:5 011 rd:5 0110011", "sltu {rd}, {rs1}, {rs2}")
def sltu(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(cpu.x[rs1] < cpu.x[rs2])


@instruction("0000000 rs2:5 rs1:5 100 rd:5 0110011", "xor {rd}, {rs1}, {rs2}")
def xor(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] ^ cpu.x[rs2]


@instruction("0000000 rs2:5 rs1:5 101 rd:5 0110011", "srl {rd}, {rs1}, {rs2}")
def srl(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] >> (cpu.x[rs2] & 63)


@instruction("0100000 rs2:5 rs1:5 101 rd:5 0110011", "sra {rd}, {rs1}, {rs2}")
def sra(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(i64(cpu.x[rs1]) >> (cpu.x[rs2] & 63))


@instruction("0000000 rs2:5 rs1:5 110 rd:5 0110011", "or {rd}, {rs1}, {rs2}")
def or_(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] | cpu.x[rs2]


@instruction("0000000 rs2:5 rs1:5 111 rd:5 0110011", "and {rd}, {rs1}, {rs2}")
def and_(cpu, rd, rs1, rs2):
    cpu.x[rd] = cpu.x[rs1] & cpu.x[rs2]


# RV64I: operations on the low 32 bits; the 32-bit result is sign-extended


@instruction("imm[11:0] rs1:5 000 rd:5 0011011", "addiw {rd}, {rs1}, {imm}")
def addiw(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = sext(cpu.x[rs1] + u64(imm), 32)


@instruction("0000000 shamt:5 rs1:5 001 rd:5 0011011", "slliw {rd}, {rs1}, {shamt}")
def slliw(cpu, rd, rs1, shamt):
    cpu.x[rd] = sext(cpu.x[rs1] << shamt, 32)


@instruction("0000000 shamt:5 rs1:5 101 rd:5 0011011", "srliw {rd}, {rs1}, {shamt}")
def srliw(cpu, rd, rs1, shamt):
    cpu.x[rd] = u64(i32(u32(cpu.x[rs1]) >> shamt))


@instruction("0100000 shamt:5 rs1:5 101 rd:5 0011011", "sraiw {rd}, {rs1}, {shamt}")
def sraiw(cpu, rd, rs1, shamt):
    cpu.x[rd] = u64(i32(cpu.x[rs1]) >> shamt)


@instruction("0000000 rs2:5 rs1:5 000 rd:5 0111011", "addw {rd}, {rs1}, {rs2}")
def addw(cpu, rd, rs1, rs2):
    cpu.x[rd] = sext(cpu.x[rs1] + cpu.x[rs2], 32)


@instruction("0100000 rs2:5 rs1:5 000 rd:5 0111011", "subw {rd}, {rs1}, {rs2}")
def subw(cpu, rd, rs1, rs2):
    cpu.x[rd] = sext(cpu.x[rs1] - cpu.x[rs2], 32)


@instruction("0000000 rs2:5 rs1:5 001 rd:5 0111011", "sllw {rd}, {rs1}, {rs2}")
def sllw(cpu, rd, rs1, rs2):
    """The amount is in the low 5 bits of rs2."""
    cpu.x[rd] = sext(cpu.x[rs1] << (cpu.x[rs2] & 31), 32)


@instruction("0000000 rs2:5 rs1:5 101 rd:5 0111011", "srlw {rd}, {rs1}, {rs2}")
def srlw(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(i32(u32(cpu.x[rs1]) >> (cpu.x[rs2] & 31)))


@instruction("0100000 rs2:5 rs1:5 101 rd:5 0111011", "sraw {rd}, {rs1}, {rs2}")
def sraw(cpu, rd, rs1, rs2):
    cpu.x[rd] = u64(i32(cpu.x[rs1]) >> (cpu.x[rs2] & 31))


# Unconditional Jumps.  With the C extension targets are multiples of 2, so that none is misaligned.


@instruction("imm[20|10:1|11|19:12] rd:5 1101111", "jal {rd}, {imm:pc}")
def jal(cpu, rd, imm: i64):
    cpu.x[rd] = cpu.next_pc
    cpu.next_pc = cpu.pc + u64(imm)


@instruction("imm[11:0] rs1:5 000 rd:5 1100111", "jalr {rd}, {imm}({rs1})")
def jalr(cpu, rd, rs1, imm: i64):
    target = (cpu.x[rs1] + u64(imm)) & u64(-2)
    cpu.x[rd] = cpu.next_pc
    cpu.next_pc = target


# Conditional Branches


@instruction("imm[12|10:5] rs2:5 rs1:5 000 imm[4:1|11] 1100011", "beq {rs1}, {rs2}, {imm:pc}")
def beq(cpu, rs1, rs2, imm: i64):
    if cpu.x[rs1] == cpu.x[rs2]:
        cpu.next_pc = cpu.pc + u64(imm)


@instruction("imm[12|10:5] rs2:5 rs1:5 001 imm[4:1|11] 1100011", "bne {rs1}, {rs2}, {imm:pc}")
def bne(cpu, rs1, rs2, imm: i64):
    if cpu.x[rs1] != cpu.x[rs2]:
        cpu.next_pc = cpu.pc + u64(imm)


@instruction("imm[12|10:5] rs2:5 rs1:5 100 imm[4:1|11] 1100011", "blt {rs1}, {rs2}, {imm:pc}")
def blt(cpu, rs1, rs2, imm: i64):
    if i64(cpu.x[rs1]) < i64(cpu.x[rs2]):
        cpu.next_pc = cpu.pc + u64(imm)


@instruction("imm[12|10:5] rs2:5 rs1:5 101 imm[4:1|11] 1100011", "bge {rs1}, {rs2}, {imm:pc}")
def bge(cpu, rs1, rs2, imm: i64):
    if i64(cpu.x[rs1]) >= i64(cpu.x[rs2]):
        cpu.next_pc = cpu.pc + u64(imm)


@instruction("imm[12|10:5] rs2:5 rs1:5 110 imm[4:1|11] 1100011", "bltu {rs1}, {rs2}, {imm:pc}")
def bltu(cpu, rs1, rs2, imm: i64):
    if cpu.x[rs1] < cpu.x[rs2]:
        cpu.next_pc = cpu.pc + u64(imm)


@instruction("imm[12|10:5] rs2:5 rs1:5 111 imm[4:1|11] 1100011", "bgeu {rs1}, {rs2}, {imm:pc}")
def bgeu(cpu, rs1, rs2, imm: i64):
    if cpu.x[rs1] >= cpu.x[rs2]:
        cpu.next_pc = cpu.pc + u64(imm)


# Load and Store Instructions.  Misaligned accesses are carried out.


@instruction("imm[11:0] rs1:5 000 rd:5 0000011", "lb {rd}, {imm}({rs1})")
def lb(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = u64(i8(cpu.load(u8, cpu.x[rs1] + u64(imm))))


@instruction("imm[11:0] rs1:5 001 rd:5 0000011", "lh {rd}, {imm}({rs1})")
def lh(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = u64(i16(cpu.load(u16, cpu.x[rs1] + u64(imm))))


@instruction("imm[11:0] rs1:5 010 rd:5 0000011", "lw {rd}, {imm}({rs1})")
def lw(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = u64(i32(cpu.load(u32, cpu.x[rs1] + u64(imm))))


@instruction("imm[11:0] rs1:5 011 rd:5 0000011", "ld {rd}, {imm}({rs1})")
def ld(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = cpu.load(u64, cpu.x[rs1] + u64(imm))


@instruction("imm[11:0] rs1:5 100 rd:5 0000011", "lbu {rd}, {imm}({rs1})")
def lbu(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = u64(cpu.load(u8, cpu.x[rs1] + u64(imm)))


@instruction("imm[11:0] rs1:5 101 rd:5 0000011", "lhu {rd}, {imm}({rs1})")
def lhu(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = u64(cpu.load(u16, cpu.x[rs1] + u64(imm)))


@instruction("imm[11:0] rs1:5 110 rd:5 0000011", "lwu {rd}, {imm}({rs1})")
def lwu(cpu, rd, rs1, imm: i64):
    cpu.x[rd] = u64(cpu.load(u32, cpu.x[rs1] + u64(imm)))


@instruction("imm[11:5] rs2:5 rs1:5 000 imm[4:0] 0100011", "sb {rs2}, {imm}({rs1})")
def sb(cpu, rs1, rs2, imm: i64):
    cpu.store(u8, cpu.x[rs1] + u64(imm), u8(cpu.x[rs2]))


@instruction("imm[11:5] rs2:5 rs1:5 001 imm[4:0] 0100011", "sh {rs2}, {imm}({rs1})")
def sh(cpu, rs1, rs2, imm: i64):
    cpu.store(u16, cpu.x[rs1] + u64(imm), u16(cpu.x[rs2]))


@instruction("imm[11:5] rs2:5 rs1:5 010 imm[4:0] 0100011", "sw {rs2}, {imm}({rs1})")
def sw(cpu, rs1, rs2, imm: i64):
    cpu.store(u32, cpu.x[rs1] + u64(imm), u32(cpu.x[rs2]))


@instruction("imm[11:5] rs2:5 rs1:5 011 imm[4:0] 0100011", "sd {rs2}, {imm}({rs1})")
def sd(cpu, rs1, rs2, imm: i64):
    cpu.store(u64, cpu.x[rs1] + u64(imm), cpu.x[rs2])


# Memory Ordering Instructions.  Fields that are reserved are ignored, as the manual asks.


@instruction("xxxx pred:4 succ:4 xxxxx 000 xxxxx 0001111", "fence {pred:fence}, {succ:fence}")
def fence(cpu, pred, succ):
    """Order accesses before it (of the kinds in pred) before accesses after it (of the kinds in succ)."""
    cpu.fence()


@instruction("1000 0011 0011 00000 000 00000 0001111", "fence.tso")
def fence_tso(cpu):
    """Like fence rw, rw, but stores before it need not be ordered with loads after it."""
    cpu.fence()


@instruction("0000 0001 0000 00000 000 00000 0001111", "pause")
def pause(cpu):
    """A hint (Zihintpause): the code waits for another hart."""


@partial(rv64.instruction, extension="Zifencei")("xxxxxxxxxxxx xxxxx 001 xxxxx 0001111", "fence.i")
def fence_i(cpu):
    """Later instruction fetches of this hart see its earlier stores."""
    cpu.flush_code()


# Environment Call and Breakpoints


@instruction("000000000000 00000 000 00000 1110011", "ecall")
def ecall(cpu):
    """Call the execution environment: the next privilege level, or the SBI, where that is served without firmware."""
    if cpu.privilege == 1 and cpu.sbi != 0:
        if not sbi.served(cpu):
            cpu.leave("sbi")
    else:
        raise Trap(u64(cpu.privilege) + ECALL_USER, 0)


@instruction("000000000001 00000 000 00000 1110011", "ebreak")
def ebreak(cpu):
    raise Trap(BREAKPOINT, cpu.pc)
