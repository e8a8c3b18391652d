"""A program for the Commodore 64, assembled here, draws a picture: python examples/c64_picture.py [picture.png]"""

import sys

import polyvisor
from polyvisor.adl.assembler import assemble
from polyvisor.isa.mos6502 import mos6510

# Slanting stripes of full characters, and a border that follows the raster beam.
STRIPES = "\n".join(f"lda #$a0\n sta {0x400 + page},x\n txa\n lsr a\n lsr a\n sta {0xD800 + page},x"
                    for page in range(0, 0x400, 0x100))  # fmt: skip
PROGRAM = f"""
        sei
        ldx #0
fill:   {STRIPES}
        inx
        beq lines
        jmp fill
lines:  lda $d012
        lsr a
        lsr a
        lsr a
        sta $d020
        jmp lines
"""

path = sys.argv[1] if len(sys.argv) > 1 else "c64.png"
code = assemble(mos6510, PROGRAM, 0xC000).bytes
with polyvisor.C64(b"\x00\xc0" + code) as c64:
    c64.run(seconds=1)
    picture = c64.picture()
    picture.save(path)
    print(f"{picture.width} by {picture.height} pixels, {len(set(picture.pixels))} colours: {path}")
