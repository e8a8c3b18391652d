"""Hooks are told the same in all tiers: random programs with hooks of every kind, added and removed meanwhile."""

from __future__ import annotations

import pytest

from polyvisor.engine.native import native_code
from polyvisor.engine.regions.compile import RegionCompiler
from polyvisor.isa.riscv import rv64
from support import fuzz_machine, hook_programs, program_fuzz
from support.program_maker import make_program

ALL = [(hook, None) for hook in hook_programs.EVERY]


@pytest.fixture(scope="module")
def tiers():
    native_code(rv64).warm()
    made = {name: fuzz_machine.make_tier(name) for name in fuzz_machine.TIERS}
    yield made
    for tier in made.values():
        tier.close()


def _check(tiers, one, other, seeds, budget, stop=None):
    a, b = tiers[one], tiers[other]
    for tier in (a, b):
        tier.hook(hook_programs.Told, ALL)
    told = 0
    for seed in seeds:
        assert not program_fuzz.compare(make_program(seed, budget), a, b, budget, stop)
        told += sum(a.hooks.read("events"))
    return told


def test_the_interpreter_and_the_reference(tiers):
    assert _check(tiers, "interpreter", "reference", range(5000, 5004), 60) > 100


def test_regions_and_the_interpreter(tiers):
    before = int(tiers["jit"].executor.engine.region_instructions)
    assert _check(tiers, "interpreter", "jit", range(5100, 5112), 20_000) > 10_000
    assert int(tiers["jit"].executor.engine.region_instructions) - before > 10_000


def test_an_interpreter_that_forgets_all_the_time(tiers):
    assert _check(tiers, "interpreter", "restless", range(5200, 5215), 20_000) > 10_000


def test_hooks_that_come_and_go(tiers):
    assert _check(tiers, "interpreter", "reference", range(5300, 5303), 60, hook_programs.swap)


@pytest.mark.slow
def test_hooks_that_come_and_go_in_regions(tiers):
    assert _check(tiers, "interpreter", "jit", range(5400, 5410), 20_000, hook_programs.swap)


@pytest.mark.slow
def test_many_programs(tiers):
    assert _check(tiers, "jit", "interpreter", range(6000, 6100), 20_000)
    assert _check(tiers, "jit", "reference", range(6200, 6210), program_fuzz.SHORT)


def test_an_event_that_regions_forget_is_found(tiers, monkeypatch):
    """The test itself: a region compiler that leaves the hooks out of some instructions is found out."""
    left_out = [i for i in rv64.instructions if i.name in ("addi", "c.addi", "c.mv")]
    right = RegionCompiler.function

    def wrong(self, instruction):
        if instruction in left_out:
            return self.compiler.instruction(instruction.function, instruction.types, instruction.name)
        return right(self, instruction)

    monkeypatch.setattr(RegionCompiler, "function", wrong)
    broken = fuzz_machine.make_tier("jit")
    for tier in (tiers["interpreter"], broken):
        tier.hook(hook_programs.Told, ALL)
    found = [program_fuzz.compare(make_program(seed), tiers["interpreter"], broken, 20_000) for seed in range(12)]
    assert any("hooks' mixed" in each for each in found)
    broken.close()
