"""What operations on the CPU become in native code: in functions that handlers, regions and each other call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from polyvisor.adl import ssa
from polyvisor.adl.llvm import Emitter, llvm_type
from polyvisor.adl.types import u64

from .layout import TLB_ENTRY, TLB_SIZE, Layout, reason_number


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
        self.hooks: set[ssa.Function] = set()  # that the module must have: see `hooks.lowering`

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
        entry = self._entry_of(vaddr)
        return self._matches(entry, vaddr, size, column), entry

    def _entry_of(self, vaddr: str) -> str:
        """The address of the TLB's entry for an address (i64)."""
        tlb = self.tlb()
        number = self.assign(f"lshr i64 {vaddr}, {self.layout.architecture.page_bits}")
        index = self.assign(f"and i64 {number}, {TLB_SIZE - 1}")
        offset = self.assign(f"mul i64 {index}, {TLB_ENTRY}")
        return self.assign(f"add i64 {tlb}, {offset}")

    def _matches(self, entry: str, vaddr: str, size: int, column: int) -> str:
        """Whether an entry lets an address, aligned to ``size``, be accessed in the way of a column (i1)."""
        place = self.assign(f"add i64 {entry}, {column}") if column else entry
        pointer = self.assign(f"inttoptr i64 {place} to ptr")
        tag = self.assign(f"load i64, ptr {pointer}")
        masked = self.assign(f"and i64 {vaddr}, {self._page_mask(size)}")
        return self.assign(f"icmp eq i64 {masked}, {tag}")

    def _page_mask(self, size: int) -> int:
        """The bits of an address that are its page's, and those that are 0 where it is aligned to ``size``."""
        return ~(self.layout.page_size - 1) | (size - 1)

    def _addend(self, entry: str) -> str:
        """What to add to an address to get the host's (i64)."""
        place = self.assign(f"add i64 {entry}, 16")
        pointer = self.assign(f"inttoptr i64 {place} to ptr")
        return self.assign(f"load i64, ptr {pointer}")

    def _host(self, entry: str, vaddr: str) -> str:
        host = self.assign(f"add i64 {self._addend(entry)}, {vaddr}")
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

    def _physically(self, op: ssa.Op, kind: str, size: int, access: Callable[[str], str]) -> None:
        """Do ``access(pointer)`` where there is RAM; the results are its value, else 0, and whether there was any."""
        _, (host,) = self.invoke(
            self.runtime("phys_host"), [self.typed(op.arguments[0]), f"i64 {size}"]
        )
        there, ram, done = self.assign(f"icmp ne i64 {host}, 0"), self.new_label("ram"), self.new_label("done")
        before = self.label
        self.branch(there, ram, done, True)
        self.begin(ram)
        value = access(self.assign(f"inttoptr i64 {host} to ptr"))
        self.line(f"br label %{done}")
        self.begin(done)
        self.define(op, f"phi {kind} [ 0, %{before} ], [ {value}, %{ram} ]")
        self.alias(op.results[1], there)

    def op_phys_load(self, op: ssa.Op) -> None:
        kind, size = llvm_type(op.detail), op.detail.bits // 8

        def load(pointer: str) -> str:
            return self._swap(self.assign(f"load atomic {kind}, ptr {pointer} monotonic, align {size}"), kind)

        self._physically(op, kind, size, load)

    def op_phys_store(self, op: ssa.Op) -> None:
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        address, value = self.typed(op.arguments[0]), self._swap(self.operand(op.arguments[1]), llvm_type(op.detail))
        _, (host,) = self.invoke(self.runtime("phys_host"), [address, f"i64 {size}"])
        there, ram, done = self.assign(f"icmp ne i64 {host}, 0"), self.new_label("ram"), self.new_label("done")
        self.branch(there, ram, done, True)
        self.begin(ram)
        pointer = self.assign(f"inttoptr i64 {host} to ptr")
        self.line(f"store volatile {kind} {value}, ptr {pointer}, align 1")
        self.invoke(self.runtime("phys_changed"), [address, f"i64 {size}"])
        self.line(f"br label %{done}")
        self.begin(done)
        self.alias(op.results[0], there)

    # Time, of clocked architectures

    def op_cycle(self, op: ssa.Op) -> None:
        self.invoke(self.runtime("bus_cycle", access=op.detail), [f"i64 {self.wide(op.arguments[0])}"])

    def op_stall(self, op: ssa.Op) -> None:
        before, more = self.read_field("retired"), self.operand(op.arguments[0])
        self.write_field("retired", self.assign(f"add i64 {before}, {more}"))

    def op_cycles(self, op: ssa.Op) -> None:
        self.define(op, f"load i64, ptr {self.place('retired')}")

    def op_phys_compare_exchange(self, op: ssa.Op) -> None:
        kind, size = llvm_type(op.detail), op.detail.bits // 8
        expected, new = (self._swap(self.operand(a), kind) for a in op.arguments[1:])

        def exchange(pointer: str) -> str:
            old = self._swap(self._exchange(kind, expected, new)(pointer), kind)
            self.invoke(self.runtime("phys_changed"), [self.typed(op.arguments[0]), f"i64 {size}"])
            return old

        self._physically(op, kind, size, exchange)

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

    # Hooks

    def op_note(self, op: ssa.Op) -> None:
        """Nothing: it is for hooks."""

    def op_hook_before(self, op: ssa.Op) -> None:
        """Nothing: what follows can call Python."""

    def op_hook(self, op: ssa.Op) -> None:
        guard, *arguments = op.arguments
        function: ssa.Function = op.detail.function
        self.hooks.add(function)
        with self._if(self.operand(guard)):
            given = ", ".join(["ptr %cpu", *(self.typed(a) for a in arguments)])
            self.line(f'call void @"{function.name}"({given})')

    def op_hook_call(self, op: ssa.Op) -> None:
        guard, address, *arguments = op.arguments
        with self._if(self.operand(guard)):
            function = self.assign(f"inttoptr {self.typed(address)} to ptr")
            block = self.assign("ptrtoint ptr %cpu to i64")
            kinds = ", ".join(["i64"] * (len(arguments) + 1))
            given = ", ".join([f"i64 {block}", *(self.typed(a) for a in arguments)])
            self.assign(f"call i64 ({kinds}) {function}({given})")

    @contextmanager
    def _if(self, condition: str) -> Iterator[None]:
        """What is written meanwhile is executed only if the condition (an i1) holds."""
        if condition == "true":
            yield
            return
        then, after = self.new_label("then"), self.new_label("after")
        self.branch(condition, then, after)
        self.begin(then)
        yield
        self.line(f"br label %{after}")
        self.begin(after)

    def op_cpu_address(self, op: ssa.Op) -> None:
        self.define(op, "ptrtoint ptr %cpu to i64")
