"""Dataclasses as plain data, and back: made from their declarations alone.

Plain data are None, bool, int, str, bytes, lists of them, and dicts of them with names as keys. A dataclass becomes a
dict, one key for each field; a dict whose keys are no strings a list of pairs; tuples, deques and sets become lists.
What comes back is checked against the declared types: a field that is missing or unknown, or a value of another type,
is an error.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections import deque
from enum import Enum
from functools import cache
from typing import Any

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
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
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
    StateError.
    """
    if kind is Any:
        if like is None:
            if data is not None:
                raise StateError(f"{where}: there should be nothing")
            return None
        return from_plain(type(like), data, where, like)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, data, where, like)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return _optional(arguments, data, where, like)
    if origin in (list, deque, set, frozenset) or (origin is tuple and arguments[-1] is Ellipsis):
        return origin(from_plain(arguments[0], each, where) for each in _expect(list, data, where))
    if origin is tuple:
        return tuple(_fixed(arguments, data, where))
    if origin is dict:
        if arguments[0] is str or not data:
            return {key: from_plain(arguments[1], each, f"{where}.{key}") for key, each in _pairs(data, where)}
        pairs = [_fixed(arguments, pair, where) for pair in _expect(list, data, where)]
        found = dict(pairs)
        if len(found) != len(pairs):
            raise StateError(f"{where}: a key that is there twice")
        return found
    if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields"):
        hints = _hints(kind)
        return kind(*_fixed([hints[name] for name in kind._fields], data, where))
    if isinstance(kind, type) and issubclass(kind, Enum):
        try:
            return kind(data)
        except ValueError:
            raise StateError(f"{where}: {data!r} is not possible") from None
    if kind is int:
        number: int = _expect(int, data, where)
        if number < LEAST or number.bit_length() > _MOST_BITS:
            raise StateError(f"{where}: a number that is too large")
        return number
    if kind is bytearray:
        return bytearray(_expect(bytes, data, where))
    if kind in (bool, str, bytes):
        return _expect(kind, data, where)
    raise TypeError(f"{where}: a field of type {kind} has no form as plain data")


def _expect(kind: type, data: Any, where: str) -> Any:
    # True is an int to Python.
    if type(data) is not kind:
        raise StateError(f"{where}: not of type {kind.__name__}")
    return data


def _pairs(data: Any, where: str) -> Any:
    return _expect(dict, data, where).items()


def _fixed(kinds: Any, data: Any, where: str) -> list[Any]:
    """Values of these types, as many as there are of them."""
    if len(_expect(list, data, where)) != len(kinds):
        raise StateError(f"{where}: {len(data)} values instead of {len(kinds)}")
    return [from_plain(kind, each, where) for kind, each in zip(kinds, data, strict=True)]


def _optional(arguments: tuple[Any, ...], data: Any, where: str, like: Any) -> Any:
    kinds = [kind for kind in arguments if kind is not types.NoneType]
    if data is None and len(kinds) < len(arguments):
        return None
    if len(kinds) != 1:
        raise TypeError(f"{where}: a field of several types has no form as plain data")
    return from_plain(kinds[0], data, where, like)


def _dataclass(kind: Any, data: Any, where: str, like: Any) -> Any:
    _expect(dict, data, where)
    hints = _hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    missing, unknown = [name for name in names if name not in data], [name for name in data if name not in names]
    if missing or unknown:
        problem = f"{', '.join(missing)} is missing" if missing else f"{', '.join(unknown)} is unknown"
        raise StateError(f"{where or kind.__name__}: {problem}")
    prefix = f"{where}." if where else ""
    values = {name: from_plain(hints[name], data[name], prefix + name, getattr(like, name, None)) for name in names}
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)
