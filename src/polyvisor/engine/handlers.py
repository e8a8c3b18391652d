"""The object files of a handler: from the cache, or compiled into it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

from polyvisor.adl import ssa

from .codecache import CodeCache
from .objectcode import optimise
from .units import Units

Build = Callable[[], tuple[str, list[ssa.Function]]]


def handler_objects(units: Units, cache: CodeCache, index: int) -> dict[str, bytes]:
    """The object files of a handler and of all helpers it needs, by the units' names; compiled if need be."""
    found = cached_handler(units, cache, index)
    if found is not None:
        return found
    found = {}
    todo: list[tuple[str, Build]] = [(units.handler_name(index), partial(units.handler, index))]
    while todo:
        name, build = todo.pop()
        if name in found:
            continue
        text, helpers = build()
        needs = tuple(f"helper {h.name}" for h in helpers)
        kept = cache.get(name)
        if kept is None:
            found[name] = optimise(text)
            cache.put(name, pickle.dumps((needs, found[name])))
        else:
            found[name] = pickle.loads(kept)[1]
        todo += [(n, partial(units.helper, h)) for n, h in zip(needs, helpers, strict=True)]
    return found


def cached_handler(units: Units, cache: CodeCache, index: int) -> dict[str, bytes] | None:
    """The same from the cache alone; None if it has not all of them."""
    found: dict[str, bytes] = {}
    todo = [units.handler_name(index)]
    while todo:
        name = todo.pop()
        if name not in found:
            kept = cache.get(name)
            if kept is None:
                return None
            needs, found[name] = pickle.loads(kept)
            todo.extend(needs)
    return found
