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


def branch_if(architecture, opcode: int, name: str, condition) -> None:
    """Add a branch: taken if ``condition(cpu)`` says so."""

    def instruction(cpu, target: i8):
        branch(cpu, condition(cpu), target)

    instruction.__name__ = name
    architecture.instruction(f"{opcode:08b} / target:8", f"{name} {{target:target}}")(instruction)


@function
def plus(cpu) -> bool:
    return cpu.n < 0x80


@function
def minus(cpu) -> bool:
    return cpu.n >= 0x80


@function
def no_overflow(cpu) -> bool:
    return cpu.v == 0


@function
def overflow(cpu) -> bool:
    return cpu.v != 0


@function
def no_carry(cpu) -> bool:
    return cpu.c == 0


@function
def carry(cpu) -> bool:
    return cpu.c != 0


@function
def not_equal(cpu) -> bool:
    return cpu.z != 0


@function
def equal(cpu) -> bool:
    return cpu.z == 0


branch_if(mos6502, 0x10, "bpl", plus)
branch_if(mos6502, 0x30, "bmi", minus)
branch_if(mos6502, 0x50, "bvc", no_overflow)
branch_if(mos6502, 0x70, "bvs", overflow)
branch_if(mos6502, 0x90, "bcc", no_carry)
branch_if(mos6502, 0xB0, "bcs", carry)
branch_if(mos6502, 0xD0, "bne", not_equal)
branch_if(mos6502, 0xF0, "beq", equal)


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
