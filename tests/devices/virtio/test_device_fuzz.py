"""Each virtio device with hostile drivers for a short while, and what the fuzzer itself must notice."""

from __future__ import annotations

import random
import threading

import pytest

from polyvisor.devices.pci import function as f
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.queue import Chain
from polyvisor.devices.virtio.rng import RngDevice
from polyvisor.devices.virtio.split import SplitQueue
from polyvisor.engine.memory import Memory
from support.device_fuzz import Failure, fuzz
from support.device_grammars import GRAMMARS
from support.pci_fuzz import PciFuzzer
from support.pci_registers import BAR, PciRegisters
from support.virtio_guest import Guest

OPERATIONS = 8000


@pytest.mark.parametrize("name", sorted(GRAMMARS))
@pytest.mark.parametrize(
    ("bus", "packed", "operations"),
    [("mmio", False, OPERATIONS), ("mmio", True, 3000), ("pci", False, 3000), ("pci", True, 3000)],
)
def test_hostile_drivers(name: str, bus: str, packed: bool, operations: int) -> None:
    result = fuzz(name, operations, 3, bus, packed)
    assert result.operations == operations and result.proofs > 3
    # Most of it reaches the device.
    assert result.answered > operations // 4 and result.resets < operations // 5


def test_a_hostile_guest_of_the_pci_bridge() -> None:
    fuzzer = PciFuzzer(3)
    fuzzer.run(OPERATIONS)
    fuzzer.close()


def test_the_bus_changes_while_requests_run() -> None:
    """One hart has requests done while another moves the memory range, switches it off, and takes bus mastering."""
    device = RngDevice(lambda count: b"\x11" * count)
    guest = Guest(device, bus="pci")
    guest.memory.most_steps = 1 << 60
    guest.start()
    registers = guest.mmio
    assert isinstance(registers, PciRegisters)
    errors: list[BaseException] = []
    rng = random.Random(4)

    def hart() -> None:
        try:
            for _ in range(3000):
                guest.post(0, [], [64])
                guest.kick(0)
                guest.used(0)
                registers.read(t.INTERRUPT_STATUS, 4)
        except BaseException as error:
            errors.append(error)

    def other_hart() -> None:
        try:
            for _ in range(3000):
                registers.write_config(f.COMMAND, 2, rng.choice([0, 2, 4, 6, 6, 0x406]))
                registers.write_config(f.BARS, 4, rng.choice([0, BAR, BAR, BAR + 0x8000, 2**32 - 1]))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=each, daemon=True) for each in (hart, other_hart)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and not any(thread.is_alive() for thread in threads)
    guest.start()
    assert guest.request(0, [], [16]) == b"\x11" * 16


def test_the_same_seed_does_the_same() -> None:
    assert fuzz("block", 2000, 7) == fuzz("block", 2000, 7) != fuzz("block", 2000, 8)


def test_it_notices_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyvisor.devices.virtio.block.length_of", lambda segments: 1)
    with pytest.raises(Failure, match="block: "):
        fuzz("block", OPERATIONS, 1)


def test_it_notices_a_write_where_no_buffer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(self: RngDevice, chain: Chain) -> int:
        for address, length in chain.writable:
            if self.link.memory.is_ram(address, length + 1):
                self.link.memory.write(address, bytes(length + 1))
        return 0

    monkeypatch.setattr(RngDevice, "_fill", fill)
    with pytest.raises(Failure, match="where there is no buffer"):
        fuzz("rng", OPERATIONS, 1)


def test_it_notices_a_silent_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Memory, "wrote_all", lambda self, segments, pairs=b"": None)
    with pytest.raises(Failure, match="without a word"):
        fuzz("block", OPERATIONS, 2)


def test_it_notices_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("support.virtio_guest.WatchedMemory.most_steps", 10_000)
    monkeypatch.setattr(SplitQueue, "request_notification", lambda self, tell=True: True)
    monkeypatch.setattr("polyvisor.devices.virtio.device._TURN", 1 << 40)
    with pytest.raises(Failure, match="accesses to memory in one operation"):
        fuzz("rng", OPERATIONS, 1)


def test_it_notices_a_device_that_does_not_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RngDevice, "reset", lambda self: setattr(self, "_source", bytes))
    with pytest.raises(Failure, match="in operation 0"):
        fuzz("rng", OPERATIONS, 1)
