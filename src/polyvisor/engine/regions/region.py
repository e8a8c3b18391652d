"""What is asked of the compiler of regions, and what it gives: all that a process needs which only runs them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from polyvisor.dataclass import dataclass, field

from ..layout import REGION_INSTRUCTIONS
from ..objects import Unit

if TYPE_CHECKING:
    from ..hooks.events import HookSet

# The most instructions in a region that is to be ready soon, and basic blocks that jumps to unknown places may enter.
QUICK_INSTRUCTIONS = 64
MAX_TARGETS = 48
# The function in a region's unit.
FUNCTION = "region"


def original_symbol(offset: int) -> str:
    """The symbol for the interpreter's handler of the instruction ``offset`` bytes from the region's beginning."""
    return f"original.{offset}"


def slot_symbol(delta: int) -> str:
    """The symbol for the address of the records of the page ``delta`` pages from the entry's."""
    return f"slot.{delta}" if delta >= 0 else f"slot.n{-delta}"


@dataclass(frozen=True)
class Request:
    """Guest code to compile: ``entry`` is the offset of the first instruction in its page.

    ``pages`` are the bytes of the entry's page (0) and of others, by their distance in pages, and for each of their
    units whether it was executed (a bit string, lowest bit first).  ``targets`` and ``assumed`` are those of
    :class:`.plan.Plan` and :class:`.emit.RegionEmitter`.  ``quick``: a small region, soon, rather than a good one.
    ``origin`` is the address of the first instruction, for architectures with absolute jumps: the region is for that
    place alone.  ``final``: there are no more pages to be had.  ``remakes``: how often the place was compiled before.
    ``hooks`` are compiled into it.
    """

    entry: int
    pages: Mapping[int, tuple[bytes, int]]
    targets: tuple[int, ...] = ()
    assumed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    limit: int = REGION_INSTRUCTIONS
    quick: bool = False
    final: bool = False
    remakes: int = 0
    hooks: HookSet | None = None
    origin: int | None = None


class Missing(NamedTuple):
    """Other pages that the region could go on to, by their distance from the entry's."""

    pages: frozenset[int]


@dataclass(frozen=True)
class Region:
    """A compiled region: machine code, and what must be so for it to be right.

    ``footprint`` are the bytes it was made of: (distance of the page, offset in the page, bytes).  ``entries`` are the
    places where it may be entered: offset from the first of them, and the instruction's number; ``starts`` are where
    its blocks start; ``ends`` are those of :class:`.plan.Plan`; ``loops`` is whether it has any; ``request`` is what
    was asked for, without the pages.
    """

    unit: Unit
    footprint: tuple[tuple[int, int, bytes], ...]
    entries: tuple[tuple[int, int], ...]
    assumed: Mapping[str, tuple[int, int]]
    instructions: int
    starts: frozenset[int]
    ends: tuple[int, ...]
    loops: bool
    request: Request

    @property
    def pages(self) -> set[int]:
        """The distances of the pages it runs on, 0 among them."""
        return {page for page, _, _ in self.footprint}
