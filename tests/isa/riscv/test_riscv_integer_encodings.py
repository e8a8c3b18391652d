"""Encodings, assembly and disassembly of the integer instructions, against capstone and objdump."""

import random
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from polyvisor.adl.assembler import AssemblerError, assemble
from polyvisor.isa.riscv import rv64

capstone = pytest.importorskip("capstone")

EXTENSIONS = {"I", "Zifencei", "M", "A", "C", "Zba", "Zbb", "Zbs"}
OBJDUMP = shutil.which("riscv64-linux-gnu-objdump")
GNU_AS = shutil.which("riscv64-linux-gnu-as")
MAJOR_OPCODES = (0x03, 0x0F, 0x13, 0x17, 0x1B, 0x23, 0x2F, 0x33, 0x37, 0x3B, 0x63, 0x67, 0x6F, 0x73)

# What capstone 5 decodes and the manual does not have: c.lui of 0 is reserved, and all zeros is illegal on purpose.
REFUSED = {"c.lui", "c.unimp"}
# What the manual has and capstone 5 does not: Zb*, HINTs that write x0, and what must be ignored in fences.
BEYOND_CAPSTONE = {"c.slli", "c.li", "c.lui", "c.nop", "c.mv", "c.add", "fence", "fence.i"}
# Floating point, control registers, privileged instructions: other parts of the description.
ELSEWHERE = re.compile(r"f(?!ence)|c\.f|csr|rd(cycle|time|instret)|sfence|[smu]ret|wfi|dret|hfence")


def words16() -> Iterable[tuple[int, int]]:
    return ((word, 2) for word in range(0x10000) if word & 3 != 3)


def words32(count: int) -> Iterable[tuple[int, int]]:
    """Random words, most of them near a valid encoding; and words of each instruction."""
    rng = random.Random("words")
    for n in range(count):
        word = rng.getrandbits(32) | 3
        if n % 4:
            word = word & ~0x7F | rng.choice(MAJOR_OPCODES)
        if n % 2:
            word = word & 0x01FF_FFFF | rng.choice((0, 1, 4, 5, 8, 16, 20, 32, 36, 48, 52)) << 25
        if n % 8 == 1:
            word &= ~(31 << 20)
        if word & 0x1C != 0x1C:
            yield word, 4
    for instruction in rv64.instructions:
        encoding = instruction.encoding
        for _ in range(20 if encoding.length == 4 and instruction.extension in EXTENSIONS else 0):
            yield rng.getrandbits(32) & ~encoding.mask | encoding.value, 4


def ours(word: int, length: int) -> str | None:
    """Our name for the word, if it is an integer instruction of that length."""
    found = rv64.decode(word)
    if found is None or found.encoding.length != length or found.extension not in EXTENSIONS:
        return None
    if found.name.startswith("c.f"):
        return None
    return found.name


class Capstone:
    def __init__(self) -> None:
        self.disassembler = capstone.Cs(capstone.CS_ARCH_RISCV, capstone.CS_MODE_RISCV64 | capstone.CS_MODE_RISCVC)

    def __call__(self, word: int, length: int) -> tuple[str, str] | None:
        for _, size, mnemonic, operands in self.disassembler.disasm_lite(word.to_bytes(length, "little"), 0):
            if size == length and not ELSEWHERE.match(mnemonic):
                return mnemonic, operands
        return None


@pytest.mark.parametrize("words", [words16(), words32(100_000)], ids=["16 bits", "32 bits"])
def test_same_words_are_valid_as_in_capstone(words: Iterable[tuple[int, int]]) -> None:
    reference = Capstone()
    for word, length in words:
        name, theirs = ours(word, length), reference(word, length)
        if name is None and theirs is not None:
            assert theirs[0] in REFUSED, f"{word:#x} is {' '.join(theirs)}"
        if name is not None and theirs is None:
            instruction = rv64.decode(word)
            assert instruction is not None
            assert name in BEYOND_CAPSTONE or instruction.extension.startswith("Zb"), f"{word:#x} is no {name}"


@pytest.mark.parametrize("words", [words16(), words32(20_000)], ids=["16 bits", "32 bits"])
def test_text_of_capstone_assembles_to_the_same_word(words: Iterable[tuple[int, int]]) -> None:
    """With its aliases, which are our pseudo-instructions, and with our own text too."""
    reference = Capstone()
    seen = set()
    for word, length in words:
        name, theirs = ours(word, length), reference(word, length)
        if name is None or theirs is None:
            continue
        seen.add(name)
        texts = [rv64.disassemble(word), " ".join(theirs)]
        if "unknown" in theirs[1] or theirs == ("c.nop", ""):  # a fence of nothing; a HINT without its value
            del texts[1]
        for text in texts:
            assert text is not None
            try:
                data = assemble(rv64, text).bytes
            except AssemblerError as error:
                pytest.fail(f"{word:#x}: {error}")
            assert int.from_bytes(data, "little") == word & ignored(word), f"{text}: {data.hex()}, {word:#x}"
    assert len(seen) > 30


