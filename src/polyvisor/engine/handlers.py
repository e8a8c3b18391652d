"""The native code of instructions as units that can be linked: from the cache, or compiled into it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .codecache import CodeCache
from .objects import Unit

if TYPE_CHECKING:  # what compiles is imported where something is compiled
    from polyvisor.adl import ssa

    from .units import Units

    Build = Callable[[], tuple[str, list[ssa.Function]]]

CORE = "core"


def core_unit(units: Units, cache: CodeCache) -> Unit:
    """The core, compiled if need be."""
    return cached_core(cache) or _compile(cache, CORE, units.core(), ())


def cached_core(cache: CodeCache) -> Unit | None:
    """The core from the cache; None if it has not got it."""
    kept = cache.get(CORE)
    return None if kept is None else _loaded(kept)[1]


def handler_units(units: Units, cache: CodeCache, index: int) -> dict[str, Unit]:
    """A handler and all helpers it needs, by the units' names; compiled if need be."""
    name = units.handler_name(index)
    return cached_units(cache, name) or compiled_units(units, cache, name, partial(units.handler, index))


def cached_units(cache: CodeCache, name: str) -> dict[str, Unit] | None:
    """The unit called ``name`` and all helpers it needs, from the cache alone; None if that has not all of them."""
    found: dict[str, Unit] = {}
    todo = [name]
    while todo:
        name = todo.pop()
        if name not in found:
            kept = cache.get(name)
            if kept is None:
                return None
            needs, found[name] = _loaded(kept)
            todo.extend(needs)
    return found


def compiled_units(units: Units, cache: CodeCache, name: str, build: Build) -> dict[str, Unit]:
    """The same, compiled if need be: ``build`` gives the unit's text, and the functions it needs."""
    found: dict[str, Unit] = {}
    todo: list[tuple[str, Build]] = [(name, build)]
    while todo:
        name, build = todo.pop()
        if name in found:
            continue
        text, helpers = build()
        needs = tuple(f"helper {h.name}" for h in helpers)
        kept = cache.get(name)
        found[name] = _compile(cache, name, text, needs) if kept is None else _loaded(kept)[1]
        todo += [(n, partial(units.helper, h)) for n, h in zip(needs, helpers, strict=True)]
    return found


def _loaded(kept: bytes) -> tuple[tuple[str, ...], Unit]:
    # Imported here, because a process that finds an image does without.
    import pickle

    found: tuple[tuple[str, ...], Unit] = pickle.loads(kept)
    return found


def _compile(cache: CodeCache, name: str, text: str, needs: tuple[str, ...]) -> Unit:
    import pickle

    from .objectcode import optimise
    from .objects import unit_from_object

    unit = unit_from_object(optimise(text))
    cache.put(name, pickle.dumps((needs, unit)))
    return unit
