"""A guest that does anything to a PCI host bridge: what answers where must be what the configuration spaces say.

As long as one likes by command::

    python -m tests.support.pci_fuzz --operations 1_000_000 --seed 7
"""

from __future__ import annotations

import argparse
import copy
import random
import struct
import sys
from dataclasses import dataclass

from polyvisor.devices.pci import function as f
from polyvisor.devices.pci.function import Bar, PciFunction
from polyvisor.devices.pci.host import DEVICES, PINS, PciHost, line_of
from polyvisor.engine.memory import Memory

ECAM, IO, WINDOW, WINDOW_SIZE, RAM = 0x3000_0000, 0x300_0000, 0x4000_0000, 0x1000_0000, 0x5000_0000
ECAM_SIZE, IO_SIZE, RAM_SIZE = 0x1000_0000, 0x1_0000, 0x1000
# Sizes of the memory ranges of functions, by number; the last one is larger than the window.
_BARS = {1: (16,), 2: (4096, 0x4000), 3: (32,) * 6, 5: (0x10_0000,), 30: (), 31: (1 << 31, 256)}
_WRITABLE_HEADER = {f.CACHE_LINE_SIZE, f.INTERRUPT_LINE, f.COMMAND, f.COMMAND + 1, *range(f.BARS, f.BARS + 24)}


@dataclass
class Recorder:
    """What is behind a memory range; it notes the last access."""

    size: int
    last: tuple[str, int] | None = None

    def read(self, offset: int, size: int) -> int:
        self._note("read", offset, size)
        return 0x5A

    def write(self, offset: int, size: int, value: int) -> None:
        self._note("write", offset, size)
        assert 0 <= value < 1 << 8 * size

    def _note(self, what: str, offset: int, size: int) -> None:
        assert offset >= 0 and offset + size <= self.size, f"{size} bytes at {offset:#x} of {self.size:#x}"
        self.last = (what, offset)


class Wire:
    level = False

    def set(self, level: bool) -> None:
        self.level = level


