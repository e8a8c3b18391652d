"""Guest images: fetched from their distribution, verified, built on the host without running anything, and cached.

>>> image = polyvisor.images.ensure("debian")       # doctest: +SKIP
>>> image.kernel, image.initrd, image.append        # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TypedDict, Unpack

from .errors import ImageError
from .progress import Progress, Silent
from .store import Image, exclusive, find, get, local, prune, remove, verify

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
    "prune",
    "pull",
    "remove",
    "verify",
]

# What makes each image. It is imported by name, and only then: most starts find an image, and images with a disk are
# made by running a machine, which is a layer above this one.
_MAKERS = {"debian": "polyvisor.images.debian", "debian:full": "polyvisor.builder.builtin"}

KNOWN = tuple(_MAKERS)
"""The names of the images that can be made without a recipe."""


def _maker(name: str) -> ModuleType:
    return import_module(_MAKERS[name])


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
    """The cached image ``name``; when there is none, or it is damaged, it is pulled first (see :func:`pull`).

    An image that was built from a recipe of the caller's is only looked up.
    """
    return _make(name, progress, fresh=False, options=options)


def pull(name: str, *, progress: Progress | None = None, **options: Unpack[Options]) -> Image:
    """Fetch the newest packages of image ``name``, build it and make it the cached one; return it.

    Takes seconds to minutes, ``debian:full`` some more; ``progress`` follows it. Raises :class:`ImageError`; whatever
    happens, the image that was cached before stays usable.
    """
    return _make(name, progress, fresh=True, options=options)


def build_from_packages(directory: Path, *, name: str = "debian", progress: Progress | None = None) -> Image:
    """Build image ``name`` from the .deb and .tar files in ``directory``, without a network; make it the cached one.

    The files are not verified, but their hashes are recorded. Raises :class:`ImageError`.
    """
    if name != "debian":
        raise ImageError(f"only the image debian can be built from a directory of packages, not {name!r}", "usage")
    progress = progress or Silent()
    with exclusive(name, progress):
        image: Image = _maker(name).build_from_packages(Path(directory), progress)
        return image


def _make(name: str, progress: Progress | None, *, fresh: bool, options: Options) -> Image:
    if not fresh and (image := _find_whole(name)) is not None:
        return image
    _check_name(name)
    progress = progress or Silent()
    with exclusive(name, progress):
        # Another process may have pulled it while we waited for the lock.
        if not fresh and (image := _find_whole(name)) is not None:
            return image
        pulled: Image = _maker(name).pull(progress, **options)
        return pulled


def _find_whole(name: str) -> Image | None:
    try:
        return find(name)
    except ImageError:
        return None


def _check_name(name: str) -> None:
    if name not in KNOWN:
        raise ImageError(
            f"there is no image {name!r}; known are {', '.join(KNOWN)}, and others are built from a recipe: "
            "polyvisor image build RECIPE",
            "usage",
        )
