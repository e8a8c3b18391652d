"""The guest image that tests boot: from the frozen packages beside the checkout, else fetched by name."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import pytest

from polyvisor import images

_FROZEN = "frozen-guest"


def frozen_packages() -> Path | None:
    """The directory of frozen riscv64 packages, where there is one."""
    given = os.environ.get("POLYVISOR_GUESTS")
    directory = Path(given) if given else Path(__file__).resolve().parents[3] / "shared" / "guests"
    found = directory / "riscv64" if (directory / "riscv64").is_dir() else directory
    return found if found.is_dir() else None


@cache
def guest_image() -> images.Image:
    """A bootable Linux. Skips the test where there is neither the frozen set nor a network."""
    packages = frozen_packages()
    try:
        if packages is not None:
            return images.build_from_packages(packages)
        return images.ensure("debian")
    except images.ImageError as error:
        pytest.skip(f"no guest image: {error}")
