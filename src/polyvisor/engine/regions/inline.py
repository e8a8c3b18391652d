"""One instruction in a region: its function's SSA, evaluated with known operands, and LLVM IR for what remains.

What is known (operands, the program counter relative to the region's entry, state that the region may assume) is
computed here and costs nothing at run time.  The guest's registers are local variables of the region (LLVM makes SSA
values of them).  Whatever is rare - a trap, a call of a helper, a branch marked unlikely - leaves the region *before*
the instruction, with the state as it was then, and the interpreter executes it instead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NoReturn

from polyvisor.adl import ssa
from polyvisor.adl.llvm import llvm_type
from polyvisor.dataclass import dataclass, field, replace

from ..hooks.events import MEMORY, HookUse
from ..layout import Layout
from .accesses import AccessEmitter, UnsupportedError
from .known import PURE, Known, Partial, Relative, fold, relative, same
from .plan import Key

# The clock of a clocked architecture: in a region, one of its variables.
CLOCK: Key = ("retired", 0)

# A hook's function, whether it is called (an i1), and its arguments with their types.
PendingHook = tuple[ssa.Function, str, tuple[str, ...]]


@dataclass
class State:
    """Where a path through an instruction is: what the guest's registers and the program counter hold.

    ``registers`` are the values of those that were read or written; ``stale`` are those of them whose variable does not
    hold the value yet (variables are written where a block ends); ``changed``: memory was changed, so there is no way
    back before the instruction; ``sync``: contexts or pending interrupts may have changed; ``pending``: hooks of the
    instruction's start, to be called when it is clear that it completes here.
    """

    registers: dict[Key, Known]
    stale: set[Key]
    values: dict[int, Known] = field(default_factory=dict)
    next: Known | None = None
    changed: bool = False
    sync: bool = False
    # What undoes the changes of memory: (pointer, type, what was there); None if they cannot be undone.
    undo: tuple[tuple[str, str, str], ...] | None = ()
    pending: tuple[PendingHook, ...] = ()

    def copy(self) -> State:
        """An independent copy."""
        return replace(self, registers=dict(self.registers), stale=set(self.stale), values=dict(self.values))


@dataclass
class Exit:
    """A way out of the region: ``label`` is its LLVM block, ``written`` the state to write back."""

    label: str
    offset: int
    count: int  # instructions of the block executed before
    registers: dict[Key, Known]
    written: set[Key]
    block: Any
    target: Known | None = None  # a jump there; None: the interpreter goes on at ``offset``
    sync: bool = False  # by way of the dispatcher, which looks at everything


@dataclass
class Outcome:
    """A way to the next instruction, from ``label``; ``state.next`` is where it leads, None: straight on."""

    label: str
    state: State


# The most LLVM blocks that a helper may become.
_MAX_CHUNKS = 16


class _ColdError(Exception):
    """What follows on this path is never reached."""


class _LargeError(Exception):
    """A helper is too large for a region."""


@dataclass
class _Edge:
    label: str
    arguments: list[Known]
    state: State


class InstructionEmitter(AccessEmitter):
    """Writes instructions into a region's function.

    ``assumed`` says which bits of which fields have which values as long as the region runs: name to (mask, value);
    ``watched`` are members that translation, contexts and interrupts depend on: they are always current in memory.
    """

    def __init__(self, layout: Layout, assumed: Mapping[str, tuple[int, int]], watched: frozenset[str]) -> None:
        super().__init__(layout)
        # What a clocked CPU does can be undone up to a miss.
        self.leaves_at_misses = bool(layout.architecture.clocked)
        self.assumed = assumed
        self.watched = watched
        self.exits: list[Exit] = []
        self.variables: dict[Key, str] = {}
        self.assumes: set[str] = set()
        self.contradicted: set[str] = set()  # assumed, but written
        self.block: Any = None
        self.page_offset = -1  # of the region's entry in its page; -1: not known
        self.origin: int | None = None  # the entry's address, where that is known
        self.state = State({}, set())
        self.written: set[Key] = set()  # in this block so far, on some path
        # Keep the guest's registers in the CPU's block from one basic block to the next, not in variables.
        self.in_memory = False
        self._start: tuple[dict[Key, Known], set[Key]] = {}, set()
        self._offset = self._count = self._length = 0

    # Values

    def text_of(self, known: Known) -> str:
        """The value as LLVM writes it."""
        match known:
            case ssa.Const():
                return ("true" if known.value else "false") if known.type is bool else str(known.value)
            case Relative():
                return self.assign(f"add i64 %pc0, {known.offset}") if known.offset else "%pc0"
            case Partial():
                return known.text
        return known

    def known(self, value: ssa.Value) -> Known:
        """What is known of an SSA value."""
        return value if isinstance(value, ssa.Const) else self.state.values[value.number]

    def operand(self, value: ssa.Value) -> str:
        """The value as LLVM writes it."""
        return self.text_of(self.known(value))

    def define(self, op: ssa.Op, text: str, index: int = 0) -> None:
        """Add the instruction that gives a result."""
        self.state.values[op.results[index].number] = self.assign(text)

    def alias(self, result: ssa.Value, name: str) -> None:
        """Let ``name`` be the result."""
        self.state.values[result.number] = name

    # The state

    def variable(self, key: Key) -> str:
        """The local variable that stands for a register or field."""
        return self.variables.setdefault(key, f"%{key[0]}.{key[1]}")

    def kind_of(self, key: Key) -> str:
        """The LLVM type of a register or field."""
        member: Any = self.layout.members[key[0]]
        return llvm_type(member.type)

    def read(self, key: Key) -> Known:
        """The register's present value."""
        registers = self.state.registers
        if key not in registers:
            # What others may change too is read where it is.
            kind = self.kind_of(key)
            if key[0] in self.watched:
                registers[key] = self.assign(f"load volatile {kind}, ptr {self.home(key)}")
            elif self.in_memory:
                registers[key] = self.assign(f"load {kind}, ptr {self.home(key)}")
            else:
                registers[key] = self.assign(f"load {kind}, ptr {self.variable(key)}")
        return registers[key]

    def home(self, key: Key) -> str:
        """A pointer to a register or field in the CPU's block."""
        name, number = key
        kind = self.kind_of(key)
        offset = self.layout.offset(name) + number * (int(kind[1:]) // 8)
        return self.assign(f"getelementptr i8, ptr %cpu, i64 {offset}")

    def write(self, key: Key, value: Known) -> None:
        """Give the register a value."""
        if not self.in_memory:
            self.variable(key)
        self.state.registers[key] = value
        self.state.stale.add(key)
        self.written.add(key)

    def settle(self) -> None:
        """Bring the variables, or what stands for them, up to date, where a block ends."""
        for key in sorted(self.state.stale):
            value = self.text_of(self.state.registers[key])
            place = self.home(key) if self.in_memory else self.variable(key)
            self.line(f"store {self.kind_of(key)} {value}, ptr {place}")
        self.state.stale.clear()

    def op_get(self, op: ssa.Op) -> None:
        key, type_ = (op.detail, 0), op.results[0].type
        value = self.read(key)
        if op.detail in self.assumed and key not in self.written and isinstance(value, str):
            mask, bits = self.assumed[op.detail]
            self.assumes.add(op.detail)
            whole = type_ is not bool and mask == (1 << type_.bits) - 1
            value = ssa.Const(type_, bits) if whole else Partial(value, mask, bits)
        self.state.values[op.results[0].number] = value

    def op_set(self, op: ssa.Op) -> None:
        key, value = (op.detail, 0), self.known(op.arguments[0])
        if op.detail in self.assumed:
            self.contradicted.add(op.detail)
        if op.detail not in self.watched:
            self.write(key, value)
            return
        text = self.text_of(value)
        self.line(f"store volatile {self.kind_of(key)} {text}, ptr {self.home(key)}")
        self.state.registers[key] = text
        self.state.changed = self.state.sync = True
        self.state.undo = None

    def _index(self, value: ssa.Value) -> int:
        index = self.known(value)
        if not isinstance(index, ssa.Const):
            raise UnsupportedError("a register's number is known only at run time")
        return index.value

    def op_getreg(self, op: ssa.Op) -> None:
        index = self._index(op.arguments[0])
        zero = getattr(self.layout.members[op.detail], "zero", None)
        value = ssa.Const(op.results[0].type, 0) if index == zero else self.read((op.detail, index))
        self.state.values[op.results[0].number] = value
        if isinstance(value, str):
            self._bases[value] = (op.detail, index), 0

    def op_setreg(self, op: ssa.Op) -> None:
        index = self._index(op.arguments[0])
        if op.detail in self.watched:
            raise UnsupportedError(f"a change of {op.detail}")
        if index != getattr(self.layout.members[op.detail], "zero", None):
            self.write((op.detail, index), self.known(op.arguments[1]))

    # The program counter

    def op_pc(self, op: ssa.Op) -> None:
        self.state.values[op.results[0].number] = self._address(op, self._offset)

    def _address(self, op: ssa.Op, offset: int) -> Known:
        """The address ``offset`` bytes from the entry."""
        if self.origin is None:
            return Relative(offset)
        return ssa.Const(op.results[0].type, self.origin + offset & (1 << self.layout.architecture.address_bits) - 1)

    def op_next_pc(self, op: ssa.Op) -> None:
        now = self.state.next or Relative(self._offset + self._length)
        self.state.values[op.results[0].number] = self._address(op, now.offset) if isinstance(now, Relative) else now

    def op_set_next_pc(self, op: ssa.Op) -> None:
        target = self.known(op.arguments[0])
        if self.origin is not None and isinstance(target, ssa.Const):
            target = Relative((target.value & (1 << self.layout.architecture.address_bits) - 1) - self.origin)
        self.state.next = target

    def counted(self) -> str:
        """The instructions executed before this block."""
        left = self.assign("load i64, ptr %left.0")
        return self.assign(f"sub i64 %end, {left}")

    def op_instructions(self, op: ssa.Op) -> None:
        self.define(op, f"add i64 {self.counted()}, {self._count}")

    # The clock

    def op_cycle(self, op: ssa.Op) -> None:
        self.write(CLOCK, self.assign(f"add i64 {self.text_of(self.read(CLOCK))}, 1"))

    def op_cycles(self, op: ssa.Op) -> None:
        self.state.values[op.results[0].number] = self.read(CLOCK)

    def publish_count(self, count: int) -> None:
        """Let memory say how many instructions were executed, ``count`` of them in this block."""
        self.write_field("retired", self.assign(f"add i64 {self.counted()}, {count}"))

    def op_clock(self, op: ssa.Op) -> None:
        self.publish_count(self._count)
        self.declare("region_clock", "declare preserve_allcc i64 @region_clock(ptr) nounwind")
        self.define(op, "call preserve_allcc i64 @region_clock(ptr %cpu)")

    # Memory

    def leave_before(self) -> str:
        """A label that leaves the region before this instruction."""
        undo = self.state.undo
        if self.state.changed and not undo:
            raise UnsupportedError("memory was changed before it is clear that the instruction can complete")
        label = self.new_label("exit")
        registers, written = self._start
        self.exits.append(Exit(label, self._offset, self._count, registers, written, self.block))
        if not undo:
            return label
        back = self.new_label("undo")
        self._open[back] = chunk = [f"{back}:"]
        chunk += [f"  store atomic {kind} {old}, ptr {where} monotonic, align 1" for where, kind, old in undo[::-1]]
        chunk.append(f"  br label %{label}")
        self.chunks.append(chunk)
        return back

    def note_store(self, pointer: str, kind: str, size: int) -> None:
        """The CPU of a clocked architecture has its memory for itself, so a store can be taken back."""
        if self.layout.architecture.clocked and self.state.undo is not None:
            old = self.assign(f"load atomic {kind}, ptr {pointer} monotonic, align {size}")
            self.state.undo = (*self.state.undo, (pointer, kind, old))

    def note_change(self) -> None:
        """Memory was changed: from here on there is no way back before the instruction."""
        self.state.changed = True

    def cold(self) -> NoReturn:
        """Leave before the instruction."""
        self.line(f"br label %{self.leave_before()}")
        raise _ColdError

    # Hooks

    def op_hook(self, op: ssa.Op) -> None:
        use = op.detail
        if use.kind == "instruction":
            if not self._is_elsewhere(use):
                # With what the CPU holds now, but not before it is clear that the instruction is not left.
                guard, *arguments = op.arguments
                given = tuple(self.typed(a) for a in arguments)
                self.state.pending += ((use.function, self.operand(guard), given),)
            return
        self._flush_pending()
        super().op_hook(op)
        self.note_change()
        self.state.undo = None

    def op_hook_before(self, op: ssa.Op) -> None:
        """The interpreter executes what calls Python."""
        guard = self.known(op.arguments[0])
        if isinstance(guard, ssa.Const) and guard.value:
            self.cold()
        go = self.new_label("go")
        self.branch(self.text_of(guard), self.leave_before(), go, False)
        self.begin(go)

    def op_hook_call(self, op: ssa.Op) -> None:
        # An access was left before, if at all.
        if op.detail.kind not in MEMORY and not self._is_elsewhere(op.detail):
            self.op_hook_before(op)

    def _is_elsewhere(self, use: HookUse) -> bool:
        """Whether a hook on a range of code cannot be meant here, judging by the place in the page."""
        size = self.layout.page_size
        if use.kind != "instruction" or use.at is None or self.page_offset < 0 or use.at[1] >= size:
            return False
        return (self.page_offset + self._offset - use.at[0]) % size >= use.at[1]

    def _flush_pending(self) -> None:
        """Call the hooks of the instruction's start."""
        for function, guard, arguments in self.state.pending:
            self.hooks.add(function)
            with self._if(guard):
                self.line(f'call void @"{function.name}"({", ".join(["ptr %cpu", *arguments])})')
            self.state.changed = True
            self.state.undo = None  # what a hook did stays
        self.state.pending = ()

    def _call_pending(self, edge: _Edge) -> None:
        """The same at the end of a way."""
        if edge.state.pending:
            self.resume(edge.label)
            self.state = edge.state
            self._flush_pending()
            edge.label = self.label

    # Operations

    def op(self, op: ssa.Op) -> None:
        """Write an operation, or only compute it."""
        code = op.opcode
        folded = None
        if code in PURE:
            arguments = [self.known(a) for a in op.arguments]
            types = [a.type for a in op.arguments]
            unit = self.layout.architecture.unit
            folded = fold(code, arguments, types, op.results[0].type, op.detail, unit)
        if folded is not None:
            self.state.values[op.results[0].number] = folded
        elif code in PURE or code in _ALLOWED or code.startswith("ieee_"):
            super().op(op)
            if code == "add":
                # A displacement from a register mostly stays in the register's page.
                base, displacement = (self.known(a) for a in op.arguments)
                result = self.known(op.results[0])
                if isinstance(base, str) and isinstance(displacement, ssa.Const) and base in self._bases:
                    key, before = self._bases[base]
                    self._bases[self.text_of(result)] = key, relative(before + displacement.value).offset
        elif code == "call" and not op.catch:
            self._inline_call(op)
        else:
            self.cold()

    # Control flow within the instruction

    def at_step(self, offset: int, length: int, count: int) -> None:
        """The next instruction: from now on, :meth:`leave_before` leaves before it."""
        self._offset, self._length, self._count = offset, length, count
        self._start = dict(self.state.registers), set(self.written)
        self.state.changed = False
        self.state.undo = ()

    def inline(
        self, function: ssa.Function, operands: Sequence[ssa.Const], offset: int, length: int, count: int
    ) -> list[Outcome]:
        """Write one instruction, ``count`` instructions into the block; gives the ways on, whose labels are open."""
        self.function = function
        self.at_step(offset, length, count)
        state = self.state
        state.values = {p.number: v for p, v in zip(function.parameters, operands, strict=True)}
        state.next, state.sync, state.pending = None, False, ()
        edges = self._walk(function)
        for edge in edges:
            self._call_pending(edge)
        return [Outcome(edge.label, edge.state) for edge in edges]

    def _walk(self, function: ssa.Function, chunks: int | None = None) -> list[_Edge]:
        """Write a function's body from here; gives the ways to its returns, with the results as arguments.

        With ``chunks``, how many there were before, it is given up when it gets large.
        """
        returns: list[_Edge] = []
        pending: dict[int, list[_Edge]] = {function.blocks[0].number: [_Edge(self.label, [], self.state)]}
        blocks = {b.number: b for b in function.blocks}
        while pending:
            number = min(pending)
            for edges in _alike(pending.pop(number)):
                self._enter(blocks[number].parameters, edges)
                if chunks is not None and len(self.chunks) - chunks > _MAX_CHUNKS:
                    raise _LargeError
                try:
                    for op in blocks[number].ops:
                        self.op(op)
                    self._leave(blocks[number], pending, returns)
                except _ColdError:
                    continue
        return returns

    def _inline_call(self, op: ssa.Op) -> None:
        """Write a helper's body in place of its call, if not much is left of it here; else it is rare."""
        callee: ssa.Function = op.detail
        caller, before, written = self.function, self.state.copy(), set(self.written)
        values = self.state.values
        mark = self.lines, len(self.lines), self.label, len(self.chunks), len(self.exits)
        arguments = [self.known(a) for a in op.arguments]
        self.function = callee
        self.state.values = {p.number: a for p, a in zip(callee.parameters, arguments, strict=True)}
        try:
            returns = self._walk(callee, len(self.chunks))
        except (UnsupportedError, _LargeError):
            lines, length, self.label, chunks, exits = mark
            del lines[length:], self.chunks[chunks:], self.exits[exits:]
            self.lines, self.state, self.written = lines, before, written
            self.cold()
        finally:
            self.function = caller
        if not returns:
            raise _ColdError
        for edge in returns:
            edge.state.values = dict(values)
        if any(not _same_next(e.state.next, returns[0].state.next) for e in returns):
            raise UnsupportedError("a helper that jumps")
        self._enter(op.results, returns)

    def _leave(self, block: ssa.Block, pending: dict[int, list[_Edge]], returns: list[_Edge]) -> None:
        """Write the end of an SSA block."""
        def go(label: str, jump: ssa.Jump, state: State) -> None:
            if jump.target.number <= block.number:
                raise UnsupportedError("the instruction has a loop")
            arguments = [self.known(a) for a in jump.arguments]
            pending.setdefault(jump.target.number, []).append(_Edge(label, arguments, state))

        match block.end:
            case ssa.Jump():
                go(self.label, block.end, self.state)
            case ssa.Branch(condition=condition, then=then, otherwise=otherwise, hint=hint):
                test = self.known(condition)
                if isinstance(test, ssa.Const):
                    go(self.label, then if test.value else otherwise, self.state)
                    return
                ways = []
                for jump, rare in ((then, hint is False), (otherwise, hint is True)):
                    if rare and not self.state.changed:
                        ways.append(self.leave_before())
                        continue
                    ways.append(self.new_label("way"))
                    self._open[ways[-1]] = chunk = [f"{ways[-1]}:"]
                    self.chunks.append(chunk)
                    go(ways[-1], jump, self.state.copy())
                self.branch(self.text_of(test), ways[0], ways[1], hint)
            case ssa.Switch(value=value, cases=cases, default=default):
                number = self.known(value)
                if not isinstance(number, ssa.Const):
                    self.cold()
                chosen = next((j for n, j in cases if n == number.value), default)
                go(self.label, chosen, self.state)
            case ssa.Return(values=values):
                returns.append(_Edge(self.label, [self.known(v) for v in values], self.state))
            case _:
                self.cold()

    def _enter(self, parameters: Sequence[ssa.Value], edges: list[_Edge]) -> None:
        """Go on where the edges meet; the parameters get what they bring along."""
        if len(edges) == 1:
            (edge,) = edges
            self.resume(edge.label)
            self.state = edge.state
            for parameter, argument in zip(parameters, edge.arguments, strict=True):
                self.state.values[parameter.number] = argument
            return
        if any(not e.state.pending for e in edges):
            for edge in edges:
                self._call_pending(edge)
        label = self.new_label("join")
        states = [e.state for e in edges]
        keys = sorted(set().union(*(s.registers for s in states)))
        changed = set().union(*(s.stale for s in states))
        # On each way, all that is not the same everywhere gets a name.
        rows: list[tuple[Key | int, str, list[Known | None]]] = []
        for key in keys:
            held = [s.registers.get(key) for s in states]
            if key in changed and not all(same(v, held[0]) for v in held):
                rows.append((key, self.kind_of(key), held))
        types = _types(self.function)
        for number in set.intersection(*(set(s.values) for s in states)):
            values = [s.values[number] for s in states]
            if not all(same(v, values[0]) for v in values):
                rows.append((number, llvm_type(types[number]), list(values)))
        for i, parameter in enumerate(parameters):
            values = [e.arguments[i] for e in edges]
            if all(same(v, values[0]) for v in values):
                for s in states:
                    s.values[parameter.number] = values[0]
            else:
                rows.append((parameter.number, llvm_type(parameter.type), list(values)))
        columns: list[tuple[Key | int, str, list[str]]] = [(key, kind, []) for key, kind, _ in rows]
        for i, edge in enumerate(edges):
            self.resume(edge.label)
            self.state = edge.state
            for (what, _, ways), (_, _, names) in zip(rows, columns, strict=True):
                value = ways[i]
                if value is None:
                    assert not isinstance(what, int)
                    value = self.read(what)
                names.append(self.text_of(value))
            self.line(f"br label %{label}")
        self.begin(label)
        first = states[0]
        registers = {k: v for k, v in first.registers.items() if all(same(s.registers.get(k), v) for s in states)}
        shared = {n: v for n, v in first.values.items() if all(same(s.values.get(n), v) for s in states)}
        self.state = State(
            registers, set(changed), shared, first.next, any(s.changed for s in states), any(s.sync for s in states),
            pending=first.pending,
        )
        self.state.undo = first.undo if all(s.undo == first.undo for s in states) else None
        for what, kind, names in columns:
            incoming = ", ".join(f"[ {n}, %{e.label} ]" for n, e in zip(names, edges, strict=True))
            name = self.assign(f"phi {kind} {incoming}")
            if isinstance(what, int):
                self.state.values[what] = name
            else:
                self.state.registers[what] = name


_ALLOWED = frozenset(
    "get set getreg setreg pc next_pc set_next_pc load store atomic compare_exchange fence instructions clock "
    "cycle cycles note hook hook_before hook_call".split()
)


def _same_next(a: Known | None, b: Known | None) -> bool:
    return (a is None and b is None) or same(a, b)


def _alike(edges: list[_Edge]) -> list[list[_Edge]]:
    """The edges, in groups that lead to the same next instruction: only those are joined."""
    groups: list[list[_Edge]] = []
    for edge in edges:
        for group in groups:
            if _same_next(group[0].state.next, edge.state.next):
                group.append(edge)
                break
        else:
            groups.append([edge])
    return groups


@cache
def _types(function: ssa.Function) -> dict[int, ssa.Type]:
    found = {p.number: p.type for p in function.parameters}
    for block in function.blocks:
        found |= {p.number: p.type for p in block.parameters}
        for op in block.ops:
            found |= {r.number: r.type for r in op.results}
    return found
