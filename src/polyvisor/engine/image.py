"""The interpreter as one piece: core, handlers and helpers, linked, for the next process to load at once.

It is kept in the code cache beside the units it was made of, under the same key, and does not need them.
"""

from __future__ import annotations

import marshal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from .codecache import CodeCache
from .handlers import CORE, cached_units, core_unit
from .objects import Relocation, Unit, join

if TYPE_CHECKING:
    from .units import Units

# In Python's own format, which takes no module to read.
_NAME = f"image {sys.implementation.cache_tag} {marshal.version}"


def symbol_of(index: int) -> str:
    """The symbol of the handler of instruction ``index`` (0: illegal)."""
    return f"h{index}"


class Numbers(NamedTuple):
    """What a process that only runs handlers has to know of them, so that it need not look at any instruction.

    For every number of an instruction (0: illegal): ``twins`` is which one's handler it has, and ``names`` what the
    handler's unit is called. ``operand_bytes`` is that of :class:`.layout.Layout`.
    """

    twins: tuple[int, ...]
    names: tuple[str, ...]
    operand_bytes: int


def number_handlers(units: Units) -> Numbers:
    """The numbers of an architecture."""
    every = range(len(units.architecture.instructions) + 1)
    return Numbers(
        tuple(units.twin(i) for i in every), tuple(units.unit_name(i) for i in every), units.layout.operand_bytes
    )


class Image(NamedTuple):
    """``unit`` is the code of the units whose names are in ``parts``, one of the cores among them."""

    unit: Unit
    parts: frozenset[str]
    numbers: Numbers

    def missing(self) -> list[int]:
        """The instructions whose handlers are not in it."""
        twins = self.numbers.twins
        return [i for i, twin in enumerate(twins) if twin == i and symbol_of(i) not in self.unit.symbols]

    def extended(self, units: Mapping[str, Unit]) -> Image:
        """The image with further units, by name, in it."""
        more = {name: unit for name, unit in units.items() if name not in self.parts}
        return Image(join([self.unit, *more.values()]), self.parts | more.keys(), self.numbers)


def load_image(cache: CodeCache) -> Image | None:
    """The image in the cache, if there is one and it is whole."""
    kept = cache.get(_NAME)
    if kept is None:
        return None
    (code, symbols, inside, relocations), parts, numbers = marshal.loads(kept)
    unit = Unit(code, symbols, inside, tuple(Relocation(*each) for each in relocations))
    return Image(unit, frozenset(parts), Numbers(*numbers))


def store_image(cache: CodeCache, image: Image) -> None:
    """Keep an image, instead of what is kept."""
    code, symbols, inside, relocations = image.unit
    twins, names, operand_bytes = image.numbers
    unit = code, dict(symbols), inside, tuple((r.place, r.symbol, r.addend, r.shift) for r in relocations)
    cache.put(_NAME, marshal.dumps((unit, sorted(image.parts), (twins, names, operand_bytes))))


def renew_image(units: Units, cache: CodeCache) -> None:
    """Make the image anew, of the good core and all that is in the cache, if that is not what is there."""
    image = old = load_image(cache)
    if image is None or CORE not in image.parts:
        image = Image(core_unit(units, cache), frozenset({CORE}), number_handlers(units))
    more: dict[str, Unit] = {}
    for name in {image.numbers.names[index] for index in image.missing()}:
        more |= cached_units(cache, name) or {}
    if more or image is not old:
        store_image(cache, image.extended(more))
