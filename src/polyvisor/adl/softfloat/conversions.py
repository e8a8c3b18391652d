"""Conversions between formats, to and from integers, and rounding to integral values.

Patterns are in u64; ``fmt`` and types are known at compile time (IEEE 754-2008, 5.4.1, 5.4.2, 5.8, 5.9).
"""

from __future__ import annotations

from ..builtins import clz
from ..functions import function
from ..types import i32, u8, u32, u64, u128
from .formats import CANONICAL_NAN, INEXACT, INVALID, NAN_TO_SMALLEST, NAN_TO_ZERO
from .rounding import (
    is_infinite,
    is_nan,
    is_signaling,
    is_zero,
    nan_of,
    round_pack,
    rounds_up,
    sign_of,
    signed,
    unpack,
)


@function(inline=False)
def convert(source, target, a: u64, mode: u32) -> tuple[u64, u8]:
    """``a`` of format ``source`` in format ``target``; rules are those of ``target``."""
    sign = sign_of(source, a)
    if is_nan(source, a):
        flags = u8(INVALID) if is_signaling(source, a) else u8(0)
        result = u64(target.default_nan)
        if target.rules.nan != CANONICAL_NAN:
            # The leading bits of the fraction stay.
            fraction = (a & source.fraction) << source.spare >> target.spare
            result = signed(target, sign, fraction | (target.infinity | target.quiet))
        return result, flags
    if is_infinite(source, a):
        return signed(target, sign, u64(target.infinity)), u8(0)
    if is_zero(source, a):
        return signed(target, sign, u64(0)), u8(0)
    exponent, significand = unpack(source, a)
    return round_pack(target, sign, exponent, significand, mode)


@function
def fixed_point(exponent: i32, significand: u64) -> tuple[u64, u64]:
    """Whole part, and fraction in units of 2**-64, of ``significand / 2**63 * 2**exponent``, exponent < 64.

    The lowest bit of the fraction is sticky.
    """
    shift = u32(63 - exponent)
    if shift > 127:
        shift = u32(127)
    value = u128(significand) << 64
    shifted = value >> shift
    return u64(shifted >> 64), u64(shifted) | u64(shifted << shift != value)


@function
def out_of_range(fmt, integer, sign: u64) -> u64:
    """What a number that does not fit ``integer`` becomes; as if sign-extended if ``integer`` is signed."""
    lowest = u64(0)
    highest = u64(integer(-1))
    if integer.signed:
        lowest = u64(-1) << (integer.bits - 1)
        highest = ~lowest
    return highest if fmt.rules.saturate and sign == 0 else lowest


@function(inline=False)
def to_integer(fmt, integer, a: u64, mode: u32) -> tuple[u64, u8]:
    """``a`` as an ``integer`` (i32, u32, i64 or u64), in the low bits of a u64, sign-extended if signed.

    Invalid operation, and nothing else, where it does not fit.
    """
    sign = sign_of(fmt, a)
    if is_nan(fmt, a):
        result = out_of_range(fmt, integer, u64(0))
        if fmt.rules.nan_to_integer == NAN_TO_ZERO:
            result = u64(0)
        elif fmt.rules.nan_to_integer == NAN_TO_SMALLEST:
            result = out_of_range(fmt, integer, u64(1))
        return result, u8(INVALID)
    if is_zero(fmt, a):
        return u64(0), u8(0)
    exponent, significand = unpack(fmt, a)
    if exponent > 63:  # infinity too
        return out_of_range(fmt, integer, sign), u8(INVALID)
    whole, rest = fixed_point(exponent, significand)
    if rounds_up(sign, whole & 1 != 0, rest, u64(1) << 63, mode):
        whole = whole + 1  # cannot wrap: beyond 2**53 there is no fraction
    # The largest sizes that fit.
    limit = u64(integer(-1))
    if integer.signed:
        limit = (u64(1) << (integer.bits - 1)) - 1 + sign
    elif sign != 0:
        limit = u64(0)
    if whole > limit:
        return out_of_range(fmt, integer, sign), u8(INVALID)
    flags = u8(INEXACT) if rest != 0 else u8(0)
    if sign != 0:
        whole = u64(0) - whole
    return whole, flags


@function(inline=False)
def from_integer(fmt, integer, value: u64, mode: u32) -> tuple[u64, u8]:
    """The low bits of ``value``, an ``integer`` (i32, u32, i64 or u64), in the format."""
    size = u64(integer(value))
    sign = u64(0)
    if integer.signed and size >> 63 != 0:
        sign = u64(1)
        size = u64(0) - size
    if size == 0:
        return u64(0), u8(0)
    zeros = clz(size) & 63
    return round_pack(fmt, sign, 63 - i32(zeros), size << zeros, mode)


@function(inline=False)
def round_to_integral(fmt, exact, a: u64, mode: u32) -> tuple[u64, u8]:
    """``a`` rounded to an integral value in the format; ``exact`` (compile-time): signal inexact (5.9)."""
    if is_nan(fmt, a):
        return nan_of(fmt, a, a, a)
    if is_zero(fmt, a):
        return a, u8(0)
    sign = sign_of(fmt, a)
    exponent, significand = unpack(fmt, a)
    if exponent >= fmt.fraction_bits:  # infinity too
        return a, u8(0)
    whole, rest = fixed_point(exponent, significand)
    if rounds_up(sign, whole & 1 != 0, rest, u64(1) << 63, mode):
        whole = whole + 1
    flags = u8(INEXACT) if exact and rest != 0 else u8(0)
    if whole == 0:
        return signed(fmt, sign, u64(0)), flags
    zeros = clz(whole) & 63
    # Exact: a whole number below 2**precision.
    pattern, _nothing = round_pack(fmt, sign, 63 - i32(zeros), whole << zeros, mode)
    return pattern, flags
