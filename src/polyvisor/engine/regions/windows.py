"""Which accesses of a region can share one look at the TLB.

What compiled code mostly does is to access fields of a structure, or of a stack frame: several places at constant
distances from one register.  A *window* is the range of addresses that such accesses of a block touch.  One look at
the TLB makes sure that all of it is in one page, that may be accessed as it has to be, and aligned; then each access is
the host's own.  Where the register does not change, the next time around a loop only that is compared.
"""

from __future__ import annotations

from collections.abc import Callable

from polyvisor.dataclass import dataclass, field

from .plan import Block, Key, Plan

# The largest window, in bytes: the larger, the more often it lies across the end of a page.
_LARGEST = 1024
# So many accesses make a window worth while: where it is remembered for the next time; where it has to be looked up
# each time; and where instead the page of each access is remembered.
_REMEMBERED, _LOOKED_UP, _MOVING = 2, 3, 6


@dataclass
class Window:
    """A range of addresses: ``first`` and ``end`` are distances from the value of a register.

    That is the register ``key`` as it is before step ``position`` of its block, less ``shift``.  ``first`` is a
    multiple of ``align``, and so must be the address there; ``columns`` are the kinds of access (none: it is empty).
    ``memo`` names what remembers it; None: it is looked up each time.
    """

    key: Key
    position: int
    shift: int
    first: int = 0
    end: int = 0
    align: int = 1
    columns: set[int] = field(default_factory=set)
    memo: str | None = None
    uses: dict[int, int] = field(default_factory=dict)  # the steps that use it: distance from the register's value

    def _with(self, first: int, end: int, align: int) -> tuple[int, int, int]:
        """The range that holds another one too."""
        if self.columns:
            first, end, align = min(self.first, first), max(self.end, end), max(self.align, align)
        return first - first % align, end, align

    def takes(self, distance: int, size: int, column: int) -> bool:
        """Add an access, if the window does not get too large; gives whether."""
        first, end, align = self._with(distance, distance + size, size)
        if end - first > _LARGEST:
            return False
        self.first, self.end, self.align = first, end, align
        self.columns.add(column)
        return True

    def widen(self, other: Window) -> None:
        """Make it hold another one's range too."""
        self.first, self.end, self.align = self._with(other.first, other.end, other.align)
        self.columns |= other.columns


# A value that a register got at a step of a block; at step -1: what it holds when the block begins.
_Value = tuple[Key, int]


def _of_block(block: Block) -> dict[_Value, Window]:
    """All accesses of a block, by the value from which they have constant distances."""
    origins: dict[Key, tuple[_Value, int]] = {}
    found: dict[_Value, Window] = {}
    for position, step in enumerate(block.steps):
        if step.access is not None:
            key, displacement, size, column = step.access
            name, shift = origins.get(key, ((key, -1), 0))
            distance = shift + displacement
            if distance % size == 0:
                window = found.get(name)
                if window is None:
                    window = found[name] = Window(key, position, shift)
                if window.takes(distance, size, column):
                    window.uses[position] = distance
        after = {
            key: (origins.get(source[0], ((source[0], -1), 0)), source[1]) if source is not None else None
            for key, source in step.writes.items()
        }
        for key, origin in after.items():
            if origin is None:
                origins[key] = ((key, position), 0)
            else:
                (name, shift), displacement = origin
                origins[key] = (name, shift + displacement)
    return {name: window for name, window in found.items() if window.uses}


def find_windows(
    plan: Plan, loops: dict[int, frozenset[int]], steady: Callable[[int, Key], bool], remember: bool = True
) -> dict[int, dict[int, Window]]:
    """The windows of a plan's blocks: by block and step.

    ``steady`` tells whether a register stays near where it is while the loop around a block runs; without ``remember``
    all windows are looked up each time.
    """
    steps = {b.number: b.steps for b in plan.blocks.values()}
    written: dict[frozenset[int], set[Key]] = {}
    chosen: list[tuple[int, Window]] = []
    remembered: dict[tuple[Key, bool], list[Window]] = {}
    for block in plan.blocks.values():
        body = loops.get(block.number)
        if body is not None and body not in written:
            written[body] = {key for n in body for step in steps[n] for key in step.writes}
        for (key, since), window in _of_block(block).items():
            changes = not remember or since >= 0 or (body is not None and key in written[body])
            if not changes:
                if len(window.uses) >= _REMEMBERED or body is not None:
                    chosen.append((block.number, window))
                    remembered.setdefault((key, 8 in window.columns), []).append(window)
            elif len(window.uses) >= (
                _REMEMBERED if not remember else _MOVING if steady(block.number, key) else _LOOKED_UP
            ):
                chosen.append((block.number, window))
    for (key, stores), windows in remembered.items():
        _share(windows, f"{key[0]}.{key[1]}.{int(stores)}")
    found: dict[int, dict[int, Window]] = {}
    for number, window in chosen:
        for position in window.uses:
            found.setdefault(number, {})[position] = window
    return found


def _share(windows: list[Window], name: str) -> None:
    """Let blocks with windows at one register remember one that holds them all, unless that is too large."""
    whole = Window(windows[0].key, 0, 0)
    for window in windows:
        whole.widen(window)
    small = whole.end - whole.first <= _LARGEST
    for number, window in enumerate(windows):
        window.memo = name if small else f"{name}.{number}"
        if small:
            window.first, window.end, window.align = whole.first, whole.end, whole.align
            window.columns |= whole.columns
