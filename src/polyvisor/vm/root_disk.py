"""The root disk of an image: what the guest writes to it is thrown away with the machine, or kept in a file."""

from __future__ import annotations

import os
from pathlib import Path

from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.storage.convert import convert
from polyvisor.storage.open import open_disk
from polyvisor.storage.overlay import Overlay


class KeptOverlay(Overlay):
    """Changes that last until :meth:`throw_away`: a guest that restarts finds them again."""

    def close(self) -> None:
        """The next machine needs it."""

    def throw_away(self) -> None:
        """Close it for good."""
        super().close()


class RootDisk:
    """The disk in the raw file ``image``, which is never written to.

    ``keep`` is a qcow2 file that the guest writes to instead. It becomes a whole copy of the disk when it is not there,
    so that it stays good whatever happens to the image; else the guest goes on with what is in it.
    """

    def __init__(self, image: Path, keep: str | os.PathLike[str] | None = None) -> None:
        self._image = image
        self._keep = Path(keep) if keep is not None else None
        self._overlay: KeptOverlay | None = None

    def make(self) -> BlockDevice:
        """The device for a machine, or for the next one after a reset. Raises DiskError, OSError."""
        if self._keep is not None:
            if not self._keep.exists():
                source = open_disk(self._image, True, "raw", shared=True)
                try:
                    convert(source, self._keep, "qcow2")
                finally:
                    source.close()
            return BlockDevice.open(self._keep, format="qcow2", serial="root")
        if self._overlay is None:
            base = open_disk(self._image, True, "raw", shared=True)
            try:
                self._overlay = KeptOverlay(base)
            except BaseException:
                base.close()
                raise
        return BlockDevice(self._overlay, "root")

    def close(self) -> None:
        """Throw away what is not kept; may be repeated."""
        if self._overlay is not None:
            self._overlay.throw_away()
            self._overlay = None
