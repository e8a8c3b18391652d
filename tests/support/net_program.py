"""A bare-metal program that sends frames to everybody, and mixes what it receives, and when, into a hash."""

from __future__ import annotations

from polyvisor.vm.recording import SEEDED_START

from .programs import POWER_OFF, elf

# Virtqueues and buffers are at fixed places: descriptors, available and used ring of the receive queue and of the
# transmit queue from 0x80100000 on, a page each, then 16 receive buffers of 2 KiB, and one to send from.
_PROGRAM = """
    li s0, 0x10002000
    li s1, 0x80100000
    sw zero, 0x70(s0)
    li t0, 3
    sw t0, 0x70(s0)
    li t0, 1
    sw t0, 0x24(s0)
    sw t0, 0x20(s0)
    sw zero, 0x24(s0)
    li t1, 32
    sw t1, 0x20(s0)
    li t0, 11
    sw t0, 0x70(s0)
    li s2, 0
    mv t5, s1
queue:
    sw s2, 0x30(s0)
    li t0, 16
    sw t0, 0x38(s0)
    li t1, 0x1000
    sw t5, 0x80(s0)
    sw zero, 0x84(s0)
    add t5, t5, t1
    sw t5, 0x90(s0)
    sw zero, 0x94(s0)
    add t5, t5, t1
    sw t5, 0xa0(s0)
    sw zero, 0xa4(s0)
    add t5, t5, t1
    li t0, 1
    sw t0, 0x44(s0)
    addi s2, s2, 1
    li t0, 2
    bne s2, t0, queue
    li t0, 0
    li s6, 0x1000
    add s6, s6, s1
    li s7, 0x2000
    add s7, s7, s1
    li s8, 0x10000
    add s8, s8, s1
fill:
    slli t1, t0, 4
    add t1, t1, s1
    slli t2, t0, 11
    add t2, t2, s8
    sd t2, 0(t1)
    li t3, 0x800
    sw t3, 8(t1)
    li t3, 2
    sh t3, 12(t1)
    slli t4, t0, 1
    add t3, s6, t4
    sh t0, 4(t3)
    addi t0, t0, 1
    li t3, 16
    bne t0, t3, fill
    sh t3, 2(s6)
    li t0, 15
    sw t0, 0x70(s0)
    sw zero, 0x50(s0)
    li s9, 0x20000
    add s9, s9, s1
    li t0, 0x3000
    add t0, t0, s1
    sd s9, 0(t0)
    li t1, 80
    sw t1, 8(t0)
    li t0, 0xffff
    sh t0, 12(s9)
    sh t0, 14(s9)
    sh t0, 16(s9)
    li t0, 0xb588
    sh t0, 24(s9)
    addi s10, s0, 0x100
    addi s11, s9, 18
    li t1, 6
address:
    lbu t0, 0(s10)
    sb t0, 0(s11)
    addi s10, s10, 1
    addi s11, s11, 1
    addi t1, t1, -1
    bnez t1, address
    li s2, 0
    li s3, 0
    li s4, 0
    li s5, 0
    li s10, 0x4000
    add s10, s10, s1
    li t0, 0x80
    csrw mie, t0
loop:
    sd s2, 32(s9)
    sd s3, 40(s9)
    andi t0, s2, 15
    slli t0, t0, 1
    add t0, t0, s10
    sh zero, 4(t0)
    addi s2, s2, 1
    sh s2, 2(s10)
    fence
    li t0, 1
    sw t0, 0x50(s0)
    slli t0, s3, 49
    srli t0, t0, 49
spin:
    addi t0, t0, -1
    bgtz t0, spin
    li t0, 0x200bff8
    ld t1, 0(t0)
    li t2, PERIOD
    add t1, t1, t2
    li t0, 0x2004000
    sd t1, 0(t0)
sleep:
    wfi
    csrr t0, mip
    andi t0, t0, 0x80
    beqz t0, sleep
drain:
    lhu t1, 2(s7)
    beq t1, s4, drained
    andi t2, s4, 15
    slli t2, t2, 3
    add t2, t2, s7
    lw t3, 4(t2)
    slli t5, t3, 11
    add t5, t5, s8
    ld t6, 32(t5)
    ld a0, 40(t5)
    ld a1, 16(t5)
    csrr a2, time
    li a3, 31
    mul s3, s3, a3
    add s3, s3, t6
    xor s3, s3, a0
    add s3, s3, a1
    xor s3, s3, a2
    lhu a3, 2(s6)
    andi a4, a3, 15
    slli a4, a4, 1
    add a4, a4, s6
    sh t3, 4(a4)
    addi a3, a3, 1
    sh a3, 2(s6)
    addi s4, s4, 1
    slli s4, s4, 48
    srli s4, s4, 48
    addi s5, s5, 1
    sw zero, 0x50(s0)
    j drain
drained:
    li t0, ROUNDS
    bne s2, t0, loop
    li t0, 0x101000
    lwu t1, 0(t0)
    li t2, CLOCK
    sub t1, t1, t2
    slli t1, t1, 32
    srli t1, t1, 32
    li t2, EARLY
    bltu t1, t2, again
    li t0, 0x80200000
    sd s3, 0(t0)
    sd s5, 8(t0)
    li a0, 0
    beqz s5, failed
    j power_off
again:
    li t0, 0x100000
    li t1, 0x7777
    sw t1, 0(t0)
stuck:
    j stuck
failed:
    li a0, 1
    j power_off
"""
HASH_AT, RECEIVED_AT = 0x8020_0000, 0x8020_0008


def chatter(rounds: int = 60, period: int = 3000, early: int = 0) -> bytes:
    """The program: so many frames, every ``period`` ticks of 100 ns. It ends with 0 if any frame came in.

    If the real-time clock of a seeded machine shows less than ``early`` nanoseconds by then, it resets and begins
    again.
    Then its hash is at HASH_AT, and how many frames came in at RECEIVED_AT. The network device is the board's second
    virtio device, the first of ``devices``.
    """
    return elf(text(rounds, period, early))


def text(rounds: int = 60, period: int = 3000, early: int = 0) -> str:
    """Its source."""
    found = _PROGRAM + POWER_OFF
    for name, value in {"PERIOD": period, "ROUNDS": rounds, "EARLY": early, "CLOCK": SEEDED_START % 2**32}.items():
        found = found.replace(name, str(value))
    return found
