"""Virtio over memory-mapped registers, version 2 (VIRTIO 1.2, section 4.2). There is no legacy interface."""

from __future__ import annotations

from polyvisor.devices.virtio.transport import Transport
from polyvisor.engine.memory import BusError

WINDOW_SIZE = 0x1000

MAGIC = 0x74726976
VERSION = 2
VENDOR = 0x534C4F50  # "POLS"

# Registers (4.2.2, table 4.1).
MAGIC_VALUE = 0x000
VERSION_REGISTER = 0x004
DEVICE_ID = 0x008
VENDOR_ID = 0x00C
DEVICE_FEATURES = 0x010
DEVICE_FEATURES_SEL = 0x014
DRIVER_FEATURES = 0x020
DRIVER_FEATURES_SEL = 0x024
QUEUE_SEL = 0x030
QUEUE_NUM_MAX = 0x034
QUEUE_NUM = 0x038
QUEUE_READY = 0x044
QUEUE_NOTIFY = 0x050
INTERRUPT_STATUS = 0x060
INTERRUPT_ACK = 0x064
STATUS = 0x070
QUEUE_DESC_LOW = 0x080
QUEUE_DESC_HIGH = 0x084
QUEUE_DRIVER_LOW = 0x090
QUEUE_DRIVER_HIGH = 0x094
QUEUE_DEVICE_LOW = 0x0A0
QUEUE_DEVICE_HIGH = 0x0A4
SHM_LEN_LOW = 0x0B0
SHM_BASE_HIGH = 0x0BC
CONFIG_GENERATION = 0x0FC
CONFIG = 0x100

_U32 = 2**32 - 1
_ADDRESSES = {
    QUEUE_DESC_LOW: ("descriptors", 0),
    QUEUE_DESC_HIGH: ("descriptors", 32),
    QUEUE_DRIVER_LOW: ("driver", 0),
    QUEUE_DRIVER_HIGH: ("driver", 32),
    QUEUE_DEVICE_LOW: ("device", 0),
    QUEUE_DEVICE_HIGH: ("device", 32),
}


def _check(offset: int, size: int) -> None:
    if size not in (1, 2, 4, 8) or not 0 <= offset <= WINDOW_SIZE - size:
        raise BusError(offset, size)
    if offset < CONFIG and (size != 4 or offset % 4):
        raise BusError(offset, size)


class EmptySlot:
    """The register block of no device: DeviceID is 0, all else inert (4.2.2.2)."""

    def read(self, offset: int, size: int) -> int:
        """Raises BusError where a device's block would."""
        _check(offset, size)
        return {MAGIC_VALUE: MAGIC, VERSION_REGISTER: VERSION}.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        """Raises BusError where a device's block would."""
        _check(offset, size)


class VirtioMmio(Transport):
    """The register block of one device.

    Registers answer aligned accesses of 4 bytes, the configuration space any of 1, 2, 4 or 8; others raise BusError.
    Reserved registers read as 0 and ignore writes. The device's lock is held during every access, so the bus may
    call from any thread.
    """

    def read(self, offset: int, size: int) -> int:
        """Raises BusError as the class says."""
        _check(offset, size)
        with self.device.lock:
            if offset >= CONFIG:
                start = offset - CONFIG
                return int.from_bytes(self.device.config()[start : start + size], "little")
            return self._read_register(offset)

    def write(self, offset: int, size: int, value: int) -> None:
        """Raises BusError as the class says."""
        if offset == QUEUE_NOTIFY and size == 4:
            self.kick(value & _U32)
            return
        _check(offset, size)
        device = self.device
        with device.guard():
            if offset < CONFIG:
                self._write_register(offset, value & _U32)
            elif offset - CONFIG + size <= len(device.config()):
                device.write_config(offset - CONFIG, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def _read_register(self, offset: int) -> int:
        state = self._state
        if offset == INTERRUPT_STATUS:
            return state.interrupt_status
        if offset == STATUS:
            return state.status
        if offset == MAGIC_VALUE:
            return MAGIC
        if offset == VERSION_REGISTER:
            return VERSION
        if offset == DEVICE_ID:
            return self.device.device_id
        if offset == VENDOR_ID:
            return VENDOR
        if offset == DEVICE_FEATURES:
            return self.offered_word()
        if offset == QUEUE_NUM_MAX:
            queue = self.selected()
            return queue.max_size if queue else 0
        if offset == QUEUE_READY:
            queue = self.selected()
            return queue.state.ready if queue else 0
        if offset == CONFIG_GENERATION:
            return state.config_generation
        if SHM_LEN_LOW <= offset <= SHM_BASE_HIGH:
            return _U32  # there are no shared memory regions
        return 0

    def _write_register(self, offset: int, value: int) -> None:
        state = self._state
        queue = self.selected()
        if offset == INTERRUPT_ACK:
            self.acknowledge(value)
        elif offset == STATUS:
            self.write_status(value)
        elif offset == DEVICE_FEATURES_SEL:
            state.device_features_sel = value
        elif offset == DRIVER_FEATURES_SEL:
            state.driver_features_sel = value
        elif offset == DRIVER_FEATURES:
            self.accept_word(value)
        elif offset == QUEUE_SEL:
            state.queue_sel = value
        elif offset == QUEUE_READY and queue:
            if not value & 1:
                queue.disable()
            elif not queue.state.ready:
                queue.enable()
        elif offset == QUEUE_NUM and queue and not queue.state.ready:
            queue.state.size = value
        elif offset in _ADDRESSES:
            self.set_address(*_ADDRESSES[offset], value)
