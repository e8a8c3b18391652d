"""A region as one LLVM function, with the signature of a handler.

It may be entered at several of its instructions: where it begins, and at the loops in it.  There it makes sure of what
it takes for granted (where its other pages are, fields with assumed values), else the instruction's own handler goes
on.  A jump backwards compares the instruction count with the limit as it was at the entry: a region that runs on sees
requests and interrupts after a slice, not at once as the interpreter does.

The end of a turn (`stop_at`) is another matter: a CPU stops at the first jump there, whatever is compiled. A region is
entered, and goes on, only where it cannot come that far (`region_limit`), and the interpreter goes the rest of the way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from polyvisor.adl import Instruction, ssa
from polyvisor.adl.llvm import METADATA
from polyvisor.dataclass import dataclass, field

from ..handler_lowering import HANDLER_ARGUMENTS
from ..hooks.lowering import hooks_text
from ..layout import CODE_TLB_ENTRY, CODE_TLB_SIZE, Layout
from .accesses import UnsupportedError
from .inline import CLOCK, Exit, InstructionEmitter, Outcome, State
from .known import Known, Relative
from .plan import Block, Flow, Key, Plan, Step
from .region import FUNCTION, original_symbol, slot_symbol
from .windows import Window, find_windows

MAX_ENTRIES = 16

FunctionOf = Callable[[Instruction], ssa.Function]


def operands_of(instruction: Instruction, word: int) -> list[ssa.Const]:
    """The values of an instruction's operands, in the order of its parameters."""
    values = instruction.operand_values(word)
    return [ssa.Const(type_, values[name]) for name, type_ in instruction.types.items()]


@dataclass(frozen=True)
class Analysis:
    """What an instruction does, as far as its bytes tell. Addresses are relative to it.

    ``known`` are constants and addresses that it is sure to write; ``writes`` and ``access`` are those of
    :class:`.plan.Step`.
    """

    flow: Flow
    known: dict[Key, Known] = field(default_factory=dict)
    writes: dict[Key, tuple[Key, int] | None] = field(default_factory=dict)
    access: tuple[Key, int, int, int] | None = None


def analyse(
    emitter: InstructionEmitter, function: ssa.Function, instruction: Instruction, word: int,
    seed: Mapping[Key, Known] | None = None, address: int | None = None,
) -> Analysis:
    """Look at an instruction. ``seed`` is what registers are known to hold before, ``address`` where it is."""
    emitter.origin = address
    length = instruction.encoding.length
    emitter.begin(emitter.new_label("flow"))
    emitter.state = State(dict(seed or {}), set())
    emitter.written = set()
    emitter.accesses.clear()
    try:
        outcomes = emitter.inline(function, operands_of(instruction, word), 0, length, 0)
    except UnsupportedError:
        outcomes = []
    if not outcomes:
        return Analysis(Flow(possible=False))
    ways = [o.state.next for o in outcomes]
    jumps = tuple(dict.fromkeys(w.offset for w in ways if isinstance(w, Relative)))
    dynamic = any(w is not None and not isinstance(w, Relative) for w in ways)
    known: dict[Key, Known] = {}
    if len(outcomes) == 1:
        registers = outcomes[0].state.registers
        known = {k: v for k, v in registers.items() if k in emitter.written and isinstance(v, ssa.Const | Relative)}
    call = bool(jumps or dynamic) and any(isinstance(v, Relative) and v.offset == length for v in known.values())
    writes: dict[Key, tuple[Key, int] | None] = {}
    for key in emitter.written:
        sources = {emitter.base_of(o.state.registers.get(key)) for o in outcomes}
        writes[key] = sources.pop() if len(sources) == 1 else None
    access = emitter.accesses[0] if len(emitter.accesses) == 1 and len(outcomes) == 1 else None
    return Analysis(Flow(True, None in ways, jumps, dynamic, call), known, writes, access)


