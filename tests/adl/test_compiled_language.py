"""Random functions of the description language: compiled, they compute what CPython computes."""

from __future__ import annotations

import importlib
import random
import sys

import pytest

from polyvisor.adl import DescriptionError
from polyvisor.engine.codepages import CodePages
from polyvisor.engine.cpu import Cpu
from polyvisor.engine.memory import Memory
from polyvisor.engine.native import NativeCode
from polyvisor.engine.reference import reference_cpu
from support import expressions

CORNERS = [0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def compare(directory, monkeypatch, seed: int, instructions: int, rounds: int) -> None:
    name = f"random_description_{seed}"
    (directory / f"{name}.py").write_text(expressions.module(seed, instructions))
    monkeypatch.syspath_prepend(str(directory))
    monkeypatch.setenv("POLYVISOR_CACHE", str(directory / "cache"))
    try:
        toy = importlib.import_module(name).toy
        memory, other = Memory(), Memory()
        memory.add_ram(0, 0x4000)
        other.add_ram(0, 0x4000)
        code = NativeCode(toy)
        native = Cpu(code, memory, CodePages(code, memory))
        reference = reference_cpu(toy, other)
        rng = random.Random(seed)
        for number, instruction in enumerate(toy.instructions):
            memory.write(0, instruction.encoding.encode({}))
            other.write(0, instruction.encoding.encode({}))
            for _ in range(rounds):
                values = [rng.choice((rng.choice(CORNERS), rng.getrandbits(64))) for _ in range(expressions.INPUTS)]
                for state in (native.state, reference):
                    state.reset()
                    for n, value in enumerate(values):
                        state.r[n] = value
                if rng.random() < 0.5:
                    native.flush()
                native.step()
                try:
                    reference.step()
                except DescriptionError as error:
                    raise AssertionError(f"seed {seed}, do{number}, inputs {values}: {error}") from error
                found, expected = list(native.state.out), list(reference.out)
                wrong = [n for n in range(32) if found[n] != expected[n]]
                assert not wrong, f"registers {wrong}, seed {seed}, do{number}, inputs {values}"
                assert native.state.pc == reference.pc
                assert memory.read(0, 0x4000) == other.read(0, 0x4000), f"memory, seed {seed}, do{number}"
        memory.close()
        other.close()
    finally:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("seed", range(3))
def test_random_functions(tmp_path, monkeypatch, seed):
    compare(tmp_path, monkeypatch, seed, 15, 12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_random_functions(tmp_path, monkeypatch, seed):
    compare(tmp_path, monkeypatch, seed, 60, 40)
