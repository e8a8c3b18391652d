"""CIAs and a SID in the state of a CPU that does nothing, and a driver that accesses them in chosen clock cycles."""

from __future__ import annotations

from typing import Any

from polyvisor.adl import u8, u32, u64
from polyvisor.devices.c64 import cia, sid
from polyvisor.engine.memory import Memory
from polyvisor.engine.reference import reference_cpu
from polyvisor.isa.mos6502 import Mos6510, mos6510

chips = mos6510.variant("c64-chips")


@chips.state
class Chips(Mos6510, cia.Cia, sid.Sid):
    """A CPU with chips."""


def new_cpu(memory: Memory | None = None) -> Any:
    """A CPU with chips after a reset, in cycle 0."""
    return reference_cpu(chips, memory or Memory())


class CiaDriver:
    """Accesses a CIA as a CPU does: each access is in a clock cycle, which the chip has executed before."""

    def __init__(self, n: int = 0, cpu: Any = None, new: bool = False) -> None:
        self.cpu = cpu or new_cpu()
        self.n = n
        self.cpu.cia_new[n] = int(new)

    def run(self, cycle: int) -> None:
        """Execute all cycles up to ``cycle``, that one included."""
        cia.run(self.cpu, self.n, u64(cycle + 1))

    def read(self, cycle: int, register: int) -> int:
        """Read a register in ``cycle``."""
        self.run(cycle)
        return int(cia.read_register(self.cpu, self.n, u32(register)))

    def write(self, cycle: int, register: int, value: int) -> None:
        """Write a register in ``cycle``."""
        self.run(cycle)
        cia.write_register(self.cpu, self.n, u32(register), u8(value))

    def peek(self, cycle: int, register: int) -> int:
        """What a read in ``cycle`` would give, without its effects and without running so far."""
        saved = bytes(self.cpu.block)
        value = self.read(cycle, register)
        self.cpu.block[:] = saved
        return value

    def values(self, first: int, count: int, register: int) -> list[int]:
        """What a read of ``register`` would give in each of some cycles."""
        return [self.peek(first + i, register) for i in range(count)]

    def set_timer(self, cycle: int, timer: int, latch: int) -> None:
        """Load timer 0 (A) or 1 (B), which stands, beginning in ``cycle``."""
        self.write(cycle, 4 + 2 * timer, latch & 0xFF)
        self.write(cycle + 1, 5 + 2 * timer, latch >> 8)

    def line(self) -> bool:
        """Whether the interrupt line is pulled down."""
        lines = self.cpu.irq_lines if self.n == 0 else self.cpu.nmi_lines
        return int(lines) & 1 != 0

    def since(self) -> int:
        """The cycle in which it fell."""
        return int(self.cpu.irq_since if self.n == 0 else self.cpu.nmi_since)

    def next_event(self) -> int:
        """See `cia.next_event`."""
        return int(cia.next_event(self.cpu, self.n))


class SidDriver:
    """The same for the SID."""

    def __init__(self, memory: Memory | None = None) -> None:
        self.cpu = new_cpu(memory)

    def run(self, cycle: int) -> None:
        """Execute all cycles up to ``cycle``, that one included."""
        sid.run(self.cpu, u64(cycle + 1))

    def read(self, cycle: int, register: int) -> int:
        """Read a register in ``cycle``."""
        self.run(cycle)
        return int(sid.read_register(self.cpu, u32(register)))

    def write(self, cycle: int, register: int, value: int) -> None:
        """Write a register in ``cycle``."""
        self.run(cycle)
        sid.write_register(self.cpu, u32(register), u8(value))

    def voice(self, cycle: int, v: int, **registers: int) -> None:
        """Write ``frequency``, ``width``, ``control``, ``ad``, ``sr`` of a voice, all in ``cycle``."""
        for name, value in registers.items():
            place = 7 * v + {"frequency": 0, "width": 2, "control": 4, "ad": 5, "sr": 6}[name]
            self.write(cycle, place, value & 0xFF)
            if name in ("frequency", "width"):
                self.write(cycle, place + 1, value >> 8)