class PciFuzzer:
    """Operations on one bridge, reached through memory as by a hart."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.wires = [Wire() for _ in range(PINS)]
        self.host = PciHost(self.wires, WINDOW, WINDOW_SIZE)
        self.memory = Memory()
        self.memory.add_ram(RAM, RAM_SIZE)
        for base, size, device in (
            (ECAM, ECAM_SIZE, self.host.ecam), (IO, IO_SIZE, self.host.io), (WINDOW, WINDOW_SIZE, self.host.memory)
        ):
            self.memory.add_device(base, size, device)
        self.functions: dict[int, PciFunction] = {}
        self.recorders: dict[int, list[Recorder]] = {}
        self.levels: dict[int, bool] = {}
        for number, sizes in _BARS.items():
            recorders = self.recorders[number] = [Recorder(size) for size in sizes]
            bars = [Bar(each.size, each) for each in recorders]
            function = PciFunction(0x1AF4, 0x1000 + number, 0xFF0000, bars=bars, pin=number % 5)
            function.add_capability(9, bytes(10), b"\xff" * 4)
            self.host.plug(function, number)
            self.functions[number] = function
            self.levels[number] = False
        self.fixed = {number: self.header(number) for number in self.functions}

    # A hart's accesses

    def read(self, address: int, size: int) -> int:
        device, offset = self.memory.device_at(address, size)
        value = device.read(offset, size)
        assert 0 <= value < 1 << 8 * size, f"{value:#x} read at {address:#x} of {size} bytes"
        return value

    def write(self, address: int, size: int, value: int) -> None:
        device, offset = self.memory.device_at(address, size)
        device.write(offset, size, value & (1 << 8 * size) - 1)

    def config(self, number: int, offset: int) -> int:
        return ECAM + (number << 15) + offset

    def header(self, number: int) -> bytes:
        """What a guest can never change."""
        data = b"".join(struct.pack("<I", self.read(self.config(number, at), 4)) for at in range(0, 0x40, 4))
        kept = [0 if at in _WRITABLE_HEADER else value for at, value in enumerate(data)]
        kept[f.STATUS] &= ~f.STATUS_INTERRUPT
        return bytes(kept)

    def number(self) -> int:
        return self.rng.choice(list(self.functions))

    def place(self) -> int:
        """An address that matters, as 32 bits."""
        rng = self.rng
        where = rng.choice([WINDOW, WINDOW, WINDOW + WINDOW_SIZE, WINDOW + 0x4000, WINDOW + rng.randrange(0x8000), RAM])
        return rng.choice([where + rng.randrange(-0x40, 0x40) * 16, where, 0, 2**32 - 1, rng.getrandbits(32)]) % 2**32

    # Operations

    def step(self) -> None:
        rng = self.rng
        chance, number = rng.random(), self.number()
        if chance < 0.25:
            self.move(number)
        elif chance < 0.4:
            self.write(self.config(number, f.COMMAND), 2, rng.choice([0, 2, 2, 6, 6, 7, 0x402, 0x406, 0xFFFF]))
        elif chance < 0.7:
            self.access()
        elif chance < 0.8:
            self.anything()
        elif chance < 0.9:
            self.levels[number] = rng.random() < 0.5
            self.functions[number].interrupt(self.levels[number])
        elif chance < 0.95:
            self.functions[number].state = copy.deepcopy(self.functions[number].state)
        else:
            assert self.header(number) == self.fixed[number], f"function {number} is another one now"
        self.check_lines()

    def move(self, number: int) -> None:
        bar = self.rng.randrange(f.MAX_BARS)
        register = self.config(number, f.BARS + 4 * bar)
        sizes = _BARS[number]
        size = sizes[bar] if bar < len(sizes) else 0
        self.write(register, 4, 2**32 - 1)
        assert self.read(register, 4) == (2**32 - size if size else 0), "the size cannot be found out"
        value = self.place()
        self.write(register, 4, value)
        assert self.read(register, 4) == (value & -size if size else 0)

    def ranges(self) -> list[tuple[int, int, Recorder]]:
        """Start, end and device of what is enabled and in the window, by what the configuration spaces say."""
        found = []
        for number, recorders in self.recorders.items():
            if self.read(self.config(number, f.COMMAND), 2) & f.COMMAND_MEMORY:
                for bar, recorder in enumerate(recorders):
                    start = self.read(self.config(number, f.BARS + 4 * bar), 4)
                    if start >= WINDOW and start + recorder.size <= WINDOW + WINDOW_SIZE:
                        found.append((start, start + recorder.size, recorder))
        return found

    def access(self) -> None:
        """An access of the window is answered by one of those whose range it is in, and by the only one for certain."""
        rng, ranges = self.rng, self.ranges()
        size = rng.choice([1, 2, 4, 8])
        address = WINDOW + rng.randrange(0x8000)
        if ranges and rng.random() < 0.8:
            start, end, _ = rng.choice(ranges)
            address = rng.choice([start, end, rng.randrange(start, end)]) + rng.randrange(-8, 8)
        address = max(WINDOW, min(address, WINDOW + WINDOW_SIZE - size))
        for _, _, recorder in ranges:
            recorder.last = None
        if rng.random() < 0.5:
            what, ones = "write", True
            self.write(address, size, rng.getrandbits(64))
        else:
            what, ones = "read", self.read(address, size) == (1 << 8 * size) - 1
        there = [each for each in ranges if each[0] <= address and address + size <= each[1]]
        answered = [(start, recorder) for start, _, recorder in ranges if recorder.last is not None]
        touching = [each for each in ranges if any(a[0] < each[1] and each[0] < a[1] for a in there)]
        if len(there) == 1 and len(touching) == 1:
            assert len(answered) == 1, f"nobody answers at {address:#x}"
        for start, _, recorder in there:
            # Of ranges that overlap the lowest is there.
            if all(other is recorder or at > start or to <= start for at, to, other in ranges):
                assert recorder.last is not None, f"another one answers at {address:#x}"
        assert len(answered) <= 1
        if answered:
            start, recorder = answered[0]
            assert recorder.last == (what, address - start) and recorder in [each[2] for each in there]
        else:
            assert ones or what == "write"

    def anything(self) -> None:
        rng = self.rng
        size = rng.choice([1, 2, 4, 8])
        base, length = rng.choice([(ECAM, 32 << 15), (ECAM, 32 << 15), (ECAM, ECAM_SIZE), (IO, IO_SIZE)])
        address = base + rng.randrange(length - size)
        if base == ECAM and rng.random() < 0.7:
            address = self.config(self.number(), rng.randrange(0x108))
        if rng.random() < 0.5:
            self.write(address, size, rng.getrandbits(64))
        else:
            value = self.read(address, size)
            assert base != ECAM or not address % size or value == (1 << 8 * size) - 1

    def check_lines(self) -> None:
        wanted = [False] * PINS
        for number, function in self.functions.items():
            disabled = self.read(self.config(number, f.COMMAND), 2) & f.COMMAND_INTX_DISABLE
            status = self.read(self.config(number, f.STATUS), 2)
            assert bool(status & f.STATUS_INTERRUPT) == self.levels[number]
            if self.levels[number] and not disabled:
                wanted[line_of(number, function.pin or 1)] = True
        assert [wire.level for wire in self.wires] == wanted

    def run(self, operations: int) -> None:
        """AssertionError if the bridge does what it should not."""
        for _ in range(operations):
            self.step()
        assert len(self.host.functions) == 1 + len(_BARS) <= DEVICES

    def close(self) -> None:
        self.memory.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Let a hostile guest loose on the PCI host bridge.")
    parser.add_argument("--operations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    fuzzer = PciFuzzer(given.seed)
    fuzzer.run(given.operations)
    fuzzer.close()
    print(f"PCI host bridge: {given.operations:,} operations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
