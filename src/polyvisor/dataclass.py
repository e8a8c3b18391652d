"""Dataclasses at a fifth of the price of the standard library's.

The start of a machine declares some fifty of them. For each, ``dataclasses`` compiles six functions, and to do that at
all it imports the tools for source code: together a third of the time until the first instruction of a machine that is
restored. What every start imports takes these; everything else may as well use those.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, dataclass_transform, overload

_T = TypeVar("_T")
_Class = TypeVar("_Class", bound=type[Any])

_MISSING: Any = type("Missing", (), {"__repr__": lambda self: "<missing>"})()
_FIELDS = "__fields__"


class DeclaredField:
    """What was declared of a field; see :func:`field`."""

    __slots__ = ("compare", "default", "default_factory", "init", "repr")

    def __init__(self, default: Any, default_factory: Any, init: bool, repr: bool, compare: bool) -> None:
        self.default = default
        self.default_factory = default_factory
        self.init = init
        self.repr = repr
        self.compare = compare


def field(
    *, default: Any = _MISSING, default_factory: Callable[[], Any] = _MISSING, init: bool = True, repr: bool = True,
    compare: bool = True,
) -> Any:
    """A field with a default, or one that ``default_factory`` makes for each instance.

    Whether it is an argument (``init``), is shown (``repr``), and makes two instances differ (``compare``).
    """
    return DeclaredField(default, default_factory, init, repr, compare)


@overload
def dataclass(cls: _Class, /) -> _Class: ...
@overload
def dataclass(*, frozen: bool = False) -> Callable[[_Class], _Class]: ...
@dataclass_transform(field_specifiers=(field,))
def dataclass(cls: Any = None, /, *, frozen: bool = False) -> Any:
    """Make a dataclass of the annotated names in a class, in order, after those of the ones that it is derived from.

    Instances are equal if they are of one class and all fields are; ``frozen`` ones cannot be changed and are hashable.
    ``__post_init__`` is called when all fields have values. Raises TypeError for a field without a default after one
    that has one, and for a default that could change.
    """
    return _make(cls, frozen) if cls is not None else lambda cls: _make(cls, frozen)


def fields(kind: Any) -> tuple[str, ...]:
    """The names of the fields of a dataclass or an instance of one."""
    return tuple(getattr(kind, _FIELDS))


def names_of(kind: Any, *, compared: bool = False) -> tuple[str, ...] | None:
    """The names of the fields of a dataclass or an instance of one, also of the standard library's; None for all else.

    ``compared``: only of those that make instances differ.
    """
    found: Any = getattr(kind, _FIELDS, None)
    if found is None:
        found = getattr(kind, "__dataclass_fields__", None)
    if found is None:
        return None
    return tuple(name for name, each in found.items() if each.compare or not compared)


def replace(value: _T, /, **changes: Any) -> _T:
    """An instance like ``value`` with other values in some fields."""
    declared: Mapping[str, DeclaredField] = getattr(value, _FIELDS)
    for name, each in declared.items():
        if each.init and name not in changes:
            changes[name] = getattr(value, name)
    return type(value)(**changes)


def _make(cls: Any, frozen: bool) -> Any:
    declared: dict[str, DeclaredField] = {}
    for base in cls.__mro__[:0:-1]:
        declared.update(vars(base).get(_FIELDS, {}))
    for name in vars(cls).get("__annotations__", {}):
        value = vars(cls).get(name, _MISSING)
        if isinstance(value, DeclaredField):
            declared[name] = value
            if value.default is _MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, value.default)
        else:
            if value is not _MISSING and type(value).__hash__ is None:
                raise TypeError(f"{cls.__name__}.{name}: instances would share this default: use default_factory")
            declared[name] = DeclaredField(value, _MISSING, True, True, True)
    setattr(cls, _FIELDS, declared)
    methods: dict[str, Any] = {"__init__": _init(cls, declared, frozen), "__repr__": _repr}
    methods["__match_args__"] = tuple(name for name, each in declared.items() if each.init)
    if "__eq__" not in vars(cls):
        methods |= {"__eq__": _eq, "__hash__": _hash if frozen else None}
    if frozen:
        methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
    for name, method in methods.items():
        # (A class that defines __eq__ has a __hash__ of None by itself.)
        if name not in vars(cls) or (name == "__hash__" and vars(cls)[name] is None):
            setattr(cls, name, method)
    return cls


def _init(cls: Any, declared: Mapping[str, DeclaredField], frozen: bool) -> Any:
    """Compiled, as some are made all the time."""
    known: dict[str, Any] = {"_MISSING": _MISSING}
    arguments, lines = [], []
    optional = False
    for name, each in declared.items():
        if each.default_factory is not _MISSING:
            known[f"_make_{name}"] = each.default_factory
            made = f"_make_{name}()"
            value = f"{made} if {name} is _MISSING else {name}" if each.init else made
        elif each.init:
            value = name
        else:
            continue
        if each.init:
            has_default = each.default is not _MISSING or each.default_factory is not _MISSING
            if optional and not has_default:
                raise TypeError(f"{cls.__name__}.{name} has no default, and those before it have")
            optional = has_default
            known[f"_default_{name}"] = each.default
            arguments.append(f"{name}=_default_{name}" if has_default else name)
        lines.append(f"fields[{name!r}] = {value}" if frozen else f"self.{name} = {value}")
    if frozen:
        lines.insert(0, "fields = self.__dict__")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    exec(f"def __init__(self, {', '.join(arguments)}):\n " + "\n ".join(lines or ["pass"]), known)
    made_init = known["__init__"]
    made_init.__qualname__ = f"{cls.__qualname__}.__init__"
    made_init.__module__ = cls.__module__
    return made_init


def _repr(self: Any) -> str:
    shown = (f"{name}={getattr(self, name)!r}" for name, each in getattr(self, _FIELDS).items() if each.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _compared(value: Any) -> tuple[Any, ...]:
    return tuple(getattr(value, name) for name, each in getattr(value, _FIELDS).items() if each.compare)


def _eq(self: Any, other: object) -> bool:
    return _compared(self) == _compared(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self: Any) -> int:
    return hash(_compared(self))


def _refuse(self: Any, name: str, *value: object) -> None:
    raise AttributeError(f"{type(self).__name__} is frozen: {name} cannot be changed")
