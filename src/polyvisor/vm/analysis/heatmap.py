"""A picture of where memory is read and written: rows of cells, the redder the more."""

from __future__ import annotations

import math
from typing import Any

from polyvisor.adl import Registers, u64
from polyvisor.devices import png
from polyvisor.engine.hooks.declare import Hook, State, on_read, on_write

from ..hooks import AddedHook
from ..virtual_machine import VM


class Heatmap:
    """Counts accesses to a range of virtual addresses in cells of ``cell`` bytes, a power of two.

    Raises ValueError for a range of more than a million cells. As a context manager it stops counting at the end.
    """

    def __init__(self, vm: VM, where: range, cell: int = 64) -> None:
        if cell < 1 or cell & (cell - 1):
            raise ValueError(f"a cell has a power of two of bytes, not {cell}")
        self.where, self.cell = where, cell
        count = -(-(where.stop - where.start) // cell)
        if not 0 < count <= 1 << 20:
            raise ValueError(f"{count} cells; there can be {1 << 20}: make them larger")
        hooks, state = _counters(where.start, cell.bit_length() - 1, count)
        self.hook: AddedHook = vm.hooks.add(hooks, state, at=where)

    def stop(self) -> None:
        """Count no more; what was counted stays."""
        self.hook.remove()

    def __enter__(self) -> Heatmap:
        return self

    def __exit__(self, *reason: object) -> None:
        self.stop()

    @property
    def reads(self) -> list[int]:
        """How many reads began in each cell."""
        return list(self.hook.reads)

    @property
    def writes(self) -> list[int]:
        """How many writes began in each cell."""
        return list(self.hook.writes)

    def png(self, columns: int = 64, pixels: int = 6) -> bytes:
        """A PNG file: cells from left to right and top to bottom, reads green and writes red, on logarithmic scales."""
        reads, writes = self.reads, self.writes
        red, green = _shades(writes), _shades(reads)
        rows = -(-len(reads) // columns)
        image = bytearray()
        for row in range(rows):
            line = b"".join(
                bytes((red[n], green[n], 0)) * pixels if n < len(reads) else bytes(3 * pixels)
                for n in range(row * columns, (row + 1) * columns)
            )
            image += line * pixels
        return png.encode(columns * pixels, rows * pixels, bytes(image))


def _shades(counts: list[int]) -> list[int]:
    most = math.log1p(max(counts, default=0)) or 1.0
    return [round(255 * math.log1p(count) / most) for count in counts]


def _counters(start: int, shift: int, count: int) -> tuple[list[Hook], type[State]]:
    class Cells(State):
        reads = Registers(u64, count)
        writes = Registers(u64, count)

    @on_read
    def read(hook: Any, address: Any) -> None:
        if address >= start:  # one that began before the range ends in it
            place = (address - start) >> shift
            hook.reads[place] = hook.reads[place] + 1

    @on_write
    def write(hook: Any, address: Any) -> None:
        if address >= start:
            place = (address - start) >> shift
            hook.writes[place] = hook.writes[place] + 1

    return [read, write], Cells
