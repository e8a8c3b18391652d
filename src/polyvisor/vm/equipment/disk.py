"""Disks of a machine, in files of the host."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyvisor.devices.virtio.block import BlockDevice
    from polyvisor.storage.disk import Disk as DiskProtocol

    from .kept_overlay import KeptOverlay


@dataclass
class Disk:
    """A disk in a raw or qcow2 file, or on a block device, at ``path``.

    ``format``: ``raw`` or ``qcow2``; without it the contents tell.
    ``snapshot``: what the guest writes goes to a temporary file, and is forgotten when the machine ends.
    """

    path: str
    read_only: bool = False
    snapshot: bool = False
    format: str | None = None
    serial: str = ""
    _overlay: list[KeptOverlay] = field(default_factory=list, repr=False, compare=False)
    _device: BlockDevice | None = field(default=None, repr=False, compare=False)

    def make(self) -> BlockDevice:
        """The device. Raises DiskError, an OSError with a line for the user."""
        from polyvisor.devices.virtio.block import BlockDevice

        if self.read_only or not self.snapshot:
            return BlockDevice.open(self.path, self.read_only, self.serial, format=self.format)
        from .kept_overlay import KeptOverlay

        if not self._overlay:
            self._overlay.append(KeptOverlay(self.open_base()))
        self._device = BlockDevice(self._overlay[0], self.serial)
        return self._device

    def open_base(self) -> DiskProtocol:
        """What is under the changes that are thrown away. Raises DiskError."""
        from polyvisor.storage.open import open_disk

        return open_disk(self.path, True, self.format, shared=True)

    def obstacle(self) -> str | None:
        """Why there cannot be several machines with this disk, as a line for the user; None if there can."""
        if self.read_only or self.snapshot:
            return None
        return f"two machines cannot write to one disk, {self.path}: open it with snapshot=True, or read-only"

    def branch(self) -> None:
        """Leave what was written so far as it is, and write to another file from now on. The machine stands still.

        Of several machines that are copies (``os.fork``), each must do so after that, and one before: then all read
        what was written before, and what each of them writes is its own. Raises OSError.
        """
        from .kept_overlay import KeptOverlay

        for number, overlay in enumerate(self._overlay):
            self._overlay[number] = KeptOverlay(overlay.frozen())
            if self._device is not None:
                self._device.disk = self._overlay[number]

    def close(self) -> None:
        """Throw away what is not kept; may be repeated. The machine has ended."""
        while self._overlay:
            self._overlay.pop().throw_away()

    @classmethod
    def parse(cls, text: str) -> Disk:
        """``FILE`` with any of ``,ro``, ``,rw``, ``,snapshot`` and ``,format=FORMAT`` after it. Raises ValueError.

        Where a file has all of ``text`` as its name, that is meant.
        """
        from polyvisor.storage.open import FORMATS

        path, words = text, set[str]()
        while not Path(path).exists():
            rest, _, word = path.rpartition(",")
            if not rest or not re.fullmatch(r"ro|rw|snapshot|format=\w*", word):
                break
            path = rest
            words.add(word)
        formats = [word.removeprefix("format=") for word in words if word.startswith("format=")]
        if len(formats) > 1 or {"ro", "rw"} <= words:
            raise ValueError(f"disk {text!r}: says two different things about the disk")
        form = formats[0] if formats else None
        if form is not None and form not in FORMATS:
            raise ValueError(f"disk {text!r}: the format is one of {', '.join(FORMATS)}")
        return cls(path, "ro" in words, "snapshot" in words, form)
