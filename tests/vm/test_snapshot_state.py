"""The state of a machine as a value: at any instruction, in all tiers, with all that it must not be."""

from __future__ import annotations

import copy
import enum
import hashlib
import random
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from polyvisor.boards import memory_map
from polyvisor.boards.elf import ElfProgram
from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.console import ConsoleDevice, Port
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.net import NetDevice
from polyvisor.devices.virtio.rng import RngDevice
from polyvisor.engine.memory import PAGE_SIZE
from polyvisor.network.port import Port as NetworkPort
from polyvisor.vm.machine import Machine
from polyvisor.vm.snapshot import MachineState, SnapshotError, apply, capture, restored_machine
from polyvisor.vm.snapshot.codec import StateError, from_plain, to_plain
from polyvisor.vm.snapshot.ram import coalesced
from polyvisor.vm.software import Software
from support.guests import guest_image
from support.programs import POWER_OFF, elf

SMALL = 16 << 20
# Timer interrupts, the serial port, atomics, and a sum of it all as the status.
BUSY = """
    la t0, handler
    csrw mtvec, t0
    li s0, 0x2004000
    li s1, 0x200bff8
    ld t0, 0(s1)
    addi t0, t0, 3
    sd t0, 0(s0)
    li t0, 0x80
    csrw mie, t0
    csrsi mstatus, 8
    li s2, 0
    li s3, 0
    la s4, word
    li s5, 5
again:
    amoadd.d t0, s5, (s4)
retry:
    lr.d t1, (s4)
    addi t1, t1, 1
    sc.d t2, t1, (s4)
    bnez t2, retry
    addi s2, s2, 1
    div t3, s2, s5
    andi t3, s2, 15
    bnez t3, on
    li t4, 0x10000000
    srli t5, s2, 4
    addi t5, t5, 64
    sb t5, 0(t4)
on:
    li t6, 160
    blt s2, t6, again
    ld a0, 0(s4)
    andi a0, a0, 255
    j power_off
    .balign 4
handler:
    ld s6, 0(s1)
    addi s6, s6, 8
    sd s6, 0(s0)
    addi s3, s3, 1
    mret
    .balign 8
word:
    .dword 0
    .balign 4
"""


def program(config: VirtConfig, text: str = BUSY + POWER_OFF) -> tuple[Machine, bytearray]:
    out = bytearray()
    machine = Machine(config, out.extend)
    machine.board.load_program(elf(text))
    return machine, out


def finish(machine: Machine, harts: bool = True) -> tuple[Any, ...]:
    with machine:
        if harts:
            machine.board.boot_harts = list(machine.board.harts)
        machine.start()
        assert machine.wait(60), "the program did not end"
        hart = machine.board.harts[0]
        assert int(hart.state.x[19]) > 0, "no interrupt came"
        return machine.exit_code, int(hart.state.x[18]), machine.board.memory.read(int(hart.state.x[20]), 8)


# Any instruction


@pytest.mark.parametrize(("tier", "other"), [("jit", "jit"), ("interpreter", "reference"), ("reference", "jit")])
def test_a_machine_goes_on_from_any_instruction(tier: str, other: str) -> None:
    config = VirtConfig(memory=SMALL, tier=tier, virtual_time=True)
    machine, out = program(config)
    want = finish(machine)
    assert want == (6 * 160 & 255, 160, (6 * 160).to_bytes(8, "little")) and out == b"ABCDEFGHIJ"
    machine, out = program(config)
    hart = machine.board.harts[0]
    rng = random.Random(tier + other)
    with machine:
        while True:
            for _ in range(rng.randint(1, 150 if other != "reference" else 400)):
                hart.handle(hart.cpu.step())
            if machine.has_ended:
                break
            hart.put(True)
            state = copy.deepcopy(capture(machine))
            after = bytearray(out)
            again = restored_machine(state, VirtConfig(memory=SMALL, tier=other, virtual_time=True), after.extend)
            assert finish(again, False) == want
            assert after == b"ABCDEFGHIJ"


