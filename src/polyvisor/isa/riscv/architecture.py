"""The RV64 architecture object and how its operands are written."""

from polyvisor.adl import Architecture, SystemCall, u32, u64

from .causes import ECALL_USER

X_NAMES = (
    "zero ra sp gp tp t0 t1 t2 s0 s1 a0 a1 a2 a3 a4 a5 a6 a7 s2 s3 s4 s5 s6 s7 s8 s9 s10 s11 t3 t4 t5 t6".split()
)
F_NAMES = (
    "ft0 ft1 ft2 ft3 ft4 ft5 ft6 ft7 fs0 fs1 fa0 fa1 fa2 fa3 fa4 fa5 fa6 fa7 "
    "fs2 fs3 fs4 fs5 fs6 fs7 fs8 fs9 fs10 fs11 ft8 ft9 ft10 ft11".split()
)

# Translation rules side by side: user, supervisor, supervisor with SUM, machine (see mmu.py).
rv64 = Architecture(
    "rv64",
    byte_order="little",
    unit=2,
    max_length=4,
    page_bits=12,
    contexts=4,
    prime_adds=8,
    padding=("nop", "c.nop"),
    reasons=["wfi", "sbi"],
    # The Linux ABI: ecall from user mode, the number in a7, arguments in a0 to a5, the result in a0.
    system_call=SystemCall(ECALL_USER, "x", 17, (10, 11, 12, 13, 14, 15), 10),
    default_kinds={"rd": "x", "rs1": "x", "rs2": "x", "rs3": "x", "csr": "csr", "rm": "rm"},
)
rv64.kind("x", X_NAMES, aliases={**{f"x{i}": i for i in range(32)}, "fp": 8})
rv64.kind("f", F_NAMES, aliases={f"f{i}": i for i in range(32)})
rv64.kind("rm", ("rne", "rtz", "rdn", "rup", "rmm", "", "", "dyn"), default=7)
rv64.kind("pc", pc=True)


@rv64.hook("length")
def length(cpu, first: u64) -> u32:
    """16 bits, or 32 where the two low bits are 11 (Unprivileged ISA, "Base Instruction-Length Encoding")."""
    return u32(4) if first & 3 == 3 else u32(2)
