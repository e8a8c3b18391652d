"""Functions every description can use; each is compiled to a few native instructions.

``x`` has any integer type unless said otherwise, and the result has the type of ``x``.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, TypeVar

from .types import DescriptionError, Int, u32, u64

if TYPE_CHECKING:
    from fractions import Fraction

T = TypeVar("T", bound=Int)


def bits(x: T, high: int, low: int) -> T:
    """Bits ``high`` down to ``low`` of ``x``, moved to bit 0. Both are constants."""
    return type(x)((int(x) >> low) & ((1 << (high - low + 1)) - 1))


def bit(x: T, n: int) -> bool:
    """Whether bit ``n`` (a constant) of ``x`` is set."""
    return bool(int(x) >> n & 1)


def sext(x: T, n: int) -> T:
    """The low ``n`` (a constant) bits of ``x``, sign-extended to its width."""
    low = int(x) & ((1 << n) - 1)
    return type(x)(low - (1 << n) if low >> (n - 1) else low)


def clz(x: T) -> T:
    """Leading zero bits; the width where ``x`` is 0."""
    return type(x)(x.bits - (int(x) & ((1 << x.bits) - 1)).bit_length())


def ctz(x: T) -> T:
    """Trailing zero bits; the width where ``x`` is 0."""
    value = int(x) & ((1 << x.bits) - 1)
    return type(x)((value & -value).bit_length() - 1 if value else x.bits)


def popcount(x: T) -> T:
    """Set bits."""
    return type(x)((int(x) & ((1 << x.bits) - 1)).bit_count())


def bswap(x: T) -> T:
    """The bytes of ``x`` in reverse order."""
    size = x.bits // 8
    return type(x)(int.from_bytes((int(x) & ((1 << x.bits) - 1)).to_bytes(size, "little"), "big"))


def likely(condition: bool) -> bool:
    """The condition, with the hint that it is nearly always true."""
    return condition


def unlikely(condition: bool) -> bool:
    """The condition, with the hint that it is nearly always false."""
    return condition


# IEEE 754 arithmetic of the host, on bit patterns in u32 or u64: rounds to nearest, ties to even; no flags;
# which NaN results from an operation on NaNs, or an invalid one, is unspecified, so a description must not let
# such a NaN become visible.  The fast path of a described floating-point unit.


def _unpack(x: Int) -> float:
    return float(struct.unpack("<d" if x.bits == 64 else "<f", int(x).to_bytes(x.bits // 8, "little"))[0])


def _pack(type: type[T], value: float) -> T:
    if type is u64:
        return type(int.from_bytes(struct.pack("<d", value), "little"))
    try:
        return type(int.from_bytes(struct.pack("<f", value), "little"))
    except OverflowError:  # struct refuses what rounds to infinity
        return type(0x7F80_0000 | (0x8000_0000 if value < 0 else 0))


def _same(a: T, *others: T) -> type[T]:
    if type(a) not in (u32, u64) or any(type(o) is not type(a) for o in others):
        raise DescriptionError("IEEE arithmetic takes bit patterns that are all u32 or all u64")
    return type(a)


# A double holds the exact rounding of binary32 sums, products, quotients and roots: 53 >= 2 * 24 + 2.


def ieee_add(a: T, b: T) -> T:
    """a + b."""
    return _pack(_same(a, b), _unpack(a) + _unpack(b))


def ieee_sub(a: T, b: T) -> T:
    """a - b."""
    return _pack(_same(a, b), _unpack(a) - _unpack(b))


def ieee_mul(a: T, b: T) -> T:
    """a * b."""
    return _pack(_same(a, b), _unpack(a) * _unpack(b))


def ieee_div(a: T, b: T) -> T:
    """a / b."""
    kind, x, y = _same(a, b), _unpack(a), _unpack(b)
    if y == 0:
        infinite = math.inf * math.copysign(1, x) * math.copysign(1, y)
        return _pack(kind, math.nan if x == 0 or math.isnan(x) else infinite)
    return _pack(kind, x / y)


def ieee_sqrt(a: T) -> T:
    """The square root."""
    kind, x = _same(a), _unpack(a)
    return _pack(kind, math.sqrt(x) if x >= 0 else math.nan)


def ieee_fma(a: T, b: T, c: T) -> T:
    """a * b + c, rounded once. All three must be finite."""
    kind, x, y, z = _same(a, b, c), _unpack(a), _unpack(b), _unpack(c)
    if not all(map(math.isfinite, (x, y, z))):
        raise DescriptionError("ieee_fma takes finite operands; handle infinities and NaNs first")
    from fractions import Fraction

    exact = Fraction(x) * Fraction(y) + Fraction(z)
    if exact == 0:
        return _pack(kind, x * y + z if x == 0 or y == 0 or z == 0 else 0.0)
    return _round_fraction(kind, exact)


def _round_fraction(kind: type[T], exact: Fraction) -> T:
    """``exact`` (not 0) rounded to the format, by integer arithmetic alone."""
    precision, minimum, maximum = (53, -1074, 1023) if kind is u64 else (24, -149, 127)
    sign, size = (1 if exact < 0 else 0), abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    two = type(exact)(2)
    if two**exponent > size:
        exponent -= 1
    unit = max(exponent - precision + 1, minimum)
    scaled = size / two**unit
    mantissa = round(scaled)  # Fraction rounds half to even
    if mantissa >> precision:
        mantissa, unit = mantissa >> 1, unit + 1
    if mantissa and mantissa.bit_length() + unit - 1 > maximum:
        return kind(((1 << (kind.bits - 1)) * sign) | (((2 * maximum + 1)) << (precision - 1)))
    biased = unit - minimum + 1 if mantissa >> (precision - 1) else 0
    pattern = (biased << (precision - 1)) | (mantissa & ((1 << (precision - 1)) - 1))
    return kind(pattern | sign << (kind.bits - 1))


def ieee_convert(type: type[T], a: Int) -> T:
    """The bit pattern ``a`` converted to the other format, ``type`` (u32: binary32, u64: binary64)."""
    return _pack(type, _unpack(a))
