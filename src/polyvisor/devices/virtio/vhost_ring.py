"""Shadow rings: split virtqueues (VIRTIO 1.2, section 2.7) in memory of ours, seen from the driver's side.

A back end never sees the guest's rings, nor the guest those of the back end. Buffers that were taken from the guest and
checked are described anew in a shadow ring, whose descriptors point into guest memory. Only the used ring is read
back, and each of its entries is checked.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
from dataclasses import dataclass

from polyvisor.devices.virtio.queue import (
    DESC_F_NEXT,
    DESC_F_WRITE,
    DESCRIPTOR_SIZE,
    ORDERED_HOST,
    Chain,
    length_of,
)
from polyvisor.devices.virtio.vhost_messages import VhostUserError
from polyvisor.engine.memory import PAGE_SIZE

_descriptor = struct.Struct("<QIHH").pack_into


def ring_bytes(size: int) -> int:
    """Bytes that a ring of ``size`` entries takes: whole pages."""
    return -(-(DESCRIPTOR_SIZE * size + 6 + 2 * size + 2 + 6 + 8 * size) // PAGE_SIZE) * PAGE_SIZE


class ShadowMemory:
    """``size`` bytes in a memfd that the back end can map but not shorten."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.fd = os.memfd_create("polyvisor-vrings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, size)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self.view = memoryview(mmap.mmap(self.fd, size, mmap.MAP_SHARED))
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        """Close the memfd; the views go when nobody has any."""
        self.view = memoryview(b"")
        os.close(self.fd)


@dataclass(slots=True)
class _Held:
    chain: Chain
    descriptors: list[int]


class ShadowRing:
    """A ring of ``size`` entries in ``view``, which the back end knows by ``address``. Starts empty."""

    def __init__(self, view: memoryview, address: int, size: int) -> None:
        self.size = size
        view[:] = bytes(len(view))
        available = DESCRIPTOR_SIZE * size
        used = available + 6 + 2 * size + 2 & ~3
        self.descriptors, self.available, self.used = address, address + available, address + used
        self._table = view[:available]
        self._avail = view[available : available + 6 + 2 * size].cast("H")
        self._used = view[used : used + 6 + 8 * size].cast("H")
        self._used_elements = view[used + 4 : used + 4 + 8 * size].cast("I")
        self._free = list(range(size))
        self._next_avail = 0
        self._last_used = 0
        self._held: dict[int, _Held] = {}
        # Taking it orders all accesses before and after, as in VirtQueue.
        self._fence = threading.Lock()

    @property
    def held(self) -> list[Chain]:
        """The buffers that are in the ring, in the order in which they came."""
        return [held.chain for held in self._held.values()]

    def put(self, chain: Chain) -> bool:
        """Add ``chain``, which has a segment; False if there is no room now. The back end sees it after publish()."""
        parts = [(*segment, 0) for segment in chain.readable]
        parts += [(*segment, DESC_F_WRITE) for segment in chain.writable]
        count = len(parts)
        if count > len(self._free):
            return False
        indices = self._free[-count:]
        del self._free[-count:]
        for (address, length, flags), index, following in zip(parts, indices, [*indices[1:], -1], strict=True):
            if following >= 0:
                flags |= DESC_F_NEXT
            _descriptor(self._table, DESCRIPTOR_SIZE * index, address, length, flags, max(following, 0))
        head = indices[0]
        self._held[head] = _Held(chain, indices)
        self._avail[2 + self._next_avail % self.size] = head
        self._next_avail = self._next_avail + 1 & 0xFFFF
        return True

    def publish(self) -> None:
        """Let the back end see what was put; it has to be kicked then."""
        if not ORDERED_HOST:
            with self._fence:
                pass  # the descriptors and entries before the index
        self._avail[1] = self._next_avail

    def take(self) -> list[tuple[Chain, int]]:
        """The buffers that the back end gave back, with the bytes it says it wrote.

        Raises VhostUserError, and takes none, if it gave back what it does not have, or wrote more than fits.
        """
        count = self._used[1] - self._last_used & 0xFFFF
        if count > len(self._held):
            raise VhostUserError(f"gives back {count} buffers of {len(self._held)}")
        if not ORDERED_HOST:
            with self._fence:
                pass  # entries are read after the index that published them
        found: dict[int, int] = {}
        for position in range(self._last_used, self._last_used + count):
            slot = 2 * (position % self.size)
            head, written = self._used_elements[slot], self._used_elements[slot + 1]
            if head not in self._held or head in found:
                raise VhostUserError(f"gives back buffer {head}, which it does not have")
            room = length_of(self._held[head].chain.writable)
            if written > room:
                raise VhostUserError(f"says that it wrote {written} bytes into a buffer of {room}")
            found[head] = written
        self._last_used = self._last_used + count & 0xFFFF
        taken: list[tuple[Chain, int]] = []
        for head, written in found.items():
            held = self._held.pop(head)
            self._free += held.descriptors
            taken.append((held.chain, written))
        return taken
