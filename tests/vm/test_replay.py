"""Machines in virtual time are repeatable; recordings are replayed bit for bit, in every native tier."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import polyvisor
from polyvisor.adl.assembler import assemble
from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.console import ConsoleDevice
from polyvisor.devices.virtio.rng import SeededEntropy
from polyvisor.engine.outside import Operation
from polyvisor.engine.timing import Timing
from polyvisor.isa.riscv import rv64
from polyvisor.network.switch import Switch
from polyvisor.vm.equipment import Nic
from polyvisor.vm.machine import Machine
from polyvisor.vm.replay.debug import ReplayTarget
from polyvisor.vm.replay.format import Checkpoint, End, Event, Reader, RecordingError, Writer
from polyvisor.vm.replay.recorder import Recorder
from polyvisor.vm.replay.replay import DivergenceError, Replay
from polyvisor.vm.snapshot.codec import to_plain
from polyvisor.vm.virtual_machine import VM
from support.guests import guest_image
from support.programs import DRAM, POWER_OFF, elf
from support.two_harts import two_harts

START = 1_700_000_000 * 10**9

# Two harts count under a lock (LR/SC), hart 0 with timer interrupts; then it prints what came in by the serial port
# until a newline, the time of the clock, and ends.
PROGRAM = two_harts(
    times=20_000,
    before="""
    la t0, trap
    csrw mtvec, t0
    bnez s0, work
    li t0, 0x2004000
    sd zero, 0(t0)
    li t0, 0x80
    csrw mie, t0
    csrsi mstatus, 8
""",
    work="""
    lr.d.aqrl t1, (s1)
    addi t1, t1, 1
    sc.d.aqrl t2, t1, (s1)
    bnez t2, work
""",
    then="""
    csrci mstatus, 8
    li s3, 0x10000000
echo:
    lbu t0, 5(s3)
    andi t0, t0, 1
    beqz t0, echo
    lbu t0, 0(s3)
    sb t0, 0(s3)
    li t1, 10
    bne t0, t1, echo
    la t0, ticks
    lw a0, 0(t0)
    snez a0, a0
    j power_off
""",
    behind="""
ticks:
    .word 0
    .balign 4
trap:
    la t3, ticks
    lw t4, 0(t3)
    addi t4, t4, 1
    sw t4, 0(t3)
    li t3, 0x200bff8
    ld t4, 0(t3)
    addi t4, t4, 50
    li t3, 0x2004000
    sd t4, 0(t3)
    mret
""",
)


def run(tier: str = "jit", seed: int = 5, schedule: int | None = None, cpus: int = 2, turn: int = 5000) -> tuple:
    """The program's output, and everything that it leaves."""
    out = bytearray()
    config = VirtConfig(
        memory=16 << 20, cpus=cpus, tier=tier, virtual_time=True, entropy=SeededEntropy(seed),
        timing=Timing(turn=turn, schedule=schedule, start=START),
    )
    with Machine(config, out.extend) as machine:
        machine.board.load_program(elf(PROGRAM + POWER_OFF))
        machine.send(b"hello\n")
        machine.start()
        assert machine.wait(60), "the program did not end"
        conductor = machine.board.conductor
        assert conductor is not None
        conductor.join()
        memory = machine.board.memory.read(0x8000_0000, 1 << 20)
        registers = [bytes(hart.state.block)[: type(hart.state).size] for hart in machine.board.harts]
        return machine.exit_code, bytes(out), (conductor.state.time, conductor.state.turn), memory, registers


def test_a_run_in_virtual_time_is_always_the_same() -> None:
    first = run()
    assert first[:2] == (1, b"hello\n")
    assert first == run()
    assert first == run(tier="interpreter")
    other = run(schedule=1)
    assert other[:2] == first[:2]
    assert other[2:] != first[2:]
    assert other == run(schedule=1, tier="interpreter")


def test_the_reference_runs_in_virtual_time_too() -> None:
    text = "    li t0, 300\nloop:\n    addi t0, t0, -1\n    bnez t0, loop\n    li a0, 3\n    j power_off\n"
    results = set()
    for _ in range(2):
        config = VirtConfig(memory=16 << 20, cpus=2, tier="reference", virtual_time=True, timing=Timing(turn=100))
        with Machine(config, lambda data: None) as machine:
            machine.board.load_program(elf(text + POWER_OFF))
            machine.start()
            assert machine.wait(60)
            results.add((machine.exit_code, *(hart.cpu.retired for hart in machine.board.harts)))
    assert len(results) == 1


