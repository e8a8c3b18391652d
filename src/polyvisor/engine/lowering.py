"""What operations on the CPU become in native code: in helper functions, and in the interpreter's handlers.

A handler is called with the record it executes and the hart's hot values in registers (`preserve_none`), and ends
in a tail call of the next record's handler.  It has two variants.  The fast one holds only what nearly always
happens; where anything else is needed, and nothing was changed yet, it starts again as the slow variant, which
may call helpers.  So the fast variant saves and restores no registers.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

from polyvisor.adl import Instruction, ssa
from polyvisor.adl.llvm import Emitter, llvm_type
from polyvisor.adl.types import u64

from .layout import CODE_TLB_ENTRY, CODE_TLB_SIZE, TLB_ENTRY, TLB_SIZE, Layout, operand_layout

# The signature of every handler.
HANDLER_ARGUMENTS = "ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base"


def reason_number(reason: str) -> int:
    """The number that stands for a reason given to ``cpu.leave``; never 0."""
    return zlib.crc32(reason.encode()) | 1


def result_type(function: ssa.Function) -> str:
    """The LLVM type a helper returns: its results, then whether it trapped, where it can."""
    kinds = [llvm_type(t) for t in function.results]
    if function.effects.traps:
        kinds.append("i1")
    if not kinds:
        return "void"
    return kinds[0] if len(kinds) == 1 else "{ " + ", ".join(kinds) + " }"


def signature(function: ssa.Function) -> str:
    """The LLVM type of a helper's parameters."""
    return ", ".join(["ptr", *(llvm_type(p.type) for p in function.parameters)])


Runtime = Callable[..., ssa.Function]


