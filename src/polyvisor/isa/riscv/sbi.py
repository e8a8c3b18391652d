"""The calls of the Supervisor Binary Interface that kernels make all the time: timer, interrupts, remote fences.

RISC-V SBI Specification 2.0, chapters 6 (TIME), 7 (IPI) and 8 (RFENCE); section names are those of the
specification. The platform serves what is not here. CPUs are numbered as harts are.
"""

from polyvisor.adl import function, u8, u64

TIME, IPI, RFENCE = 0x54494D45, 0x735049, 0x52464E43
_ALL = 2**64 - 1
_INVALID_PARAM, _INVALID_ADDRESS = 2**64 - 3, 2**64 - 5


@function
def answer(cpu, error: u64) -> bool:
    """Return an error code (0: none) and the value 0."""
    cpu.x[10] = error
    cpu.x[11] = u64(0)
    return True


@function
def valid(cpu, mask: u64, base: u64) -> bool:
    """Whether all harts of a "hart list parameter" exist."""
    if base == _ALL:
        return True
    count = cpu.cpus()
    return base < count and (count - base >= 64 or mask >> ((count - base) & 63) == 0)


@function
def listed(mask: u64, base: u64, number: u64) -> bool:
    """Whether a hart is in a list."""
    return base == _ALL or (number - base < 64 and (mask >> ((number - base) & 63)) & 1 != 0)


@function
def send_ipi(cpu, mask: u64, base: u64) -> bool:
    """ "IPI Extension". A hart that is not started forgets it when it starts."""
    if not valid(cpu, mask, base):
        return answer(cpu, u64(_INVALID_PARAM))
    number = u64(0)
    while number < cpu.cpus():
        if listed(mask, base, number):
            cpu.signal(number, "raise_ssip", u8(1))
        number = number + 1
    return answer(cpu, u64(0))


@function
def remote_fence(cpu, mask: u64, base: u64) -> bool:
    """ "RFENCE Extension": fences that return when they have taken effect. Each is a full one."""
    if not valid(cpu, mask, base):
        return answer(cpu, u64(_INVALID_PARAM))
    if base == _ALL:
        first = u64(0)
        while first < cpu.cpus():
            cpu.flush_others(first, u64(_ALL))
            first = first + 64
    else:
        cpu.flush_others(base, mask)
    if listed(mask, base, cpu.mhartid):
        cpu.flush_tlb()
    return answer(cpu, u64(0))


@function(inline=False)
def served(cpu) -> bool:
    """Serve the call in the registers, where it is one of these; gives whether it is."""
    extension = cpu.x[17]
    number = cpu.x[16]
    mask = cpu.x[10]
    base = cpu.x[11]
    if extension == TIME and number == 0:
        cpu.stimecmp = mask
        return answer(cpu, u64(0))
    if extension == IPI and number == 0:
        return send_ipi(cpu, mask, base)
    if extension == RFENCE and number <= 2:
        end = cpu.x[12] + cpu.x[13]
        if number != 0 and valid(cpu, mask, base) and cpu.x[13] != _ALL and end < cpu.x[12] and end != 0:
            return answer(cpu, u64(_INVALID_ADDRESS))
        return remote_fence(cpu, mask, base)
    return False
