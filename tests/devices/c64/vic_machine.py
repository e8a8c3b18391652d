"""A VIC-II with memory and no CPU beside it that does anything, in the reference executor."""

from __future__ import annotations

from polyvisor.adl import u8, u32, u64
from polyvisor.devices.c64 import memory as where
from polyvisor.devices.c64 import vic_ii
from polyvisor.engine.memory import Memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.mos6502 import Mos6510, mos6510

pal = mos6510.variant("vic_pal")
ntsc = mos6510.variant("vic_ntsc", features=frozenset({"port", "ntsc"}))


class Chips(Mos6510, vic_ii.VicII):
    """A CPU and its VIC-II."""


pal.state(Chips)
ntsc.state(Chips)


class Vic:
    """The chip at the start of a line, with the screen on: matrix at $0400, characters at $2000, colours 14 and 6."""

    def __init__(self, line: int = 0x30, yscroll: int = 3, model: vic_ii.Model = vic_ii.PAL) -> None:
        self.model = model
        self.memory = Memory()
        self.memory.add_ram(0, 0x50000)
        self.cpu = reference_cpu(pal if model is vic_ii.PAL else ntsc, self.memory)
        for register, value in {0x11: 0x18 | yscroll, 0x16: 8, 0x18: 0x18, 0x20: 14, 0x21: 6}.items():
            self.write(register, value)
        self.cpu.vic_den_seen = 1
        self.jump(line)

    def jump(self, line: int, cycle: int = 1) -> None:
        """Be at another place of the frame, with nothing that came before."""
        state = self.cpu
        state.vic_line, state.vic_cycle = line, cycle
        state.vic_raster = line - (cycle == 1)
        state.vic_raster_matched = 0
        self.frame_start = int(state.vic_clock) - (line * self.model.cycles + cycle - 1)
        if cycle > 1:
            self.write(0x11, int(state.vic_registers[0x11]))  # the Bad Line Condition
            state.vic_registers[0x19] = 0

    def close(self) -> None:
        self.memory.close()

    def to(self, line: int, cycle: int) -> None:
        """Run the chip up to and including that cycle of the frame."""
        vic_ii.run(self.cpu, u64(self.clock(line, cycle) + 1))

    def clock(self, line: int, cycle: int) -> int:
        """The number of a cycle."""
        return self.frame_start + line * self.model.cycles + cycle - 1

    def write(self, register: int, value: int) -> None:
        vic_ii.write_register(self.cpu, u32(register), u8(value))

    def write_at(self, line: int, cycle: int, register: int, value: int) -> None:
        """As the CPU would write in that cycle."""
        self.to(line, cycle)
        self.write(register, value)

    def read(self, register: int) -> int:
        return int(vic_ii.read_register(self.cpu, u32(register)))

    def event(self) -> tuple[int, int]:
        """Line and cycle of the next event."""
        at = int(vic_ii.next_event(self.cpu)) - self.frame_start
        return at // self.model.cycles, at % self.model.cycles + 1

    def poke(self, address: int, *data: int) -> None:
        self.memory.write(address, bytes(data))

    def pixels(self, line: int, x: int, count: int) -> list[int]:
        """Colours in a line of the frame buffer, from an X coordinate (negative: left of 0) on."""
        return list(self.memory.read(where.FRAME_BUFFER + line * where.FRAME_STRIDE + 112 + x, count))

    def text(self, line: int, x: int = 24, count: int = 8) -> str:
        """The same, as hexadecimal digits."""
        return "".join(f"{pixel:x}" for pixel in self.pixels(line, x, count))

    def bus_low(self, line: int) -> list[int]:
        """The cycles of a line in which BA is low."""
        found = []
        for cycle in range(1, self.model.cycles + 1):
            self.to(line, cycle)
            if self.cpu.vic_ba_low != 0:
                found.append(cycle)
        return found

    def sprite(self, number: int, x: int, y: int, colour: int, block: int, *rows: tuple[int, int, int]) -> None:
        """Enable a sprite; its data is in a block of 64 bytes."""
        self.write(2 * number, x & 0xFF)
        self.write(2 * number + 1, y)
        high = int(self.cpu.vic_registers[0x10])
        self.write(0x10, high & ~(1 << number) | (x >> 8) << number)
        self.write(0x15, int(self.cpu.vic_registers[0x15]) | 1 << number)
        self.write(0x27 + number, colour)
        self.poke(0x07F8 + number, block)
        for row, data in enumerate(rows):
            self.poke(64 * block + 3 * row, *data)
