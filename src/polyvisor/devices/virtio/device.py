"""What all virtio devices have in common, whatever the transport (VIRTIO 1.2, chapter 2)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from polyvisor.devices.virtio.queue import Chain, QueueError, VirtQueue
from polyvisor.engine.memory import Memory

if TYPE_CHECKING:
    from polyvisor.engine.outside import Outside, Plain, Source

# Device-independent features, as bits (chapter 6).
F_INDIRECT_DESC = 1 << 28
F_EVENT_IDX = 1 << 29
F_VERSION_1 = 1 << 32
F_RING_PACKED = 1 << 34

# Buffers taken at one go are at most this many times the queue size.
_TURN = 4


class Link(Protocol):
    """What a device asks of the transport it is connected to; to be called with the device's lock held."""

    @property
    def memory(self) -> Memory:
        """The guest memory the queues and buffers are in."""
        ...

    @property
    def queues(self) -> Sequence[VirtQueue]:
        """One for each of the device's ``queue_sizes``."""
        ...

    @property
    def features(self) -> int:
        """The negotiated features; 0 before FEATURES_OK."""
        ...

    @property
    def running(self) -> bool:
        """Whether buffers may be taken: DRIVER_OK is set and no reset is needed."""
        ...

    def interrupt(self) -> None:
        """Send a used buffer notification."""
        ...

    def resume_later(self, index: int) -> None:
        """Interrupt the driver, and notify the device of queue ``index`` again when the driver acknowledges that."""
        ...

    def config_changed(self) -> None:
        """The configuration space changed: count its generation and notify the driver (2.5, 2.3)."""
        ...

    def fail(self) -> None:
        """Set DEVICE_NEEDS_RESET (2.1.2) and notify the driver."""
        ...


class Guard:
    """What :meth:`VirtioDevice.guard` gives. Accesses of registers go through it, so it is not a generator."""

    def __init__(self, device: VirtioDevice) -> None:
        self._device = device
        # The threads inside, as often as each is: who waits there for a condition lets others in.
        self._inside: list[int] = []

    def __enter__(self) -> None:
        self._device.lock.acquire()
        self._inside.append(get_ident())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        device = self._device
        try:
            if error is not None:
                if not isinstance(error, QueueError):
                    return False
                device.link.fail()
        finally:
            me = get_ident()
            self._inside.remove(me)
            outermost = me not in self._inside
            device.lock.release()
        if outermost:
            device.unlocked()
        return True


class VirtioDevice:
    """Base of the devices. A subclass sets ``device_id`` and ``state``, and overrides what follows :meth:`notify`.

    All calls but :meth:`guard` and :meth:`unlocked` are made with ``lock`` held. What the guest can change lives in
    ``state``, a dataclass.
    """

    device_id: ClassVar[int]
    """Section 5's number of the device type."""

    source: Source | None = None
    """In virtual time: by which the outside gets in."""

    def __init__(self, features: int, queue_sizes: Sequence[int], state: Any) -> None:
        """``features``: the type's own feature bits; ``queue_sizes``: powers of two up to 32768."""
        self.features = features
        self.queue_sizes = tuple(queue_sizes)
        self.state = state
        self.lock = threading.RLock()
        self._link: Link | None = None
        self._guard = Guard(self)

    def connect(self, link: Link) -> None:
        """Called once, by the transport. Raises ValueError if the device is connected already."""
        if self._link is not None:
            raise ValueError("the device is connected already")
        self._link = link

    def enter_by(self, outside: Outside, name: str) -> None:
        """Called once, by the board, if it is in virtual time: the outside gets in by a source called ``name``."""
        self.source = outside.source(name, self.enter)

    def enter(self, operation: str, arguments: Sequence[Plain]) -> None:
        """Do what was posted to ``source``."""
        raise ValueError(f"{type(self).__name__} has no operation {operation!r}")

    @property
    def link(self) -> Link:
        """The transport. Raises ValueError before the device is connected."""
        if self._link is None:
            raise ValueError("the device is not connected")
        return self._link

    def notify(self, index: int) -> None:
        """The driver says that queue ``index``, which is enabled, has buffers. May raise QueueError."""

    def config(self) -> bytes:
        """The configuration space (2.5) now; beyond it reads as 0."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote ``data`` at ``offset`` of the configuration space, all inside it."""

    def reset(self) -> None:
        """Return to the state after power-on (2.1)."""

    def close(self) -> None:
        """Release what the host gave; the device must not be used afterwards."""

    # Snapshots: ``state`` is saved while the machine stands still, and given to another device like this one.

    def obstacle(self) -> str | None:
        """Why the device's state cannot be saved now, as a line for the user; None if it can."""
        return None

    def is_settled(self) -> bool:
        """Whether no thread is in the middle of what is not in ``state``; the lock is given back until it is so."""
        return True

    def restored(self) -> None:
        """``state`` was replaced: what follows from it is to be made anew. Raises ValueError if it does not fit."""

    def reconnected(self) -> None:
        """After :meth:`restored`, when the host's side of the device is not the one that the driver dealt with.

        The driver may have to be told. May raise QueueError.
        """

    def guard(self) -> Guard:
        """A context that holds the lock; a QueueError inside makes the device need a reset instead of going on."""
        return self._guard

    def unlocked(self) -> None:
        """Called when :meth:`guard` has given the lock back: the place to call what may wait for other threads."""

    def serve(
        self, index: int, handle: Callable[[Chain], int | None], wanted: Callable[[], bool] | None = None
    ) -> None:
        """Give each available buffer of queue ``index`` to ``handle``, which returns how many bytes it wrote.

        With None it keeps the buffer, to ``push`` it later. While ``wanted()`` is false no buffer is taken, nor is the
        driver asked to notify: whoever makes it true calls again.

        The driver is interrupted once, at the end, if it wants to be. It can add buffers meanwhile, even by letting
        the device write to its own rings: so after a few times the queue's size the rest waits until the driver has
        acknowledged an interrupt. Raises QueueError.
        """
        link = self.link
        queue = link.queues[index]
        pop, push = queue.pop, queue.push
        budget = _TURN * queue.state.size
        try:
            more = True
            while more and budget:
                queue.suppress_notifications(False)
                ready = True
                while budget and (ready := wanted is None or wanted()) and (chain := pop()) is not None:
                    written = handle(chain)
                    if written is not None:
                        push(chain, written, False)
                    budget -= 1
                more = ready and queue.request_notification(False)
        finally:
            queue.announce()
            if queue.should_interrupt():
                link.interrupt()
        if more:
            link.resume_later(index)
