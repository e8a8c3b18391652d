"""Configuration space, memory ranges and interrupt lines of the PCI host bridge."""

from __future__ import annotations

import copy
import random

import pytest

from polyvisor.devices.pci import function as f
from polyvisor.devices.pci.function import Bar, PciFunction
from polyvisor.devices.pci.host import PciHost, line_of

WINDOW = 0x4000_0000
WINDOW_SIZE = 0x4000_0000


class Registers:
    """A device that remembers what is written."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        return offset & 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        self.writes.append((offset, size, value))


class Wire:
    def __init__(self) -> None:
        self.level = False

    def set(self, level: bool) -> None:
        self.level = level


class Bus:
    """A bridge with functions that have two memory ranges each, and accesses to it."""

    def __init__(self, count: int = 1) -> None:
        self.wires = [Wire() for _ in range(4)]
        self.host = PciHost(self.wires, WINDOW, WINDOW_SIZE)
        self.registers = [Registers() for _ in range(count)]
        self.functions = [
            PciFunction(
                0x1234, 0x5678, 0x020000, revision=3, subsystem=(7, 9), bars=(Bar(0x1000, each), Bar(16, each)), pin=1
            )
            for each in self.registers
        ]
        self.slots = [self.host.plug(function) for function in self.functions]

    def get(self, register: int, size: int = 4, slot: int = 1, function: int = 0, bus: int = 0) -> int:
        return self.host.ecam.read(bus << 20 | slot << 15 | function << 12 | register, size)

    def set(self, register: int, value: int, size: int = 4, slot: int = 1) -> None:
        self.host.ecam.write(slot << 15 | register, size, value)

    def place(self, address: int, slot: int = 1, bar: int = 0) -> None:
        self.set(f.BARS + 4 * bar, address, slot=slot)
        self.set(f.COMMAND, f.COMMAND_MEMORY, 2, slot)

    def reach(self, address: int, size: int = 4) -> int:
        return self.host.memory.read(address - WINDOW, size)


def test_header() -> None:
    bus = Bus()
    assert bus.slots == [1]
    assert bus.get(0) == 0x5678_1234 and bus.get(0, 2) == 0x1234 and bus.get(3, 1) == 0x56
    assert bus.get(f.REVISION) == 0x02000003
    assert bus.get(f.SUBSYSTEM_VENDOR_ID) == 9 << 16 | 7
    assert bus.get(f.INTERRUPT_PIN, 1) == 1
    assert bus.get(0x0E, 1) == 0  # header type: one function
    assert bus.get(0, 8) == bus.get(4) << 32 | 0x5678_1234
    assert bus.get(f.REVISION, slot=0) >> 8 == 0x060000


@pytest.mark.parametrize(
    "where", [{"slot": 2}, {"slot": 31}, {"function": 1}, {"function": 7}, {"bus": 1}, {"bus": 255}], ids=str
)
def test_nobody_answers_elsewhere(where: dict[str, int]) -> None:
    bus = Bus()
    for register in (0, 4, 0x10, 0x100):
        assert [bus.get(register, size, **where) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    if "slot" in where:
        bus.set(4, 7, **where)
    assert bus.get(f.COMMAND, 2) == 0
    assert bus.host.io.read(0x10, 2) == 0xFFFF
    bus.host.io.write(0x10, 2, 1)


def test_what_is_fixed_cannot_be_written() -> None:
    bus = Bus()
    before = [bus.get(i) for i in range(0, 0x1000, 4)]
    for i in range(0, 0x1000, 4):
        bus.set(i, 0xFFFFFFFF)
    changed = {4 * i: bus.get(4 * i) for i in range(0x400) if bus.get(4 * i) != before[i]}
    assert changed == {0x04: 0x546, 0x0C: 0xFF, 0x10: 0xFFFFF000, 0x14: 0xFFFFFFF0, 0x3C: 0x1FF}
    assert bus.get(0x100) == 0  # no extended capabilities


def test_odd_accesses_are_harmless() -> None:
    bus = Bus()
    assert bus.get(1, 2) == 0xFFFF and bus.get(0xFE, 4) == 0xFFFFFFFF and bus.get(4, 8) == 2**64 - 1
    bus.set(f.COMMAND - 1, 0xFFFF, 2)
    assert bus.get(f.COMMAND, 2) == 0


def test_ranges_are_sized_placed_and_moved() -> None:
    bus = Bus()
    bus.set(f.BARS, 0xFFFFFFFF)
    assert -bus.get(f.BARS) & 0xFFFFFFFF == 0x1000
    assert bus.get(f.BARS + 8) == 0
    bus.set(f.BARS, WINDOW + 0x2345)
    assert bus.get(f.BARS) == WINDOW + 0x2000
    assert bus.reach(WINDOW + 0x2010) == 0xFFFFFFFF  # memory space is not enabled
    bus.set(f.COMMAND, f.COMMAND_MEMORY, 1)
    assert bus.reach(WINDOW + 0x2010) == 0x10
    bus.host.memory.write(0x2FFC, 4, 5)
    assert bus.registers[0].writes == [(0xFFC, 4, 5)]
    bus.place(WINDOW + WINDOW_SIZE - 0x1000)
    assert bus.reach(WINDOW + 0x2010) == 0xFFFFFFFF
    assert bus.reach(WINDOW + WINDOW_SIZE - 0xFF0) == 0x10
    bus.set(f.BARS + 3, 0x41, 1)  # one byte of the address
    assert bus.get(f.BARS) == 0x41FF_F000
    assert bus.reach(WINDOW + WINDOW_SIZE - 0xFF0) == 0xFFFFFFFF and bus.reach(0x41FF_F010) == 0x10
    bus.set(f.COMMAND, 0, 2)
    assert bus.reach(0x41FF_F010) == 0xFFFFFFFF


def test_accesses_stay_inside_ranges() -> None:
    bus = Bus()
    bus.place(WINDOW + 0x1000)
    for address, size in ((WINDOW + 0xFFF, 2), (WINDOW + 0xFFC, 8), (WINDOW + 0x1FFF, 2), (WINDOW + 0x2000, 1)):
        assert bus.reach(address, size) == (1 << 8 * size) - 1
        bus.host.memory.write(address - WINDOW, size, 0)
    assert bus.registers[0].writes == []
    for outside in (0, 0x1000, WINDOW - 0x1000, WINDOW + WINDOW_SIZE, 0xFFFFF000):
        bus.place(outside)
        assert bus.reach(WINDOW) == 0xFFFFFFFF and bus.reach(WINDOW + 0x1000) == 0xFFFFFFFF


def test_of_overlapping_ranges_the_lowest_is_there() -> None:
    bus = Bus(2)
    bus.place(WINDOW + 0x2000, slot=1)
    bus.place(WINDOW + 0x2000, slot=2)
    bus.place(WINDOW + 0x2FF0, slot=2, bar=1)
    assert bus.reach(WINDOW + 0x2FF4) == 0xF4
    bus.place(WINDOW + 0x8000, slot=1)
    bus.host.memory.write(0x2004, 4, 1)
    assert bus.registers[0].writes == [] and bus.registers[1].writes == [(4, 4, 1)]


def test_interrupts_are_swizzled_and_shared() -> None:
    bus = Bus(8)
    assert [line_of(device, 1) for device in range(6)] == [0, 1, 2, 3, 0, 1]
    assert [line_of(1, pin) for pin in (1, 2, 3, 4)] == [1, 2, 3, 0]
    first, fifth = bus.functions[0], bus.functions[4]
    first.interrupt(True)
    assert [wire.level for wire in bus.wires] == [False, True, False, False]
    assert bus.get(f.STATUS, 2) & f.STATUS_INTERRUPT
    fifth.interrupt(True)
    first.interrupt(False)
    assert bus.wires[1].level and not bus.get(f.STATUS, 2) & f.STATUS_INTERRUPT
    fifth.interrupt(False)
    assert not bus.wires[1].level


def test_interrupts_can_be_disabled() -> None:
    bus = Bus()
    bus.functions[0].interrupt(True)
    bus.set(f.COMMAND + 1, f.COMMAND_INTX_DISABLE >> 8, 1)
    assert not bus.wires[1].level and bus.get(f.STATUS, 2) & f.STATUS_INTERRUPT
    bus.set(f.COMMAND, 0, 2)
    assert bus.wires[1].level


def test_capabilities_form_a_list() -> None:
    bus = Bus()
    assert not bus.get(f.STATUS, 2) & f.STATUS_CAPABILITIES
    function = bus.functions[0]
    first = function.add_capability(9, b"\x05abc", b"\0\0\xf0")
    second = function.add_capability(5, b"12")
    assert bus.get(f.STATUS, 2) & f.STATUS_CAPABILITIES
    assert bus.get(f.CAPABILITIES, 1) == first == 0x40 and bus.get(first, 2) == second << 8 | 9
    assert second % 4 == 0 and bus.get(second, 4) == int.from_bytes(b"\x05\x0012", "little")
    bus.set(first, 0xFFFFFFFF)
    bus.set(first + 4, 0xFFFFFFFF)
    assert bus.get(first + 4, 2) == ord("b") | 0xF0 | ord("c") << 8
    with pytest.raises(ValueError, match="no room"):
        function.add_capability(9, bytes(200))


def test_impossible_functions_and_places() -> None:
    for bars in ([Bar(8, Registers())], [Bar(48, Registers())], [Bar(16, Registers())] * 7):
        with pytest.raises(ValueError, match=r"memory range|base address"):
            PciFunction(1, 2, 3, bars=bars)
    with pytest.raises(ValueError, match="pin"):
        PciFunction(1, 2, 3, pin=5)
    with pytest.raises(ValueError, match="lines"):
        PciHost([Wire()] * 3, WINDOW, WINDOW_SIZE)
    bus = Bus(31)
    assert bus.slots == list(range(1, 32))
    with pytest.raises(ValueError, match="32 devices"):
        bus.host.plug(PciFunction(1, 2, 3))
    with pytest.raises(ValueError, match="taken"):
        bus.host.plug(PciFunction(1, 2, 3), 4)


def test_state_can_be_given_back() -> None:
    bus = Bus()
    bus.place(WINDOW + 0x5000)
    state = copy.deepcopy(bus.functions[0].state)
    bus.place(WINDOW + 0x9000)
    bus.functions[0].state = state
    assert bus.reach(WINDOW + 0x5004) == 4 and bus.reach(WINDOW + 0x9004) == 0xFFFFFFFF


def test_random_accesses() -> None:
    bus = Bus(3)
    rng = random.Random(4)
    for _ in range(20000):
        size = rng.choice([1, 2, 4, 8])
        value = rng.choice([0, rng.getrandbits(8 * size), WINDOW + (rng.getrandbits(30) & ~0xF)]) & (1 << 8 * size) - 1
        window, most = rng.choice([(bus.host.ecam, 0x20000), (bus.host.memory, WINDOW_SIZE), (bus.host.io, 0x10000)])
        offset = min(rng.choice([rng.randrange(most), rng.randrange(4) << 15 | rng.randrange(0x40)]), most - size)
        window.write(offset, size, value)
        assert 0 <= window.read(offset, size) < 1 << 8 * size
