"""Virtio over memory-mapped registers, version 2 (VIRTIO 1.2, section 4.2). There is no legacy interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from polyvisor.devices.lines import Line
from polyvisor.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, VirtioDevice
from polyvisor.devices.virtio.queue import QueueState, VirtQueue
from polyvisor.engine.memory import BusError, Memory

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

INTERRUPT_USED = 1
INTERRUPT_CONFIG = 2

# Device status bits (2.1).
ACKNOWLEDGE = 1
DRIVER = 2
DRIVER_OK = 4
FEATURES_OK = 8
DEVICE_NEEDS_RESET = 64
FAILED = 128

_U32 = 2**32 - 1
_ADDRESSES = {
    QUEUE_DESC_LOW: ("descriptors", 0),
    QUEUE_DESC_HIGH: ("descriptors", 32),
    QUEUE_DRIVER_LOW: ("driver", 0),
    QUEUE_DRIVER_HIGH: ("driver", 32),
    QUEUE_DEVICE_LOW: ("device", 0),
    QUEUE_DEVICE_HIGH: ("device", 32),
}


@dataclass
class TransportState:
    """The registers, the queues and the device's own state."""

    status: int = 0
    device_features_sel: int = 0
    driver_features_sel: int = 0
    driver_features: int = 0
    """64 bits; final once status has FEATURES_OK."""
    queue_sel: int = 0
    interrupt_status: int = 0
    config_generation: int = 0
    resume: int = 0
    """Bit ``n``: queue ``n`` has buffers left to be served at the next acknowledgement."""
    queues: list[QueueState] = field(default_factory=list)
    device: Any = None
    """The ``state`` of the device."""


