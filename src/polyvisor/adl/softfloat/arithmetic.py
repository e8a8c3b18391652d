"""Addition, multiplication, division, square root, fused multiply-add, exact in all rounding modes, with all flags.

Every function takes a compile-time ``fmt``, patterns in u64 and a rounding mode, and gives the pattern of the
result and the flags that the operation raises (IEEE 754-2008, 5.4.1 and 7).
"""

from __future__ import annotations

from ..builtins import clz
from ..functions import function
from ..types import i32, u8, u32, u64, u128
from .formats import DIVIDE_BY_ZERO, DOWN, INVALID
from .rounding import (
    is_infinite,
    is_nan,
    is_zero,
    jam64,
    nan_of,
    round_pack,
    shift_right_jam128,
    sign_of,
    signed,
    unpack,
)


@function
def invalid(fmt) -> tuple[u64, u8]:
    """The result of an invalid operation (IEEE 754-2008, 7.2)."""
    return u64(fmt.default_nan), u8(INVALID)


@function(inline=False)
def sum_of_parts(
    fmt, sign_a: u64, exponent_a: i32, a: u128, sign_b: u64, exponent_b: i32, b: u128, mode: u32
) -> tuple[u64, u8]:
    """Round the sum of two numbers that are not zero, of size ``significand / 2**126 * 2**exponent``.

    Bit 126 of ``a`` and ``b`` is set, and their low 20 bits are 0, so that no bit is lost where many leading
    bits can cancel: exponents that differ by 1 at most.
    """
    exponent = exponent_a
    left = a
    right = b
    if exponent_a < exponent_b:
        exponent = exponent_b
        left = shift_right_jam128(a, u32(exponent_b - exponent_a))
    else:
        right = shift_right_jam128(b, u32(exponent_a - exponent_b))
    sign = sign_a
    total = left + right
    if sign_a != sign_b:
        total = left - right
        if left < right:
            sign = sign_b
            total = right - left
    if total == 0:
        # An exact zero difference (IEEE 754-2008, 6.3).
        return signed(fmt, u64(mode == DOWN), u64(0)), u8(0)
    zeros = clz(total) & 127
    return round_pack(fmt, sign, exponent + 1 - i32(zeros), jam64(total << zeros), mode)


@function(inline=False)
def add_sub(fmt, a: u64, b: u64, flip: u64, mode: u32) -> tuple[u64, u8]:
    """``a + b`` if ``flip`` is 0, ``a - b`` if it is 1."""
    if is_nan(fmt, a) or is_nan(fmt, b):
        return nan_of(fmt, a, b, b)
    sign_a = sign_of(fmt, a)
    sign_b = sign_of(fmt, b) ^ flip
    if is_infinite(fmt, a):
        if is_infinite(fmt, b) and sign_a != sign_b:
            return invalid(fmt)
        return a, u8(0)
    other = signed(fmt, sign_b, b & fmt.magnitude)
    if is_infinite(fmt, b):
        return other, u8(0)
    if is_zero(fmt, b):
        if is_zero(fmt, a) and sign_a != sign_b:
            return signed(fmt, u64(mode == DOWN), u64(0)), u8(0)
        return a, u8(0)
    if is_zero(fmt, a):
        return other, u8(0)
    exponent_a, significand_a = unpack(fmt, a)
    exponent_b, significand_b = unpack(fmt, b)
    return sum_of_parts(
        fmt, sign_a, exponent_a, u128(significand_a) << 63, sign_b, exponent_b, u128(significand_b) << 63, mode
    )


@function
def add(fmt, a: u64, b: u64, mode: u32) -> tuple[u64, u8]:
    """a + b."""
    return add_sub(fmt, a, b, u64(0), mode)


@function
def sub(fmt, a: u64, b: u64, mode: u32) -> tuple[u64, u8]:
    """a - b."""
    return add_sub(fmt, a, b, u64(1), mode)


@function(inline=False)
def mul(fmt, a: u64, b: u64, mode: u32) -> tuple[u64, u8]:
    """a * b."""
    if is_nan(fmt, a) or is_nan(fmt, b):
        return nan_of(fmt, a, b, b)
    sign = sign_of(fmt, a) ^ sign_of(fmt, b)
    if is_infinite(fmt, a) or is_infinite(fmt, b):
        if is_zero(fmt, a) or is_zero(fmt, b):
            return invalid(fmt)
        return signed(fmt, sign, u64(fmt.infinity)), u8(0)
    if is_zero(fmt, a) or is_zero(fmt, b):
        return signed(fmt, sign, u64(0)), u8(0)
    exponent_a, significand_a = unpack(fmt, a)
    exponent_b, significand_b = unpack(fmt, b)
    product = u128(significand_a) * u128(significand_b)
    zeros = clz(product) & 127  # 0 or 1
    return round_pack(fmt, sign, exponent_a + exponent_b + 1 - i32(zeros), jam64(product << zeros), mode)


