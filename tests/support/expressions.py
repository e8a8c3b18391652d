"""Random functions of the description language, to compare compiled ones with what CPython computes."""

from __future__ import annotations

import random

TYPES = [f"{s}{b}" for b in (8, 16, 32, 64, 128) for s in "ui"]
INPUTS = 12

HEAD = '''"""Made by tests/support/expressions.py."""

from polyvisor.adl import *

toy = Architecture("toy_{tag}", unit=4, max_length=4, default_kinds={{}})


@toy.state
class Cpu(State):
    pc = Field(u64)
    r = Registers(u64, 12)
    out = Registers(u64, 32)


@toy.hook("on_trap")
def on_trap(cpu, cause: u64):
    cpu.out[31] = cause
    cpu.next_pc = cpu.pc + 4


@toy.hook("on_illegal")
def on_illegal(cpu, word: u64):
    raise Trap(1)


@toy.hook("on_bus_error")
def on_bus_error(cpu, vaddr: u64, access: u32):
    raise Trap(2)


'''


def bits(kind: str) -> int:
    return int(kind[1:])


class Writer:
    """Writes one function after the other; ``text`` is the module so far."""

    def __init__(self, rng: random.Random, tag: str) -> None:
        self.rng = rng
        self.text = HEAD.format(tag=tag)
        self.helpers: list[tuple[str, list[str], list[str]]] = []  # name, parameter types, result types
        self.variables: dict[str, str] = {}
        self.lines: list[str] = []
        self.count = 0
        self.instructions = 0
        self.names = 0

    # Expressions

    def constant(self, kind: str) -> int:
        width, signed = bits(kind), kind[0] == "i"
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
        choices = (0, 1, 2, 3, low, high, high - 1, low + 1, high // 2 + 1, self.rng.randint(low, high))
        return self.rng.choice(choices)

    def leaf(self, kind: str) -> str:
        known = [n for n, t in self.variables.items() if t == kind]
        if known and self.rng.random() < 0.8:
            return self.rng.choice(known)
        numbers = [n for n, t in self.variables.items() if t != "bool"]
        if numbers and self.rng.random() < 0.7:
            return f"{kind}({self.rng.choice(numbers)})"
        return f"{kind}({self.constant(kind)})"

    def number(self, kind: str, depth: int) -> str:
        rng = self.rng
        if depth <= 0:
            return self.leaf(kind)
        a = lambda: self.number(kind, depth - 1 - rng.randrange(2))  # noqa: E731
        width, signed = bits(kind), kind[0] == "i"
        match rng.randrange(18):
            case 0 | 1 | 2 | 3:
                return f"({a()} {rng.choice('+-*&|^')} {a()})"
            case 4:
                literal = self.constant(kind)
                text = f"{literal}" if literal >= 0 else f"({literal})"
                operator = rng.choice("+-*&|^")
                x = self.variable(kind)
                return rng.choice((f"({x} {operator} {text})", f"({text} {operator} {x})"))
            case 5:
                amount = rng.choice([t for t in TYPES if t[0] == "u"])
                return f"({a()} {rng.choice(('<<', '>>'))} ({self.number(amount, depth - 2)} & {width - 1}))"
            case 6:
                return f"({a()} {rng.choice(('<<', '>>'))} {rng.randrange(width)})"
            case 7:
                n, d, other = self.variable(kind), self.variable(kind), a()
                test = f"{d} > 0 or {d} < -1" if signed else f"{d} != 0"
                literal = rng.choice((1, 2, 3, 7, 10, (1 << width - 1) - 1))
                return rng.choice((
                    f"({n} {rng.choice(('//', '%'))} {d} if {test} else {other})",
                    f"({a()} {rng.choice(('//', '%'))} {literal})",
                    f"({literal} {rng.choice(('//', '%'))} ({d} | 1) "
                    f"if ({d} | 1) != {-1 if signed else 0} else {other})",
                ))
            case 8 | 9:
                return f"{kind}({self.number(rng.choice(TYPES), depth - 1)})"
            case 10:
                return f"{kind}({self.condition(depth - 1)})"
            case 11:
                return f"({a()} if {self.condition(depth - 1)} else {a()})"
            case 12:
                return f"({rng.choice('-~')}{a()})"
            case 13:
                high = rng.randrange(width)
                return f"bits({a()}, {high}, {rng.randrange(high + 1)})"
            case 14:
                return f"sext({a()}, {rng.randrange(1, width + 1)})"
            case 15:
                return f"{rng.choice(('clz', 'ctz', 'popcount', 'bswap'))}({a()})"
            case 16:
                items = ", ".join(f"{kind}({self.constant(kind)})" for _ in range(4))
                return f"({items})[{self.number(rng.choice(('u8', 'u32', 'u64')), depth - 2)} & 3]"
            case _:
                usable = [h for h in self.helpers if h[2] == [kind]]
                return self.call(rng.choice(usable), depth) if usable else a()

    def variable(self, kind: str) -> str:
        known = [n for n, t in self.variables.items() if t == kind]
        return self.rng.choice(known) if known else f"{kind}({self.leaf(kind)})"

    def call(self, helper: tuple[str, list[str], list[str]], depth: int) -> str:
        name, parameters, _ = helper
        return f"{name}({', '.join(self.value(t, depth - 2) for t in parameters)})"

    def condition(self, depth: int) -> str:
        rng = self.rng
        if depth <= 0:
            known = [n for n, t in self.variables.items() if t == "bool"]
            if known:
                return rng.choice(known)
        kind = rng.choice(TYPES)
        a = lambda: self.number(kind, depth - 1)  # noqa: E731
        compare = lambda: rng.choice(("==", "!=", "<", "<=", ">", ">="))  # noqa: E731
        match rng.randrange(8):
            case 0:
                return f"({a()} {compare()} {a()} {compare()} {a()})"
            case 1:
                return f"({self.condition(depth - 1)} {rng.choice(('and', 'or'))} {self.condition(depth - 1)})"
            case 2:
                return f"(not {self.condition(depth - 1)})"
            case 3:
                return f"bit({a()}, {rng.randrange(bits(kind))})"
            case 4:
                numbers = ", ".join(f"{self.constant(kind)}" for _ in range(3))
                return f"({self.variable(kind)} {rng.choice(('in', 'not in'))} ({numbers}))"
            case 5:
                return f"{rng.choice(('likely', 'unlikely'))}({self.condition(depth - 1)})"
            case 6:
                return f"({self.condition(depth - 1)} {rng.choice('&|^')} {self.condition(depth - 1)})"
            case _:
                return f"({a()} {compare()} {a()})"

    def value(self, kind: str, depth: int) -> str:
        return self.condition(depth) if kind == "bool" else self.number(kind, depth)

    # Statements

    def new(self) -> str:
        self.names += 1
        return f"v{self.names}"

    def line(self, indent: int, text: str) -> None:
        self.lines.append("    " * indent + text)

    def statement(self, indent: int, loops: int, results: list[str] | None) -> None:
        rng = self.rng
        kind = rng.choice([*TYPES, "bool"])
        names = [n for n in self.variables if not n.startswith("n")]
        if rng.random() < 0.25 and (results is None or rng.random() < 0.2):
            self.effect(indent, results)
            return
        match rng.randrange(13):
            case 0 | 1 | 2:
                text = self.value(kind, 3)
                name = self.new()
                self.line(indent, f"{name} = {text}")
                self.variables[name] = kind
            case 3 | 4 if names:
                name = rng.choice(names)
                self.line(indent, f"{name} = {self.value(self.variables[name], 3)}")
            case 5 if names:
                name = rng.choice(names)
                if self.variables[name] != "bool":
                    self.line(indent, f"{name} {rng.choice('+-*&|^')}= {self.number(self.variables[name], 2)}")
            case 6 | 7:
                self.line(indent, f"if {self.condition(2)}:")
                self.block(indent + 1, loops, results)
                if rng.random() < 0.6:
                    self.line(indent, "else:")
                    self.block(indent + 1, loops, results)
            case 8 if indent < 3:
                counter = f"n{self.new()}"
                self.line(indent, f"{counter} = u32(0)")
                self.line(indent, f"while {counter} < {rng.randrange(1, 6)} and {self.condition(1)}:")
                self.line(indent + 1, f"{counter} += 1")
                self.block(indent + 1, loops + 1, results)
                self.variables[counter] = "u32"
            case 9 if loops:
                self.line(indent, f"if {self.condition(1)}:")
                self.line(indent + 1, rng.choice(("break", "continue")))
            case 10 if len(names) > 1:
                a, b = rng.sample(names, 2)
                texts = self.value(self.variables[a], 2), self.value(self.variables[b], 2)
                self.line(indent, f"{a}, {b} = {texts[0]}, {texts[1]}")
            case 11:
                usable = [h for h in self.helpers if len(h[2]) == 2]
                if usable:
                    helper = rng.choice(usable)
                    text = self.call(helper, 3)
                    a, b = self.new(), self.new()
                    self.line(indent, f"{a}, {b} = {text}")
                    self.variables[a], self.variables[b] = helper[2]
            case 12:
                self.line(indent, f"if {self.condition(1)}:")
                kept = dict(self.variables)
                if results is None:
                    self.line(indent + 1, f"cpu.out[{rng.randrange(31)}] = {self.number('u64', 2)}")
                    self.line(indent + 1, rng.choice(("return", f"raise Trap({rng.randrange(2, 99)})")))
                else:
                    self.line(indent + 1, f"return {', '.join(self.value(t, 2) for t in results)}")
                self.variables = kept
            case _:
                numbers = ", ".join(str(rng.randrange(8)) for _ in range(3))
                name = self.new()
                self.line(indent, f"{name} = {self.number('u64', 1)}")
                self.variables[name] = "u64"
                constant = self.new()
                self.line(indent, f"for {constant} in ({numbers}):")
                self.line(indent + 1, f"{name} = ({name} << {constant}) ^ {self.number('u64', 2)}")

    def effect(self, indent: int, results: list[str] | None) -> None:
        """Something that must happen once: a change of state, or an access to memory, which may trap."""
        rng = self.rng
        if results is not None:
            self.line(indent, f"if {self.condition(1)}:")
            self.line(indent + 1, f"raise Trap({rng.randrange(2, 99)})")
            return
        size = rng.choice((8, 16, 32, 64))
        # Mostly in memory, and often across pages.
        offset, mask = rng.choice(((0x1000, 0x1FFF), (0x1FF8, 0xF), (0x2FFA, 7), (0x3FF0, 0x1F)))
        where = f"u64({offset}) + ({self.number('u64', 1)} & {mask})"
        match rng.randrange(5):
            case 0 | 1:
                number = rng.randrange(31)
                self.line(indent, f"cpu.out[{number}] = cpu.out[{number}] + {self.number('u64', 1)}")
            case 2:
                name = self.new()
                self.line(indent, f"{name} = cpu.load(u{size}, {where})")
                self.variables[name] = f"u{size}"
            case 3:
                self.line(indent, f"cpu.store(u{size}, {where}, {self.number(f'u{size}', 1)})")
            case _:
                size = rng.choice((32, 64))
                name = self.new()
                value = self.number(f"u{size}", 1)
                where = f"({where}) & {2**64 - size // 8}"
                operation = rng.choice("swap add and or xor min max minu maxu".split())
                self.line(indent, f'{name} = cpu.atomic("{operation}", u{size}, {where}, {value})')
                self.variables[name] = f"u{size}"

    def block(self, indent: int, loops: int, results: list[str] | None) -> None:
        """Statements whose new variables are not known afterwards."""
        kept = dict(self.variables)
        for _ in range(self.rng.randrange(1, 4)):
            self.statement(indent, loops, results)
        if len(self.lines) and self.lines[-1].rstrip().endswith(":"):
            self.line(indent, "pass")
        self.variables = kept

    # Functions

    def helper(self) -> None:
        rng = self.rng
        name = f"helper{len(self.helpers)}"
        parameters = [rng.choice([*TYPES, "bool"]) for _ in range(rng.randrange(1, 4))]
        results = [rng.choice(TYPES) for _ in range(rng.choice((1, 1, 2)))]
        self.lines, self.variables = [], {f"p{n}": t for n, t in enumerate(parameters)}
        hint = results[0] if len(results) == 1 else f"tuple[{', '.join(results)}]"
        for _ in range(rng.randrange(1, 4)):
            self.statement(1, 0, results)
        self.line(1, f"return {', '.join(self.value(t, 2) for t in results)}")
        arguments = ", ".join(f"p{n}: {t}" for n, t in enumerate(parameters))
        self.text += rng.choice(("@function\n", "@function(inline=False)\n"))
        self.text += f"def {name}({arguments}) -> {hint}:\n" + "\n".join(self.lines) + "\n\n\n"
        self.helpers.append((name, parameters, results))

    def instruction(self) -> None:
        rng = self.rng
        number = self.instructions
        self.instructions += 1
        self.lines, self.variables, self.names = [], {}, 0
        for n in range(INPUTS):
            kind = rng.choice(TYPES)
            name = self.new()
            if bits(kind) == 128:
                self.line(1, f"{name} = {kind}(u128(cpu.r[{n}]) << 64 | u128(cpu.r[{(n + 1) % INPUTS}]))")
            else:
                self.line(1, f"{name} = {kind}(cpu.r[{n}])")
            self.variables[name] = kind
        for _ in range(rng.randrange(4, 12)):
            self.statement(1, 0, None)
        at = 0
        for name, kind in list(self.variables.items())[-14:]:
            if at < 30:
                self.line(1, f"cpu.out[{at}] = cpu.out[{at}] ^ u64({name})")
                if bits(kind if kind != "bool" else "u8") == 128:
                    self.line(1, f"cpu.out[{at + 1}] = u64({name} >> 64)")
            at += 2
        self.text += f'@toy.instruction("{number:08b} xxxxxxxx xxxxxxxx xxxxxxxx", "do{number}")\n'
        self.text += f"def do{number}(cpu):\n" + "\n".join(self.lines) + "\n\n\n"


def module(seed: int, instructions: int) -> str:
    """The source of a module with that many instructions."""
    writer = Writer(random.Random(seed), str(seed))
    for n in range(instructions):
        if n % 3 == 0 and len(writer.helpers) < 12:
            writer.helper()
        writer.instruction()
    return writer.text
