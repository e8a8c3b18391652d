"""Supervisor-level CSRs (Privileged Architecture, chapter 12), with Sstc."""

from polyvisor.adl import bit, bits, function, u64

from .architecture import rv64
from .causes import illegal
from .csr import NAMES, csr, csr_functions
from .csr_machine import SSTATUS_WRITABLE, _tvec, change_status, with_derived
from .interrupts import SSIP, STCE, pending
from .trap import FS, MXR, SIE, SPIE, SPP, SUM, TVM

# SD, UXL, and what can be written
SSTATUS_READABLE = 1 << 63 | 3 << 32 | FS | MXR | SIE | SPIE | SPP | SUM


@function
def read_sstatus(cpu) -> u64:
    return with_derived(cpu.mstatus) & SSTATUS_READABLE


@function
def write_sstatus(cpu, value: u64):
    change_status(cpu, value, SSTATUS_WRITABLE)


@function
def read_sie(cpu) -> u64:
    return cpu.mie & cpu.mideleg


@function
def write_sie(cpu, value: u64):
    cpu.mie = (cpu.mie & ~cpu.mideleg) | (value & cpu.mideleg)


@function
def read_sip(cpu) -> u64:
    return pending(cpu) & cpu.mideleg


@function
def write_sip(cpu, value: u64):
    """Of the delegated interrupts, only SSIP is writable here (12.1.3); see write_mip."""
    writable = cpu.mideleg & SSIP
    cpu.mip = (cpu.mip & ~writable) | (value & writable)


csr_functions(0x100, "sstatus", read_sstatus, write_sstatus)
csr_functions(0x104, "sie", read_sie, write_sie)
csr_functions(0x144, "sip", read_sip, write_sip)
_tvec(0x105, "stvec")
csr(0x106, "scounteren", "scounteren", writable=0xFFFF_FFFF)
csr(0x10A, "senvcfg", "senvcfg", writable=1)
csr(0x140, "sscratch", "sscratch")
csr(0x141, "sepc", "sepc", writable=2**64 - 2)
csr(0x142, "scause", "scause")
csr(0x143, "stval", "stval")


@function
def check_tvm(cpu):
    """With TVM set, supervisor mode must not touch translation (3.1.6.5)."""
    if cpu.privilege == 1 and cpu.mstatus & TVM != 0:
        illegal(cpu)


@function
def read_satp(cpu) -> u64:
    check_tvm(cpu)
    return cpu.satp


@function
def write_satp(cpu, value: u64):
    """Bare, Sv39, Sv48 and Sv57; with another mode the write has no effect. ASIDs have no bits (12.1.11)."""
    check_tvm(cpu)
    mode = bits(value, 63, 60)
    if mode == 0 or mode == 8 or mode == 9 or mode == 10:
        legal = value & ~u64(0xFFFF << 44)
        if legal != cpu.satp:
            cpu.satp = legal
            cpu.flush_tlb()


csr_functions(0x180, "satp", read_satp, write_satp)


@function
def check_stimecmp(cpu):
    """Supervisor mode has stimecmp where menvcfg.STCE and mcounteren.TM allow it (Sstc, 2.2)."""
    if cpu.privilege != 3 and (not bit(cpu.menvcfg, STCE) or not bit(cpu.mcounteren, 1)):
        illegal(cpu)


@function
def read_stimecmp(cpu) -> u64:
    check_stimecmp(cpu)
    return cpu.stimecmp


@function
def write_stimecmp(cpu, value: u64):
    check_stimecmp(cpu)
    cpu.stimecmp = value


csr_functions(0x14D, "stimecmp", read_stimecmp, write_stimecmp)

rv64.kind("csr", aliases=NAMES)


# Memory-management instructions (12.2.1, Svinval)


@function
def check_fence(cpu):
    """Illegal in user mode, and in supervisor mode with TVM."""
    if cpu.privilege == 0:
        illegal(cpu)
    check_tvm(cpu)


@rv64.instruction("0001001 rs2:5 rs1:5 000 00000 1110011", "sfence.vma {rs1}, {rs2}", extension="S")
def sfence_vma(cpu, rs1, rs2):
    """Order page-table updates: forget translations of one page, or of all."""
    check_fence(cpu)
    if rs1 == 0:
        cpu.flush_tlb()
    else:
        cpu.flush_tlb_page(cpu.x[rs1])


@rv64.instruction("0001011 rs2:5 rs1:5 000 00000 1110011", "sinval.vma {rs1}, {rs2}", extension="Svinval")
def sinval_vma(cpu, rs1, rs2):
    """The invalidation of sfence.vma alone."""
    check_fence(cpu)
    if rs1 == 0:
        cpu.flush_tlb()
    else:
        cpu.flush_tlb_page(cpu.x[rs1])


@rv64.instruction("0001100 00000 00000 000 00000 1110011", "sfence.w.inval", extension="Svinval")
def sfence_w_inval(cpu):
    """Order earlier stores before later sinval.vma: translations are always read in order here."""
    if cpu.privilege == 0:
        illegal(cpu)


@rv64.instruction("0001100 00001 00000 000 00000 1110011", "sfence.inval.ir", extension="Svinval")
def sfence_inval_ir(cpu):
    """Order earlier sinval.vma before later accesses."""
    if cpu.privilege == 0:
        illegal(cpu)
