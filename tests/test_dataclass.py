"""Our dataclasses do what the standard library's do."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from polyvisor import dataclass as ours


@ours.dataclass
class Base:
    a: int
    b: list[int] = ours.field(default_factory=list)
    c: int = ours.field(default=3, repr=False, compare=False)


@ours.dataclass
class Derived(Base):
    d: str = "x"
    e: Any = ours.field(init=False, default=7)

    def __post_init__(self) -> None:
        self.f = self.a + 1


@ours.dataclass(frozen=True)
class Frozen:
    a: int
    b: tuple[int, ...] = ()


def test_values_come_by_place_name_and_default() -> None:
    one, other = Derived(1), Derived(2, [3], d="y")
    assert (one.a, one.b, one.c, one.d, one.e, one.f) == (1, [], 3, "x", 7, 2)
    assert (other.b, other.d) == ([3], "y")
    assert one.b is not Derived(1).b
    with pytest.raises(TypeError):
        Derived()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Derived(1, [], 3, "x", 7)  # type: ignore[call-arg]


def test_equality_and_how_they_are_shown() -> None:
    assert Base(1) == Base(1, c=9) != Base(2)
    assert Base(1) != Derived(1)
    assert repr(Base(1)) == "Base(a=1, b=[])"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Base(1))


def test_frozen_ones_stay_and_are_keys() -> None:
    value = Frozen(1, (2,))
    with pytest.raises(AttributeError, match="a cannot be changed"):
        value.a = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del value.a
    assert {value: 1}[Frozen(1, (2,))] == 1
    assert pickle.loads(pickle.dumps(value)) == value
    match value:
        case Frozen(a, (b,)):
            assert (a, b) == (1, 2)


def test_replacing() -> None:
    assert ours.replace(Frozen(1), b=(5,)) == Frozen(1, (5,))
    assert ours.replace(Derived(1, [2]), a=4).f == 5
    with pytest.raises(TypeError):
        ours.replace(Frozen(1), other=2)


def test_what_a_class_says_itself_stays() -> None:
    @ours.dataclass(frozen=True)
    class Own:
        a: int

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 5

    assert repr(Own(1)) == "own" and Own(1) == Own(2) and hash(Own(3)) == 5


def test_impossible_declarations() -> None:
    with pytest.raises(TypeError, match=r"Late.b has no default"):

        @ours.dataclass
        class Late:
            a: int = 1
            b: int  # type: ignore[misc]

    with pytest.raises(TypeError, match="share this default"):

        @ours.dataclass
        class Shared:
            a: list[int] = []  # noqa: RUF012


def test_names_of_either_kind() -> None:
    @dataclasses.dataclass
    class Theirs:
        a: int
        b: int = dataclasses.field(default=1, compare=False)

    assert ours.names_of(Theirs) == ("a", "b") and ours.names_of(Theirs(1), compared=True) == ("a",)
    assert ours.names_of(Base(1), compared=True) == ("a", "b") and ours.fields(Derived) == ("a", "b", "c", "d", "e")
    assert ours.names_of(5) is None
