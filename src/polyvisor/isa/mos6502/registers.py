"""Instructions between registers and of single flags."""

from functools import partial

from polyvisor.adl import function, u8

from . import operations as op
from .architecture import mos6502
from .bus import fetch, pull, push, stack_idle
from .flags import change_i, set_status, status
from .forms import add, implied

plain = partial(implied, mos6502)


@function
def tax(cpu) -> None:
    op.ldx(cpu, cpu.a)


@function
def tay(cpu) -> None:
    op.ldy(cpu, cpu.a)


@function
def txa(cpu) -> None:
    op.lda(cpu, cpu.x)


@function
def tya(cpu) -> None:
    op.lda(cpu, cpu.y)


@function
def tsx(cpu) -> None:
    op.ldx(cpu, cpu.s)


@function
def txs(cpu) -> None:
    cpu.s = cpu.x


@function
def inx(cpu) -> None:
    op.ldx(cpu, cpu.x + 1)


@function
def iny(cpu) -> None:
    op.ldy(cpu, cpu.y + 1)


@function
def dex(cpu) -> None:
    op.ldx(cpu, cpu.x - 1)


@function
def dey(cpu) -> None:
    op.ldy(cpu, cpu.y - 1)


@function
def clc(cpu) -> None:
    cpu.c = u8(0)


@function
def sec(cpu) -> None:
    cpu.c = u8(1)


@function
def cld(cpu) -> None:
    cpu.d = u8(0)


@function
def sed(cpu) -> None:
    cpu.d = u8(1)


@function
def clv(cpu) -> None:
    cpu.v = u8(0)


@function
def cli(cpu) -> None:
    change_i(cpu, u8(0))


@function
def sei(cpu) -> None:
    change_i(cpu, u8(1))


@function
def nop(cpu) -> None:
    pass


plain("tax", tax, 0xAA)
plain("tay", tay, 0xA8)
plain("txa", txa, 0x8A)
plain("tya", tya, 0x98)
plain("tsx", tsx, 0xBA)
plain("txs", txs, 0x9A)
plain("inx", inx, 0xE8)
plain("iny", iny, 0xC8)
plain("dex", dex, 0xCA)
plain("dey", dey, 0x88)
plain("clc", clc, 0x18)
plain("sec", sec, 0x38)
plain("cld", cld, 0xD8)
plain("sed", sed, 0xF8)
plain("clv", clv, 0xB8)
plain("cli", cli, 0x58)
plain("sei", sei, 0x78)
plain("nop", nop, 0xEA)


# Of the accumulator


def accumulator(operation):
    @function
    def execute(cpu) -> None:
        cpu.a = operation(cpu, cpu.a)

    return execute


for name, operation, opcode in (
    ("asl", op.asl, 0x0A), ("rol", op.rol, 0x2A), ("lsr", op.lsr, 0x4A), ("ror", op.ror, 0x6A),
):  # fmt: skip
    plain(f"{name} a", accumulator(operation), opcode)


# The stack


@function
def pha(cpu) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    push(cpu, cpu.a)


@function
def php(cpu) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    push(cpu, status(cpu) | 0x10)


@function
def pla(cpu) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    stack_idle(cpu)
    op.lda(cpu, pull(cpu))


@function
def plp(cpu) -> None:
    fetch(cpu, 0)
    fetch(cpu, 1)
    stack_idle(cpu)
    value = pull(cpu)
    before = cpu.i
    set_status(cpu, value)
    cpu.i_before = before
    cpu.i_changed = cpu.cycles()


add(mos6502, 0x48, "pha", pha)
add(mos6502, 0x08, "php", php)
add(mos6502, 0x68, "pla", pla)
add(mos6502, 0x28, "plp", plp)
