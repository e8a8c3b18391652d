"""Machines in one virtual time: every run is the same, and the recording of all of them is replayed."""

from __future__ import annotations

from pathlib import Path

import pytest

import polyvisor
from polyvisor.adl.assembler import assemble
from polyvisor.isa.riscv import rv64
from polyvisor.network.conditions import Conditions
from polyvisor.vm.equipment import Nic
from polyvisor.vm.group.group import Group
from polyvisor.vm.replay.format import Checkpoint, Event, Reader
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image
from support.net_program import HASH_AT, RECEIVED_AT, chatter, text
from support.programs import DRAM, POWER_OFF, elf

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


def test_one_is_replayed_alone(recording: Path) -> None:
    with polyvisor.replay(recording, machine="two") as replay:
        replay.run()
        assert (replay.name, replay.exit_code) == ("two", 0)
        assert replay.checked > 5
    with pytest.raises(polyvisor.VMError, match="has several machines: choose one of one, two, three"):
        polyvisor.replay(recording)
    with pytest.raises(polyvisor.VMError, match="has no machine 'four'; there are one, two, three"):
        polyvisor.replay(recording, machine="four")


def state(replay: polyvisor.GroupReplay) -> list[tuple[int, ...]]:
    return [
        (each.time, each.count, each.cpu[0].pc, *(each.cpu[0].x[number] for number in range(1, 32)))
        for each in replay.machines.values()
    ]


def test_all_go_to_a_time_forwards_and_backwards(recording: Path) -> None:
    with polyvisor.replay_group(recording) as replay:
        seen: dict[int, list[tuple[int, ...]]] = {}
        for when in (5_000_000, 12_345_678, 5_000_000, 0, 12_345_678):
            replay.goto(when)
            assert seen.setdefault(when, state(replay)) == state(replay)
            assert replay.time >= when
        replay.machines["two"].step(-1000)  # alone
        replay.goto(12_345_678)
        assert state(replay) == seen[12_345_678]
        replay.run()
        assert replay.ended
        with pytest.raises(ValueError, match="has no such time"):
            replay.goto(10**12)


def test_a_replay_that_differs_is_noticed(recording: Path) -> None:
    with polyvisor.replay_group(recording) as replay:
        replay.run(5_000_000)
        replay.machines["three"].machine.board.memory.write(0x80F0_0000, b"other")
        with pytest.raises(polyvisor.DivergenceError, match="in: memory"):
            replay.run()


def test_a_machine_that_restarts_stays_in_the_common_time(tmp_path: Path) -> None:
    """It is reset until it is 30 ms; the others wait for it, so this too is always the same."""
    (tmp_path / "once.elf").write_bytes(chatter(rounds=30))
    (tmp_path / "again.elf").write_bytes(chatter(rounds=30, early=30_000_000))
    found = []
    for number in (1, 2):
        path = tmp_path / f"{number}.rec"
        group = Group(seed=1, record=path, checkpoint=100_000)
        switch = group.switch()
        for name in ("once", "again"):
            program = tmp_path / f"{name}.elf"
            VM(program=program, memory="16M", networks=[Nic(switch, name=name)], name=name, group=group)
        with group:
            assert [vm.wait(60) for vm in group.machines.values()] == [0, 1]  # in the end, nobody is there to be heard
        found.append(events(path))
    assert found[0] == found[1]
    with polyvisor.replay_group(path) as replay:
        replay.run()
        again = replay.machines["again"]
        last = again.life
        assert last > 0
        assert 30_000_000 <= again.epoch + again.time < 60_000_000
        # Back over resets, all of them.
        seen = {}
        for when in (25_000_000, 4_000_000, 25_000_000, 4_000_000):
            replay.goto(when)
            assert seen.setdefault(when, state(replay)) == state(replay)
        assert again.life == 0
        with pytest.raises(ValueError, match="has no life 9"):
            again.goto_life(9)
        again.run()
        reset = assemble(rv64, text(rounds=30, early=30_000_000), base=DRAM).symbols["again"]
        again.set_breakpoints([reset])
        for life in reversed(range(last)):
            hart = again.reverse_continue()
            assert hart is not None and (again.life, int(hart.state.pc)) == (life, reset)
        assert again.reverse_continue() is None
        assert (again.life, again.count) == (0, 0)


def test_what_a_group_does_not_take(program: Path) -> None:
    group = Group(seed=1)
    with pytest.raises(ValueError, match="give seed, schedule and record to the machine's group"):
        VM(program=program, seed=1, group=group)
    vm = VM(program=program, name="a", group=group)
    with pytest.raises(ValueError, match="has a machine 'a' already"):
        VM(program=program, name="a", group=group)
    with pytest.raises(polyvisor.VMError, match="a is of a group: start that"):
        vm.start()
    with pytest.raises(ValueError, match="a step of 2"):
        Group(step=2)
    with Group() as empty, pytest.raises(ValueError, match="has started"):
        VM(program=program, group=empty)


def test_what_a_function_raises_ends_all(program: Path) -> None:
    group = Group(seed=1)
    for name in ("a", "b"):
        VM(program=program, memory="16M", networks=[group.switch()], name=name, group=group)
    group.at(0.001, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError), group:
        group.machines["a"].wait(30)
    assert not group.machines["b"].running


