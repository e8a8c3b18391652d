"""How a long operation tells its caller what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a caller of :func:`polyvisor.images.ensure` may pass to follow the work. Called from the same thread."""

    def stage(self, text: str) -> None:
        """A new step begins, or something worth a line happened; ``text`` is one line."""

    def transfer(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` bytes of the file ``name`` are here. The last call has ``done == total``."""


class Silent:
    """Progress for callers who do not want any."""

    def stage(self, text: str) -> None:
        pass

    def transfer(self, name: str, done: int, total: int) -> None:
        pass
