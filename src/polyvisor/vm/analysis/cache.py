"""A simulated data cache: how often what a guest reads and writes would be in it."""

from __future__ import annotations

from typing import Any

from polyvisor.adl import Field, Registers, u64
from polyvisor.engine.hooks.declare import Hook, State, on_read, on_write

from ..hooks import AddedHook
from ..virtual_machine import VM


class CacheSimulation:
    """A cache for each hart, by virtual address, that forgets what was used longest ago, and allocates on writes.

    ``size`` and ``line`` in bytes; ``ways`` lines are in each set. All are powers of two. An access that lies in two
    lines counts for the first. As a context manager it stops at the end; the counts stay. Raises ValueError.
    """

    def __init__(self, vm: VM, size: int = 32 << 10, ways: int = 8, line: int = 64) -> None:
        for name, value in (("size", size), ("ways", ways), ("line", line)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} is a power of two, not {value}")
        if size < ways * line or ways > 64:
            raise ValueError(f"there is no cache of {size} bytes with {ways} ways and lines of {line} bytes")
        hooks, state = _hooks(size // line // ways, ways, line.bit_length() - 1)
        self.hook: AddedHook = vm.hooks.add(hooks, state)

    def stop(self) -> None:
        """Simulate no more."""
        self.hook.remove()

    def __enter__(self) -> CacheSimulation:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    @property
    def accesses(self) -> int:
        """Reads and writes so far."""
        return int(self.hook.hits + self.hook.misses)

    @property
    def misses(self) -> int:
        """Those of them that were not in the cache."""
        return int(self.hook.misses)

    @property
    def miss_rate(self) -> float:
        """Misses by accesses."""
        return self.misses / max(1, self.accesses)


def _hooks(sets: int, ways: int, shift: int) -> tuple[list[Hook], type[State]]:
    class Lines(State):
        hits = Field(u64)
        misses = Field(u64)
        # Of each set, the lines' numbers and 1, the one used last first; 0: empty.
        lines = Registers(u64, sets * ways)

    def access(hook: Any, address: Any) -> None:
        line = (address >> shift) + 1
        first = ((address >> shift) & (sets - 1)) * ways
        found = False
        moved = line
        for way in range(ways):
            if not found:
                # Each goes one place back, until the place that this line had.
                here = hook.lines[first + way]
                hook.lines[first + way] = moved
                moved = here
                if here == line:
                    found = True
        if found:
            hook.hits = hook.hits + 1
        else:
            hook.misses = hook.misses + 1

    return [on_read(access), on_write(access)], Lines
