"""The time counter as described functions: real time, and virtual time, in which an instruction is a nanosecond.

Virtual time is ``retired + virtual_base`` nanoseconds. Who runs several CPUs in turn sets ``virtual_base`` before each
one's turn, so that the machine has one time.

In virtual time a run must not depend on when native code happens to look around: what is compiled by then decides that.
So nothing may become pending at any other place than where an instruction makes it so, or where a turn ends; and a turn
ends when the CPU's own timer is due (:func:`bound_turn`).
"""

from __future__ import annotations

from polyvisor.adl import u32, u64, u128
from polyvisor.adl.host import cpu_address, host_call

from .access import engine
from .layout import NO_TAG, REGION_INSTRUCTIONS, EngineState

_TIMESPEC_OFFSET = EngineState.members["timespec"].offset
_SECOND = 1_000_000_000
_MOST_SECONDS = 1 << 33  # of virtual time: what comes later never comes
_NEVER = NO_TAG


@engine()
def clock(cpu, arch) -> u64:
    """The platform's time counter, in ticks: for a clocked CPU, its own cycles."""
    if arch.clocked:
        return cpu.retired
    if cpu.clock_virtual != 0:
        return virtual_ticks(cpu) + cpu.clock_offset
    place = cpu_address(cpu) + _TIMESPEC_OFFSET
    host_call(cpu, "clock_gettime", u64(1), place)  # CLOCK_MONOTONIC
    base = cpu.timespec[0] * _SECOND + cpu.timespec[1]
    return u64((u128(base) * u128(cpu.clock_scale)) >> 32) + cpu.clock_offset


@engine()
def virtual_ticks(cpu) -> u64:
    """Whole ticks since virtual time 0."""
    now = cpu.retired + cpu.virtual_base
    frequency = cpu.clock_frequency
    return now // _SECOND * frequency + now % _SECOND * frequency // _SECOND


@engine()
def due_at(cpu, arch) -> u64:
    """The virtual time, in nanoseconds, at which hook `deadline` wants to be looked at; all ones for never.

    It depends on the state alone, not on the time now, unless that is later.
    """
    when = arch.hooks["deadline"](cpu)
    if when == _NEVER:
        return u64(_NEVER)
    if arch.clocked:
        return when + cpu.virtual_base
    now = clock(cpu, arch)
    if when <= now:
        return cpu.retired + cpu.virtual_base
    ticks = virtual_ticks(cpu) + (when - now)
    frequency = cpu.clock_frequency
    seconds = ticks // frequency
    if when - now >= 1 << 62 or seconds >= _MOST_SECONDS:
        return u64(_NEVER)
    return seconds * _SECOND + (ticks % frequency * _SECOND + frequency - 1) // frequency


@engine()
def bound_regions(cpu) -> None:
    """Let regions look around about where others do, and leave the end of a turn to the interpreter."""
    limit = cpu.limit + REGION_INSTRUCTIONS
    cpu.region_limit = limit if limit < cpu.stop_at else cpu.stop_at


@engine()
def bound_turn(cpu, arch) -> bool:
    """Let the turn end when the CPU's timer is due, if that is sooner; gives whether it is."""
    if "deadline" not in arch.hooks:
        return False
    count = due_at(cpu, arch) - cpu.virtual_base
    # A timer that is due already, and not taken, is pending: only an instruction can change that.
    if count > cpu.retired and count < cpu.stop_at:
        cpu.stop_at = count
        if count < cpu.limit:
            cpu.limit = count
        bound_regions(cpu)
        return True
    return False


@engine()
def bus_cycle(cpu, arch, access, vaddr: u64) -> None:
    """A clock cycle passes, in which the CPU uses the bus; others may have it first."""
    if "bus" in arch.hooks and cpu.retired >= cpu.event_at:
        arch.hooks["bus"](cpu, u32(access), vaddr)
    cpu.retired = cpu.retired + 1


@engine()
def wakes_at(cpu, arch) -> u64:
    """When a CPU that waits goes on, in nanoseconds of virtual time: 0 for now, all ones if time is no reason."""
    if "wake" not in arch.hooks or arch.hooks["wake"](cpu):
        return u64(0)
    if "deadline" not in arch.hooks:
        return u64(_NEVER)
    return due_at(cpu, arch)
