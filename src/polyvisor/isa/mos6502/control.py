"""Jumps, branches, subroutines, and the software interrupt."""

from functools import partial

from polyvisor.adl import FETCH, READ, function, i8, i64, u8, u16, u64, unlikely

from .architecture import mos6502
from .bus import STACK, fetch, pull, push, read_word, stack_idle
from .flags import set_status, status
from .forms import add
from .interrupts import enter

jump = partial(add, mos6502)


# Branches. Interrupts are looked for before the cycle in which a branch is taken, and if it leaves the page once more
# before the last (W. Steil and others, "6502 interrupt polling"; see `interrupts`).


@function
def branch(cpu, taken: bool, distance: i8) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    if taken:
        fetch(cpu, 2)
        following = u16(cpu.pc) + 2
        target = cpu.next_pc + u64(i64(distance))
        wrong = following & 0xFF00 | u16(target) & 0xFF
        if wrong != u16(target):
            cpu.cycle(FETCH, u64(wrong))
        else:
            cpu.branched = cpu.cycles()
        cpu.next_pc = target


@function
def is_set(cpu, flag) -> bool:
    if flag == "n":
        return cpu.n >= 0x80
    if flag == "z":
        return cpu.z == 0
    return getattr(cpu, flag) != 0


def branch_if(opcode: int, name: str, flag: str, wanted: bool) -> None:
    """Add a branch by a flag."""

    def instruction(cpu, target: i8):
        branch(cpu, is_set(cpu, flag) == wanted, target)

    instruction.__name__ = name
    mos6502.instruction(f"{opcode:08b} / target:8", f"{name} {{target:target}}")(instruction)


branch_if(0x10, "bpl", "n", False)
branch_if(0x30, "bmi", "n", True)
branch_if(0x50, "bvc", "v", False)
branch_if(0x70, "bvs", "v", True)
branch_if(0x90, "bcc", "c", False)
branch_if(0xB0, "bcs", "c", True)
branch_if(0xD0, "bne", "z", False)
branch_if(0xF0, "beq", "z", True)


# Jumps


@function
def jmp(cpu, operand: u16) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    fetch(cpu, 2)
    cpu.next_pc = u64(operand)


@function
def jmp_indirect(cpu, operand: u16) -> None:
    """NMOS reads both bytes of the target from one page."""
    fetch(cpu, 0)
    fetch(cpu, 1)
    fetch(cpu, 2)
    if cpu.has("cmos"):
        fetch(cpu, 2)
        cpu.next_pc = u64(read_word(cpu, operand, operand + 1))
    else:
        cpu.next_pc = u64(read_word(cpu, operand, operand & 0xFF00 | operand + 1 & 0xFF))


@function
def jsr(cpu, operand: u16) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    stack_idle(cpu)
    back = u16(cpu.pc) + 2
    push(cpu, u8(back >> 8))
    push(cpu, u8(back))
    fetch(cpu, 2)
    if unlikely(back & 0xFF00 == STACK):
        # The target's high byte is read last: what was pushed may have gone over it.
        cpu.next_pc = u64(operand & 0xFF | u16(cpu.load(u8, u64(back))) << 8)
    else:
        cpu.next_pc = u64(operand)


@function
def rts(cpu) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    stack_idle(cpu)
    low = pull(cpu)
    target = u16(low) | u16(pull(cpu)) << 8
    cpu.cycle(READ, u64(target))
    cpu.next_pc = u64(target + 1)


@function
def rti(cpu) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    stack_idle(cpu)
    set_status(cpu, pull(cpu))
    low = pull(cpu)
    cpu.next_pc = u64(u16(low) | u16(pull(cpu)) << 8)


@function
def brk(cpu, operand: u8) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    enter(cpu, u16(cpu.pc) + 2, status(cpu) | 0x10)


jump(0x4C, "jmp {operand:word}", jmp, 2)
jump(0x6C, "jmp ({operand:word})", jmp_indirect, 2)
jump(0x20, "jsr {operand:word}", jsr, 2)
jump(0x60, "rts", rts)
jump(0x40, "rti", rti)
jump(0x00, "brk #{operand:byte}", brk, 1)
