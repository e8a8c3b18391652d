"""The units an architecture's native code is made of, as LLVM IR: core, a handler per instruction, shared helpers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, cached_property
from typing import Any

from polyvisor.adl import Architecture, Function, ssa
from polyvisor.adl.frontend import Compiler
from polyvisor.adl.functions import Reached
from polyvisor.adl.llvm import METADATA
from polyvisor.adl.outside import Prebuilt
from polyvisor.adl.types import u8, u16, u32, u64

from . import access, runtime
from . import layout as at
from .decoder import decode_function
from .glue import GLUE
from .handler_lowering import HANDLER_ARGUMENTS, HandlerEmitter
from .hooks.lowering import hooks_text
from .layout import MISSES, Layout, operand_layout
from .lowering import HelperEmitter, result_type
from .regions import support

# Handlers are compiled together, so many and made of so much Python at most, in bytes of its code: for a module of its
# own, LLVM takes longer than for most handlers; but whoever waits for one waits for all of them.
_TOGETHER, _CODE_TOGETHER = 8, 4096

# A module, and the functions it calls that are units of their own.
Text = tuple[str, list[ssa.Function]]


def members_read(compiler: Compiler, *hooks: str) -> frozenset[str]:
    """The state members that an architecture's hooks read."""
    architecture = compiler.architecture
    reads: set[str] = set()
    for hook in hooks:
        if hook in architecture.hooks:
            reads |= compiler.function(architecture.hooks[hook]).effects.reads
    return frozenset(name for name in reads if not getattr(compiler.members[name], "quiet", False))


