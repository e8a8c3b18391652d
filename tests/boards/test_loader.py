"""Kernels, initrds and programs, good and bad; files are made here byte by byte."""

import gzip
import random
import struct

import pytest

from polyvisor.boards.elf import load_elf
from polyvisor.boards.linux_boot import boot_linux, load_kernel
from polyvisor.boards.placing import LoadError, place_high
from polyvisor.engine.memory import Memory

BASE = 0x8000_0000
MIB = 1 << 20


@pytest.fixture
def memory():
    memory = Memory()
    memory.add_ram(BASE, 32 * MIB)
    return memory


def image(length=5000, *, text_offset=0x20_0000, image_size=0x10_0000, flags=0, magic=b"RSC\x05", pe=b""):
    header = struct.pack("<4sIQQQIIQQ4sI", b"MZ\0\0" if pe else b"\x13\0\0\0", 0x6F, *(text_offset, image_size, flags),
                         *(2, 0, 0, 0x5643534952), magic, 0x40 if pe else 0)  # fmt: skip
    return (header + pe).ljust(length, b"\xaa")


def pe_header(machine=0x5064, raw_end=5000):
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", machine, 1, 0, 0, 0, 16, 0x206)
    section = struct.pack("<8sIIII16x", b".text", 0x10_0000, 0x1000, raw_end - 0x1000, 0x1000)
    return coff + bytes(16) + section


def elf(segments=((BASE, BASE, b"\x13\0\0\0", 16),), entry=BASE, *, machine=243, bits=2, order=1, kind=2, symbols=None):
    """A file with PT_LOAD ``segments`` (virtual, physical, data, size in memory) and a symbol table."""
    position = 64 + 56 * len(segments)
    headers = body = b""
    for virtual, physical, data, size in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, position + len(body), virtual, physical, len(data), size, 8)
        body += data
    sections, count, shoff = b"", 0, 0
    if symbols is not None:
        names, table = b"\0", bytes(24)
        for name, value in symbols.items():
            table += struct.pack("<IBBHQQ", len(names), 0x10, 0, 1, value, 8)
            names += name.encode() + b"\0"
        start = position + len(body)
        body += table + names
        count, shoff = 3, position + len(body)
        sections = bytes(64)
        sections += struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, start, len(table), 2, 1, 8, 24)
        sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, start + len(table), len(names), 0, 0, 1, 0)
    identity = b"\x7fELF" + bytes([bits, order, 1]) + bytes(9)
    return (
        identity
        + struct.pack("<HHIQQQIHHHHHH", kind, machine, 1, entry, 64, shoff, 0, 64, 56, len(segments), 64, count, 0)
        + headers + body + sections
    )  # fmt: skip


# Kernels


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("pe", [b"", pe_header()])
def test_image(memory, pack, pe):
    data = image(pe=pe)
    kernel = load_kernel(memory, pack(data))
    assert kernel.entry == kernel.start == BASE + 0x20_0000
    assert kernel.end == BASE + 0x30_0000
    assert memory.read(kernel.entry, len(data)) == data


def test_image_longer_than_it_says_and_other_offset(memory):
    kernel = load_kernel(memory, image(9000, text_offset=0x40_0000, image_size=4096))
    assert kernel.start == BASE + 0x40_0000 and kernel.end == kernel.start + 9000


def test_vmlinux_at_physical_addresses(memory):
    data = elf([(0xFFFF_FFFF_8000_0000, BASE + 0x20_0000, b"code", 0x2000)], entry=0xFFFF_FFFF_8000_0002)
    kernel = load_kernel(memory, data)
    assert (kernel.entry, kernel.start, kernel.end) == (BASE + 0x20_0002, BASE + 0x20_0000, BASE + 0x20_2000)
    assert memory.read(kernel.start, 4) == b"code"


def test_vmlinux_without_useful_physical_addresses(memory):
    v = 0xFFFF_FFFF_8000_0000
    data = elf([(v, v, b"code", 0x1000), (v + 0x40_0000, 0x40_0000, b"data", 0x1000)], entry=v)
    kernel = load_kernel(memory, data)
    assert (kernel.entry, kernel.end) == (BASE + 0x20_0000, BASE + 0x60_1000)
    assert memory.read(BASE + 0x60_0000, 8) == b"data\0\0\0\0"


def x86():
    data = bytearray(1024)
    data[:2], data[0x1FE:0x200], data[0x202:0x206] = b"MZ", b"\x55\xaa", b"HdrS"
    return bytes(data)


