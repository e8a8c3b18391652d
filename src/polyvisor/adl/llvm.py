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

# Division of 128-bit numbers would be a call into a compiler's library, which need not be there.
_DIVIDE_128 = """define internal i128 @"divide.128"(i128 %n, i128 %d) nounwind noinline {
entry:
  %either = or i128 %n, %d
  %high = lshr i128 %either, 64
  %small = icmp eq i128 %high, 0
  br i1 %small, label %short, label %long
short:
  %n64 = trunc i128 %n to i64
  %d64 = trunc i128 %d to i64
  %q64 = udiv i64 %n64, %d64
  %qshort = zext i64 %q64 to i128
  ret i128 %qshort
long:
  %zeros = call i128 @llvm.ctlz.i128(i128 %n, i1 false)
  %count = sub i128 128, %zeros
  br label %loop
loop:
  %i = phi i128 [ %count, %long ], [ %below, %next ]
  %q = phi i128 [ 0, %long ], [ %qnew, %next ]
  %r = phi i128 [ 0, %long ], [ %rnew, %next ]
  %end = icmp eq i128 %i, 0
  br i1 %end, label %done, label %next
next:
  %below = sub i128 %i, 1
  %moved = lshr i128 %n, %below
  %digit = and i128 %moved, 1
  %carry = icmp slt i128 %r, 0
  %double = shl i128 %r, 1
  %row = or i128 %double, %digit
  %enough = icmp uge i128 %row, %d
  %take = or i1 %carry, %enough
  %less = sub i128 %row, %d
  %rnew = select i1 %take, i128 %less, i128 %row
  %qdouble = shl i128 %q, 1
  %one = zext i1 %take to i128
  %qnew = or i128 %qdouble, %one
  br label %loop
done:
  ret i128 %q
}
"""


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
        elif code in ("div", "rem") and kind == "i128":
            self.divide_128(op)
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

    def divide_128(self, op: ssa.Op) -> None:
        self.declare("llvm.ctlz.i128", "declare i128 @llvm.ctlz.i128(i128, i1)")
        self.declare("divide.128", _DIVIDE_128)
        n, d = (self.operand(a) for a in op.arguments)
        magnitudes, signs = [n, d], []
        if _signed(op.arguments[0]):
            signs = [self.assign(f"ashr i128 {v}, 127") for v in (n, d)]
            flipped = [self.assign(f"xor i128 {v}, {sign}") for v, sign in zip((n, d), signs, strict=True)]
            magnitudes = [self.assign(f"sub i128 {v}, {sign}") for v, sign in zip(flipped, signs, strict=True)]
        a, b = magnitudes
        result = self.assign(f'call i128 @"divide.128"(i128 {a}, i128 {b})')
        if op.opcode == "rem":
            product = self.assign(f"mul i128 {result}, {b}")
            result = self.assign(f"sub i128 {a}, {product}")
        if signs:
            sign = signs[0] if op.opcode == "rem" else self.assign(f"xor i128 {signs[0]}, {signs[1]}")
            result = self.assign(f"sub i128 {self.assign(f'xor i128 {result}, {sign}')}, {sign}")
        self.define(op, f"add i128 {result}, 0")

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
