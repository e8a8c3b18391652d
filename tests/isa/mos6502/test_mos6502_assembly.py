"""Assembly of the 6502 family: what its programmers write, and that the disassembler's text gives the same bytes."""

import pytest

from polyvisor.adl.assembler import AssemblerError, assemble
from polyvisor.isa.mos6502 import mos6510, wdc65c02


def code(text: str, base: int = 0x1000) -> str:
    return assemble(mos6510, text, base, encodings={".text": lambda text: text.swapcase().encode()}).bytes.hex(" ")


@pytest.mark.parametrize(
    ("text", "bytes"),
    [
        ("ldx #0", "a2 00"),
        ("LDA #$ff", "a9 ff"),
        ("lda #-1", "a9 ff"),
        ("lda #%1010", "a9 0a"),
        ("lda #';' ; not 'a comment", "a9 3b"),
        ("lda $12", "a5 12"),
        ("lda $0112", "ad 12 01"),
        ("lda $1234,X", "bd 34 12"),
        ("ldx $12 , y", "b6 12"),
        ("lda $12,y", "b9 12 00"),
        ("lda ($fb),y", "b1 fb"),
        ("sta ($fb,x)", "81 fb"),
        ("asl a", "0a"),
        ("jmp ($fffc)", "6c fc ff"),
        ("nop", "ea"),
        ("bne *", "d0 fe"),
        ("1: dex\nbne 1b", "ca d0 fd"),
        ("beq 1f\nnop\n1: rts", "f0 01 ea 60"),
    ],
)
def test_operands(text: str, bytes: str) -> None:
    assert code(text) == bytes


def test_zero_page_is_taken_where_the_value_is_known_in_the_end() -> None:
    assert code("lda low\nlda high\nlow = $80\nhigh = $100") == "a5 80 ad 00 01"


def test_bytes_of_addresses() -> None:
    assert code("start: lda #<start+1\nldx #>start + 256\n.byte <start, >start\n.word start, *") == (
        "a9 01 a2 11 00 10 00 10 06 10"
    )


def test_places_and_data() -> None:
    assert code("nop\n*= $1004\n.byte 1\n.word here\nhere:") == "ea 00 00 00 01 07 10"
    assert code('.text "aB;\\"", 13 ; a comment') == "41 62 3b 22 0d"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bne $1100", r"line 1: .*in 'bne \$1100'"),
        ("lda #256", "does not fit 8 bits"),
        ("stx $1234,y", "does not fit 8 bits"),
        ("lda", "lda is written"),
        ("lda ($12)", "lda is written"),
        ("lda #missing", "neither a number nor a known symbol"),
        ("*= $0fff", "can only go forward"),
        (".byte %12", "is missing before"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(AssemblerError, match=message):
        code(text)


@pytest.mark.parametrize("architecture", [mos6510, wdc65c02], ids=lambda a: a.name)
def test_the_text_of_every_instruction_gives_its_bytes(architecture) -> None:
    names = set()
    for opcode in range(256):
        word = opcode | 0x85D4 << 8
        text, length = architecture.disassemble(word, 0x1000), architecture.decode(word).encoding.length
        made = assemble(architecture, text, 0x1000).bytes
        if architecture.decode(word).name not in ("nop", "jam", "anc"):  # have several opcodes
            assert made == word.to_bytes(3, "little")[:length], text
        assert architecture.disassemble(int.from_bytes(made, "little"), 0x1000) == text
        names.add(text.split()[0])
    assert len(names) > 60


def test_targets_of_branches() -> None:
    assert mos6510.disassemble(0xFDD0, 0x1001) == "bne $1000"
    assert wdc65c02.disassemble(0xFD120F, 0x1000) == "bbr0 $12,$1000"
