"""Harts that wait: wakeups between harts, by timers and devices; stopping and pausing; the host's time they take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.boards.memory_map import DRAM_BASE
from polyvisor.boards.virt import VirtConfig
from polyvisor.isa.riscv import rv64
from polyvisor.vm.machine import Machine
from support.programs import POWER_OFF

# Both harts wait for the other's interrupt, clear it and answer. Hart 0 begins, and counts.
PING_PONG = """
    csrwi sie, 2
    mv s0, a0
    li s2, 2
    beqz a0, turn
    li s2, 1
    j sleep
turn:
    li s3, {turns}
send:
    mv a0, s2
    li a1, 0
    li a6, 0
    li a7, 0x735049
    ecall
    bnez a0, power_off
sleep:
    wfi
    csrr t0, sip
    andi t0, t0, 2
    beqz t0, sleep
    csrci sip, 2
    bnez s0, send
    addi s3, s3, -1
    bnez s3, send
    li a0, 7
    j power_off
"""

# Both harts send the other interrupts as fast as they can; each is told of by a number in memory, and the last must be
# seen. Interrupts may coalesce; one that is lost leaves a hart asleep for good.
CROSSING = """
    la s1, words
    csrwi sie, 2
    slli t0, a0, 7
    add s4, s1, t0
    xori t1, a0, 1
    slli t1, t1, 7
    add s5, s1, t1
    li s2, 2
    beqz a0, begin
    li s2, 1
begin:
    mv s0, a0
    li s3, {turns}
    li s6, 0
send:
    addi s6, s6, 1
    fence
    sd s6, 0(s5)
    mv a0, s2
    li a1, 0
    li a6, 0
    li a7, 0x735049
    ecall
    bnez a0, power_off
    andi t0, s6, 7
    bnez t0, next
look:
    ld t0, 0(s4)
    bgeu t0, s6, next
    wfi
    csrci sip, 2
    fence
    j look
next:
    bne s6, s3, send
    bnez s0, done
    li a0, 7
settle:
    ld t0, 8(s4)
    beqz t0, settle
    j power_off
done:
    fence
    li t0, 1
    sd t0, 8(s5)
stop:
    wfi
    j stop
    .balign 4096
words:
    .space 4096
"""

# All harts fence all harts, at the same time, while they run and store; some are asleep in between.
FENCING = """
    la s1, words
    csrwi sie, 0
    mv s0, a0
    li s3, {turns}
again:
    li a0, {mask}
    li a1, 0
    li a2, 0
    li a3, -1
    li a6, 1
    li a7, 0x52464E43
    ecall
    bnez a0, power_off
    addi s3, s3, -1
    bnez s3, again
    li t0, 1
    amoadd.d t1, t0, (s1)
    bnez s0, stop
settle:
    ld t0, 0(s1)
    li t1, {harts}
    bne t0, t1, settle
    li a0, 7
    j power_off
stop:
    wfi
    j stop
    .balign 4096
words:
    .space 4096
"""

# Counts the timer's interrupts, asleep in between.
TICKING = """
    li t0, 0x20
    csrw sie, t0
    li s3, {turns}
again:
    csrr a0, time
    li t0, {ticks}
    add a0, a0, t0
    li a6, 0
    li a7, 0x54494D45
    ecall
sleep:
    wfi
    csrr t0, sip
    andi t0, t0, 0x20
    beqz t0, sleep
    addi s3, s3, -1
    bnez s3, again
    li a0, 7
    j power_off
"""

SLEEPING = """
    li t0, 0x222
    csrw sie, t0
    la s1, words
sleep:
    wfi
    ld t0, 0(s1)
    addi t0, t0, 1
    sd t0, 0(s1)
    csrci sip, 2
    j sleep
    .balign 4096
words:
    .space 4096