def test_waiting_skips_time() -> None:
    """A timer in a hundred seconds is there at once, and the clock says so."""
    text = """
    la t0, wake
    csrw mtvec, t0
    li t0, 1000000000
    li t1, 0x2004000
    sd t0, 0(t1)
    li t0, 0x80
    csrw mie, t0
    wfi
    csrr a0, time
    li t0, 1000000000
    sltu a0, a0, t0
    addi a0, a0, 7
    j power_off
wake:
    j wake
"""
    with Machine(VirtConfig(memory=16 << 20, virtual_time=True), lambda data: None) as machine:
        machine.board.load_program(elf(text + POWER_OFF))
        machine.start()
        assert machine.wait(20)
        assert machine.exit_code == 7
        assert machine.board.conductor is not None
        assert machine.board.conductor.now >= 100 * 10**9


def recorded(path: Path, tier: str = "jit") -> bytes:
    out = bytearray()
    config = VirtConfig(
        memory=16 << 20, cpus=2, tier=tier, virtual_time=True, entropy=SeededEntropy(5), timing=Timing(turn=5000)
    )
    with Machine(config, out.extend) as machine:
        machine.board.load_program(elf(PROGRAM + POWER_OFF))
        recorder = Recorder(path, checkpoint=20_000)
        recorder.begin(machine)
        machine.start()
        for part in (b"he", b"llo", b"\n"):
            machine.send(part)
        assert machine.wait(60)
        recorder.close()
    return bytes(out)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recording") / "program.rec"
    assert recorded(path) == b"hello\n"
    return path


@pytest.mark.parametrize("tier", ["jit", "interpreter"])
def test_a_recording_is_replayed(recording: Path, tier: str) -> None:
    out = bytearray()
    with Replay(recording, tier=tier, on_output=out.extend) as replay:
        replay.run()
        assert (replay.ended, replay.how, replay.exit_code) == (True, "off", 1)
        assert replay.checked > 5
    assert out == b"hello\n"


def test_a_run_that_differs_is_noticed(recording: Path) -> None:
    with Replay(recording) as replay:
        replay.run(50_000)
        replay.machine.board.memory.write(0x800F_0000, b"other")
        with pytest.raises(DivergenceError, match=r"differs from the recording at the checkpoint at .* in: memory$"):
            replay.run()
    with Replay(recording) as replay:
        replay.run(50_000)
        replay.harts[0].state.x[25] = 1
        with pytest.raises(DivergenceError, match="registers"):
            replay.run()


def test_a_cut_recording_is_replayed_as_far_as_it_goes(recording: Path, tmp_path: Path) -> None:
    data = recording.read_bytes()
    cut = tmp_path / "cut.rec"
    cut.write_bytes(data[:-5])
    with Replay(cut) as replay:
        replay.run()
        assert (replay.ended, replay.how) == (True, "lost")


def test_what_is_no_recording_is_refused(recording: Path, tmp_path: Path) -> None:
    data = bytearray(recording.read_bytes())
    path = tmp_path / "bad.rec"
    for wrong, message in (
        (b"", "is not a recording"),
        (b"something else" * 10, "is not a recording"),
        (data[:20] + b"\x09" + data[21:], "has version 9 of the format"),
        (data[:24], "has no machine"),
        (data[:24] + b"XXXX" + data[28:], "is damaged"),
        (data[:50] + bytes([data[50] ^ 1]) + data[51:], "is damaged"),
    ):
        path.write_bytes(wrong)
        with pytest.raises(RecordingError, match=message):
            Replay(path)
    with pytest.raises(RecordingError, match="No such file"):
        Replay(tmp_path / "nothing")


