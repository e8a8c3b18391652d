"""Entering traps, and returning from them (Privileged Architecture, 3.1.6 to 3.1.15, 3.3.2, 12.1)."""

from polyvisor.adl import FETCH, READ, Trap, bit, bits, function, u8, u32, u64

from .architecture import rv64
from .causes import FETCH_ACCESS, ILLEGAL_INSTRUCTION, LOAD_ACCESS, STORE_ACCESS, illegal

# mstatus
SIE, MIE, SPIE, MPIE, SPP = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 8
MPP_SHIFT, MPP = 11, 3 << 11
MPRV, SUM, MXR, TVM, TW, TSR = 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21, 1 << 22
FS = 3 << 13


@function
def vector(tvec: u64, cause: u64) -> u64:
    """Where a trap goes: the base, or for interrupts in vectored mode base + 4 * cause."""
    base = tvec & ~u64(3)
    if tvec & 1 != 0 and bit(cause, 63):
        return base + ((cause & 63) << 2)
    return base


@rv64.hook("on_trap")
def on_trap(cpu, cause: u64, value: u64):
    """Enter a trap in machine or, where delegated and not from machine mode, supervisor mode."""
    delegated = cpu.mideleg if bit(cause, 63) else cpu.medeleg
    status = cpu.mstatus
    cpu.reservation = u64(2**64 - 1)
    if cpu.privilege != 3 and (delegated >> (cause & 63)) & 1 != 0:
        cpu.scause = cause
        cpu.sepc = cpu.pc
        cpu.stval = value
        enabled = (status & SIE) << 4
        cpu.mstatus = (status & ~u64(SIE | SPIE | SPP)) | enabled | u64(cpu.privilege) << 8
        cpu.privilege = u8(1)
        cpu.next_pc = vector(cpu.stvec, cause)
    else:
        cpu.mcause = cause
        cpu.mepc = cpu.pc
        cpu.mtval = value
        enabled = (status & MIE) << 4
        cpu.mstatus = (status & ~u64(MIE | MPIE | MPP)) | enabled | u64(cpu.privilege) << MPP_SHIFT
        cpu.privilege = u8(3)
        cpu.next_pc = vector(cpu.mtvec, cause)


@rv64.hook("on_illegal")
def on_illegal(cpu, word: u64):
    """No instruction matches."""
    raise Trap(ILLEGAL_INSTRUCTION, word)


@rv64.hook("on_bus_error")
def on_bus_error(cpu, vaddr: u64, access: u32):
    """Nothing answers at the physical address: an access fault."""
    if access == FETCH:
        raise Trap(FETCH_ACCESS, vaddr)
    if access == READ:
        raise Trap(LOAD_ACCESS, vaddr)
    raise Trap(STORE_ACCESS, vaddr)


@rv64.instruction("0011000 00010 00000 000 00000 1110011", "mret", extension="Sm")
def mret(cpu):
    """Return from a trap in machine mode."""
    if cpu.privilege != 3:
        illegal(cpu)
    status = cpu.mstatus
    previous = u8(bits(status, 12, 11))
    enabled = (status & MPIE) >> 4
    kept = status & ~u64(MIE | MPP)
    if previous != 3:
        kept = kept & ~u64(MPRV)
    cpu.mstatus = kept | enabled | MPIE
    cpu.privilege = previous
    cpu.next_pc = cpu.mepc


@rv64.instruction("0001000 00010 00000 000 00000 1110011", "sret", extension="S")
def sret(cpu):
    """Return from a trap in supervisor mode."""
    if cpu.privilege == 0 or (cpu.privilege == 1 and cpu.mstatus & TSR != 0):
        illegal(cpu)
    status = cpu.mstatus
    enabled = (status & SPIE) >> 4
    cpu.mstatus = (status & ~u64(SIE | SPP | MPRV)) | enabled | SPIE
    cpu.privilege = u8(bits(status, 8, 8))
    cpu.next_pc = cpu.sepc


@rv64.instruction("0001000 00101 00000 000 00000 1110011", "wfi", extension="Sm")
def wfi(cpu):
    """Wait for an interrupt; with TW set, the time limit below machine mode is zero."""
    if cpu.privilege == 0 or (cpu.privilege == 1 and cpu.mstatus & TW != 0):
        illegal(cpu)
    cpu.wait("wfi")
