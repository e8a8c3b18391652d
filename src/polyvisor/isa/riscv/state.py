"""The state of a RISC-V hart."""

from polyvisor.adl import Field, Registers, State, u8, u64

from .architecture import F_NAMES, X_NAMES, rv64


@rv64.state
class Hart(State):
    """Registers, control and status registers, and what the platform tells a hart."""

    pc = Field(u64, doc="address of the current instruction")
    x = Registers(u64, 32, names=X_NAMES, zero=0, doc="integer registers")
    f = Registers(u64, 32, names=F_NAMES, doc="floating-point registers; narrower values are NaN-boxed")
    fflags = Field(u8, doc="accrued exceptions: NV DZ OF UF NX from bit 4 to bit 0")
    frm = Field(u8, doc="dynamic rounding mode")
    mstatus = Field(u64, doc="machine status, without SD, which is derived")
    reservation = Field(u64, reset=2**64 - 1, doc="address reserved by LR; all ones if none")
    reserved_value = Field(u64, doc="what LR loaded, for SC to compare")
    privilege = Field(u8, reset=3, doc="0 user, 1 supervisor, 3 machine")
    sbi = Field(u8, doc="1: ecall from S-mode goes to the platform")