def test_ram_and_registers_are_the_same() -> None:
    machine, _ = program(VirtConfig(memory=SMALL, cpus=2))
    with machine:
        hart = machine.board.harts[1]
        for _ in range(20):
            hart.cpu.step()
        machine.board.memory.write(memory_map.DRAM_BASE + SMALL - 8, b"the end!")
        machine.send(b"typed")
        state = capture(machine)
        for other in (
            restored_machine(state, machine.board.config, print),
            Machine(machine.board.config, print),
        ):
            with other:
                other.board.memory.write(memory_map.DRAM_BASE + 0x1000, b"what was there before")
                apply(other, state)
                for mine, theirs in zip(machine.board.harts, other.board.harts, strict=True):
                    assert mine.state.values() == theirs.state.values()
                    assert mine.cpu.retired == theirs.cpu.retired
                for ram in machine.board.memory.ram:
                    assert other.board.memory.view(ram.base, ram.size) == ram.view
                assert other.board.read_input(9) == b"typed"
                assert other.board.htif is None
                # Time goes on from where it was.
                assert 0 <= other.board.clock.ticks() - state.board["ticks"] < 600 * memory_map.TIMEBASE_FREQUENCY


def test_a_program_that_talks_to_the_host_goes_on() -> None:
    text = """
        li s0, 0x80001000
        li t0, 0x0101000000000061
        sd t0, 0(s0)
    wait:
        ld t1, 0(s0)
        bnez t1, wait
        li t0, 11
        sd t0, 0(s0)
    stay:
        j stay
    """
    machine, _ = program(VirtConfig(memory=SMALL), text)
    with machine:
        machine.board.set_program(ElfProgram(0x8000_0000, {"tohost": 0x8000_1000}, 0x8000_1000, None, 0x8000_2000))
        for _ in range(12):
            machine.board.harts[0].cpu.step()
        machine.board.harts[0].put(True)
        out = bytearray()
        with restored_machine(capture(machine), machine.board.config, out.extend) as other:
            assert other.board.program == machine.board.program
            other.start()
            assert other.wait(60) and other.exit_code == 5 and out == b"a"


def test_machines_made_of_one_state_are_apart() -> None:
    machine, _ = program(VirtConfig(memory=SMALL))
    at = memory_map.DRAM_BASE + 0x10000
    with machine:
        machine.board.memory.write(at, b"first")
        state = capture(machine)
        machine.board.memory.write(at, b"later")
        one, two = (restored_machine(state, machine.board.config, print) for _ in range(2))
        with one, two:
            one.board.memory.write(at, b"other")
            assert two.board.memory.read(at, 5) == b"first"
            # A restored machine's own state, which has RAM that began with another's.
            three = restored_machine(capture(one), machine.board.config, print)
            with three:
                assert three.board.memory.read(at, 5) == b"other"
                assert three.board.memory.read(memory_map.DRAM_BASE, 64) == one.board.memory.read(
                    memory_map.DRAM_BASE, 64
                )


def test_pages_that_are_given_back_read_as_zeroes_for_good() -> None:
    machine, _ = program(VirtConfig(memory=SMALL))
    memory = machine.board.memory
    base = memory_map.DRAM_BASE + (1 << 20)
    with machine:
        memory.write(base, b"x" * (1 << 20))
        other = restored_machine(capture(machine), machine.board.config, print)
        with other:
            memory = other.board.memory
            memory.discard(base, 512 << 10)
            memory.discard(base - 8192, 8192)
            memory.discard(base + (600 << 10), PAGE_SIZE)
            assert memory.read(base, 512 << 10) == bytes(512 << 10)
            assert memory.read(base + (600 << 10), PAGE_SIZE) == bytes(PAGE_SIZE)
            assert memory.read(base + (512 << 10), 4) == b"xxxx"
            third = restored_machine(capture(other), machine.board.config, print)
            with third:
                assert third.board.memory.read(base, 1 << 20) == memory.read(base, 1 << 20)


