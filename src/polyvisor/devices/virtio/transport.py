"""What the transports of virtio share: device status, features, queues, interrupts (VIRTIO 1.2, chapters 2 and 3).

A transport gives the driver registers and passes on what they mean to :class:`Transport`.
"""

from __future__ import annotations

from typing import Any

from polyvisor.dataclass import dataclass, field
from polyvisor.devices.lines import Line
from polyvisor.devices.virtio.device import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    F_RING_PACKED,
    F_VERSION_1,
    VirtioDevice,
)
from polyvisor.devices.virtio.packed import PackedQueue
from polyvisor.devices.virtio.queue import QueueError, QueueState, VirtQueue
from polyvisor.devices.virtio.split import SplitQueue
from polyvisor.engine.memory import Memory

# Bits of the interrupt status (4.1.4.5, 4.2.2).
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
    bus: Any = None
    """What else the transport keeps."""


class Transport:
    """Connects ``device`` to a driver; ``line`` is asserted while the interrupt status is not 0.

    All methods but :meth:`kick` are called with the device's lock held. ``packed``: offer VIRTIO_F_RING_PACKED.
    """

    def __init__(self, memory: Memory, line: Line, device: VirtioDevice, packed: bool = False) -> None:
        """Raises ValueError if ``device`` is connected elsewhere or has impossible queue sizes."""
        self.device = device
        self._memory = memory
        self._line = line
        self._queues: list[VirtQueue] = [SplitQueue(memory, size) for size in device.queue_sizes]
        self._state = TransportState()
        self.offered = device.features | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
        if packed:
            self.offered |= F_RING_PACKED
        device.connect(self)

    @property
    def state(self) -> TransportState:
        """All that the guest can change."""
        self._state.queues = [queue.state for queue in self._queues]
        self._state.device = self.device.state
        self._state.bus = self._bus_state()
        return self._state

    @state.setter
    def state(self, state: TransportState) -> None:
        """Go on from ``state``.

        Raises ValueError if it is of a device with another number of queues or other features, QueueError if its rings
        are not in RAM.
        """
        if state.status & FEATURES_OK and state.driver_features & ~self.offered:
            raise ValueError("state of a device with features that this one does not offer")
        if len(state.queues) != len(self._queues):
            raise ValueError(f"state of {len(state.queues)} queues for a device with {len(self._queues)}")
        self._state = state
        for index, queue_state in enumerate(state.queues):
            self._choose_format(index, bool(queue_state.packed))
            self._queues[index].state = queue_state
        self.device.state = state.device
        self._restore_bus(state.bus)

    def _bus_state(self) -> Any:
        """What else there is to be kept of the transport."""
        return None

    def _restore_bus(self, state: Any) -> None:
        """Go on from what :meth:`_bus_state` gave."""

    def close(self) -> None:
        """Let go of guest memory."""
        with self.device.lock:
            for queue in self._queues:
                queue.disable()

    # What the device asks for

    @property
    def memory(self) -> Memory:
        """Guest memory."""
        return self._memory

    @property
    def queues(self) -> list[VirtQueue]:
        """The device's queues; a new negotiation may put other objects in their places."""
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

    # What the driver asks for

    def notify(self, index: int) -> None:
        """The driver has buffers in queue ``index``; ignored unless there is one to serve. Raises QueueError."""
        if self.running and index < len(self._queues) and self._queues[index].state.ready:
            self.device.notify(index)

    def kick(self, index: int) -> None:
        """Take the lock and :meth:`notify`: as in ``device.guard()``, but cheaper, as each request does it."""
        device = self.device
        with device.lock:
            try:
                self.notify(index)
            except QueueError:
                self.fail()
        device.unlocked()

    def acknowledge(self, bits: int) -> None:
        """Clear ``bits`` of the interrupt status, and serve what waits for that. Raises QueueError."""
        state = self._state
        self._set_interrupt(state.interrupt_status & ~bits)
        if bits & INTERRUPT_USED and state.resume:
            resume, state.resume = state.resume, 0
            for index in range(len(self._queues)):
                if resume >> index & 1:
                    self.notify(index)

    def selected(self) -> VirtQueue | None:
        """The queue that the queue selector names, if there is one."""
        index = self._state.queue_sel
        return self._queues[index] if index < len(self._queues) else None

    def set_address(self, name: str, shift: int, value: int) -> None:
        """Write 32 bits of an address of the selected queue; ``name`` is that of a member of QueueState."""
        queue = self.selected()
        if queue is not None and not queue.state.ready:
            kept = getattr(queue.state, name) & ~(_U32 << shift)
            setattr(queue.state, name, kept | value << shift)

    def offered_word(self) -> int:
        """The selected 32 bits of the offered features."""
        word = self._state.device_features_sel
        return self.offered >> 32 * word & _U32 if word < 2 else 0

    def accept_word(self, value: int) -> None:
        """The driver writes the selected 32 bits of the features it accepts; ignored once they are final."""
        state = self._state
        word = state.driver_features_sel
        if state.status & FEATURES_OK:
            return
        if word < 2:
            state.driver_features = state.driver_features & ~(_U32 << 32 * word) | value << 32 * word
        elif value:
            # Features nobody offers: keep something that FEATURES_OK will refuse.
            state.driver_features |= 1 << 63

    def write_status(self, value: int) -> None:
        """The driver only ever adds bits, or resets (2.1.1, 3.1.1)."""
        state = self._state
        if value == 0:
            self._reset()
            return
        state.status |= value & (ACKNOWLEDGE | DRIVER | FAILED)
        if value & FEATURES_OK and not state.status & FEATURES_OK:
            features = state.driver_features
            if features & F_VERSION_1 and not features & ~self.offered:
                state.status |= FEATURES_OK
                self._apply_features(features)
        if value & DRIVER_OK and state.status & FEATURES_OK and not state.status & DRIVER_OK:
            state.status |= DRIVER_OK
            if state.status & DEVICE_NEEDS_RESET:
                self.fail()

    def _apply_features(self, features: int) -> None:
        packed = bool(features & F_RING_PACKED)
        for index in range(len(self._queues)):
            self._choose_format(index, packed)
            state = self._queues[index].state
            state.packed = int(packed)
            state.event_idx = int(bool(features & F_EVENT_IDX))
            state.indirect = int(bool(features & F_INDIRECT_DESC))

    def _choose_format(self, index: int, packed: bool) -> None:
        """Let queue ``index`` be of that format; a new one starts as after a reset."""
        wanted = PackedQueue if packed else SplitQueue
        queue = self._queues[index]
        if type(queue) is not wanted:
            queue.disable()
            self._queues[index] = wanted(self._memory, queue.max_size)

    def _reset(self) -> None:
        self._set_interrupt(0)
        self._state = TransportState(config_generation=self._state.config_generation)
        for index in range(len(self._queues)):
            self._choose_format(index, False)
            self._queues[index].reset()
        self.device.reset()
