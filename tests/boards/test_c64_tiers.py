"""The Commodore 64 does the same in every tier, cycle by cycle: CPU, chips and what they do to each other."""

from __future__ import annotations

import random
from typing import Any

import pytest

from polyvisor.adl import u64
from polyvisor.adl.assembler import assemble
from polyvisor.boards.c64.machine import Commodore64
from polyvisor.boards.c64.roms import free_roms
from polyvisor.devices.c64 import cia, memory, sid, vic_ii
from polyvisor.isa.mos6502 import mos6510

# Sets up interrupts by the raster and both timers, then writes to chips and memory in a circle, and reads from them.
BUSY = """
        sei
        lda #$35
        sta $01
        lda #<irq
        sta $fffe
        lda #>irq
        sta $ffff
        lda #<nmi
        sta $fffa
        lda #>nmi
        sta $fffb
        lda #$7f
        sta $dc0d
        lda #$81
        sta $dc0d
        sta $dd0d
        lda #$39
        sta $dc04
        lda #$01
        sta $dc05
        lda #$c5
        sta $dd04
        lda #$02
        sta $dd05
        lda #$11
        sta $dc0e
        sta $dd0e
        lda #$1b
        sta $d011
        lda #$34
        sta $d012
        lda #$01
        sta $d01a
        cli
loop:   ldx #0
inner:  lda values,x
        ldy places,x
        sta $d000,y
        eor $d012
        sta $0400,x
        inc $2000,x
        adc $dc04
        sta $2100,x
        lda $d41b
        inx
        cpx #32
        bne inner
        lda $01
        eor #$02
        sta $01
        jmp loop
irq:    pha
        inc $d019
        lda $dc0d
        lda $d01e
        inc $d020
        pla
        rti
nmi:    pha
        lda $dd0d
        inc $d021
        pla
        rti
"""


def busy_program(seed: int) -> bytes:
    """A program that disturbs every chip."""
    rng = random.Random(seed)
    registers = [r for r in range(0x2F) if r not in (0x11, 0x12, 0x19, 0x1A)]
    places = [rng.choice(registers) for _ in range(32)]
    values = [rng.choice((0, 0xFF, 0x1B, 0x08, 0x32, rng.randrange(256))) for _ in range(32)]
    text = BUSY + "".join(
        f"{name}: .byte {', '.join(map(str, numbers))}\n" for name, numbers in (("places", places), ("values", values))
    )
    return assemble(mos6510, text, 0x1000).bytes


def machine(tier: str, program: bytes, model: str = "pal") -> Commodore64:
    """One with a program that is about to start."""
    roms = free_roms()
    made = Commodore64(
        basic=roms.basic, kernal=roms.kernal, characters=roms.characters, tier=tier, model=model
    )
    made.memory.write(0x1000, program)
    made.state.pc = 0x1000
    return made


def state(machine: Commodore64) -> tuple[dict[str, Any], bytes]:
    """All there is, once every chip is up to date; but for when to ask chips next, and whom to ask before a store."""
    view, now = machine.cpu.view, u64(machine.cycles)
    view.retired = machine.cycles
    vic_ii.run(view, now)
    cia.run(view, 0, now)
    cia.run(view, 1, now)
    sid.run(view, now)
    values = machine.state.values()
    asked = {name for name in values if name.endswith("_due") or name.startswith("c64_watched")}
    return {k: v for k, v in values.items() if k not in asked}, machine.memory.read(0, 0x4_7000)


@pytest.mark.parametrize(("seed", "model"), [(0, "pal"), (1, "pal"), (2, "pal"), (3, "ntsc"), (4, "ntsc")])
def test_the_interpreter_is_the_description(seed: int, model: str) -> None:
    program = busy_program(seed)
    native, reference = machine("interpreter", program, model), machine("reference", program, model)
    for _ in range(3):
        native.run(1500)
        while reference.cycles < native.cycles:
            reference.cpu.step()
        assert reference.cycles == native.cycles
        values, memory = state(native)
        wanted, contents = state(reference)
        assert {k: v for k, v in values.items() if v != wanted[k]} == {}
        assert memory == contents
    native.close()
    reference.close()


