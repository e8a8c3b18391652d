"""The virtio MMIO transport, version 2 (Virtual I/O Device 1.2, section 4.2)."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from polyvisor.devices.lines import Line
from polyvisor.engine.memory import BusError, Memory

from .device import EVENT_IDX, INDIRECT_DESC, VERSION_1, VirtioDevice
from .queue import MAX_SIZE, Queue, QueueError

MAGIC, VERSION, VENDOR = 0x74726976, 2, 0x76796C70

# 4.2.2, table 4.1
MAGIC_VALUE, VERSION_REGISTER, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL, DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x010, 0x014, 0x020, 0x024
QUEUE_SEL, QUEUE_SIZE_MAX, QUEUE_SIZE, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0
CONFIG_GENERATION, CONFIG = 0x0FC, 0x100

# Device status (2.1)
FEATURES_OK, DRIVER_OK, NEEDS_RESET = 8, 4, 64
USED_BUFFER, CONFIGURATION = 1, 2  # in INTERRUPT_STATUS

_COMMON_FEATURES = 1 << INDIRECT_DESC | 1 << EVENT_IDX | 1 << VERSION_1
_AREAS = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "available", QUEUE_DEVICE: "used"}


@dataclass
class MmioState:
    """The registers of the transport."""

    status: int = 0
    device_features_sel: int = 0
    driver_features_sel: int = 0
    driver_features: int = 0
    queue_sel: int = 0
    interrupt_status: int = 0


class VirtioMmio:
    """A slot with a device, or an empty one (device ID 0). One lock serves all harts."""

    def __init__(self, memory: Memory, line: Line, device: VirtioDevice | None) -> None:
        self.device = device
        self.state = MmioState()
        self._line = line
        self._lock = threading.RLock()
        if device is not None:
            device.attach(memory, self._used)

    @property
    def features(self) -> int:
        """What the device offers."""
        return _COMMON_FEATURES | self.device.features if self.device is not None else 0

    def _raise(self, cause: int) -> None:
        self.state.interrupt_status |= cause
        self._line.set(True)

    def _used(self) -> None:
        with self._lock:
            self._raise(USED_BUFFER)

    def _broken(self) -> None:
        """The driver broke a rule: ask for a reset (2.1.2)."""
        self.state.status |= NEEDS_RESET
        if self.state.status & DRIVER_OK:
            self._raise(CONFIGURATION)

    def _queue(self) -> Queue | None:
        if self.device is None or self.state.queue_sel >= len(self.device.queues):
            return None
        return self.device.queues[self.state.queue_sel]

    # The bus

    def read(self, offset: int, size: int) -> int:
        """Registers take 4-byte reads; the configuration space any size. Raises BusError for others."""
        with self._lock:
            if offset >= CONFIG:
                config = self.device.config if self.device is not None else b""
                at = offset - CONFIG
                return int.from_bytes(config[at : at + size], "little")
            if size != 4 or offset % 4:
                raise BusError(offset, size)
            return self._read_register(offset)

    def _read_register(self, offset: int) -> int:
        state, queue = self.state, self._queue()
        match offset:
            case 0x000:
                return MAGIC
            case 0x004:
                return VERSION
            case 0x008:
                return self.device.device_id if self.device is not None else 0
            case 0x00C:
                return VENDOR
            case 0x010:
                if state.device_features_sel > 1:
                    return 0
                return self.features >> (32 * state.device_features_sel) & 0xFFFF_FFFF
            case 0x034:
                return MAX_SIZE if queue is not None else 0
            case 0x044:
                return int(queue.state.ready) if queue is not None else 0
            case 0x060:
                return state.interrupt_status
            case 0x070:
                return state.status
            case 0x0B0 | 0x0B4 | 0x0B8 | 0x0BC:
                return 0xFFFF_FFFF  # shared memory: there is none, which a length of all ones says
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """Registers take 4-byte writes; the configuration space any size. Raises BusError for others."""
        with self._lock:
            if self.device is None:
                return
            if offset >= CONFIG:
                self.device.write_config(offset - CONFIG, value.to_bytes(size, "little"))
                return
            if size != 4 or offset % 4:
                raise BusError(offset, size)
            try:
                self._write_register(self.device, offset, value)
            except QueueError:
                self._broken()

    def _write_register(self, device: VirtioDevice, offset: int, value: int) -> None:
        state, queue = self.state, self._queue()
        match offset:
            case 0x014:
                state.device_features_sel = value
            case 0x020:
                if state.driver_features_sel < 2 and not state.status & FEATURES_OK:
                    shift = 32 * state.driver_features_sel
                    state.driver_features = (state.driver_features & ~(0xFFFF_FFFF << shift)) | value << shift
            case 0x024:
                state.driver_features_sel = value
            case 0x030:
                state.queue_sel = value
            case 0x038 if queue is not None and not queue.state.ready:
                queue.state.size = value
            case 0x044 if queue is not None:
                if value & 1 and not queue.state.ready:
                    queue.enable()
                elif not value & 1:
                    queue.state.ready = False
            case 0x050:
                if value < len(device.queues) and state.status & DRIVER_OK and not state.status & NEEDS_RESET:
                    device.notify(value)
            case 0x064:
                state.interrupt_status &= ~value
                if not state.interrupt_status:
                    self._line.set(False)
            case 0x070:
                self._set_status(device, value)
            case 0x080 | 0x084 | 0x090 | 0x094 | 0x0A0 | 0x0A4 if queue is not None and not queue.state.ready:
                name, high = _AREAS[offset & ~4], offset & 4
                old = getattr(queue.state, name)
                new = (old & 0xFFFF_FFFF) | value << 32 if high else (old & ~0xFFFF_FFFF) | value
                setattr(queue.state, name, new)

    def _set_status(self, device: VirtioDevice, value: int) -> None:
        state = self.state
        if value == 0:
            device.reset()
            self.state = MmioState(queue_sel=state.queue_sel)
            self._line.set(False)
            return
        if value & FEATURES_OK and not state.status & FEATURES_OK:
            accepted = state.driver_features
            if accepted & ~self.features or not accepted >> VERSION_1 & 1:
                value &= ~FEATURES_OK  # 2.2.2: the driver sees that it was refused
            else:
                device.negotiated(accepted)
        state.status = (value & 0xFF) | (state.status & NEEDS_RESET)
