"""The sound of a machine as a WAV file."""

from __future__ import annotations

import sys
import wave
from array import array
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from .sid_sound import RING, RING_SAMPLES


class WavFile:
    """A WAV file (16 bits, mono) that the samples of a SID go to.

    ``read(address, length)`` gives physical memory, such as `Memory.read`; ``rate`` is samples a second. Opening raises
    OSError as `open` does. The file is whole when it is closed; used as a context manager it is closed at the end.
    """

    def __init__(self, path: Path | str, rate: int, read: Callable[[int, int], bytes], written: int = 0) -> None:
        self._read = read
        self._taken = written
        self._file = wave.open(str(path), "wb")  # noqa: SIM115
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(rate)

    def take(self, written: int) -> int:
        """Append what the SID has made since the last call, of ``written`` samples (`sid_written`) in all.

        Gives how many samples were lost, because the ring was filled more than once since then. Where the machine went
        back in time, it begins anew from there.
        """
        start = min(self._taken, written)
        lost = max(written - start - RING_SAMPLES, 0)
        start += lost
        self._taken = written
        while start < written:
            place = start % RING_SAMPLES
            count = min(written - start, RING_SAMPLES - place)
            samples = array("h", self._read(RING + 2 * place, 2 * count))
            if sys.byteorder == "big":  # the CPU's order is little-endian
                samples.byteswap()
            self._file.writeframes(samples.tobytes())
            start += count
        return lost

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> WavFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
