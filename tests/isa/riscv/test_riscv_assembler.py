"""RISC-V assembly: pseudo-instructions, modifiers, operands that may be left out."""

import random
import shutil
import subprocess
from pathlib import Path

import pytest

from polyvisor.adl.assembler import AssemblerError, assemble
from polyvisor.isa.riscv import rv64

GNU_AS = shutil.which("riscv64-linux-gnu-as")
GNU_OBJCOPY = shutil.which("riscv64-linux-gnu-objcopy")

PROGRAM = """
start:  nop
        mv a0, a1; not a0, a1; neg a0, a1; negw a0, a1; sext.w a0, a1
        seqz a0, a1; snez a0, a1; sltz a0, a1; sgtz a0, a1; sgt a0, a1, a2; sgtu a0, a1, a2
        zext.b a0, a1; zext.w a0, a1
1:      beqz a0, 1b; bnez a0, 1f; blez a0, 1b; bgez a0, 1f; bltz a0, 1b; bgtz a0, 1f
        bgt a0, a1, 1b; ble a0, a1, start; bgtu a0, a1, 1f; bleu a0, a1, 1b
1:      j start; jal 1b; jal t0, 1b; jr a0; jr 8(a0); jalr a0; jalr 8(a0); jalr t0, a0; jalr t0, a0, 8; ret
        la a0, message; lla t0, start; lw a1, message; ld a2, message
        call end
        tail end
        lw a0, (a1); sd a0, (a1); amoadd.d.aq a0, a1, (a2); lr.w.rl a0, (a1); sc.d.aqrl a0, a1, (a2)
        fence; fence rw, w; fence.tso; fence.i; pause; ecall; ebreak
        sll a0, a1, 3; srl a0, a1, 63; sra a0, a1, 0
        lui a0, %hi(0x12345fff); addi a0, a0, %lo(0x12345fff)
2:      auipc a0, %pcrel_hi(message); ld a1, %pcrel_lo(2b)(a0); sd a1, %pcrel_lo(2b)(a0)
        addi a0, zero, 'a'; andi a0, a0, -0x10
        .balign 8
message: .asciz "a, \\"b\\" # c; // d\\n\\t\\0\\x41"
        .ascii "x", "yz"
        .byte 1, -1, 'z', ';'; .half 0xffff; .word end - start; .dword -1, message - start
        .align 3
        .space 5, 7
        .balign 4, 0
end:    slli.uw a0, a1, 5; orc.b a0, a1; bexti a0, a1, 63; rev8 a0, a1; sext.b a0, a1; mulhsu a0, a1, a2
        .align 3
        add x1, x2, x3
"""


@pytest.mark.skipif(not (GNU_AS and GNU_OBJCOPY), reason="riscv64-linux-gnu-as and -objcopy are not installed")
def test_a_program_assembles_as_with_gnu_as(tmp_path: Path) -> None:
    """Byte by byte, where as does not compress and ld does not relax."""
    linker = shutil.which("riscv64-linux-gnu-ld")
    assert linker is not None
    source, made, linked, raw = (tmp_path / n for n in ("a.s", "a.o", "a.elf", "a.bin"))
    source.write_text(f".option norelax\n.option norvc\n.globl _start\n_start:\n{PROGRAM}".replace("//", "##"))
    march = "-march=rv64imac_zicsr_zifencei_zba_zbb_zbs_zihintpause"
    subprocess.run([str(GNU_AS), march, "-mabi=lp64", "-mno-arch-attr", "-o", made, source], check=True)
    subprocess.run([linker, "--no-relax", "-Ttext=0x10000", "-o", linked, made], check=True)
    subprocess.run([str(GNU_OBJCOPY), "-O", "binary", "-j", ".text", linked, raw], check=True)
    ours = assemble(rv64, PROGRAM.replace("//", "##"), 0x10000).bytes
    theirs = raw.read_bytes()
    assert ours.hex(" ", 4) == theirs[: len(ours)].hex(" ", 4)
    assert len(theirs) - len(ours) < 8  # the section is aligned at its end


def test_every_text_assembles_to_the_word_it_came_from() -> None:
    rng = random.Random("texts")
    for instruction in rv64.instructions:
        for _ in range(10):
            encoding = instruction.encoding
            word = rng.getrandbits(8 * encoding.length) & ~encoding.mask | encoding.value
            found = rv64.decode(word)
            if found is not instruction or found.name in ("fence", "fence.i"):
                continue
            text = rv64.disassemble(word, 0x1000)
            assert text is not None
            assert assemble(rv64, text, 0x1000).bytes == word.to_bytes(encoding.length, "little"), text


@pytest.mark.parametrize("value", [0, 1, -1, 2047, 2048, -2048, -2049, 0x7FFF_FFFF, -(2**31), 2**31, 2**63, 2**63 - 1])
def test_constants_take_few_instructions(value: int) -> None:
    length = len(assemble(rv64, f"li a0, {value:#x}").bytes) // 4
    assert length <= (1 if -2048 <= value < 2048 else 2 if value < 2**63 - 1 else 3)


def test_symbols_in_li_and_far_addresses() -> None:
    program = assemble(rv64, "li a0, SIZE\nla a1, far\nx: li a2, x", 0x1000, {"SIZE": 0x12345, "far": 0x7000_0000})
    assert program.symbols["x"] == 0x1010
    assert len(program.bytes) == 8 + 8 + 8
    with pytest.raises(AssemblerError, match=r"^line 1: 0x8000000000 is too far away"):
        assemble(rv64, "la a0, far", 0, {"far": 0x80_0000_0000})


def test_alignment_fills_with_instructions_that_do_nothing() -> None:
    assert assemble(rv64, "c.nop\n.balign 8").bytes == bytes.fromhex("0100 0100 13000000")
    assert assemble(rv64, ".byte 1\n.balign 4").bytes == bytes.fromhex("01 00 0100")
