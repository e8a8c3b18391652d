"""The VIC-II as native code does what CPython makes of its description, whatever is written to it and when."""

from __future__ import annotations

import random

import pytest
from vic_program import vic_cpu

from polyvisor.devices.c64 import memory as where
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import native_code
from polyvisor.engine.reference import reference_cpu

CODE = 0x60000
FRAME = where.FRAME_LINES * where.FRAME_STRIDE


def encode(*numbers: int) -> bytes:
    """An instruction, whose first byte is the highest of a little-endian word."""
    return bytes(reversed(numbers))


def program(rng: random.Random, length: int) -> bytes:
    """Sprites and raster at places where something happens, then anything."""
    made = [encode(2, 0x11, 0x1B, 0), encode(2, 0x16, 0x08, 0)]
    for sprite in range(8):
        made.append(encode(2, 2 * sprite, rng.randrange(256), 0))
        made.append(encode(2, 2 * sprite + 1, rng.choice((0x30, 0x31, 0x33, 0x36)), 0))
    for _ in range(length):
        register = rng.choice((*range(0x30), 0x11, 0x11, 0x16, 0x15, 0x17, 0x18, 0x19, 0x1A, 0x40, 0x41))
        value = rng.randrange(256)
        if register == 0x11:
            value = value & 0x7F | 0x10
        if rng.random() < 0.3:
            register = rng.randrange(64)
            made.append(encode(1, register, 0, rng.randrange(40)))
        else:
            made.append(encode(2, register, value, rng.choice((0, 1, 2, 7, 13, 33))))
    return b"".join([*made, encode(3, 0, 3, 0)])


def machine(seed: int, code: bytes) -> Memory:
    memory = Memory()
    memory.add_ram(0, 0x70000)
    memory.write(0, random.Random(seed).randbytes(where.FRAME_BUFFER))
    memory.write(CODE, code)
    return memory


def begin(state: object) -> None:
    """At a line before the first bad one, with the border open."""
    start = {"pc": CODE, "vic_line": 0x2F, "vic_raster": 0x2E, "vic_border": 0, "vic_border_vertical": 0}
    for name, value in start.items():
        setattr(state, name, value)


def compare(seed: int, length: int) -> None:
    rng = random.Random(seed)
    code = program(rng, length)
    expected, actual = machine(seed, code), machine(seed, code)
    try:
        reference = reference_cpu(vic_cpu, expected)
        begin(reference)
        while reference.step() is None:
            assert reference.pc < CODE + len(code)
        native = native_code(vic_cpu)
        cpu = Cpu(native, actual, CodePages(native, actual, 512))
        begin(cpu.state)
        assert cpu.run(10 * length + 100).kind == "leave"
        ours, theirs = cpu.state.values(), reference.values()
        assert {n: v for n, v in theirs.items() if ours[n] != v} == {}
        drawn = actual.read(where.FRAME_BUFFER, FRAME)
        assert drawn == expected.read(where.FRAME_BUFFER, FRAME)
        assert len(set(drawn)) > 1
    finally:
        expected.close()
        actual.close()


@pytest.mark.parametrize("seed", range(4))
def test_random_accesses(seed: int) -> None:
    compare(seed, 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_random_accesses(seed: int) -> None:
    compare(seed, 500)
