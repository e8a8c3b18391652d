"""The assembler on an architecture of another shape than RISC-V: bytes, big-endian data, encodings of two sizes."""

import pytest

from polyvisor.adl import Architecture, Field, Registers, State, u8, u16
from polyvisor.adl.assembler import AssemblerError, assemble

small = Architecture("small", byte_order="big", unit=1, max_length=3, default_kinds={"reg": "reg", "mode": "mode"})
small.kind("reg", ("a", "b"))
small.kind("mode", ("near", "far"), default=1)
small.kind("target", pc=True)


@small.state
class SmallCpu(State):
    pc = Field(u16)
    r = Registers(u8, 2)


@small.instruction("0000_0001 / address:8", "lda {address}")
@small.instruction("0000_0010 / address:16", "lda {address}")
def lda(cpu, address):
    cpu.r[0] = cpu.load(u8, u16(address))


@small.instruction("0001_0000 / distance:8", "bra {distance:target}")
def bra(cpu, distance):
    cpu.next_pc = cpu.pc + u16(distance)


@small.instruction("0010_00 reg:1 mode:1", "set {reg}, {mode}", where="reg + mode != 2")
def set_(cpu, reg, mode):
    cpu.r[reg] = u8(mode)


def code(text: str, base: int = 0) -> str:
    return assemble(small, text, base).bytes.hex(" ")


def test_the_shortest_encoding_that_holds_the_operand_is_taken() -> None:
    assert code("lda 255; lda 256") == "01 ff 02 01 00"


def test_sizes_that_depend_on_later_labels() -> None:
    assert code("lda a; lda b; .org 254; a: .byte 1; b: .byte 2").startswith("01 fe 01 ff 00")
    assert code("lda a; lda b; .space 250; a: .byte 1; b: .byte 2").startswith("01 fe 01 ff 00")
    assert code("lda a; lda b; .space 251; a: .byte 1; b: .byte 2").startswith("02 01 01 02 01 02 00")


@pytest.mark.parametrize(("text", "bytes"), [("set a, near", "20"), ("set a, far", "21"), ("set a", "21")])
def test_operands_with_a_default(text: str, bytes: str) -> None:
    assert code(text) == bytes
    assert small.disassemble(int(bytes, 16)) == ("set a" if bytes == "21" else text)


def test_conditions_of_encodings() -> None:
    with pytest.raises(AssemblerError, match=r"^line 3: set needs reg \+ mode != 2 \(in 'set b, far # no'\)"):
        assemble(small, "\n\nset b, far # no")


def test_data_is_in_the_byte_order_of_the_architecture() -> None:
    assert code(".half 0x1234, -2; .word end - 1; end: .byte end") == "12 34 ff fe 00 00 00 07 08"


def test_labels_forward_and_back() -> None:
    assert code("x: bra y; 1: lda 1b; y: 1: bra 1b + 3", 0x100) == "10 05 02 01 02 10 03"
    assert assemble(small, "x = 4; .equ y, x + 'A' - '\\n'\nz: lda z").symbols == {"x": 4, "y": 59, "z": 0}


def test_an_equ_may_come_after_its_use() -> None:
    assert code("lda x; .space n, 0xff; .equ x, 3; n = 2") == "01 03 ff ff"


def test_places() -> None:
    assert code(".byte 1; .org 4; .byte 2; .balign 4, 9; here: .half here", 0) == "01 00 00 00 02 09 09 09 00 08"


def test_strings_keep_what_looks_like_a_comment() -> None:
    assert code('.ascii "#;//", "\\x41\\0\\n" # comment; .byte 1\n// .byte 2') == "23 3b 2f 2f 41 00 0a"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lda", "lda is written lda address"),
        ("lda 65536", "address = 65536 is not in 0..65535"),
        ("jump 3", "there is no instruction 'jump'"),
        ("lda here", "'here' is neither a number nor a known symbol"),
        ("set c, far", "'c' is none of a, b"),
        ("x: x: lda 1", "x is defined already"),
        (".byte 256", "0x100 does not fit .byte"),
        (".half x", "'x' is neither a number nor a known symbol"),
        (".align 99", ".align 99: not a power of two"),
        (".byte 1; .org 0", ".org 0x0 from 0x1: it is an address, and can only go forward"),
        (".wrod 1", "there is no directive .wrod"),
        (".ascii x", "'x' is not a string in double quotes"),
        ("lda 0x1g", "'0x1g' is not a number"),
        ("lda 1 +", "'1 +' ends where a number or a symbol should follow"),
        ("lda %hi(3)", "there is no modifier %hi"),
        ("lda 2 2", "'2 2': + or - is missing before '2'"),
    ],
)
def test_errors_name_the_line_and_the_reason(text: str, message: str) -> None:
    with pytest.raises(AssemblerError) as caught:
        assemble(small, f"# first\n{text}")
    assert str(caught.value) == f"line 2: {message} (in {text!r})"
