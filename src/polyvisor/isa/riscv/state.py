"""The state of a RISC-V hart."""

from polyvisor.adl import Field, Registers, State, u8, u32, u64

from .architecture import F_NAMES, X_NAMES, rv64

PMP_ENTRIES = 16


@rv64.state
class Hart(State):
    """Registers, control and status registers, and what the platform tells a hart."""

    pc = Field(u64, doc="address of the current instruction")
    x = Registers(u64, 32, names=X_NAMES, zero=0, doc="integer registers")
    f = Registers(u64, 32, names=F_NAMES, doc="floating-point registers; narrower values are NaN-boxed")
    fflags = Field(u8, doc="accrued exceptions: NV DZ OF UF NX from bit 4 to bit 0", likely=(1, 1))
    frm = Field(u8, doc="dynamic rounding mode", likely=(0xFF, 0))
    reservation = Field(u64, reset=2**64 - 1, doc="address reserved by LR; all ones if none")
    reserved_value = Field(u64, doc="what LR loaded, for SC to compare")
    privilege = Field(u8, reset=3, doc="0 user, 1 supervisor, 3 machine")

    # Machine-level registers (Privileged Architecture, chapter 3)
    mstatus = Field(u64, doc="without SD, UXL and SXL, which are derived", likely=(3 << 13, 3 << 13))
    mhartid = Field(u64)
    medeleg = Field(u64)
    mideleg = Field(u64)
    mie = Field(u64)
    mip = Field(u64, doc="the bits that software wrote: SSIP, STIP, SEIP")
    mtvec = Field(u64)
    mcounteren = Field(u64)
    mcountinhibit = Field(u64)
    mscratch = Field(u64)
    mepc = Field(u64)
    mcause = Field(u64)
    mtval = Field(u64)
    menvcfg = Field(u64)
    cycle_base = Field(u64, doc="mcycle minus the instructions executed; while inhibited, mcycle itself")
    instret_base = Field(u64, doc="minstret likewise")
    pmpcfg = Registers(u8, PMP_ENTRIES)
    pmpaddr = Registers(u64, PMP_ENTRIES)
    pmp_used = Field(u32, doc="derived: one more than the highest entry that is not off")

    # Supervisor-level registers (chapter 12)
    stvec = Field(u64)
    scounteren = Field(u64)
    senvcfg = Field(u64)
    sscratch = Field(u64)
    sepc = Field(u64)
    scause = Field(u64)
    stval = Field(u64)
    satp = Field(u64)
    stimecmp = Field(u64, reset=2**64 - 1)

    # Written by the platform, from any thread; each has its own byte, so that nobody reads before writing.
    line_msip = Field(u8, doc="machine software interrupt, from the ACLINT")
    line_mtip = Field(u8, doc="machine timer interrupt, driven from outside; the comparison with mtimecmp adds to it")
    line_meip = Field(u8, doc="machine external interrupt, from the PLIC")
    line_seip = Field(u8, doc="supervisor external interrupt, from the PLIC")
    raise_ssip = Field(u8, doc="1: an inter-processor interrupt came; becomes mip.SSIP")
    mtimecmp = Field(u64, reset=2**64 - 1, doc="machine timer interrupt while clock() >= mtimecmp")
    sbi = Field(u8, doc="1: ecall from supervisor mode goes to the platform, which serves the SBI")
