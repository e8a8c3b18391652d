"""What all virtio devices have in common, whatever bus they are on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polyvisor.engine.memory import Memory

from .queue import Chain, Queue, QueueError

# Reserved feature bits (6)
INDIRECT_DESC, EVENT_IDX, VERSION_1 = 28, 29, 32


@dataclass
class EmptyState:
    """A device with no state of its own."""


class VirtioDevice:
    """A device: its number, features, queues and configuration; :meth:`handle` serves one request.

    ``attach`` gives it memory and a way to tell its transport of used buffers.
    """

    device_id = 0
    queue_count = 1
    features = 0

    def __init__(self) -> None:
        self.state: Any = EmptyState()
        self.queues: list[Queue] = []
        self.memory: Memory
        self._interrupt: Callable[[], None] = lambda: None

    def attach(self, memory: Memory, interrupt: Callable[[], None]) -> None:
        """Put it on a transport; ``interrupt()`` says that buffers were used."""
        self.memory = memory
        self._interrupt = interrupt
        self.queues = [Queue(memory) for _ in range(self.queue_count)]

    @property
    def config(self) -> bytes:
        """The device-specific configuration space."""
        return b""

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver wrote to the configuration space; most devices have nothing writable."""

    def negotiated(self, features: int) -> None:
        """The driver accepted these features."""
        for queue in self.queues:
            queue.state.event_index = bool(features >> EVENT_IDX & 1)
            queue.state.indirect = bool(features >> INDIRECT_DESC & 1)

    def reset(self) -> None:
        """Back to the state before any driver."""
        for queue in self.queues:
            queue.reset()

    def notify(self, index: int) -> None:
        """The driver made buffers available. Raises QueueError if it broke the rules."""
        queue = self.queues[index]
        wanted = False
        try:
            while (chain := queue.pop()) is not None:
                wanted |= queue.push(chain, self.handle(index, chain))
        finally:
            if wanted:
                self._interrupt()

    def handle(self, index: int, chain: Chain) -> int:
        """Serve one request of queue ``index``; gives how many bytes were written to its buffers."""
        raise NotImplementedError

    def close(self) -> None:
        """Give back what it holds on the host."""


__all__ = ["EVENT_IDX", "INDIRECT_DESC", "VERSION_1", "Chain", "QueueError", "VirtioDevice"]
