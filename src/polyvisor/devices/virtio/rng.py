"""The entropy device (VIRTIO 1.2, section 5.4)."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

from polyvisor.dataclass import dataclass
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, length_of, scatter

QUEUE_SIZE = 64
# A buffer need not be filled (5.4.6.2): no more than this many bytes are given at once.
MAX_BYTES = 65536
_BLOCK = 64  # bytes of a digest


class SeededEntropy:
    """A source that gives the same bytes for the same ``seed``, from ``position`` on: for runs that can be repeated."""

    def __init__(self, seed: int, position: int = 0) -> None:
        self.seed = seed
        self.position = position
        """How many bytes it has given."""

    def __call__(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        first, last = self.position // _BLOCK, -(-(self.position + count) // _BLOCK)
        blocks = b"".join(hashlib.sha512(f"{self.seed} {number}".encode()).digest() for number in range(first, last))
        start = self.position - first * _BLOCK
        self.position += count
        return blocks[start : start + count]


@dataclass
class RngState:
    """The device keeps nothing."""


class RngDevice(VirtioDevice):
    """Fills buffers with bytes from ``source(count)``, which gives ``count`` bytes; it is called on any thread."""

    device_id = 4

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__(0, (QUEUE_SIZE,), RngState())
        self._source = source

    def notify(self, index: int) -> None:
        """Fill all buffers. Raises QueueError."""
        self.serve(index, self._fill)

    def _fill(self, chain: Chain) -> int:
        count = min(length_of(chain.writable), MAX_BYTES)
        return scatter(self.link.memory, chain.writable, self._source(count)[:count]) if count else 0
