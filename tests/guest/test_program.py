"""Programs for guests, written in the description language, run by QEMU in user mode."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from polyvisor.adl import function, i64, u8, u32, u64
from polyvisor.adl.host import peek, poke
from polyvisor.guest import linux
from polyvisor.guest.agent import agent
from polyvisor.guest.linux import leave, read_all, write_all
from polyvisor.guest.program import DATA_BASE, Data, build
from polyvisor.guest.riscv import RISCV64

QEMU = shutil.which("qemu-riscv64")

_DATA = Data()
_GREETING = _DATA.text("Grüße\n")
_COUNTER = _DATA.space(4)
_BUFFER = _DATA.space(4096)


@function(inline=False)
def length_of(text: u64) -> u64:
    length = u64(0)
    while peek(u8, text + length) != 0:
        length = length + 1
    return length


@function(inline=False)
def count(number: u32) -> None:
    poke(u32, u64(_COUNTER), peek(u32, u64(_COUNTER)) + number)


@function(inline=False)
def main(stack: u64) -> None:
    """Greet, print the arguments, echo eight bytes of input, leave with the number of arguments."""
    write_all(u64(1), u64(_GREETING), u64(length_of(u64(_GREETING))))
    arguments = peek(u64, stack)
    number = u64(1)
    while number < arguments:
        text = peek(u64, stack + 8 + number * 8)
        write_all(u64(1), text, length_of(text))
        count(u32(1))
        number = number + 1
    if not read_all(u64(0), u64(_BUFFER), u64(8)):
        leave(u64(99))
    if write_all(u64(77), u64(_BUFFER), u64(8)) != i64(-9):  # EBADF
        leave(u64(98))
    write_all(u64(1), u64(_BUFFER), u64(8))
    leave(u64(peek(u32, u64(_COUNTER))))


def test_the_file_is_what_linux_loads(tmp_path: Path) -> None:
    program = build(main, _DATA, RISCV64)
    magic, entry = program[:4], struct.unpack_from("<Q", program, 24)[0]
    assert magic == b"\x7fELF" and struct.unpack_from("<H", program, 18)[0] == 243
    code, data = (struct.unpack_from("<IIQQQQQQ", program, 64 + 56 * n) for n in range(2))
    assert code[3] <= entry < code[3] + code[5] and code[1] == 5
    assert data[3] == DATA_BASE and data[1] == 6 and data[6] == _DATA.size and data[5] == len(_DATA.constants)
    assert build(main, _DATA, RISCV64) == program
    if QEMU is None:
        pytest.skip("qemu-riscv64 is not installed")
    path = tmp_path / "program"
    path.write_bytes(program)
    path.chmod(0o755)
    done = subprocess.run([QEMU, path, "one", "two", "three"], input=b"12345678", capture_output=True, timeout=30)
    assert done.stdout == "Grüße\nonetwothree12345678".encode() and done.returncode == 3
    done = subprocess.run([QEMU, path], input=b"1234", capture_output=True, timeout=30)
    assert done.returncode == 99


def test_data_has_its_order() -> None:
    data = Data()
    assert data.bytes(b"abc") == DATA_BASE and data.text("x") == DATA_BASE + 8
    assert data.space(3) == DATA_BASE + 16 and data.space(1) == DATA_BASE + 32
    with pytest.raises(ValueError, match="before space"):
        data.text("late")


def test_the_agent_is_small_and_needs_nothing() -> None:
    program = agent(RISCV64)
    assert len(program) < 64 << 10
    assert struct.unpack_from("<H", program, 56)[0] == 2  # segments; none asks for an interpreter


def test_system_calls_have_their_numbers() -> None:
    """As the kernel's headers on this host have them, where they are installed."""
    header = Path("/usr/include/asm-generic/unistd.h")
    if not header.exists():
        pytest.skip("linux-libc-dev is not installed")
    found: dict[str, int] = {}
    for line in header.read_text().splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == "#define" and words[2].isdigit():
            found[words[1]] = int(words[2])
    names = "DUP3 IOCTL CHDIR FCHMOD OPENAT CLOSE PIPE2 READ WRITE PPOLL EXIT KILL RT_SIGACTION SETGID SETUID SETSID"
    for name in (*names.split(), *"SETGROUPS SOCKET BIND LISTEN CONNECT CLONE EXECVE ACCEPT4 WAIT4 STATX".split()):
        key = next(k for k in (f"__NR_{name.lower()}", f"__NR3264_{name.lower()}") if k in found)
        assert getattr(linux, name) == found[key], name


def test_the_compiler_is_loaded_to_compile_only() -> None:
    script = "import sys, polyvisor.guest.riscv, polyvisor.guest.initrd; print(*sys.modules)"
    path = os.pathsep.join(each for each in sys.path if each)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert not {"llvmlite", "elftools"} & set(done.stdout.split())
