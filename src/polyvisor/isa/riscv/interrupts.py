"""Which interrupts are pending, and taking them (Privileged Architecture, 3.1.6.1 and 3.1.9)."""

from polyvisor.adl import Trap, bit, function, u8, u64, unlikely

from .architecture import rv64

SSIP, MSIP, STIP, MTIP, SEIP, MEIP = 1 << 1, 1 << 3, 1 << 5, 1 << 7, 1 << 9, 1 << 11
SUPERVISOR = SSIP | STIP | SEIP
ALL = SUPERVISOR | MSIP | MTIP | MEIP
INTERRUPT = 1 << 63
STCE = 63  # in menvcfg
MSTATUS_SIE, MSTATUS_MIE = 1, 3

# Highest priority first (3.1.9).
_PRIORITY = (11, 3, 7, 9, 1, 5)


@function
def take_in_ssip(cpu):
    """Fold an inter-processor interrupt that the platform raised into mip."""
    if cpu.raise_ssip != 0:
        cpu.raise_ssip = u8(0)
        cpu.mip = cpu.mip | SSIP
        # What software reads from now on is at least as new as what came before the next interrupt.
        cpu.fence()


@function(inline=False)
def pending(cpu) -> u64:
    """mip as software reads it: what was written, the lines, and the timers."""
    take_in_ssip(cpu)
    bits = cpu.mip
    bits = bits | u64(cpu.line_msip) << 3 | u64(cpu.line_mtip) << 7
    bits = bits | u64(cpu.line_meip) << 11 | u64(cpu.line_seip) << 9
    supervisor_timer = bit(cpu.menvcfg, STCE)
    if supervisor_timer:
        bits = bits & ~u64(STIP)
    # The clock is read only where somebody waits for it.
    if cpu.mtimecmp != 2**64 - 1 or (supervisor_timer and cpu.stimecmp != 2**64 - 1):
        now = cpu.clock()
        if now >= cpu.mtimecmp:
            bits = bits | MTIP
        if supervisor_timer and now >= cpu.stimecmp:
            bits = bits | STIP
    return bits


@rv64.hook("poll")
def poll(cpu):
    """Take the pending interrupt of highest priority that is enabled here."""
    # Most looks come while the kernel has interrupts off: then there is nothing to find out.
    wanted = cpu.mie
    if cpu.privilege == 3 and not bit(cpu.mstatus, MSTATUS_MIE):
        wanted = u64(0)
    if cpu.privilege == 1 and not bit(cpu.mstatus, MSTATUS_SIE):
        wanted = wanted & ~cpu.mideleg
    if wanted != 0:
        waiting = pending(cpu) & cpu.mie
        if unlikely(waiting != 0):
            machine = waiting & ~cpu.mideleg
            supervisor = waiting & cpu.mideleg
            if cpu.privilege == 3 and not bit(cpu.mstatus, MSTATUS_MIE):
                machine = u64(0)
            if cpu.privilege == 3 or (cpu.privilege == 1 and not bit(cpu.mstatus, MSTATUS_SIE)):
                supervisor = u64(0)
            taken = machine if machine != 0 else supervisor
            if taken != 0:
                for number in _PRIORITY:
                    if bit(taken, number):
                        raise Trap(INTERRUPT | number, 0)


@rv64.hook("wake")
def wake(cpu) -> bool:
    """WFI ends when an interrupt is pending that is enabled in mie, whatever mstatus says (3.3.3)."""
    return pending(cpu) & cpu.mie != 0


@rv64.hook("deadline")
def deadline(cpu) -> u64:
    """The earlier of the timers that can interrupt."""
    when = u64(2**64 - 1)
    if cpu.mie & MTIP != 0:
        when = cpu.mtimecmp
    if cpu.mie & STIP != 0 and bit(cpu.menvcfg, STCE) and cpu.stimecmp < when:
        when = cpu.stimecmp
    return when
