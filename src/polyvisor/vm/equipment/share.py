"""Directories of the host for the guest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from polyvisor.devices.virtio.p9 import P9Device

# Some kernels cut what is longer, without a word.
_COMMAND_LINE = 1024


@dataclass(frozen=True)
class Share:
    """A directory of the host for the guest, where images mount it at /mnt/TAG, or at ``mount``.

    ``owner``: whose its files are for the guest: ``guest`` (its own users', as it likes), or ``host`` (as they are).
    """

    directory: str
    tag: str = "host"
    mount: str | None = None
    read_only: bool = False
    owner: str = "guest"

    def make(self) -> P9Device:
        """The device. Raises ShareError, an OSError with a line for the user."""
        return P9Device.open(self.directory, self.tag, self.read_only, self.owner)

    @classmethod
    def parse(cls, text: str) -> Share:
        """``DIR[:TAG][,ro][,owner=host]`` or ``DIR:/PATH...``. Raises ValueError, with a line for the user."""
        return _parse(text)


def _parse(text: str) -> Share:
    directory, read_only, owner = text, False, "guest"
    # A directory whose own name looks like that is what is meant where there is one.
    while not Path(directory).is_dir() and (found := re.fullmatch(r"(.*),(ro|rw|owner=\w*)", directory, re.DOTALL)):
        directory, word = found.groups()
        if word.startswith("owner="):
            owner = word.removeprefix("owner=")
        else:
            read_only = word == "ro"
    tag, mount = "host", None
    place, colon, name = directory.rpartition(":")
    if colon and not Path(directory).is_dir():
        directory = place
        if name.startswith("/"):
            mount = name
            tag = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") or "root"
            if re.search(r"\s", name) or name == "/":
                raise ValueError(f"share {text!r}: cannot be mounted at {name!r}")
        else:
            tag = name
    if not directory:
        raise ValueError(f"share {text!r}: give a directory, as in .:src")
    return Share(directory, tag, mount, read_only, owner)


def check_tags(shares: Sequence[Share]) -> None:
    """Raise ValueError, with a line for the user, if the guest could not tell them apart."""
    tags = [share.tag for share in shares]
    for tag in tags:
        if tags.count(tag) > 1:
            raise ValueError(f"two directories are shared as {tag!r}: name them, as in DIR:TAG")


def with_mounts(line: str, shares: Sequence[Share], has_kernel: bool) -> str:
    """The kernel's command line that tells images where to mount what is not to be at /mnt/TAG. Raises ValueError."""
    words = [f"polyvisor.share={share.tag}:{share.mount}" for share in shares if share.mount]
    if not words:
        return line
    if not has_kernel:
        raise ValueError("sharing DIR:/PATH goes with an image; give a tag instead, as in DIR:TAG")
    longer = " ".join((line, *words))
    if len(longer) >= _COMMAND_LINE:
        raise ValueError("the shared directories do not fit the kernel's command line: give tags instead of paths")
    return longer
