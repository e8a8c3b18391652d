"""From a described function's syntax tree to SSA, by evaluating it abstractly.

Whatever is known when a function is compiled (constants, types, formats, tables) is an ordinary Python object and
is computed by Python itself; whatever is not is an :class:`~polyvisor.adl.ssa.Value`.  So an ``if`` on a known
condition leaves one branch, and a ``for`` over a known range is unrolled, with no further rules.
"""

from __future__ import annotations

import ast
import builtins as python_builtins
import contextlib
import hashlib
import linecache
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import CodeType
from typing import Any

from polyvisor.dataclass import names_of

from . import builtins, host, ssa
from .architecture import Architecture
from .functions import Function, Table, Trap
from .outside import Outside, Prebuilt
from .primitives import PRIMITIVES, call_primitive
from .state import Field, Registers
from .types import DescriptionError, Int, integer_type, u32, u64


class CpuMarker:
    """Stands for ``cpu`` while a function is compiled."""

    def __repr__(self) -> str:
        return "cpu"


CPU = CpuMarker()


class _Reference:
    """``cpu.name`` where that is not a value: registers or a primitive."""

    def __init__(self, name: str) -> None:
        self.name = name


class _RegistersReference(_Reference):
    pass


class _PrimitiveReference(_Reference):
    pass


class _TableEntry:
    """``TABLE[number]`` for a number known only at run time."""

    def __init__(self, table: Table, number: ssa.Value) -> None:
        self.table = table
        self.number = number


_UNDEFINED = object()

_BINARY: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("sub", operator.sub),
    ast.Mult: ("mul", operator.mul),
    ast.BitAnd: ("and", operator.and_),
    ast.BitOr: ("or", operator.or_),
    ast.BitXor: ("xor", operator.xor),
    ast.LShift: ("shl", operator.lshift),
    ast.RShift: ("shr", operator.rshift),
    ast.FloorDiv: ("div", operator.floordiv),
    ast.Mod: ("rem", operator.mod),
}

_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Eq: ("eq", operator.eq),
    ast.NotEq: ("ne", operator.ne),
    ast.Lt: ("lt", operator.lt),
    ast.LtE: ("le", operator.le),
    ast.Gt: ("gt", operator.gt),
    ast.GtE: ("ge", operator.ge),
}

_NOT_ALLOWED = (
    "allowed are assignments, if, while, for over constants, return, raise Trap(...), break, continue and pass"
)

Environment = dict[str, Any]


class _Join:
    """Where control flow meets: collects the ways in, then makes a block with parameters for what differs."""

    def __init__(self) -> None:
        self.ways: list[tuple[ssa.Block, Environment]] = []

    def add(self, block: ssa.Block | None, environment: Environment) -> None:
        if block is not None:
            self.ways.append((block, dict(environment)))


class Compiler:
    """Compiles the functions of one architecture to SSA; each combination of constants once.

    ``members`` are the state members that described functions may name, by name.
    """

    def __init__(self, architecture: Architecture, members: Mapping[str, Field | Registers]) -> None:
        self.architecture = architecture
        self.members = members
        self._functions: dict[Any, ssa.Function] = {}
        self._names: set[str] = set()
        self._active: list[Function] = []

    def function(self, function: Function, constants: Mapping[str, Any] | None = None) -> ssa.Function:
        """Compile ``function``; ``constants`` are its parameters without annotation (``cpu`` may be left out)."""
        given = {"cpu": CPU, **(constants or {})}
        known = {p: given[p] for p in function.parameters if p in given}
        key = (function, tuple((n, _key(v)) for n, v in known.items()))
        if key not in self._functions:
            parameters = {p: function.hints[p] for p in function.parameters if p not in known}
            with self.calling(function):
                self._functions[key] = self._compile(function, known, parameters, self._name(function, known))
        return self._functions[key]

    @contextlib.contextmanager
    def calling(self, function: Function) -> Iterator[None]:
        """While a function's body is compiled: it must not be reached again."""
        if function in self._active:
            raise DescriptionError(f"{function.name} calls itself; recursion is not allowed")
        self._active.append(function)
        try:
            yield
        finally:
            self._active.pop()

    def body(self, builder: Builder, function: Function, environment: Environment) -> None:
        """Write the body of a function without results where a builder stands; ``environment``: its parameters."""
        with self.calling(function):
            _Frame(builder, function, environment).run(())

    def instruction(self, function: Function, types: Mapping[str, type[Int]], name: str) -> ssa.Function:
        """Compile an instruction's function, with all its operands as run-time values."""
        return self._compile(function, {function.parameters[0]: CPU}, types, name)

    def expression(self, text: str, types: Mapping[str, type[Int]], name: str) -> ssa.Function:
        """Compile a condition over operands (an encoding's ``where``) to a function that gives a bool."""
        builder = Builder(self)
        environment: Environment = {n: builder.parameter(t) for n, t in types.items()}
        frame = _Frame(builder, None, environment)
        result = frame.condition(frame.expression(ast.parse(text, mode="eval").body))
        builder.end(ssa.Return((builder.value(result, bool),)))
        return builder.finish(name, (bool,))

    def _name(self, function: Function, known: Mapping[str, Any]) -> str:
        """A name that is the same in every process, so that compiled code can be kept and linked by name."""
        code = function.python.__code__
        nonlocals = _stable(_nonlocals(function.python))
        text = f"{function.python.__module__} {code.co_firstlineno} {nonlocals} {_stable(dict(known))}"
        name = f"{function.name}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        if name in self._names:
            raise DescriptionError(
                f"{function.name} is compiled twice for constants that look the same: {_stable(dict(known))}; give "
                "their class a name, or make it a dataclass"
            )
        self._names.add(name)
        return name

    def _compile(
        self, function: Function, known: Mapping[str, Any], parameters: Mapping[str, Any], name: str
    ) -> ssa.Function:
        for parameter, kind in parameters.items():
            if not _is_type(kind):
                raise DescriptionError(f"{function.name}: parameter {parameter} needs an integer type or bool")
        builder = Builder(self)
        environment: Environment = dict(known)
        for parameter, kind in parameters.items():
            environment[parameter] = builder.parameter(kind)
        results = _result_types(function)
        frame = _Frame(builder, function, environment)
        value = frame.run(results)
        if builder.block is not None:
            values = value if isinstance(value, tuple) else () if value is None else (value,)
            builder.end(ssa.Return(tuple(builder.value(v, t) for v, t in zip(values, results, strict=True))))
        return builder.finish(name, results)