class HelperEmitter(Emitter):
    """A function that handlers and other helpers call: ``result name(cpu, arguments...)``.

    ``runtime(name, **constants)`` gives a function of :mod:`polyvisor.engine.runtime`.
    """

    def __init__(self, function: ssa.Function, layout: Layout, runtime: Runtime) -> None:
        super().__init__(function)
        self.layout = layout
        self.runtime = runtime
        self.callees: set[ssa.Function] = set()

    def text(self) -> str:
        """The whole function."""
        parameters = ["ptr %cpu", *(f"{llvm_type(p.type)} %v{p.number}" for p in self.function.parameters)]
        body = self.body()
        head = f'define {result_type(self.function)} @"{self.function.name}"({", ".join(parameters)}) nounwind {{'
        return f"{head}\nentry:\n  br label %b{self.function.blocks[0].number}\n{body}}}\n"

    # State

    def place(self, name: str) -> str:
        """A pointer to a state member."""
        return self.assign(f"getelementptr i8, ptr %cpu, i64 {self.layout.offset(name)}")

    def read_field(self, name: str, kind: str = "i64") -> str:
        """Read a state member as ``kind``."""
        return self.assign(f"load {kind}, ptr {self.place(name)}")

    def write_field(self, name: str, value: str, kind: str = "i64") -> None:
        """Write a state member as ``kind``."""
        self.line(f"store {kind} {value}, ptr {self.place(name)}")

    def op_get(self, op: ssa.Op) -> None:
        self.define(op, f"load {llvm_type(op.results[0].type)}, ptr {self.place(op.detail)}")

    def op_set(self, op: ssa.Op) -> None:
        self.write_field(op.detail, self.operand(op.arguments[0]), llvm_type(op.arguments[0].type))

    def _register(self, name: str, index: ssa.Value) -> str:
        member: Any = self.layout.members[name]
        size = member.type.bits // 8
        if isinstance(index, ssa.Const):
            return self.assign(f"getelementptr i8, ptr %cpu, i64 {self.layout.offset(name) + index.value * size}")
        wide = self.operand(index)
        if llvm_type(index.type) != "i64":
            wide = self.assign(f"{self.cast(index, u64)}")
        base = self.place(name)
        return self.assign(f"getelementptr i{member.type.bits}, ptr {base}, i64 {wide}")

    def op_getreg(self, op: ssa.Op) -> None:
        place = self._register(op.detail, op.arguments[0])
        self.define(op, f"load {llvm_type(op.results[0].type)}, ptr {place}")

    def op_setreg(self, op: ssa.Op) -> None:
        index, value = op.arguments
        zero = getattr(self.layout.members[op.detail], "zero", None)
        if zero is not None and isinstance(index, ssa.Const) and index.value == zero:
            return
        self.line(f"store {self.typed(value)}, ptr {self._register(op.detail, index)}")
        if zero is not None and not isinstance(index, ssa.Const):
            # Cheaper than a test: whatever was written, the zero register is zero again.
            kind = llvm_type(value.type)
            size = int(kind[1:]) // 8
            place = self.assign(f"getelementptr i8, ptr %cpu, i64 {self.layout.offset(op.detail) + zero * size}")
            self.line(f"store {kind} 0, ptr {place}")

    def _pc_kind(self) -> str:
        return llvm_type(self.layout.members["pc"].type)

    def op_pc(self, op: ssa.Op) -> None:
        self.define(op, f"load {self._pc_kind()}, ptr {self.place('pc')}")

    def op_next_pc(self, op: ssa.Op) -> None:
        wide = self.read_field("next_pc")
        self.define(op, f"add i64 {wide}, 0" if self._pc_kind() == "i64" else f"trunc i64 {wide} to {self._pc_kind()}")

    def op_set_next_pc(self, op: ssa.Op) -> None:
        self.write_field("next_pc", self.wide(op.arguments[0]))

    def wide(self, value: ssa.Value) -> str:
        """The value as an i64, zero-extended."""
        if llvm_type(value.type) == "i64":
            return self.operand(value)
        return self.assign(f"zext {self.typed(value)} to i64")

    # Calls

    def invoke(
        self, callee: ssa.Function, arguments: Sequence[str], catch: bool = False
    ) -> tuple[str, list[str]]:
        """Call a helper with typed operands; gives whether it trapped (as an i1) and the results.

        Without ``catch``, a trap ends this function.
        """
        kind = result_type(callee)
        self.callees.add(callee)
        self.declare(callee.name, f'declare {kind} @"{callee.name}"({signature(callee)})')
        call = f'call {kind} @"{callee.name}"({", ".join(["ptr %cpu", *arguments])})'
        if kind == "void":
            self.line(call)
            return "false", []
        value = self.assign(call)
        count = len(callee.results) + callee.effects.traps
        parts = [value] if count == 1 else [self.assign(f"extractvalue {kind} {value}, {i}") for i in range(count)]
        trapped = parts.pop() if callee.effects.traps else "false"
        if not catch and callee.effects.traps:
            bad, good = self.new_label("trapped"), self.new_label("fine")
            self.branch(trapped, bad, good, False)
            self.begin(bad)
            self.leave_trapped()
            self.begin(good)
        return trapped, parts

    def op_call(self, op: ssa.Op) -> None:
        trapped, parts = self.invoke(op.detail, [self.typed(a) for a in op.arguments], op.catch)
        results = list(op.results)
        if op.catch:
            self.line(f"%v{results.pop(0).number} = or i1 {trapped}, false")
        for result, part in zip(results, parts, strict=True):
            self.alias(result, part)

    def alias(self, result: ssa.Value, name: str) -> None:
        """Let ``name`` be the operation's result."""
        kind = llvm_type(result.type)
        same = f"or i1 {name}, false" if kind == "i1" else f"add {kind} {name}, 0"
        self.line(f"%v{result.number} = {same}")

    def leave_trapped(self) -> None:
        """End this function because of a trap whose values are stored."""
        zeros = [f"{llvm_type(t)} {'false' if t is bool else 0}" for t in self.function.results]
        self._return([*zeros, "i1 true"])

    def _return(self, values: Sequence[str]) -> None:
        if not values:
            self.line("ret void")
        elif len(values) == 1:
            self.line(f"ret {values[0]}")
        else:
            kind = result_type(self.function)
            whole = "undef"
            for i, value in enumerate(values):
                whole = self.assign(f"insertvalue {kind} {whole}, {value}, {i}")
            self.line(f"ret {kind} {whole}")

    def emit_return(self, values: Sequence[ssa.Value]) -> None:
        self._return([*map(self.typed, values), *(["i1 false"] if self.function.effects.traps else [])])

    def store_trap(self, values: Sequence[ssa.Value]) -> None:
        """Put a trap's values where `deliver` finds them."""
        base = self.place("trap_values")
        for i, value in enumerate(values):
            place = self.assign(f"getelementptr i64, ptr {base}, i64 {i}")
            self.line(f"store {self.typed(value)}, ptr {place}")

    def emit_raise(self, values: Sequence[ssa.Value]) -> None:
        self.store_trap(values)
        self.leave_trapped()

    # Virtual memory

    def _lookup(self, vaddr: str, size: int, column: int) -> tuple[str, str]:
        """The TLB check for an access: whether it hits (i1), and the entry (as i64)."""
        bits = self.layout.architecture.page_bits
        tlb = self.tlb()
        number = self.assign(f"lshr i64 {vaddr}, {bits}")
        index = self.assign(f"and i64 {number}, {TLB_SIZE - 1}")
        offset = self.assign(f"mul i64 {index}, {TLB_ENTRY}")
        entry = self.assign(f"add i64 {tlb}, {offset}")
        place = self.assign(f"add i64 {entry}, {column}") if column else entry
        pointer = self.assign(f"inttoptr i64 {place} to ptr")
        tag = self.assign(f"load i64, ptr {pointer}")
        masked = self.assign(f"and i64 {vaddr}, {~((1 << bits) - 1) | (size - 1)}")
        return self.assign(f"icmp eq i64 {masked}, {tag}"), entry

    def _host(self, entry: str, vaddr: str) -> str:
        place = self.assign(f"add i64 {entry}, 16")
        pointer = self.assign(f"inttoptr i64 {place} to ptr")
        addend = self.assign(f"load i64, ptr {pointer}")
        host = self.assign(f"add i64 {addend}, {vaddr}")
        return self.assign(f"inttoptr i64 {host} to ptr")

    def tlb(self) -> str:
        """The address of the current data TLB (i64)."""
        return self.read_field("tlb")

    def miss(self) -> bool:
        """Called at the start of a block that is rarely reached: True if this ended it (a restart)."""
        return False

    def _swap(self, value: str, kind: str) -> str:
        if self.layout.architecture.byte_order == "little" or kind == "i8":
            return value
        self.declare(f"llvm.bswap.{kind}", f"declare {kind} @llvm.bswap.{kind}({kind})")
        return self.assign(f"call {kind} @llvm.bswap.{kind}({kind} {value})")

    def _inline_hits(self) -> bool:
        return True

    def op_load(self, op: ssa.Op) -> None:
        vaddr = self.wide(op.arguments[0])
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        hit, miss, done = self.new_label("hit"), self.new_label("miss"), self.new_label("done")
        ways: list[tuple[str, str]] = []
        if self._inline_hits():
            test, entry = self._lookup(vaddr, size, 0)
            self.branch(test, hit, miss, True)
            self.begin(hit)
            pointer = self._host(entry, vaddr)
            ways.append((self.assign(f"load atomic {kind}, ptr {pointer} monotonic, align {size}"), self.label))
            self.line(f"br label %{done}")
            self.begin(miss)
        if not self.miss():
            _, (slow,) = self.invoke(self.runtime("slow_load", kind=op.detail), [f"i64 {vaddr}"])
            if kind != "i64":
                slow = self.assign(f"trunc i64 {slow} to {kind}")
            ways.append((slow, self.label))
            self.line(f"br label %{done}")
        self.begin(done)
        value = self.assign(f"phi {kind} " + ", ".join(f"[ {v}, %{label} ]" for v, label in ways))
        self.alias(op.results[0], self._swap(value, kind))

    def op_store(self, op: ssa.Op) -> None:
        vaddr = self.wide(op.arguments[0])
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        value = self._swap(self.operand(op.arguments[1]), kind)
        hit, miss, done = self.new_label("hit"), self.new_label("miss"), self.new_label("done")
        if self._inline_hits():
            test, entry = self._lookup(vaddr, size, 8)
            self.branch(test, hit, miss, True)
            self.begin(hit)
            pointer = self._host(entry, vaddr)
            self.line(f"store atomic {kind} {value}, ptr {pointer} monotonic, align {size}")
            self.line(f"br label %{done}")
            self.begin(miss)
        if not self.miss():
            wide = value if kind == "i64" else self.assign(f"zext {kind} {value} to i64")
            self.invoke(self.runtime("slow_store", kind=op.detail), [f"i64 {vaddr}", f"i64 {wide}"])
            self.line(f"br label %{done}")
        self.begin(done)

    def _modify(self, op: ssa.Op, kind: str, size: int, change: Callable[[str], str]) -> None:
        """A read-modify-write: ``change(pointer)`` makes it and gives the old value."""
        vaddr = self.wide(op.arguments[0])
        hit, miss, done = self.new_label("hit"), self.new_label("miss"), self.new_label("done")
        ways: list[tuple[str, str]] = []
        if self._inline_hits():
            test, entry = self._lookup(vaddr, size, 8)
            self.branch(test, hit, miss, True)
            self.begin(hit)
            old = change(self._host(entry, vaddr))
            ways.append((old, self.label))
            self.line(f"br label %{done}")
            self.begin(miss)
        if not self.miss():
            _, (host, physical) = self.invoke(self.runtime("slow_address"), [f"i64 {vaddr}", f"i64 {size}"])
            old = change(self.assign(f"inttoptr i64 {host} to ptr"))
            self.invoke(self.runtime("phys_changed"), [f"i64 {physical}", f"i64 {size}"])
            ways.append((old, self.label))
            self.line(f"br label %{done}")
        self.begin(done)
        value = self.assign(f"phi {kind} " + ", ".join(f"[ {v}, %{label} ]" for v, label in ways))
        self.alias(op.results[0], value)

    def op_atomic(self, op: ssa.Op) -> None:
        operation, type_ = op.detail
        kind, size = llvm_type(type_), type_.bits // 8
        word = {"swap": "xchg", "minu": "umin", "maxu": "umax"}.get(operation, operation)
        value = self.operand(op.arguments[1])
        if self.layout.architecture.byte_order != "little" and kind != "i8":
            raise NotImplementedError("atomic operations on big-endian memory")
        self._modify(
            op, kind, size, lambda pointer: self.assign(f"atomicrmw {word} ptr {pointer}, {kind} {value} seq_cst")
        )

    def _exchange(self, kind: str, expected: str, new: str) -> Callable[[str], str]:
        def change(pointer: str) -> str:
            pair = self.assign(f"cmpxchg ptr {pointer}, {kind} {expected}, {kind} {new} seq_cst seq_cst")
            return self.assign(f"extractvalue {{ {kind}, i1 }} {pair}, 0")

        return change

    def op_compare_exchange(self, op: ssa.Op) -> None:
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        expected, new = (self._swap(self.operand(a), kind) for a in op.arguments[1:])
        self._modify(op, kind, size, self._exchange(kind, expected, new))

    # Physical memory

    def op_phys_load(self, op: ssa.Op) -> None:
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        _, (host,) = self.invoke(
            self.runtime("phys_host"), [self.typed(op.arguments[0]), f"i64 {size}"]
        )
        there, ram, done = self.assign(f"icmp ne i64 {host}, 0"), self.new_label("ram"), self.new_label("done")
        before = self.label
        self.branch(there, ram, done, True)
        self.begin(ram)
        pointer = self.assign(f"inttoptr i64 {host} to ptr")
        value = self._swap(self.assign(f"load atomic {kind}, ptr {pointer} monotonic, align {size}"), kind)
        self.line(f"br label %{done}")
        self.begin(done)
        self.define(op, f"phi {kind} [ 0, %{before} ], [ {value}, %{ram} ]")
        self.alias(op.results[1], there)

    def op_phys_compare_exchange(self, op: ssa.Op) -> None:
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        expected, new = (self._swap(self.operand(a), kind) for a in op.arguments[1:])
        _, (host,) = self.invoke(
            self.runtime("phys_host"), [self.typed(op.arguments[0]), f"i64 {size}"]
        )
        there, ram, done = self.assign(f"icmp ne i64 {host}, 0"), self.new_label("ram"), self.new_label("done")
        before = self.label
        self.branch(there, ram, done, True)
        self.begin(ram)
        old = self._swap(self._exchange(kind, expected, new)(self.assign(f"inttoptr i64 {host} to ptr")), kind)
        self.invoke(self.runtime("phys_changed"), [self.typed(op.arguments[0]), f"i64 {size}"])
        self.line(f"br label %{done}")
        self.begin(done)
        self.define(op, f"phi {kind} [ 0, %{before} ], [ {old}, %{ram} ]")
        self.alias(op.results[1], there)

    # The rest

    def op_fence(self, op: ssa.Op) -> None:
        self.line("fence seq_cst")

    def op_flush_tlb(self, op: ssa.Op) -> None:
        self.invoke(self.runtime("flush_tlb"), [])

    def op_flush_tlb_page(self, op: ssa.Op) -> None:
        self.invoke(self.runtime("flush_tlb_page"), [f"i64 {self.wide(op.arguments[0])}"])

    def op_flush_code(self, op: ssa.Op) -> None:
        """Nothing: writes to pages with decoded code are always noticed."""

    def op_clock(self, op: ssa.Op) -> None:
        _, (value,) = self.invoke(self.runtime("clock"), [])
        self.alias(op.results[0], value)

    def op_encoding(self, op: ssa.Op) -> None:
        _, (value,) = self.invoke(self.runtime("encoding"), [])
        self.alias(op.results[0], value)

    def op_instructions(self, op: ssa.Op) -> None:
        self.define(op, f"load i64, ptr {self.place('retired')}")

    def op_leave(self, op: ssa.Op) -> None:
        self.write_field("left", str(reason_number(op.detail)), "i32")

    def op_signal(self, op: ssa.Op) -> None:
        self.invoke(self.runtime("signal", member=op.detail), [self.typed(a) for a in op.arguments])

    def op_flush_others(self, op: ssa.Op) -> None:
        self.invoke(self.runtime("flush_others"), [self.typed(a) for a in op.arguments])

    def op_peek(self, op: ssa.Op) -> None:
        pointer = self.assign(f"inttoptr {self.typed(op.arguments[0])} to ptr")
        self.define(op, f"load {llvm_type(op.detail)}, ptr {pointer}, align 1")

    def op_poke(self, op: ssa.Op) -> None:
        pointer = self.assign(f"inttoptr {self.typed(op.arguments[0])} to ptr")
        # Guest stores may be misaligned within a page; plain stores do not reorder on the hosts we have, and the
        # compiler must not move them over the release fence that ends a publication.
        self.line(f"store volatile {self.typed(op.arguments[1])}, ptr {pointer}, align 1")

    def op_host_atomic(self, op: ssa.Op) -> None:
        pointer = self.assign(f"inttoptr {self.typed(op.arguments[0])} to ptr")
        word = {"swap": "xchg"}.get(op.detail, op.detail)
        self.define(op, f"atomicrmw {word} ptr {pointer}, {self.typed(op.arguments[1])} seq_cst")

    def op_host_call(self, op: ssa.Op) -> None:
        function = self.assign(f"inttoptr i64 {self.read_field(op.detail)} to ptr")
        kinds = ", ".join(["i64"] * len(op.arguments))
        arguments = ", ".join(self.typed(a) for a in op.arguments)
        self.define(op, f"call i64 ({kinds}) {function}({arguments})")

    def op_cpu_address(self, op: ssa.Op) -> None:
        self.define(op, "ptrtoint ptr %cpu to i64")


