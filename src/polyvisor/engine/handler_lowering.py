"""What operations on the CPU become in the interpreter's handlers.

A handler is called with the record it executes and the hart's hot values in registers (`preserve_none`), and ends
in a tail call of the next record's handler.  It has two variants.  The fast one holds only what nearly always
happens; where anything else is needed, and nothing was changed yet, it starts again as the slow variant, which
may call helpers.  So the fast variant saves and restores no registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from polyvisor.adl import Instruction, ssa
from polyvisor.adl.llvm import llvm_type

from .layout import CODE_TLB_ENTRY, CODE_TLB_SIZE, Layout, operand_layout
from .lowering import HelperEmitter, Runtime

# The signature of every handler.
HANDLER_ARGUMENTS = "ptr %rec, ptr %cpu, i64 %tlb, i64 %icount, i64 %base"


_CALLING = frozenset(
    "call phys_load phys_store phys_compare_exchange flush_tlb flush_tlb_page clock encoding host_call signal "
    "flush_others hook_call".split()
)
_CHANGING = frozenset(
    "set setreg store atomic compare_exchange poke host_atomic host_call leave fence flush_tlb flush_tlb_page "
    "phys_store phys_compare_exchange signal flush_others hook hook_call".split()
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
            or not effects.does.isdisjoint({"leave", "flush_tlb", "flush_tlb_page", "flush_code", "hook_call"})
        )

    @staticmethod
    def worth_two(function: ssa.Function) -> bool:
        """Whether a fast variant makes sense: the straight way through needs no call."""
        first = function.blocks[0]
        return not any(op.opcode in _CALLING or op.opcode == "leave" for op in first.ops)

    def text(self) -> str:
        """The handler, in the variant that this is."""
        length = self.instruction.encoding.length if self.instruction else 0
        self.line("%ticks = alloca i64")
        self.line("store i64 0, ptr %ticks")
        if self._clocked and self.fast:
            # Where something is due before it can have ended, the slow variant takes it cycle by cycle.
            last = self.assign(f"add i64 %icount, {self.layout.architecture.clocked}")
            alone, due = self.new_label("alone"), self.new_label("due")
            self.branch(self.assign(f"icmp ult i64 {last}, {self.read_field('event_at')}"), alone, due, True)
            self.begin(due)
            self.restart()
            self.begin(alone)
        self.line("%recint = ptrtoint ptr %rec to i64")
        self.line(f"%recpc = lshr i64 %recint, {self.layout.shift}")
        self.line("%pc = add i64 %base, %recpc")
        self.line(f"%following = {self._wrapped(f'add i64 %pc, {length}')}")
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
        self.write_field("retired", self._count())
        if self._next_in_memory:
            self.write_field("next_pc", self.assign("load i64, ptr %next"))

    # Time

    @property
    def _clocked(self) -> bool:
        return bool(self.layout.architecture.clocked)

    def _count(self) -> str:
        """Instructions executed before this one, or clock cycles so far."""
        if not self._clocked:
            return "%icount"
        return self.assign(f"add i64 %icount, {self.assign('load i64, ptr %ticks')}")

    def _pass(self, cycles: str) -> None:
        before = self.assign("load i64, ptr %ticks")
        self.line(f"store i64 {self.assign(f'add i64 {before}, {cycles}')}, ptr %ticks")

    def _recount(self) -> None:
        """Something that was called let time pass."""
        now = self.read_field("retired")
        self.line(f"store i64 {self.assign(f'sub i64 {now}, %icount')}, ptr %ticks")

    def op_cycle(self, op: ssa.Op) -> None:
        if self.fast:
            self._pass("1")
        else:
            super().op_cycle(op)
            self._recount()

    def op_stall(self, op: ssa.Op) -> None:
        if self.fast:
            self._pass(self.operand(op.arguments[0]))
        else:
            super().op_stall(op)
            self._recount()

    def op_cycles(self, op: ssa.Op) -> None:
        self.define(op, f"add i64 {self._count()}, 0")

    def _wrapped(self, value: str) -> str:
        """The operation that gives the value of an operation as an address."""
        bits = self.layout.architecture.address_bits
        return value if bits == 64 else f"and i64 {self.assign(value)}, {(1 << bits) - 1}"

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
            if not inner.does.isdisjoint({"cycle", "stall"}):
                self._recount()
            if "hook_call" in inner.does:
                self._obey()
        elif op.opcode in _CHANGING:
            self._changed = True
        if op.opcode == "hook_call":
            self._obey()

    def _obey(self) -> None:
        """Where a callback asked to stop: look around behind this instruction."""
        asked = self.assign(f"icmp ne i8 {self.read_field('hook_stops', 'i8')}, 0")
        before = self.assign("load i1, ptr %sync")
        self.line(f"store i1 {self.assign(f'or i1 {before}, {asked}')}, ptr %sync")

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
        """Called where the TLB misses: True if this ended the block, by a start again as the slow variant."""
        if not self.fast:
            return False
        if not self._changed:
            self.restart()
            return True
        self._publish()
        return False

    def tlb(self) -> str:
        """The address of the current data TLB (i64)."""
        return "%tlb"

    def _inline_hits(self) -> bool:
        return self.fast

    def leave_trapped(self) -> None:
        """Go on where the trap leads whose values are stored."""
        self.declare("trapped", f"declare preserve_nonecc void @trapped({HANDLER_ARGUMENTS})")
        count = self.read_field("retired") if self._clocked else "%icount"
        self._tail("@trapped", "%rec", count, "%base")

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
        wide = self.assign(self._wrapped(f"add i64 {self.wide(op.arguments[0])}, 0"))
        self.line(f"store i64 {wide}, ptr %next")
        self.line("store i1 true, ptr %jumped")
        if self._next_in_memory:
            self.write_field("next_pc", wide)

    def op_instructions(self, op: ssa.Op) -> None:
        self.define(op, "add i64 %icount, 0")

    # The end of the instruction

    def emit_return(self, values: Sequence[ssa.Value]) -> None:
        """Go on: by way of the dispatcher, at a jump target, or at the next record."""
        count = self._count() if self._clocked else self.assign("add i64 %icount, 1")
        if self._clocked and not self.fast:
            due, early = self.new_label("due"), self.new_label("early")
            self.branch(self.assign(f"icmp uge i64 {count}, {self.read_field('event_at')}"), due, early)
            self.begin(due)
            self._dispatch(self.assign("load i64, ptr %next"), count)
            self.begin(early)
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