def boot_sector():
    data = bytearray(1024)
    data[0x1FE:0x200] = b"\x55\xaa"
    return bytes(data)


def zboot():
    return (b"MZ\0\0zimg" + bytes(16) + b"gzip".ljust(32, b"\0") + b"\xcd\x23\x82\x81").ljust(1024, b"\0")


BAD_KERNELS = {
    "empty": (b"", "empty"),
    "short": (b"\x13\0\0\0", "truncated"),
    "header cut": (image()[:60], "truncated"),
    "text": (b"<!DOCTYPE html>" + bytes(1000), "not a kernel"),
    "zeros": (bytes(1000), "not a kernel"),
    "x86": (x86(), "x86"),
    "boot sector": (boot_sector(), "boot sector"),
    "arm64": (image(magic=b"ARM\x64"), "64-bit Arm"),
    "zimage": (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(100), "32-bit Arm"),
    "loongarch pe": (image(magic=b"\0\0\0\0", pe=pe_header(0x6264)), "LoongArch"),
    "odd pe": (image(pe=pe_header(0x1234)), "0x1234"),
    "no pe": (image(pe=bytes(64)), "damaged"),
    "zboot": (zboot(), "(gzip): unpack"),
    "xz": (b"\xfd7zXZ\0" + bytes(100), "xz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd"),
    "uimage": (b"\x27\x05\x19\x56" + bytes(100), "U-Boot"),
    "fit": (b"\xd0\x0d\xfe\xed" + bytes(100), "device tree"),
    "file cut": (image(4999, pe=pe_header()), "truncated"),
    "pe cut": (image(pe=pe_header())[:80], "truncated"),
    "big endian": (image(flags=1), "big-endian"),
    "no size": (image(image_size=0), "no image size"),
    "odd offset": (image(text_offset=3), "offset"),
    "far": (image(text_offset=1 << 60), "too small"),
    "large": (image(image_size=30 * MIB), "too small"),
    "gzip cut": (gzip.compress(image())[:-12], "truncated"),
    "gzip damaged": (b"\x1f\x8b" + bytes(100), "damaged"),
    "gzip empty": (gzip.compress(b""), "empty"),
    "gzip bomb": (gzip.compress(bytes(40 * MIB), 1), "too small"),
    "gzip of other": (gzip.compress(x86()), "x86"),
    "elf32": (elf(bits=1), "32-bit"),
    "elf big endian": (elf(order=2), "big-endian"),
    "elf x86": (elf(machine=62), "X86_64"),
    "elf arm": (elf(machine=183), "AARCH64"),
    "elf unknown": (elf(machine=0x4321), "not RISC-V"),
    "elf object": (elf(kind=1), "not an executable"),
    "elf cut": (elf()[:70], "truncated"),
    "elf header cut": (elf()[:40], "truncated"),
    "elf data cut": (elf()[:-2], "truncated"),
    "elf empty": (elf([]), "nothing to load"),
    "elf huge": (elf([(0, 0, b"", 1 << 63)], entry=0), "too small"),
    "elf entry": (elf(entry=4), "entry point"),
}


@pytest.mark.parametrize("name", BAD_KERNELS)
def test_bad_kernels(memory, name):
    data, words = BAD_KERNELS[name]
    with pytest.raises(LoadError) as caught:
        load_kernel(memory, data)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not any(memory.read(BASE, 16)) and not any(memory.read(BASE + 2 * MIB, 8192))


def test_no_ram():
    with pytest.raises(LoadError, match="no RAM"):
        load_kernel(Memory(), image())


# Whole machines


def test_boot(memory):
    initrd = bytes(range(256)) * 20 + b"x"
    asked = []

    def make_tree(where):
        asked.append(where)
        return b"tree" * 1000

    boot = boot_linux(memory, image(), initrd, make_tree)
    assert asked == [boot.initrd]
    start, end = boot.initrd
    assert memory.read(start, end - start) == initrd and start % 4096 == 0 and end <= BASE + 32 * MIB
    assert end > BASE + 32 * MIB - 4096
    assert boot.device_tree % 8 == 0 and boot.kernel.end <= boot.device_tree
    assert boot.device_tree + 4000 <= start
    assert memory.read(boot.device_tree, 4000) == b"tree" * 1000
    assert boot.entry == BASE + 0x20_0000


def test_boot_without_initrd(memory):
    boot = boot_linux(memory, image(), None, lambda where: b"none" if where is None else b"some")
    assert boot.initrd is None and memory.read(boot.device_tree, 4) == b"none"


