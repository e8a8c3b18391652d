"""The fast path: the host's arithmetic, where it is certain to give the IEEE result and flags.

Each function gives the host's result and whether that is *certain*: right for rounding to nearest, ties to even,
and no flag is to be raised that is not raised already. ``inexact`` says that the inexact flag is raised already;
else the host's result is certain only where it is exact, which is found out by computing its error, with
error-free transformations (T. J. Dekker, "A floating-point technique for extending the available precision",
1971; O. Moller, "Quasi double-precision in floating-point addition", 1965). Where it is not certain, or the rounding
mode is another one, the functions of :mod:`.arithmetic` and :mod:`.conversions` decide.

A finite result of the host has finite operands, so that most of these need to look at the result only.
"""

from __future__ import annotations

from ..builtins import ieee_add, ieee_convert, ieee_div, ieee_fma, ieee_mul, ieee_sqrt, ieee_sub
from ..functions import function
from ..types import i32, u32, u64
from .formats import BINARY64
from .rounding import is_nan, is_zero, rounds_up, sign_of

TWO_TO_52 = 0x4330_0000_0000_0000  # as a binary64 pattern

@function(inline=False)
def sum_is_exact(fmt, a: u64, b: u64, total: u64) -> bool:
    """Whether ``total``, which is the host's finite a + b, is exact."""
    x = fmt.type(a)
    y = fmt.type(b)
    s = fmt.type(total)
    part = ieee_sub(s, x)
    error = ieee_add(ieee_sub(x, ieee_sub(s, part)), ieee_sub(y, part))
    return is_zero(fmt, u64(error))


@function(inline=False)
def fma_is_zero(fmt, a: u64, b: u64, c: u64) -> bool:
    """Whether a * b + c rounds to 0, for finite operands."""
    return is_zero(fmt, u64(ieee_fma(fmt.type(a), fmt.type(b), fmt.type(c))))


@function
def host_add(fmt, a: u64, b: u64, inexact: bool) -> tuple[u64, bool]:
    """a + b; a sum that is tiny is exact."""
    result = u64(ieee_add(fmt.type(a), fmt.type(b)))
    certain = result & fmt.magnitude < fmt.infinity and (inexact or sum_is_exact(fmt, a, b, result))
    return result, certain


@function
def host_sub(fmt, a: u64, b: u64, inexact: bool) -> tuple[u64, bool]:
    """a - b; a difference that is tiny is exact."""
    result = u64(ieee_sub(fmt.type(a), fmt.type(b)))
    certain = result & fmt.magnitude < fmt.infinity and (inexact or sum_is_exact(fmt, a, b ^ fmt.sign, result))
    return result, certain


@function
def in_safe_range(fmt, a: u64, lowest: u64) -> bool:
    """Whether the size of ``a`` is at least ``lowest``, and finite."""
    return (a & fmt.magnitude) - lowest < fmt.infinity - lowest


@function
def host_mul(fmt, a: u64, b: u64, inexact: bool) -> tuple[u64, bool]:
    """a * b."""
    result = u64(ieee_mul(fmt.type(a), fmt.type(b)))
    if inexact:
        certain = in_safe_range(fmt, result, u64(fmt.smallest_safe))
    else:
        certain = in_safe_range(fmt, result, u64(fmt.error_safe)) and fma_is_zero(fmt, a, b, result ^ fmt.sign)
    if not certain and is_zero(fmt, result):
        certain = is_zero(fmt, a) or is_zero(fmt, b)
    return result, certain


@function
def host_div(fmt, a: u64, b: u64, inexact: bool) -> tuple[u64, bool]:
    """a / b. A quotient that is finite and not zero has operands like that."""
    result = u64(ieee_div(fmt.type(a), fmt.type(b)))
    certain = in_safe_range(fmt, result, u64(fmt.smallest_safe))
    if certain and not inexact:
        certain = in_safe_range(fmt, a, u64(fmt.error_safe)) and fma_is_zero(fmt, result ^ fmt.sign, b, a)
    return result, certain


@function
def host_sqrt(fmt, a: u64, inexact: bool) -> tuple[u64, bool]:
    """The square root, which is never tiny."""
    result = u64(ieee_sqrt(fmt.type(a)))
    certain = result & fmt.magnitude < fmt.infinity
    if certain and not inexact:
        certain = is_zero(fmt, a) or (a > fmt.error_safe and fma_is_zero(fmt, result ^ fmt.sign, result, a))
    return result, certain