class VirtioMmio:
    """The register block of one device, or of an empty slot (``device`` None: DeviceID is 0, all else inert).

    Registers answer aligned accesses of 4 bytes, the configuration space any of 1, 2, 4 or 8; others raise BusError.
    Reserved registers read as 0 and ignore writes. ``line`` is asserted while InterruptStatus is not 0.
    The device's lock is held during every access, so may be called from any thread.
    """

    def __init__(self, memory: Memory, line: Line, device: VirtioDevice | None = None) -> None:
        """Raises ValueError if ``device`` is connected elsewhere or has impossible queue sizes."""
        self._memory = memory
        self._line = line
        self._device = device
        self._queues = [VirtQueue(memory, size) for size in device.queue_sizes] if device else []
        self._state = TransportState()
        if device:
            device.connect(self)

    @property
    def state(self) -> TransportState:
        """All that the guest can change."""
        self._state.queues = [queue.state for queue in self._queues]
        self._state.device = self._device.state if self._device else None
        return self._state

    @state.setter
    def state(self, state: TransportState) -> None:
        """Go on from ``state``. Raises ValueError if it is of a device with another number of queues."""
        if len(state.queues) != len(self._queues):
            raise ValueError(f"state of {len(state.queues)} queues for a device with {len(self._queues)}")
        self._state = state
        for queue, queue_state in zip(self._queues, state.queues, strict=True):
            queue.state = queue_state
        if self._device:
            self._device.state = state.device

    # What the device asks for

    @property
    def memory(self) -> Memory:
        """Guest memory."""
        return self._memory

    @property
    def queues(self) -> list[VirtQueue]:
        """The device's queues."""
        return self._queues

    @property
    def features(self) -> int:
        """The negotiated features; 0 before FEATURES_OK."""
        return self._state.driver_features if self._state.status & FEATURES_OK else 0

    @property
    def running(self) -> bool:
        """Whether buffers may be taken."""
        return self._state.status & (DRIVER_OK | DEVICE_NEEDS_RESET) == DRIVER_OK

    def interrupt(self) -> None:
        """Send a used buffer notification."""
        self._set_interrupt(self._state.interrupt_status | INTERRUPT_USED)

    def resume_later(self, index: int) -> None:
        """Interrupt now and serve queue ``index`` again when that is acknowledged."""
        self._state.resume |= 1 << index
        self.interrupt()

    def config_changed(self) -> None:
        """Count the generation; the driver is told once it runs."""
        self._state.config_generation = (self._state.config_generation + 1) & _U32
        if self._state.status & DRIVER_OK:
            self._set_interrupt(self._state.interrupt_status | INTERRUPT_CONFIG)

    def fail(self) -> None:
        """Set DEVICE_NEEDS_RESET; the driver is told if it runs, else when it says DRIVER_OK (2.1.2)."""
        self._state.status |= DEVICE_NEEDS_RESET
        self._state.resume = 0
        if self._state.status & DRIVER_OK:
            self._set_interrupt(self._state.interrupt_status | INTERRUPT_CONFIG)

    def _set_interrupt(self, status: int) -> None:
        before = self._state.interrupt_status
        self._state.interrupt_status = status
        if bool(before) != bool(status):
            self._line.set(bool(status))

    # The bus

    def read(self, offset: int, size: int) -> int:
        """Raises BusError as the class says."""
        self._check(offset, size)
        device = self._device
        if device is None:
            return {MAGIC_VALUE: MAGIC, VERSION_REGISTER: VERSION}.get(offset, 0)
        with device.lock:
            if offset >= CONFIG:
                start = offset - CONFIG
                return int.from_bytes(device.config()[start : start + size], "little")
            return self._read_register(device, offset)

    def write(self, offset: int, size: int, value: int) -> None:
        """Raises BusError as the class says."""
        self._check(offset, size)
        device = self._device
        if device is None:
            return
        with device.guard():
            if offset < CONFIG:
                self._write_register(device, offset, value & _U32)
            elif offset - CONFIG + size <= len(device.config()):
                device.write_config(offset - CONFIG, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))
        device.unlocked()

    @staticmethod
    def _check(offset: int, size: int) -> None:
        if size not in (1, 2, 4, 8) or not 0 <= offset <= WINDOW_SIZE - size:
            raise BusError(offset, size)
        if offset < CONFIG and (size != 4 or offset % 4):
            raise BusError(offset, size)

    def _offered(self, device: VirtioDevice) -> int:
        return device.features | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC

    def _selected(self) -> VirtQueue | None:
        index = self._state.queue_sel
        return self._queues[index] if index < len(self._queues) else None

    def _read_register(self, device: VirtioDevice, offset: int) -> int:
        state = self._state
        queue = self._selected()
        if offset == INTERRUPT_STATUS:
            return state.interrupt_status
        if offset == STATUS:
            return state.status
        if offset == MAGIC_VALUE:
            return MAGIC
        if offset == VERSION_REGISTER:
            return VERSION
        if offset == DEVICE_ID:
            return device.device_id
        if offset == VENDOR_ID:
            return VENDOR
        if offset == DEVICE_FEATURES:
            word = state.device_features_sel
            return self._offered(device) >> 32 * word & _U32 if word < 2 else 0
        if offset == QUEUE_NUM_MAX:
            return queue.max_size if queue else 0
        if offset == QUEUE_READY:
            return queue.state.ready if queue else 0
        if offset == CONFIG_GENERATION:
            return state.config_generation
        if SHM_LEN_LOW <= offset <= SHM_BASE_HIGH:
            return _U32  # there are no shared memory regions
        return 0

    def _write_register(self, device: VirtioDevice, offset: int, value: int) -> None:
        state = self._state
        queue = self._selected()
        if offset == QUEUE_NOTIFY:
            self._notify(device, value)
        elif offset == INTERRUPT_ACK:
            self._set_interrupt(state.interrupt_status & ~value)
            if value & INTERRUPT_USED and state.resume:
                resume, state.resume = state.resume, 0
                for index in range(len(self._queues)):
                    if resume >> index & 1:
                        self._notify(device, index)
        elif offset == STATUS:
            self._write_status(device, value)
        elif offset == DEVICE_FEATURES_SEL:
            state.device_features_sel = value
        elif offset == DRIVER_FEATURES_SEL:
            state.driver_features_sel = value
        elif offset == DRIVER_FEATURES:
            self._write_features(value)
        elif offset == QUEUE_SEL:
            state.queue_sel = value
        elif offset == QUEUE_READY and queue:
            if not value & 1:
                queue.disable()
            elif not queue.state.ready:
                queue.enable()
        elif offset == QUEUE_NUM and queue and not queue.state.ready:
            queue.state.size = value
        elif offset in _ADDRESSES and queue and not queue.state.ready:
            name, shift = _ADDRESSES[offset]
            kept = getattr(queue.state, name) & ~(_U32 << shift)
            setattr(queue.state, name, kept | value << shift)

    def _notify(self, device: VirtioDevice, index: int) -> None:
        if self.running and index < len(self._queues) and self._queues[index].state.ready:
            device.notify(index)

    def _write_features(self, value: int) -> None:
        state = self._state
        word = state.driver_features_sel
        if state.status & FEATURES_OK:
            return
        if word < 2:
            state.driver_features = state.driver_features & ~(_U32 << 32 * word) | value << 32 * word
        elif value:
            # Features nobody offers: keep something that FEATURES_OK will refuse.
            state.driver_features |= 1 << 63

    def _write_status(self, device: VirtioDevice, value: int) -> None:
        """The driver only ever adds bits, or resets (2.1.1, 3.1.1)."""
        state = self._state
        if value == 0:
            self._reset(device)
            return
        state.status |= value & (ACKNOWLEDGE | DRIVER | FAILED)
        if value & FEATURES_OK and not state.status & FEATURES_OK:
            features = state.driver_features
            if features & F_VERSION_1 and not features & ~self._offered(device):
                state.status |= FEATURES_OK
        if value & DRIVER_OK and state.status & FEATURES_OK and not state.status & DRIVER_OK:
            for queue in self._queues:
                queue.state.event_idx = int(bool(state.driver_features & F_EVENT_IDX))
                queue.state.indirect = int(bool(state.driver_features & F_INDIRECT_DESC))
            state.status |= DRIVER_OK
            if state.status & DEVICE_NEEDS_RESET:
                self.fail()

    def _reset(self, device: VirtioDevice) -> None:
        self._set_interrupt(0)
        self._state = TransportState(config_generation=self._state.config_generation)
        for queue in self._queues:
            queue.reset()
        device.reset()
