"""What hooks are in LLVM IR: functions that are always inlined where they are used, and those around them."""

from __future__ import annotations

from collections.abc import Iterable

from polyvisor.adl import ssa
from polyvisor.adl.llvm import METADATA, llvm_type

from ..handler_lowering import HANDLER_ARGUMENTS, HandlerEmitter
from ..layout import Layout
from ..lowering import HelperEmitter, Runtime, result_type


class _HookEmitter(HelperEmitter):
    """A hook's function, or one that it calls; what it stores is seen by others soon, and need not be at once."""

    def __init__(self, function: ssa.Function, layout: Layout, runtime: Runtime, inline: bool) -> None:
        super().__init__(function, layout, runtime)
        self._inline = inline

    def text(self) -> str:
        """The whole function, which no other module sees."""
        parameters = ["ptr %cpu", *(f"{llvm_type(p.type)} %v{p.number}" for p in self.function.parameters)]
        body = self.body()
        head = f'define internal {result_type(self.function)} @"{self.function.name}"({", ".join(parameters)})'
        inline = " alwaysinline" if self._inline else ""
        return f"{head}{inline} nounwind {{\nentry:\n  br label %b{self.function.blocks[0].number}\n{body}}}\n"

    def op_poke(self, op: ssa.Op) -> None:
        pointer = self.assign(f"inttoptr {self.typed(op.arguments[0])} to ptr")
        self.line(f"store {self.typed(op.arguments[1])}, ptr {pointer}")

    def op_peek(self, op: ssa.Op) -> None:
        pointer = self.assign(f"inttoptr {self.typed(op.arguments[0])} to ptr")
        self.define(op, f"load {llvm_type(op.detail)}, ptr {pointer}")


def hooks_text(functions: Iterable[ssa.Function], layout: Layout, runtime: Runtime) -> tuple[str, dict[str, str]]:
    """The text of hooks' functions with all they call, and the declarations they need."""
    done: dict[str, str] = {}
    declarations: dict[str, str] = {}
    todo = [(function, True) for function in sorted(functions, key=lambda f: f.name)]
    while todo:
        function, inline = todo.pop()
        if function.name not in done:
            emitter = _HookEmitter(function, layout, runtime, inline)
            done[function.name] = emitter.text()
            declarations |= emitter.declarations
            todo += [(callee, False) for callee in emitter.callees]
    outside = {symbol: text for symbol, text in declarations.items() if symbol not in done}
    return "\n".join(done.values()), outside


# What a record has in place of its instruction's handler where starts of instructions are hooked. It is the same for
# all hooks: ``hook_start`` runs them and goes on with the handler.
_THUNK = """
define preserve_nonecc void @"{name}"({arguments}) nounwind {{
  %index = getelementptr i8, ptr %cpu, i64 {hook_index}
  store i32 {index}, ptr %index
  %place = getelementptr i8, ptr %cpu, i64 {hook_start}
  %start = load ptr, ptr %place
  musttail call preserve_nonecc void %start(ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base)
  ret void
}}
"""


def thunk_name(index: int) -> str:
    """The symbol of the thunk for an instruction."""
    return f"thunk {index}"


def thunks_text(count: int, layout: Layout) -> str:
    """The module of thunks for that many instructions."""
    places = {name: layout.offset(name) for name in ("hook_index", "hook_start")}
    return "".join(
        _THUNK.format(name=thunk_name(index), arguments=HANDLER_ARGUMENTS, index=index, **places)
        for index in range(count)
    )


class _StartEmitter(HandlerEmitter):
    """The handler that runs what is hooked to the start of instructions."""

    def __init__(self, function: ssa.Function, layout: Layout, runtime: Runtime, symbol: str) -> None:
        super().__init__(function, layout, runtime, None, frozenset(), symbol, False)

    def text(self) -> str:
        """The whole function."""
        self.line("%recint = ptrtoint ptr %rec to i64")
        self.line(f"%recpc = lshr i64 %recint, {self.layout.shift}")
        self.line("%pc = add i64 %base, %recpc")
        if any(op.opcode == "hook_call" for op in self.function.ops()):
            self._publish()
        self.line(f"br label %b{self.function.blocks[0].number}")
        body = self.body()
        return f'define preserve_nonecc void @"{self.symbol}"({HANDLER_ARGUMENTS}) nounwind {{\nentry:\n{body}}}\n'

    def _obey(self) -> None:
        """A callback may ask to stop behind the access that it is told of, and there is none."""

    def emit_return(self, values: object) -> None:
        number = self.assign(f"zext i32 {self.read_field('hook_index', 'i32')} to i64")
        table = self.assign(f"inttoptr i64 {self.read_field('hook_table')} to ptr")
        handler = self.assign(f"load ptr, ptr {self.assign(f'getelementptr i64, ptr {table}, i64 {number}')}")
        self._tail(handler, "%rec", "%icount", "%base")


class _TrapEmitter(HelperEmitter):
    """A C function ``u64 name(block)`` that runs hooks."""

    def text(self) -> str:
        """The whole function."""
        body = self.body()
        head = f'define i64 @"{self.function.name}"(i64 %block) nounwind {{\nentry:\n'
        return f"{head}  %cpu = inttoptr i64 %block to ptr\n  br label %b{self.function.blocks[0].number}\n{body}}}\n"

    def emit_return(self, values: object) -> None:
        self.line("ret i64 0")


def events_text(
    start: tuple[ssa.Function, str] | None, traps: Iterable[ssa.Function], layout: Layout, runtime: Runtime
) -> str:
    """The module of what is called at the start of instructions (with its symbol), and at traps."""
    emitters: list[HelperEmitter] = [_TrapEmitter(function, layout, runtime) for function in traps]
    if start is not None:
        emitters.append(_StartEmitter(start[0], layout, runtime, start[1]))
    texts = [emitter.text() for emitter in emitters]
    hooks, declarations = hooks_text({f for e in emitters for f in e.hooks}, layout, runtime)
    for emitter in emitters:
        declarations |= emitter.declarations
    return "\n".join([*declarations.values(), *texts, hooks, METADATA])