@pytest.mark.parametrize("position", [0.3, 0.6, 0.9, 0.99])
def test_damage_is_found(recording: Path, tmp_path: Path, position: float) -> None:
    data = bytearray(recording.read_bytes())
    data[int(len(data) * position)] ^= 0x10
    path = tmp_path / "bad.rec"
    path.write_bytes(data)
    with pytest.raises(RecordingError), Replay(path) as replay:
        replay.run()


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": 1.5}, {"memory": None}, {"cpus": "2"}, {"boot": [7]}, {"harts": [{}, {}]}, {"devices": [5]},
        {"devices": [{"type": "net", "mac": 5, "mtu": 0, "up": True}]}, {"bus": "isa"},
    ],
)
def test_a_machine_that_cannot_be_is_refused(recording: Path, tmp_path: Path, change: dict[str, object]) -> None:
    """In a file whose checksums are right."""
    reader = Reader(recording)
    writer = Writer(tmp_path / "odd.rec")
    track = writer.track()
    track.machine({**reader.tracks[0][0].machine, **change})
    writer.begun()
    writer.close()
    reader.close()
    with pytest.raises(RecordingError, match=r"odd.rec': is damaged \(") as caught:
        Replay(tmp_path / "odd.rec")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "event",
    [
        Operation(0, "uart", "input", (5,)), Operation(0, "uart", "nothing"), Operation(0, "nobody", "input"),
        Operation(0, "virtio0", "link", ()), Operation(0, "time", "skip", ("x",)),
        Checkpoint(0, 0, 0, "x", b"", b""), End("off", "x", 0),
    ],
    ids=repr,
)  # fmt: skip
def test_events_that_cannot_be_are_refused(recording: Path, tmp_path: Path, event: Event) -> None:
    reader = Reader(recording)
    writer = Writer(tmp_path / "odd.rec")
    track = writer.track()
    track.machine(reader.tracks[0][0].machine)
    track.event(event)
    writer.begun()
    writer.close()
    reader.close()
    with Replay(tmp_path / "odd.rec") as replay, pytest.raises(RecordingError, match=r"odd\.rec': ") as caught:
        replay.run()
    assert "\n" not in str(caught.value)


def test_only_what_can_be_repeated_is_recorded(tmp_path: Path) -> None:
    for config, message in (
        (VirtConfig(memory=16 << 20), "only machines in virtual time"),
        (VirtConfig(memory=16 << 20, virtual_time=True), "seeded entropy"),
        (
            VirtConfig(
                memory=16 << 20, virtual_time=True, entropy=SeededEntropy(1), devices=(lambda: ConsoleDevice(()),)
            ),
            "a machine with a virtio console cannot be recorded",
        ),
    ):
        with Machine(config, lambda data: None) as machine:
            machine.board.load_program(elf(PROGRAM + POWER_OFF))
            with pytest.raises(RecordingError, match=message):
                Recorder(tmp_path / "x.rec").begin(machine)


# Backwards


def state(replay: Replay) -> tuple:
    """All of a machine."""
    board = replay.machine.board
    registers = [bytes(hart.state.block)[: type(hart.state).size] for hart in board.harts]
    ram = board.memory.read(0x8000_0000, 1 << 20)
    return replay.count, replay.time, registers, ram, to_plain(board.uart.state), to_plain(board.plic.state)


