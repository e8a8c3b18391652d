"""The root disk of an image: what the guest writes to it is thrown away with the machine, or kept in a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from .equipment.disk import Disk

if TYPE_CHECKING:
    from polyvisor.devices.virtio.block import BlockDevice

ROOT_SERIAL = "root"


class RootDisk:
    """The disk in the raw file ``image``, which is never written to.

    ``keep`` is a qcow2 file that the guest writes to instead. It becomes a whole copy of the disk when it is not there,
    so that it stays good whatever happens to the image; else the guest goes on with what is in it.
    """

    def __init__(self, image: Path, keep: str | os.PathLike[str] | None = None) -> None:
        self._image = image
        self._keep = Path(keep) if keep is not None else None
        self._thrown_away = Disk(str(image), snapshot=True, format="raw", serial=ROOT_SERIAL)

    def make(self) -> BlockDevice:
        """The device for a machine, or for the next one after a reset. Raises DiskError, OSError."""
        if self._keep is None:
            return self._thrown_away.make()
        from polyvisor.devices.virtio.block import BlockDevice
        from polyvisor.storage.convert import convert
        from polyvisor.storage.open import open_disk

        if not self._keep.exists():
            source = open_disk(self._image, True, "raw", shared=True)
            try:
                convert(source, self._keep, "qcow2")
            finally:
                source.close()
        return BlockDevice.open(self._keep, format="qcow2", serial=ROOT_SERIAL)

    @property
    def disk(self) -> Disk:
        """What it is to the machine."""
        return self._thrown_away if self._keep is None else Disk(str(self._keep), format="qcow2", serial=ROOT_SERIAL)

    def close(self) -> None:
        """Throw away what is not kept; may be repeated."""
        self._thrown_away.close()
