"""Programs of the 6502 in all tiers, and what interrupts and other users of the bus do to them."""

from __future__ import annotations

import pytest

from polyvisor.adl.assembler import assemble
from polyvisor.engine.bare import TIERS, BareMachine
from polyvisor.isa.mos6502 import mos6502, mos6510, wdc65c02
from support.mos6502_fuzz import Tiers, differences, make_case


@pytest.fixture(scope="module")
def tiers() -> Tiers:
    """The native ones."""
    return Tiers()


@pytest.mark.parametrize("seeds", [range(12), range(1000, 1012)])
def test_random_programs_run_alike(tiers: Tiers, seeds: range) -> None:
    found = {seed: wrong for seed in seeds if (wrong := differences(make_case(seed), tiers, seed))}
    assert not found
    assert tiers.in_regions > 0.02 * tiers.cycles


@pytest.mark.parametrize("tier", TIERS)
def test_instructions_are_fetched_from_the_port(tier: str) -> None:
    """What programs at the end of memory have as operands, and what runs at $0000 (W. Lorenz' "trap16", "trap17")."""
    program = """
            lda #$03
            sta $00
            lda #$37      ; of which the inputs' bits do not count: $17 is read
            sta $01
            jmp $ffff     ; lda $1703
    """
    with BareMachine(mos6510, tier=tier) as machine:
        machine.memory.write(0xFFFF, b"\xad")
        machine.memory.write(0x0002, b"\x02")
        machine.memory.write(0x1703, b"\x5a")
        machine.load(assemble(mos6510, program, 0x1000).bytes, 0x1000)
        assert machine.run(1000).reason == "jam"
        assert (machine.state.pc, machine.state.a) == (0x0002, 0x5A)
        assert machine.memory.read(0, 2) == b"\x03\x17"


@pytest.mark.parametrize("architecture", [mos6502, mos6510, wdc65c02], ids=lambda a: a.name)
def test_every_opcode_means_something(architecture) -> None:
    assert len(architecture.instructions) == 256
    assert all(architecture.decode(opcode) for opcode in range(256))
    assert len({i.encoding.value for i in architecture.instructions}) == 256


@pytest.mark.parametrize(
    ("architecture", "word", "text"),
    [
        (mos6502, 0x1234BD, "lda $1234,x"), (mos6502, 0xFED0, "bne $1000"), (mos6502, 0x12B1, "lda ($12),y"),
        (mos6502, 0x80A9, "lda #$80"), (mos6502, 0x12346C, "jmp ($1234)"), (mos6502, 0x0A, "asl a"),
        (wdc65c02, 0xFD120F, "bbr0 $12,$1000"), (wdc65c02, 0x1212, "ora ($12)"), (mos6502, 0x12, "jam"),
    ],
)  # fmt: skip
def test_it_is_disassembled(architecture, word: int, text: str) -> None:
    assert architecture.disassemble(word, 0x1000) == text