@function(inline=False)
def div(fmt, a: u64, b: u64, mode: u32) -> tuple[u64, u8]:
    """a / b."""
    if is_nan(fmt, a) or is_nan(fmt, b):
        return nan_of(fmt, a, b, b)
    sign = sign_of(fmt, a) ^ sign_of(fmt, b)
    if is_infinite(fmt, a):
        if is_infinite(fmt, b):
            return invalid(fmt)
        return signed(fmt, sign, u64(fmt.infinity)), u8(0)
    if is_zero(fmt, b):
        if is_zero(fmt, a):
            return invalid(fmt)
        return signed(fmt, sign, u64(fmt.infinity)), u8(DIVIDE_BY_ZERO)
    if is_zero(fmt, a) or is_infinite(fmt, b):
        return signed(fmt, sign, u64(0)), u8(0)
    exponent_a, significand_a = unpack(fmt, a)
    exponent_b, significand_b = unpack(fmt, b)
    # Long division, 11 bits of the quotient at a time: significands of at most 53 bits, remainders too.
    rest = significand_a >> 11
    divisor = significand_b >> 11  # not 0: it has the leading bit
    quotient = rest // divisor
    rest = rest - quotient * divisor
    for _ in range(5):
        rest = rest << 11
        digit = rest // divisor
        rest = rest - digit * divisor
        quotient = quotient << 11 | digit
    # 55 bits after the binary point and, from 1/2 to 2, at most one before it.
    quotient = quotient << 1 | u64(rest != 0)
    zeros = clz(quotient) & 63
    return round_pack(fmt, sign, exponent_a - exponent_b + 7 - i32(zeros), quotient << zeros, mode)


@function(inline=False)
def sqrt(fmt, a: u64, mode: u32) -> tuple[u64, u8]:
    """The square root of a."""
    if is_nan(fmt, a):
        return nan_of(fmt, a, a, a)
    if is_zero(fmt, a):
        return a, u8(0)
    if sign_of(fmt, a) != 0:
        return invalid(fmt)
    if is_infinite(fmt, a):
        return a, u8(0)
    exponent, significand = unpack(fmt, a)
    # The radicand is 1 <= r < 4 with two bits before the binary point, times an even power of two.
    radicand = significand
    if exponent & 1 == 0:
        radicand = significand >> 1
    # Digit by digit: after each step, root is the root's leading bits and rest the radicand's less root squared.
    root = u64(0)
    rest = u64(0)
    count = u32(0)
    while count < fmt.precision + 2:
        rest = rest << 2 | radicand >> 62
        radicand = radicand << 2
        trial = root << 2 | 1
        root = root << 1
        if rest >= trial:
            rest = rest - trial
            root = root | 1
        count = count + 1
    sticky = u64(rest != 0 or radicand != 0)
    return round_pack(fmt, u64(0), exponent >> 1, root << (62 - fmt.precision) | sticky, mode)


@function(inline=False)
def fma(fmt, a: u64, b: u64, c: u64, mode: u32) -> tuple[u64, u8]:
    """a * b + c, rounded once."""
    undefined = (is_infinite(fmt, a) and is_zero(fmt, b)) or (is_zero(fmt, a) and is_infinite(fmt, b))
    if is_nan(fmt, a) or is_nan(fmt, b) or is_nan(fmt, c):
        result, flags = nan_of(fmt, a, b, c)
        if fmt.rules.zero_times_infinity and undefined:
            flags = flags | INVALID
        return result, flags
    if undefined:
        return invalid(fmt)
    sign = sign_of(fmt, a) ^ sign_of(fmt, b)
    sign_c = sign_of(fmt, c)
    if is_infinite(fmt, a) or is_infinite(fmt, b):
        if is_infinite(fmt, c) and sign != sign_c:
            return invalid(fmt)
        return signed(fmt, sign, u64(fmt.infinity)), u8(0)
    if is_infinite(fmt, c):
        return c, u8(0)
    if is_zero(fmt, a) or is_zero(fmt, b):
        if is_zero(fmt, c) and sign != sign_c:
            return signed(fmt, u64(mode == DOWN), u64(0)), u8(0)
        return c, u8(0)
    exponent_a, significand_a = unpack(fmt, a)
    exponent_b, significand_b = unpack(fmt, b)
    product = u128(significand_a) * u128(significand_b)
    exponent = exponent_a + exponent_b
    if product >> 127 != 0:
        product = product >> 1  # the low 22 bits are 0
        exponent = exponent + 1
    if is_zero(fmt, c):
        return round_pack(fmt, sign, exponent, jam64(product << 1), mode)
    exponent_c, significand_c = unpack(fmt, c)
    return sum_of_parts(fmt, sign, exponent, product, sign_c, exponent_c, u128(significand_c) << 63, mode)
