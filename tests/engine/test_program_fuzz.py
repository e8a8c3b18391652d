"""The tiers agree on whole programs with loops: see `support.program_fuzz`, which also runs long campaigns."""

from __future__ import annotations

import ctypes

import pytest

from polyvisor.engine.layout import PAGE_CODE
from polyvisor.engine.native import native_code
from polyvisor.engine.regions.compile import RegionCompiler
from polyvisor.isa.riscv import rv64
from support import fuzz_machine, program_fuzz
from support.program_maker import make_program


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
    _check(tiers, "interpreter", "reference", range(4), 60)


def test_long_programs(tiers):
    _check(tiers, "interpreter", "restless", range(60), 20_000)


def test_compiled_regions(tiers):
    before = int(tiers["jit"].executor.engine.region_instructions)
    _check(tiers, "interpreter", "jit", range(200, 230), 20_000)
    assert int(tiers["jit"].executor.engine.region_instructions) - before > 50_000


def test_compiled_regions_against_the_reference(tiers):
    _check(tiers, "jit", "reference", range(300, 303), 60)


@pytest.mark.parametrize("other", ["restless", "jit"])
def test_turns_end_at_the_same_places(tiers, other):
    """In virtual time: whatever is compiled, decoded or interrupted, also with timers."""
    before = int(tiers["jit"].executor.engine.region_instructions)
    for seed in range(400, 415):
        program = make_program(seed, 20_000)
        assert not program_fuzz.compare_turns(program, tiers["interpreter"], tiers[other], 20_000), seed
    if other == "jit":
        assert int(tiers["jit"].executor.engine.region_instructions) - before > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("other", ["restless", "jit"])
def test_many_turns_end_at_the_same_places(tiers, other):
    for seed in range(4000, 4500):
        program = make_program(seed, 20_000)
        assert not program_fuzz.compare_turns(program, tiers["interpreter"], tiers[other], 20_000), seed


def test_an_instruction_compiled_wrong_is_found(monkeypatch):
    """The test itself: a region compiler that takes one instruction for another is found out."""
    names = {i.name: i for i in rv64.instructions}
    right = RegionCompiler.function

    def wrong(self, instruction):
        return right(self, names["bgeu"] if instruction is names["bge"] else instruction)

    monkeypatch.setattr(RegionCompiler, "function", wrong)
    tier = fuzz_machine.make_tier("jit")
    plain = fuzz_machine.make_tier("interpreter")
    assert any(program_fuzz.compare(make_program(seed), plain, tier, 20_000) for seed in range(200))
    tier.close()
    plain.close()


@pytest.mark.slow
def test_many_programs_in_compiled_regions(tiers):
    _check(tiers, "interpreter", "jit", range(2000, 2500), 20_000)


@pytest.mark.slow
def test_reference_often(tiers):
    _check(tiers, "interpreter", "reference", range(100, 140), program_fuzz.SHORT)


@pytest.mark.slow
def test_many_long_programs(tiers):
    _check(tiers, "interpreter", "restless", range(1000, 1500), 20_000)


@pytest.mark.parametrize(
    ("instruction", "other"), [("addw", "subw"), ("c.sub", "c.xor"), ("bge", "bgeu"), ("sfence.vma", "fence")]
)
def test_a_wrong_instruction_is_found_and_shrunk(tiers, instruction, other):
    """The test itself: a tier that takes one instruction for another is found out, and only what is needed shown."""
    code = native_code(rv64)
    names = [i.name for i in rv64.instructions]
    table = (ctypes.c_uint64 * len(code.table))(*code.table)
    table[names.index(instruction) + 1] = code.handler(names.index(other) + 1)
    broken = fuzz_machine.NativeTier("broken")
    broken.executor.engine.decode_table = ctypes.addressof(table)
    found = ""
    for seed in range(100):
        found = found or program_fuzz.check(seed, tiers["interpreter"], broken, 20_000, seconds=10)
    broken.close()
    assert instruction in found
    assert "broken" in found
    assert found.count("\n") < 200


def test_unnoticed_writes_to_code_are_found(tiers):
    """Likewise, a tier that does not notice when code is overwritten."""

    def forget(cpu, records):
        for page in range(fuzz_machine.RAM_PAGES):
            flags = ctypes.c_uint8.from_address(cpu.pages.descriptors[4] + page)
            flags.value &= ~PAGE_CODE

    stale = fuzz_machine.NativeTier("stale", prepare=forget)
    assert any(
        program_fuzz.compare(make_program(seed), tiers["interpreter"], stale, 20_000) for seed in range(100)
    )
    stale.close()