"""


@contextmanager
def machine(text: str, cpus: int = 1, tier: str = "interpreter") -> Iterator[Machine]:
    """A machine whose harts all begin at the program, in supervisor mode."""
    with Machine(VirtConfig(memory=16 << 20, cpus=cpus, tier=tier), lambda data: None) as made:
        board = made.board
        board.memory.write(DRAM_BASE, bytes(assemble(rv64, text, base=DRAM_BASE)))
        for hart in board.harts:
            hart.reset_supervisor_mode(DRAM_BASE, 0)
        board.boot_harts = list(board.harts)
        yield made


def ends(text: str, cpus: int = 1, tier: str = "interpreter") -> int | None:
    """The status a program ends with."""
    with machine(text, cpus, tier) as made:
        made.start()
        assert made.wait(120), f"it hangs at {[hex(int(h.state.pc)) for h in made.board.harts]}"
        return made.exit_code


def asleep(made: Machine) -> None:
    """Wait until all harts sleep."""
    while not all(int(h.cpu.engine.asleep) for h in made.board.harts):
        assert not made.wait(0.001)


def split(text: str) -> str:
    """The program with the routine that ends it before its data."""
    head, mark, data = text.partition("    .balign 4096\n")
    return head + POWER_OFF + mark + data


@pytest.mark.parametrize(("tier", "turns"), [("interpreter", 20000), ("reference", 30)])
def test_harts_wake_each_other(tier: str, turns: int) -> None:
    assert ends(split(PING_PONG.format(turns=turns)), 2, tier) == 7


@pytest.mark.parametrize(("tier", "turns"), [("interpreter", 100000), ("reference", 40)])
def test_interrupts_that_cross_are_not_lost(tier: str, turns: int) -> None:
    assert ends(split(CROSSING.format(turns=turns)), 2, tier) == 7


@pytest.mark.parametrize(("tier", "turns"), [("interpreter", 3000), ("reference", 5)])
@pytest.mark.parametrize("harts", [2, 4])
def test_harts_that_fence_each_other_do_not_wait_forever(tier: str, turns: int, harts: int) -> None:
    text = FENCING.format(turns=turns, harts=harts, mask=(1 << harts) - 1)
    assert ends(split(text), harts, tier) == 7


def test_a_fence_does_not_wait_for_harts_asleep() -> None:
    """Hart 1 sleeps with nothing enabled, and its request stays until it wakes."""
    text = "    bnez a0, stop\n" + FENCING.format(turns=1000, harts=1, mask=3)
    with machine(split(text), 2) as made:
        made.start()
        assert made.wait(60) and made.exit_code == 7


@pytest.mark.parametrize("tier", ["interpreter", "reference"])
def test_a_timer_wakes(tier: str) -> None:
    began = time.monotonic()
    assert ends(split(TICKING.format(turns=20, ticks=20000)), 1, tier) == 7
    assert time.monotonic() - began >= 20 * 20000 / 10_000_000, "not before it was due"


def test_the_platform_wakes_from_any_thread() -> None:
    with machine(SLEEPING) as made:
        words = DRAM_BASE + assemble(rv64, SLEEPING, base=DRAM_BASE).symbols["words"] % DRAM_BASE
        hart = made.board.harts[0]
        made.start()
        for turn in range(2000):
            seen = int.from_bytes(made.board.memory.read(words, 8), "little")
            hart.raise_ssip()
            while int.from_bytes(made.board.memory.read(words, 8), "little") == seen:
                assert not made.wait(0.00001), turn


@pytest.mark.parametrize("tier", ["interpreter", "reference"])
def test_sleeping_harts_are_paused_and_stopped_at_once(tier: str) -> None:
    """Not by the safety nets: many times in less than one of them takes."""
    with machine("sleep:\n    wfi\n    j sleep\n", 2, tier) as made:
        made.start()
        began = time.monotonic()
        for _ in range(50):
            made.pause()
            made.resume()
        assert time.monotonic() - began < 8
    # Closed: the threads have ended.
    assert time.monotonic() - began < 9


def test_single_steps_do_not_sleep() -> None:
    with machine("sleep:\n    wfi\n    j sleep\n") as made:
        made.start()
        asleep(made)
        made.pause()
        hart = made.board.harts[0]
        seen = set()
        for _ in range(8):
            found = hart.cpu.step()
            hart.handle(found)
            seen.add(int(hart.state.pc) - DRAM_BASE)
        assert seen == {0, 4}
        made.resume()
        asleep(made)


def test_a_breakpoint_behind_wfi_is_reached() -> None:
    """And a wfi under one sleeps as any other."""
    with machine(SLEEPING) as made:
        hart = made.board.harts[0]
        stopped = []
        hart.on_break = lambda at: stopped.append(int(at.state.pc))
        made.start()
        asleep(made)
        made.pause()
        places = [DRAM_BASE + n for n in range(0, 64, 4)]
        hart.cpu.set_breakpoints(places)
        hart.resume()
        while not stopped:
            hart.raise_ssip()
            assert not made.wait(0.001)
        assert stopped[0] in places


def test_a_waiting_machine_uses_no_processor() -> None:
    with machine("sleep:\n    wfi\n    j sleep\n", 4) as made:
        made.start()
        asleep(made)
        before = time.process_time()
        assert not made.wait(1.0)
        # Of one second of four harts: nearly nothing, but the test's own process does this and that.
        assert time.process_time() - before < 0.3
        assert all(int(h.cpu.engine.asleep) for h in made.board.harts)


def test_a_slow_timer_costs_little() -> None:
    """A hundred wakeups a second, as an idle kernel with a periodic tick has."""
    with machine(split(TICKING.format(turns=1_000_000, ticks=100_000))) as made:
        made.start()
        asleep(made)
        before = time.process_time()
        assert not made.wait(1.0)
        assert time.process_time() - before < 0.3
