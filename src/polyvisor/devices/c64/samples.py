"""The samples that a SID has made, taken out of its ring in memory."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable

from .sid_sound import RING, RING_SAMPLES


class Samples:
    """What one listener has not heard yet.

    ``read(address, length)`` gives physical memory, such as `Memory.read`; ``written``: what was made before (the
    SID's `sid_written`) is not heard.
    """

    def __init__(self, read: Callable[[int, int], bytes], written: int = 0) -> None:
        self._read = read
        self._taken = written
        self.lost = 0
        """Samples that were overwritten before they were taken, because the ring was filled more than once."""

    def take(self, written: int) -> bytes:
        """What the SID has made since the last call, of ``written`` samples in all: 16 bits, in the host's order.

        Where the machine went back in time, it begins anew from there.
        """
        start = min(self._taken, written)
        lost = max(written - start - RING_SAMPLES, 0)
        self.lost += lost
        start += lost
        self._taken = written
        parts = []
        while start < written:
            place = start % RING_SAMPLES
            count = min(written - start, RING_SAMPLES - place)
            parts.append(self._read(RING + 2 * place, 2 * count))
            start += count
        made = b"".join(parts)
        if sys.byteorder == "big":  # the CPU's order is little-endian
            samples = array("h", made)
            samples.byteswap()
            made = samples.tobytes()
        return made
