"""What the arguments of a VM mean. What a machine has not got is not imported."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .software import FetchLog, Software, check_file

if TYPE_CHECKING:
    from polyvisor import images
    from polyvisor.network.switch import Switch

    from .equipment import Disk, Nic, Screen, Share
    from .root_disk import RootDisk

def root_disk_of(image: Path | None, keep: str | os.PathLike[str] | None) -> RootDisk | None:
    """The disk that an image has; changes are kept in ``keep``."""
    if image is None:
        return None
    from .root_disk import RootDisk

    return RootDisk(image, keep)


def disk_of(disk: str | os.PathLike[str] | Disk) -> Disk:
    """A disk, or what the option says."""
    from .equipment.disk import Disk

    return disk if isinstance(disk, Disk) else Disk.parse(os.fspath(disk))


def shares_of(shares: Sequence[str | os.PathLike[str] | Share]) -> list[Share]:
    """The shared directories. Raises ValueError."""
    from .equipment.share import Share, check_tags

    found = [share if isinstance(share, Share) else Share.parse(os.fspath(share)) for share in shares]
    check_tags(found)
    return found


def nic_of(network: str | Switch | Nic, name: str) -> Nic | None:
    """A card; None for no network. Raises ValueError."""
    from .equipment.nic import Nic

    if isinstance(network, Nic):
        return network
    return Nic.parse(network) if isinstance(network, str) else Nic(network, name=name)


def screen_of(display: bool | tuple[int, int] | Screen | None) -> Screen | None:
    """A display, if there is to be one."""
    if not display:
        return None
    from .equipment.screen import Screen

    if isinstance(display, Screen):
        return display
    return Screen(*display) if isinstance(display, tuple) else Screen()


def software_of(
    image: str | images.Image | None,
    kernel: str | os.PathLike[str] | None,
    initrd: str | os.PathLike[str] | None,
    append: str,
    firmware: str | os.PathLike[str] | None,
    program: str | os.PathLike[str] | None,
    agent: bool | None,
) -> Software:
    """What is to run. Raises ValueError, ImageError, OSError."""
    paths = {"kernel": kernel, "initrd": initrd, "firmware": firmware, "program": program}
    for what, path in paths.items():
        if path is not None:
            check_file(Path(path), what)
    if program is not None:
        if image is not None or kernel is not None:
            raise ValueError("give an image, a kernel, or a program, not several of them")
        return Software(program=Path(program))
    if isinstance(image, str):
        from polyvisor import images

        found: images.Image | None = images.ensure(image, progress=FetchLog())
    else:
        found = image
    if found is None and kernel is None:
        raise ValueError('say what to run: VM("debian"), VM(kernel=...), or VM(program=...)')
    line = " ".join(part for part in (found.command_line() if found else "console=ttyS0", append) if part)
    return Software(
        kernel=Path(kernel) if kernel else found.kernel if found else None,
        initrd=Path(initrd) if initrd else found.initrd if found else None,
        append=line,
        firmware=Path(firmware) if firmware else None,
        agent=agent if agent is not None else found is not None,
        our_initrd=found is not None and initrd is None,
        disk=found.disk if found else None,
    )
