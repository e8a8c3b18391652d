"""A bare-metal program in which two harts do the same many times, and one of them goes on when both have."""

from __future__ import annotations


def two_harts(*, times: int, work: str, then: str, before: str = "", behind: str = "") -> str:
    """The text of a program for an assembler: both harts do ``work`` so many ``times``.

    s0 is the hart's number, s1 the address of the doubleword ``counter``, s2 how often it is still to be done. Each
    hart begins with ``before``, which may jump to ``work``; hart 0 goes on with ``then``. ``behind`` follows all.
    """
    return f"""
    csrr s0, mhartid
    la s1, counter
    li s2, {times}
{before}
work:
{work}
    addi s2, s2, -1
    bnez s2, work
    la t0, done
    li t1, 1
    amoadd.w zero, t1, (t0)
    bnez s0, park
join:
    lw t1, 0(t0)
    li t2, 2
    bne t1, t2, join
{then}
park:
    wfi
    j park
    .balign 8
counter:
    .dword 0
done:
    .word 0
{behind}
"""
