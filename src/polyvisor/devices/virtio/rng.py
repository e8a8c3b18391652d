"""The entropy device (Virtual I/O Device 1.2, section 5.4)."""

from __future__ import annotations

from collections.abc import Callable

from .device import Chain, VirtioDevice

_MOST = 64 << 10  # bytes per request; a driver asks again


class RngDevice(VirtioDevice):
    """Fills buffers with what ``source(count)`` gives."""

    device_id = 4

    def __init__(self, source: Callable[[int], bytes]) -> None:
        super().__init__()
        self._source = source

    def handle(self, index: int, chain: Chain) -> int:
        written = 0
        for address, length in chain.writable:
            count = min(length, _MOST - written)
            if count > 0:
                self.memory.write(address, self._source(count))
                written += count
        return written
