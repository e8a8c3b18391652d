"""Several harts at once: atomics, code that one hart writes and another runs, interrupts between harts."""

from __future__ import annotations

import pytest
from test_machine import run

from polyvisor.engine.codepages import CodePages
from support.programs import POWER_OFF

COUNTING = """
    li s0, {turns}
    la s1, counters
again:
    li t0, 1
    amoadd.d t1, t0, (s1)
    addi s2, s1, 64
retry:
    lr.d t1, (s2)
    addi t1, t1, 1
    sc.d t2, t1, (s2)
    bnez t2, retry
    addi s3, s1, 128
lock:
    li t0, 1
    amoswap.w.aq t1, t0, (s3)
    bnez t1, lock
    ld t1, 8(s3)
    addi t1, t1, 1
    sd t1, 8(s3)
    amoswap.w.rl zero, zero, (s3)
    addi s0, s0, -1
    bnez s0, again
    addi s4, s1, 192
    li t0, 1
    amoadd.d t1, t0, (s4)
    csrr t0, mhartid
    bnez t0, park
wait:
    ld t1, 0(s4)
    li t2, {harts}
    bne t1, t2, wait
    fence
    li a0, 1
    li t0, {total}
    ld t1, 0(s1)
    bne t0, t1, power_off
    li a0, 2
    ld t1, 64(s1)
    bne t0, t1, power_off
    li a0, 3
    ld t1, 136(s1)
    bne t0, t1, power_off
    li a0, 0
    j power_off
park:
    wfi
    j park
"""


@pytest.mark.parametrize("harts", [2, 4])
def test_atomics_lose_no_update(harts: int) -> None:
    turns = 20000
    text = COUNTING.format(turns=turns, harts=harts, total=turns * harts) + POWER_OFF
    text += "\n    .balign 4096\ncounters:\n    .space 4096\n"
    assert run(text, cpus=harts)[0] == 0


# Hart 0 rewrites a routine in a page that hart 1 executes, and tells it each time by a word in memory; hart 1 runs
# fence.i, calls it, and answers with what it returned.
REWRITING = """
    la s0, routine
    la s1, words
    csrr t0, mhartid
    bnez t0, runner
    li s2, 1
next:
    slli t1, s2, 20
    li t2, 0x513
    add t1, t1, t2
    sw t1, 0(s0)
    fence
    sd s2, 0(s1)
answer:
    ld t1, 64(s1)
    bne t1, s2, answer
    addi s2, s2, 1
    li t2, 400
    bne s2, t2, next
    li a0, 0
    j power_off
runner:
    li s3, 0
poll:
    ld t1, 0(s1)
    beq t1, s3, poll
    mv s3, t1
    fence.i
    jalr s0
    fence
    sd a0, 64(s1)
    j poll
    .balign 4096
routine:
    li a0, 0
    ret
    .balign 4096
words:
    .space 4096
"""


def test_a_hart_runs_what_another_has_written() -> None:
    head, rest = REWRITING.split("    .balign 4096\nroutine:", 1)
    assert run(head + POWER_OFF + "    .balign 4096\nroutine:" + rest, cpus=2)[0] == 0


# Hart 0 raises hart 1's software interrupt through the CLINT, again and again; the handler clears it and counts.
INTERRUPTING = """
    la s1, words
    li s2, 0x2000000
    csrr t0, mhartid
    bnez t0, sleeper
    li s3, 0
send:
    li t1, 1
    sw t1, 4(s2)
    addi s3, s3, 1
seen:
    ld t1, 0(s1)
    bne t1, s3, seen
    li t2, 100
    bne s3, t2, send
    li a0, 0
    j power_off
sleeper:
    la t0, handler
    csrw mtvec, t0
    csrwi mie, 8
    csrsi mstatus, 8
sleep:
    wfi
    j sleep
    .balign 4
handler:
    sw zero, 4(s2)
    ld t1, 0(s1)
    addi t1, t1, 1
    fence
    sd t1, 0(s1)
    mret
"""


def test_interrupts_between_harts_wake_and_are_not_lost() -> None:
    assert run(INTERRUPTING + POWER_OFF + "    .balign 4096\nwords:\n    .space 4096\n", cpus=2)[0] == 0


PAGES = 64
MANY_PAGES = f"""
    la s1, counters
    li s0, 800
    li a0, 0
again:
    {"".join(f'''
    la t0, page{n}
    jalr t0''' for n in range(PAGES))}
    addi s0, s0, -1
    bnez s0, again
    li t0, {800 * PAGES * (PAGES + 1) // 2 % 2**64}
    li t1, 0
    beq a0, t0, right
    li t1, 1
right:
    amoadd.d zero, t1, (s1)
    addi s4, s1, 8
    li t0, 1
    amoadd.d t1, t0, (s4)
    csrr t0, mhartid
    bnez t0, park
wait:
    ld t1, 0(s4)
    li t2, 3
    bne t1, t2, wait
    fence
    ld a0, 0(s1)
    j power_off
park:
    wfi
    j park
"""
CALLED = "".join(f"    .balign 4096\npage{n}:\n    addi a0, a0, {n + 1}\n    ret\n" for n in range(PAGES))


@pytest.mark.parametrize("tier", ["interpreter", "jit"])
def test_code_on_more_pages_than_are_kept_decoded(tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each time there is no room, all are forgotten, while the other harts execute from them.
    monkeypatch.setattr(CodePages.__init__, "__defaults__", (24,))
    text = MANY_PAGES + POWER_OFF + CALLED + "    .balign 64\ncounters:\n    .dword 0\n    .dword 0\n"
    assert run(text, tier=tier, cpus=3)[0] == 0
