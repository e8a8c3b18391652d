"""Formats, rules, rounding modes and flags: what is known when a floating-point function is compiled."""

from __future__ import annotations

from polyvisor.dataclass import dataclass

from ..types import Int, u32, u64

# Rounding directions (IEEE 754-2008, 4.3).
NEAREST_EVEN = 0
TOWARD_ZERO = 1
DOWN = 2
UP = 3
NEAREST_AWAY = 4

# Exceptions (IEEE 754-2008, 7), as bits of a u8.
INEXACT = 1
UNDERFLOW = 2
OVERFLOW = 4
DIVIDE_BY_ZERO = 8
INVALID = 16

# Which NaN an operation on NaNs gives.
CANONICAL_NAN = 0  # always the default NaN
FIRST_NAN = 1  # the first operand that is a NaN, made quiet
SIGNALING_NAN_FIRST = 2  # the first signaling NaN, made quiet; the first NaN if there is none

# What a conversion of a NaN to an integer gives.
NAN_TO_LARGEST = 0
NAN_TO_SMALLEST = 1
NAN_TO_ZERO = 2


@dataclass(frozen=True)
class Rules:
    """What IEEE 754 leaves to the implementation; the defaults are RISC-V's.

    ``tiny_before_rounding``: when a result is tiny is decided before rounding (7.5);
    ``nan``: which NaN results from NaNs (6.2.3); ``negative_nan``: the default NaN has its sign bit set;
    ``zero_times_infinity``: fma(0, infinity, quiet NaN) is an invalid operation (7.2 c);
    ``nan_to_integer``: what integer a NaN becomes; ``saturate``: numbers out of an integer's range become the nearest
    integer in range, not the smallest one of the type (5.8).
    """

    tiny_before_rounding: bool = False
    nan: int = CANONICAL_NAN
    negative_nan: bool = False
    zero_times_infinity: bool = True
    nan_to_integer: int = NAN_TO_LARGEST
    saturate: bool = True


@dataclass(frozen=True)
class Format:
    """A binary interchange format (IEEE 754-2008, 3.4) and the rules that operations on it follow.

    Patterns are carried in u64, with zeros above ``bits``. ``precision`` counts the leading bit that is not stored.
    """

    bits: int
    precision: int
    rules: Rules = Rules()

    @property
    def type(self) -> type[Int]:
        """The unsigned type of the width of the format."""
        return u32 if self.bits == 32 else u64

    @property
    def fraction_bits(self) -> int:
        """Bits of the significand that are stored."""
        return self.precision - 1

    @property
    def spare(self) -> int:
        """Bits of a u64 that are left below a significand whose leading bit is bit 63."""
        return 64 - self.precision

    @property
    def hidden(self) -> int:
        """The leading bit of a normal number's significand, which is not stored."""
        return 1 << (self.precision - 1)

    @property
    def fraction(self) -> int:
        """The mask of the stored part of the significand."""
        return self.hidden - 1

    @property
    def quiet(self) -> int:
        """The bit of a NaN that makes it quiet."""
        return self.hidden >> 1

    @property
    def sign(self) -> int:
        """The sign bit."""
        return 1 << (self.bits - 1)

    @property
    def magnitude(self) -> int:
        """The mask of all but the sign bit."""
        return self.sign - 1

    @property
    def special(self) -> int:
        """The biased exponent of infinities and NaNs."""
        return (1 << (self.bits - self.precision)) - 1

    @property
    def bias(self) -> int:
        """What is added to the exponent to store it; also the largest exponent."""
        return self.special >> 1

    @property
    def infinity(self) -> int:
        """The pattern of positive infinity."""
        return self.special << (self.precision - 1)

    @property
    def default_nan(self) -> int:
        """The NaN of an invalid operation."""
        return self.infinity | self.quiet | (self.sign if self.rules.negative_nan else 0)

    @property
    def smallest_safe(self) -> int:
        """Twice the smallest normal number, as a pattern: a result at least that large cannot have been tiny."""
        return 2 << (self.precision - 1)

    @property
    def error_safe(self) -> int:
        """A power of two above which the rounding error of a product or quotient is a normal number, as a pattern."""
        return (2 * self.precision + 2) << (self.precision - 1)


BINARY32 = Format(32, 24)
BINARY64 = Format(64, 53)
