"""The changes of a disk that are forgotten when its machine ends."""

from __future__ import annotations

from polyvisor.storage.overlay import Overlay


class KeptOverlay(Overlay):
    """Changes that last as long as the machine: a guest that restarts finds them again."""

    def close(self) -> None:
        """The next machine needs it."""

    def throw_away(self) -> None:
        """Close it for good."""
        super().close()
