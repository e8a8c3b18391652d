"""The native code of an architecture with hooks in it: what they touch is compiled anew, all else is shared."""

from __future__ import annotations

import ctypes
import pickle
from functools import partial

from polyvisor.adl import ssa

from ..codecache import CodeCache
from ..handlers import cached_units, compiled_units
from ..native import NativeCode
from ..objectcode import compile_unit
from ..objects import Unit
from .events import HookSet, values_of
from .instrument import Instrumenter
from .lowering import events_text, thunk_name, thunks_text


class HookedCode(NativeCode):
    """The native code of ``base``'s architecture with a set of hooks: a table of handlers of its own."""

    hooks: HookSet

    def __init__(self, base: NativeCode, hooks: HookSet) -> None:
        assert base.units is not None  # made now, so that both have the same
        vars(self).update(vars(base))  # the core, and what it is linked with, are the same
        self.base = base
        self.hooks = hooks
        self._digest = hooks.digest
        self.cache = CodeCache(f"{base.key}-{self._digest}")
        self.table = (ctypes.c_uint64 * len(base.table))()
        # What is executed behind the start of an instruction: `table` itself, where nothing is hooked to that.
        self.inner = (ctypes.c_uint64 * len(base.table))()
        self._instrumenter = Instrumenter(hooks, self.layout.members, self.architecture.system_call)
        self._starts = bool(hooks.of("instruction"))
        self._effects = _effects(base)
        self.hook_places: dict[str, int] = {}
        with self.lock:
            self._link_events()
        self.warm()

    def _link_events(self) -> None:
        """Compile what is called at the start of instructions and at traps."""
        start = (self._instrumenter.start(), f"start.{self._digest}") if self._starts else None
        before = None
        if self.hooks.of("trap", "syscall"):
            before = self._instrumenter.before_trap(values_of(self.architecture, "trap"))
        after = self._instrumenter.after_trap()
        traps = {"trap_hook": before, "entry_hook": after}
        functions = [function for function in traps.values() if function is not None]
        if start is not None or functions:
            text = partial(events_text, start, functions, self.layout, self.runtime)
            self.link({f"events {self._digest}": _kept(self.cache, "events", text)})
        if start is not None:
            thunks = partial(thunks_text, len(self.table), self.layout)
            self.link({"thunks": _kept(self.base.cache, "thunks", thunks)})
            self.hook_places |= {"hook_start": self.address(start[1]), "hook_table": ctypes.addressof(self.inner)}
        for name, function in traps.items():
            if function is not None:
                self.hook_places[name] = self.address(function.name)

    def _is_hooked(self, index: int) -> bool:
        """Whether the handler of an instruction has hooks in it, beside its start."""
        return self.hooks.touches(self._effects[index])

    def handler(self, index: int) -> int:
        """The address of what executes instruction ``index``, with hooks; compiled if need be."""
        with self.lock:
            if not self.table[index]:
                twin = self._numbers.twins[index]
                if not self.inner[twin]:
                    self.inner[twin] = self._hooked(twin) if self._is_hooked(twin) else self.base.handler(twin)
                self._enter(index)
            return int(self.table[index])

    def _enter(self, index: int) -> None:
        """Put into the table what executes an instruction whose inner handler is there."""
        self.inner[index] = self.inner[self._numbers.twins[index]]
        # What is no instruction does not begin, either.
        thunk = self._starts and index != 0
        self.table[index] = self.address(thunk_name(index)) if thunk else self.inner[index]

    def _hooked(self, index: int) -> int:
        symbol = f"h{index}.{self._digest}"
        name = f"handler {symbol}"
        units = cached_units(self.cache, name)
        if units is None:
            self._note(name)
            function = self._instrumenter.instruction(self.units.handler_function(index), False)
            build = partial(self.units.handler, index, function, symbol)
            units = compiled_units(self.units, self.cache, name, build)
        self.link(units)
        return self.address(symbol)

    def warm(self) -> int:
        """Take over what needs no hooks, as far as it is there."""
        self.base.warm()
        count = 0
        with self.lock:
            for index, twin in enumerate(self._numbers.twins):
                if not self._is_hooked(twin) and self.base.table[twin]:
                    self.inner[twin] = self.base.table[twin]
                    self._enter(index)
                    count += 1
        return count


def _kept(cache: CodeCache, name: str, text: partial[str]) -> Unit:
    """A unit that needs no helpers, from the cache or compiled into it."""
    content = cache.get(name)
    if content is None:
        content = pickle.dumps(compile_unit(text()))
        cache.put(name, content)
    unit: Unit = pickle.loads(content)
    return unit


def _effects(base: NativeCode) -> list[ssa.Effects]:
    """The effects of each instruction's function, by its number; 0 is for what is none."""
    kept = base.cache.get("effects")
    if kept is None:
        twins = base.units.twin
        found = [base.units.handler_function(twins(i)).effects for i in range(len(base.table))]
        kept = pickle.dumps(found)
        base.cache.put("effects", kept)
    loaded: list[ssa.Effects] = pickle.loads(kept)
    return loaded


def hooked_code(base: NativeCode, hooks: HookSet) -> NativeCode:
    """The native code with these hooks, made once per process; without any, the base itself."""
    if not hooks.uses:
        return base
    with base.lock:
        known: dict[str, HookedCode] = vars(base).setdefault("variants", {})
        if hooks.digest not in known:
            known[hooks.digest] = HookedCode(base, hooks)
        return known[hooks.digest]