def test_a_replay_goes_back_and_forth(recording: Path) -> None:
    with Replay(recording) as replay:
        replay.run()
        end = replay.count
        places = [end // 2, end // 3, end - 3, 17, end // 2, 0, end - 3]
        seen: dict[int, tuple] = {}
        for place in places:
            replay.goto(place)
            assert replay.count == place
            assert seen.setdefault(place, state(replay)) == state(replay)
        replay.step(-5)
        assert replay.count == end - 8
        replay.step(5)
        assert state(replay) == seen[end - 3]
        checked = replay.checked
        replay.run()
        assert (replay.ended, replay.count, replay.checked) == (True, end, checked)
        with pytest.raises(ValueError, match="has no instruction"):
            replay.goto(end + 1)
        with pytest.raises(ValueError, match="has no instruction -1"):
            replay.goto(-1)
        assert replay.count == 0


def test_output_is_shown_once(recording: Path) -> None:
    out = bytearray()
    with Replay(recording, on_output=out.extend) as replay:
        replay.run()
        replay.goto(0)
        replay.run()
    assert out == b"hello\n"


def test_reverse_continue_finds_the_last_breakpoint(recording: Path) -> None:
    with Replay(recording) as replay:
        done = assemble(rv64, PROGRAM + POWER_OFF, base=DRAM).symbols["join"]
        replay.set_breakpoints([done])
        hart = replay.run()
        assert hart is not None
        assert int(hart.state.pc) == done
        counts = [replay.count]
        while replay.run() is not None:
            counts.append(replay.count)
        replay.goto(replay.count)
        for expected in reversed(counts[-3:]):
            hart = replay.reverse_continue()
            assert hart is not None
            assert (replay.count, int(hart.state.pc)) == (expected, done)
        replay.set_breakpoints([0x8000_0000])
        replay.goto(1)
        assert replay.reverse_continue() is None or replay.count == 0
        assert replay.count == 0


class Endless:
    """A replay without an end, of which it is known when it begins to run."""

    ended = False

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.interrupted = False

    def run(self) -> None:
        self.asked.wait()
        self.interrupted = False  # as a replay begins with
        while not self.interrupted:
            time.sleep(0.001)

    def interrupt(self) -> None:
        self.interrupted = True
        self.asked.set()


def test_a_debugger_can_interrupt_what_only_begins_to_run() -> None:
    target = ReplayTarget(Endless())  # type: ignore[arg-type]
    target.resume()
    paused = threading.Thread(target=target.pause, daemon=True)
    paused.start()
    paused.join(20)
    assert not paused.is_alive() and target.failure is None


def test_a_replay_cannot_be_changed(recording: Path) -> None:
    with Replay(recording) as replay:
        assert replay.cpu[0].pc == 0x8000_0000
        for change in (
            lambda: setattr(replay.cpu[0], "pc", 0),
            lambda: replay.memory.write(0x8000_0000, b"x"),
            lambda: replay.memory.virtual(0).write(0x8000_0000, b"x"),
        ):
            with pytest.raises(RecordingError, match="can be looked at"):
                change()


# Linux

WORKLOAD = """set -e
mke2fs -q /dev/vda > /dev/null
modprobe ext4
mkdir -p /m && mount -t ext4 /dev/vda /m
dd if=/dev/urandom of=/m/x bs=64k count=30 2> /dev/null
sync; echo 3 > /proc/sys/vm/drop_caches
md5sum < /m/x
cat /mnt/sh/given; date > /mnt/sh/made
ping -c 1 10.0.2.2 > /dev/null && echo pong
"""


@pytest.fixture(scope="module")
def linux(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, bytes, str]]:
    """A recording of Linux on two harts with agent, disk, network and a shared directory, of which nothing is left."""
    place = tmp_path_factory.mktemp("linux")
    disk, share = place / "disk.raw", place / "share"
    disk.write_bytes(bytes(16 << 20))
    share.mkdir()
    (share / "given").write_text("from the host\n")
    out = bytearray()
    machine = VM(
        guest_image(), cpus=2, memory="256M", disks=[disk], shares=[f"{share}:sh"], networks=["user"],
        record=place / "linux.rec", on_output=out.extend,
    )
    with machine as vm:
        result = vm.run(WORKLOAD)
        assert result.ok, result
        assert result.stdout.endswith("from the host\npong\n")
        with pytest.raises(polyvisor.VMError, match="no fork can be made: the machine is recorded"):
            vm.fork(1)
        with pytest.raises(polyvisor.VMError, match="is recorded"):
            vm.cpu[0].pc = 0
    disk.unlink()
    shutil.rmtree(share)
    yield place / "linux.rec", bytes(out), result.stdout


def test_two_runs_with_a_seed_are_the_same() -> None:
    image = guest_image()
    line = image.command_line(run="date; od -An -tx8 -N8 /dev/urandom; od -An -tx8 -N8 /dev/hwrng; cat /proc/uptime")
    seen = []
    for seed in (7, 7, 8):
        out = bytearray()
        vm = VM(
            kernel=image.kernel, initrd=image.initrd, append=line, memory="256M", cpus=2, virtual_time=True, seed=seed,
            on_output=out.extend,
        )
        assert vm.start().wait(120) == 0
        seen.append(bytes(out))
    assert b"2026" in seen[0]
    assert seen[0] == seen[1] != seen[2]


