"""The search finds the schedule that makes two harts disturb each other, and its recording shows it again."""

from __future__ import annotations

import functools
import threading
from pathlib import Path
from typing import Any

import pytest

import polyvisor
from polyvisor.engine.outside import Operation
from polyvisor.network.conditions import Conditions
from polyvisor.vm.equipment import Disk, Nic
from polyvisor.vm.forks.fork import Fork
from polyvisor.vm.group.fork import GroupFork
from polyvisor.vm.group.group import Group
from polyvisor.vm.replay.format import Event, Reader
from polyvisor.vm.search import search
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image
from support.net_program import chatter
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


# From a point


# Hart 0 waits until it is told to go on, by a byte on the serial port; then the harts race.
WAITING = """
    csrr t0, mhartid
    bnez t0, off
    li t0, 0x10000000
poll:
    lbu t1, 5(t0)
    andi t1, t1, 1
    beqz t1, poll
    lbu t1, 0(t0)
    sb t1, 0(t0)
    la t0, begun
    li t1, 1
    fence
    sw t1, 0(t0)
    j ready
off:
    la t0, begun
look:
    lw t1, 0(t0)
    beqz t1, look
    j ready
    .balign 4
begun:
    .word 0
ready:
"""


def test_forks_of_a_point_are_searched_and_the_recording_begins_there(tmp_path: Path) -> None:
    path, kept = tmp_path / "race.elf", tmp_path / "found.rec"
    path.write_bytes(elf(WAITING + RACE + POWER_OFF))
    seen = []

    def check(fork: object) -> bool:
        seen.append(fork)
        fork.console.send(b"x")  # type: ignore[attr-defined]
        return fork.wait(60) == 0  # type: ignore[attr-defined, no-any-return]

    with VM(program=path, memory="16M", cpus=2, virtual_time=True, seed=1) as vm:
        began = vm.machine.board.conductor.executed  # type: ignore[union-attr]
        found = search(vm, check, seeds=range(1, 60), keep=kept)
        assert vm.running
    assert found is not None
    assert (found.seed, found.reason) == (len(seen), "the check gave False")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["found.rec", "race.elf"]
    path.unlink()
    out = bytearray()
    with polyvisor.replay(kept, on_output=out.extend) as replay:
        assert replay.count == replay.first > began
        replay.run()
        assert (replay.how, replay.exit_code, bytes(out)) == ("off", 1, b"x")
        end = replay.count
        replay.goto(replay.first)
        assert replay.count == replay.first
        replay.run()
        assert (replay.count, replay.exit_code) == (end, 1)
        with pytest.raises(ValueError, match="has no instruction"):
            replay.goto(replay.first - 1)


def test_only_machines_in_virtual_time_are_recorded_from_now_on(program: Path, tmp_path: Path) -> None:
    with (
        VM(program=program, memory="16M") as vm,
        pytest.raises(polyvisor.VMError, match="only machines in virtual time"),
    ):
        vm.record(tmp_path / "x.rec")
    assert not (tmp_path / "x.rec").exists()


def test_linux_is_searched_from_a_point(tmp_path: Path) -> None:
    """What was set up once is there in every fork; the recording of one that fails is complete in itself."""
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(4 << 20))
    seen = []

    def check(fork: Fork) -> None:
        number = fork.run("cat /tmp/set-up; head -c 8 /dev/urandom | od -An -tx8; md5sum < /dev/vda").stdout
        fork.run(f"echo read {number.split()[1]} > /dev/console", check=True)
        assert number.startswith("yes")
        seen.append(number)
        assert len(seen) < 2, "the second time"

    with VM(guest_image(), memory="256M", cpus=2, disks=[Disk(disk, snapshot=True)], virtual_time=True) as vm:
        vm.run("echo yes > /tmp/set-up; echo text > /dev/vda; sync", check=True)
        found = search(vm, check, seeds=[5, 6, 7], keep=tmp_path / "found.rec")
        assert vm.run("cat /tmp/set-up").stdout == "yes\n"
    assert found is not None
    assert (found.seed, found.reason) == (6, "AssertionError: the second time")
    assert seen[0] != seen[1]
    disk.unlink()
    out = bytearray()
    with polyvisor.replay(found.recording, on_output=out.extend) as replay:
        replay.run()
        assert replay.how == "cut" and replay.checked >= 1
    assert f"read {seen[1].split()[1]}".encode() in out


