"""The C64's free ROMs under the reference executor: memory banks, and registers instead of chips."""

from __future__ import annotations

from polyvisor.adl import WRITE, u64
from polyvisor.boards.c64 import roms
from polyvisor.boards.c64.drive import Drive, DrivePort
from polyvisor.engine.memory import Memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.mos6502 import mos6510
from polyvisor.isa.mos6502.interrupts import set_irq
from polyvisor.storage.commodore.petscii import from_unicode, screen_code, screen_text

BELOW = 0x10000
"""Where the RAM below the ROMs is in physical memory."""
SCREEN, COLOURS = 0x0400, 0xD800

# What the reference executor looks up for each instruction, kept.
_LENGTHS = [mos6510.decode(opcode | 0xFFFF00).encoding.length for opcode in range(256)]
_INSTRUCTIONS = [mos6510.decode(opcode | 0xFFFF00) for opcode in range(256)]


class _Decoded:
    """An architecture whose instructions are known by their opcode alone."""

    def __init__(self) -> None:
        self.hooks = {name: hook for name, hook in mos6510.hooks.items() if name != "deadline"}

    def __getattr__(self, name: str):
        return getattr(mos6510, name)

    def decode(self, word: int):
        """The instruction."""
        return _INSTRUCTIONS[word & 0xFF]


