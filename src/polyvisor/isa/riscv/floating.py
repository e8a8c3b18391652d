"""What floating-point instructions of all formats share (Unprivileged Architecture, chapters "F" and "D").

Single-precision values are NaN-boxed in the 64-bit registers: the upper half is all ones, and what is not boxed
reads as the canonical NaN.
"""

from polyvisor.adl import function, sext, softfloat, u8, u32, u64, unlikely
from polyvisor.adl.softfloat import BINARY32, BINARY64, INEXACT, NEAREST_EVEN

from .causes import illegal

SINGLE = BINARY32
DOUBLE = BINARY64

# mstatus.FS: 0 off, 1 initial, 2 clean, 3 dirty.
FS = 3 << 13
BOX = 0xFFFF_FFFF_0000_0000
DYNAMIC = 7
# Rounding modes 0 to 4 are those of `polyvisor.adl.softfloat`, the bits of fflags its flags.
LAST_MODE = 4


@function(inline=False)
def first_use(cpu):
    """Illegal instruction if floating point is off; else it becomes dirty."""
    if cpu.mstatus & FS == 0:
        illegal(cpu)
    cpu.mstatus = cpu.mstatus | FS


@function
def writes_f(cpu):
    """Begin an instruction that writes floating-point state.

    FS is made dirty at once, although the instruction may still trap: it need not be precise (Privileged
    Architecture, "Extension Context Status").
    """
    if unlikely(cpu.mstatus & FS != FS):
        first_use(cpu)


@function
def reads_f(cpu):
    """Begin an instruction that only reads floating-point registers, and may raise flags."""
    if unlikely(cpu.mstatus & FS == 0):
        illegal(cpu)


@function
def raise_flags(cpu, flags: u8):
    """Accrue ``flags``."""
    if unlikely(flags != 0):
        writes_f(cpu)
        cpu.fflags = cpu.fflags | flags


@function
def read(cpu, fmt, number: u32) -> u64:
    """The value of format ``fmt`` in register ``number``."""
    value = cpu.f[number]
    if fmt.bits == 32:
        value = value & 0xFFFF_FFFF if value >= BOX else u64(SINGLE.default_nan)
    return value


@function
def write(cpu, fmt, number: u32, value: u64):
    """Set register ``number`` to ``value`` of format ``fmt``."""
    if fmt.bits == 32:
        cpu.f[number] = value | BOX
    else:
        cpu.f[number] = value


@function
def mode_of(cpu, rm: u32) -> u32:
    """The rounding mode that the field ``rm`` selects; may be one that does not exist."""
    mode = rm
    if rm == DYNAMIC:
        mode = u32(cpu.frm)
    return mode


@function
def check_mode(cpu, mode: u32):
    """Illegal instruction if there is no such rounding mode."""
    if unlikely(mode > LAST_MODE):
        illegal(cpu)


# Each operation: the host's result if it is certain, which is nearly always once inexact has been raised. Then
# the mode is to nearest, so that it need not be checked, and no state but the result changes.


@function
def by_host(certain: bool, mode: u32) -> bool:
    """Whether the host's result stands."""
    return certain and mode == NEAREST_EVEN


@function
def add(cpu, fmt, a: u64, b: u64, rm: u32) -> u64:
    """a + b."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_add(fmt, a, b, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.add(fmt, a, b, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def sub(cpu, fmt, a: u64, b: u64, rm: u32) -> u64:
    """a - b."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_sub(fmt, a, b, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.sub(fmt, a, b, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def mul(cpu, fmt, a: u64, b: u64, rm: u32) -> u64:
    """a * b."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_mul(fmt, a, b, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.mul(fmt, a, b, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def div(cpu, fmt, a: u64, b: u64, rm: u32) -> u64:
    """a / b."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_div(fmt, a, b, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.div(fmt, a, b, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def sqrt(cpu, fmt, a: u64, rm: u32) -> u64:
    """The square root."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_sqrt(fmt, a, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.sqrt(fmt, a, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def fma(cpu, fmt, a: u64, b: u64, c: u64, rm: u32) -> u64:
    """a * b + c, rounded once."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_fma(fmt, a, b, c, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.fma(fmt, a, b, c, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def negated(fmt, a: u64) -> u64:
    """-a: only the sign bit changes."""
    return a ^ fmt.sign


@function
def with_sign(fmt, a: u64, b: u64) -> u64:
    """``a`` with the sign of ``b``."""
    return a & fmt.magnitude | b & fmt.sign


@function
def min_max(cpu, fmt, greatest, a: u64, b: u64) -> u64:
    """The smaller or (if ``greatest``) the greater number."""
    if greatest:
        result, flags = softfloat.maximum_number(fmt, a, b)
    else:
        result, flags = softfloat.minimum_number(fmt, a, b)
    raise_flags(cpu, flags)
    return result


@function
def from_integer(cpu, fmt, integer, value: u64, rm: u32) -> u64:
    """The low bits of ``value``, an ``integer``, in the format."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_from_integer(fmt, integer, value, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.from_integer(fmt, integer, value, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def to_integer(cpu, fmt, integer, a: u64, rm: u32) -> u64:
    """``a`` as an ``integer``; 32-bit ones, unsigned too, are sign-extended."""
    mode = mode_of(cpu, rm)
    check_mode(cpu, mode)
    result, certain = softfloat.host_to_integer(fmt, integer, a, mode, cpu.fflags & INEXACT != 0)
    if unlikely(not certain):
        result, flags = softfloat.to_integer(fmt, integer, a, mode)
        raise_flags(cpu, flags)
    return sext(result, 32) if integer.bits == 32 else result


@function
def narrow(cpu, a: u64, rm: u32) -> u64:
    """The double ``a`` as a single."""
    mode = mode_of(cpu, rm)
    result, certain = softfloat.host_narrow(DOUBLE, SINGLE, a, cpu.fflags & INEXACT != 0)
    if unlikely(not by_host(certain, mode)):
        check_mode(cpu, mode)
        result, flags = softfloat.convert(DOUBLE, SINGLE, a, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def widen(cpu, a: u64, rm: u32) -> u64:
    """The single ``a`` as a double: exact, but ``rm`` must be valid."""
    mode = mode_of(cpu, rm)
    check_mode(cpu, mode)
    result, certain = softfloat.host_widen(SINGLE, DOUBLE, a)
    if unlikely(not certain):
        result, flags = softfloat.convert(SINGLE, DOUBLE, a, mode)
        cpu.fflags = cpu.fflags | flags
    return result


@function
def equal(cpu, fmt, a: u64, b: u64) -> u64:
    """1 if a == b, else 0; only signaling NaNs are invalid."""
    result, flags = softfloat.equal(fmt, False, a, b)
    raise_flags(cpu, flags)
    return u64(result)


@function
def less(cpu, fmt, a: u64, b: u64) -> u64:
    """1 if a < b, else 0; NaNs are invalid."""
    result, flags = softfloat.less(fmt, True, a, b)
    raise_flags(cpu, flags)
    return u64(result)


@function
def less_equal(cpu, fmt, a: u64, b: u64) -> u64:
    """1 if a <= b, else 0; NaNs are invalid."""
    result, flags = softfloat.less_equal(fmt, True, a, b)
    raise_flags(cpu, flags)
    return u64(result)


@function
def class_mask(fmt, a: u64) -> u64:
    """One of ten bits, by the class of ``a``: from bit 0, negative infinity, to bit 9, quiet NaN."""
    return u64(1) << (softfloat.classify(fmt, a) & 15)