_CALLING = frozenset(
    "call phys_load phys_compare_exchange flush_tlb flush_tlb_page clock encoding host_call signal flush_others".split()
)
_CHANGING = frozenset(
    "set setreg store atomic compare_exchange poke host_atomic host_call leave fence flush_tlb flush_tlb_page "
    "phys_compare_exchange signal flush_others".split()
)


class HandlerEmitter(HelperEmitter):
    """An interpreter handler for one instruction: its ``fast`` or its slow variant.

    ``watched`` are the state members that contexts and polling depend on.
    """

    def __init__(
        self, function: ssa.Function, layout: Layout, runtime: Runtime, instruction: Instruction | None,
        watched: frozenset[str], symbol: str, fast: bool,
    ) -> None:
        super().__init__(function, layout, runtime)
        self.instruction = instruction
        self.watched = watched
        self.symbol = symbol
        self.fast = fast
        self._changed_at_entry = _changed_blocks(function)
        self._changed = False
        self.restarts = False
        effects = function.effects
        self._next_in_memory = any(
            op.opcode == "call" and not op.detail.effects.does.isdisjoint({"next_pc", "set_next_pc"})
            for op in function.ops()
        )
        self._jumps = "set_next_pc" in effects.does
        self._syncs = (
            not effects.writes.isdisjoint(watched)
            or not effects.does.isdisjoint({"leave", "flush_tlb", "flush_tlb_page", "flush_code"})
        )

    @staticmethod
    def worth_two(function: ssa.Function) -> bool:
        """Whether a fast variant makes sense: the straight way through needs no call."""
        first = function.blocks[0]
        return not any(op.opcode in _CALLING or op.opcode == "leave" for op in first.ops)

    def text(self) -> str:
        length = self.instruction.encoding.length if self.instruction else 0
        self.line("%recint = ptrtoint ptr %rec to i64")
        self.line(f"%recpc = lshr i64 %recint, {self.layout.shift}")
        self.line("%pc = add i64 %base, %recpc")
        self.line(f"%following = add i64 %pc, {length}")
        self.line("%next = alloca i64")
        self.line("%jumped = alloca i1")
        self.line("%sync = alloca i1")
        self.line("store i64 %following, ptr %next")
        self.line("store i1 false, ptr %jumped")
        self.line("store i1 false, ptr %sync")
        places = operand_layout(self.instruction)[0] if self.instruction else {"word": (0, 8)}
        names = list(self.instruction.types) if self.instruction else ["word"]
        for name, parameter in zip(names, self.function.parameters, strict=True):
            offset, size = places[name]
            place = self.assign(f"getelementptr i8, ptr %rec, i64 {8 + offset}")
            raw = self.assign(f"load i{8 * size}, ptr {place}")
            self.alias(parameter, self._extended(raw, 8 * size, parameter.type))
        if not self.fast:
            self._publish()
        self.line(f"br label %b{self.function.blocks[0].number}")
        body = self.body()
        return f'define preserve_nonecc void @"{self.symbol}"({HANDLER_ARGUMENTS}) nounwind {{\nentry:\n{body}}}\n'

    def _extended(self, raw: str, bits: int, kind: ssa.Type) -> str:
        want = int(llvm_type(kind)[1:])
        if want == bits:
            return raw
        if want < bits:
            return self.assign(f"trunc i{bits} {raw} to i{want}")
        word = "sext" if kind is not bool and kind.signed else "zext"
        return self.assign(f"{word} i{bits} {raw} to i{want}")

    def _publish(self) -> None:
        """Put into memory what helpers look at there."""
        self.write_field("pc", self._narrow("%pc"), self._pc_kind())
        self.write_field("retired", "%icount")
        if self._next_in_memory:
            self.write_field("next_pc", self.assign("load i64, ptr %next"))

    def _narrow(self, value: str) -> str:
        kind = self._pc_kind()
        return value if kind == "i64" else self.assign(f"trunc i64 {value} to {kind}")

    # Restarting

    def op(self, op: ssa.Op) -> None:
        """Write an operation; before a call, restart as the slow variant or make the state in memory current."""
        if op.opcode in _CALLING and self.fast:
            if not self._changed:
                # Not reached again in this block: what follows is dead code until the next label.
                self.restart()
                self.begin(self.new_label("dead"))
            else:
                self._publish()
        if op.opcode in ("set", "setreg") and op.detail in self.watched:
            self.line("store i1 true, ptr %sync")
        if op.opcode in ("flush_tlb", "flush_tlb_page", "flush_code", "leave"):
            self.line("store i1 true, ptr %sync")
        super().op(op)
        if op.opcode == "call":
            inner = op.detail.effects
            if self._next_in_memory:
                self.line(f"store i64 {self.read_field('next_pc')}, ptr %next")
                if "set_next_pc" in inner.does:
                    self.line("store i1 true, ptr %jumped")
            if not inner.writes.isdisjoint(self.watched) or "leave" in inner.does or "flush_tlb" in inner.does:
                self.line("store i1 true, ptr %sync")
            if inner.writes or not inner.does.isdisjoint(_CHANGING):
                self._changed = True
        elif op.opcode in _CHANGING:
            self._changed = True

    def begin_block(self, block: ssa.Block) -> None:
        self._changed = self._changed_at_entry[block.number]

    def restart(self) -> None:
        """Begin the instruction again as the slow variant."""
        self.restarts = True
        slow = f"{self.symbol}.slow"
        self.declare(slow, f'declare preserve_nonecc void @"{slow}"({HANDLER_ARGUMENTS})')
        self._tail(f'@"{slow}"', "%rec", "%icount", "%base")

    def _tail(self, function: str, record: str, icount: str, base: str, tlb: str = "%tlb") -> None:
        arguments = f"ptr {record}, ptr %cpu, i64 {tlb}, i64 {icount}, i64 {base}"
        self.line(f"musttail call preserve_nonecc void {function}({arguments})")
        self.line("ret void")

    def miss(self) -> bool:
        if not self.fast:
            return False
        if not self._changed:
            self.restart()
            return True
        self._publish()
        return False

    def tlb(self) -> str:
        return "%tlb"

    def _inline_hits(self) -> bool:
        return self.fast

    def leave_trapped(self) -> None:
        self.declare("trapped", f"declare preserve_nonecc void @trapped({HANDLER_ARGUMENTS})")
        self._tail("@trapped", "%rec", "%icount", "%base")

    def emit_raise(self, values: Sequence[ssa.Value]) -> None:
        """Restart where nothing was changed yet, else store the trap and have it delivered."""
        if self.fast and not self._changed:
            self.restart()
            return
        if self.fast:
            self._publish()
        self.store_trap(values)
        self.leave_trapped()

    # Program counter

    def op_pc(self, op: ssa.Op) -> None:
        kind = self._pc_kind()
        self.define(op, "add i64 %pc, 0" if kind == "i64" else f"trunc i64 %pc to {kind}")

    def op_next_pc(self, op: ssa.Op) -> None:
        wide = self.assign("load i64, ptr %next")
        kind = self._pc_kind()
        self.define(op, f"add i64 {wide}, 0" if kind == "i64" else f"trunc i64 {wide} to {kind}")

    def op_set_next_pc(self, op: ssa.Op) -> None:
        wide = self.wide(op.arguments[0])
        self.line(f"store i64 {wide}, ptr %next")
        self.line("store i1 true, ptr %jumped")
        if self._next_in_memory:
            self.write_field("next_pc", wide)

    def op_instructions(self, op: ssa.Op) -> None:
        self.define(op, "add i64 %icount, 0")

    # The end of the instruction

    def emit_return(self, values: Sequence[ssa.Value]) -> None:
        """Go on: by way of the dispatcher, at a jump target, or at the next record."""
        count = self.assign("add i64 %icount, 1")
        if self._syncs:
            sync, plain = self.new_label("sync"), self.new_label("plain")
            self.branch(self.assign("load i1, ptr %sync"), sync, plain)
            self.begin(sync)
            self._dispatch(self.assign("load i64, ptr %next"), count)
            self.begin(plain)
        if self._jumps:
            jump, straight = self.new_label("jump"), self.new_label("straight")
            self.branch(self.assign("load i1, ptr %jumped"), jump, straight)
            self.begin(jump)
            self._jump(self.assign("load i64, ptr %next"), count)
            self.begin(straight)
        length = self.instruction.encoding.length if self.instruction else self.layout.architecture.unit
        step = length // self.layout.architecture.unit * self.layout.record_size
        record = self.assign(f"getelementptr i8, ptr %rec, i64 {step}")
        self._go(record, count, "%base")

    def _go(self, record: str, count: str, base: str) -> None:
        handler = self.assign(f"load ptr, ptr {record}")
        self._tail(handler, record, count, base)

    def _dispatch(self, target: str, count: str) -> None:
        """Go on at ``target`` by way of the dispatcher, which looks at everything."""
        self.write_field("pc", self._narrow(target), self._pc_kind())
        self.declare("dispatch", f"declare preserve_nonecc void @dispatch({HANDLER_ARGUMENTS})")
        self._tail("@dispatch", "%rec", count, "%base")

    def _jump(self, target: str, count: str) -> None:
        """Go on at ``target``: in the same page, in a page the code TLB has, or by way of the dispatcher."""
        layout, bits = self.layout, self.layout.architecture.page_bits
        limit = self.read_field("limit")
        due, run = self.new_label("due"), self.new_label("run")
        self.branch(self.assign(f"icmp uge i64 {count}, {limit}"), due, run, False)
        self.begin(run)
        if "pc" in self.function.effects.does:
            far, near = self.new_label("far"), self.new_label("near")
            apart = self.assign(f"xor i64 {target}, %pc")
            self.branch(self.assign(f"icmp ult i64 {apart}, {1 << bits}"), near, far, True)
            self.begin(near)
            distance = self.assign(f"sub i64 {target}, %pc")
            offset = self.assign(f"shl i64 {distance}, {layout.shift}")
            self._go(self.assign(f"getelementptr i8, ptr %rec, i64 {offset}"), count, "%base")
            self.begin(far)
        tag = self.assign(f"and i64 {target}, {~((1 << bits) - 1)}")
        number = self.assign(f"lshr i64 {target}, {bits}")
        index = self.assign(f"and i64 {number}, {CODE_TLB_SIZE - 1}")
        offset = self.assign(f"mul i64 {index}, {CODE_TLB_ENTRY}")
        address = self.assign(f"add i64 {self.read_field('code_tlb')}, {offset}")
        entry = self.assign(f"inttoptr i64 {address} to ptr")
        hit = self.new_label("hit")
        found = self.assign(f"load i64, ptr {entry}")
        self.branch(self.assign(f"icmp eq i64 {found}, {tag}"), hit, due, True)
        self.begin(hit)
        place = self.assign(f"getelementptr i8, ptr {entry}, i64 8")
        slot = self.assign(f"load i64, ptr {place}")
        scaled = self.assign(f"lshr i64 {slot}, {layout.shift}")
        base = self.assign(f"sub i64 {tag}, {scaled}")
        inside = self.assign(f"and i64 {target}, {(1 << bits) - 1}")
        distance = self.assign(f"shl i64 {inside}, {layout.shift}")
        record = self.assign(f"add i64 {slot}, {distance}")
        self._go(self.assign(f"inttoptr i64 {record} to ptr"), count, base)
        self.begin(due)
        self._dispatch(target, count)


def _changed_blocks(function: ssa.Function) -> dict[int, bool]:
    """For each block, whether state or memory may have been changed on a way to it."""
    def changes(block: ssa.Block) -> bool:
        return any(
            op.opcode in _CHANGING
            or (op.opcode == "call" and bool(op.detail.effects.writes or op.detail.effects.does & _CHANGING))
            for op in block.ops
        )

    entry = {b.number: False for b in function.blocks}
    moving = True
    while moving:
        moving = False
        for block in function.blocks:
            if entry[block.number] or changes(block):
                for jump in block.jumps():
                    if not entry[jump.target.number]:
                        entry[jump.target.number] = moving = True
    return entry
