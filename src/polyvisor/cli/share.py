"""Directories of the host for the guest: what ``--share`` says."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from polyvisor.devices.virtio.p9 import P9Device
from polyvisor.vm.software import Software

# Some kernels cut what is longer, without a word.
_COMMAND_LINE = 1024


@dataclass(frozen=True)
class Share:
    """A directory of the host for the guest: what ``--share`` says."""

    directory: str
    tag: str
    mount: str | None
    """Where the image is to mount it, if not at /mnt/TAG."""
    read_only: bool
    owner: str

    def open(self) -> P9Device:
        """The device. Raises ShareError."""
        return P9Device.open(self.directory, self.tag, self.read_only, self.owner)


def parse_share(text: str) -> Share:
    """What ``DIR[:TAG|:/PATH][,ro][,owner=host]`` means. Raises ValueError, with a line for the user."""
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
                raise ValueError(f"--share {text!r}: cannot be mounted at {name!r}")
        else:
            tag = name
    if not directory:
        raise ValueError(f"--share {text!r}: give a directory, as in --share .:src")
    return Share(directory, tag, mount, read_only, owner)


def parse_shares(texts: list[str]) -> list[Share]:
    """All ``--share`` options. Raises ValueError, with a line for the user."""
    shares = [parse_share(text) for text in texts]
    tags = [share.tag for share in shares]
    for tag in tags:
        if tags.count(tag) > 1:
            raise ValueError(f"two directories are shared as {tag!r}: name them, as in --share DIR:TAG")
    return shares


def add_mounts(software: Software, shares: list[Share]) -> Software:
    """Tell the image where to mount what is not to be at /mnt/TAG. Raises ValueError where nobody would do it."""
    words = [f"polyvisor.share={share.tag}:{share.mount}" for share in shares if share.mount]
    if not words:
        return software
    if software.kernel is None:
        raise ValueError("--share DIR:/PATH goes with an image; give a tag instead, as in --share DIR:TAG")
    line = " ".join((software.append, *words))
    if len(line) >= _COMMAND_LINE:
        raise ValueError("--run and --share DIR:/PATH do not fit the kernel's command line: give tags instead of paths")
    return replace(software, append=line)