@function
def host_fma(fmt, a: u64, b: u64, c: u64, inexact: bool) -> tuple[u64, bool]:
    """a * b + c."""
    result = u64(0)
    certain = False
    if (
        a & fmt.magnitude < fmt.infinity
        and b & fmt.magnitude < fmt.infinity
        and c & fmt.magnitude < fmt.infinity
    ):
        result = u64(ieee_fma(fmt.type(a), fmt.type(b), fmt.type(c)))
        certain = in_safe_range(fmt, result, u64(fmt.smallest_safe))
        if certain and not inexact:
            certain = fma_is_exact(fmt, a, b, c, result)
    return result, certain


@function(inline=False)
def fma_is_exact(fmt, a: u64, b: u64, c: u64, result: u64) -> bool:
    """Whether ``result``, the host's finite a * b + c, is exact; may say no where a * b is not exact."""
    product, exact = host_mul(fmt, a, b, False)
    if exact:
        total = u64(ieee_add(fmt.type(product), fmt.type(c)))
        exact = total == result and sum_is_exact(fmt, product, c, total)
    return exact


@function
def host_widen(source, target, a: u64) -> tuple[u64, bool]:
    """``a`` in the wider format ``target``: certain unless it is a NaN, in every rounding mode."""
    return u64(ieee_convert(target.type, source.type(a))), not is_nan(source, a)


@function
def host_narrow(source, target, a: u64, inexact: bool) -> tuple[u64, bool]:
    """``a`` in the narrower format ``target``."""
    narrow = ieee_convert(target.type, source.type(a))
    result = u64(narrow)
    certain = inexact and in_safe_range(target, result, u64(target.smallest_safe))
    if not certain and not is_nan(source, a):
        certain = u64(ieee_convert(source.type, narrow)) == a
    return result, certain


@function
def host_from_integer(fmt, integer, value: u64, inexact: bool) -> tuple[u64, bool]:
    """The low bits of ``value``, an ``integer`` (i32, u32, i64 or u64), in the format.

    Certain where the integer needs at most 52 bits, with its sign if it has one: it is made the low bits of a
    binary64 number that is so large that its last bit weighs 1, and what is too much is taken away.
    """
    number = u64(integer(value))
    offset = u64(1 << 51) if integer.signed else u64(0)
    shifted = number + offset
    certain = shifted < 1 << 52
    # 2**52 + offset + number, less 2**52 + offset.
    double = ieee_sub(shifted & (1 << 52) - 1 | TWO_TO_52, offset | TWO_TO_52)
    if fmt.bits == 64:
        return double, certain
    narrow, narrow_certain = host_narrow(BINARY64, fmt, double, inexact)
    return narrow, certain and narrow_certain


@function
def host_to_integer(fmt, integer, a: u64, mode: u32, inexact: bool) -> tuple[u64, bool]:
    """``a`` as an ``integer`` (i32, u32, i64 or u64), sign-extended if signed, in any rounding ``mode``.

    Certain where the size of ``a`` is less than 2**30 (2**52 for 64-bit integers; 2**23 if binary32), and it is
    integral or ``inexact`` was raised before.
    """
    limit = i32(fmt.fraction_bits if integer.bits == 64 or fmt.fraction_bits < 30 else 30) + fmt.bias
    biased = i32((a & fmt.magnitude) >> fmt.fraction_bits)
    significand = a & fmt.fraction
    if biased != 0:
        significand = significand | fmt.hidden
    # Bits below the binary point, at least 1 where it is certain; with 63 nothing is left of the significand.
    shift = u32(fmt.bias + fmt.fraction_bits - biased)
    if shift > 63:
        shift = u32(63)
    whole = significand >> shift
    rest = significand - (whole << shift)
    certain = biased < limit and (inexact or rest == 0)
    sign = sign_of(fmt, a)
    if rounds_up(sign, whole & 1 != 0, rest, u64(1) << shift >> 1, mode):
        whole = whole + 1
    if not integer.signed:
        certain = certain and (whole == 0 or sign == 0)
    negative = u64(0) - sign
    return (whole ^ negative) - negative, certain
