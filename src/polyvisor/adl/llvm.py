"""SSA to LLVM IR.

:class:`Emitter` writes one function as text.  What an operation on the CPU means depends on where the function
runs (a handler of the interpreter, a helper, a compiled region), so those operations are left to subclasses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from . import ssa
from .types import DescriptionError

_ARITHMETIC = {"add": "add", "sub": "sub", "mul": "mul", "and": "and", "or": "or", "xor": "xor", "shl": "shl"}
_PREDICATES = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
_COUNTS = {"popcount": "ctpop", "bswap": "bswap"}
_ZEROS = {"clz": "ctlz", "ctz": "cttz"}
_IEEE = {"ieee_add": "fadd", "ieee_sub": "fsub", "ieee_mul": "fmul", "ieee_div": "fdiv"}

# Metadata every module ends with: weights for branches that are nearly always, or nearly never, taken.
METADATA = '!0 = !{!"branch_weights", i32 2000, i32 1}\n!1 = !{!"branch_weights", i32 1, i32 2000}\n'


def llvm_type(type: ssa.Type) -> str:
    """The LLVM type of a value of ``type``."""
    return "i1" if type is bool else f"i{type.bits}"


def _signed(value: ssa.Value) -> bool:
    return value.type is not bool and value.type.signed


class Emitter:
    """Writes the body of one LLVM function from an SSA function.

    ``declarations`` collects the declarations that the text needs at module level, by symbol.
    """

    def __init__(self, function: ssa.Function) -> None:
        self.function = function
        self.declarations: dict[str, str] = {}
        self.lines: list[str] = []
        self.label = ""
        self._temporaries = 0
        self._phis: dict[int, list[tuple[str, list[ssa.Value]]]] = {}
        self._ends: dict[int, str] = {}

    # Text

    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def temporary(self) -> str:
        self._temporaries += 1
        return f"%t{self._temporaries}"

    def assign(self, text: str) -> str:
        """Add ``%t = text``; gives the new name."""
        name = self.temporary()
        self.line(f"{name} = {text}")
        return name

    def new_label(self, hint: str) -> str:
        self._temporaries += 1
        return f"{hint}{self._temporaries}"

    def begin(self, label: str) -> None:
        """Start an LLVM block."""
        self.lines.append(f"{label}:")
        self.label = label

    def operand(self, value: ssa.Value) -> str:
        if isinstance(value, ssa.Const):
            if value.type is bool:
                return "true" if value.value else "false"
            return str(value.value)
        return f"%v{value.number}"

    def typed(self, value: ssa.Value) -> str:
        return f"{llvm_type(value.type)} {self.operand(value)}"

    def branch(self, condition: str, then: str, otherwise: str, hint: bool | None = None) -> None:
        weights = "" if hint is None else ", !prof !0" if hint else ", !prof !1"
        self.line(f"br i1 {condition}, label %{then}, label %{otherwise}{weights}")

    def declare(self, symbol: str, declaration: str) -> str:
        self.declarations[symbol] = declaration
        return symbol

    # The function

    def body(self) -> str:
        """The text of all blocks; the caller has written the entry block up to a jump to ``b0``."""
        chunks: dict[int, list[str]] = {}
        outer, self.lines = self.lines, []
        for block in self.function.blocks:
            self.lines = []
            self.label = f"b{block.number}"
            self.begin_block(block)
            for op in block.ops:
                self.op(op)
            assert block.end is not None
            self.end(block.end)
            chunks[block.number] = self.lines
        text = list(outer)
        for block in self.function.blocks:
            text.append(f"b{block.number}:")
            for index, parameter in enumerate(block.parameters):
                ways = ", ".join(
                    f"[ {self.operand(values[index])}, %{label} ]" for label, values in self._phis.get(block.number, [])
                )
                text.append(f"  %v{parameter.number} = phi {llvm_type(parameter.type)} {ways}")
            text.extend(chunks[block.number])
        self.lines = outer
        return "\n".join(text) + "\n"

    def begin_block(self, block: ssa.Block) -> None:
        """Called before the operations of a block."""

    def jump(self, jump: ssa.Jump) -> str:
        """Note the edge from the current label; gives the target's label."""
        self._phis.setdefault(jump.target.number, []).append((self.label, jump.arguments))
        return f"b{jump.target.number}"

    def end(self, end: ssa.Terminator) -> None:
        match end:
            case ssa.Jump():
                self.line(f"br label %{self.jump(end)}")
            case ssa.Branch(condition=condition, then=then, otherwise=otherwise, hint=hint):
                self.branch(self.operand(condition), self.edge(then), self.edge(otherwise), hint)
            case ssa.Switch(value=value, cases=cases, default=default):
                kind = llvm_type(value.type)
                targets = " ".join(f"{kind} {number}, label %{self.jump(jump)}" for number, jump in cases)
                self.line(f"switch {self.typed(value)}, label %{self.jump(default)} [ {targets} ]")
            case ssa.Return(values=values):
                self.emit_return(values)
            case ssa.Raise(values=values):
                self.emit_raise(values)

    def edge(self, jump: ssa.Jump) -> str:
        return self.jump(jump)

    def op(self, op: ssa.Op) -> None:
        handler: Callable[[ssa.Op], None] | None = getattr(self, f"op_{op.opcode}", None)
        if handler is not None:
            handler(op)
        else:
            self.pure(op)

    def define(self, op: ssa.Op, text: str, index: int = 0) -> None:
        self.line(f"%v{op.results[index].number} = {text}")

    def pure(self, op: ssa.Op) -> None:
        """The operations that only compute."""
        code, args = op.opcode, op.arguments
        kind = llvm_type(args[0].type) if args else ""
        a = self.operand(args[0]) if args else ""
        b = self.operand(args[1]) if len(args) > 1 else ""
        if code in _ARITHMETIC:
            self.define(op, f"{_ARITHMETIC[code]} {kind} {a}, {b}")
        elif code == "shr":
            self.define(op, f"{'ashr' if _signed(args[0]) else 'lshr'} {kind} {a}, {b}")
        elif code in ("div", "rem"):
            self.define(op, f"{'s' if _signed(args[0]) else 'u'}{code} {kind} {a}, {b}")
        elif code in ("eq", "ne"):
            self.define(op, f"icmp {code} {kind} {a}, {b}")
        elif code in _PREDICATES:
            self.define(op, f"icmp {'s' if _signed(args[0]) else 'u'}{_PREDICATES[code]} {kind} {a}, {b}")
        elif code == "not":
            self.define(op, f"xor i1 {a}, true")
        elif code == "cast":
            self.define(op, self.cast(args[0], op.results[0].type))
        elif code == "select":
            self.define(op, f"select i1 {a}, {self.typed(args[1])}, {self.typed(args[2])}")
        elif code in _COUNTS or code in _ZEROS:
            name = f"llvm.{(_COUNTS | _ZEROS)[code]}.{kind}"
            extra = ", i1 false" if code in _ZEROS else ""
            self.declare(name, f"declare {kind} @{name}({kind}{', i1' if extra else ''})")
            if code == "bswap" and kind == "i8":
                self.define(op, f"add i8 {a}, 0")
            else:
                self.define(op, f"call {kind} @{name}({kind} {a}{extra})")
        elif code.startswith("ieee_"):
            self.ieee(op)
        elif code == "lookup":
            self.lookup(op)
        else:
            raise DescriptionError(f"{self.function.name}: operation {code} cannot be used here")

    def cast(self, value: ssa.Value, to: ssa.Type) -> str:
        source, target = llvm_type(value.type), llvm_type(to)
        have, want = int(source[1:]), int(target[1:])
        if have == want:
            return f"add {source} {self.operand(value)}, 0"
        word = "trunc" if have > want else "sext" if _signed(value) else "zext"
        return f"{word} {source} {self.operand(value)} to {target}"

    def ieee(self, op: ssa.Op) -> None:
        kind = "double" if llvm_type(op.arguments[0].type) == "i64" else "float"
        values = [self.assign(f"bitcast {self.typed(a)} to {kind}") for a in op.arguments]
        if op.opcode in _IEEE:
            result = self.assign(f"{_IEEE[op.opcode]} {kind} {values[0]}, {values[1]}")
        elif op.opcode == "ieee_convert":
            target = "double" if kind == "float" else "float"
            word = "fpext" if kind == "float" else "fptrunc"
            result = self.assign(f"{word} {kind} {values[0]} to {target}")
            kind = target
        else:
            name = f"llvm.{op.opcode[5:]}.{'f64' if kind == 'double' else 'f32'}"
            self.declare(name, f"declare {kind} @{name}({', '.join([kind] * len(values))})")
            result = self.assign(f"call {kind} @{name}({', '.join(f'{kind} {v}' for v in values)})")
        self.define(op, f"bitcast {kind} {result} to {llvm_type(op.results[0].type)}")

    def lookup(self, op: ssa.Op) -> None:
        # A chain of selects keeps compiled code free of references to data, so it can be loaded anywhere.
        kind, index = llvm_type(op.results[0].type), op.arguments[0]
        chosen = str(op.detail[-1])
        for number, entry in enumerate(op.detail[:-1]):
            test = self.assign(f"icmp eq {llvm_type(index.type)} {self.operand(index)}, {number}")
            chosen = self.assign(f"select i1 {test}, {kind} {entry}, {kind} {chosen}")
        self.define(op, f"add {kind} {chosen}, 0")

    # Left to subclasses

    def emit_return(self, values: Sequence[ssa.Value]) -> None:
        raise NotImplementedError

    def emit_raise(self, values: Sequence[ssa.Value]) -> None:
        raise NotImplementedError
