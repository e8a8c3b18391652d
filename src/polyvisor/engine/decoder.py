"""The native decoder: the architecture's decode tree as one function in SSA."""

from __future__ import annotations

from polyvisor.adl import Instruction, ssa
from polyvisor.adl.encoding import Candidates, Node
from polyvisor.adl.frontend import Builder, Compiler
from polyvisor.adl.types import integer_type, u64

from .layout import Layout, operand_layout

ILLEGAL = 0


def decode_function(compiler: Compiler, layout: Layout) -> ssa.Function:
    """``decode_word(cpu, word, record) -> index``: write the operands of ``word`` into the record's operand bytes.

    The index of instruction number i of the architecture is i + 1; 0 is an illegal instruction.
    """
    return _Decoder(compiler, layout).function()


class _Decoder:
    def __init__(self, compiler: Compiler, layout: Layout) -> None:
        self.layout = layout
        self.compiler = compiler
        self.builder = Builder(compiler)
        self.word = self.builder.parameter(u64)
        self.record = self.builder.parameter(u64)
        # What takes the operands out of the word, once for all instructions that have them in the same places.
        self.formats: dict[tuple[object, ...], tuple[ssa.Block, ssa.Value, Instruction]] = {}

    def function(self) -> ssa.Function:
        self.node(self.layout.architecture.tree)
        for block, index, instruction in self.formats.values():
            self.builder.block = block
            values = self.operands(instruction)
            for name, (offset, size) in operand_layout(instruction)[0].items():
                kind = integer_type(8 * size, False)
                self.poke(8 + offset, kind, self.builder.one("cast", (values[name],), kind))
            self.builder.end(ssa.Return((index,)))
        return self.builder.finish("decode_word", (u64,))

    def node(self, node: Node) -> None:
        builder = self.builder
        if isinstance(node, Candidates):
            for index in node.indices:
                self.candidate(index)
            self.poke(8, u64, self.word)
            builder.end(ssa.Return((ssa.Const(u64, ILLEGAL),)))
            return
        key = builder.one("and", (self.word, ssa.Const(u64, node.mask)), u64)
        origin = builder.block
        assert origin is not None
        default = builder.new_block()
        cases: list[tuple[int, ssa.Jump]] = []
        todo = [(default, node.default)]
        for value, child in node.cases.items():
            block = builder.new_block()
            cases.append((value, ssa.Jump(block, [])))
            todo.append((block, child))
        builder.end(ssa.Switch(key, cases, ssa.Jump(default, [])))
        for block, child in todo:
            builder.block = block
            self.node(child)

    def candidate(self, index: int) -> None:
        """Return if the word is this instruction, else go on in a new block."""
        builder = self.builder
        instruction = self.layout.architecture.instructions[index]
        encoding = instruction.encoding
        masked = builder.one("and", (self.word, ssa.Const(u64, encoding.mask)), u64)
        same = builder.one("eq", (masked, ssa.Const(u64, encoding.value)), bool)
        match, other = builder.new_block(), builder.new_block()
        builder.end(ssa.Branch(same, ssa.Jump(match, []), ssa.Jump(other, [])))
        builder.block = match
        if instruction.where:
            values = self.operands(instruction)
            types = {o.name: instruction.types[o.name] for o in encoding.operands}
            where = self.compiler.expression(instruction.where, types, f"where.{index}")
            arguments = [builder.one("cast", (values[n],), t) for n, t in types.items()]
            (fulfilled,) = builder.emit("call", arguments, (bool,), where)
            accept = builder.new_block()
            builder.end(ssa.Branch(fulfilled, ssa.Jump(accept, []), ssa.Jump(other, [])))
            builder.block = accept
        builder.end(ssa.Jump(self.format(instruction), [ssa.Const(u64, index + 1)]))
        builder.block = other

    def format(self, instruction: Instruction) -> ssa.Block:
        """The block that writes an instruction's operands, and returns the number it is given."""
        places = operand_layout(instruction)[0]
        key = tuple((o.pieces, o.bits, o.signed, o.add, places[o.name]) for o in instruction.encoding.operands)
        if key not in self.formats:
            block = self.builder.new_block()
            self.formats[key] = block, self.builder.block_parameter(block, u64), instruction
        return self.formats[key][0]

    def operands(self, instruction: Instruction) -> dict[str, ssa.Value]:
        builder = self.builder
        values: dict[str, ssa.Value] = {}
        for operand in instruction.encoding.operands:
            total: ssa.Value = ssa.Const(u64, 0)
            for piece in operand.pieces:
                moved = self.word
                if piece.at:
                    moved = builder.one("shr", (moved, ssa.Const(u64, piece.at)), u64)
                part = builder.one("and", (moved, ssa.Const(u64, (1 << piece.width) - 1)), u64)
                if piece.to:
                    part = builder.one("shl", (part, ssa.Const(u64, piece.to)), u64)
                total = builder.one("or", (total, part), u64)
            if operand.signed:
                sign = ssa.Const(u64, 1 << (operand.bits - 1))
                total = builder.one("sub", (builder.one("xor", (total, sign), u64), sign), u64)
            if operand.add:
                total = builder.one("add", (total, ssa.Const(u64, operand.add)), u64)
            values[operand.name] = total
        return values

    def poke(self, offset: int, kind: type, value: ssa.Value) -> None:
        place = self.builder.one("add", (self.record, ssa.Const(u64, offset)), u64)
        self.builder.emit("poke", (place, value), (), kind)
