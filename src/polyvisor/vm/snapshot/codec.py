"""Dataclasses as plain data, and back: made from their declarations alone.

Plain data are None, bool, int, str, bytes, lists of them, and dicts of them with names as keys. A dataclass becomes a
dict, one key for each field; a dict whose keys are no strings a list of pairs; tuples, deques and sets become lists.
What comes back is checked against the declared types: a field that is missing or unknown, or a value of another type,
is an error.
"""

from __future__ import annotations

import types
import typing
from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import cache, partial
from typing import Any

from polyvisor.dataclass import names_of
from polyvisor.vm.errors import SnapshotError

LEAST, MOST = -(2**63), 2**64 - 1
"""Integers that are taken; a set of bits, such as the sources of an interrupt controller, may be larger."""
_MOST_BITS = 4096


class StateError(SnapshotError):
    """Plain data are not those of the type they are said to be."""


def to_plain(value: Any) -> Any:
    """``value`` as plain data. Raises TypeError for what has no such form."""
    if value is None or isinstance(value, bool | str | bytes):
        return value
    if isinstance(value, Enum):
        return to_plain(value.value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    names = names_of(value) if not isinstance(value, type) else None
    if names is not None:
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, list | tuple | deque):
        return [to_plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return [to_plain(each) for each in sorted(value)]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: to_plain(each) for key, each in value.items()}
        return [[to_plain(key), to_plain(each)] for key, each in value.items()]
    raise TypeError(f"{type(value).__name__} has no form as plain data")


def from_plain(kind: Any, data: Any, where: str = "", like: Any = None) -> Any:
    """A value of type ``kind`` from what :func:`to_plain` made of one.

    ``where`` is what to call it in errors. A field declared as Any has the type of the same one of ``like``. Raises
    StateError; TypeError for a type that has no such form.
    """
    return _reader(kind)(data, where, like)


_Reader = Callable[[Any, str, Any], Any]


@cache
def _reader(kind: Any) -> _Reader:
    """What makes a value of that type from data, what to call it, and one like it. Made once: lists may be long."""
    if kind is Any:
        return _like
    if isinstance(kind, type) and names_of(kind) is not None:
        return partial(_record, kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _optional(arguments)
    if origin in (list, deque, set, frozenset) or (origin is tuple and arguments[-1] is Ellipsis):
        return partial(_sequence, origin, _reader(arguments[0]))
    if origin is tuple:
        return partial(_fixed, tuple, [_reader(each) for each in arguments])
    if origin is dict:
        return partial(_mapping, arguments[0] is str, [_reader(each) for each in arguments])
    make = getattr(kind, "_make", None)
    if make is not None:  # a named tuple
        hints = typing.get_type_hints(kind)
        return partial(_fixed, make, [_reader(hints[name]) for name in kind._fields])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return partial(_enum, kind)
    if kind is int:
        return _integer
    if kind is bytearray:
        return lambda data, where, like: bytearray(_expect(bytes, data, where))
    if kind in (bool, str, bytes):
        return partial(_expect, kind)
    raise TypeError(f"a field of type {kind} has no form as plain data")


def _expect(kind: type, data: Any, where: str, like: Any = None) -> Any:
    # True is an int to Python.
    if type(data) is not kind:
        raise StateError(f"{where}: not of type {kind.__name__}")
    return data


def _integer(data: Any, where: str, like: Any) -> int:
    if type(data) is not int:
        raise StateError(f"{where}: not of type int")
    if data < LEAST or data.bit_length() > _MOST_BITS:
        raise StateError(f"{where}: a number that is too large")
    return data


def _enum(kind: type[Enum], data: Any, where: str, like: Any) -> Enum:
    try:
        return kind(data)
    except ValueError:
        raise StateError(f"{where}: {data!r} is not possible") from None


def _like(data: Any, where: str, like: Any) -> Any:
    if like is None:
        if data is not None:
            raise StateError(f"{where}: there should be nothing")
        return None
    return from_plain(type(like), data, where, like)


def _sequence(kind: Any, read: _Reader, data: Any, where: str, like: Any) -> Any:
    return kind([read(each, where, None) for each in _expect(list, data, where)])


def _fixed(make: Callable[[list[Any]], Any], reads: list[_Reader], data: Any, where: str, like: Any = None) -> Any:
    """Values of these types, as many as there are of them."""
    if len(_expect(list, data, where)) != len(reads):
        raise StateError(f"{where}: {len(data)} values instead of {len(reads)}")
    return make([read(each, where, None) for read, each in zip(reads, data, strict=True)])


def _mapping(named: bool, reads: list[_Reader], data: Any, where: str, like: Any) -> dict[Any, Any]:
    """``named``: its keys are strings."""
    if named or not data:
        return {key: reads[1](each, f"{where}.{key}", None) for key, each in _expect(dict, data, where).items()}
    pairs = [_fixed(tuple, reads, pair, where) for pair in _expect(list, data, where)]
    found = dict(pairs)
    if len(found) != len(pairs):
        raise StateError(f"{where}: a key that is there twice")
    return found


def _optional(arguments: tuple[Any, ...]) -> _Reader:
    kinds = [kind for kind in arguments if kind is not types.NoneType]
    if len(kinds) != 1:
        raise TypeError("a field of several types has no form as plain data")
    read = _reader(kinds[0])
    if len(kinds) == len(arguments):
        return read
    return lambda data, where, like: None if data is None else read(data, where, like)


@cache
def _fields(kind: Any) -> dict[str, _Reader]:
    hints = typing.get_type_hints(kind)
    return {name: _reader(hints[name]) for name in names_of(kind) or ()}


def _record(kind: Any, data: Any, where: str, like: Any) -> Any:
    _expect(dict, data, where)
    fields = _fields(kind)
    if fields.keys() != data.keys():
        missing, unknown = [name for name in fields if name not in data], [name for name in data if name not in fields]
        problem = f"{', '.join(missing)} is missing" if missing else f"{', '.join(unknown)} is unknown"
        raise StateError(f"{where or kind.__name__}: {problem}")
    prefix = f"{where}." if where else ""
    return kind(**{
        name: read(data[name], prefix + name, getattr(like, name, None)) for name, read in fields.items()
    })  # fmt: skip
