"""Virtio over PCI (VIRTIO 1.2, section 4.1). There is no legacy interface, and interrupts are INTx."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from polyvisor.devices.pci.function import COMMAND, Bar, FunctionState, PciFunction
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import QueueError
from polyvisor.devices.virtio.transport import Transport
from polyvisor.engine.memory import Memory

VENDOR_ID = 0x1AF4
FIRST_DEVICE_ID = 0x1040
REVISION = 1

# Types of the vendor-specific capability (4.1.4).
CAP_VENDOR = 9
CAP_COMMON = 1
CAP_NOTIFY = 2
CAP_ISR = 3
CAP_DEVICE = 4
CAP_PCI = 5

# The memory range of base address register 0. A page for notifications alone lets others stay apart from it.
COMMON_AT = 0x0000
ISR_AT = 0x1000
DEVICE_AT = 0x2000
NOTIFY_AT = 0x3000
PART_SIZE = 0x1000
BAR_SIZE = 0x4000
NOTIFY_MULTIPLIER = 4

# struct virtio_pci_common_cfg (4.1.4.3).
DEVICE_FEATURE_SELECT = 0
DEVICE_FEATURE = 4
DRIVER_FEATURE_SELECT = 8
DRIVER_FEATURE = 12
CONFIG_MSIX_VECTOR = 16
NUM_QUEUES = 18
DEVICE_STATUS = 20
CONFIG_GENERATION = 21
QUEUE_SELECT = 22
QUEUE_SIZE = 24
QUEUE_MSIX_VECTOR = 26
QUEUE_ENABLE = 28
QUEUE_NOTIFY_OFF = 30
QUEUE_DESC = 32
QUEUE_DRIVER = 40
QUEUE_DEVICE = 48
QUEUE_NOTIFY_DATA = 56
QUEUE_RESET = 58
COMMON_SIZE = 64

NO_VECTOR = 0xFFFF

# The width of each register; a 64-bit one is two of 32 bits (4.1.3.1).
_WIDTHS = {
    **dict.fromkeys((DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE), 4),
    **dict.fromkeys((CONFIG_MSIX_VECTOR, NUM_QUEUES, QUEUE_SELECT, QUEUE_SIZE, QUEUE_MSIX_VECTOR), 2),
    **dict.fromkeys((QUEUE_ENABLE, QUEUE_NOTIFY_OFF, QUEUE_NOTIFY_DATA, QUEUE_RESET), 2),
    **dict.fromkeys((DEVICE_STATUS, CONFIG_GENERATION), 1),
    **dict.fromkeys(range(QUEUE_DESC, QUEUE_NOTIFY_DATA, 4), 4),
}
_ADDRESSES = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "driver", QUEUE_DEVICE: "device"}
_U32 = 2**32 - 1

# struct virtio_pci_cap (4.1.4) behind the ID and the link: length, type, bar, id, offset, length.
_CAP = struct.Struct("<BBBB2xII")
_CAP_SIZE = 16
# In the capability of type 5, counted from its start (4.1.4.9).
_ACCESS_BAR = 4
_ACCESS_OFFSET = 8
_ACCESS_LENGTH = 12
_ACCESS_DATA = 16

# Class codes (PCI Code and ID Assignment) by device type; others fit in no class.
_CLASSES = {1: 0x020000, 2: 0x010000, 3: 0x078000, 16: 0x038000, 18: 0x098000, 19: 0x028000}
_OTHER_CLASS = 0xFF0000


class VirtioPci(Transport):
    """One device as a PCI function, ``function``, which goes on a bus.

    Registers are to be accessed as wide as they are; other accesses read 0 and write nothing, as do those behind the
    device's configuration. While the function may not be bus master, no buffers are taken. The device's lock is held
    during every access.
    """

    def __init__(self, memory: Memory, device: VirtioDevice, packed: bool = False) -> None:
        """Raises ValueError if ``device`` is connected elsewhere or has impossible queue sizes."""
        self.function = _Function(self, device)
        super().__init__(memory, _Pin(self.function), device, packed)

    def _bus_state(self) -> FunctionState:
        return self.function.state

    def _restore_bus(self, state: FunctionState) -> None:
        self.function.state = state

    @property
    def running(self) -> bool:
        """Whether buffers may be taken."""
        return super().running and self.function.bus_master

    # The memory range

    def read(self, offset: int, size: int) -> int:
        """Never raises: a guest that reads elsewhere gets 0."""
        with self.device.guard():
            if offset == ISR_AT:
                return self._read_isr()
            part, at = divmod(offset, PART_SIZE)
            if part == DEVICE_AT // PART_SIZE:
                return int.from_bytes(self.device.config()[at : at + size], "little")
            if part == COMMON_AT // PART_SIZE:
                if size == 8 and at in _ADDRESSES:
                    return self._read_common(at) | self._read_common(at + 4) << 32
                return self._read_common(at) if _WIDTHS.get(at) == size else 0
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Never raises: what a guest writes elsewhere is lost."""
        if offset >= NOTIFY_AT:
            # The queue is told by the address; what is written is its index too (4.1.5.2).
            self.kick((offset - NOTIFY_AT) // NOTIFY_MULTIPLIER)
            return
        value &= (1 << 8 * size) - 1
        device = self.device
        with device.guard():
            part, at = divmod(offset, PART_SIZE)
            if part == DEVICE_AT // PART_SIZE:
                if at + size <= len(device.config()):
                    device.write_config(at, value.to_bytes(size, "little"))
            elif part == COMMON_AT // PART_SIZE:
                if size == 8 and at in _ADDRESSES:
                    self._write_common(at, value & _U32)
                    self._write_common(at + 4, value >> 32)
                elif _WIDTHS.get(at) == size:
                    self._write_common(at, value)

    def _read_isr(self) -> int:
        """Reading acknowledges (4.1.4.5)."""
        status = self._state.interrupt_status
        if status:
            try:
                self.acknowledge(status)
            except QueueError:
                self.fail()  # the driver still gets what it read
        return status

    def _read_common(self, at: int) -> int:
        state = self._state
        if at == DEVICE_STATUS:
            return state.status
        if at == CONFIG_GENERATION:
            return state.config_generation & 0xFF
        if at == DEVICE_FEATURE_SELECT:
            return state.device_features_sel
        if at == DEVICE_FEATURE:
            return self.offered_word()
        if at == DRIVER_FEATURE_SELECT:
            return state.driver_features_sel
        if at == DRIVER_FEATURE:
            word = state.driver_features_sel
            return state.driver_features >> 32 * word & _U32 if word < 2 else 0
        if at in (CONFIG_MSIX_VECTOR, QUEUE_MSIX_VECTOR):
            return NO_VECTOR  # there is no MSI-X
        if at == NUM_QUEUES:
            return len(self._queues)
        if at == QUEUE_SELECT:
            return state.queue_sel
        queue = self.selected()
        if queue is None:
            return 0
        if at == QUEUE_SIZE:
            return queue.state.size
        if at == QUEUE_ENABLE:
            return queue.state.ready
        if at in (QUEUE_NOTIFY_OFF, QUEUE_NOTIFY_DATA):
            return state.queue_sel
        if QUEUE_DESC <= at < QUEUE_NOTIFY_DATA:
            address: int = getattr(queue.state, _ADDRESSES[at & ~4])
            return address >> 8 * (at & 4) & _U32
        return 0

    def _write_common(self, at: int, value: int) -> None:
        state = self._state
        if at == DEVICE_STATUS:
            self.write_status(value)
        elif at == DEVICE_FEATURE_SELECT:
            state.device_features_sel = value
        elif at == DRIVER_FEATURE_SELECT:
            state.driver_features_sel = value
        elif at == DRIVER_FEATURE:
            self.accept_word(value)
        elif at == QUEUE_SELECT:
            state.queue_sel = value
        queue = self.selected()
        if queue is None or queue.state.ready:
            return  # a queue is disabled by a reset only (4.1.4.3.2)
        if at == QUEUE_SIZE:
            queue.state.size = value
        elif at == QUEUE_ENABLE:
            if value == 1:
                queue.enable()
        elif QUEUE_DESC <= at < QUEUE_NOTIFY_DATA:
            self.set_address(_ADDRESSES[at & ~4], 8 * (at & 4), value)

    def master_changed(self) -> None:
        """The function may be bus master again: what was notified meanwhile is served. Raises QueueError."""
        for index in range(len(self._queues)):
            self.notify(index)


@dataclass
class _Pin:
    """The interrupt pin, as the transport drives it."""

    function: PciFunction

    def set(self, level: bool) -> None:
        self.function.interrupt(level)


class _Function(PciFunction):
    """The function: where the registers are, and a way to them through configuration space."""

    def __init__(self, transport: VirtioPci, device: VirtioDevice) -> None:
        super().__init__(
            VENDOR_ID,
            FIRST_DEVICE_ID + device.device_id,
            _CLASSES.get(device.device_id, _OTHER_CLASS),
            revision=REVISION,
            subsystem=(VENDOR_ID, FIRST_DEVICE_ID + device.device_id),
            bars=(Bar(BAR_SIZE, transport),),
            pin=1,
            lock=device.lock,
        )
        self._transport = transport
        self._add(CAP_COMMON, COMMON_AT, COMMON_SIZE)
        self._add(CAP_ISR, ISR_AT, PART_SIZE)
        self._add(CAP_DEVICE, DEVICE_AT, PART_SIZE)
        self._add(CAP_NOTIFY, NOTIFY_AT, PART_SIZE, struct.pack("<I", NOTIFY_MULTIPLIER))
        # The guest chooses the register, the offset and the length of an access.
        writable = bytes(2) + b"\xff" + bytes(3) + b"\xff" * 12
        self._access = self._add(CAP_PCI, 0, 0, bytes(4), writable)
        self._data = range(self._access + _ACCESS_DATA, self._access + _ACCESS_DATA + 4)

    def _add(self, kind: int, offset: int, length: int, more: bytes = b"", writable: bytes = b"") -> int:
        body = _CAP.pack(_CAP_SIZE + len(more), kind, 0, 0, offset, length) + more
        return self.add_capability(CAP_VENDOR, body, writable)

    def _target(self, at: int, size: int) -> int | None:
        """Where an access of ``size`` bytes to the data at ``at`` of configuration space goes, if it is a good one."""
        config = self._state.config
        offset, length = struct.unpack_from("<II", config, self._access + _ACCESS_OFFSET)
        good = at == self._data.start and size == length and not offset % length and offset <= BAR_SIZE - length
        return offset if good and config[self._access + _ACCESS_BAR] == 0 else None

    def read_config(self, offset: int, size: int) -> int:
        """Reading the data of the access capability reads the device's registers (4.1.4.9.1)."""
        if offset in self._data:
            with self._lock:
                target = self._target(offset, size)
            if target is not None:
                return self._transport.read(target, size)
        return super().read_config(offset, size)

    def write_config(self, offset: int, size: int, value: int) -> None:
        """Writing the data of the access capability writes the device's registers."""
        with self._transport.device.guard():
            before = self.bus_master
            super().write_config(offset, size, value)
            target = self._target(offset, size) if offset in self._data else None
            if offset == COMMAND and self.bus_master and not before:
                self._transport.master_changed()
        if target is not None:
            self._transport.write(target, size, value)
