"""Native code of an architecture: units compiled on first use, kept on disk, linked in this process."""

from __future__ import annotations

import ast
import ctypes
import hashlib
import threading
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

import polyvisor.adl
import polyvisor.engine
from polyvisor.adl import Architecture, Function, ssa
from polyvisor.adl.frontend import Compiler, Prebuilt
from polyvisor.adl.llvm import METADATA
from polyvisor.adl.types import u8, u16, u32, u64

from . import layout as at
from . import runtime
from .codecache import CodeCache
from .decoder import decode_function
from .layout import Layout
from .lowering import HANDLER_ARGUMENTS, HandlerEmitter, HelperEmitter

_lock = threading.RLock()


def _new_target() -> Any:
    """A target machine; an execution engine takes over the one it is given, and ends it with itself."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        opt=2, cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), jit=True
    )


@cache
def _target() -> Any:
    """The target machine of `optimise`."""
    return _new_target()


def optimise(text: str, level: int = 2) -> bytes:
    """Compile LLVM IR to an object file."""
    machine = _target()
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    builder = llvm.create_pass_builder(machine, options)
    manager = builder.getModulePassManager()
    manager.run(module, builder)
    return bytes(machine.emit_object(module))


def sources_digest(packages: Iterable[Any]) -> str:
    """A digest of all Python sources of the packages: what the meaning of compiled code depends on."""
    digest = hashlib.sha256()
    for package in packages:
        for root in package.__path__:
            for path in sorted(Path(root).rglob("*.py")):
                digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _packages(architecture: Architecture) -> list[Any]:
    """The packages (or modules' packages) that describe it, and the compiler's own."""
    modules = {i.function.python.__module__ for i in architecture.instructions}
    names = {name.rpartition(".")[0] or name for name in modules}
    found = [import_module(n) for n in sorted(names)]
    return [polyvisor.adl, polyvisor.engine, *(m for m in found if hasattr(m, "__path__"))]


def _loose_sources(architecture: Architecture) -> str:
    """The sources of modules that are in no package (scripts, tests) and describe it, and of those they import."""
    functions = [*(i.function for i in architecture.instructions), *architecture.hooks.values()]
    todo = [f.python.__module__ for f in functions]
    if architecture.state_type is not None:
        todo.append(architecture.state_type.__module__)
    seen: set[str] = set()
    texts = []
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        module = import_module(name)
        file = getattr(module, "__file__", None)
        if hasattr(import_module(name.partition(".")[0]), "__path__") or file is None:
            continue
        text = Path(file).read_text()
        texts.append(text)
        for node in ast.walk(ast.parse(text)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            # Only what lies beside it: not all of the standard library.
            todo += [n for n in names if Path(file).with_name(f"{n}.py").exists()]
    return "\0".join(sorted(texts))


# The parts of the interpreter that are the same for every instruction.
_GLUE = """
define preserve_nonecc void @dispatch({arguments}) nounwind {{
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %found = call i64 @"{find_code}"(ptr %cpu)
  %out = icmp eq i64 %found, 0
  br i1 %out, label %leave, label %go, !prof !1
go:
  %record = inttoptr i64 %found to ptr
  %basep = getelementptr i8, ptr %cpu, i64 {base}
  %newbase = load i64, ptr %basep
  %tlbp = getelementptr i8, ptr %cpu, i64 {tlb}
  %newtlb = load i64, ptr %tlbp
  %handler = load ptr, ptr %record
  musttail call preserve_nonecc void %handler(ptr %record, ptr %cpu, i64 %newtlb, i64 %icount, i64 %newbase)
  ret void
leave:
  ret void
}}

define preserve_nonecc void @cross({arguments}) nounwind {{
  %r = ptrtoint ptr %rec to i64
  %o = lshr i64 %r, {shift}
  %pc = add i64 %base, %o
  %narrow = {narrow}
  %place = getelementptr i8, ptr %cpu, i64 {pc}
  store {pc_kind} %narrow, ptr %place
  musttail call preserve_nonecc void @dispatch(ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base)
  ret void
}}

define preserve_nonecc void @stopped({arguments}) nounwind {{
  %r = ptrtoint ptr %rec to i64
  %o = lshr i64 %r, {shift}
  %pc = add i64 %base, %o
  %narrow = {narrow}
  %place = getelementptr i8, ptr %cpu, i64 {pc}
  store {pc_kind} %narrow, ptr %place
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %reason = getelementptr i8, ptr %cpu, i64 {exit_reason}
  store i32 {step}, ptr %reason
  ret void
}}

define preserve_nonecc void @breakpoint({arguments}) nounwind {{
  %r = ptrtoint ptr %rec to i64
  %o = lshr i64 %r, {shift}
  %pc = add i64 %base, %o
  %narrow = {narrow}
  %place = getelementptr i8, ptr %cpu, i64 {pc}
  store {pc_kind} %narrow, ptr %place
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %reason = getelementptr i8, ptr %cpu, i64 {exit_reason}
  store i32 {breakpoint}, ptr %reason
  ret void
}}

define preserve_nonecc void @trapped({arguments}) nounwind {{
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  call void @"{deliver}"(ptr %cpu)
  musttail call preserve_nonecc void @dispatch(ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base)
  ret void
}}

define preserve_nonecc void @decode({arguments}) nounwind {{
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  store i64 %icount, ptr %retired
  %r = ptrtoint ptr %rec to i64
  %found = call i64 @"{decode_at}"(ptr %cpu, i64 %r, i64 %base)
  switch i64 %found, label %go [ i64 0, label %leave i64 1, label %again ]
go:
  %record = inttoptr i64 %found to ptr
  %basep = getelementptr i8, ptr %cpu, i64 {base}
  %newbase = load i64, ptr %basep
  %handler = load ptr, ptr %record
  musttail call preserve_nonecc void %handler(ptr %record, ptr %cpu, i64 %tlb, i64 %icount, i64 %newbase)
  ret void
again:
  musttail call preserve_nonecc void @dispatch(ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base)
  ret void
leave:
  ret void
}}

define void @enter(ptr %cpu) nounwind {{
  %inside = getelementptr i8, ptr %cpu, i64 {inside}
  store i8 1, ptr %inside
  fence seq_cst
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  %count = load i64, ptr %retired
  call preserve_nonecc void @dispatch(ptr null, ptr %cpu, i64 0, i64 %count, i64 0)
  store atomic i8 0, ptr %inside release, align 1
  ret void
}}

define void @enter_step(ptr %cpu) nounwind {{
  %inside = getelementptr i8, ptr %cpu, i64 {inside}
  store i8 1, ptr %inside
  fence seq_cst
  %found = call i64 @"{prepare_step}"(ptr %cpu)
  %retired = getelementptr i8, ptr %cpu, i64 {retired}
  %count = load i64, ptr %retired
  switch i64 %found, label %go [ i64 0, label %leave i64 1, label %again ]
go:
  %record = inttoptr i64 %found to ptr
  %basep = getelementptr i8, ptr %cpu, i64 {base}
  %base = load i64, ptr %basep
  %tlbp = getelementptr i8, ptr %cpu, i64 {tlb}
  %tlb = load i64, ptr %tlbp
  %handler = load ptr, ptr %record
  call preserve_nonecc void %handler(ptr %record, ptr %cpu, i64 %tlb, i64 %count, i64 %base)
  br label %leave
again:
  call preserve_nonecc void @dispatch(ptr null, ptr %cpu, i64 0, i64 %count, i64 0)
  br label %leave
leave:
  store atomic i8 0, ptr %inside release, align 1
  ret void
}}

define void @enter_wait(ptr %cpu) nounwind {{
  %inside = getelementptr i8, ptr %cpu, i64 {inside}
  store i8 1, ptr %inside
  fence seq_cst
  call void @"{wait}"(ptr %cpu)
  store atomic i8 0, ptr %inside release, align 1
  ret void
}}

define i64 @glue_addresses(ptr %out) nounwind {{
  store ptr @dispatch, ptr %out
  %p1 = getelementptr ptr, ptr %out, i64 1
  store ptr @cross, ptr %p1
  %p2 = getelementptr ptr, ptr %out, i64 2
  store ptr @stopped, ptr %p2
  %p3 = getelementptr ptr, ptr %out, i64 3
  store ptr @decode, ptr %p3
  %p4 = getelementptr ptr, ptr %out, i64 4
  store ptr @breakpoint, ptr %p4
  ret i64 5
}}
"""


class NativeCode:
    """The native code of one architecture in this process, shared by all its machines."""

    def __init__(self, architecture: Architecture, progress: Callable[[str], None] | None = None) -> None:
        self.architecture = architecture
        self.layout = Layout(architecture)
        self.compiler = Compiler(architecture, self.layout.members)
        self.progress = progress
        self.compiled = 0
        key = hashlib.sha256(
            "\0".join(
                [
                    architecture.name, llvmlite.__version__, repr(llvm.llvm_version_info), llvm.get_host_cpu_name(),
                    llvm.get_host_cpu_features().flatten(), sources_digest(_packages(architecture)),
                    _loose_sources(architecture),
                ]
            ).encode()
        ).hexdigest()[:32]
        self.cache = CodeCache(f"{architecture.name}-{key}")
        self._engine: Any = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _new_target())
        self._linked: set[str] = set()
        self._helpers: dict[str, ssa.Function] = {}
        self._watched: frozenset[str] | None = None
        count = len(architecture.instructions) + 1
        self.table = (ctypes.c_uint64 * count)()
        self._load_core()

    # Functions of the runtime

    def runtime(self, name: str, **constants: Any) -> ssa.Function:
        """A function of :mod:`polyvisor.engine.runtime`, specialised for this architecture."""
        function: Function = getattr(runtime, name)
        given = {"arch": self.architecture, "layout": self.layout, **constants}
        known = {p: given[p] for p in function.parameters if p in given}
        return self.compiler.function(function, known)

    @property
    def watched(self) -> frozenset[str]:
        """State that translation contexts and polling depend on."""
        if self._watched is None:
            reads: set[str] = set()
            for hook in ("data_context", "fetch_context", "poll"):
                if hook in self.architecture.hooks:
                    reads |= self.compiler.function(self.architecture.hooks[hook]).effects.reads
            self._watched = frozenset(reads)
        return self._watched

    # Units

    def _unit(self, name: str, build: Callable[[], str]) -> None:
        """Link the unit ``name``: from the cache, or compiled from the text ``build`` gives."""
        content = self.cache.get(name)
        if content is None:
            if self.progress is not None:
                self.progress(name)
            content = optimise(build())
            self.compiled += 1
            self.cache.put(name, content)
        self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(content))

    def _load_core(self) -> None:
        with _lock:
            self._unit("core", self._core_text)
            self._engine.finalize_object()
            address = self._engine.get_function_address
            self.enter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("enter"))
            self.enter_step = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("enter_step"))
            places = (ctypes.c_uint64 * 5)()
            ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address("glue_addresses"))(ctypes.addressof(places))
            self.dispatch, self.cross, self.stopped, self.decode, self.breakpoint = places
            self.flush_tlb = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("plain_flush_tlb"))
            self.enter_wait = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address("enter_wait"))
            # Keeping the interpreter's lock: that takes less time than to give it back, and nothing waits.
            self.rouse = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(address("plain_rouse"))
            self.read_clock = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address("plain_clock"))
            self.reset_page = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64)(address("plain_reset_page"))
            self.change_flags = ctypes.CFUNCTYPE(
                ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64
            )(address("plain_change_flags"))
            self.external_write = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)(
                address("plain_phys_changed")
            )

    def _core_text(self) -> str:
        """All that every machine needs: runtime, hooks, decoder, glue."""
        decode_word = decode_function(self.compiler, self.layout)
        decoder = Prebuilt(decode_word)
        roots = {
            name: self.runtime(name)
            for name in ("find_code", "deliver", "flush_tlb", "flush_tlb_page", "clock", "encoding", "slow_address",
                         "phys_changed", "phys_host", "drop_writes", "change_flags", "reset_page", "wait", "rouse")
        }
        roots["decode_at"] = self._with_decoder("decode_at", decoder)
        roots["prepare_step"] = self._with_decoder("prepare_step", decoder)
        for kind in (u8, u16, u32, u64):
            roots[f"load {kind.__name__}"] = self.runtime("slow_load", kind=kind)
            roots[f"store {kind.__name__}"] = self.runtime("slow_store", kind=kind)
        offset, pc = self.layout.offset, self.layout.members["pc"]
        bits: int = pc.type.bits
        glue = _GLUE.format(
            arguments=HANDLER_ARGUMENTS, shift=self.layout.shift, step=at.EXIT_STEP, breakpoint=at.EXIT_BREAKPOINT,
            narrow="add i64 %pc, 0" if bits == 64 else f"trunc i64 %pc to i{bits}", pc_kind=f"i{bits}",
            **{n: offset(n) for n in ("retired", "base", "tlb", "pc", "exit_reason", "inside")},
            **{n: roots[n].name for n in ("find_code", "deliver", "decode_at", "prepare_step", "wait")},
        )
        plain = (
            f'define void @plain_flush_tlb(ptr %cpu) {{\n'
            f'  call void @"{roots["flush_tlb"].name}"(ptr %cpu)\n  ret void\n}}\n'
            f'define void @plain_rouse(ptr %cpu) {{\n'
            f'  call void @"{roots["rouse"].name}"(ptr %cpu)\n  ret void\n}}\n'
            f'define i64 @plain_clock(ptr %cpu) {{\n'
            f'  %v = call i64 @"{roots["clock"].name}"(ptr %cpu)\n  ret i64 %v\n}}\n'
            f'define void @plain_reset_page(ptr %cpu, i64 %slot) {{\n'
            f'  call void @"{roots["reset_page"].name}"(ptr %cpu, i64 %slot)\n  ret void\n}}\n'
            f'define i64 @plain_change_flags(i64 %flag, i64 %clear, i64 %set) {{\n'
            f'  %c = trunc i64 %clear to i8\n  %s = trunc i64 %set to i8\n'
            f'  %v = call i8 @"{roots["change_flags"].name}"(ptr null, i64 %flag, i8 %c, i8 %s)\n'
            f'  %w = zext i8 %v to i64\n  ret i64 %w\n}}\n'
            f'define void @plain_phys_changed(ptr %cpu, i64 %a, i64 %n) {{\n'
            f'  call void @"{roots["phys_changed"].name}"(ptr %cpu, i64 %a, i64 %n)\n  ret void\n}}\n'
        )
        return self._module(list(roots.values()), glue + plain)

    def _with_decoder(self, name: str, decoder: Prebuilt) -> ssa.Function:
        return self.runtime(name, decode_word=decoder)

    def _module(self, roots: list[ssa.Function], extra: str = "") -> str:
        """The text of a module with these functions and all they call."""
        done: dict[str, str] = {}
        declarations: dict[str, str] = {}
        todo = list(roots)
        while todo:
            function = todo.pop()
            if function.name in done:
                continue
            emitter = HelperEmitter(function, self.layout, self.runtime)
            done[function.name] = emitter.text()
            declarations |= emitter.declarations
            todo.extend(emitter.callees)
        outside = [text for symbol, text in declarations.items() if symbol not in done]
        return "\n".join([*outside, *done.values(), extra, METADATA])

    # Handlers

    def handler(self, index: int) -> int:
        """The address of the handler of instruction ``index`` (0: illegal), compiled if need be."""
        with _lock:
            if not self.table[index]:
                symbol = f"h{index}"
                if symbol not in self._linked:
                    self._unit(self._handler_name(index), lambda: self._handler_text(index))
                    self._linked.add(symbol)
                self._engine.finalize_object()
                self.table[index] = self._engine.get_function_address(symbol)
            return int(self.table[index])

    def warm(self) -> int:
        """Link every handler that the cache has; gives how many."""
        count = 0
        with _lock:
            pending = []
            for index in range(len(self.table)):
                content = self.cache.get(self._handler_name(index)) if not self.table[index] else None
                if content is not None:
                    self._engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(content))
                    self._linked.add(f"h{index}")
                    pending.append(index)
            self._engine.finalize_object()
            for index in pending:
                self.table[index] = self._engine.get_function_address(f"h{index}")
                count += 1
        return count

    def _handler_name(self, index: int) -> str:
        name = "illegal" if index == 0 else self.architecture.instructions[index - 1].name
        return f"handler {index} {name}"

    def handler_function(self, index: int) -> ssa.Function:
        """The SSA of an instruction's function."""
        if index == 0:
            illegal = self.architecture.hooks["on_illegal"]
            return self.compiler.instruction(illegal, {illegal.parameters[1]: u64}, "illegal")
        instruction = self.architecture.instructions[index - 1]
        return self.compiler.instruction(instruction.function, instruction.types, instruction.name)

    def _handler_text(self, index: int) -> str:
        """The text of a handler's module. Helpers are copied into it, internal, unless the core has them."""
        function = self.handler_function(index)
        instruction = self.architecture.instructions[index - 1] if index else None
        declarations: dict[str, str] = {}
        parts: list[str] = []
        callees: set[ssa.Function] = set()
        symbol = f"h{index}"

        def emit(symbol: str, fast: bool) -> HandlerEmitter:
            emitter = HandlerEmitter(function, self.layout, self.runtime, instruction, self.watched, symbol, fast)
            parts.append(emitter.text())
            declarations.update(emitter.declarations)
            callees.update(emitter.callees)
            return emitter

        if HandlerEmitter.worth_two(function):
            if emit(symbol, True).restarts:
                emit(f"{symbol}.slow", False)
                declarations.pop(f"{symbol}.slow", None)
        else:
            emit(symbol, False)
        helpers: dict[str, str] = {}
        todo = list(callees)
        core = self._core_names()
        while todo:
            callee = todo.pop()
            if callee.name in helpers or callee.name in core:
                continue
            emitter = HelperEmitter(callee, self.layout, self.runtime)
            helpers[callee.name] = emitter.text().replace("define ", "define internal ", 1)
            declarations |= emitter.declarations
            todo.extend(emitter.callees)
        outside = [text for name, text in declarations.items() if name not in helpers]
        return "\n".join([*outside, *parts, *helpers.values(), METADATA])

    @cache  # noqa: B019  (one per architecture and process)
    def _core_names(self) -> frozenset[str]:
        """The symbols the core defines that handlers may share."""
        names = ("find_code", "deliver", "flush_tlb", "flush_tlb_page", "clock", "encoding", "slow_address",
                 "phys_changed", "phys_host")
        found = {self.runtime(n).name for n in names}
        for kind in (u8, u16, u32, u64):
            found |= {self.runtime("slow_load", kind=kind).name, self.runtime("slow_store", kind=kind).name}
        return frozenset(found)


_code: dict[int, NativeCode] = {}


def native_code(architecture: Architecture, progress: Callable[[str], None] | None = None) -> NativeCode:
    """The native code of an architecture, prepared once per process."""
    with _lock:
        if id(architecture) not in _code:
            _code[id(architecture)] = NativeCode(architecture, progress)
        return _code[id(architecture)]

