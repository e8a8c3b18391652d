"""The native interpreter and the reference executor agree on every bit: see `support.fuzz`."""

from __future__ import annotations

import random

import pytest

from polyvisor.isa.riscv import rv64
from support import fuzz


@pytest.fixture(scope="module")
def pair():
    pair = fuzz.Pair()
    yield pair
    pair.close()


def _instructions(pair: fuzz.Pair, seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    for _ in range(rounds):
        pair.set(
            bytes(fuzz.random_state(rng, fuzz.Setting(), fuzz.RAM).block), bytes(fuzz.fresh_image(rng))
        )
        for instruction in rv64.instructions:
            fuzz.one_instruction(pair, rng, instruction)
        assert not pair.difference()


@pytest.mark.parametrize("seed", range(4))
def test_every_instruction(pair, seed):
    _instructions(pair, seed, 3)


@pytest.mark.parametrize("mode", fuzz.MODES)
@pytest.mark.parametrize("seed", range(6))
def test_programs(pair, seed, mode):
    for n in range(4):
        fuzz.check_program(pair, 1000 * seed + n, 250, mode)


@pytest.mark.slow
def test_every_instruction_often(pair):
    _instructions(pair, 100, 100)


@pytest.mark.slow
@pytest.mark.parametrize("mode", fuzz.MODES)
def test_many_programs(pair, mode):
    for n in range(150):
        fuzz.check_program(pair, 10_000_000 + n, 1000, mode)


def test_a_difference_is_found_and_shrunk(pair, monkeypatch):
    """The test itself: with a wrong reference it fails, and shows only what is needed."""
    sub = next(i for i in rv64.instructions if i.name == "sub")

    def wrong(cpu, rd, rs1, rs2):
        cpu.x[rd] = (cpu.x[rs1] - cpu.x[rs2]) ^ 1

    monkeypatch.setattr(sub.function, "python", wrong)
    with pytest.raises(fuzz.Mismatch) as caught:
        for seed in range(300):
            fuzz.check_program(pair, seed, 200, "step")
    assert "sub {" in str(caught.value)
    assert str(caught.value).count(" op ") < 5
