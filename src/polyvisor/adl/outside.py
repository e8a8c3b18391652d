"""Things that a described function may use beside the CPU, constants and other functions, such as a hook's state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import ssa
from .types import DescriptionError

if TYPE_CHECKING:
    from .frontend import Builder


class Outside:
    """Something that makes the operations itself for what a function does with it. All raise DescriptionError."""

    def get(self, builder: Builder, name: str) -> Any:
        """The value of an attribute."""
        raise DescriptionError(f"there is no {name!r} here")

    def set(self, builder: Builder, name: str, value: Any) -> None:
        """Change an attribute."""
        raise DescriptionError(f"{name!r} cannot be changed here")

    def item(self, builder: Builder, index: Any) -> Any:
        """The value at an index."""
        raise DescriptionError("this cannot be indexed")

    def set_item(self, builder: Builder, index: Any, value: Any) -> None:
        """Change the value at an index."""
        raise DescriptionError("nothing can be assigned to an index here")

    def call(self, builder: Builder, arguments: list[Any]) -> Any:
        """What a call gives."""
        raise DescriptionError("this cannot be called")


class Prebuilt:
    """An SSA function, made without Python source, that described functions can call with ``cpu`` first."""

    def __init__(self, function: ssa.Function) -> None:
        self.function = function
        self.name = function.name
