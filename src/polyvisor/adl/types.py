"""The value types of the description language.

Each type is a subclass of :class:`int` whose arithmetic wraps, so a described function gives the same
result under CPython as it does compiled.  The rules are strict on purpose, and the same in both worlds:

* operands of one operator have one type; a plain ``int`` literal adopts the type of the other operand
  if it fits, and is refused if it does not;
* ``T(x)`` converts any integer or bool to ``T`` by keeping the low bits (so ``u64(i32(x))`` sign-extends);
* the right operand of a shift may have any unsigned type and must be less than the width;
* ``//`` and ``%`` truncate towards zero, as hardware does, and the divisor must not be zero;
* a comparison gives a plain ``bool``.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self


class DescriptionError(Exception):
    """A described function breaks a rule of the description language.

    The message names the source line where it is known and says what is allowed.
    """


class DivisionError(DescriptionError):
    """A division by zero, at run time."""


class Int(int):
    """A fixed-width integer; use one of its subclasses (``u8`` ... ``u128``, ``i8`` ... ``i128``)."""

    bits: ClassVar[int] = 0
    signed: ClassVar[bool] = False

    __slots__ = ()

    def __new__(cls, value: int = 0) -> Self:
        value = int(value) & ((1 << cls.bits) - 1)
        if cls.signed and value >> (cls.bits - 1):
            value -= 1 << cls.bits
        return int.__new__(cls, value)

    @classmethod
    def fits(cls, value: int) -> bool:
        """Whether the plain integer ``value`` is in this type's range."""
        low, high = (-(1 << (cls.bits - 1)), 1 << (cls.bits - 1)) if cls.signed else (0, 1 << cls.bits)
        return low <= value < high

    def _peer(self, other: Any) -> int:
        if type(other) is type(self):
            return int(other)
        if type(other) is int:
            if not self.fits(other):
                raise DescriptionError(f"{other} does not fit {type(self).__name__}; convert it on purpose")
            return other
        mine, theirs = type(self).__name__, type(other).__name__
        raise DescriptionError(f"operands of types {mine} and {theirs}; convert one of them")

    def _amount(self, other: Any) -> int:
        if type(other) is not int and (not isinstance(other, Int) or other.signed):
            raise DescriptionError(f"a shift amount is an unsigned integer, not {type(other).__name__}")
        amount = int(other)
        if not 0 <= amount < self.bits:
            raise DescriptionError(f"shift of {type(self).__name__} by {amount}; mask the amount first")
        return amount

    def __add__(self, other: Any) -> Self:
        return type(self)(int(self) + self._peer(other))

    def __sub__(self, other: Any) -> Self:
        return type(self)(int(self) - self._peer(other))

    def __mul__(self, other: Any) -> Self:
        return type(self)(int(self) * self._peer(other))

    def __and__(self, other: Any) -> Self:
        return type(self)(int(self) & self._peer(other))

    def __or__(self, other: Any) -> Self:
        return type(self)(int(self) | self._peer(other))

    def __xor__(self, other: Any) -> Self:
        return type(self)(int(self) ^ self._peer(other))

    def __radd__(self, other: Any) -> Self:
        return type(self)(self._peer(other) + int(self))

    def __rsub__(self, other: Any) -> Self:
        return type(self)(self._peer(other) - int(self))

    def __rmul__(self, other: Any) -> Self:
        return type(self)(self._peer(other) * int(self))

    def __rand__(self, other: Any) -> Self:
        return type(self)(self._peer(other) & int(self))

    def __ror__(self, other: Any) -> Self:
        return type(self)(self._peer(other) | int(self))

    def __rxor__(self, other: Any) -> Self:
        return type(self)(self._peer(other) ^ int(self))

    def __floordiv__(self, other: Any) -> Self:
        divisor = self._peer(other)
        if divisor == 0:
            raise DivisionError("division by zero; test the divisor first")
        quotient = abs(int(self)) // abs(divisor)
        return type(self)(-quotient if (self < 0) != (divisor < 0) else quotient)

    def __mod__(self, other: Any) -> Self:
        divisor = self._peer(other)
        if divisor == 0:
            raise DivisionError("division by zero; test the divisor first")
        remainder = abs(int(self)) % abs(divisor)
        return type(self)(-remainder if self < 0 else remainder)

    def __rfloordiv__(self, other: Any) -> Self:
        return type(self)(self._peer(other)) // self

    def __rmod__(self, other: Any) -> Self:
        return type(self)(self._peer(other)) % self

    def __lshift__(self, other: Any) -> Self:
        return type(self)(int(self) << self._amount(other))

    def __rshift__(self, other: Any) -> Self:
        return type(self)(int(self) >> self._amount(other))

    def __neg__(self) -> Self:
        return type(self)(-int(self))

    def __pos__(self) -> Self:
        return self

    def __invert__(self) -> Self:
        return type(self)(~int(self))

    def __eq__(self, other: object) -> bool:
        return int(self) == self._peer(other)

    def __ne__(self, other: object) -> bool:
        return int(self) != self._peer(other)

    def __lt__(self, other: Any) -> bool:
        return int(self) < self._peer(other)

    def __le__(self, other: Any) -> bool:
        return int(self) <= self._peer(other)

    def __gt__(self, other: Any) -> bool:
        return int(self) > self._peer(other)

    def __ge__(self, other: Any) -> bool:
        return int(self) >= self._peer(other)

    def __hash__(self) -> int:
        return int.__hash__(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({hex(self)})"


class u8(Int):  # noqa: N801  (the names of the types are the language's)
    """8 bits, unsigned."""

    bits = 8
    __slots__ = ()


class u16(Int):  # noqa: N801
    """16 bits, unsigned."""

    bits = 16
    __slots__ = ()


class u32(Int):  # noqa: N801
    """32 bits, unsigned."""

    bits = 32
    __slots__ = ()


class u64(Int):  # noqa: N801
    """64 bits, unsigned."""

    bits = 64
    __slots__ = ()


class u128(Int):  # noqa: N801
    """128 bits, unsigned."""

    bits = 128
    __slots__ = ()


class i8(Int):  # noqa: N801
    """8 bits, signed."""

    bits = 8
    signed = True
    __slots__ = ()


class i16(Int):  # noqa: N801
    """16 bits, signed."""

    bits = 16
    signed = True
    __slots__ = ()


class i32(Int):  # noqa: N801
    """32 bits, signed."""

    bits = 32
    signed = True
    __slots__ = ()


class i64(Int):  # noqa: N801
    """64 bits, signed."""

    bits = 64
    signed = True
    __slots__ = ()


class i128(Int):  # noqa: N801
    """128 bits, signed."""

    bits = 128
    signed = True
    __slots__ = ()


INTEGER_TYPES: tuple[type[Int], ...] = (u8, u16, u32, u64, u128, i8, i16, i32, i64, i128)
_BY_SHAPE = {(t.bits, t.signed): t for t in INTEGER_TYPES}


def integer_type(bits: int, signed: bool) -> type[Int]:
    """The integer type of that width and signedness."""
    return _BY_SHAPE[bits, signed]
