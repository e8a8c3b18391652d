"""Machine-level CSRs (Privileged Architecture, chapter 3)."""

from polyvisor.adl import bit, bits, function, u8, u32, u64

from .csr import CSR_READ, CSR_WRITE, constant_csr, csr, csr_functions, name_csr
from .interrupts import ALL, SEIP, SSIP, STCE, STIP, SUPERVISOR, pending
from .pmp import pmp_update, write_address, write_config
from .state import PMP_ENTRIES
from .trap import FS, MIE, MPIE, MPP, MPRV, MXR, SIE, SPIE, SPP, SUM, TSR, TVM, TW

# 3.1.1: RV64 with A C D F I M S U
MISA = 2 << 62 | sum(1 << (ord(letter) - ord("A")) for letter in "ACDFIMSU")
# 3.1.6: SXL and UXL are fixed to 64 bits
XL64 = 2 << 32 | 2 << 34
MSTATUS_WRITABLE = SIE | MIE | SPIE | MPIE | SPP | FS | MPRV | SUM | MXR | TVM | TW | TSR
SSTATUS_WRITABLE = SIE | SPIE | SPP | FS | SUM | MXR
# 3.1.8: ecall from machine mode cannot be delegated; reserved causes are zero
MEDELEG = 0xB3FF
# 3.1.18: FIOM, CBIE and others of absent extensions are zero but FIOM
MENVCFG = 1 << 0 | 1 << 61 | 1 << 63


@function
def with_derived(status: u64) -> u64:
    """mstatus as software reads it: SD says that FS is dirty."""
    return status | XL64 | 1 << 63 if status & FS == FS else status | XL64


@function
def read_mstatus(cpu) -> u64:
    return with_derived(cpu.mstatus)


@function
def change_status(cpu, value: u64, writable):
    """Write the bits of mstatus in ``writable``. MXR is not part of a translation context, so it flushes."""
    old = cpu.mstatus
    new = (old & ~u64(writable)) | (value & writable)
    if (old ^ new) & MXR != 0:
        cpu.flush_tlb()
    cpu.mstatus = new


@function
def write_mstatus(cpu, value: u64):
    change_status(cpu, value, MSTATUS_WRITABLE)
    if bits(value, 12, 11) != 2:
        cpu.mstatus = (cpu.mstatus & ~u64(MPP)) | (value & MPP)


csr_functions(0x300, "mstatus", read_mstatus, write_mstatus)
constant_csr(0x301, "misa", MISA)
csr(0x302, "medeleg", "medeleg", writable=MEDELEG)
csr(0x303, "mideleg", "mideleg", writable=SUPERVISOR)
csr(0x304, "mie", "mie", writable=ALL)


@function
def legal_tvec(value: u64) -> u64:
    """Modes 0 and 1; a reserved mode becomes the one it has in its low bit."""
    return value & ~u64(2)


def _tvec(number: int, name: str) -> None:
    def read(cpu) -> u64:
        return getattr(cpu, name)

    def write(cpu, value: u64):
        setattr(cpu, name, legal_tvec(value))

    name_csr(number, name)
    CSR_READ.entry(number)(read)
    CSR_WRITE.entry(number)(write)


_tvec(0x305, "mtvec")
csr(0x306, "mcounteren", "mcounteren", writable=0xFFFF_FFFF)
csr(0x340, "mscratch", "mscratch")
csr(0x341, "mepc", "mepc", writable=2**64 - 2)
csr(0x342, "mcause", "mcause")
csr(0x343, "mtval", "mtval")
csr(0x30A, "menvcfg", "menvcfg", writable=MENVCFG)


@function
def read_mip(cpu) -> u64:
    return pending(cpu)


@function
def write_mip(cpu, value: u64):
    """SSIP and SEIP are writable; STIP only without Sstc (3.1.9, Sstc 2.1).

    An inter-processor interrupt raised since the register was read comes after this write, which must not lose it.
    """
    writable = u64(SSIP | SEIP)
    if not bit(cpu.menvcfg, STCE):
        writable = u64(SSIP | SEIP | STIP)
    cpu.mip = (cpu.mip & ~writable) | (value & writable)


csr_functions(0x344, "mip", read_mip, write_mip)

constant_csr(0xF11, "mvendorid")
constant_csr(0xF12, "marchid")
constant_csr(0xF13, "mimpid")
csr(0xF14, "mhartid", "mhartid")
constant_csr(0xF15, "mconfigptr")

# Debug triggers: there are none, which type 0 in tdata1 says (Debug Specification, 5.7)
constant_csr(0x7A0, "tselect")
constant_csr(0x7A1, "tdata1")
constant_csr(0x7A2, "tdata2")
constant_csr(0x7A3, "tdata3")

# Physical memory protection (3.7): 16 of 64 entries; the others are read-only zero


def _pmpcfg(number: int, first: int) -> None:
    def read(cpu) -> u64:
        value = u64(0)
        for i in range(8):
            value = value | u64(cpu.pmpcfg[first + i]) << (8 * i)
        return value

    def write(cpu, value: u64):
        for i in range(8):
            write_config(cpu, first + i, u8(value >> (8 * i)))
        pmp_update(cpu)

    name_csr(number, f"pmpcfg{number - 0x3A0}")
    CSR_READ.entry(number)(read)
    CSR_WRITE.entry(number)(write)


for _n in range(0, 16, 2):
    if 4 * _n < PMP_ENTRIES:
        _pmpcfg(0x3A0 + _n, 4 * _n)
    else:
        constant_csr(0x3A0 + _n, f"pmpcfg{_n}")


def _pmpaddr(entry: int) -> None:
    def read(cpu) -> u64:
        return cpu.pmpaddr[entry]

    def write(cpu, value: u64):
        write_address(cpu, entry, value)
        cpu.flush_tlb()

    name_csr(0x3B0 + entry, f"pmpaddr{entry}")
    CSR_READ.entry(0x3B0 + entry)(read)
    CSR_WRITE.entry(0x3B0 + entry)(write)


for _n in range(64):
    if _n < PMP_ENTRIES:
        _pmpaddr(_n)
    else:
        constant_csr(0x3B0 + _n, f"pmpaddr{_n}")


__all__ = ["SSTATUS_WRITABLE", "change_status", "legal_tvec", "u32", "with_derived"]
