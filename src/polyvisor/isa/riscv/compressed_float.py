"""C: loads and stores of doubles in 16 bits (Unprivileged Architecture, chapter "C"; the part called Zcd)."""

from polyvisor.adl import u64

from .architecture import rv64
from .floating import DOUBLE, reads_f, write, writes_f

SP = 2


@rv64.instruction("001 uimm[5:3] rs1':3 uimm[7:6] rd':3 00", "c.fld {rd:f}, {uimm}({rs1})", extension="C")
def c_fld(cpu, rd, rs1, uimm):
    """Load."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, cpu.load(u64, cpu.x[rs1] + u64(uimm)))


@rv64.instruction("101 uimm[5:3] rs1':3 uimm[7:6] rs2':3 00", "c.fsd {rs2:f}, {uimm}({rs1})", extension="C")
def c_fsd(cpu, rs1, rs2, uimm):
    """Store."""
    reads_f(cpu)
    cpu.store(u64, cpu.x[rs1] + u64(uimm), cpu.f[rs2])


@rv64.instruction("001 uimm[5] rd:5 uimm[4:3|8:6] 10", "c.fldsp {rd:f}, {uimm}(sp)", extension="C")
def c_fldsp(cpu, rd, uimm):
    """Load from the stack."""
    writes_f(cpu)
    write(cpu, DOUBLE, rd, cpu.load(u64, cpu.x[SP] + u64(uimm)))


@rv64.instruction("101 uimm[5:3|8:6] rs2:5 10", "c.fsdsp {rs2:f}, {uimm}(sp)", extension="C")
def c_fsdsp(cpu, rs2, uimm):
    """Store to the stack."""
    reads_f(cpu)
    cpu.store(u64, cpu.x[SP] + u64(uimm), cpu.f[rs2])
