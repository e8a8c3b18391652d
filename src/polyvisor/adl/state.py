"""CPU state: declared once, laid out in one block of bytes that every tier works on.

A description subclasses :class:`State` and declares scalar :class:`Field` and :class:`Registers` members.
An instance is a live view of a CPU's block: the reference executor, the debugger and native code see the
same bytes, in host byte order, each member at its natural alignment.
"""

from __future__ import annotations

import copy
import struct
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, overload

from .types import DescriptionError, Int

_CODES = {(8, False): "B", (16, False): "H", (32, False): "I", (64, False): "Q"}
_CODES |= {(bits, True): code.lower() for (bits, _), code in list(_CODES.items())}


class Field:
    """One scalar member of a CPU's state.

    ``type`` is an integer type of at most 64 bits; ``reset`` its value after a reset; ``doc`` what it means.
    ``quiet``: a change of it alone is no reason to look for interrupts, though the hook ``poll`` reads it.
    ``likely`` is (mask, value): the bits in ``mask`` rarely change and most often are those of ``value``, so that
    compiled code may be made for that case, and for others where it does not hold.
    """

    def __init__(
        self, type: type[Int], reset: int = 0, doc: str = "", likely: tuple[int, int] | None = None,
        quiet: bool = False,
    ) -> None:
        if type.bits > 64:
            raise DescriptionError(f"a state field has at most 64 bits, not {type.__name__}")
        self.type = type
        self.reset = reset
        self.likely = likely
        self.quiet = quiet
        self.__doc__ = doc
        self.name = ""
        self.offset = -1
        self.format: Any = _CODES[type.bits, type.signed]  # as in `struct` and memoryview.cast
        self._struct = struct.Struct("=" + self.format)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def size(self) -> int:
        """Bytes it takes in the block."""
        return self.type.bits // 8

    @property
    def alignment(self) -> int:
        """Bytes its place in the block is a multiple of."""
        return self.type.bits // 8

    @overload
    def __get__(self, instance: None, owner: type) -> Field: ...
    @overload
    def __get__(self, instance: State, owner: type) -> Int: ...
    def __get__(self, instance: State | None, owner: type) -> Field | Int:
        if instance is None:
            return self
        return self.type(self._struct.unpack_from(instance.block, self.offset)[0])

    def __set__(self, instance: State, value: Any) -> None:
        self._struct.pack_into(instance.block, self.offset, int(checked(self.type, value, self.name)))


