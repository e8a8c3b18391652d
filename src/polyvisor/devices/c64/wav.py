"""The sound of a machine as a WAV file."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from .samples import Samples


class WavFile:
    """A WAV file (16 bits, mono) that the samples of a SID go to.

    ``read(address, length)`` gives physical memory, such as `Memory.read`; ``rate`` is samples a second. Opening raises
    OSError as `open` does. The file is whole when it is closed; used as a context manager it is closed at the end.
    """

    def __init__(self, path: Path | str, rate: int, read: Callable[[int, int], bytes], written: int = 0) -> None:
        self._samples = Samples(read, written)
        self._file = wave.open(str(path), "wb")  # noqa: SIM115
        self._file.setnchannels(1)
        self._file.setsampwidth(2)
        self._file.setframerate(rate)

    def take(self, written: int) -> int:
        """Append what the SID has made since the last call, of ``written`` samples (`sid_written`) in all.

        Gives how many samples were lost, see `Samples`.
        """
        before = self._samples.lost
        self._file.writeframes(self._samples.take(written))
        return self._samples.lost - before

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> WavFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
