"""Harts that sleep, and harts that make others look up: described functions around the host's futex.

The word that a hart sleeps on is ``asleep`` in its block. No wakeup is lost, and nobody reads before writing:

- The hart stores 1, fences (in `look_around`), then looks at everything it may have been woken for, and only then
  asks the host to sleep while the word is 1.
- Whoever wants something stores that first (a request byte, a line, a timer), stores 0 to ``limit``, fences, and then
  reads the word. If it is 1, it stores 0 and wakes.

Of two fences one is first. If the hart's is, the other side reads 1, so the hart's sleep is refused (the word is 0 by
then) or is ended. If the other's is, the hart sees what it wants. A wakeup that comes too late for one sleep ends the
next one early, which does no harm: whoever wakes looks at everything again. While a waker is between its store of 0
and its wakeup, others need not wake too, as that wakeup is still to come.

``look_around``, ``serve_flushes`` and ``clock`` are functions of :mod:`polyvisor.engine.runtime`, handed in.
"""

from __future__ import annotations

import os

from polyvisor.adl import function, u8, u32, u64, u128
from polyvisor.adl.host import cpu_address, host_call, peek, poke

from .layout import EngineState

# The number of the system call `futex`, by the host's architecture (those with 64 bits that Linux runs on).
_FUTEX_NUMBERS = {
    "x86_64": 202, "aarch64": 98, "riscv64": 98, "loongarch64": 98, "ppc64": 221, "ppc64le": 221, "s390x": 238
}
FUTEX = _FUTEX_NUMBERS.get(os.uname().machine, 0)
# FUTEX_WAIT (relative, by the monotonic clock) and FUTEX_WAKE, with FUTEX_PRIVATE_FLAG.
_WAIT, _WAKE = 0 | 128, 1 | 128

# The longest a hart sleeps before it looks again, in nanoseconds; only a safety net.
LONGEST_SLEEP = 10_000_000_000
_SECOND = 1_000_000_000
_NEVER = 2**64 - 1

LIMIT, ASLEEP, INSIDE, FLUSH_ALL, TIMEOUT = (
    EngineState.members[name].offset for name in ("limit", "asleep", "inside", "flush_all", "timeout")
)


# Sleeping


@function(inline=False)
def wait(cpu, arch, layout, look_around, clock) -> bool:
    """Sleep until hook `wake` has a reason not to; gives whether to return to the platform first."""
    if "wake" not in arch.hooks:
        return False
    cpu.asleep = u32(1)
    leave = look_around(cpu, arch, layout)
    while not leave and not arch.hooks["wake"](cpu):
        sleep(cpu, arch, clock)
        cpu.asleep = u32(1)
        leave = look_around(cpu, arch, layout)
    # Whoever still read 1 takes it that its request is served before anything is executed: look at `limit` after this.
    cpu.asleep = u32(0)
    cpu.fence()
    return leave


@function(inline=False)
def sleep(cpu, arch, clock) -> None:
    """Sleep while ``asleep`` is 1, until hook `deadline` at most."""
    nanoseconds = u64(LONGEST_SLEEP)
    if "deadline" in arch.hooks:
        when = arch.hooks["deadline"](cpu)
        if when != _NEVER:
            now = clock(cpu, arch)
            if when <= now:
                return
            wanted = (u128(when - now) * u128(cpu.clock_period)) >> 32
            if wanted < LONGEST_SLEEP:
                nanoseconds = u64(wanted) + 1
    cpu.timeout[0] = nanoseconds // _SECOND
    cpu.timeout[1] = nanoseconds % _SECOND
    block = cpu_address(cpu)
    host_call(
        cpu, "syscall", u64(FUTEX), block + ASLEEP, u64(_WAIT), u64(1), block + TIMEOUT, u64(0), u64(0)
    )


# Making others look


@function(inline=False)
def rouse(cpu, block: u64) -> None:
    """Make the hart with this block look at what was stored for it before, wherever it is."""
    poke(u64, block + LIMIT, u64(0))
    cpu.fence()
    if peek(u32, block + ASLEEP) != 0:
        poke(u32, block + ASLEEP, u32(0))
        host_call(cpu, "syscall", u64(FUTEX), block + ASLEEP, u64(_WAKE), u64(1), u64(0), u64(0), u64(0))


@function(inline=False)
def send(cpu, offset, number: u64, value: u8) -> None:
    """Store a byte at ``offset`` in the block of CPU ``number``, and make it look."""
    block = peek(u64, cpu.peers + number * 8)
    poke(u8, block + offset, value)
    rouse(cpu, block)


@function(inline=False)
def quiet(cpu, block: u64) -> bool:
    """Whether a hart that was asked to flush has, or is certain to before it executes anything.

    It is where it is not in native code, or asleep: having said that it is again, it fences and looks at ``limit``.
    """
    return peek(u8, block + FLUSH_ALL) == 0 or peek(u8, block + INSIDE) == 0 or peek(u32, block + ASLEEP) != 0


@function(inline=False)
def flush_and_wait(cpu, arch, layout, serve_flushes, first: u64, mask: u64) -> None:
    """Make other CPUs, ``first + n`` for every bit n of ``mask``, forget translations; returns when that is certain.

    Two that do this to each other serve each other's request while they wait. Nothing else keeps a hart that is in
    native code from looking: a device's callback waits for no other hart, or it would be stuck without this, too.
    """
    own = cpu_address(cpu)
    number = u64(0)
    while number < 64 and first + number < cpu.cpu_count:
        if (mask >> number) & 1 != 0:
            block = peek(u64, cpu.peers + (first + number) * 8)
            if block != own:
                poke(u8, block + FLUSH_ALL, u8(1))
                poke(u64, block + LIMIT, u64(0))
        number = number + 1
    cpu.fence()
    number = u64(0)
    while number < 64 and first + number < cpu.cpu_count:
        if (mask >> number) & 1 != 0:
            block = peek(u64, cpu.peers + (first + number) * 8)
            turns = u32(0)
            while block != own and not quiet(cpu, block):
                # Its write of the next limit may have overtaken ours, with the request still unread.
                poke(u64, block + LIMIT, u64(0))
                serve_flushes(cpu, arch, layout)
                cpu.fence()
                turns = turns + 1
                if turns > 100:
                    host_call(cpu, "sched_yield")
        number = number + 1
