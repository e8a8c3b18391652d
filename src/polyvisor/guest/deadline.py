"""One timeout for several steps."""

from __future__ import annotations

import time


class Deadline:
    """The end of a timeout in seconds that starts now; None: there is no end."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def left(self) -> float | None:
        """Seconds until then, at least 0; None without an end."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())
