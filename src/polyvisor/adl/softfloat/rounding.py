"""Taking patterns apart, NaNs, and the one place where results are rounded and packed."""

from __future__ import annotations

from ..builtins import clz
from ..functions import function
from ..types import i32, u8, u32, u64, u128
from .formats import (
    CANONICAL_NAN,
    DOWN,
    INEXACT,
    INVALID,
    NEAREST_AWAY,
    NEAREST_EVEN,
    OVERFLOW,
    SIGNALING_NAN_FIRST,
    TOWARD_ZERO,
    UNDERFLOW,
    UP,
)


@function
def is_nan(fmt, a: u64) -> bool:
    """Whether ``a`` is a NaN."""
    return a & fmt.magnitude > fmt.infinity


@function
def is_signaling(fmt, a: u64) -> bool:
    """Whether ``a`` is a signaling NaN (IEEE 754-2008, 6.2.1: the first bit of the fraction is 0)."""
    return a & fmt.magnitude > fmt.infinity and a & fmt.quiet == 0


@function
def is_infinite(fmt, a: u64) -> bool:
    """Whether ``a`` is an infinity."""
    return a & fmt.magnitude == fmt.infinity


@function
def is_zero(fmt, a: u64) -> bool:
    """Whether ``a`` is a zero."""
    return a & fmt.magnitude == 0


@function
def sign_of(fmt, a: u64) -> u64:
    """The sign bit of ``a``: 0 or 1."""
    return a >> (fmt.bits - 1)


@function
def signed(fmt, sign: u64, magnitude: u64) -> u64:
    """The pattern of ``magnitude`` with ``sign`` (0 or 1)."""
    return sign << (fmt.bits - 1) | magnitude


@function
def with_nan(fmt, chosen: u64, a: u64) -> u64:
    """``chosen`` if that is a NaN already and goes before ``a`` by the order of operands, else ``a``."""
    return chosen if is_nan(fmt, chosen) else a


@function(inline=False)
def nan_of(fmt, a: u64, b: u64, c: u64) -> tuple[u64, u8]:
    """The result of an operation on ``a``, ``b``, ``c``, of which one is a NaN (IEEE 754-2008, 6.2.3).

    An operation with fewer operands repeats the last one.
    """
    flags = u8(0)
    if is_signaling(fmt, a) or is_signaling(fmt, b) or is_signaling(fmt, c):
        flags = u8(INVALID)
    result = u64(fmt.default_nan)
    if fmt.rules.nan != CANONICAL_NAN:
        result = with_nan(fmt, with_nan(fmt, a, b), c) | fmt.quiet
        if fmt.rules.nan == SIGNALING_NAN_FIRST:
            if is_signaling(fmt, a):
                result = a | fmt.quiet
            elif is_signaling(fmt, b):
                result = b | fmt.quiet
            elif is_signaling(fmt, c):
                result = c | fmt.quiet
    return result, flags


@function
def unpack(fmt, a: u64) -> tuple[i32, u64]:
    """Exponent and significand of ``a``, which is finite and not zero.

    The significand has its leading bit in bit 63: its size is ``significand / 2**63 * 2**exponent``.
    """
    fraction = a & fmt.fraction
    biased = i32(a >> fmt.fraction_bits & fmt.special)
    exponent = biased - fmt.bias
    significand = (fraction | fmt.hidden) << fmt.spare
    if biased == 0:
        # The last bit of the fraction weighs 2 ** (2 - bias - precision).
        zeros = clz(fraction) & 63
        significand = fraction << zeros
        exponent = i32(65 - fmt.bias - fmt.precision) - i32(zeros)
    return exponent, significand


@function
def jam64(value: u128) -> u64:
    """The high half of ``value``, with the lowest bit set too if the low half is not 0 (a "sticky" bit)."""
    return u64(value >> 64) | u64(u64(value) != 0)


@function
def shift_right_jam64(value: u64, amount: u32) -> u64:
    """``value >> amount``, with the lowest bit set too if a bit that is set was lost."""
    result = u64(value != 0)
    if amount < 64:
        result = value >> amount
        result = result | u64(result << amount != value)
    return result


@function
def shift_right_jam128(value: u128, amount: u32) -> u128:
    """``value >> amount``, with the lowest bit set too if a bit that is set was lost."""
    result = u128(value != 0)
    if amount < 128:
        result = value >> amount
        result = result | u128(result << amount != value)
    return result


@function
def rounds_up(sign: u64, odd: bool, rest: u64, half: u64, mode: u32) -> bool:
    """Whether a size is rounded away from zero (IEEE 754-2008, 4.3).

    ``rest`` is what would be cut off, ``half`` is half a unit of what stays, ``odd`` the lowest bit of what stays.
    """
    up = False
    if mode == NEAREST_EVEN:
        up = rest > half or (rest == half and odd)
    elif mode == NEAREST_AWAY:
        up = rest >= half
    elif mode == UP:
        up = rest != 0 and sign == 0
    elif mode == DOWN:
        up = rest != 0 and sign != 0
    return up


@function
def overflowed(fmt, sign: u64, mode: u32) -> tuple[u64, u8]:
    """The result of a finite operation that is too large (IEEE 754-2008, 7.4)."""
    size = u64(fmt.infinity)
    if mode == TOWARD_ZERO or (mode == UP and sign != 0) or (mode == DOWN and sign == 0):
        size = u64(fmt.infinity - 1)
    return signed(fmt, sign, size), u8(OVERFLOW | INEXACT)


@function(inline=False)
def round_pack(fmt, sign: u64, exponent: i32, significand: u64, mode: u32) -> tuple[u64, u8]:
    """Round ``significand / 2**63 * 2**exponent`` to the format.

    Bit 63 of ``significand`` is set; its lowest bit may stand for any number of bits that follow.
    """
    half = u64(1 << (fmt.spare - 1))
    mask = u64((1 << fmt.spare) - 1)
    biased = exponent + fmt.bias
    rest = significand
    flags = u8(0)
    if biased >= fmt.special:
        return overflowed(fmt, sign, mode)
    if biased < 1:
        tiny = True
        if not fmt.rules.tiny_before_rounding and biased == 0:
            # Not tiny if rounding with unbounded exponents reaches the smallest normal number.
            kept = significand >> fmt.spare
            carries = kept == (1 << fmt.precision) - 1
            tiny = not (carries and rounds_up(sign, True, significand & mask, half, mode))
        rest = shift_right_jam64(significand, u32(1 - biased))
        if tiny and rest & mask != 0:
            flags = u8(UNDERFLOW)
        biased = i32(1)
    kept = rest >> fmt.spare
    rest = rest & mask
    if rest != 0:
        flags = flags | INEXACT
    if rounds_up(sign, kept & 1 != 0, rest, half, mode):
        kept = kept + 1
    # The hidden bit, if kept has it, adds 1 to the exponent; so does a carry out of the significand.
    pattern = (u64(biased - 1) << fmt.fraction_bits) + kept
    if pattern >= fmt.infinity:
        return overflowed(fmt, sign, mode)
    return signed(fmt, sign, pattern), flags