class Registers:
    """An array of registers of one type.

    ``count`` registers of ``type``; ``names`` are what assembly calls them; the register numbered ``zero``, if
    any, always reads 0 and ignores writes.
    """

    def __init__(
        self,
        type: type[Int],
        count: int,
        *,
        names: Sequence[str] = (),
        zero: int | None = None,
        reset: int = 0,
        doc: str = "",
    ) -> None:
        if type.bits > 64:
            raise DescriptionError(f"a register has at most 64 bits, not {type.__name__}")
        self.type = type
        self.count = count
        self.names = tuple(names)
        self.zero = zero
        self.reset = reset
        self.__doc__ = doc
        self.name = ""
        self.offset = -1
        self.format: Any = _CODES[type.bits, type.signed]  # as in `struct` and memoryview.cast
        self._struct = struct.Struct("=" + self.format)

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @property
    def size(self) -> int:
        """Bytes they take in the block."""
        return self.count * self.type.bits // 8

    @property
    def alignment(self) -> int:
        """Bytes their place in the block is a multiple of."""
        return self.type.bits // 8

    @overload
    def __get__(self, instance: None, owner: type) -> Registers: ...
    @overload
    def __get__(self, instance: State, owner: type) -> RegisterView: ...
    def __get__(self, instance: State | None, owner: type) -> Registers | RegisterView:
        return self if instance is None else RegisterView(instance, self)

    def read(self, block: memoryview, index: int) -> Int:
        """The register numbered ``index`` of the CPU that ``block`` is."""
        return self.type(self._struct.unpack_from(block, self._at(index))[0])

    def write(self, block: memoryview, index: int, value: Any) -> None:
        """Set the register numbered ``index``; nothing happens to the zero register."""
        value = checked(self.type, value, f"{self.name}[{int(index)}]")
        if self.zero is None or index != self.zero:
            self._struct.pack_into(block, self._at(index), int(value))

    def _at(self, index: int) -> int:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.name} has {self.count} registers; there is no number {int(index)}")
        return self.offset + int(index) * (self.type.bits // 8)


class RegisterView:
    """The registers of one CPU: indexable, iterable, assignable."""

    __slots__ = ("_registers", "_state")

    def __init__(self, state: State, registers: Registers) -> None:
        self._state = state
        self._registers = registers

    def __getitem__(self, index: int) -> Int:
        return self._registers.read(self._state.block, index)

    def __setitem__(self, index: int, value: Any) -> None:
        self._registers.write(self._state.block, index, value)

    def __len__(self) -> int:
        return self._registers.count

    def __iter__(self) -> Iterator[Int]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        names = self._registers.names or [str(i) for i in range(len(self))]
        return "{" + ", ".join(f"{n}: {int(v):#x}" for n, v in zip(names, self, strict=True)) + "}"


class State:
    """Base of a described CPU's state; ``pc`` must be among its members.

    Other classes among the bases may declare members too: parts of a machine that are described beside its CPU.
    ``block`` is a writable memoryview of at least ``State.size`` bytes.
    """

    members: ClassVar[dict[str, Field | Registers]] = {}
    size: ClassVar[int] = 0
    _reset_block: ClassVar[bytes] = b""

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        own = {n: m for n, m in vars(cls).items() if isinstance(m, Field | Registers)}
        for base in cls.__mro__[1:]:
            if not issubclass(base, State):
                # A part that several may have, such as a chip beside the CPU: its members, with places here.
                for name, member in vars(base).items():
                    if isinstance(member, Field | Registers) and name not in cls.members and name not in own:
                        own[name] = copy.copy(member)
                        setattr(cls, name, own[name])
        cls.members = {**cls.members, **own}
        offset = cls.size
        # Widest first leaves no holes.
        for member in sorted(own.values(), key=lambda m: -m.alignment):
            offset = -(-offset // member.alignment) * member.alignment
            member.offset = offset
            offset += member.size
        cls.size = -(-offset // 8) * 8

    def __init__(self, block: memoryview | bytearray | None = None) -> None:
        self.block = memoryview(bytearray(self.size) if block is None else block)
        if len(self.block) < self.size:
            raise ValueError(f"{type(self).__name__} needs {self.size} bytes, not {len(self.block)}")

    def reset(self) -> None:
        """Give every member its reset value."""
        kind = type(self)
        if "_reset_block" not in vars(kind):
            kind._reset_block = kind._make_reset_block()
        self.block[: self.size] = kind._reset_block

    @classmethod
    def _make_reset_block(cls) -> bytes:
        state = State.__new__(cls)
        state.block = memoryview(bytearray(cls.size))
        for name, member in cls.members.items():
            if not member.reset:
                continue
            if isinstance(member, Field):
                setattr(state, name, member.reset)
            else:
                view = getattr(state, name)
                for i in range(member.count):
                    view[i] = member.reset
        return bytes(state.block)

    def values(self) -> dict[str, int | list[int]]:
        """Every member by name, as plain integers."""
        return {
            name: int(getattr(self, name)) if isinstance(m, Field) else [int(v) for v in getattr(self, name)]
            for name, m in self.members.items()
        }


def checked(type: type[Int], value: Any, what: str) -> Int:
    """``value`` as ``type``: it has the type already, or is a plain integer or bool that fits."""
    if value.__class__ is type:
        return value
    if value.__class__ in (int, bool):
        if type.fits(value):
            return type(value)
        raise DescriptionError(f"{value:#x} does not fit {what}, of type {type.__name__}")
    raise DescriptionError(f"{what} has type {type.__name__}, not {value.__class__.__name__}; convert the value")
