"""Native code of an architecture in this process: linked from the cache, or compiled on first use.

A process that finds everything in the cache loads one image of it and imports no compiler.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from polyvisor.adl import Architecture

from .arena import CodeArena
from .codecache import CodeCache
from .handlers import CORE, QUICK_CORE, cached_core, cached_units, core_unit, handler_units
from .image import Image, load_image, number_handlers, store_image, symbol_of
from .layout import MISSES, Layout
from .objectcode import cache_key
from .objects import Unit, UnlinkableError, join
from .workers import NEEDED, SOMETIME, Workers

if TYPE_CHECKING:
    from polyvisor.adl import ssa
    from polyvisor.adl.frontend import Compiler

    from .hooks.events import HookSet
    from .units import Units

_lock = threading.RLock()
# As many units with missing handlers are compiled ahead by the workers; one is not worth their start.
_WORTH_WORKERS = 2
# The handlers of so many instructions, those that are described first, are compiled before any region; the others when
# there is nothing else.
_SOON = 240
# Room for the interpreter, in bytes; what is not used takes no memory.
_ROOM = 64 << 20
# Where functions of C are looked for that LLVM calls for what the host has no instruction for.
_LIBRARIES = (None, "libm.so.6", "libgcc_s.so.1")


class _Symbols(dict[str, int]):
    """Addresses of what is linked; other names are those of the host's libraries."""

    def __missing__(self, name: str) -> int:
        for library in _LIBRARIES:
            try:
                function = getattr(ctypes.CDLL(library), name)
            except (OSError, AttributeError):
                continue
            self[name] = address = ctypes.cast(function, ctypes.c_void_p).value or 0
            return address
        raise UnlinkableError(f"compiled code needs {name}, which is nowhere on this host")