def test_machines_of_a_group_stand_still_together(program: Path) -> None:
    group = Group(seed=1)
    switch = group.switch()
    for name in NAMES:
        VM(program=program, memory="16M", networks=[Nic(switch, name=name)], name=name, group=group)
    group.at(0.002, lambda: None)
    with group:
        one, two, _ = group.machines.values()
        with one.paused(), two.paused():
            before = [vm.machine.board.conductor.now for vm in group.machines.values()]  # type: ignore[union-attr]
            with pytest.raises(polyvisor.VMError, match="the machine is of a group"):
                one.fork(1)
            after = [vm.machine.board.conductor.now for vm in group.machines.values()]  # type: ignore[union-attr]
        assert before == after
        two.kill()
        assert one.wait(60) in (0, 1)


# Waits for a byte on the serial port, and ends with it.
WAITING = """
    li s0, 0x10000000
    li t0, 1
    sb t0, 1(s0)
    li t0, 0x0c000028
    li t1, 1
    sw t1, 0(t0)
    li t0, 0x0c002000
    li t1, 1024
    sw t1, 0(t0)
    li t0, 0x800
    csrw mie, t0
    wfi
    lbu a0, 0(s0)
    j power_off
"""


def test_events_come_at_their_times(tmp_path: Path) -> None:
    """Two machines wait for a byte each, which come within one step: each gets its own then, and not sooner."""
    (tmp_path / "wait.elf").write_bytes(elf(WAITING + POWER_OFF))
    group = Group(seed=1)
    ended: dict[str, int] = {}
    for name, when in (("early", 5_210_000), ("late", 5_290_000)):
        vm = VM(program=tmp_path / "wait.elf", memory="16M", name=name, group=group)
        group.at(when / 1e9, lambda vm=vm: vm.machine.send(b"x"))  # type: ignore[misc]
        vm.on_machine.append(
            lambda machine, name=name: machine.on_close.append(  # type: ignore[misc]
                lambda: ended.update({name: machine.board.conductor.now})
            )
        )
    with group:
        assert [vm.wait(30) for vm in group.machines.values()] == [ord("x")] * 2
    assert 0 < ended["early"] - 5_210_000 < 100
    assert 0 < ended["late"] - 5_290_000 < 100


def test_events_are_noticed_while_all_wait(tmp_path: Path) -> None:
    (tmp_path / "wait.elf").write_bytes(elf(WAITING + POWER_OFF))
    group = Group(seed=1)
    vm = VM(program=tmp_path / "wait.elf", memory="16M", name="a", group=group)
    with group:
        conductor = vm.machine.board.conductor
        assert conductor is not None
        for _ in range(500):
            if conductor.rests:
                break
            assert not vm.has_ended(0.02)
        group.at(1.0, lambda: vm.machine.send(b"y"))
        assert vm.wait(30) == ord("y")
    assert conductor.now >= 10**9


# Linux


def linux(group: Group, output: dict[str, bytearray]) -> None:
    """Two machines without an agent, of which one pings the other over a line that loses frames."""
    image, switch = guest_image(), group.switch()
    for number, command in ((1, "sleep 4"), (2, "ping -c 12 -i 0.1 -W 1 10.0.0.1; date; cat /proc/uptime")):
        nic = Nic(switch, name=f"m{number}")
        nic.set_conditions(Conditions(loss=0.1, delay=0.003, jitter=0.002))
        line = image.command_line(run=f"ip addr add 10.0.0.{number}/24 dev eth0; ip link set eth0 up; {command}")
        VM(
            kernel=image.kernel, initrd=image.initrd, append=line, memory="128M", networks=[nic], name=f"m{number}",
            group=group, on_output=output.setdefault(f"m{number}", bytearray()).extend,
        )


@pytest.fixture(scope="module")
def linux_recording(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytearray]]:
    path = tmp_path_factory.mktemp("linux") / "linux.rec"
    return path, record_linux(path)


def record_linux(path: Path) -> dict[str, bytearray]:
    output: dict[str, bytearray] = {}
    group = Group(seed=4, record=path)
    linux(group, output)
    with group:
        assert [vm.wait(300) for vm in group.machines.values()] == [0, 0]
    return output


def test_linux_on_a_bad_line_is_replayed(linux_recording: tuple[Path, dict[str, bytearray]]) -> None:
    path, output = linux_recording
    assert b"bytes from 10.0.0.1" in output["m2"]
    shown: dict[str, bytearray] = {}
    with polyvisor.replay_group(
        path, on_output=lambda name, data: shown.setdefault(name, bytearray()).extend(data), backwards=False
    ) as replay:
        replay.run()
        assert replay.ended and replay.checked >= 4
    assert shown == output


@pytest.mark.slow
def test_linux_on_a_bad_line_is_always_the_same(
    linux_recording: tuple[Path, dict[str, bytearray]], tmp_path: Path
) -> None:
    path, output = linux_recording
    assert record_linux(tmp_path / "again.rec") == output
    assert events(tmp_path / "again.rec") == events(path)