class Chips:
    """Registers that keep what is written; the raster goes on with every look, and keys are held."""

    def __init__(self, port: DrivePort, lines: int) -> None:
        self.registers = bytearray(0x1000)
        self.port = port
        self.lines = lines
        self.line = 0
        self.keys: set[int] = set()

    def read(self, offset: int, size: int) -> int:
        """A register."""
        if offset in (0x11, 0x12):
            self.line = (self.line + 1) % self.lines
            return (self.registers[0x11] & 0x7F | self.line >> 1 & 0x80) if offset == 0x11 else self.line & 0xFF
        if offset == 0xC01:
            columns = self.registers[0xC00]
            held = sum({1 << (key & 7) for key in self.keys if not columns >> (key >> 3) & 1})
            return 0xFF ^ held
        if offset >= 0xF00:
            return self.port.read(offset - 0xE00, size)
        return self.registers[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a register."""
        self.registers[offset] = value
        if offset >= 0xF00:
            self.port.write(offset - 0xE00, size, value)


class RomMachine:
    """The ROMs with RAM, a drive and keys."""

    def __init__(self, medium=None, lines: int = 312) -> None:
        self.drive = Drive(8, medium)
        self.memory = Memory()
        self.ram = self.memory.add_ram(0, 0xD000)
        self.memory.add_ram(0xE000, 0x2000)
        self.memory.add_ram(BELOW + 0xA000, 0x6000)
        self.chips = Chips(DrivePort([self.drive]), lines)
        self.memory.add_device(0xD000, 0x1000, self.chips)
        made = roms.basic_program().bytes, roms.kernal_program().bytes
        self.memory.write(roms.BASIC, made[0])
        self.memory.write(roms.KERNAL, made[1])
        self.symbols = roms.kernal_program().symbols
        self.cpu = reference_cpu(mos6510, self.memory)
        self.cpu.architecture = _Decoded()
        self.cpu.fetch = self._fetch
        self.cpu._translate = self._translate
        self.cpu.pc = u64(int.from_bytes(self.memory.read(0xFFFC, 2), "little"))

    def _fetch(self) -> int:
        pc = int(self.cpu.pc)
        return int.from_bytes(self.memory.read(pc, _LENGTHS[self.memory.read(pc, 1)[0]]), "little")

    def _translate(self, address, size: int, access: int) -> int:
        """Writes go to the RAM below the ROMs."""
        below = access == WRITE and (0xA000 <= address < 0xC000 or address >= 0xE000)
        return int(address) + BELOW if below else int(address)

    def close(self) -> None:
        """Give the memory back."""
        self.memory.close()

    def run(self, until: int, most: int = 200_000) -> None:
        """Run until the program counter is ``until``."""
        for _ in range(most):
            if int(self.cpu.pc) == until:
                return
            self.cpu.step()
        raise AssertionError(f"at {int(self.cpu.pc):#06x} after {most} instructions; the screen:\n{self.screen()}")

    def boot(self) -> None:
        """To the prompt."""
        self.run(self.symbols["waitkey"])

    def save(self) -> tuple[bytes, bytes, bytes, bytes]:
        """All that changes, but for the drive."""
        return (
            self.memory.read(0, 0xD000), self.memory.read(BELOW + 0xA000, 0x6000), bytes(self.chips.registers),
            bytes(self.cpu.block),
        )  # fmt: skip

    def restore(self, saved: tuple[bytes, bytes, bytes, bytes]) -> None:
        """What another machine had."""
        self.memory.write(0, saved[0])
        self.memory.write(BELOW + 0xA000, saved[1])
        self.chips.registers[:] = saved[2]
        self.cpu.block[:] = saved[3]

    def call(self, address: int, *, a: int = 0, x: int = 0, y: int = 0, carry: bool = False) -> int:
        """Call a routine; gives what it leaves in A, and registers and carry are in the CPU."""
        cpu = self.cpu
        back = int(cpu.pc)
        self.memory.write(0xCFF0, bytes([0x20, address & 0xFF, address >> 8, 0xEA]))
        cpu.a, cpu.x, cpu.y, cpu.c = a, x, y, int(carry)
        cpu.pc = u64(0xCFF0)
        self.run(0xCFF3)
        cpu.pc = u64(back)
        return int(cpu.a)

    def interrupt(self) -> None:
        """A sixtieth of a second passes."""
        back = int(self.cpu.pc)
        set_irq(self.cpu, 1, True, self.cpu.cycles() - 10)
        self.cpu.i = 0
        self.cpu.i_changed = u64(0)
        self.cpu.step()
        set_irq(self.cpu, 1, False, self.cpu.cycles())
        self.run(back)

    def clear(self) -> None:
        """An empty screen, faster than by printing."""
        self.memory.write(SCREEN, b" " * 1000)
        self.memory.write(0xD9, bytes(0x80 | 40 * row >> 8 for row in range(25)))
        self.memory.write(0xD3, b"\0\0\0\0")
        self.call(0xE566)

    def enter(self, line: str) -> None:
        """Put a line of at most 39 characters on the empty screen, and press RETURN."""
        self.clear()
        codes = from_unicode(line)
        assert len(codes) < 40
        self.memory.write(SCREEN, bytes(map(screen_code, codes)))
        self.type(b"\r")

    def type(self, text: str | bytes, most: int = 2_000_000) -> None:
        """Give keys by way of the keyboard's buffer, until the next prompt."""
        waiting = self.symbols["waitkey"]
        for code in from_unicode(text) if isinstance(text, str) else text:
            self.memory.write(0x0277, bytes([code]))
            self.memory.write(0xC6, b"\1")
            self.cpu.step()
            for _ in range(most):
                if int(self.cpu.pc) == waiting and self.memory.read(0xC6, 1) == b"\0":
                    break
                self.cpu.step()
            else:
                raise AssertionError(f"at {int(self.cpu.pc):#06x}; the screen:\n{self.screen()}")

    def print(self, codes: bytes | str) -> None:
        """Print PETSCII by CHROUT."""
        for code in from_unicode(codes) if isinstance(codes, str) else codes:
            self.call(0xFFD2, a=code)

    def screen(self) -> str:
        """The lines on the screen, without the blank ones at its end."""
        codes = self.memory.read(SCREEN, 1000)
        rows = [screen_text(codes[at : at + 40]).rstrip() for at in range(0, 1000, 40)]
        return "\n".join(rows).rstrip()

    def peek(self, address: int, count: int = 1) -> bytes:
        """Bytes of RAM, or of the colours' memory."""
        if address >= 0xD000:
            return bytes(self.chips.registers[address - 0xD000 : address - 0xD000 + count])
        return self.memory.read(address, count)