def _key(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return (type(value), value)


def _stable(value: Any) -> str:
    """A text for a constant that is the same in every process."""
    match value:
        case dict():
            return "{" + ",".join(f"{k}:{_stable(v)}" for k, v in value.items()) + "}"
        case tuple() | list():
            return "(" + ",".join(map(_stable, value)) + ")"
        case Function():
            return f"{value.python.__module__}.{value.name}"
        case int() | str() | None:
            return repr(value)
        case type():
            return value.__name__
    names = names_of(value, compared=True)
    if names is not None and not isinstance(getattr(value, "name", None), str):
        return f"{type(value).__name__}{_stable({name: getattr(value, name) for name in names})}"
    return f"{type(value).__name__} {getattr(value, 'name', '')}"


def _is_type(kind: Any) -> bool:
    return isinstance(kind, type) and (kind is bool or issubclass(kind, Int))


def _result_types(function: Function) -> tuple[ssa.Type, ...]:
    hint = function.hints.get("return", type(None))
    if hint is type(None):
        return ()
    kinds = getattr(hint, "__args__", ()) if getattr(hint, "__origin__", None) is tuple else (hint,)
    if not all(_is_type(k) for k in kinds):
        raise DescriptionError(f"{function.name}: a result is an integer type, bool, or a tuple of these")
    return tuple(kinds)


class Builder:
    """Makes blocks and operations, folding constants."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self.blocks: list[ssa.Block] = []
        self._numbers = 0
        self.block: ssa.Block | None = self.new_block()
        self.parameters: list[ssa.Value] = []

    def new_block(self) -> ssa.Block:
        """An empty block, not yet entered."""
        block = ssa.Block(len(self.blocks))
        self.blocks.append(block)
        return block

    def _new(self, type: ssa.Type) -> ssa.Value:
        self._numbers += 1
        return ssa.Value(type, self._numbers - 1)

    def nowhere(self, type: ssa.Type) -> ssa.Value:
        """A value in code that is never reached."""
        return self._new(type)

    def parameter(self, type: ssa.Type) -> ssa.Value:
        """A new parameter of the function."""
        value = self._new(type)
        self.parameters.append(value)
        return value

    def block_parameter(self, block: ssa.Block, type: ssa.Type) -> ssa.Value:
        """A new parameter of ``block``: its jumps pass a value for it."""
        value = self._new(type)
        block.parameters.append(value)
        return value

    def emit(
        self, opcode: str, arguments: Sequence[ssa.Value] = (), types: Sequence[ssa.Type] = (), detail: Any = None,
        catch: bool = False,
    ) -> tuple[ssa.Value, ...]:
        """Add an operation where the builder stands; gives its results. In unreachable code nothing is added."""
        results = tuple(self._new(t) for t in types)
        if self.block is not None:
            self.block.ops.append(ssa.Op(opcode, tuple(arguments), results, detail, catch))
        return results

    def one(self, opcode: str, arguments: Sequence[ssa.Value], type: ssa.Type, detail: Any = None) -> ssa.Value:
        """Add an operation that has one result."""
        return self.emit(opcode, arguments, (type,), detail)[0]

    def end(self, terminator: ssa.Terminator) -> None:
        """End the current block; what is emitted before another is entered goes nowhere."""
        if self.block is not None:
            self.block.end = terminator
        self.block = None

    def value(self, known_or_value: Any, type: ssa.Type | None = None, what: str = "the value") -> ssa.Value:
        """A run-time value of ``type`` (any, if None) for what may be a constant."""
        v = known_or_value
        if isinstance(v, ssa.Value):
            if type is not None and v.type is not type:
                raise DescriptionError(f"{what} needs type {type.__name__}, not {v.type.__name__}; convert it")
            return v
        if isinstance(v, bool):
            if type not in (None, bool):
                raise DescriptionError(f"{what} needs type {type.__name__}, not bool; convert it")
            return ssa.Const(bool, v)
        if isinstance(v, Int):
            if type not in (None, v.__class__):
                raise DescriptionError(f"{what} needs type {type.__name__}, not {v.__class__.__name__}; convert it")
            return ssa.Const(v.__class__, int(v))
        if isinstance(v, int):
            if type is None or type is bool:
                raise DescriptionError(f"the number {v} needs a type here, for example u64({v})")
            if not type.fits(v):
                raise DescriptionError(f"{v} does not fit {what}, of type {type.__name__}; convert it on purpose")
            return ssa.Const(type, v)
        raise DescriptionError(f"{what} is a number, not {v!r}")

    def join(self, join: _Join, names: Iterable[str] | None = None) -> Environment:
        """Continue in a new block where the ways of ``join`` meet; gives the environment there."""
        if not join.ways:
            self.block = None
            return {}
        if len(join.ways) == 1:
            self.block = join.ways[0][0]
            return join.ways[0][1]
        block = self.new_block()
        merged: Environment = {}
        arguments: list[list[ssa.Value]] = [[] for _ in join.ways]
        every = list(names) if names is not None else list(dict.fromkeys(n for _, e in join.ways for n in e))
        for name in every:
            values = [e.get(name, _UNDEFINED) for _, e in join.ways]
            merged[name] = self._merge(name, values, block, arguments)
        for (way, _), passed in zip(join.ways, arguments, strict=True):
            way.end = ssa.Jump(block, passed)
        self.block = block
        return merged

    def _merge(self, name: str, values: list[Any], block: ssa.Block, arguments: list[list[ssa.Value]]) -> Any:
        first = values[0]
        if all(v is first or (not isinstance(v, ssa.Value) and _identical(v, first)) for v in values):
            return first
        if any(v is _UNDEFINED for v in values):
            return _UNDEFINED
        if isinstance(first, tuple):
            if not all(isinstance(v, tuple) and len(v) == len(first) for v in values):
                raise DescriptionError(f"{name} is a tuple on one way and something else on another")
            return tuple(
                self._merge(f"{name}[{i}]", [v[i] for v in values], block, arguments) for i in range(len(first))
            )
        kinds = {v.type if isinstance(v, ssa.Value) else type(v) for v in values}
        if int in kinds and len(kinds) == 2:
            number = next(v for v in values if type(v) is int)
            raise DescriptionError(
                f"{name} is a plain number on one way and has a type on another; give it the type everywhere, "
                f"for example u64({number})"
            )
        kinds.discard(int)
        if len(kinds) != 1 or not _is_type(kind := kinds.pop()):
            if all(type(v) is int for v in values):
                raise DescriptionError(f"{name} gets different plain numbers; give it a type, for example u64({first})")
            shown = ", ".join(
                sorted({v.type.__name__ if isinstance(v, ssa.Value) else type(v).__name__ for v in values})
            )
            raise DescriptionError(f"{name} has different types on different ways ({shown}); convert it")
        passed = [self.value(v, kind, name) for v in values]
        parameter = self.block_parameter(block, kind)
        for row, value in zip(arguments, passed, strict=True):
            row.append(value)
        return parameter

    def finish(self, name: str, results: tuple[ssa.Type, ...]) -> ssa.Function:
        """The function made of the blocks that can be reached."""
        reachable: list[ssa.Block] = []
        todo = [self.blocks[0]]
        seen: set[int] = set()
        while todo:
            block = todo.pop()
            if block.number in seen:
                continue
            seen.add(block.number)
            reachable.append(block)
            todo.extend(j.target for j in block.jumps())
        reachable.sort(key=lambda b: b.number)
        for block in reachable:
            assert block.end is not None, f"{name}: open block"
        return ssa.Function(name, self.parameters, results, reachable)


def _identical(a: Any, b: Any) -> bool:
    if a is _UNDEFINED or b is _UNDEFINED or type(a) is not type(b):
        return a is b
    if isinstance(a, tuple):
        return len(a) == len(b) and all(_identical(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, ssa.Value):
        return False
    try:
        return bool(a == b)
    except DescriptionError:
        return False


@cache
def _definitions(file: str, source: str) -> dict[int, ast.FunctionDef]:
    """All functions of a file, by their first lines, which may be those of decorators."""
    # A whole file at once: to find where a single function ends takes longer.
    return {
        min([node.lineno, *(each.lineno for each in node.decorator_list)]): node
        for node in ast.walk(ast.parse(source, file)) if isinstance(node, ast.FunctionDef)
    }


_known: dict[CodeType, ast.FunctionDef] = {}


def _definition(python: Callable[..., Any]) -> ast.FunctionDef:
    """The function's syntax tree."""
    code = python.__code__
    if code not in _known:
        linecache.checkcache(code.co_filename)
        source = "".join(linecache.getlines(code.co_filename, python.__globals__))
        found = _definitions(code.co_filename, source).get(code.co_firstlineno)
        if found is None or found.name != code.co_name:
            where = f"{code.co_filename}:{code.co_firstlineno}"
            raise DescriptionError(f"{where}: a described function is made with def, in a file that can be read")
        _known[code] = found
    return _known[code]


def _nonlocals(python: Callable[..., Any]) -> dict[str, Any]:
    """What a function sees of those around it."""
    cells = getattr(python, "__closure__", None) or ()
    return {name: cell.cell_contents for name, cell in zip(python.__code__.co_freevars, cells, strict=True)}


class _Frame:
    """The evaluation of one function's body; calls inlined into it get frames of their own."""

    def __init__(self, builder: Builder, function: Function | None, environment: Environment) -> None:
        self.builder = builder
        self.environment = environment
        self.function = function
        self.globals: dict[str, Any] = {}
        self.file = "<expression>"
        if function is not None:
            self.definition, self.file = _definition(function.python), function.python.__code__.co_filename
            self.globals = {**function.python.__globals__, **_nonlocals(function.python)}
        self.returns = _Join()
        self.results: tuple[ssa.Type, ...] | None = ()
        self.loops: list[tuple[_Join, _Join]] = []  # continue, break

    # Statements

    def run(self, results: tuple[ssa.Type, ...] | None) -> Any:
        """Evaluate the body; gives the returned value, and leaves the builder where all returns meet.

        ``results`` are the types of the values; None takes whatever is returned.
        """
        self.results = results
        self.statements(self.definition.body)
        if self.builder.block is not None:
            if results:
                self.fail(self.definition, "the end of the function is reached without a return")
            self.returns.add(self.builder.block, {"return": None})
        merged = self.builder.join(self.returns, ["return"])
        return merged.get("return")

    def fail(self, node: ast.AST, message: str) -> Any:
        line = getattr(node, "lineno", 1)
        text = linecache.getline(self.file, line).strip()
        name = self.function.name if self.function else ""
        raise DescriptionError(f"{self.file}:{line}: in {name}: {message}\n    {text}")

    def statements(self, body: Sequence[ast.stmt]) -> None:
        for statement in body:
            if self.builder.block is None:
                return
            try:
                self.statement(statement)
            except DescriptionError as error:
                if "\n    " in str(error):
                    raise
                self.fail(statement, str(error))
            except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
                self.fail(statement, f"{type(error).__name__}: {error}")

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign(targets=[target], value=value):
                self.assign(target, self.expression(value))
            case ast.AnnAssign(target=target, value=value, annotation=annotation) if value is not None:
                kind = self.expression(annotation)
                self.assign(target, self.builder.value(self.expression(value), kind, ast.unparse(target)))
            case ast.AugAssign(target=target, op=op, value=value):
                old = self.expression(_as_load(target))
                self.assign(target, self.binary(op, old, self.expression(value)))
            case ast.Expr(value=ast.Constant()):
                pass
            case ast.Expr(value=value):
                self.expression(value)
            case ast.Pass():
                pass
            case ast.If():
                self.if_statement(node)
            case ast.While(orelse=[]):
                self.while_statement(node)
            case ast.For(orelse=[]):
                self.for_statement(node)
            case ast.Return(value=value):
                result = None if value is None else self.expression(value)
                self.return_value(result)
            case ast.Raise(exc=ast.Call(func=func, args=args)) if self.expression(func) is Trap:
                values = [self.expression(a) for a in args]
                self.builder.end(ssa.Raise(tuple(self.trap_value(v) for v in values)))
            case ast.Break() | ast.Continue():
                if not self.loops:
                    self.fail(node, "break and continue belong in a while loop that is not unrolled")
                self.loops[-1][isinstance(node, ast.Break)].add(self.builder.block, self.environment)
                self.builder.block = None
            case _:
                self.fail(node, f"{type(node).__name__.lower()} is not part of the language; {_NOT_ALLOWED}")

    def trap_value(self, value: Any) -> ssa.Value:
        if isinstance(value, ssa.Value):
            return self.cast(u64, value)
        return ssa.Const(u64, int(value))

    def return_value(self, result: Any) -> None:
        if self.results is None:
            self.returns.add(self.builder.block, {"return": result})
            self.builder.block = None
            return
        values = result if isinstance(result, tuple) else () if result is None else (result,)
        if len(values) != len(self.results):
            raise DescriptionError(f"{len(values)} values returned; the annotation says {len(self.results)}")
        typed = tuple(self.typed(v, t, "the result") for v, t in zip(values, self.results, strict=True))
        self.returns.add(
            self.builder.block, {"return": typed if isinstance(result, tuple) else typed[0] if typed else None}
        )
        self.builder.block = None

    def typed(self, value: Any, kind: ssa.Type, what: str) -> Any:
        """``value`` with a type: constants stay constants."""
        made = self.builder.value(value, kind, what)
        return kind(made.value) if isinstance(made, ssa.Const) else made

    def assign(self, target: ast.expr, value: Any) -> None:
        match target:
            case ast.Name(id=name):
                self.environment[name] = value
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                if not isinstance(value, tuple | list) or len(value) != len(targets):
                    raise DescriptionError(f"{len(targets)} names on the left need a tuple of as many values")
                for one, v in zip(targets, value, strict=True):
                    self.assign(one, v)
            case ast.Attribute(value=base, attr=name):
                holder = self.expression(base)
                if isinstance(holder, Outside):
                    holder.set(self.builder, name, value)
                    return
                if holder is not CPU:
                    raise DescriptionError(f"only the CPU's state can be changed, not {ast.unparse(target)}")
                self.set_member(name, value)
            case ast.Subscript(value=base, slice=index):
                registers = self.expression(base)
                if isinstance(registers, Outside):
                    registers.set_item(self.builder, self.expression(index), value)
                    return
                if not isinstance(registers, _RegistersReference):
                    raise DescriptionError(f"only registers of the CPU can be assigned to, not {ast.unparse(target)}")
                member = self.builder.compiler.members[registers.name]
                position = self.index(self.expression(index), member)
                given = self.builder.value(value, member.type, ast.unparse(target))
                self.builder.emit("setreg", (position, given), (), registers.name)
            case _:
                raise DescriptionError(f"cannot assign to {ast.unparse(target)}")

    def set_member(self, name: str, value: Any) -> None:
        members = self.builder.compiler.members
        if name == "next_pc":
            self.builder.emit("set_next_pc", (self.builder.value(value, members["pc"].type, "next_pc"),))
        elif name == "pc" and self.function is not None and not self.function.engine:
            raise DescriptionError("pc is the address of this instruction; to jump, write cpu.next_pc")
        elif isinstance(member := members.get(name), Field):
            self.builder.emit("set", (self.builder.value(value, member.type, f"cpu.{name}"),), (), name)
        elif member is not None:
            raise DescriptionError(f"cpu.{name} has several registers; assign to cpu.{name}[i]")
        else:
            raise DescriptionError(f"the state has no member {name!r}")

    def index(self, value: Any, member: Any) -> ssa.Value:
        if not isinstance(value, ssa.Value):
            if not 0 <= int(value) < member.count:
                raise DescriptionError(f"{member.name} has {member.count} registers; there is no number {int(value)}")
            return ssa.Const(u32, int(value))
        if value.type is bool or value.type.signed:
            raise DescriptionError("an index is an unsigned integer")
        return value

    def condition(self, value: Any) -> Any:
        if isinstance(value, bool) or (isinstance(value, ssa.Value) and value.type is bool):
            return value
        if not isinstance(value, ssa.Value) and not isinstance(value, Int):
            return bool(value)
        raise DescriptionError("a condition is a bool; compare the number with something, for example x != 0")

    def if_statement(self, node: ast.If) -> None:
        test = self.condition(self.expression(node.test))
        if not isinstance(test, ssa.Value):
            self.statements(node.body if test else node.orelse)
            return
        join = _Join()
        then, otherwise = self.fork(test, self.hint(node.test))
        before = dict(self.environment)
        self.builder.block = then
        self.statements(node.body)
        join.add(self.builder.block, self.environment)
        self.builder.block, self.environment = otherwise, before
        self.statements(node.orelse)
        join.add(self.builder.block, self.environment)
        self.environment = self.builder.join(join)

    def hint(self, test: ast.expr) -> bool | None:
        if isinstance(test, ast.Call) and isinstance(test.func, ast.Name):
            found = self.environment.get(test.func.id, self.globals.get(test.func.id))
            return True if found is builtins.likely else False if found is builtins.unlikely else None
        return None

    def fork(self, test: ssa.Value, hint: bool | None = None) -> tuple[ssa.Block, ssa.Block]:
        then, otherwise = self.builder.new_block(), self.builder.new_block()
        self.builder.end(ssa.Branch(test, ssa.Jump(then, []), ssa.Jump(otherwise, []), hint))
        return then, otherwise

    def while_statement(self, node: ast.While) -> None:
        builder = self.builder
        header = builder.new_block()
        changed = _assigned(node.body)
        arguments: list[ssa.Value] = []
        carried: list[str] = []
        for name in sorted(changed):
            value = self.environment.get(name, _UNDEFINED)
            if value is _UNDEFINED:
                continue
            if isinstance(value, tuple) or not isinstance(value, ssa.Value | Int | bool):
                raise DescriptionError(f"{name} changes in this loop; give it a type before, for example u64({value})")
            given = builder.value(value, None, name)
            carried.append(name)
            arguments.append(given)
            self.environment[name] = builder.block_parameter(header, given.type)
        kinds = [p.type for p in header.parameters]
        builder.end(ssa.Jump(header, arguments))
        builder.block = header
        test = self.condition(self.expression(node.test))
        again, leave = _Join(), _Join()
        if isinstance(test, ssa.Value):
            body, after = self.fork(test)
            leave.add(after, self.environment)
            builder.block = body
        elif not test:
            leave.add(builder.block, self.environment)
            builder.block = None
        self.loops.append((again, leave))
        self.statements(node.body)
        self.loops.pop()
        again.add(builder.block, self.environment)
        for block, environment in again.ways:
            passed = [builder.value(environment[n], k, n) for n, k in zip(carried, kinds, strict=True)]
            block.end = ssa.Jump(header, passed)
        self.environment = builder.join(leave)

    def for_statement(self, node: ast.For) -> None:
        items = self.expression(node.iter)
        if isinstance(items, ssa.Value | _Reference):
            raise DescriptionError("for runs over a constant range or tuple; use while for a loop at run time")
        if any(isinstance(n, ast.Break | ast.Continue) for s in node.body for n in ast.walk(s)):
            raise DescriptionError("break and continue are allowed in while loops only; for is unrolled")
        for item in items:
            if self.builder.block is None:
                return
            self.assign(node.target, item)
            self.statements(node.body)

    # Expressions

    def expression(self, node: ast.expr) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return self.name(name)
            case ast.BinOp(left=left, op=op, right=right):
                return self.binary(op, self.expression(left), self.expression(right))
            case ast.UnaryOp(op=op, operand=operand):
                return self.unary(op, self.expression(operand))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                return self.compare(left, ops, rights)
            case ast.BoolOp(op=op, values=values):
                return self.boolean(isinstance(op, ast.And), values)
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.if_expression(test, body, orelse)
            case ast.Attribute(value=base, attr=name):
                return self.attribute(self.expression(base), name)
            case ast.Subscript(value=base, slice=index):
                return self.subscript(self.expression(base), self.expression(index))
            case ast.Call():
                return self.call(node)
            case ast.Slice(lower=lower, upper=upper, step=None):
                return slice(*(None if e is None else self.expression(e) for e in (lower, upper)))
            case ast.Tuple(elts=items):
                return tuple(self.expression(i) for i in items)
        raise DescriptionError(f"{ast.unparse(node)}: {type(node).__name__} is not part of the language")

    def name(self, name: str) -> Any:
        value = self.environment.get(name, self.globals.get(name, getattr(python_builtins, name, _UNDEFINED)))
        if value is _UNDEFINED:
            raise DescriptionError(f"{name} is not defined here (on every way that leads here)")
        return value

    def binary(self, op: ast.operator, a: Any, b: Any) -> Any:
        if isinstance(op, ast.Pow) and not isinstance(a, ssa.Value) and not isinstance(b, ssa.Value):
            return a**b
        if type(op) not in _BINARY:
            raise DescriptionError(f"operator {type(op).__name__} is not part of the language")
        opcode, compute = _BINARY[type(op)]
        if not isinstance(a, ssa.Value) and not isinstance(b, ssa.Value):
            return compute(a, b)
        if opcode in ("shl", "shr"):
            left = self.builder.value(a, None, "the shifted value")
            return self.builder.one(opcode, (left, self.shift_amount(left.type, b)), left.type)
        kind = a.type if isinstance(a, ssa.Value) else b.type
        if kind is bool and opcode not in ("and", "or", "xor"):
            raise DescriptionError("arithmetic on a bool; convert it first, for example u64(flag)")
        left, right = self.builder.value(a, kind, "the left operand"), self.builder.value(b, kind, "the right operand")
        return self.builder.one(opcode, (left, right), kind)

    def shift_amount(self, kind: Any, amount: Any) -> ssa.Value:
        if isinstance(amount, ssa.Value):
            if amount.type is bool or amount.type.signed:
                raise DescriptionError("a shift amount is an unsigned integer")
            return self.cast(kind, amount)
        if kind is bool:
            raise DescriptionError("a bool cannot be shifted; convert it first")
        if not 0 <= int(amount) < kind.bits:
            raise DescriptionError(f"shift of {kind.__name__} by {int(amount)}")
        return ssa.Const(kind, int(amount))

    def unary(self, op: ast.unaryop, value: Any) -> Any:
        match op:
            case ast.Not():
                test = self.condition(value)
                return self.builder.one("not", (test,), bool) if isinstance(test, ssa.Value) else not test
            case ast.USub():
                if not isinstance(value, ssa.Value):
                    return -value
                return self.builder.one("sub", (self.builder.value(0, value.type), value), value.type)
            case ast.Invert():
                if not isinstance(value, ssa.Value):
                    return ~value
                if value.type is bool:
                    raise DescriptionError("~ of a bool; write not x")
                return self.builder.one("xor", (value, ssa.Const(value.type, -1)), value.type)
        return value

    def compare(self, left: ast.expr, ops: list[ast.cmpop], rights: list[ast.expr]) -> Any:
        return self._chain(self.expression(left), ops, rights)

    def _chain(self, left: Any, ops: list[ast.cmpop], rights: list[ast.expr]) -> Any:
        right = self.expression(rights[0])
        first = self.condition(self.compare_values(ops[0], left, right))
        if len(ops) == 1:
            return first
        if not isinstance(first, ssa.Value):
            return self._chain(right, ops[1:], rights[1:]) if first else first
        builder = self.builder
        then, otherwise = self.fork(first)
        join = _Join()
        builder.block = otherwise
        join.add(otherwise, {**self.environment, "chain": builder.value(False, bool)})
        builder.block = then
        rest = builder.value(self._chain(right, ops[1:], rights[1:]), bool)
        join.add(builder.block, {**self.environment, "chain": rest})
        return builder.join(join).pop("chain")

    def compare_values(self, op: ast.cmpop, a: Any, b: Any) -> Any:
        runtime = isinstance(a, ssa.Value) or isinstance(b, ssa.Value)
        if isinstance(op, ast.Is | ast.IsNot) and not runtime:
            return (a is b) == isinstance(op, ast.Is)
        if isinstance(op, ast.In | ast.NotIn):
            if isinstance(b, ssa.Value):
                raise DescriptionError("in needs a constant tuple on its right")
            if not isinstance(a, ssa.Value):
                return (a in b) == isinstance(op, ast.In)
            found: Any = ssa.Const(bool, 0)
            for item in b:
                equal = self.builder.one("eq", (a, self.builder.value(item, a.type)), bool)
                found = self.builder.one("or", (found, equal), bool)
            return found if isinstance(op, ast.In) else self.builder.one("not", (found,), bool)
        if type(op) not in _COMPARE:
            raise DescriptionError(f"comparison {type(op).__name__} is not part of the language")
        opcode, compute = _COMPARE[type(op)]
        if not runtime:
            return compute(a, b)
        kind = a.type if isinstance(a, ssa.Value) else b.type
        left, right = self.builder.value(a, kind, "the left operand"), self.builder.value(b, kind, "the right operand")
        return self.builder.one(opcode, (left, right), bool)

    def boolean(self, conjunction: bool, nodes: Sequence[ast.expr]) -> Any:
        first = self.condition(self.expression(nodes[0]))
        if len(nodes) == 1:
            return first
        if not isinstance(first, ssa.Value):
            return self.boolean(conjunction, nodes[1:]) if first == conjunction else first
        then, otherwise = self.fork(first)
        more, done = (then, otherwise) if conjunction else (otherwise, then)
        join = _Join()
        join.add(done, {"result": not conjunction})
        self.builder.block = more
        rest = self.boolean(conjunction, nodes[1:])
        join.add(self.builder.block, {"result": rest})
        return self.builder.join(join)["result"]

    def if_expression(self, test: ast.expr, body: ast.expr, orelse: ast.expr) -> Any:
        condition = self.condition(self.expression(test))
        if not isinstance(condition, ssa.Value):
            return self.expression(body if condition else orelse)
        then, otherwise = self.fork(condition, self.hint(test))
        join = _Join()
        for block, node in ((then, body), (otherwise, orelse)):
            self.builder.block = block
            value = self.expression(node)
            join.add(self.builder.block, {"the conditional expression": value})
        return self.builder.join(join)["the conditional expression"]

    def attribute(self, base: Any, name: str) -> Any:
        if isinstance(base, Outside):
            return base.get(self.builder, name)
        if base is not CPU:
            if isinstance(base, ssa.Value):
                raise DescriptionError(f"a number has no attribute {name!r}")
            return getattr(base, name)
        members = self.builder.compiler.members
        if name == "next_pc":
            return self.builder.one("next_pc", (), members["pc"].type)
        if name == "pc":
            return self.builder.one("pc", (), members["pc"].type)
        if name in members:
            member = members[name]
            if isinstance(member, Registers):
                return _RegistersReference(name)
            return self.builder.one("get", (), member.type, name)
        if name in PRIMITIVES:
            return _PrimitiveReference(name)
        raise DescriptionError(f"the CPU has no member {name!r}")

    def subscript(self, base: Any, index: Any) -> Any:
        if isinstance(base, Outside):
            return base.item(self.builder, index)
        if isinstance(base, _RegistersReference):
            member = self.builder.compiler.members[base.name]
            position = self.index(index, member)
            return self.builder.one("getreg", (position,), member.type, base.name)
        if isinstance(base, ssa.Value):
            raise DescriptionError("a number cannot be indexed; use bit() or bits()")
        if not isinstance(index, ssa.Value):
            return base[index]
        if isinstance(base, Table):
            return _TableEntry(base, index)
        if isinstance(base, tuple) and base and all(type(v) is type(base[0]) and isinstance(v, Int) for v in base):
            if index.type is bool or index.type.signed:
                raise DescriptionError("an index is an unsigned integer")
            return self.builder.one("lookup", (index,), type(base[0]), tuple(int(v) for v in base))
        raise DescriptionError("only a constant tuple of numbers of one type can be indexed at run time")

    def cast(self, kind: ssa.Type, value: ssa.Value) -> ssa.Value:
        if value.type is kind:
            return value
        if isinstance(value, ssa.Const) and kind is not bool:
            return ssa.Const(kind, value.value)
        return self.builder.one("cast", (value,), kind)

    # Calls

    def call(self, node: ast.Call) -> Any:
        target = self.expression(node.func)
        if node.keywords and (isinstance(target, Function | Table | _TableEntry | _Reference)):
            raise DescriptionError("arguments are given by position")
        arguments: list[Any] = []
        for argument in node.args:
            if isinstance(argument, ast.Starred):
                arguments.extend(self.expression(argument.value))
            else:
                arguments.append(self.expression(argument))
        if isinstance(target, Function):
            return self.call_function(target, arguments)
        if isinstance(target, Outside):
            return target.call(self.builder, arguments)
        if isinstance(target, Prebuilt):
            return self.call_prebuilt(target.function, arguments)
        if isinstance(target, _PrimitiveReference):
            return call_primitive(self.builder, target.name, arguments)
        if isinstance(target, _TableEntry):
            return self.call_table(target, arguments)
        if _is_type(target) and len(arguments) == 1 and isinstance(arguments[0], ssa.Value):
            if target is bool:
                raise DescriptionError("bool(x) is not part of the language; write x != 0")
            return self.cast(target, arguments[0])
        if target is getattr and len(arguments) == 2 and arguments[0] is CPU:
            return self.attribute(CPU, arguments[1])
        if target is setattr and len(arguments) == 3 and arguments[0] is CPU:
            return self.set_member(arguments[1], arguments[2])
        if target in _INTRINSICS:
            return _INTRINSICS[target](self, *arguments)
        if any(_is_runtime(a) for a in arguments):
            raise DescriptionError(f"{ast.unparse(node.func)} is not a @function; it takes constants only")
        keywords = {k.arg: self.expression(k.value) for k in node.keywords if k.arg}
        return target(*arguments, **keywords)

    def call_function(self, function: Function, arguments: Sequence[Any], catch: bool = False) -> Any:
        if len(arguments) != len(function.parameters):
            raise DescriptionError(
                f"{function.name} takes {len(function.parameters)} arguments, not {len(arguments)}"
            )
        known: dict[str, Any] = {}
        passed: dict[str, Any] = {}
        for name, value in zip(function.parameters, arguments, strict=True):
            if _is_type(function.hints.get(name)):
                passed[name] = self.typed(value, function.hints[name], f"{name} of {function.name}")
            elif function.inline and _is_runtime(value):
                passed[name] = value
            elif _is_runtime(value):
                raise DescriptionError(
                    f"{function.name}: parameter {name} has no annotation, so it takes a constant; annotate it"
                )
            else:
                known[name] = value
        if function.inline and not catch:
            with self.builder.compiler.calling(function):
                frame = _Frame(self.builder, function, {**known, **passed})
                kinds = _result_types(function) if "return" in function.hints else None
                result = frame.run(kinds)
                if self.builder.block is None and kinds:
                    # It always traps. What follows is never reached, but must make sense.
                    nothing = tuple(self.builder.nowhere(k) for k in kinds)
                    return nothing if len(nothing) > 1 else nothing[0]
                return result
        callee = self.builder.compiler.function(function, known)
        values = [self.builder.value(v, function.hints[n]) for n, v in passed.items()]
        kinds = ((bool,) if catch else ()) + callee.results
        results = self.builder.emit("call", values, kinds, callee, catch)
        if catch:
            return results if len(results) > 1 else results[0]
        return results if len(results) > 1 else results[0] if results else None

    def call_prebuilt(self, callee: ssa.Function, arguments: Sequence[Any]) -> Any:
        """Call an SSA function with ``cpu`` and run-time values."""
        values = [
            self.builder.value(a, p.type) for a, p in zip(arguments[1:], callee.parameters, strict=True)
        ]
        results = self.builder.emit("call", values, callee.results, callee)
        return results if len(results) > 1 else results[0] if results else None

    def call_table(self, entry: _TableEntry, arguments: list[Any]) -> Any:
        table, number = entry.table, entry.number
        if table.default is None:
            raise DescriptionError(f"table {table.name} needs a default (@{table.name}.otherwise)")
        by_function: dict[Function, list[int]] = {}
        for key, function in table.entries.items():
            by_function.setdefault(function, []).append(key)
        builder = self.builder
        origin = builder.block
        builder.block = None
        default = builder.new_block()
        cases: list[tuple[int, ssa.Jump]] = []
        join = _Join()
        for function, block, keys in [
            *((f, builder.new_block(), k) for f, k in by_function.items()), (table.default, default, [])
        ]:
            cases.extend((key, ssa.Jump(block, [])) for key in keys)
            builder.block = block
            extra = [number] if function.parameters[:1] == ["number"] else []
            result = self.call_function(function, [*extra, *arguments])
            join.add(builder.block, {f"the result of {table.name}": result})
        if origin is not None:
            origin.end = ssa.Switch(number, cases, ssa.Jump(default, []))
        return builder.join(join).get(f"the result of {table.name}")


def _is_runtime(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(_is_runtime(v) for v in value)
    return isinstance(value, ssa.Value | _Reference | _TableEntry)


def _as_load(target: ast.expr) -> ast.expr:
    return ast.parse(ast.unparse(target), mode="eval").body


def _assigned(body: Sequence[ast.stmt]) -> set[str]:
    """Names that a loop's body assigns."""
    nodes = [node for statement in body for node in ast.walk(statement)]
    return {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


# Builtin functions


def _unary(opcode: str, python: Callable[..., Any]) -> Callable[..., Any]:
    def build(frame: _Frame, x: Any) -> Any:
        return frame.builder.one(opcode, (x,), x.type) if isinstance(x, ssa.Value) else python(x)

    return build


def _width(x: ssa.Value) -> int:
    if x.type is bool:
        raise DescriptionError("this takes a number, not a bool; convert it first, for example u64(flag)")
    return x.type.bits


def _bits(frame: _Frame, x: Any, high: Any, low: Any) -> Any:
    if not isinstance(x, ssa.Value):
        return builtins.bits(x, high, low)
    if not 0 <= low <= high < _width(x):
        raise DescriptionError(f"bits {high}..{low} of {x.type.__name__}")
    logical = frame.cast(integer_type(_width(x), False), x)
    moved = frame.binary(ast.RShift(), logical, low) if low else logical
    masked = frame.binary(ast.BitAnd(), moved, (1 << (high - low + 1)) - 1)
    return frame.cast(x.type, masked)


def _bit(frame: _Frame, x: Any, n: Any) -> Any:
    if not isinstance(x, ssa.Value):
        return builtins.bit(x, n)
    if isinstance(n, ssa.Value):
        raise DescriptionError("bit(x, n) takes a constant n; write (x >> n) & 1 != 0")
    logical = frame.cast(integer_type(_width(x), False), x)
    masked = frame.binary(ast.BitAnd(), logical, 1 << int(n))
    return frame.compare_values(ast.NotEq(), masked, 0)


def _sext(frame: _Frame, x: Any, n: Any) -> Any:
    if not isinstance(x, ssa.Value):
        return builtins.sext(x, n)
    width = _width(x)
    if n == width:
        return x
    signed = frame.cast(integer_type(width, True), x)
    moved = frame.binary(ast.RShift(), frame.binary(ast.LShift(), signed, width - n), width - n)
    return frame.cast(x.type, moved)


def _ieee(opcode: str, python: Callable[..., Any]) -> Callable[..., Any]:
    def build(frame: _Frame, *arguments: Any) -> Any:
        runtime = [a for a in arguments if isinstance(a, ssa.Value)]
        if not runtime:
            return python(*arguments)
        kind = runtime[0].type
        if kind not in (u32, u64):
            raise DescriptionError("IEEE arithmetic takes bit patterns that are all u32 or all u64")
        return frame.builder.one(opcode, [frame.builder.value(a, kind) for a in arguments], kind)

    return build


def _ieee_convert(frame: _Frame, kind: Any, value: Any) -> Any:
    if not isinstance(value, ssa.Value):
        return builtins.ieee_convert(kind, value)
    return value if value.type is kind else frame.builder.one("ieee_convert", (value,), kind)


def _peek(frame: _Frame, kind: Any, address: Any) -> Any:
    return frame.builder.one("peek", (frame.builder.value(address, u64),), kind, kind)


def _poke(frame: _Frame, kind: Any, address: Any, value: Any) -> None:
    frame.builder.emit("poke", (frame.builder.value(address, u64), frame.builder.value(value, kind)), (), kind)


def _host_atomic(frame: _Frame, operation: str, kind: Any, address: Any, value: Any) -> Any:
    arguments = (frame.builder.value(address, u64), frame.builder.value(value, kind))
    return frame.builder.one("host_atomic", arguments, kind, operation)


def _host_call(frame: _Frame, cpu: Any, member: str, *arguments: Any) -> Any:
    return frame.builder.one("host_call", [frame.builder.value(a, u64) for a in arguments], u64, member)


_INTRINSICS: dict[Any, Callable[..., Any]] = {
    builtins.bits: _bits,
    builtins.bit: _bit,
    builtins.sext: _sext,
    builtins.clz: _unary("clz", builtins.clz),
    builtins.ctz: _unary("ctz", builtins.ctz),
    builtins.popcount: _unary("popcount", builtins.popcount),
    builtins.bswap: _unary("bswap", builtins.bswap),
    builtins.likely: lambda frame, condition: condition,
    builtins.unlikely: lambda frame, condition: condition,
    builtins.ieee_convert: _ieee_convert,
    **{
        getattr(builtins, f"ieee_{n}"): _ieee(f"ieee_{n}", getattr(builtins, f"ieee_{n}"))
        for n in ("add", "sub", "mul", "div", "sqrt", "fma")
    },
    host.peek: _peek,
    host.poke: _poke,
    host.host_atomic: _host_atomic,
    host.host_call: _host_call,
    host.cpu_address: lambda frame, cpu: frame.builder.one("cpu_address", (), u64),
    host.attempt: lambda frame, function, *arguments: frame.call_function(function, arguments, catch=True),
}
