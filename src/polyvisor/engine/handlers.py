"""The native code of instructions as units that can be linked: from the cache, or compiled into it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from .codecache import CodeCache
from .objectcode import FULL, LEAST, QUICK, compile_unit
from .objects import Unit, join

if TYPE_CHECKING:  # what compiles is imported where something is compiled
    from .units import Text, Units

    Build = Callable[[], Text]

CORE, QUICK_CORE = "core", "core quick"


def core_unit(units: Units, cache: CodeCache, name: str = CORE) -> Unit:
    """The core, or one that was compiled quickly, by name; compiled if need be."""
    core = cached_core(cache, name)
    if core is None:
        quick = name == QUICK_CORE
        # What is decoded is executed many times.
        decoder = compile_unit(units.decoder(), LEAST if quick else FULL)
        core = join([compile_unit(units.core(), QUICK if quick else FULL), decoder])
        _keep(cache, name, (), core)
    return core


def cached_core(cache: CodeCache, name: str = CORE) -> Unit | None:
    """One of them from the cache; None if it has not got it."""
    kept = cache.get(name)
    return None if kept is None else _loaded(kept)[1]


def handler_units(units: Units, cache: CodeCache, index: int) -> dict[str, Unit]:
    """The unit that a handler is in and all helpers that needs, by the units' names; compiled if need be."""
    name, group = units.unit_name(index), units.group(index)
    return cached_units(cache, name) or compiled_units(units, cache, name, partial(units.handlers, group))


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
        if kept is None:
            found[name] = compile_unit(text)
            _keep(cache, name, needs, found[name])
        else:
            found[name] = _loaded(kept)[1]
        todo += [(n, partial(units.helper, h)) for n, h in zip(needs, helpers, strict=True)]
    return found


def _loaded(kept: bytes) -> tuple[tuple[str, ...], Unit]:
    # Imported here, because a process that finds an image does without.
    import pickle

    found: tuple[tuple[str, ...], Unit] = pickle.loads(kept)
    return found


def _keep(cache: CodeCache, name: str, needs: tuple[str, ...], unit: Unit) -> None:
    import pickle

    cache.put(name, pickle.dumps((needs, unit)))
