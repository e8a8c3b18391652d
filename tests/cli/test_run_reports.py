"""What `polyvisor run` writes about a machine: coverage, profiles, system calls."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.guests import guest_image, image_cache
from support.programs import POWER_OFF, elf

LINK = "ENTRY(_start) SECTIONS { . = 0x80000000; .text : { *(.text*) } }"
PROGRAM = """
__attribute__((naked)) void _start(void) {
    __asm__("li t0, 0x100000\\n li t1, 0x73333\\n"
            "sw t1, 0(t0)\\n"
            "1: j 1b");
}
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    guest_image()
    return subprocess.run(
        [sys.executable, "-m", "polyvisor", "run", *arguments], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=120, env={**os.environ, "POLYVISOR_CACHE": str(image_cache())},
    )  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("ziglang") is None, reason="ziglang is not installed")
def test_coverage_of_a_program(tmp_path: Path) -> None:
    (tmp_path / "program.c").write_text(PROGRAM)
    (tmp_path / "link.ld").write_text(LINK)
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-target", "riscv64-freestanding-none", "-nostdlib", "-static", "-g",
         "-O0", "-T", "link.ld", "program.c", "-o", "program.elf"], check=True, cwd=tmp_path, timeout=120,
    )  # fmt: skip
    report, other = tmp_path / "report.info", tmp_path / "report.xml"
    done = run(str(tmp_path / "program.elf"), "--coverage", str(report))
    assert done.returncode == 7, done.stderr
    assert "FNDA:1,_start" in report.read_text().splitlines()
    assert run(str(tmp_path / "program.elf"), "--coverage", str(other)).returncode == 7
    assert other.read_text().startswith('<?xml version="1.0" ?>\n<coverage line-rate="1')


def test_system_calls_and_a_profile(tmp_path: Path) -> None:
    calls, stacks = tmp_path / "calls", tmp_path / "profile.svg"
    for option in (("--syscalls", str(calls)), ("--profile", str(stacks))):
        done = run("debian", "--run", "cat /etc/passwd; exit 4", *option)
        assert done.returncode == 4, done.stderr
        assert done.stdout.startswith("root:")
    assert any("openat(-100, '/etc/passwd'" in line for line in calls.read_text().splitlines())
    # The command may be done before the guest is ready to be sampled.
    assert stacks.exists() != ("nothing was sampled" in done.stderr)


def test_what_was_seen_is_written_whatever_happens(tmp_path: Path) -> None:
    """Also when another report cannot be written; that is told, with its name."""
    program, calls = tmp_path / "program.elf", tmp_path / "calls"
    program.write_bytes(elf("    li a0, 0\n" + POWER_OFF))
    full = tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    done = run(str(program), "--profile", str(full), "--syscalls", str(calls))
    assert done.returncode == 2
    assert done.stderr == f"polyvisor: --profile {str(full)!r}: No space left on device\n"
    assert calls.exists()
    other = tmp_path / "other.svg"
    done = run(str(program), "--profile", str(other), "--gdb", "99999")
    assert done.returncode == 2 and not other.exists()


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    plain = tmp_path / "plain.elf"
    plain.write_bytes(elf("    li a0, 1\n" + POWER_OFF))
    for arguments, message in (
        ([str(plain), "--coverage", str(tmp_path / "x")], "has no code"),
        ([str(plain), "--coverage", str(tmp_path / "no" / "x")], "No such file"),
        ([str(plain), "--profile", str(tmp_path)], "Is a directory"),
        ([str(plain), "--syscalls", str(tmp_path / "no" / "x")], "No such file"),
        (["debian", "--coverage", str(tmp_path / "x")], "--coverage goes with a program"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and message in done.stderr, done.stderr
