"""Who writes a byte of the Commodore 64's screen, and since when: python examples/c64_who_writes.py"""

import polyvisor
from polyvisor.adl.assembler import assemble
from polyvisor.isa.mos6502 import mos6510

# A routine that counts on the screen where it should not: its pointer comes to be one too high.
PROGRAM = """
start:  lda #$28
        sta $fb
        lda #$04
        sta $fc
loop:   jsr count
        jmp loop
count:  ldy #0
        lda ($fb),y
        clc
        adc #1
        sta ($fb),y
        bne done
        inc $fb
done:   rts
"""
CODE = assemble(mos6510, PROGRAM, 0xC000).bytes
VICTIM = 0x0429  # the second place in the second line

with polyvisor.C64(b"\x00\xc0" + CODE, halted=True) as c64:
    print(f"before its first instruction: {c64.disassemble(count=1)[0]}")
    with c64.watch(VICTIM):
        stop = c64.run_to_stop(seconds=5)
    access = stop.access
    print(f"{stop.reason}: ${access.address:04x} becomes ${access.value:02x}, written by")
    print(*c64.disassemble(access.pc, 1))
    with c64.watch(0xFB):  # the pointer: back in time to who changed it
        cause = c64.reverse_continue().access
    print("the pointer's low byte became", f"${cause.value:02x}, in cycle {c64.elapsed}, by")
    print(*c64.disassemble(count=1))
