"""The tiers agree on whole programs with loops: see `support.program_fuzz`, which also runs long campaigns."""

from __future__ import annotations

import pytest

from polyvisor.engine.native import native_code
from polyvisor.isa.riscv import rv64
from support import fuzz_machine, program_fuzz


@pytest.fixture(scope="module")
def tiers():
    native_code(rv64).warm()
    made = {name: fuzz_machine.make_tier(name) for name in fuzz_machine.TIERS}
    yield made
    for tier in made.values():
        tier.close()


def _check(tiers, one, other, seeds, budget):
    for seed in seeds:
        assert not program_fuzz.check(seed, tiers[one], tiers[other], budget)


def test_reference(tiers):
    _check(tiers, "interpreter", "reference", range(6), 150)


def test_long_programs(tiers):
    _check(tiers, "interpreter", "restless", range(60), 20_000)


@pytest.mark.slow
def test_reference_often(tiers):
    _check(tiers, "interpreter", "reference", range(100, 140), program_fuzz.SHORT)


@pytest.mark.slow
def test_many_long_programs(tiers):
    _check(tiers, "interpreter", "restless", range(1000, 1500), 20_000)


def test_a_difference_is_found_and_shrunk(tiers, monkeypatch):
    """The test itself: with a wrong reference it fails, and shows only what is needed."""
    add = next(i for i in rv64.instructions if i.name == "addw")

    def wrong(cpu, rd, rs1, rs2):
        cpu.x[rd] = cpu.x[rs1] + cpu.x[rs2]

    monkeypatch.setattr(add.function, "python", wrong)
    found = ""
    for seed in range(50):
        found = found or program_fuzz.check(seed, tiers["interpreter"], tiers["reference"], 100, seconds=5)
    assert "addw" in found
    assert "interpreter" in found and "reference" in found