class RegionEmitter(InstructionEmitter):
    """Writes the function ``region`` for a plan.

    ``function_of`` gives an instruction's SSA; ``page_offset`` is where in its page the entry is.
    """

    def __init__(
        self, plan: Plan, layout: Layout, function_of: FunctionOf, page_offset: int,
        assumed: Mapping[str, tuple[int, int]], watched: frozenset[str], quick: bool = False,
        origin: int | None = None,
    ) -> None:
        super().__init__(layout, assumed, watched)
        self.clocked = layout.architecture.clocked
        self.origin = origin
        self.leaves_at_misses |= quick
        loops = {} if quick else plan.loops
        # Without loops, most of a region is not executed each time: what is needed is read where it is needed.
        self.in_memory = not loops
        self._jumping = _jumping_registers(plan, loops)
        self._windows = find_windows(plan, loops, self._is_steady, not quick)
        self._open_windows: dict[int, str | None] = {}
        self.plan = plan
        self.function_of = function_of
        self.page_offset = page_offset
        self.pages: set[int] = set()  # other pages it runs on, relative to the entry's
        self.entries: dict[int, Block] = {0: plan.blocks[(), 0]}
        self._edges: dict[int, set[int]] = {}
        self._block_written: dict[int, set[Key]] = {}

    def text(self) -> str:
        """The module's text."""
        for target in self.plan.targets:
            self._make_entry(self.plan.blocks[(), target])
        for block in self.plan.blocks.values():
            self._block(block)
        if self.in_memory:
            # What blocks write is in its place already, so nothing is different between them.
            self._write_ways("leave", set(), set(), self.exits)
        else:
            before = self._written_before()
            ways: dict[int, list[Exit]] = {}
            for way in self.exits:
                ways.setdefault(way.block.number, []).append(way)
            for number, own in self._block_written.items():
                self._write_ways(f"leave{number}", own, before[number], ways.get(number, []))
        body = "\n".join("\n".join(chunk) for chunk in self.chunks)
        entry = "\n".join(self._entry())
        self.declare("jump", f"declare preserve_nonecc void @jump({HANDLER_ARGUMENTS})")
        hooks, more = hooks_text(self.hooks, self.layout, self.runtime)
        return (
            "\n".join((self.declarations | more).values())
            + f'\ndefine preserve_nonecc void @{FUNCTION}({HANDLER_ARGUMENTS}) nounwind {{\n'
            + f"entry:\n{entry}\n{body}\n}}\n{hooks}{METADATA}"
        )

    def _make_entry(self, block: Block) -> None:
        """Let the region be entered at a block too, if it may."""
        returns, offset = block.place
        page = (self.page_offset + offset) >> self.layout.architecture.page_bits
        if not returns and page == 0 and len(self.entries) < MAX_ENTRIES:
            self.entries.setdefault(offset, block)

    # Blocks

    def _block(self, block: Block) -> None:
        self.block = block
        self.steady = lambda key: self._is_steady(block.number, key)
        windows = self._windows.get(block.number, {})
        self._open_windows.clear()
        self._bases.clear()
        self.begin(f"g{block.number}")
        self.state = State({}, set())
        self.written = set()
        self._edges[block.number] = set()
        if self.clocked:
            self._make_room(block)
        for position, step in enumerate(block.steps):
            for place in (step.offset, step.following - 1):
                self.pages.add((self.page_offset + place) >> self.layout.architecture.page_bits)
            operands = operands_of(step.instruction, step.word)
            self.window = None
            if step.access is not None and position in windows:
                self.at_step(step.offset, step.length, position)
                host = self._enter_window(windows[position])
                if host is not None:
                    self.window = step.access[:2], host, windows[position].uses[position]
            outcomes = self.inline(self.function_of(step.instruction), operands, step.offset, step.length, position)
            for outcome in outcomes:
                if outcome.state.sync:
                    self._look_around(block, step, outcome, position + 1)
            if self.clocked:
                outcomes = [outcome for outcome in outcomes if not outcome.state.sync]
                if not outcomes:
                    break
            last = position + 1 == len(block.steps)
            if not last and len(outcomes) == 1 and outcomes[0].state.next is None:
                self.resume(outcomes[0].label)
                self.state = outcomes[0].state
                continue
            for outcome in outcomes:
                self._go(block, step, outcome, position + 1)
            break
        self._block_written[block.number] = set(self.written)

    def _is_steady(self, number: int, key: Key) -> bool:
        """Whether a register stays near where it is while the loop around a block runs."""
        return number in self._jumping and key not in self._jumping[number]

    # Windows

    def _enter_window(self, window: Window) -> str | None:
        """Open a window, if that was not done yet in this block; gives what :meth:`open_window` gave."""
        if id(window) not in self._open_windows:
            # As it is before the first step that uses it.
            value = self.read(window.key)
            self._open_windows[id(window)] = self.open_window(window, value) if isinstance(value, str) else None
        return self._open_windows[id(window)]

    def _look_around(self, block: Block, step: Step, outcome: Outcome, count: int) -> None:
        """Leave the region if an interrupt is pending now, or memory looks different."""
        self.resume(outcome.label)
        state = self.state = outcome.state
        if self.clocked:
            # The dispatcher lets what is due by now happen.
            self.line(f"br label %{self._leave_to(block, 0, count, state.next or Relative(step.following))}")
            self.exits[-1].sync = True
            return
        self.publish_count(count)
        self.declare("region_sync", "declare preserve_allcc i1 @region_sync(ptr) nounwind")
        due = self.assign("call preserve_allcc i1 @region_sync(ptr %cpu)")
        target = state.next or Relative(step.following)
        leave = self._leave_to(block, 0, count, target)
        self.exits[-1].sync = True
        go = self.new_label("go")
        self.branch(due, leave, go, False)
        self.begin(go)
        for key in [k for k in state.registers if k[0] in self.watched]:
            del state.registers[key]
        outcome.label, state.sync = go, False

    def _go(self, block: Block, step: Step, outcome: Outcome, count: int) -> None:
        """Go on after ``count`` instructions of a block."""
        self.resume(outcome.label)
        state = self.state = outcome.state
        target = state.next
        if target is None or isinstance(target, Relative):
            offset = step.following if target is None else target.offset
            found = self.plan.successor(block, step, offset)
            if found is not None:
                self._edge(block, found, count, Relative(offset))
            else:
                self.line(f"br label %{self._leave_to(block, offset, count, target)}")
            return
        likely: list[tuple[int, Block]] = []
        returns = block.place[0]
        if returns and not step.flow.call:
            found = self.plan.blocks.get((returns[:-1], returns[-1]))
            if found is not None:
                likely.append((returns[-1], found))
        else:
            likely += [(t, self.plan.blocks[(), t]) for t in self.plan.targets]
            if self.plan.targets:
                likely.append((0, self.plan.blocks[(), 0]))
        text = state.next = self.text_of(target)
        unknown = self._leave_to(block, 0, count, text)
        if not likely:
            self.line(f"br label %{unknown}")
            return
        self.settle()
        distance = self.assign(f"sub i64 {text}, %pc0")
        cases = [(offset, self.new_label("target"), to) for offset, to in likely]
        switch = " ".join(f"i64 {offset}, label %{label}" for offset, label, _ in cases)
        self.line(f"switch i64 {distance}, label %{unknown} [ {switch} ]")
        for offset, label, to in cases:
            self.begin(label)
            self.state = state.copy()
            self._edge(block, to, count, Relative(offset))

    def _edge(self, block: Block, to: Block, count: int, target: Relative) -> None:
        """Jump to another block, by way of a look at the limit if it is backwards."""
        self.settle()
        self._edges[block.number].add(to.number)
        if self.clocked:
            # Each block looks at the clock.
            if to.number <= block.number:
                self._make_entry(to)
            self.line(f"br label %g{to.number}")
            return
        before = self.assign("load i64, ptr %left.0")
        after = self.assign(f"sub i64 {before}, {count}")
        if to.number <= block.number:
            self._make_entry(to)
            due = self._leave_to(block, 0, count, target)
            run = self.new_label("run")
            self.branch(self.assign(f"icmp sle i64 {after}, 0"), due, run, False)
            self.begin(run)
        self.line(f"store i64 {after}, ptr %left.0")
        self.line(f"br label %g{to.number}")

    def _make_room(self, block: Block) -> None:
        """Leave at a block's start where something may be due before its end."""
        most = sum(self.cycles_of(step.instruction) for step in block.steps)
        now = self.text_of(self.read(CLOCK))
        last = self.assign(f"add i64 {now}, {most}")
        label, run = self.new_label("exit"), self.new_label("run")
        self.exits.append(Exit(label, block.place[1], 0, {CLOCK: now}, set(), block))
        self.branch(self.assign(f"icmp ult i64 {last}, %end"), run, label, True)
        self.begin(run)

    def cycles_of(self, instruction: Instruction) -> int:
        """The most clock cycles that an instruction takes."""
        return most_cycles(self.function_of(instruction))

    def _leave_to(self, block: Block, offset: int, count: int, target: Known | None) -> str:
        """A label that leaves the region after ``count`` instructions of a block: to ``target``, or at ``offset``."""
        label = self.new_label("exit")
        self.exits.append(
            Exit(label, offset, count, dict(self.state.registers), set(self.written), block, target)
        )
        return label

    # Leaving

    def _written_before(self) -> dict[int, set[Key]]:
        """What may have been written on a way to each block, since the region was entered."""
        before: dict[int, set[Key]] = {n: set() for n in self._edges}
        todo = list(self._edges)
        while todo:
            number = todo.pop()
            after = before[number] | self._block_written[number]
            for successor in self._edges[number]:
                if not after <= before[successor]:
                    before[successor] |= after
                    todo.append(successor)
        return before

    def _write_ways(self, prefix: str, own: set[Key], before: set[Key], ways: list[Exit]) -> None:
        """Write ways out: of a block that writes ``own``, where ``before`` may have been written before.

        Each stores what the block itself writes somewhere, as it is there; the rest is the same for all, and they share
        that code.
        """
        shared = sorted(before - own)
        groups: dict[tuple[str, int], list[tuple[Exit, str]]] = {}
        done: dict[int, str] = {}
        for way in ways:
            self.begin(way.label)
            for key in sorted((before & own) | way.written):
                known = way.registers.get(key)
                if known is None and self.in_memory:
                    continue
                if known is None:
                    known = self.assign(f"load {self.kind_of(key)}, ptr {self.variable(key)}")
                self._store_home(key, self.text_of(known))
            kind, place = self._way_on(way)
            done[id(way)] = self._clock_at(way) if self.clocked else str(way.count)
            groups.setdefault(kind, []).append((way, place))
        for number, (kind, members) in enumerate(groups.items()):
            label = f"{prefix}.{number}"
            for way, _ in members:
                self.resume(way.label)
                self.line(f"br label %{label}")
            self.begin(label)
            counts = ", ".join(f"[ {done[id(way)]}, %{way.label} ]" for way, _ in members)
            count = self.assign(f"phi i64 {counts}")
            places = ", ".join(f"[ {place}, %{way.label} ]" for way, place in members)
            place = self.assign(f"phi i64 {places}")
            for key in shared:
                self._store_home(key, self.assign(f"load {self.kind_of(key)}, ptr {self.variable(key)}"))
            if not self.clocked:
                count = self.assign(f"add i64 {self.counted()}, {count}")
            self._note(count)
            self._go_on(kind, place, count)

    def _clock_at(self, way: Exit) -> str:
        """How many clock cycles have passed at an exit."""
        known = way.registers.get(CLOCK)
        if known is not None:
            return self.text_of(known)
        return self.assign(f"load i64, ptr {self.home(CLOCK) if self.in_memory else self.variable(CLOCK)}")

    def _way_on(self, way: Exit) -> tuple[tuple[str, int], str]:
        """How an exit goes on, and where, as an i64: exits that go on in the same way share code."""
        page = (self.page_offset + way.offset) >> self.layout.architecture.page_bits
        if way.target is not None and way.sync:
            return ("dispatch", 0), self.text_of(way.target)
        if isinstance(way.target, Relative):
            there = (self.page_offset + way.target.offset) >> self.layout.architecture.page_bits
            if there in self.pages:
                return ("near", there), str(way.target.offset)
        if way.target is not None:
            return ("jump", 0), self.text_of(way.target)
        if page not in self.pages:
            return ("jump", 0), self.text_of(Relative(way.offset))
        if way.offset in self.entries:
            return ("original", way.offset), "0"
        return ("record", page), str(way.offset)

    def _go_on(self, kind: tuple[str, int], place: str, count: str) -> None:
        layout = self.layout
        match kind:
            case "jump", _:
                self._tail("@jump", "%rec0", count, place)
            case "dispatch", _:
                kind_of_pc = self._pc_kind()
                narrow = place if kind_of_pc == "i64" else self.assign(f"trunc i64 {place} to {kind_of_pc}")
                self.write_field("pc", narrow, kind_of_pc)
                self.declare("dispatch", f"declare preserve_nonecc void @dispatch({HANDLER_ARGUMENTS})")
                self._tail("@dispatch", "%rec", count, "%base")
            case "original", at:
                # Not through its record, where this region may be. If it is not, perhaps nothing was decoded there.
                record = self.assign(f"getelementptr i8, ptr %rec0, i64 {at << layout.shift}")
                there = self.assign(f"load ptr, ptr {record}")
                here = self.assign(f"icmp eq ptr {there}, @{FUNCTION}")
                handler = self.assign(f"select i1 {here}, ptr {self._original(at)}, ptr {there}")
                self._tail(handler, record, count, "%base")
            case "near", page:
                # A taken jump, so it looks at the limit; where it leads is known.
                limit = self.assign(f"load atomic i64, ptr {self.place('limit')} monotonic, align 8")
                look, run = self.new_label("look"), self.new_label("run")
                self.branch(self.assign(f"icmp uge i64 {count}, {limit}"), look, run, False)
                self.begin(look)
                self._tail("@jump", "%rec0", count, self.assign(f"add i64 %pc0, {place}"))
                self.begin(run)
                self._go_to_record(page, place, count)
            case _, page:
                self._go_to_record(page, place, count)

    def _go_to_record(self, page: int, place: str, count: str) -> None:
        """Go on at the record of the instruction ``place`` bytes from the entry, which is in one of the pages."""
        layout, bits = self.layout, self.layout.architecture.page_bits
        if page == 0:
            scaled = self.assign(f"shl i64 {place}, {layout.shift}")
            record = self.assign(f"getelementptr i8, ptr %rec0, i64 {scaled}")
            self._tail(self.assign(f"load ptr, ptr {record}"), record, count, "%base")
            return
        # The base of another page: its virtual address less the slot's, scaled.
        start = (page << bits) - self.page_offset
        slot = self._slot(page)
        inside = self.assign(f"sub i64 {place}, {start}")
        scaled = self.assign(f"shl i64 {inside}, {layout.shift}")
        address = self.assign(f"add i64 {slot}, {scaled}")
        record = self.assign(f"inttoptr i64 {address} to ptr")
        virtual = self.assign(f"add i64 %pc0, {start}")
        less = self.assign(f"lshr i64 {slot}, {layout.shift}")
        base = self.assign(f"sub i64 {virtual}, {less}")
        self._tail(self.assign(f"load ptr, ptr {record}"), record, count, base)

    def _note(self, count: str) -> None:
        """Add the instructions executed here to the statistics."""
        before = self.assign(f"sub i64 {self.read_field('region_instructions')}, %icount")
        self.write_field("region_instructions", self.assign(f"add i64 {before}, {count}"))

    def _tail(self, function: str, record: str, icount: str, base: str) -> None:
        self.line(
            f"musttail call preserve_nonecc void {function}"
            f"(ptr {record}, ptr %cpu, i64 %tlb, i64 {icount}, i64 {base})"
        )
        self.line("ret void")

    def _original(self, offset: int) -> str:
        """The handler that the interpreter has for an entry."""
        name = original_symbol(offset)
        self.declare(name, f'declare preserve_nonecc void @"{name}"({HANDLER_ARGUMENTS})')
        return f'@"{name}"'

    def _slot(self, delta: int) -> str:
        name = slot_symbol(delta)
        self.declare(name, f'@"{name}" = external global i8')
        return f'ptrtoint (ptr @"{name}" to i64)'

    def _store_home(self, key: Key, value: str) -> None:
        self.line(f"store {self.kind_of(key)} {value}, ptr {self.home(key)}")

    # The entry

    def _refuse(self, label: str) -> None:
        """Go on with the handler that the interpreter has where the region was entered."""
        places = [offset for offset in self.entries if offset]
        if places:
            ways = " ".join(f"i64 {at}, label %{label}{n}" for n, at in enumerate(places))
            self.line(f"switch i64 %distance, label %{label} [ {ways} ]")
            for n, offset in enumerate(places):
                self.lines.append(f"{label}{n}:")
                self._tail(self._original(offset), "%rec", "%icount", "%base")
            self.lines.append(f"{label}:")
        self._tail(self._original(0), "%rec", "%icount", "%base")

    def _entry(self) -> list[str]:
        self.lines = []
        layout, bits = self.layout, self.layout.architecture.page_bits
        self.line("%recint = ptrtoint ptr %rec to i64")
        self.line(f"%recpc = lshr i64 %recint, {layout.shift}")
        self.line("%pc = add i64 %base, %recpc")
        if len(self.entries) == 1:
            self.line("%pc0 = add i64 %pc, 0")
            self.line("%rec0 = getelementptr i8, ptr %rec, i64 0")
        else:
            # How far from the beginning it is entered.
            self.line(f"%inside = and i64 %recint, {layout.slot_size - 1}")
            self.line(f"%place = lshr i64 %inside, {layout.shift}")
            self.line(f"%distance = sub i64 %place, {self.page_offset}")
            self.line("%pc0 = sub i64 %pc, %distance")
            self.line(f"%back = shl i64 %distance, {layout.shift}")
            self.line("%rec0i = sub i64 %recint, %back")
            self.line("%rec0 = inttoptr i64 %rec0i to ptr")
        self.line("%left.0 = alloca i64")
        for key, name in self.variables.items():
            self.line(f"{name} = alloca {self.kind_of(key)}")
        self.remember_nothing()
        tests: list[str] = []
        for delta in sorted(self.pages - {0}):
            tag = self.assign(f"add i64 %pc0, {(delta << bits) - self.page_offset}")
            number = self.assign(f"lshr i64 {tag}, {bits}")
            index = self.assign(f"and i64 {number}, {CODE_TLB_SIZE - 1}")
            offset = self.assign(f"mul i64 {index}, {CODE_TLB_ENTRY}")
            address = self.assign(f"add i64 {self.read_field('code_tlb')}, {offset}")
            entry = self.assign(f"inttoptr i64 {address} to ptr")
            found = self.assign(f"load i64, ptr {entry}")
            place = self.assign(f"getelementptr i8, ptr {entry}, i64 8")
            slot = self.assign(f"load i64, ptr {place}")
            tests.append(self.assign(f"icmp eq i64 {found}, {tag}"))
            tests.append(self.assign(f"icmp eq i64 {slot}, {self._slot(delta)}"))
        if self.origin is not None:
            tests.append(self.assign(f"icmp eq i64 %pc0, {self.origin}"))
        for name in sorted(self.assumes):
            mask, expected = self.assumed[name]
            kind = self.kind_of((name, 0))
            now = self.assign(f"load {kind}, ptr {self.home((name, 0))}")
            tests.append(self.assign(f"icmp eq {kind} {self.assign(f'and {kind} {now}, {mask}')}, {expected}"))
        if tests:
            test = tests[0]
            for other in tests[1:]:
                test = self.assign(f"and i1 {test}, {other}")
            self.branch(test, "sure", "unsure", True)
            self.lines.append("unsure:")
            self.declare("refusals", "@refusals = external global i64")
            self.line("%refused = load i64, ptr @refusals")
            self.line("%refused1 = add i64 %refused, 1")
            self.line("store i64 %refused1, ptr @refusals")
            self._refuse("refuse")
            self.lines.append("sure:")
        if self.clocked:
            return self._clocked_entry()
        # The most it can execute before it looks again. What was asked for since is noticed when the region is left.
        most = sum(len(block.steps) for block in self.plan.blocks.values())
        self.line(f"%bound = load atomic i64, ptr {self.place('region_limit')} monotonic, align 8")
        self.line(f"%end = sub i64 %bound, {most}")
        self.line("%left = sub i64 %end, %icount")
        self.branch(self.assign("icmp sgt i64 %left, 0"), "room", "near", True)
        self.lines.append("near:")
        self._refuse("short")
        self.lines.append("room:")
        self.write_field("region_entries", self.assign(f"add i64 {self.read_field('region_entries')}, 1"))
        self.line("store i64 %left, ptr %left.0")
        return self._enter_blocks()

    def _clocked_entry(self) -> list[str]:
        """Go on until the sooner of the turn's end, the next event, and the time to look around."""
        self.line(f"%stop = load i64, ptr {self.place('stop_at')}")
        self.line(f"%event = load i64, ptr {self.place('event_at')}")
        self.line(f"%limit = load atomic i64, ptr {self.place('limit')} monotonic, align 8")
        ends = self.assign("call i64 @llvm.umin.i64(i64 %stop, i64 %event)")
        self.declare("umin", "declare i64 @llvm.umin.i64(i64, i64)")
        self.line(f"%end = call i64 @llvm.umin.i64(i64 {ends}, i64 %limit)")
        # The first block must fit, or nothing would be done here.
        most = [(offset, sum(self.cycles_of(s.instruction) for s in b.steps)) for offset, b in self.entries.items()]
        room = self.assign(f"add i64 %icount, {max(cycles for _, cycles in most)}")
        self.branch(self.assign(f"icmp ult i64 {room}, %end"), "room", "near", True)
        self.lines.append("near:")
        self._refuse("short")
        self.lines.append("room:")
        self.write_field("region_entries", self.assign(f"add i64 {self.read_field('region_entries')}, 1"))
        self.write_field("retired", "%icount")
        return self._enter_blocks()

    def _enter_blocks(self) -> list[str]:
        for key, variable in self.variables.items():
            kind = self.kind_of(key)
            value = self.assign(f"load {kind}, ptr {self.home(key)}")
            self.line(f"store {kind} {value}, ptr {variable}")
        others = [(offset, block) for offset, block in self.entries.items() if offset]
        if others:
            ways = " ".join(f"i64 {offset}, label %g{block.number}" for offset, block in others)
            self.line(f"switch i64 %distance, label %g0 [ {ways} ]")
        else:
            self.line("br label %g0")
        return self.lines


@cache
def most_cycles(function: ssa.Function) -> int:
    """The most clock cycles that pass in a function, by any way through it. Raises UnsupportedError for a loop."""
    most: dict[int, int] = {}
    for block in reversed(function.blocks):
        own = 0
        for op in block.ops:
            if op.opcode == "cycle":
                own += 1
            elif op.opcode == "call":
                own += most_cycles(op.detail)
        following = [jump.target.number for jump in block.jumps()]
        if any(number not in most for number in following):
            raise UnsupportedError("the instruction has a loop")
        most[block.number] = own + max((most[number] for number in following), default=0)
    return most[function.blocks[0].number]


def _jumping_registers(plan: Plan, loops: Mapping[int, frozenset[int]]) -> dict[int, set[Key]]:
    """For each block in a loop, which registers get other values than their own plus a constant in that loop."""
    steps = {b.number: b.steps for b in plan.blocks.values()}
    of_body: dict[frozenset[int], set[Key]] = {}
    for body in loops.values():
        if body not in of_body:
            of_body[body] = {
                key for number in body for step in steps[number] for key, source in step.writes.items()
                if source is None or source[0] != key
            }
    return {number: of_body[body] for number, body in loops.items()}