def ignored(word: int) -> int:
    """The bits of the word that count: a fence has some that are ignored, and assembled as 0."""
    found = rv64.decode(word)
    assert found is not None
    if found.name not in ("fence", "fence.i"):
        return 0xFFFF_FFFF
    return found.encoding.mask | (0x0FF0_0000 if found.name == "fence" else 0)


def normal(text: str) -> list[str | int]:
    """Mnemonic and operands, with numbers as numbers (of 64 bits). ``1f <.text+0x1f>`` is an address."""
    out: list[str | int] = []
    text = re.sub(r"(\w+) <.*>", r"0x\1", text.split("#")[0])
    for token in re.findall(r"[^\s,()]+", text):
        try:
            out.append(int(token, 0) % 2**64)
        except ValueError:
            out.append({"unknown": 0}.get(token, token))
    return out


@pytest.mark.skipif(not (OBJDUMP and GNU_AS), reason="riscv64-linux-gnu-objdump and -as (binutils) are not installed")
@pytest.mark.parametrize("length", [2, 4])
def test_disassembly_is_that_of_objdump(length: int, tmp_path: Path) -> None:
    words = [
        w for w, n in (words16() if length == 2 else words32(30_000)) if n == length and ours(w, length) is not None
    ]
    # The assembler marks them as code, of these extensions.
    source, file = tmp_path / "words.s", tmp_path / "words.o"
    source.write_text("".join(f".insn {length}, {w:#x}\n" for w in words))
    march = "-march=rv64gc_zba_zbb_zbs_zifencei_zihintpause"
    subprocess.run([str(GNU_AS), march, "-o", str(file), str(source)], check=True)
    command = [str(OBJDUMP), "-d", "-z", "-M", "no-aliases", str(file)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"^\s*([0-9a-f]+):\s+[0-9a-f]+\s+(.*)$", listing, re.MULTILINE)
    assert len(lines) == len(words)
    for word, (address, text) in zip(words, lines, strict=True):
        mine = rv64.disassemble(word, int(address, 16))
        assert mine is not None
        theirs = normal(text)
        if theirs[0] in (".2byte", ".4byte") and beyond_objdump(word):
            continue
        if theirs[:2] == ["c.addi", "zero"]:  # the manual's name is c.nop
            theirs = ["c.nop", *(n for n in theirs[2:] if n != 0)]
        if theirs[0] in ("c.slli64", "c.srli64", "c.srai64"):  # in RV64, HINTs to shift by 0
            theirs = [str(theirs[0])[:-2], theirs[1], 0]
        assert normal(mine) == theirs, f"{word:#x}"


def beyond_objdump(word: int) -> bool:
    """Fences with reserved bits set, which an implementation has to ignore."""
    return rv64.decode(word).name in ("fence", "fence.i")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "word", [0x0000, 0x0004, 0x6101, 0x6081, 0x2001, 0x4002, 0x6002, 0x8002, 0x9C41, 0x9C61, 0x8000, 0xFFFF_FFFF, 0x0]
)
def test_reserved_words(word: int) -> None:
    """Reserved by the manual: all zeros, c.addi4spn, c.addi16sp, c.lui of 0, c.addiw and loads to x0, c.jr x0 ..."""
    assert rv64.decode(word) is None


def test_every_instruction_names_its_extension() -> None:
    assert all(i.extension for i in rv64.instructions)
    assert {i.extension for i in rv64.instructions} >= EXTENSIONS


def test_operands_that_do_not_fit_are_refused() -> None:
    for text in (
        "addi a0, a0, 2048", "slli a0, a0, 64", "slliw a0, a0, 32", "c.lw a0, 2(a1)", "c.lw t0, 0(a1)", "c.li a0, 32",
        "lui a0, 0x100000", "jal ra, 3", "beq a0, a1, 4096", "c.addi4spn a0, sp, 0", "c.mv a0, zero", "fence wr, rw",
    ):  # fmt: skip
        with pytest.raises(AssemblerError, match=r"^line 1: "):
            assemble(rv64, text)