def test_what_was_written_is_known() -> None:
    machine, _ = program(VirtConfig(memory=SMALL, virtual_time=True))
    with machine:
        machine.board.harts[0].put(True)
        state = capture(machine)
        other = restored_machine(state, machine.board.config, lambda data: None)
        with other:
            other.start()
            assert other.wait(60)
            before, after = machine.board.memory.view(0x8000_0000, SMALL), other.board.memory.view(0x8000_0000, SMALL)
            differ = {at for at in range(0, SMALL, PAGE_SIZE) if before[at : at + 4096] != after[at : at + 4096]}
            assert other.board.pages is not None
            told = other.board.pages.written_since(1)[1]
            pages = {(first + n) * PAGE_SIZE for first, count in told for n in range(count)}
            assert differ and differ <= pages and len(pages) < 10


# Of Linux, at moments nobody chose


def linux(command: str, cpus: int, bus: str, devices: Any = ()) -> tuple[Machine, bytearray]:
    image = guest_image()
    out = bytearray()
    machine = Machine(VirtConfig(memory=128 << 20, cpus=cpus, bus=bus, devices=devices), out.extend)
    line = image.command_line(run=command)
    Software(kernel=image.kernel, initrd=image.initrd, append=line, our_initrd=True).load(machine)
    return machine, out


# Instructions of a hart until Linux has booted, about.
BOOT = 2_000_000_000


def boot_in_pieces(moments: int, seed: int, cpus: int, bus: str) -> None:
    """Boot Linux and let it work; whenever it was let run for a while, another machine goes on instead of it."""
    rng = random.Random(seed)
    command = (
        "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); done; head -c 300000 /dev/zero | sha256sum; "
        "head -c 100 /dev/hwrng | wc -c; sleep 0.1; nproc; exit 7"
    )
    machine, out = linux(command, cpus, bus)
    config = machine.board.config
    machine.start()
    target = 0
    for moment in range(moments):
        target += rng.randrange(2 * BOOT * cpus // moments)
        last = moment == moments - 1
        # The last one while it works.
        while b"line 30" not in out if last else sum(hart.cpu.retired for hart in machine.board.harts) < target:
            if machine.wait(0.0005):
                break
        machine.pause()
        if machine.has_ended:
            break
        state = capture(machine)
        machine.close()
        machine = restored_machine(state, config, out.extend)
        machine.start()
    assert moment > 0
    with machine:
        assert machine.wait(60), bytes(out[-500:])
        assert machine.exit_code == 7
    lines = out.decode().replace("\r", "").split("\n")
    assert [line for line in lines if line.startswith("line ")] == [f"line {n}" for n in range(60)]
    digest = hashlib.sha256(bytes(300_000)).hexdigest()
    assert lines[lines.index("line 59") + 1 :][:3] == [f"{digest}  -", "100", str(cpus)]


@pytest.mark.parametrize(("cpus", "bus"), [pytest.param(1, "mmio", marks=pytest.mark.slow), (2, "pci")])
def test_linux_goes_on_from_any_moment(cpus: int, bus: str) -> None:
    boot_in_pieces(4, cpus, cpus, bus)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_linux_goes_on_from_many_moments(seed: int) -> None:
    boot_in_pieces(25, seed, 1 + seed % 2, ("mmio", "pci")[seed // 2 % 2])


# What cannot be


def test_a_machine_that_runs_has_no_state() -> None:
    machine, _ = program(VirtConfig(memory=SMALL), "stay:\n    j stay\n")
    with machine:
        machine.start()
        with pytest.raises(SnapshotError, match="runs: pause it first"):
            capture(machine)
        machine.pause()
        state = capture(machine)
        machine.stop()
        with pytest.raises(SnapshotError, match="has ended"):
            capture(machine)
    other, _ = program(VirtConfig(memory=SMALL), "stay:\n    j stay\n")
    with other:
        other.start()
        with pytest.raises(SnapshotError, match="runs: pause it first"):
            apply(other, state)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (VirtConfig(memory=SMALL, cpus=2), "cpus 1, and this one has 2"),
        (VirtConfig(memory=SMALL * 2), "memory"),
        (VirtConfig(memory=SMALL, bus="pci"), "bus mmio"),
        (VirtConfig(memory=SMALL, devices=[RngDevice]), r"devices \[4\]"),
        (VirtConfig(memory=SMALL, virtual_time=True), "virtual time"),
    ],
)
def test_another_machine_refuses_it(config: VirtConfig, says: str) -> None:
    machine, _ = program(VirtConfig(memory=SMALL))
    with machine, Machine(config, print) as other, pytest.raises(SnapshotError, match=says):
        apply(other, capture(machine))


def broken_states() -> list[tuple[str, Any, str]]:
    def change(path: str, value: Any) -> Any:
        def do(state: MachineState) -> None:
            *parts, last = path.split(".")
            place: Any = {"board": state.board, "virtio": state.virtio}
            for part in parts:
                place = place[int(part)] if isinstance(place, list) else place[part]
            if value is KeyError:
                del place[last]
            else:
                place[int(last) if isinstance(place, list) else last] = value

        return do

    registers = "board.harts.0.registers"
    return [
        ("privilege", change(f"{registers}.privilege", [2]), "values that they cannot have"),
        ("mpp", change(f"{registers}.mstatus", [2 << 11]), "values that they cannot have"),
        ("pmp", change(f"{registers}.pmp_used", [17]), "values that they cannot have"),
        ("wide", change(f"{registers}.pc", [2**64]), "does not fit"),
        ("few", change(f"{registers}.x", [0]), "1 values"),
        ("name", change(f"{registers}.pc", KeyError), "other registers: pc"),
        ("missing", change("board.uart.lcr", KeyError), "uart: lcr is missing"),
        ("unknown", change("board.uart.what", 1), "uart: what is unknown"),
        ("type", change("board.uart.lcr", "1"), "uart.lcr: not of type int"),
        ("bool", change("board.uart.lcr", True), "uart.lcr: not of type int"),
        ("sources", change("board.plic.priority", [1]), "other sources"),
        ("queue", change("virtio.0.queues.0.ready", 1), "queue|descriptor|not in RAM"),
        ("queues", change("virtio.0.queues", []), "0 queues"),
        ("features", change("virtio.0", {"status": 8}), "is missing"),
    ]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [pytest.param(c, s, id=n) for n, c, s in broken_states()])
