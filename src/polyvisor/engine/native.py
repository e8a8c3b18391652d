"""Native code of an architecture in this process: units from the cache, or compiled on first use, and linked."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import llvmlite.binding as llvm

from polyvisor.adl import Architecture

from .codecache import CodeCache
from .handlers import cached_handler, handler_objects
from .objectcode import cache_key, new_target, optimise
from .units import MISSES, Units
from .workers import NEEDED, SOMETIME, Workers

_lock = threading.RLock()
# As many missing handlers are compiled ahead by the workers; a few are not worth their start.
_WORTH_WORKERS = 8
# So many, of those that are described first, are compiled before any region; the others when there is nothing else.
_SOON = 128


class NativeCode:
    """The native code of one architecture in this process, shared by all its machines."""

    def __init__(self, architecture: Architecture, progress: Callable[[str], None] | None = None) -> None:
        self.architecture = architecture
        self.units = Units(architecture)
        self.layout = self.units.layout
        self.compiler = self.units.compiler
        self.runtime = self.units.runtime
        self.progress = progress
        self.compiled = 0
        self.cache = CodeCache(cache_key(architecture))
        self.workers = Workers(architecture)
        self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), new_target())
        self._linked: set[str] = set()
        self.table = (ctypes.c_uint64 * (len(architecture.instructions) + 1))()
        # Handlers that workers compile: what is asked for, begun, and finished.
        self._ahead = threading.Condition()
        self._begun: set[int] = set()
        self._wanted: set[int] = set()
        self._arrived: dict[int, dict[str, bytes]] = {}
        self._load_core()

    def _load_core(self) -> None:
        content = self.cache.get("core")
        if content is None:
            every = dict.fromkeys(self.units.twin(i) for i in range(len(self.table)))
            self._compile_ahead([i for i in every if cached_handler(self.units, self.cache, i) is None])
            self._note("core")
            content = optimise(self.units.core())
            self.cache.put("core", content)
        with _lock:
            self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(content))
            self._engine.finalize_object()
            address = self._engine.get_function_address
            self.enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("enter"))
            self.enter_step = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("enter_step"))
            places = (ctypes.c_uint64 * (6 + len(MISSES)))()
            ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address("glue_addresses"))(ctypes.addressof(places))
            self.dispatch, self.cross, self.stopped, self.decode, self.breakpoint = places[:5]
            # What compiled regions call.
            self.region_symbols = dict(zip(("jump", *MISSES), places[5:], strict=True))
            self.region_symbols["dispatch"] = self.dispatch
            u64 = ctypes.c_uint64
            self.flush_tlb = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("plain_flush_tlb"))
            self.enter_wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("enter_wait"))
            # Keeping the interpreter's lock: that takes less time than to give it back, and nothing waits.
            self.rouse = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(address("plain_rouse"))
            self.read_clock = ctypes.CFUNCTYPE(u64, ctypes.c_void_p)(address("plain_clock"))
            self.reset_page = ctypes.CFUNCTYPE(None, ctypes.c_void_p, u64)(address("plain_reset_page"))
            self.change_flags = ctypes.CFUNCTYPE(u64, u64, u64, u64)(address("plain_change_flags"))
            self.mark_dirty = ctypes.PYFUNCTYPE(u64, u64, ctypes.c_char_p, u64)(address("plain_mark_dirty"))
            self.link_region = ctypes.CFUNCTYPE(None, ctypes.c_void_p, u64, u64)(address("plain_link_region"))
            self.install_region = ctypes.CFUNCTYPE(u64, ctypes.c_void_p, u64, u64, u64)(
                address("plain_install_region")
            )
            self.forget_region = ctypes.CFUNCTYPE(None, u64, u64)(address("plain_forget_region"))
            self.external_write = ctypes.CFUNCTYPE(None, ctypes.c_void_p, u64, u64)(address("plain_phys_changed"))

    def _note(self, name: str) -> None:
        self.compiled += 1
        if self.progress is not None:
            self.progress(name)

    # Handlers

    def handler(self, index: int) -> int:
        """The address of the handler of instruction ``index`` (0: illegal), compiled if need be."""
        with _lock:
            twin = self.units.twin(index)
            if not self.table[twin]:
                objects = self._from_workers(twin) or cached_handler(self.units, self.cache, twin)
                if objects is None:
                    self._note(self.units.handler_name(twin))
                    objects = handler_objects(self.units, self.cache, twin)
                self._link(objects)
                self._engine.finalize_object()
                self.table[twin] = self._engine.get_function_address(f"h{twin}")
            self.table[index] = self.table[twin]
            return int(self.table[index])

    def warm(self) -> int:
        """Link every handler that the cache has; gives how many. If many are missing, workers compile them ahead."""
        found: dict[int, dict[str, bytes]] = {}
        missing = []
        with _lock:
            for index in range(len(self.table)):
                if self.table[index] or self.units.twin(index) != index:
                    continue
                objects = cached_handler(self.units, self.cache, index)
                if objects is None:
                    missing.append(index)
                else:
                    found[index] = objects
                    self._link(objects)
            self._engine.finalize_object()
            for index in found:
                self.table[index] = self._engine.get_function_address(f"h{index}")
            for index in range(len(self.table)):
                self.table[index] = self.table[self.units.twin(index)]
        self._compile_ahead(missing)
        return len(found)

    def _link(self, objects: dict[str, bytes]) -> None:
        for name, content in objects.items():
            if name not in self._linked:
                self._linked.add(name)
                self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(content))

    # Compiling ahead

    def _compile_ahead(self, missing: Sequence[int]) -> None:
        """Let the workers compile handlers, in the order of the description: what comes first is used first."""
        if len(missing) < _WORTH_WORKERS:
            return
        for index in missing:
            with self._ahead:
                if index in self._wanted:
                    continue
                self._wanted.add(index)
            urgency = NEEDED if index <= _SOON else SOMETIME
            self.workers.submit("handler", index, self._done(index), urgency=urgency, begin=self._begin(index))

    def _begin(self, index: int) -> Callable[[], bool]:
        def begin() -> bool:
            with self._ahead:
                if index not in self._wanted or self.table[index]:
                    return False
                self._begun.add(index)
                return True

        return begin

    def _done(self, index: int) -> Callable[[Any], None]:
        def done(objects: Any) -> None:
            with self._ahead:
                self._begun.discard(index)
                self._wanted.discard(index)
                if objects is not None:
                    self.compiled += 1
                    self._arrived[index] = objects
                self._ahead.notify_all()

        return done

    def _from_workers(self, index: int) -> dict[str, bytes] | None:
        """What a worker has compiled, or is compiling; None if none has begun: then it is not to."""
        with self._ahead:
            self._ahead.wait_for(lambda: index not in self._begun)
            self._wanted.discard(index)
            return self._arrived.pop(index, None)


_code: dict[int, NativeCode] = {}


def native_code(architecture: Architecture, progress: Callable[[str], None] | None = None) -> NativeCode:
    """The native code of an architecture, prepared once per process."""
    with _lock:
        if id(architecture) not in _code:
            _code[id(architecture)] = NativeCode(architecture, progress)
        return _code[id(architecture)]
