"""A virtio device on a PCI bus, driven by the registers of the MMIO transport: each becomes its counterpart on PCI."""

from __future__ import annotations

from polyvisor.devices.lines import Line
from polyvisor.devices.pci import function as f
from polyvisor.devices.pci.host import PciHost
from polyvisor.devices.virtio import mmio as m
from polyvisor.devices.virtio import pci as p
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.transport import TransportState
from polyvisor.engine.memory import Memory

WINDOW = 0x4000_0000
BAR = WINDOW + 0x10_0000
SLOT = 5

# MMIO register: offset in the common configuration, width.
COMMON = {
    m.DEVICE_FEATURES_SEL: (p.DEVICE_FEATURE_SELECT, 4),
    m.DEVICE_FEATURES: (p.DEVICE_FEATURE, 4),
    m.DRIVER_FEATURES_SEL: (p.DRIVER_FEATURE_SELECT, 4),
    m.DRIVER_FEATURES: (p.DRIVER_FEATURE, 4),
    m.QUEUE_SEL: (p.QUEUE_SELECT, 2),
    m.QUEUE_NUM_MAX: (p.QUEUE_SIZE, 2),
    m.QUEUE_NUM: (p.QUEUE_SIZE, 2),
    m.QUEUE_READY: (p.QUEUE_ENABLE, 2),
    m.STATUS: (p.DEVICE_STATUS, 1),
    m.CONFIG_GENERATION: (p.CONFIG_GENERATION, 1),
    **{m.QUEUE_DESC_LOW + i: (p.QUEUE_DESC + i, 4) for i in (0, 4)},
    **{m.QUEUE_DRIVER_LOW + i: (p.QUEUE_DRIVER + i, 4) for i in (0, 4)},
    **{m.QUEUE_DEVICE_LOW + i: (p.QUEUE_DEVICE + i, 4) for i in (0, 4)},
}


class PciRegisters:
    """Finds the parts of the device by its capabilities, as a driver does."""

    def __init__(self, memory: Memory, line: Line, device: VirtioDevice, packed: bool) -> None:
        self.host = PciHost([line] * 4, WINDOW, 0x4000_0000)
        self.transport = p.VirtioPci(memory, device, packed)
        self.host.plug(self.transport.function, SLOT)
        self.write_config(f.BARS, 4, BAR)
        self.write_config(f.COMMAND, 2, f.COMMAND_MEMORY | f.COMMAND_MASTER)
        self.parts: dict[int, int] = {}
        self.capabilities: dict[int, int] = {}
        at = self.read_config(f.CAPABILITIES, 1)
        while at:
            assert self.read_config(at, 1) == 9
            kind = self.read_config(at + 3, 1)
            self.capabilities[kind] = at
            assert self.read_config(at + 4, 1) == 0
            self.parts[kind] = self.read_config(at + 8, 4)
            at = self.read_config(at + 1, 1)
        self.multiplier = self.read_config(self.capabilities[p.CAP_NOTIFY] + 16, 4)

    @property
    def state(self) -> TransportState:
        return self.transport.state

    @state.setter
    def state(self, state: TransportState) -> None:
        self.transport.state = state

    def read_config(self, offset: int, size: int) -> int:
        return self.host.ecam.read(SLOT << 15 | offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        self.host.ecam.write(SLOT << 15 | offset, size, value)

    def bar_read(self, kind: int, offset: int, size: int) -> int:
        return self.host.memory.read(BAR - WINDOW + self.parts[kind] + offset, size)

    def bar_write(self, kind: int, offset: int, size: int, value: int) -> None:
        self.host.memory.write(BAR - WINDOW + self.parts[kind] + offset, size, value)

    def read(self, offset: int, size: int) -> int:
        if offset >= m.CONFIG:
            return self.bar_read(p.CAP_DEVICE, offset - m.CONFIG, size)
        if offset == m.INTERRUPT_STATUS:
            return self.bar_read(p.CAP_ISR, 0, 1)
        if offset == m.DEVICE_ID:
            return self.read_config(f.DEVICE_ID, 2) - 0x1040
        if offset in COMMON:
            return self.bar_read(p.CAP_COMMON, *COMMON[offset])
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= m.CONFIG:
            self.bar_write(p.CAP_DEVICE, offset - m.CONFIG, size, value)
        elif offset == m.QUEUE_NOTIFY:
            if value < p.PART_SIZE // self.multiplier:
                self.bar_write(p.CAP_NOTIFY, value * self.multiplier, 2, value)
        elif offset in COMMON:
            at, width = COMMON[offset]
            self.bar_write(p.CAP_COMMON, at, width, value)
