"""What a copy of the process (``os.fork``) can go on with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Forkable:
    """Something that threads change and wait for: all under one lock, which nobody has when the process is copied."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing changes meanwhile: the process may be copied."""
        with self._changed:
            yield

    def revive(self) -> None:
        """In the copy, where those who waited are not: be ready for others."""
        self._changed = threading.Condition()
