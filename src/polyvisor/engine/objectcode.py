"""LLVM IR to machine code, and the key under which that is kept: all that it depends on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import import_module
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import polyvisor.adl
import polyvisor.engine
from polyvisor.adl import Architecture, Function

from .hostcpu import compiler_version, host_cpu

if TYPE_CHECKING:
    from .objects import Unit


# How much is done to make code fast: nothing, in a tenth of the time, for what is seldom executed; what gains most, in
# half of the time; everything.
LEAST, QUICK, FULL = range(3)


@cache
def _target(level: int) -> Any:
    """The target machine of this host, for code that is linked anywhere."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        opt=level, cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(),
        reloc="static", codemodel="large",
    )


def optimise(text: str, effort: int = FULL, unroll: bool = False) -> bytes:
    """Compile LLVM IR to an object file. Raises RuntimeError for what is none.

    ``effort`` is LEAST, QUICK or FULL; ``unroll``: with full effort, loops are unrolled.
    """
    import llvmlite.binding as llvm

    machine = _target(0 if effort == LEAST else 2)
    module = llvm.parse_assembly(text)
    module.triple = machine.triple
    module.data_layout = str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # Of no use here, and they take time to look for.
    options.loop_vectorization = options.slp_vectorization = False
    options.loop_unrolling = unroll
    builder = llvm.create_pass_builder(machine, options)
    if effort == FULL:
        manager = builder.getModulePassManager()
    else:
        manager = llvm.create_new_module_pass_manager()
        if "alwaysinline" in text:
            manager.add_always_inliner_pass()
        if effort == QUICK:
            manager.add_sroa_pass()
            manager.add_instruction_combine_pass()
            manager.add_simplify_cfg_pass()
    manager.run(module, builder)
    return bytes(machine.emit_object(module))


def compile_unit(text: str, effort: int = FULL, unroll: bool = False) -> Unit:
    """The same, as a unit that can be linked. Raises UnlinkableError, too."""
    from .objectfile import unit_from_object

    return unit_from_object(optimise(text, effort, unroll))


def sources_digest(packages: Iterable[Any]) -> str:
    """A digest of all Python sources of the packages: what the meaning of compiled code depends on."""
    digest = hashlib.sha256()
    for package in packages:
        for root in package.__path__:
            for name, path in _sources(root, ""):
                with FileIO(path) as file:
                    digest.update(name.encode() + b"\0" + file.readall())
    return digest.hexdigest()


# What every key covers as a whole.
_COMPILER = (polyvisor.adl.__name__, polyvisor.engine.__name__)


def _sources(directory: str, below: str) -> Iterator[tuple[str, str]]:
    """The names, from the root on, and paths of all Python files, sorted. Every start of a machine reads them."""
    with os.scandir(directory) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir():
            yield from _sources(entry.path, f"{below}{entry.name}/")
        elif entry.name.endswith(".py"):
            yield below + entry.name, entry.path


def _modules(architecture: Architecture) -> set[str]:
    """The modules that describe it: of its functions and its state, and of what those use."""
    todo = {function.python.__module__ for function in architecture.functions()}
    if architecture.state_type is not None:
        todo |= {base.__module__ for base in architecture.state_type.__mro__[:-1]}
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name.startswith(_COMPILER) or name in found:
            continue
        found.add(name)
        for value in vars(import_module(name)).values():
            if isinstance(value, Function):
                todo.add(value.python.__module__)
            elif isinstance(value, ModuleType) and value.__name__.startswith("polyvisor."):
                todo.add(value.__name__)
    return found


def _packages(modules: Iterable[str]) -> list[Any]:
    """The packages (or modules' packages) of what describes an architecture, and the compiler's own."""
    names = {name.rpartition(".")[0] or name for name in modules}
    found = [import_module(n) for n in sorted(names)]
    return [*_compiler_packages(), *(m for m in found if hasattr(m, "__path__"))]


def _compiler_packages() -> list[Any]:
    return [polyvisor.adl, polyvisor.engine]


def _loose_sources(modules: Iterable[str]) -> str:
    """The sources of those modules that are in no package (scripts, tests), and of what they import."""
    todo = [name for name in modules if not _in_package(name)]
    if not todo:
        return ""
    import ast

    seen: set[str] = set()
    texts = []
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        file = getattr(import_module(name), "__file__", None)
        if _in_package(name) or file is None:
            continue
        text = Path(file).read_text()
        texts.append(text)
        for node in ast.walk(ast.parse(text)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [a.name for a in node.names] if isinstance(node, ast.Import) else []
            # Only what lies beside it: not all of the standard library.
            todo += [n for n in names if Path(file).with_name(f"{n}.py").exists()]
    return "\0".join(sorted(texts))


def _in_package(name: str) -> bool:
    return hasattr(import_module(name.partition(".")[0]), "__path__")


_keys: dict[int, tuple[Architecture, str]] = {}


def cache_key(architecture: Architecture) -> str:
    """What the code compiled for an architecture on this host is kept under: the same all through a process."""
    if id(architecture) not in _keys:
        _keys[id(architecture)] = architecture, _make_key(architecture)
    return _keys[id(architecture)][1]


def _make_key(architecture: Architecture) -> str:
    if architecture.package is not None:
        packages, loose = [*_compiler_packages(), import_module(architecture.package)], ""
    else:
        modules = _modules(architecture)
        packages, loose = _packages(modules), _loose_sources(modules)
    parts = [architecture.name, compiler_version(), host_cpu(), sources_digest(packages), loose]
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"{architecture.name}-{digest[:32]}"
