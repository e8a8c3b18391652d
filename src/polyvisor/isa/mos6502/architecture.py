"""The 6502 family: its registers and flags, and how operands are written.

``mos6502`` is the NMOS 6502 on a flat bus; ``mos6510`` adds the port at $0000 and $0001 (see `bus`); ``wdc65c02`` is
the CMOS one (see `cmos`). Sources: MOS MCS6500 Microcomputer Family Programming Manual; the cycles are those of the
MCS6500 Family Hardware Manual, appendix A.
"""

from polyvisor.adl import Architecture, Field, State, function, u8, u64

NEVER = 2**64 - 1

mos6502 = Architecture(
    "mos6502", max_length=3, address_bits=16, clocked=8, absolute=True, padding=("nop",), comments=(";", "//"), word=2,
    page_bits=8,  # the CPU's own pages: zero page, stack and programs are apart
    data_after=1 << 20,  # programs rewrite themselves as a matter of course, beside their variables
)  # fmt: skip
mos6502.kind("byte", width=8, signed=False, prefix="$")
mos6502.kind("word", width=16, signed=False, prefix="$")
# Branches count from the instruction that follows; those with two operands are longer.
mos6502.kind("target", pc=True, width=16, prefix="$", after=2)
mos6502.kind("farther", pc=True, width=16, prefix="$", after=3)
mos6502.reasons += ["jam", "bus error"]


@mos6502.state
class Mos6502(State):
    """Registers, flags one by one, and the interrupt lines.

    The flags N and Z are kept as the values that they tell of: instructions set both, and seldom are they looked at.
    """

    pc = Field(u64)
    a = Field(u8, doc="accumulator")
    x = Field(u8, doc="index")
    y = Field(u8, doc="index")
    s = Field(u8, reset=0xFD, doc="stack pointer, in page 1")
    n = Field(u8, doc="bit 7 is the flag N")
    z = Field(u8, reset=1, doc="0: the flag Z is set")
    c = Field(u8, doc="carry, 0 or 1")
    v = Field(u8, doc="overflow, 0 or 1")
    d = Field(u8, doc="decimal mode, 0 or 1")
    i = Field(u8, reset=1, doc="interrupts disabled, 0 or 1")
    irq_lines = Field(u8, doc="a bit for each device that pulls the IRQ line down")
    nmi_lines = Field(u8, doc="a bit for each device that pulls the NMI line down")
    nmi_pending = Field(u8, doc="1: the NMI line fell, which was not served yet")
    irq_since = Field(u64, doc="number of the clock cycle in which the IRQ line fell")
    irq_until = Field(u64, doc="number of the clock cycle in which the IRQ line was let go")
    nmi_since = Field(u64, doc="number of the clock cycle in which the NMI line fell")
    # When interrupts are looked for differs for some instructions; they note when they ended (a count of cycles).
    i_before = Field(u8, quiet=True, doc="I before an instruction that changes it after interrupts were looked for")
    i_changed = Field(u64, reset=NEVER, quiet=True, doc="the end of that instruction")
    branched = Field(u64, reset=NEVER, quiet=True, doc="the end of the last branch taken within a page")
    vectored = Field(u64, reset=NEVER, quiet=True, doc="the end of the last entry of an interrupt")

    @property
    def p(self) -> int:
        """The status register as PHP pushes it, with B set."""
        return int(status(self)) | 0x10

    @p.setter
    def p(self, value: int) -> None:
        set_status(self, u8(value))


@function
def status(cpu) -> u8:
    """The status register as an interrupt pushes it: N V 1 B D I Z C, with B clear."""
    return cpu.n & 0x80 | cpu.v << 6 | 0x20 | cpu.d << 3 | cpu.i << 2 | u8(cpu.z == 0) << 1 | cpu.c


@function
def set_status(cpu, value: u8) -> None:
    """All flags from a byte that was pulled."""
    cpu.n, cpu.z, cpu.c = value, ~value & 2, value & 1
    cpu.v, cpu.d, cpu.i = value >> 6 & 1, value >> 3 & 1, value >> 2 & 1


@function
def nz(cpu, value: u8) -> u8:
    """N and Z tell of a value, which is given back."""
    cpu.n, cpu.z = value, value
    return value