@pytest.mark.parametrize("tier", ["interpreter", "jit"])
def test_a_read_waits_where_ba_fell_while_the_cpu_wrote(tier: str) -> None:
    # Two writes at the end of an instruction, in other cycles of each line, and then one that only reads.
    program = assemble(mos6510, "sei\n lda #$1b\n sta $d011\n1: inc $2000,x\n iny\n jmp 1b", 0x1000).bytes
    native, reference = machine(tier, program), machine("reference", program)
    for made in (native, reference):
        made.set_registers(vic_line=0x2F, vic_raster=0x2F)
    for _ in range(20):
        native.run(90)
        while reference.cycles < native.cycles:
            reference.cpu.step()
        assert reference.cycles == native.cycles
    native.close()
    reference.close()


# Changes what is on the screen while it is drawn: characters or a bitmap, and the byte that is seen in idle state.
RACE = """
        sei
        lda #{control}
        sta $d011
        lda #$18
        sta $d018
        lda #$08
        sta $d016
        lda #6
        sta $d021
        ldy #0
loop:   ldx #0
1:      tya
        sta $2000,x
        eor #$ff
        sta $2140,x
        sta $2800,x
        inc $3fff
        inc $05ff,x
        iny
        dex
        bne 1b
        jmp loop
"""


@pytest.mark.parametrize("control", [0x1B, 0x3B, 0x5B, 0x0B])
def test_what_is_written_while_it_is_drawn_is_seen_by_the_cycle(control: int) -> None:
    program = assemble(mos6510, RACE.format(control=control), 0x1000).bytes
    native, reference, compiled = (machine(tier, program) for tier in ("interpreter", "reference", "jit"))
    for made in (native, reference, compiled):
        # All is open, so that what is read is seen.
        made.set_registers(vic_line=0x2F, vic_raster=0x2F, vic_border=0, vic_border_vertical=0)
        made.memory.write(0x0400, bytes(range(256)) * 4)
        made.memory.write(memory.COLOUR_RAM, b"\x01" * 0x400)
        made.memory.write(0x2000, bytes(range(256)) * 0x20)
    for cycles in (700, 1100):
        native.run(cycles)
        compiled.run(native.cycles - compiled.cycles)
        while reference.cycles < native.cycles:
            reference.cpu.step()
        assert reference.cycles == native.cycles == compiled.cycles
        values, seen = state(native)
        wanted, contents = state(reference)
        assert {k: v for k, v in values.items() if v != wanted[k]} == {}
        assert seen == contents == state(compiled)[1]
    native.run(400_000)
    compiled.run(native.cycles - compiled.cycles)
    assert state(compiled) == state(native)
    for made in (native, reference, compiled):
        made.close()


@pytest.mark.parametrize(("seed", "model"), [(100, "pal"), (101, "pal"), (102, "ntsc")])
def test_compiled_code_is_too(seed: int, model: str) -> None:
    program = busy_program(seed)
    plain, compiled = machine("interpreter", program, model), machine("jit", program, model)
    for _ in range(25):
        plain.run(100_000)
        compiled.run(plain.cycles - compiled.cycles)
        assert compiled.cycles == plain.cycles
        assert state(compiled) == state(plain)
    plain.close()
    compiled.close()


@pytest.mark.parametrize("tier", ["reference", "interpreter"])
def test_instructions_may_be_in_chips(tier: str) -> None:
    """A jump to the SID's or a CIA's registers: here a timer's latch holds RTS."""
    text = "lda #$60\nsta $dc0c\nlda #1\njsr $dc0c\nlda #2\nsta $02\nl: jmp l"
    made = machine(tier, assemble(mos6510, text, 0x1000).bytes)
    made.run(60)
    assert made.peek(2) == 2
    made.close()
