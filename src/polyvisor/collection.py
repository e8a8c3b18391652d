"""Python's garbage collector, kept from looking at what is no garbage."""

from __future__ import annotations

import gc


class Lasting:
    """``with Lasting():`` what is made here lasts, as modules do; to look for garbage takes a tenth of their import.

    Nobody looks meanwhile, and then it counts as old: only a full collection looks at it.
    """

    def __enter__(self) -> None:
        self._collects = gc.isenabled()
        gc.disable()

    def __exit__(self, *reason: object) -> None:
        if self._collects:
            if gc.get_freeze_count() == 0:  # what others have frozen stays so
                gc.freeze()
                gc.unfreeze()
            gc.enable()
