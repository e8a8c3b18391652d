"""Hooks of every kind that mix all they are told into one number, in the order in which they are told it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from polyvisor import hooks
from polyvisor.hooks import Field, Hook, Maximum, Registers, Ring, function, u8, u32, u64

from .fuzz_machine import CODE, PAGE, WINDOWS, Tier

# What a hook is told in one tier and not in another must change this for good.
_FACTOR = 6364136223846793005


class Told(hooks.State):
    """What the hooks below have been told."""

    mixed = Field(u64)
    events = Registers(u64, 8)
    sizes = Registers(u32, 9)
    highest = Maximum(u64)
    last = Ring(u64, 8)
    odd = Field(u8)


@function
def mix(hook, kind: u64, a: u64, b: u64):
    hook.mixed = hook.mixed * _FACTOR + (a ^ b << 1) + kind
    hook.events[kind] = hook.events[kind] + 1


@hooks.on_instruction
def instruction(hook, cpu, address):
    mix(hook, 0, address, cpu.x[10] + cpu.instructions())


@hooks.on_block
def block(hook, cpu, address):
    mix(hook, 1, address, cpu.pc)
    if address > hook.highest:
        hook.highest = address


@hooks.on_read
def read(hook, cpu, address, value, size):
    mix(hook, 2, address, value)
    hook.sizes[size] += 1


@hooks.on_write
def write(hook, cpu, address, value, size):
    mix(hook, 3, address, value + u64(size))
    hook.last.append(address + cpu.pc)


@hooks.on_csr_write
def csr_write(hook, csr, value):
    mix(hook, 4, u64(csr), value)


@hooks.on_trap
def trap(hook, cpu, cause, value):
    mix(hook, 5, cause, value ^ cpu.pc)


@hooks.on_syscall
def syscall(hook, cpu, number, arg0: u8):
    mix(hook, 6, number, u64(cpu.privilege))
    hook.odd = arg0


EVERY: tuple[Hook, ...] = (instruction, block, read, write, csr_write, trap, syscall)
Chosen = Sequence[tuple[Hook, range | None]]


def choose(rng: random.Random) -> Chosen:
    """Some of them, for some addresses."""
    found: list[tuple[Hook, range | None]] = []
    for hook in rng.sample(EVERY, rng.randrange(1, len(EVERY) + 1)):
        where = None
        if hook in EVERY[:4] and rng.random() < 0.5:
            start = rng.choice(list(WINDOWS.values())) + rng.randrange(CODE * PAGE * 3)
            where = range(start, start + rng.choice((1, 6, 300, PAGE, 20 * PAGE)))
        found.append((hook, where))
    return found


def swap(rng: random.Random, *tiers: Tier) -> None:
    """Other hooks in the tiers, or none: the same in all."""
    chosen = choose(rng) if rng.random() < 0.8 else None
    for tier in tiers:
        tier.hook(Told if chosen is not None else None, chosen or ())
