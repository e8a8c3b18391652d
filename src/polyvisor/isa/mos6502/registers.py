"""Instructions between registers, of single flags, and of the stack."""

from polyvisor.adl import Function, function, u8

from . import operations as op
from .architecture import mos6502
from .bus import fetch, pull, push, stack_idle
from .flags import change_i, set_nz, set_status, status
from .forms import add, implied


def transfer(opcode: int, name: str, source: str, target: str, step: int = 0) -> None:
    """Add an instruction that gives a register another one's value, or its own plus ``step``."""

    @function
    def execute(cpu) -> None:
        value = getattr(cpu, source) + (step & 0xFF)
        setattr(cpu, target, value)
        if target != "s":
            set_nz(cpu, value)

    implied(mos6502, name, execute, opcode)


transfer(0xAA, "tax", "a", "x")
transfer(0xA8, "tay", "a", "y")
transfer(0x8A, "txa", "x", "a")
transfer(0x98, "tya", "y", "a")
transfer(0xBA, "tsx", "s", "x")
transfer(0x9A, "txs", "x", "s")
transfer(0xE8, "inx", "x", "x", 1)
transfer(0xC8, "iny", "y", "y", 1)
transfer(0xCA, "dex", "x", "x", -1)
transfer(0x88, "dey", "y", "y", -1)


def flag(opcode: int, name: str, which: str, value: int) -> None:
    """Add an instruction that changes a flag."""

    @function
    def execute(cpu) -> None:
        if which == "i":
            change_i(cpu, u8(value))
        else:
            setattr(cpu, which, u8(value))

    implied(mos6502, name, execute, opcode)


flag(0x18, "clc", "c", 0)
flag(0x38, "sec", "c", 1)
flag(0xD8, "cld", "d", 0)
flag(0xF8, "sed", "d", 1)
flag(0xB8, "clv", "v", 0)
flag(0x58, "cli", "i", 0)
flag(0x78, "sei", "i", 1)


def accumulator(opcode: int, name: str, operation: Function) -> None:
    """Add an instruction that changes the accumulator."""

    @function
    def execute(cpu) -> None:
        cpu.a = operation(cpu, cpu.a)

    implied(mos6502, f"{name} a", execute, opcode)


accumulator(0x0A, "asl", op.asl)
accumulator(0x2A, "rol", op.rol)
accumulator(0x4A, "lsr", op.lsr)
accumulator(0x6A, "ror", op.ror)


@function
def nothing(cpu) -> None:
    pass


implied(mos6502, "nop", nothing, 0xEA)


# The stack


@function
def pushed(cpu, register) -> u8:
    if register == "p":
        return status(cpu) | 0x10
    return getattr(cpu, register)


def push_register(architecture, opcode: int, name: str, register: str) -> None:
    """Add an instruction that pushes a register."""

    @function
    def execute(cpu) -> None:
        fetch(cpu, 0)
        fetch(cpu, 1)
        push(cpu, pushed(cpu, register))

    add(architecture, opcode, name, execute)


def pull_register(architecture, opcode: int, name: str, register: str) -> None:
    """Add an instruction that pulls a register."""

    @function
    def execute(cpu) -> None:
        fetch(cpu, 0)
        fetch(cpu, 1)
        stack_idle(cpu)
        value = pull(cpu)
        if register == "p":
            before = cpu.i
            set_status(cpu, value)
            cpu.i_before = before
            cpu.i_changed = cpu.cycles()
        else:
            setattr(cpu, register, value)
            set_nz(cpu, value)

    add(architecture, opcode, name, execute)


push_register(mos6502, 0x48, "pha", "a")
push_register(mos6502, 0x08, "php", "p")
pull_register(mos6502, 0x68, "pla", "a")
pull_register(mos6502, 0x28, "plp", "p")
