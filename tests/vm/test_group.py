"""Machines in one virtual time: every run is the same, and a recording of all of them is replayed, together and alone."""

from __future__ import annotations

from pathlib import Path

import pytest

import polyvisor
from polyvisor.network.conditions import Conditions
from polyvisor.vm.equipment import Nic
from polyvisor.vm.group.group import Group
from polyvisor.vm.replay.format import Checkpoint, Event, Reader
from polyvisor.vm.replay.together import GroupReplay
from polyvisor.vm.virtual_machine import VM
from support.net_program import HASH_AT, RECEIVED_AT, chatter

NAMES = ("one", "two", "three")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "chatter.elf"
    path.write_bytes(chatter())
    return path


def run(program: Path, path: Path, seed: int = 1, tier: str = "jit") -> dict[str, tuple[int, int]]:
    """Three machines talk, over a bad network that is torn for a while; gives what they saw and how much."""
    group = Group(seed=seed, record=path, checkpoint=100_000)
    switch = group.switch()
    seen: dict[str, tuple[int, int]] = {}
    nics = [Nic(switch, name=name) for name in NAMES]
    for nic, name in zip(nics, NAMES, strict=True):
        nic.set_conditions(Conditions(loss=0.1, duplicate=0.1, delay=0.002, jitter=0.001), Conditions(reorder=0.2))
        vm = VM(program=program, memory="16M", tier=tier, networks=[nic], name=name, group=group, cpus=1)
        vm.on_machine.append(
            lambda machine, name=name: machine.on_close.append(  # type: ignore[misc]
                lambda: seen.update({name: tuple(machine.board.memory.read(at, 8) for at in (HASH_AT, RECEIVED_AT))})
            )
        )
    group.at(0.008, lambda: switch.partition([nics[0].port]))
    group.at(0.014, switch.heal)
    with group:
        for vm in group.machines.values():
            assert vm.wait(60) == 0
    return {name: tuple(int.from_bytes(each, "little") for each in seen[name]) for name in NAMES}  # type: ignore[misc]


def events(path: Path) -> dict[str, list[Event]]:
    reader = Reader(path)
    return {
        name: [event for life in lives for section in range(len(life.events)) for event in reader.events(life, section)]
        for name, lives in zip(reader.names, reader.tracks, strict=True)
    }


@pytest.fixture(scope="module")
def recording(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("group") / "three.rec"
    run(program, path)
    return path


def test_two_runs_are_the_same(program: Path, recording: Path, tmp_path: Path) -> None:
    first = events(recording)
    assert list(first) == list(NAMES)
    for found in first.values():
        assert sum(isinstance(event, Checkpoint) for event in found) > 5
    seen = run(program, tmp_path / "again.rec")
    assert events(tmp_path / "again.rec") == first
    assert all(30 < received < 130 for _, received in seen.values())
    assert run(program, tmp_path / "interpreter.rec", tier="interpreter") == seen
    assert run(program, tmp_path / "other.rec", seed=2) != seen


@pytest.mark.parametrize("tier", ["jit", "interpreter"])
def test_all_are_replayed_together(recording: Path, tier: str) -> None:
    with polyvisor.replay_group(recording, tier=tier) as replay:
        replay.run()
        assert replay.ended
        assert [each.exit_code for each in replay.machines.values()] == [0, 0, 0]
        assert replay.checked > 15
