"""Directories of the host for the guest."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from polyvisor.dataclass import dataclass
from polyvisor.devices.virtio.device import VirtioDevice

# Some kernels cut what is longer, without a word.
_COMMAND_LINE = 1024


@dataclass(frozen=True)
class Share:
    """A directory of the host for the guest, where images mount it at /mnt/TAG, or at ``mount``.

    ``owner``: whose its files are for the guest: ``guest`` (its own users', as it likes), or ``host`` (as they are).
    ``via``: ``9p``, or ``virtiofs``: by a virtiofsd, where owners are as on the host. It is started for this share,
    unless ``directory`` is the socket of one.
    """

    directory: str
    tag: str = "host"
    mount: str | None = None
    read_only: bool = False
    owner: str = "guest"
    via: str = "9p"

    def make(self) -> VirtioDevice:
        """The device. Raises ShareError or VhostUserError, OSErrors with a line for the user."""
        if self.via == "virtiofs":
            from polyvisor.devices.virtio.fs import VirtioFsDevice

            if Path(self.directory).is_socket():
                return VirtioFsDevice(self.directory, self.tag)
            return VirtioFsDevice.spawn(self.directory, self.tag, self.read_only)
        from polyvisor.devices.virtio.p9 import P9Device

        return P9Device.open(self.directory, self.tag, self.read_only, self.owner)

    @classmethod
    def parse(cls, text: str) -> Share:
        """``DIR[:TAG][,ro][,owner=host][,via=virtiofs]`` or ``DIR:/PATH...``. Raises ValueError, for the user."""
        return _parse(text)


def _parse(text: str) -> Share:
    directory, read_only, owner, via = text, False, None, "9p"
    # A directory whose own name looks like that is what is meant where there is one.
    while not _is_there(directory) and (found := re.fullmatch(r"(.*),(ro|rw|(?:owner|via)=\w*)", directory, re.DOTALL)):
        directory, word = found.groups()
        if word.startswith("owner="):
            owner = word.removeprefix("owner=")
        elif word.startswith("via="):
            via = word.removeprefix("via=")
        else:
            read_only = word == "ro"
    tag, mount = "host", None
    place, colon, name = directory.rpartition(":")
    if colon and not _is_there(directory):
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
    if via not in ("9p", "virtiofs"):
        raise ValueError(f"share {text!r}: there are via=9p and via=virtiofs")
    if via == "virtiofs" and owner not in (None, "host"):
        raise ValueError(f"share {text!r}: with via=virtiofs the owners are always the host's")
    if via == "virtiofs" and read_only and Path(directory).is_socket():
        raise ValueError(f"share {text!r}: only who starts virtiofsd can make it read-only")
    return Share(directory, tag, mount, read_only, owner or ("host" if via == "virtiofs" else "guest"), via)


def _is_there(path: str) -> bool:
    """Whether it is what can be shared: a directory, or the socket of one who shares."""
    return Path(path).is_dir() or Path(path).is_socket()


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