def test_linux_is_replayed(linux: tuple[Path, bytes, str]) -> None:
    path, output, _ = linux
    out = bytearray()
    with polyvisor.replay(path, on_output=out.extend) as replay:
        replay.run()
        assert replay.how == "off"
        assert replay.checked >= 2
        assert bytes(out) == output
        # Back into the midst of the workload: the same to the end again.
        checked, end = replay.checked, replay.count
        replay.goto(end * 2 // 3)
        replay.run()
        assert (replay.checked, replay.count) == (checked, end)


@pytest.mark.slow
def test_linux_is_replayed_by_the_interpreter(linux: tuple[Path, bytes, str]) -> None:
    with polyvisor.replay(linux[0], tier="interpreter", backwards=False) as replay:
        replay.run()
        assert replay.ended


@pytest.mark.slow
def test_a_guest_that_restarts_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "x.rec"
    vm = VM(guest_image(), memory="256M", record=path)
    with vm:
        vm.popen("sleep 0.1; reboot -f")
        vm.events.wait("ready", 60, count=2)
        assert vm.run("echo again").stdout == "again\n"
        vm.kill()
    with polyvisor.replay(path) as replay:
        replay.run()
        assert (replay.life, replay.how) == (1, "cut")


@pytest.mark.slow
def test_machines_on_a_switch_are_replayed_one_by_one(tmp_path: Path) -> None:
    with Switch(seed=3) as switch:
        machines = [
            VM(
                guest_image(), memory="256M", record=tmp_path / f"{number}.rec", name=f"m{number}",
                networks=[Nic(switch, name=f"m{number}", address=f"10.0.0.{number}/24")],
            )
            for number in (1, 2)
        ]
        with machines[0] as one, machines[1] as two:
            assert "2 packets received" in one.run("ping -c 2 10.0.0.2").stdout
            assert "1 packets received" in two.run("ping -c 1 10.0.0.1").stdout
    for number in (1, 2):
        with polyvisor.replay(tmp_path / f"{number}.rec") as replay:
            replay.run()
            assert (replay.how, replay.checked > 1) == ("off", True)


def test_what_cannot_be_recorded_leaves_an_older_recording(tmp_path: Path) -> None:
    program, path = tmp_path / "x.elf", tmp_path / "x.rec"
    program.write_bytes(elf(POWER_OFF))
    path.write_bytes(b"older")
    vm = VM(program=program, record=path, devices=[ConsoleDevice])
    with pytest.raises(RecordingError, match="a virtio console cannot be recorded"):
        vm.start()
    assert path.read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 2
    assert VM(program=program, record=path).start().wait(60) == 0
    with polyvisor.replay(path) as replay:
        replay.run()
        assert replay.how == "off"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_was_recorded_before_the_disk_was_full_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.rec"
    writes: list[int] = []

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            writes.append(len(data))
            if len(writes) == 5:  # a part of it, then nothing, and then there is room again
                return super().write(data[:7])
            if len(writes) == 6:
                raise OSError(28, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(Path, "open", lambda path, mode, buffering: Full(path, mode))
    writer = Writer(path)
    track = writer.track()
    monkeypatch.undo()
    track.machine({"a": 1})
    track.event(End("off", 1, 5))
    writer.begun()
    whole = path.stat().st_size
    track.event(End("off", 2, 6))
    track.flush()
    with pytest.raises(RecordingError, match="No space left"):
        for number in range(3):
            track.event(End("off", 3 + number, 7))
            track.flush()
    with pytest.raises(RecordingError, match="No space left"):
        track.event(End("off", 9, 9))
        writer.close()
    reader = Reader(path)
    assert not reader.truncated and path.stat().st_size > whole
    events = [event for section in range(2) for event in reader.events(reader.tracks[0][0], section)]
    assert events == [End("off", 1, 5), End("off", 2, 6)] and len(reader.tracks[0][0].events) == 2
    reader.close()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    image = guest_image()
    vm = VM(kernel=image.kernel, initrd=image.initrd, memory="256M", record=full)
    with pytest.raises(RecordingError, match=r"^recording '.*/full': No space left on device$"):
        vm.start()
    assert full.is_char_device()


@pytest.mark.slow
def test_what_was_typed_and_shown_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "x.rec"
    vm = VM(guest_image(), memory="256M", display=(640, 400), record=path)
    with vm:
        assert vm.screen is not None
        vm.run("printf '\\033[2J\\033[H' > /dev/tty1")
        command = vm.popen("read -r line < /dev/tty1; echo $line")
        vm.run("sleep 0.2")
        vm.screen.keyboard.type("hello\n")
        command.wait(30)
        assert command.stdout.read() == "hello\n"
        vm.screen.display.resize(800, 600)
        vm.run("sleep 0.2")
    with polyvisor.replay(path) as replay:
        shown, was = replay.displays[0], vm.screen.display
        pictures = set()
        shown.listen(lambda rect: pictures.add(any(shown.frame().rgb())))
        replay.run()
        assert (shown.size, shown.changes) == (was.size, was.changes) == ((800, 600), was.changes)
        assert True in pictures
