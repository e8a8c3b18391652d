"""The state of a 6502.

The flags N and Z are kept as the values that they tell of: instructions set both, and seldom are they looked at.
"""

from polyvisor.adl import Field, State, u8, u64

from .architecture import mos6502

NEVER = 2**64 - 1


@mos6502.state
class Mos6502(State):
    """Registers, flags one by one, and the interrupt lines. ``p`` is the status register as it is pushed."""

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
        """The status register: N V 1 B D I Z C, with B set."""
        return (
            int(self.n) & 0x80 | int(self.v) << 6 | 0x30 | int(self.d) << 3 | int(self.i) << 2
            | (int(self.z) == 0) << 1 | int(self.c)
        )  # fmt: skip

    @p.setter
    def p(self, value: int) -> None:
        self.n, self.v, self.d, self.i = value & 0x80, value >> 6 & 1, value >> 3 & 1, value >> 2 & 1
        self.z, self.c = ~value >> 1 & 1, value & 1