def test_groups_are_searched_with_their_networks(tmp_path: Path) -> None:
    """The seed decides which frames are lost: in some run, all of those that one machine is to get."""
    path = tmp_path / "chatter.elf"
    path.write_bytes(chatter(rounds=3))

    def make(**options: Any) -> Group:
        group = Group(**options)
        switch = group.switch()
        for name in ("a", "b"):
            nic = Nic(switch, name=name)
            nic.set_conditions(Conditions(loss=0.3))
            VM(program=path, memory="16M", networks=[nic], name=name, group=group)
        return group

    def check(group: Group) -> bool:
        return [vm.wait(60) for vm in group.machines.values()] == [0, 0]

    found = search(make, check, keep=tmp_path / "found.rec")
    assert found is not None and found.seed > 1
    with polyvisor.replay_group(found.recording) as replay:
        replay.run()
        assert 1 in [each.exit_code for each in replay.machines.values()]


def test_a_group_is_searched_from_a_point(tmp_path: Path) -> None:
    """Machines that have talked for a while are forked together, with what is on its way between them.

    From there on all follows from the seed.
    """
    path = tmp_path / "chatter.elf"
    path.write_bytes(chatter(rounds=150))
    group = Group(seed=1)
    switch = group.switch()
    for name in ("a", "b"):
        nic = Nic(switch, name=name)
        nic.set_conditions(Conditions(loss=0.2, delay=0.003))
        VM(program=path, memory="16M", networks=[nic], name=name, group=group)
    reached, go_on = threading.Event(), threading.Event()
    group.at(0.02, lambda: (reached.set(), go_on.wait(30)))
    seen = []

    def check(fork: GroupFork) -> bool:
        assert [each.wait(60) for each in fork.machines.values()] == [0, 0]
        seen.append(fork)
        return len(seen) < 2

    with group:
        assert reached.wait(30)
        threading.Timer(0.2, go_on.set).start()
        with group.paused():
            for number, seed in enumerate((7, 7, 8)):
                with group.fork(seed, record=tmp_path / f"{number}.rec") as fork:
                    check(fork)
                    fork.finish()
            assert events(tmp_path / "0.rec") == events(tmp_path / "1.rec") != events(tmp_path / "2.rec")
            assert received(tmp_path / "0.rec") != received(tmp_path / "2.rec")
            seen.clear()
            found = search(group, check, seeds=[7, 8, 9], keep=tmp_path / "found.rec")
        assert [vm.wait(60) for vm in group.machines.values()] == [0, 0]
    assert found is not None and found.seed == 8
    assert events(found.recording) == events(tmp_path / "2.rec")
    with polyvisor.replay_group(found.recording) as replay:
        assert list(replay.machines) == ["a", "b"]
        assert all(each.first > 0 for each in replay.machines.values())
        replay.run()
        assert replay.ended and replay.checked == 2


def events(path: Path) -> list[Event]:
    reader = Reader(path)
    lives = [life for track in reader.tracks for life in track]
    return [event for life in lives for section in range(len(life.events)) for event in reader.events(life, section)]


def received(path: Path) -> list[bytes]:
    """The numbers of the frames that arrived."""
    found = [event.arguments[0] for event in events(path) if isinstance(event, Operation) and event.name == "frame"]
    return [frame[20:28] for frame in found if isinstance(frame, bytes)]


@pytest.mark.slow
def test_linux_machines_are_searched_from_a_point_together(tmp_path: Path) -> None:
    group = Group(seed=1)
    switch = group.switch()
    for number, name in enumerate(("one", "two"), 1):
        nic = Nic(switch, name=name, address=f"10.0.0.{number}/24")
        VM(guest_image(), memory="128M", networks=[nic], name=name, group=group)
    seen = []

    def check(fork: GroupFork) -> None:
        one, two = fork.machines["one"], fork.machines["two"]
        assert one.run("cat /tmp/x").stdout == "here\n"
        assert "5 packets received" in one.run("ping -c 5 -i 0.1 10.0.0.2").stdout
        seen.append(two.run("head -c 8 /dev/urandom | od -An -tx8; echo pinged > /dev/console").stdout)
        assert len(seen) < 2, "the second time"

    with group:
        group.machines["one"].run("echo here > /tmp/x", check=True)
        found = search(group, check, seeds=[3, 4, 5], keep=tmp_path / "found.rec")
        assert group.machines["two"].run("true").ok
    assert found is not None
    assert (found.seed, found.reason) == (4, "AssertionError: the second time")
    assert seen[0] != seen[1]
    shown = bytearray()
    with polyvisor.replay_group(
        found.recording, on_output=lambda name, data: shown.extend(data if name == "two" else b"")
    ) as replay:
        replay.run()
        assert {each.how for each in replay.machines.values()} == {"cut"}
    assert b"pinged" in shown
