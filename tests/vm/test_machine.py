"""A machine's life, with bare-metal programs."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import pytest

from polyvisor.boards.virt import Virt, VirtConfig
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.devices.virtio.rng import RngDevice
from polyvisor.storage.raw import DiskError
from polyvisor.vm.machine import Machine
from polyvisor.vm.trace import start_trace
from support.programs import POWER_OFF, elf

HELLO = """
    csrr t0, mhartid
    bnez t0, park
    la t1, text
    li t2, 0x10000000
next:
    lbu t3, 0(t1)
    beqz t3, done
    sb t3, 0(t2)
    addi t1, t1, 1
    j next
done:
    li a0, 5
    j power_off
park:
    wfi
    j park
text:
    .asciz "hello"
    .balign 4
"""


def run(text: str, **config: object) -> tuple[int | None, bytes]:
    out = bytearray()
    with Machine(VirtConfig(memory=16 << 20, **config), out.extend) as machine:  # type: ignore[arg-type]
        machine.board.load_program(elf(text))
        machine.start()
        assert machine.wait(60), "the program did not end"
        return machine.exit_code, bytes(out)


@pytest.mark.parametrize("tier", ["interpreter", "reference"])
@pytest.mark.parametrize("cpus", [1, 2])
def test_a_program_prints_and_ends_with_a_status(tier: str, cpus: int) -> None:
    assert run(HELLO + POWER_OFF, tier=tier, cpus=cpus) == (5, b"hello")


def test_a_trace_tells_every_instruction() -> None:
    file = io.StringIO()
    with Machine(VirtConfig(memory=16 << 20), lambda data: None) as machine:
        machine.board.load_program(elf("    li a0, 1\n    addi a0, a0, 2\n    ecall\n    .balign 4\n" + POWER_OFF))
        machine.board.harts[0].state.mtvec = 0x8000_000C
        start_trace(machine, file)
        machine.start()
        assert machine.wait(60)
        assert machine.exit_code == 3
    lines = file.getvalue().splitlines()
    assert lines[0].split() == ["0", "M", "0000000080000000", "00100513", "addi", "a0,", "zero,", "1", "a0=1"]
    assert lines[1].endswith("a0=3")
    assert "ecall" in lines[2]
    assert lines[2].endswith("-> 000000008000000c (trap or interrupt)")


def test_pausing_makes_all_harts_stand_still() -> None:
    spin = "loop:\n    addi a1, a1, 1\n    j loop\n"
    with Machine(VirtConfig(memory=16 << 20, cpus=2), lambda data: None) as machine:
        machine.board.load_program(elf(spin))
        machine.start()
        machine.pause()
        counts = [hart.cpu.retired for hart in machine.board.harts]
        assert not machine.wait(0.05)
        assert [hart.cpu.retired for hart in machine.board.harts] == counts
        machine.resume()
        while [hart.cpu.retired for hart in machine.board.harts] == counts:
            assert not machine.wait(0.01)


def test_a_failing_device_is_reported() -> None:
    with Machine(VirtConfig(memory=16 << 20), lambda data: 1 / 0) as machine:  # type: ignore[arg-type]
        machine.board.load_program(elf(HELLO + POWER_OFF))
        machine.start()
        with pytest.raises(ZeroDivisionError):
            machine.wait(60)


@pytest.mark.parametrize(
    "config",
    [
        {"cpus": 0},
        {"cpus": 65},
        {"tier": "warp"},
        {"bus": "isa"},
        {"devices": [RngDevice] * 32},
        {"bus": "pci", "devices": [RngDevice] * 31},
    ],
    ids=lambda c: str(c)[:20],
)
def test_impossible_boards_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"CPUs|tier|no bus|devices"):
        Virt(VirtConfig(memory=16 << 20, **config), output=print, power=print, failed=print)  # type: ignore[arg-type]


def test_a_disk_is_locked_while_it_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(bytes(4096))
    config = VirtConfig(memory=16 << 20, devices=(partial(BlockDevice.open, path),))
    with Machine(config, lambda data: None), pytest.raises(DiskError, match="in use"):
        Machine(config, lambda data: None)
    Machine(config, lambda data: None).close()
