"""Guest images: fetched from their distribution, verified, built on the host without running anything, and cached.

>>> image = polyvisor.images.ensure("debian")       # doctest: +SKIP
>>> image.kernel, image.initrd, image.append        # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TypedDict, Unpack

from .errors import ImageError
from .progress import Progress, Silent
from .store import Image, exclusive, find, get, local, remove, verify

__all__ = [
    "KNOWN",
    "Image",
    "ImageError",
    "Options",
    "Progress",
    "build_from_packages",
    "ensure",
    "get",
    "local",
    "pull",
    "remove",
    "verify",
]

KNOWN = ("debian",)
"""The names of the images that can be pulled."""


def _builder() -> ModuleType:
    """What makes images, and needs many libraries for it: imported only then, as most starts find an image."""
    from . import debian

    return debian


class Options(TypedDict, total=False):
    """Where an image comes from. Each may be left out."""

    suites: Sequence[str]
    """Suites to try, in this order."""
    mirror: str | None
    """URL of a Debian mirror; else $POLYVISOR_DEBIAN_MIRROR, else the one apt uses on this host."""
    keyring: Path | None
    """OpenPGP keyring that the mirror's indexes must be signed with; else the one apt uses."""
    allow_expired: bool
    """Use an index that is older than it says it may be."""


def ensure(name: str, *, progress: Progress | None = None, **options: Unpack[Options]) -> Image:
    """The cached image ``name``; when there is none, or it is damaged, it is pulled first (see :func:`pull`)."""
    return _make(name, progress, fresh=False, options=options)


def pull(name: str, *, progress: Progress | None = None, **options: Unpack[Options]) -> Image:
    """Fetch the newest packages of image ``name``, build it and make it the cached one; return it.

    Takes seconds to minutes; ``progress`` follows it. Raises :class:`ImageError`; whatever happens, the image that was
    cached before stays usable.
    """
    return _make(name, progress, fresh=True, options=options)


def build_from_packages(directory: Path, *, name: str = KNOWN[0], progress: Progress | None = None) -> Image:
    """Build image ``name`` from the .deb and .tar files in ``directory``, without a network; make it the cached one.

    The files are not verified, but their hashes are recorded. Raises :class:`ImageError`.
    """
    _check_name(name)
    progress = progress or Silent()
    with exclusive(name, progress):
        image: Image = _builder().build_from_packages(Path(directory), progress)
        return image


def _make(name: str, progress: Progress | None, *, fresh: bool, options: Options) -> Image:
    _check_name(name)
    if not fresh and (image := _find_whole(name)) is not None:
        return image
    progress = progress or Silent()
    with exclusive(name, progress):
        # Another process may have pulled it while we waited for the lock.
        if not fresh and (image := _find_whole(name)) is not None:
            return image
        pulled: Image = _builder().pull(progress, **options)
        return pulled


def _find_whole(name: str) -> Image | None:
    try:
        return find(name)
    except ImageError:
        return None


def _check_name(name: str) -> None:
    if name not in KNOWN:
        raise ImageError(f"unknown image {name!r}; known: {', '.join(KNOWN)}", "usage")