class NativeCode:
    """The native code of one architecture in this process, shared by all its machines.

    ``table`` has the addresses of handlers by the number of the instruction (0: illegal), 0 for what is not linked;
    ``region_symbols`` is what compiled regions call.
    """

    lock = _lock
    # What is hooked in this code (see :mod:`polyvisor.engine.hooks`).
    hooks: HookSet | None = None
    # Addresses that CPUs with hooks need, by member of `EngineState`.
    hook_places: Mapping[str, int] = {}

    def __init__(self, architecture: Architecture, progress: Callable[[str], None] | None = None) -> None:
        self.architecture = architecture
        self.progress = progress
        self.compiled = 0
        self.key = cache_key(architecture)
        self.cache = CodeCache(self.key)
        self.workers = Workers(architecture, self.key)
        self._arena = CodeArena(_ROOM)
        self._symbols = _Symbols()
        self._linked: set[str] = set()
        # Units that workers compile: what is asked for, begun, and finished.
        self._ahead = threading.Condition()
        self._begun: set[str] = set()
        self._wanted: set[str] = set()
        self._arrived: dict[str, dict[str, Unit]] = {}
        self._image_asked = False
        image = load_image(self.cache)
        self.layout = Layout(architecture, image.numbers.operand_bytes if image is not None else None)
        self._numbers = image.numbers if image is not None else number_handlers(self.units)
        self.table = (ctypes.c_uint64 * len(self._numbers.twins))()
        self._image = image if image is not None else self._core()
        self._place(self._image.unit)
        self._linked |= self._image.parts
        self._take_handlers()
        self._bind()

    # What compiles, when something is compiled

    @cached_property
    def units(self) -> Units:
        """The texts of what is compiled."""
        from .units import Units

        return Units(self.architecture, self.layout)

    @property
    def compiler(self) -> Compiler:
        """The compiler of described functions."""
        return self.units.compiler

    def runtime(self, name: str, **constants: Any) -> ssa.Function:
        """A function of the engine's described modules, specialised for this architecture."""
        return self.units.runtime(name, **constants)

    def _core(self) -> Image:
        """What there is without an image: a core alone. The good one, if that is cached or there are no workers."""
        core, which = cached_core(self.cache), CORE
        if core is None and self.workers.count:
            which = QUICK_CORE
            core = cached_core(self.cache, which)
        if core is None:
            every = dict.fromkeys(self._numbers.names)
            self._compile_ahead([name for name in every if cached_units(self.cache, name) is None])
            self._note("core")
            core = core_unit(self.units, self.cache, which)
        return Image(core, frozenset({which}), self._numbers)

    # Copies of the process

    @contextmanager
    def still(self) -> Iterator[None]:
        """No thread is in the middle of compiling or linking: the process may be copied (``os.fork``)."""
        with _lock, self._ahead:
            yield

    def revive(self, workers: int) -> None:
        """In the copy, which has no threads or workers; it may have so many. Still within :meth:`still`."""
        self.workers.revive(workers)
        self._arena.fork()
        self._begun.clear()
        self._wanted.clear()

    def _note(self, name: str) -> None:
        self.compiled += 1
        if self.progress is not None:
            self.progress(name)

    # Linking

    def _place(self, unit: Unit) -> None:
        address = self._arena.add(unit, self._symbols)
        self._symbols.update((name, address + offset) for name, offset in unit.symbols.items())

    def address(self, symbol: str) -> int:
        """Where a symbol of a linked unit is."""
        return self._symbols[symbol]

    def link(self, units: Mapping[str, Unit]) -> None:
        """Link those units, by name, that are not linked yet; all that they call is linked, or among them."""
        new = units.keys() - self._linked
        if new:
            self._place(join(units[name] for name in sorted(new)))
            self._linked |= new

    def _take_handlers(self) -> None:
        """Fill the table with all handlers that are linked."""
        for index, twin in enumerate(self._numbers.twins):
            if not self.table[index]:
                self.table[index] = self._symbols.get(symbol_of(twin), 0)

    def _bind(self) -> None:
        """Make what is called from Python callable."""
        at = self._symbols
        self.dispatch, self.cross, self.stopped = at["dispatch"], at["cross"], at["stopped"]
        self.decode, self.breakpoint = at["decode"], at["breakpoint"]
        self.region_symbols = {name: at[name] for name in ("dispatch", "jump", *MISSES)}
        u64 = ctypes.c_uint64
        self.enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(at["enter"])
        self.enter_step = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(at["enter_step"])
        self.flush_tlb = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(at["plain_flush_tlb"])
        self.enter_wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(at["enter_wait"])
        # Keeping the interpreter's lock: that takes less time than to give it back, and nothing waits.
        self.rouse = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(at["plain_rouse"])
        self.read_clock = ctypes.CFUNCTYPE(u64, ctypes.c_void_p)(at["plain_clock"])
        self.wakes_at = ctypes.PYFUNCTYPE(u64, ctypes.c_void_p)(at["plain_wakes_at"])
        self.reset_page = ctypes.CFUNCTYPE(None, ctypes.c_void_p, u64)(at["plain_reset_page"])
        self.change_flags = ctypes.CFUNCTYPE(u64, u64, u64, u64)(at["plain_change_flags"])
        self.mark_dirty = ctypes.PYFUNCTYPE(u64, u64, ctypes.c_char_p, u64)(at["plain_mark_dirty"])
        self.link_region = ctypes.CFUNCTYPE(None, ctypes.c_void_p, u64, u64)(at["plain_link_region"])
        self.install_region = ctypes.CFUNCTYPE(u64, ctypes.c_void_p, u64, u64, u64)(at["plain_install_region"])
        self.forget_region = ctypes.CFUNCTYPE(None, u64, u64)(at["plain_forget_region"])
        self.external_write = ctypes.CFUNCTYPE(None, ctypes.c_void_p, u64, u64)(at["plain_phys_changed"])

    # Handlers

    def handler(self, index: int) -> int:
        """The address of the handler of instruction ``index`` (0: illegal), compiled if need be."""
        with _lock:
            if not self.table[index]:
                name = self._numbers.names[index]
                units = self._from_workers(name) or cached_units(self.cache, name)
                if units is None:
                    self._note(name)
                    units = handler_units(self.units, self.cache, index)
                self.link(units)
                self._take_handlers()
            return int(self.table[index])

    def warm(self) -> int:
        """Link every handler that the cache has; gives how many there are.

        What was not in the image will be in the next process's. If many are missing, workers compile them ahead.
        """
        with _lock:
            found: dict[str, Unit] = {}
            missing = []
            for name in dict.fromkeys(itertools.compress(self._numbers.names, (not place for place in self.table))):
                units = cached_units(self.cache, name)
                if units is None:
                    missing.append(name)
                else:
                    found |= units
            self.link(found)
            self._take_handlers()
            self._renew_image(found)
        self._compile_ahead(missing)
        if CORE not in self._image.parts:
            self._ask_for_image()
        return len({place for place in self.table if place})

    def _renew_image(self, units: dict[str, Unit]) -> None:
        """Put units that were linked one by one into the image of the next process."""
        if not units.keys() <= self._image.parts and os.access(self.cache.directory, os.W_OK):
            self._image = self._image.extended(units)
            store_image(self.cache, self._image)

    # Compiling ahead

    def _compile_ahead(self, missing: Sequence[str]) -> None:
        """Let the workers compile units, by name, in the order of the description: what comes first is used first."""
        if len(missing) < _WORTH_WORKERS:
            return
        for name in missing:
            with self._ahead:
                if name in self._wanted:
                    continue
                self._wanted.add(name)
            index = self._numbers.names.index(name)
            urgency = NEEDED if index <= _SOON else SOMETIME
            self.workers.submit("handlers", index, self._done(name), urgency=urgency, begin=self._begin(name))
        self._ask_for_image()

    def _ask_for_image(self) -> None:
        """When the workers have done everything else, they make the image for the next process."""
        if not self._image_asked and os.access(self.cache.directory, os.W_OK):
            self._image_asked = True
            self.workers.submit("image", None, lambda made: None, urgency=SOMETIME)

    def _begin(self, name: str) -> Callable[[], bool]:
        def begin() -> bool:
            with self._ahead:
                if name not in self._wanted or name in self._linked:
                    return False
                self._begun.add(name)
                return True

        return begin

    def _done(self, name: str) -> Callable[[Any], None]:
        def done(units: Any) -> None:
            with self._ahead:
                self._begun.discard(name)
                self._wanted.discard(name)
                if units is not None:
                    self.compiled += 1
                    self._arrived[name] = units
                self._ahead.notify_all()

        return done

    def _from_workers(self, name: str) -> dict[str, Unit] | None:
        """What a worker has compiled, or is compiling; None if none has begun: then it is not to."""
        with self._ahead:
            self._ahead.wait_for(lambda: name not in self._begun)
            self._wanted.discard(name)
            return self._arrived.pop(name, None)


_code: dict[int, NativeCode] = {}


def native_code(architecture: Architecture, progress: Callable[[str], None] | None = None) -> NativeCode:
    """The native code of an architecture, prepared once per process."""
    with _lock:
        if id(architecture) not in _code:
            _code[id(architecture)] = NativeCode(architecture, progress)
        return _code[id(architecture)]