def test_a_state_that_makes_no_sense_is_refused(change: Any, says: str) -> None:
    machine, _ = program(VirtConfig(memory=SMALL))
    with machine, Machine(VirtConfig(memory=SMALL), print) as other:
        state = capture(machine)
        if says.startswith("queue"):
            state.virtio[0]["queues"][0].update(size=3, descriptors=1)
        change(state)
        with pytest.raises(SnapshotError, match=says) as caught:
            apply(other, state)
        assert "\n" not in str(caught.value)


def test_a_device_that_cannot_be_saved_says_so() -> None:
    class Foreign(RngDevice):
        def obstacle(self) -> str | None:
            return "what it has is elsewhere"

    says = "no snapshot .* what it has is elsewhere"
    config = VirtConfig(memory=SMALL, devices=[Foreign])
    with Machine(config, print) as machine, pytest.raises(SnapshotError, match=says):
        capture(machine)


def test_a_device_in_the_middle_of_something_is_waited_for() -> None:
    class Busy(RngDevice):
        asked = 0

        def is_settled(self) -> bool:
            self.asked += 1
            return self.asked > 3

    with Machine(VirtConfig(memory=SMALL, devices=[Busy]), print) as machine:
        capture(machine)
        assert isinstance(machine.board.virtio_devices[1], Busy) and machine.board.virtio_devices[1].asked == 4


# Devices with a host's side


