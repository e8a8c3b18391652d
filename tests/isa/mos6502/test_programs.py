"""Programs of the 6502 in all tiers, and what interrupts and other users of the bus do to them."""

from __future__ import annotations

import pytest

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