def test_boot_refusals(memory):
    with pytest.raises(LoadError, match="initrd is empty"):
        boot_linux(memory, image(), b"", lambda _: b"tree")
    with pytest.raises(LoadError, match=r"RAM of 32 MiB is too small for the kernel \(22 MiB\) and initrd \(11 MiB\)"):
        boot_linux(memory, image(image_size=20 * MIB), bytes(11 * MIB), lambda _: b"tree")
    with pytest.raises(LoadError, match="device tree is longer"):
        boot_linux(memory, image(), None, lambda _: bytes(3 * MIB))
    with pytest.raises(LoadError, match="too small: the device tree"):
        boot_linux(memory, image(image_size=28 * MIB), bytes(2 * MIB - 8192), lambda _: bytes(9000))


def test_place_high_fills_the_last_byte(memory):
    assert place_high(memory, bytes(4096), floor=BASE + 32 * MIB - 4096) == BASE + 32 * MIB - 4096
    with pytest.raises(LoadError):
        place_high(memory, bytes(4097), floor=BASE + 32 * MIB - 4096)


# Programs


def test_program(memory):
    memory.write(BASE, b"\xff" * 0x3000)
    symbols = {"_start": BASE, "tohost": BASE + 0x1000, "fromhost": BASE + 0x1008}
    program = load_elf(memory, elf([(BASE, BASE, b"code", 8), (BASE + 0x1000,) * 2 + (b"", 0x1001)], symbols=symbols))
    assert (program.entry, program.tohost, program.fromhost) == (BASE, BASE + 0x1000, BASE + 0x1008)
    assert program.symbols == symbols and program.end == BASE + 0x2001
    assert memory.read(BASE, 9) == b"code\0\0\0\0\xff"
    assert memory.read(BASE + 0x1000, 0x1002) == bytes(0x1001) + b"\xff"


def test_program_linked_elsewhere(memory):
    high = 0xFFFF_FFFF_FFE0_0000
    program = load_elf(memory, elf([(high, BASE, b"", 0x2000)], entry=high + 4, symbols={"tohost": high + 0x1000}))
    assert (program.entry, program.tohost, program.fromhost) == (BASE + 4, BASE + 0x1000, None)


def test_program_without_symbols(memory):
    program = load_elf(memory, elf())
    assert program.symbols == {} and program.tohost is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"hello", "not an ELF file"),
        (elf([(0, 0, b"abcd", 8)], entry=0), "0x0..0x7 is outside RAM"),
        (elf([(BASE, BASE, b"abcd", 33 * MIB)]), "outside RAM"),
        (elf([(BASE, 2**64 - 8, b"abcd", 16)]), "outside RAM"),
        (elf([(BASE, BASE, b"abcd", 2)]), "longer in the file"),
        (elf(entry=0x40), "entry point at 0x40"),
        (elf(symbols={"tohost": 8}), "tohost at 0x8"),
    ],
)
def test_bad_programs(memory, data, words):
    with pytest.raises(LoadError) as caught:
        load_elf(memory, data)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert memory.read(BASE, 16) == bytes(16)


@pytest.mark.parametrize("load", [load_elf, load_kernel])
def test_damaged_elf_files_only_raise_load_errors(memory, load):
    chance = random.Random(7)
    good = elf([(BASE, BASE, b"code", 8), (BASE + 0x1000,) * 2 + (b"more", 64)], symbols={"tohost": BASE + 0x1000})
    for _ in range(1000):
        data = bytearray(good[: chance.choice([len(good), len(good), chance.randrange(len(good))])])
        for _ in range(chance.randrange(1, 5)):
            if data:
                data[chance.randrange(len(data))] = chance.choice([0, 1, 0x7F, 0xFF, chance.randrange(256)])
        try:
            load(memory, bytes(data))
        except LoadError as error:
            assert "\n" not in str(error)


def test_damaged_images_only_raise_load_errors(memory):
    chance = random.Random(8)
    good = image(pe=pe_header())
    for _ in range(1000):
        data = bytearray(good[: chance.choice([len(good), chance.randrange(300)])])
        for _ in range(chance.randrange(1, 5)):
            if data:
                data[chance.randrange(min(len(data), 160))] = chance.choice([0, 0xFF, chance.randrange(256)])
        try:
            load_kernel(memory, bytes(data))
        except LoadError as error:
            assert "\n" not in str(error)
