"""Which basic blocks belong to a region: those that can be reached from its entry by known jumps, and were executed.

A call whose target is known is followed: its blocks belong to the region once for each call that leads there, and are
told apart by the addresses to return to.  So a return in such a block has one likely target.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from polyvisor.adl import Instruction
from polyvisor.dataclass import dataclass, field

from ..layout import REGION_INSTRUCTIONS
from .region import MAX_TARGETS

# The most nested calls.
MAX_DEPTH = 4
# The most places after a region that is full which are taken for as hot as it is.
MAX_ENDS = 6


# A register or field of the state: its member's name, and the register's number (0 for a field).
Key = tuple[str, int]


@dataclass(frozen=True)
class Flow:
    """Where an instruction leads: ``jumps`` are distances from it, ``dynamic``: also to an address of a register.

    ``call``: it keeps the address that follows it.  ``possible`` is False where only the interpreter can execute it.
    """

    possible: bool = True
    falls: bool = True
    jumps: tuple[int, ...] = ()
    dynamic: bool = False
    call: bool = False

    @property
    def plain(self) -> bool:
        """Whether the next instruction is the one that follows."""
        return self.falls and not self.jumps and not self.dynamic


@dataclass(frozen=True)
class Step:
    """An instruction of a region: ``offset`` from the entry, the instruction's number and its bytes."""

    offset: int
    index: int
    instruction: Instruction
    word: int
    flow: Flow
    # The registers it writes; where that is another one's value, or its own, plus a constant: which, and the constant.
    writes: Mapping[Key, tuple[Key, int] | None] = field(default_factory=dict)
    # Its only access to memory, if at a constant distance from a register: that, the distance, the size, the kind (a
    # column of the TLB).
    access: tuple[Key, int, int, int] | None = None

    @property
    def length(self) -> int:
        """Its length in bytes."""
        return self.instruction.encoding.length

    @property
    def following(self) -> int:
        """The offset after it."""
        return self.offset + self.length


# A block's place: the addresses to return to, innermost last, and the offset of its first instruction.
Place = tuple[tuple[int, ...], int]


@dataclass
class Block:
    """A basic block. Where the last step does not jump, the region goes on, or is left, at ``end``."""

    place: Place
    number: int
    steps: list[Step] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The offset after the last instruction."""
        return self.steps[-1].following if self.steps else self.place[1]


@dataclass
class Plan:
    """The blocks of a region, the entry's first, and those that jumps to unknown places may reach.

    ``ends`` are the offsets of instructions that would have been next, had there been room.
    """

    blocks: dict[Place, Block]
    targets: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()

    def successor(self, block: Block, step: Step, offset: int) -> Block | None:
        """The block that a jump to ``offset`` leads to."""
        returns = block.place[0]
        if step.flow.call and (inner := self.blocks.get(((*returns, step.following), offset))):
            return inner
        return self.blocks.get((returns, offset)) or self.blocks.get(((), offset))


    def successors(self, block: Block) -> list[Block]:
        """The blocks that may follow a block within the region."""
        if not block.steps:
            return []
        last, returns = block.steps[-1], block.place[0]
        found = [self.successor(block, last, last.offset + jump) for jump in last.flow.jumps]
        if last.flow.falls:
            found.append(self.successor(block, last, block.end))
        if last.flow.dynamic and returns:
            found.append(self.blocks.get((returns[:-1], returns[-1])))
        elif last.flow.dynamic:
            found += [self.blocks.get(((), t)) for t in (*self.targets, 0) if self.targets]
        return [b for b in found if b is not None]

    @cached_property
    def loops(self) -> dict[int, frozenset[int]]:
        """For each block in a loop, the numbers of the blocks of the smallest one around it."""
        after = {b.number: {s.number for s in self.successors(b)} for b in self.blocks.values()}
        before: dict[int, set[int]] = {number: set() for number in after}
        for number, successors in after.items():
            for successor in successors:
                before[successor].add(number)
        found: dict[int, frozenset[int]] = {}
        for last, successors in after.items():
            for head in successors:
                if head > last:
                    continue
                # What leads from the head back to it, by way of this edge.
                body = {head}
                todo = [last]
                while todo:
                    number = todo.pop()
                    if number not in body:
                        body.add(number)
                        todo.extend(before[number])
                for number in body:
                    if number not in found or len(body) < len(found[number]):
                        found[number] = frozenset(body)
        return found


# Gives the instruction at an offset that may be in the region; what was executed just before may tell where it leads.
Fetch = Callable[[int, Step | None], Step | None]


def make_plan(
    fetch: Fetch, targets: Sequence[int], limit: int = REGION_INSTRUCTIONS, longest: int = REGION_INSTRUCTIONS
) -> Plan:
    """Choose the blocks, each of at most ``longest`` instructions.

    ``targets`` are offsets that jumps to addresses in registers are known to reach, most frequent first.
    """
    starts = _starts(fetch, targets, limit)
    plan = Plan({})
    count = 0
    todo: deque[Place] = deque([((), 0)])
    useful: list[int] = []
    waiting = [t for t in targets if t != 0]
    while todo or waiting:
        if not todo:
            # Only where some block jumps to an unknown place are other targets of use.
            if not any(b.steps and b.steps[-1].flow.dynamic and not b.place[0] for b in plan.blocks.values()):
                break
            target = waiting.pop(0)
            if len(useful) >= MAX_TARGETS:
                break
            useful.append(target)
            todo.append(((), target))
        place = todo.popleft()
        if place in plan.blocks or count >= limit:
            continue
        returns, offset = place
        block = Block(place, len(plan.blocks))
        step: Step | None = None
        while count < limit:
            step = fetch(offset, step)
            if step is None or not step.flow.possible:
                break
            block.steps.append(step)
            count += 1
            offset = step.following
            if not step.flow.plain or offset in starts or len(block.steps) >= longest:
                break
        if not block.steps:
            continue
        plan.blocks[place] = block
        last = block.steps[-1]
        for jump in last.flow.jumps:
            target = last.offset + jump
            if not last.flow.call:
                todo.append((returns, target))
            elif len(returns) < MAX_DEPTH and last.following not in returns and ((), target) not in plan.blocks:
                todo.append(((*returns, last.following), target))
        if last.flow.falls:
            todo.append((returns, block.end))
        if last.flow.dynamic and returns and not last.flow.call:
            todo.append((returns[:-1], returns[-1]))
    plan.targets = tuple(t for t in useful if ((), t) in plan.blocks)
    if count >= limit:
        inside = {step.offset for block in plan.blocks.values() for step in block.steps}
        wanted = [offset for _, offset in todo] + [
            block.end for block in plan.blocks.values() if block.steps and block.steps[-1].flow.falls
        ]
        plan.ends = tuple(o for o in dict.fromkeys(wanted) if o not in inside and fetch(o, None) is not None)[:MAX_ENDS]
    return plan


def _starts(fetch: Fetch, targets: Sequence[int], limit: int) -> set[int]:
    """Offsets where blocks begin because something jumps there."""
    found = {0, *targets}
    seen: set[int] = set()
    todo = deque([0])
    while todo and len(seen) < 2 * limit:
        offset = todo.popleft()
        step: Step | None = None
        while offset not in seen and len(seen) < 2 * limit:
            step = fetch(offset, step)
            if step is None or not step.flow.possible:
                break
            seen.add(offset)
            for jump in step.flow.jumps:
                found.add(step.offset + jump)
                todo.append(step.offset + jump)
            if step.flow.call:
                found.add(step.following)
                todo.append(step.following)
            if not step.flow.falls:
                break
            offset = step.following
    return found
