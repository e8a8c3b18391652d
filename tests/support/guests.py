"""The guest image that tests boot: from the frozen packages beside the checkout, else fetched by name."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from functools import cache
from pathlib import Path

import pytest

from polyvisor import images
from polyvisor.cachedir import cache_root

_FROZEN = "frozen-guest"


def frozen_packages() -> Path | None:
    """The directory of frozen riscv64 packages, where there is one."""
    given = os.environ.get("POLYVISOR_GUESTS")
    directory = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "guests"
    found = directory / "riscv64" if (directory / "riscv64").is_dir() else directory
    return found if found.is_dir() else None


def image_cache() -> Path:
    """The cache of the tests' own (``POLYVISOR_CACHE``) in which :func:`guest_image` is called "debian"."""
    # An image made by other sources than these is not what is to be tested.
    sources = sorted(Path(images.__file__).parent.rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    directory = cache_root() / "tests" / digest[:16]
    directory.mkdir(parents=True, exist_ok=True)
    # Code that was compiled before is of use there too.
    handlers = cache_root() / "handlers"
    handlers.mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (directory / "handlers").symlink_to(handlers)
    return directory


@cache
def guest_image() -> images.Image:
    """A bootable Linux, in a cache of the tests' own. Skips the test where there is neither packages nor a network."""
    packages = frozen_packages()
    directory = image_cache()
    before = os.environ.get("POLYVISOR_CACHE")
    os.environ["POLYVISOR_CACHE"] = str(directory)
    try:
        # One of the processes that run tests side by side builds it.
        with (directory / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if packages is not None and not any(image.name == "debian" for image in images.local()):
                images.build_from_packages(packages)
            return images.ensure("debian")
    except images.ImageError as error:
        pytest.skip(f"no guest image: {error}")
    finally:
        del os.environ["POLYVISOR_CACHE"]
        if before is not None:
            os.environ["POLYVISOR_CACHE"] = before
