"""Comparisons, minimum and maximum, classes of numbers.

Patterns are in u64, ``fmt`` is known at compile time; see IEEE 754-2008, 5.6.1, 5.7.2 and 5.11, and
IEEE 754-2019, 9.6.
"""

from __future__ import annotations

from ..functions import function
from ..types import i64, u8, u32, u64
from .rounding import is_nan, is_signaling, sign_of

# Classes, as `classify` numbers them.
NEGATIVE_INFINITY = 0
NEGATIVE_NORMAL = 1
NEGATIVE_SUBNORMAL = 2
NEGATIVE_ZERO = 3
POSITIVE_ZERO = 4
POSITIVE_SUBNORMAL = 5
POSITIVE_NORMAL = 6
POSITIVE_INFINITY = 7
SIGNALING_NAN = 8
QUIET_NAN = 9


@function
def order(fmt, a: u64) -> i64:
    """A number that orders patterns as their values are ordered, if they are no NaNs; both zeros give 0."""
    size = i64(a & fmt.magnitude)
    negative = i64(u64(0) - sign_of(fmt, a))  # 0 or -1
    return (size ^ negative) - negative


@function
def invalid_if(condition: bool) -> u8:
    """The flags of a comparison: invalid operation if ``condition``."""
    return u8(condition) << 4


@function
def unordered_flags(fmt, signaling, a: u64, b: u64) -> u8:
    """The flags of a comparison; ``signaling`` (compile-time): a quiet NaN is invalid too, not only signaling ones."""
    flags = u8(0)
    if signaling:
        flags = invalid_if(is_nan(fmt, a) or is_nan(fmt, b))
    else:
        flags = invalid_if(is_signaling(fmt, a) or is_signaling(fmt, b))
    return flags


@function
def equal(fmt, signaling, a: u64, b: u64) -> tuple[bool, u8]:
    """a == b, false for NaNs, and the flags."""
    result = not is_nan(fmt, a) and not is_nan(fmt, b) and order(fmt, a) == order(fmt, b)
    return result, unordered_flags(fmt, signaling, a, b)


@function
def less(fmt, signaling, a: u64, b: u64) -> tuple[bool, u8]:
    """a < b, false for NaNs, and the flags."""
    result = not is_nan(fmt, a) and not is_nan(fmt, b) and order(fmt, a) < order(fmt, b)
    return result, unordered_flags(fmt, signaling, a, b)


@function
def less_equal(fmt, signaling, a: u64, b: u64) -> tuple[bool, u8]:
    """a <= b, false for NaNs, and the flags."""
    result = not is_nan(fmt, a) and not is_nan(fmt, b) and order(fmt, a) <= order(fmt, b)
    return result, unordered_flags(fmt, signaling, a, b)


@function
def extreme(fmt, greatest, a: u64, b: u64) -> tuple[u64, u8]:
    """The greater (if ``greatest``, compile-time) or smaller number; -0 is smaller than +0; a NaN counts as missing."""
    flags = invalid_if(is_signaling(fmt, a) or is_signaling(fmt, b))
    # Sign and size order like a two's complement number once the size of negative ones is inverted.
    key_a = i64((u64(0) - sign_of(fmt, a)) ^ a & fmt.magnitude)
    key_b = i64((u64(0) - sign_of(fmt, b)) ^ b & fmt.magnitude)
    first = key_a < key_b
    if greatest:
        first = key_a > key_b
    result = a if first else b
    if is_nan(fmt, a):
        result = b
        if is_nan(fmt, b):
            result = u64(fmt.default_nan)
    elif is_nan(fmt, b):
        result = a
    return result, flags


@function
def minimum_number(fmt, a: u64, b: u64) -> tuple[u64, u8]:
    """The smaller number (IEEE 754-2019 minimumNumber, with the default NaN if both are NaNs), and the flags."""
    return extreme(fmt, False, a, b)


@function
def maximum_number(fmt, a: u64, b: u64) -> tuple[u64, u8]:
    """The greater number (IEEE 754-2019 maximumNumber, with the default NaN if both are NaNs), and the flags."""
    return extreme(fmt, True, a, b)


@function
def classify(fmt, a: u64) -> u32:
    """Which class ``a`` belongs to: `NEGATIVE_INFINITY` to `QUIET_NAN`."""
    size = a & fmt.magnitude
    kind = u32(POSITIVE_NORMAL)
    if size == 0:
        kind = u32(POSITIVE_ZERO)
    elif size < fmt.hidden:
        kind = u32(POSITIVE_SUBNORMAL)
    elif size == fmt.infinity:
        kind = u32(POSITIVE_INFINITY)
    if sign_of(fmt, a) != 0:
        kind = POSITIVE_INFINITY - kind
    if size > fmt.infinity:
        kind = u32(QUIET_NAN) if a & fmt.quiet != 0 else u32(SIGNALING_NAN)
    return kind
