"""From guest code to machine code: what a compile worker does for a region."""

from __future__ import annotations

from polyvisor.adl import Architecture, Instruction, ssa
from polyvisor.adl.frontend import Compiler
from polyvisor.dataclass import replace

from ..hooks.events import HookSet
from ..hooks.instrument import Instrumenter
from ..layout import Layout
from ..objectcode import FULL, QUICK, compile_unit
from ..units import members_read
from .emit import Analysis, RegionEmitter, analyse
from .inline import InstructionEmitter
from .known import Relative
from .plan import Step, make_plan
from .region import Missing, Region, Request

# The most instructions in a block of a clocked architecture, which begins with a look at the clock.
_CLOCKED_BLOCK = 12


class UncompilableError(Exception):
    """LLVM does not take the text of a region: an error of ours."""


class RegionCompiler:
    """Compiles regions of one architecture, with ``hooks`` in them."""

    def __init__(
        self, architecture: Architecture, layout: Layout, compiler: Compiler, hooks: HookSet | None = None
    ) -> None:
        self._instrumenter = hooks and Instrumenter(hooks, layout.members, architecture.system_call)
        self.architecture = architecture
        self.layout = layout
        self.compiler = compiler
        self.watched = members_read(compiler, "data_context", "fetch_context", "poll", "translate")
        self._functions: dict[int, ssa.Function] = {}
        self._numbers = {id(instruction): n for n, instruction in enumerate(architecture.instructions)}
        # By an instruction's bytes, and its address if that matters.
        self._decoded: dict[tuple[int, int | None], tuple[Instruction, Analysis] | None] = {}
        self._scratch = InstructionEmitter(layout, {}, self.watched)

    def function(self, instruction: Instruction) -> ssa.Function:
        """The SSA of an instruction, with hooks."""
        number = self._numbers[id(instruction)]
        if number not in self._functions:
            made = self.compiler.instruction(instruction.function, instruction.types, instruction.name)
            self._functions[number] = self._instrumenter.instruction(made, True) if self._instrumenter else made
        return self._functions[number]

    def _is_whole(self, raw: bytes) -> bool:
        """Whether bytes hold an instruction to its end."""
        sizes = range(self.architecture.unit, len(raw) + 1, self.architecture.unit)
        return any(self.architecture.complete(int.from_bytes(raw[:n], "little"), n) for n in sizes)

    def _analyse(self, word: int, address: int | None) -> tuple[Instruction, Analysis] | None:
        key = word, address
        if key not in self._decoded:
            instruction = self.architecture.decode(word)
            if instruction is None:
                self._decoded[key] = None
            else:
                self._scratch.chunks.clear()
                self._scratch.exits.clear()
                found = analyse(self._scratch, self.function(instruction), instruction, word, None, address)
                self._decoded[key] = instruction, found
        return self._decoded[key]

    def plan_and_emit(self, request: Request) -> tuple[RegionEmitter, str] | Missing | None:
        """The region's text; None if the entry's instruction cannot be in a region."""
        layout, unit = self.layout, self.architecture.unit
        size = layout.page_size
        missing: set[int] = set()
        long = self.architecture.max_length
        steps: dict[int, Step | None] = {}

        def address(offset: int) -> int | None:
            return None if request.origin is None else request.origin + offset

        def decode(offset: int) -> Step | None:
            page, inside = divmod(request.entry + offset, size)
            if page not in request.pages:
                missing.add(page)
                return None
            content, executed = request.pages[page]
            raw = content[inside : inside + long]
            across = len(raw) < long and not self._is_whole(raw)
            if across:
                # The interpreter decodes it each time anew, so it does not show whether it was executed.
                if page + 1 not in request.pages:
                    missing.add(page + 1)
                    return None
                raw += request.pages[page + 1][0][: long - len(raw)]
            elif not executed >> (inside // unit) & 1:
                return None
            word = int.from_bytes(raw, "little")
            sizes = range(unit, len(raw) + 1, unit)
            have = next((n for n in sizes if self.architecture.complete(word & ((1 << 8 * n) - 1), n)), 0)
            if not have:
                return None
            found = self._analyse(word & ((1 << 8 * have) - 1), address(offset))
            if found is None or found[0].encoding.length != have:
                return None
            word &= (1 << 8 * have) - 1
            instruction, what = found
            return Step(
                offset, self._numbers[id(instruction)], instruction, word, what.flow, what.writes, what.access
            )

        def fetch(offset: int, previous: Step | None) -> Step | None:
            if offset not in steps:
                steps[offset] = decode(offset)
            step = steps[offset]
            if step is None or not step.flow.dynamic or previous is None or previous.following != offset:
                return step
            # Where the instruction before gives the address, it is known after all.
            before = self._analyse(previous.word, address(previous.offset))
            seed = {
                k: Relative(v.offset - previous.length) if isinstance(v, Relative) else v
                for k, v in (before[1].known if before else {}).items()
            }
            if not seed:
                return step
            function = self.function(step.instruction)
            found = analyse(self._scratch, function, step.instruction, step.word, seed, address(offset))
            return replace(step, flow=found.flow)

        longest = _CLOCKED_BLOCK if self.architecture.clocked else request.limit
        plan = make_plan(fetch, request.targets, request.limit, longest)
        if not plan.blocks:
            return None
        if missing and not request.final:
            return Missing(frozenset(missing))
        assumed = dict(request.assumed)
        while True:
            emitter = RegionEmitter(
                plan, layout, self.function, request.entry, assumed, self.watched, request.quick, request.origin
            )
            text = emitter.text()
            if not emitter.contradicted & emitter.assumes:
                return emitter, text
            for name in emitter.contradicted:
                assumed.pop(name, None)

    def compile(self, request: Request) -> Region | Missing | None:
        """Compile a region; None if there is none at that place, and Missing if more pages should be given."""
        made = self.plan_and_emit(request)
        if made is None or isinstance(made, Missing):
            return made
        emitter, text = made
        try:
            unit = compile_unit(text, QUICK if request.quick else FULL, unroll=True)
        except RuntimeError as error:
            raise UncompilableError(str(error)) from error
        size = self.layout.page_size
        spans: dict[int, set[int]] = {}
        count = 0
        for block in emitter.plan.blocks.values():
            for step in block.steps:
                count += 1
                for place in range(request.entry + step.offset, request.entry + step.following):
                    spans.setdefault(place // size, set()).add(place % size)
        footprint = tuple(
            (page, first, request.pages[page][0][first:end])
            for page, places in sorted(spans.items()) for first, end in _runs(places)
        )
        entries = tuple((offset, block.steps[0].index + 1) for offset, block in emitter.entries.items())
        assumed = {n: request.assumed[n] for n in sorted(emitter.assumes)}
        starts = frozenset(offset for _, offset in emitter.plan.blocks)
        plan = emitter.plan
        return Region(
            unit, footprint, entries, assumed, count, starts, plan.ends, bool(plan.loops),
            replace(request, pages={}, hooks=None),
        )


def _runs(places: set[int]) -> list[tuple[int, int]]:
    """Sets of consecutive numbers, as (first, end)."""
    found: list[tuple[int, int]] = []
    for place in sorted(places):
        if found and found[-1][1] == place:
            found[-1] = (found[-1][0], place + 1)
        else:
            found.append((place, place + 1))
    return found
