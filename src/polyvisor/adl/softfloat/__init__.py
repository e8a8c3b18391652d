"""IEEE 754 binary32 and binary64 arithmetic on bit patterns, for every architecture.

The functions of :mod:`.arithmetic`, :mod:`.conversions` and :mod:`.comparisons` are exact in all rounding modes and
raise all flags; those of :mod:`.host` are the fast path before them. Patterns are carried in u64; formats, with
the rules that the standard leaves open, are compile-time parameters.
"""

from .arithmetic import add, div, fma, mul, sqrt, sub
from .comparisons import classify, equal, less, less_equal, maximum_number, minimum_number
from .conversions import convert, from_integer, round_to_integral, to_integer
from .formats import (
    BINARY32,
    BINARY64,
    CANONICAL_NAN,
    DIVIDE_BY_ZERO,
    DOWN,
    FIRST_NAN,
    INEXACT,
    INVALID,
    NAN_TO_LARGEST,
    NAN_TO_SMALLEST,
    NAN_TO_ZERO,
    NEAREST_AWAY,
    NEAREST_EVEN,
    OVERFLOW,
    SIGNALING_NAN_FIRST,
    TOWARD_ZERO,
    UNDERFLOW,
    UP,
    Format,
    Rules,
)
from .host import (
    host_add,
    host_div,
    host_fma,
    host_from_integer,
    host_mul,
    host_narrow,
    host_sqrt,
    host_sub,
    host_to_integer,
    host_widen,
)
from .rounding import is_infinite, is_nan, is_signaling, is_zero

__all__ = [
    "BINARY32", "BINARY64", "CANONICAL_NAN", "DIVIDE_BY_ZERO", "DOWN", "FIRST_NAN", "INEXACT", "INVALID",
    "NAN_TO_LARGEST", "NAN_TO_SMALLEST", "NAN_TO_ZERO", "NEAREST_AWAY", "NEAREST_EVEN", "OVERFLOW",
    "SIGNALING_NAN_FIRST", "TOWARD_ZERO", "UNDERFLOW", "UP", "Format", "Rules", "add", "classify", "convert",
    "div", "equal", "fma", "from_integer", "host_add", "host_div", "host_fma", "host_from_integer",
    "host_mul", "host_narrow", "host_sqrt", "host_sub", "host_to_integer", "host_widen", "is_infinite", "is_nan",
    "is_signaling", "is_zero", "less", "less_equal", "maximum_number", "minimum_number", "mul", "round_to_integral",
    "sqrt", "sub", "to_integer",
]
