"""RISC-V registers as debuggers number and describe them (GDB manual, "RISC-V Features")."""

from .architecture import F_NAMES, X_NAMES

# Name, and where it is in the state: a member, and the index for an array. Numbers are positions in this list.
REGISTERS: tuple[tuple[str, str, int | None], ...] = (
    *((name, "x", i) for i, name in enumerate(X_NAMES)),
    ("pc", "pc", None),
    *((name, "f", i) for i, name in enumerate(F_NAMES)),
)

_CPU = "".join(
    f'<reg name="{name}" bitsize="64" type="{kind}" regnum="{number}"/>'
    for number, (name, kind) in enumerate(
        [*((n, {"ra": "code_ptr", "sp": "data_ptr"}.get(n, "int")) for n in X_NAMES), ("pc", "code_ptr")]
    )
)
_FPU = "".join(
    f'<reg name="{name}" bitsize="64" type="ieee_double" regnum="{33 + i}"/>' for i, name in enumerate(F_NAMES)
)

TARGET_XML = (
    '<?xml version="1.0"?><!DOCTYPE target SYSTEM "gdb-target.dtd"><target version="1.0">'
    "<architecture>riscv:rv64</architecture>"
    f'<feature name="org.gnu.gdb.riscv.cpu">{_CPU}</feature>'
    f'<feature name="org.gnu.gdb.riscv.fpu">{_FPU}</feature></target>'
)