class _Module:
    """Functions that are compiled together, and what they need."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.declarations: dict[str, str] = {}
        self.callees: set[ssa.Function] = set()
        self.hooks: set[ssa.Function] = set()

    def add(self, emitter: HelperEmitter) -> None:
        """Write a function."""
        self.parts.append(emitter.text())
        self.declarations |= emitter.declarations
        self.callees |= emitter.callees
        self.hooks |= emitter.hooks


class Units:
    """The texts of one architecture's units."""

    def __init__(self, architecture: Architecture, layout: Layout | None = None) -> None:
        self.architecture = architecture
        self.layout = layout or Layout(architecture)
        self.compiler = Compiler(architecture, self.layout.members)
        self._watched: frozenset[str] | None = None
        self._twins: list[int] = []
        self._groups: dict[int, Sequence[int]] = {}

    def runtime(self, name: str, **constants: Any) -> ssa.Function:
        """A function of the engine's described modules, specialised for this architecture."""
        function: Function = next(getattr(m, name) for m in (runtime, access, support) if hasattr(m, name))
        given = {"arch": self.architecture, "layout": self.layout, **constants}
        known = {p: given[p] for p in function.parameters if p in given}
        return self.compiler.function(function, known)

    @property
    def watched(self) -> frozenset[str]:
        """State that translation contexts and polling depend on."""
        if self._watched is None:
            self._watched = members_read(self.compiler, "data_context", "fetch_context", "poll")
        return self._watched

    # The core

    def decoder(self) -> str:
        """What finds the instruction and the operands of a word."""
        return self._module([self._decode_word.function])

    def core(self) -> str:
        """All else that every machine needs: runtime, hooks, glue."""
        decoder = self._decode_word
        roots = {
            name: self.runtime(name)
            for name in ("find_code", "deliver", "flush_tlb", "flush_tlb_page", "clock", "encoding", "slow_address",
                         "phys_changed", "phys_host", "drop_writes", "change_flags", "mark_dirty", "reset_page",
                         "link_region", "install_region", "forget_region", "wait", "rouse", "wakes_at")
        }
        roots["decode_at"] = self.runtime("decode_at", decode_word=decoder)
        roots["prepare_step"] = self.runtime("prepare_step", decode_word=decoder)
        for kind in (u8, u16, u32, u64):
            roots[f"load {kind.__name__}"] = self.runtime("slow_load", kind=kind)
            roots[f"store {kind.__name__}"] = self.runtime("slow_store", kind=kind)
            for name in ("region_load", "region_store"):
                roots[f"{name}.{kind.__name__}"] = self.runtime(name, kind=kind)
        roots["region_sync"] = self.runtime("region_sync")
        roots["region_clock"] = roots["clock"]
        offset, pc = self.layout.offset, self.layout.members["pc"]
        bits: int = pc.type.bits
        glue = GLUE.format(
            arguments=HANDLER_ARGUMENTS, addresses=(1 << self.architecture.address_bits) - 1, shift=self.layout.shift,
            step=at.EXIT_STEP, breakpoint=at.EXIT_BREAKPOINT,
            narrow="add i64 %pc, 0" if bits == 64 else f"trunc i64 %pc to i{bits}", pc_kind=f"i{bits}",
            page_bits=self.architecture.page_bits, page_mask=-self.layout.page_size, in_page=self.layout.page_size - 1,
            code_tlb_mask=at.CODE_TLB_SIZE - 1, code_tlb_entry=at.CODE_TLB_ENTRY,
            jump_bits=at.JUMP_SAMPLE_BITS, jump_mask=(1 << at.JUMP_SAMPLE_BITS) - 1, ring_mask=at.SAMPLES - 1,
            **{
                n: offset(n)
                for n in ("retired", "base", "tlb", "pc", "exit_reason", "limit", "code_tlb", "jump_count",
                          "jump_records", "jump_addresses", "inside")
            },
            **{n: roots[n].name for n in ("find_code", "deliver", "decode_at", "prepare_step", "wait")},
        )
        plain = (
            f'define void @plain_flush_tlb(ptr %cpu) {{\n'
            f'  call void @"{roots["flush_tlb"].name}"(ptr %cpu)\n  ret void\n}}\n'
            f'define void @plain_rouse(ptr %cpu) {{\n'
            f'  call void @"{roots["rouse"].name}"(ptr %cpu)\n  ret void\n}}\n'
            f'define i64 @plain_clock(ptr %cpu) {{\n'
            f'  %v = call i64 @"{roots["clock"].name}"(ptr %cpu)\n  ret i64 %v\n}}\n'
            f'define i64 @plain_wakes_at(ptr %cpu) {{\n'
            f'  %v = call i64 @"{roots["wakes_at"].name}"(ptr %cpu)\n  ret i64 %v\n}}\n'
            f'define void @plain_reset_page(ptr %cpu, i64 %slot) {{\n'
            f'  call void @"{roots["reset_page"].name}"(ptr %cpu, i64 %slot)\n  ret void\n}}\n'
            f'define i64 @plain_change_flags(i64 %flag, i64 %clear, i64 %set) {{\n'
            f'  %c = trunc i64 %clear to i8\n  %s = trunc i64 %set to i8\n'
            f'  %v = call i8 @"{roots["change_flags"].name}"(ptr null, i64 %flag, i8 %c, i8 %s)\n'
            f'  %w = zext i8 %v to i64\n  ret i64 %w\n}}\n'
            f'define i64 @plain_mark_dirty(i64 %ram, i64 %segments, i64 %count) {{\n'
            f'  %v = call i64 @"{roots["mark_dirty"].name}"(ptr null, i64 %ram, i64 %segments, i64 %count)\n'
            f'  ret i64 %v\n}}\n'
            f'define void @plain_link_region(ptr %cpu, i64 %slot, i64 %link) {{\n'
            f'  call void @"{roots["link_region"].name}"(ptr %cpu, i64 %slot, i64 %link)\n  ret void\n}}\n'
            f'define i64 @plain_install_region(ptr %cpu, i64 %record, i64 %region, i64 %handler) {{\n'
            f'  %v = call i1 @"{roots["install_region"].name}"(ptr %cpu, i64 %record, i64 %region, i64 %handler)\n'
            f'  %w = zext i1 %v to i64\n  ret i64 %w\n}}\n'
            f'define void @plain_forget_region(i64 %region, i64 %handler) {{\n'
            f'  call void @"{roots["forget_region"].name}"(ptr null, i64 %region, i64 %handler)\n  ret void\n}}\n'
            f'define void @plain_phys_changed(ptr %cpu, i64 %a, i64 %n) {{\n'
            f'  call void @"{roots["phys_changed"].name}"(ptr %cpu, i64 %a, i64 %n)\n  ret void\n}}\n'
        )
        return self._module(list(roots.values()), glue + plain + self._miss_text(roots), decoder.function)

    @cached_property
    def _decode_word(self) -> Prebuilt:
        return Prebuilt(decode_function(self.compiler, self.layout))

    def _miss_text(self, roots: dict[str, ssa.Function]) -> str:
        """What regions call where the TLB misses: functions that keep all registers."""
        text = ""
        for name in MISSES:
            kind = result_type(roots[name])
            given = {"region_load": ", i64 %a", "region_store": ", i64 %a, i64 %b"}.get(name.partition(".")[0], "")
            text += f'define preserve_allcc {kind} @"{name}"(ptr %cpu{given}) nounwind {{\n'
            text += f'  %v = call {kind} @"{roots[name].name}"(ptr %cpu{given})\n  ret {kind} %v\n}}\n'
        return text

    def _module(self, roots: list[ssa.Function], extra: str = "", elsewhere: ssa.Function | None = None) -> str:
        """The text of a module with these functions and all they call, except for what is ``elsewhere``."""
        done: dict[str, str] = {}
        declarations: dict[str, str] = {}
        todo = list(roots)
        while todo:
            function = todo.pop()
            if function.name in done or function is elsewhere:
                continue
            emitter = HelperEmitter(function, self.layout, self.runtime)
            done[function.name] = emitter.text()
            declarations |= emitter.declarations
            todo.extend(emitter.callees)
        outside = [text for symbol, text in declarations.items() if symbol not in done]
        return "\n".join([*outside, *done.values(), extra, METADATA])

    # Handlers

    def twin(self, index: int) -> int:
        """The first instruction that has the same handler: made of the same function, with the same operands.

        Of RISC-V's atomic operations, for example, there are four of each, with different orders: here all have the
        strongest.
        """
        if not self._twins:
            first: dict[Any, int] = {}
            self._twins.append(0)
            for number, each in enumerate(self.architecture.instructions, 1):
                places, _ = operand_layout(each)
                operands = tuple((o.name, places[o.name], o.signed, o.bits, o.add) for o in each.encoding.operands)
                same = (id(each.function), each.encoding.length, tuple(each.types.items()), operands)
                self._twins.append(first.setdefault(same, number))
        return self._twins[index]

    def group(self, index: int) -> Sequence[int]:
        """The instructions whose handlers are compiled together with that of an instruction."""
        if not self._groups:
            reached = Reached()
            group: list[int] = []
            room, module = 0, ""
            for each in sorted(set(map(self.twin, range(len(self.architecture.instructions) + 1)))):
                function = self.described(each)
                size = sum(f.code_size for f in reached(function))
                room -= size
                if room < 0 or len(group) == _TOGETHER or function.python.__module__ != module:
                    group, room, module = [], _CODE_TOGETHER - size, function.python.__module__
                group.append(each)
                self._groups[each] = group
        return self._groups[self.twin(index)]

    def unit_name(self, index: int) -> str:
        """What the unit is called that a handler is in."""
        group = self.group(index)
        return f"group {group[0]} to {group[-1]}"

    def described(self, index: int) -> Function:
        """An instruction's function."""
        return self.architecture.instructions[index - 1].function if index else self.architecture.hooks["on_illegal"]

    def handler_function(self, index: int) -> ssa.Function:
        """The SSA of an instruction's function."""
        described = self.described(index)
        if index == 0:
            return self.compiler.instruction(described, {described.parameters[1]: u64}, "illegal")
        instruction = self.architecture.instructions[index - 1]
        return self.compiler.instruction(described, instruction.types, instruction.name)

    def handlers(self, group: Iterable[int]) -> Text:
        """The text of a module with the handlers of instructions."""
        module = _Module()
        for index in group:
            self._add_handler(module, index, self.handler_function(index), f"h{index}")
        return self._finish(module)

    def handler(self, index: int, function: ssa.Function, symbol: str) -> Text:
        """The text of a module with one: ``function`` is the instruction's SSA, changed, ``symbol`` what it is called.
        """
        module = _Module()
        self._add_handler(module, index, function, symbol)
        return self._finish(module)

    def helper(self, function: ssa.Function) -> Text:
        """The text of a module with a function that handlers share."""
        module = _Module()
        module.add(HelperEmitter(function, self.layout, self.runtime))
        return self._finish(module)

    def _add_handler(self, module: _Module, index: int, function: ssa.Function, symbol: str) -> None:
        instruction = self.architecture.instructions[index - 1] if index else None

        def emitter(symbol: str, fast: bool) -> HandlerEmitter:
            return HandlerEmitter(function, self.layout, self.runtime, instruction, self.watched, symbol, fast)

        if HandlerEmitter.worth_two(function):
            fast = emitter(symbol, True)
            module.add(fast)
            if fast.restarts:
                module.add(emitter(f"{symbol}.slow", False))
                module.declarations.pop(f"{symbol}.slow", None)
        else:
            module.add(emitter(symbol, False))

    def _finish(self, module: _Module) -> Text:
        core = self._core_names()
        helpers = sorted((c for c in module.callees if c.name not in core), key=lambda c: c.name)
        hooks, more = hooks_text(module.hooks, self.layout, self.runtime)
        return "\n".join([*(module.declarations | more).values(), *module.parts, hooks, METADATA]), helpers

    @cache  # noqa: B019  (one per architecture and process)
    def _core_names(self) -> frozenset[str]:
        """The symbols the core defines that handlers may share."""
        names = ("find_code", "deliver", "flush_tlb", "flush_tlb_page", "clock", "encoding", "slow_address",
                 "phys_changed", "phys_host")
        found = {self.runtime(n).name for n in names}
        for kind in (u8, u16, u32, u64):
            found |= {self.runtime("slow_load", kind=kind).name, self.runtime("slow_store", kind=kind).name}
        return frozenset(found)
