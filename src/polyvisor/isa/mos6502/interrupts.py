"""Interrupts: when they are looked for, and how they are entered.

The CPU looks at its lines in each instruction's last cycle but one; an instruction that changes I does so afterwards,
a taken branch within a page looks a cycle earlier, and the entry of an interrupt does not look at all.  Sources:
MCS6500 Family Hardware Manual, section 1.4; Visual6502's "6502 Timing States" and "Interrupt recognition".
"""

from polyvisor.adl import Trap, function, u8, u16, u32, u64

from .architecture import NEVER, mos6502, status
from .bus import fetch, push, read_word

NMI_VECTOR, RESET_VECTOR, IRQ_VECTOR = 0xFFFA, 0xFFFC, 0xFFFE
IRQ, NMI, NOTHING_THERE = 1, 2, 3


@function
def set_irq(cpu, device: u8, low: bool, cycle: u64) -> None:
    """Pull the IRQ line down for a device (a bit), or let it go, in the clock cycle of that number (from 0)."""
    before = cpu.irq_lines
    cpu.irq_lines = before | device if low else before & ~device
    if low and before == 0:
        cpu.irq_since = cycle
    if not low and before == device:
        cpu.irq_until = cycle


@function
def set_nmi(cpu, device: u8, low: bool, cycle: u64) -> None:
    """The same for the NMI line: the interrupt is where it falls."""
    before = cpu.nmi_lines
    cpu.nmi_lines = before | device if low else before & ~device
    if low and before == 0:
        cpu.nmi_pending, cpu.nmi_since = u8(1), cycle


@mos6502.hook("poll")
def take_interrupts(cpu) -> None:
    """Enter an interrupt that the instruction which has just ended saw."""
    now = cpu.cycles()
    if cpu.vectored != now:
        seen = now - 3 if cpu.branched == now else now - 2
        if cpu.nmi_pending != 0 and cpu.nmi_since <= seen:
            raise Trap(NMI)
        masked = cpu.i_before if cpu.i_changed == now else cpu.i
        # Of a line that was let go in the last cycle, the CPU does not know yet.
        low = cpu.irq_lines != 0 or seen < cpu.irq_until
        if low and masked == 0 and cpu.irq_since <= seen:
            raise Trap(IRQ)


@mos6502.hook("deadline")
def next_look(cpu) -> u64:
    """While an interrupt waits to be seen: after the next instruction."""
    if cpu.nmi_pending != 0 or (cpu.irq_lines != 0 and (cpu.i == 0 or cpu.i_changed == cpu.cycles())):
        return cpu.cycles() + 1
    return u64(NEVER)


@mos6502.hook("on_trap")
def interrupt(cpu, cause: u64) -> None:
    """The sequence of an interrupt, as that of BRK but for the flag B and where it goes on afterwards."""
    if cause == NOTHING_THERE:
        cpu.leave("bus error")
        cpu.next_pc = u64(cpu.pc)
    else:
        fetch(cpu, 0)
        fetch(cpu, 0)
        enter(cpu, u16(cpu.pc), status(cpu))


@function
def enter(cpu, back: u16, flags: u8) -> None:
    """Push where to go on and the flags, and jump by the vector of what is most urgent by then."""
    push(cpu, u8(back >> 8))
    push(cpu, u8(back))
    push(cpu, flags)
    vector = u16(IRQ_VECTOR)
    if cpu.nmi_pending != 0 and cpu.nmi_since + 1 < cpu.cycles():
        vector = u16(NMI_VECTOR)
        cpu.nmi_pending = u8(0)
    cpu.i = u8(1)
    if cpu.has("cmos"):
        cpu.d = u8(0)
    cpu.next_pc = u64(read_word(cpu, vector, vector + 1))
    cpu.vectored = cpu.cycles()


@mos6502.hook("on_illegal")
def on_illegal(cpu, word: u64) -> None:
    """There are none."""
    raise Trap(NOTHING_THERE)


@mos6502.hook("on_bus_error")
def on_bus_error(cpu, vaddr: u64, access: u32) -> None:
    """A CPU cannot tell that nothing answers; a machine without anything there is none, and stops."""
    raise Trap(NOTHING_THERE)
