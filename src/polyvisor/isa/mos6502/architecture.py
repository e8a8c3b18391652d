"""The architectures of the 6502 family, and how their operands are written.

``mos6502`` is the NMOS 6502 on a flat bus; ``mos6510`` adds the port at $0000 and $0001 (see `port`);
``wdc65c02`` is the CMOS one (see `variants`).  Sources: MOS MCS6500 Microcomputer Family Programming Manual; the cycles
are those of the MCS6500 Family Hardware Manual, appendix A.
"""

from polyvisor.adl import Architecture

mos6502 = Architecture(
    "mos6502",
    max_length=3,
    # The size of the CPU's own pages: zero page, stack and programs are apart.
    page_bits=8,
    address_bits=16,
    clocked=8,
    # Programs rewrite themselves as a matter of course, beside their variables.
    data_after=1 << 20,
    absolute=True,
    padding=("nop",),
    comments=(";", "//"),
    word=2,
)
mos6502.kind("byte", width=8, signed=False, prefix="$")
mos6502.kind("word", width=16, signed=False, prefix="$")
# Branches count from the instruction that follows; those with two operands are longer.
mos6502.kind("target", pc=True, width=16, prefix="$", after=2)
mos6502.kind("farther", pc=True, width=16, prefix="$", after=3)
mos6502.reasons += ["jam", "bus error"]
