"""What a grammar of a virtio device's requests is, for `device_fuzz`.

A new device is a subclass of `Grammar` with ``name``, `device`, `request` and `works`; the rest where it helps to reach
more of the device. Contents are a little wrong in the end: that is `device_fuzz`'s part.
"""

from __future__ import annotations

import random
from typing import Any, ClassVar

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain

from .virtio_guest import DATA, RINGS, TABLES, Guest

EDGES = (
    *(0, 1, 2, 3, 4, 7, 8, 15, 16, 64, 127, 128, 255, 256, 511, 512, 4096, 0x7FFF, 0x8000, 0xFFFF, 0x10000),
    *(0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**32, 2**63 - 1, 2**63, 2**64 - 1, DATA, DATA + 64, TABLES, RINGS),
)

Request = tuple[int, list[bytes], list[int]]
"""A queue, the contents of what the device reads, and the lengths of what it writes."""


class Grammar:
    """One device type."""

    name: ClassVar[str]
    fields: ClassVar[tuple[tuple[int, int], ...]] = ()
    """Offset and size of fields of the configuration space."""
    def begin(self, rng: random.Random) -> None:
        self.rng = rng
        self.random = rng.random

    def pick(self, values: Any) -> Any:
        return values[int(self.random() * len(values))]

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def device(self) -> VirtioDevice:
        """A device to attack."""
        raise NotImplementedError

    def request(self, guest: Guest) -> Request:
        """A request that makes sense."""
        raise NotImplementedError

    def works(self, guest: Guest) -> None:
        """AssertionError unless plain requests succeed; the driver has just started, with all features."""
        raise NotImplementedError

    def started(self, guest: Guest, polite: bool) -> None:
        """The driver has started; if ``polite``, do what drivers do first. The queues may be anywhere."""

    def host(self) -> None:
        """Something that the host does with the device."""

    def popped(self, queue: int, chain: Chain) -> None:
        """The device takes this buffer."""

    def may_write(self, address: int, length: int) -> bool:
        """Whether the device may change memory where no buffer to write to is, because it was told in another way."""
        return False

    def check(self) -> None:
        """AssertionError if something outside the device is not as it should be."""

    def field(self) -> tuple[int, int] | None:
        """Offset and size of a field of the configuration space."""
        return self.pick(self.fields) if self.fields else None

    def end(self) -> None:
        """The device was closed."""