def test_frames_and_bytes_on_their_way_are_kept() -> None:
    class Cable(NetworkPort):
        def _send(self, frame: Any) -> None:
            pass

    def devices() -> list[Any]:
        port = Port("data", on_data=got.append, on_open=opened.append)
        return [lambda: NetDevice(Cable(), "02:00:00:00:00:01"), lambda: ConsoleDevice([port])]

    got: list[bytes] = []
    opened: list[bool] = []
    machine, out = linux(
        "modprobe -q -a virtio_mmio virtio_net; p=$(grep -l data /sys/class/virtio-ports/*/name); p=/dev/$(basename "
        "$(dirname $p)); exec 3<>$p; echo before >&3; echo @; read x; echo after >&3; exit 5",
        1, "mmio", devices(),
    )  # fmt: skip
    machine.start()
    end = time.monotonic() + 60
    while b"@" not in out.rsplit(b"Linux", 1)[-1] or not got:
        assert time.monotonic() < end and not machine.wait(0.01), bytes(out[-1000:])
    machine.pause()
    state = capture(machine)
    machine.close()
    assert (b"".join(got), opened) == (b"before\n", [True])
    got.clear()
    opened.clear()
    made: list[VirtioDevice] = []
    config = VirtConfig(memory=128 << 20, devices=devices())
    with restored_machine(state, config, out.extend) as other:
        made += other.board.virtio_devices
        assert made[1].state.announce == 1  # type: ignore[attr-defined]
        other.start()
        other.send(b"\n")
        assert other.wait(60) and other.exit_code == 5
    assert (b"".join(got), opened[:1]) == (b"after\n", [True])


# Plain data


class Kind(enum.Enum):
    ONE = "one"


class Place(NamedTuple):
    x: int
    y: str


@dataclass
class Inner:
    number: int = 0


@dataclass
class Everything:
    flag: bool = True
    text: str = "ä"
    data: bytes = b"\0\xff"
    buffer: bytearray = field(default_factory=lambda: bytearray(b"ab"))
    numbers: list[int] = field(default_factory=lambda: [-1, 2**64 - 1])
    pair: tuple[int, str] = (1, "x")
    several: tuple[bytes, ...] = (b"a", b"b")
    places: deque[Place] = field(default_factory=lambda: deque([Place(1, "y")]))
    names: dict[str, Inner] = field(default_factory=lambda: {"a": Inner(1)})
    by_number: dict[int, Inner | None] = field(default_factory=lambda: {5: Inner(2), 6: None})
    chosen: set[int] = field(default_factory=lambda: {3, 1})
    kind: Kind = Kind.ONE
    nothing: Inner | None = None
    anything: Any = None
    empty: dict[int, int] = field(default_factory=dict)


def test_plain_data_and_back() -> None:
    value = Everything(anything=Inner(9))
    plain = to_plain(value)
    assert plain["anything"] == {"number": 9} and plain["chosen"] == [1, 3]
    assert from_plain(Everything, copy.deepcopy(plain), "", value) == value


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("flag", 1), ("text", b""), ("data", "x"), ("numbers", [1.5]), ("numbers", {}), ("pair", [1]),
        ("places", [[1]]), ("names", []), ("names", {"a": {}}), ("by_number", [[5]]), ("kind", "two"),
        ("by_number", [[5, None], [5, None]]), ("nothing", {"number": -(2**70)}), ("anything", 3), ("chosen", None),
    ],
)
def test_data_of_another_type_are_refused(name: str, wrong: object) -> None:
    plain = to_plain(Everything())
    plain[name] = wrong
    if name == "names" and wrong == []:
        return  # nothing in it
    with pytest.raises(StateError, match=name):
        from_plain(Everything, plain)


def test_runs_are_joined_when_they_are_many() -> None:
    runs = [(n * 3 * PAGE_SIZE, PAGE_SIZE) for n in range(100)]
    assert coalesced(runs, 100) == runs
    few = coalesced(runs, 10)
    assert len(few) <= 10
    assert all(any(at <= start and start + size <= at + length for at, length in few) for start, size in runs)
