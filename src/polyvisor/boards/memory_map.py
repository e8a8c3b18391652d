"""Where things are on the well-known RISC-V ``virt`` board: guest physical addresses and sizes in bytes.

Guests learn all of this from the device tree (:mod:`polyvisor.boards.device_tree`); bare-metal programs rely on it.
"""

from __future__ import annotations

from typing import NamedTuple


class Region(NamedTuple):
    """One device's window: ``base`` and ``size`` in bytes; ``irq`` is its PLIC source, 0 for none."""

    base: int
    size: int
    irq: int = 0


MROM = Region(0x1000, 0xF000)
TEST = Region(0x10_0000, 0x1000)
RTC = Region(0x10_1000, 0x1000, irq=11)
CLINT = Region(0x200_0000, 0x1_0000)
PLIC = Region(0xC00_0000, 0x60_0000)
UART = Region(0x1000_0000, 0x100, irq=10)

VIRTIO_STRIDE = 0x1000
# The eight slots that programs expect, used or not, and those behind them, which are there when they are used.
VIRTIO_FIXED_SLOTS = 8
VIRTIO_SLOTS = 32
VIRTIO = tuple(
    Region(0x1000_1000 + slot * VIRTIO_STRIDE, 0x1000, irq=1 + slot if slot < VIRTIO_FIXED_SLOTS else 56 + slot)
    for slot in range(VIRTIO_SLOTS)
)

# The PCI host bridge: its configuration space, and what it has of I/O and memory space.
PCI_IO = Region(0x300_0000, 0x1_0000)
PCI_CONFIG = Region(0x3000_0000, 0x1000_0000)
PCI_MEMORY = Region(0x4000_0000, 0x4000_0000)
PCI_IRQS = (32, 33, 34, 35)
PCI_DEVICES = 32  # on the bus, the bridge among them: numbers have 5 bits

# Interrupt sources of the PLIC, counting source 0, which does not exist.
PLIC_SOURCES = 96

DRAM_BASE = 0x8000_0000

# The rate of the ``time`` counter, in Hz.
TIMEBASE_FREQUENCY = 10_000_000

# The UART's input clock, in Hz: only the divisor for a baud rate depends on it.
UART_CLOCK = 3_686_400

# Values written to the test device, and the offset they are written to.
TEST_OFFSET = 0
TEST_POWER_OFF = 0x5555
TEST_REBOOT = 0x7777

# Each hart has two contexts in the PLIC (machine, supervisor), 0x1000 bytes each from 0x200000 on.
MAX_HARTS = (PLIC.size - 0x20_0000) // 0x1000 // 2
