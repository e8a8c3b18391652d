"""Swapping hooks in and out of a machine whose CPUs stand still."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from polyvisor.adl import Architecture
from polyvisor.adl.frontend import Compiler

from ..layout import HOOK_CALL, HOOK_DATA, HOOK_LENGTH, HOOK_START, HOOK_STATE, MAX_HOOKS, Layout
from ..native import NativeCode
from ..regions.manager import Regions
from .code import hooked_code
from .compile import compile_hook
from .events import MEMORY, HookSet, HookUse, values_of
from .observe import Observer
from .states import Callback, Installed, InstalledFunction


def compile_uses(
    architecture: Architecture, compiler: Compiler, hooks: Sequence[Installed]
) -> list[tuple[InstalledFunction, HookUse]]:
    """Compile all functions to SSA. Raises DescriptionError, and ValueError for more than there is room for."""
    found: list[tuple[InstalledFunction, HookUse]] = []
    for each in hooks:
        for function in each.functions:
            slot = len(found)
            if slot == MAX_HOOKS:
                raise ValueError(f"there can be {MAX_HOOKS} functions in hooks at a time")
            if function.hook is not None:
                use = compile_hook(compiler, function.hook, each.states.kind, slot)
            else:
                inputs = tuple(("value", name) for name in values_of(architecture, function.kind))
                use = HookUse(function.kind, slot, None, inputs)
            if function.range is not None and function.kind in MEMORY:
                use = replace(use, ranged=True)
            elif function.range is not None:
                use = replace(use, at=(function.range.start, function.range.stop - function.range.start))
            found.append((function, use))
    return found


def check(architecture: Architecture, hooks: Sequence[Installed]) -> None:
    """Whether hooks can be installed. Raises DescriptionError and ValueError if they cannot."""
    compile_uses(architecture, Compiler(architecture, Layout(architecture).members), hooks)


@dataclass(frozen=True)
class Prepared:
    """Hooks that are compiled: the functions, and the native code with them (None: for the reference executor)."""

    functions: Sequence[tuple[InstalledFunction, HookUse]]
    code: NativeCode | None


class HookPoint:
    """Where hooks are installed: the CPUs of a machine. ``regions`` are those of its JIT, if it has one."""

    def __init__(self, architecture: Architecture, executors: Sequence[Any], regions: Regions | None = None) -> None:
        self.architecture = architecture
        self._executors = executors
        self._regions = regions
        self._natives: dict[tuple[Callback, int], Any] = {}
        self._base: NativeCode | None = getattr(executors[0], "code", None)
        members = self._base.layout.members if self._base is not None else Layout(architecture).members
        self._compiler = self._base.compiler if self._base is not None else Compiler(architecture, members)

    def apply(self, hooks: Sequence[Installed]) -> None:
        """Both of what follows, where no CPU runs."""
        self.swap(self.prepare(hooks))

    def prepare(self, hooks: Sequence[Installed]) -> Prepared:
        """Compile what is needed to have these hooks, and no others. CPUs may be running.

        Raises DescriptionError and ValueError.
        """
        found = compile_uses(self.architecture, self._compiler, hooks)
        code = hooked_code(self._base, HookSet(tuple(use for _, use in found))) if self._base is not None else None
        return Prepared(found, code)

    def swap(self, prepared: Prepared) -> None:
        """From now on, these are the hooks. While all CPUs stand still."""
        found, code = prepared.functions, prepared.code
        if code is None:
            self._observe(found)
            return
        # Those before are kept until nothing refers to them.
        before, self._natives = self._natives, {}
        for number, cpu in enumerate(self._executors):
            cpu.hook(code, self._data(found, number))
        self._executors[0].pages.decode_again(self._executors[0])
        if self._regions is not None:
            self._regions.change_code(code)
        before.clear()

    def _observe(self, found: Sequence[tuple[InstalledFunction, HookUse]]) -> None:
        for number, executor in enumerate(self._executors):
            executor.view.observer = Observer(self.architecture, number, found) if found else None

    def _data(self, found: Sequence[tuple[InstalledFunction, HookUse]], hart: int) -> list[int]:
        """The words that a CPU's block has for hooks."""
        data = [0] * (HOOK_DATA * MAX_HOOKS)
        for function, use in found:
            first = HOOK_DATA * use.slot
            data[first + HOOK_STATE] = function.owner.states.addresses[hart]
            if function.range is not None:
                length = function.range.stop - function.range.start
                data[first + HOOK_START], data[first + HOOK_LENGTH] = function.range.start, min(length, 2**64 - 8)
            if function.callback is not None:
                data[first + HOOK_CALL] = self._native(function.callback, len(use.inputs))
        return data

    def _native(self, callback: Callback, count: int) -> int:
        """The address of a C function that calls Python."""
        key = callback, count
        if key not in self._natives:
            cpus = {cpu.address: (number, cpu) for number, cpu in enumerate(self._executors)}

            def call(block: int, *values: int) -> int:
                number, cpu = cpus[block]
                try:
                    callback(number, *values)
                except BaseException as error:
                    cpu.fail(error)
                return 0

            u64 = ctypes.c_uint64
            self._natives[key] = ctypes.CFUNCTYPE(u64, u64, *([u64] * count))(call)
        return ctypes.cast(self._natives[key], ctypes.c_void_p).value or 0
