"""The search finds the schedule that makes two harts disturb each other, and its recording shows it again."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

import polyvisor
from polyvisor.vm.search import search
from polyvisor.vm.virtual_machine import VM
from support.programs import POWER_OFF, elf
from support.two_harts import two_harts

# Two harts add to a counter without a lock, with a jump in the middle: a turn can end there, if it has the length for
# it. The status says whether an addition was lost.
RACE = two_harts(
    times=100_000,
    work="""
    ld t1, 0(s1)
    addi t1, t1, 1
    j middle
middle:
    sd t1, 0(s1)
""",
    then="""
    ld a1, 0(s1)
    li a2, 200000
    sltu a0, a1, a2
    j power_off
""",
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "race.elf"
    path.write_bytes(elf(RACE + POWER_OFF))
    return path


def test_a_race_is_found_and_shown_again(program: Path, tmp_path: Path) -> None:
    make = functools.partial(VM, program=program, memory="16M", cpus=2)
    kept = tmp_path / "found.rec"
    seen = []

    def check(vm: VM) -> bool:
        seen.append(vm)
        return vm.wait(60) == 0

    found = search(make, check, seeds=range(1, 60), keep=kept)
    assert found is not None
    assert (found.recording, found.reason) == (kept, "the check gave False")
    assert found.seed == len(seen)
    with polyvisor.replay(kept) as replay:
        replay.run()
        assert replay.exit_code == 1
    assert [path.name for path in tmp_path.iterdir() if path.name != "race.elf"] == ["found.rec"]


def test_a_search_may_find_nothing(program: Path, tmp_path: Path) -> None:
    make = functools.partial(VM, program=program, memory="16M", cpus=1)
    assert search(make, lambda vm: vm.kill(), seeds=range(1, 3), keep=tmp_path / "found.rec") is None
    assert list(tmp_path.iterdir()) == [program]


def test_what_a_check_raises_is_the_reason(program: Path, tmp_path: Path) -> None:
    def check(vm: VM) -> None:
        assert vm.name == "", "not this name"

    make = functools.partial(VM, program=program, memory="16M", cpus=1)
    found = search(make, check, seeds=[5], keep=tmp_path / "found.rec")
    assert found is not None
    assert (found.seed, found.reason) == (5, "AssertionError: not this name")


def test_seeds_go_with_virtual_time(program: Path) -> None:
    for options in ({"seed": 1}, {"schedule": 1}):
        with pytest.raises(ValueError, match="go with virtual time"):
            VM(program=program, **options)
