"""The image ``debian:full``: a Debian as one installs it, with systemd, apt and Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyvisor.images import Progress, debian
from polyvisor.images.store import Image

from .build import build_locked
from .recipe import Recipe, User

NAME = "debian:full"
RECIPE = Recipe(
    name=NAME,
    packages=(
        *("apt", "systemd-sysv", "udev", "dbus", "libpam-systemd", "libnss-systemd", "systemd-resolved"),
        *("kmod", "e2fsprogs", "procps", "iproute2", "iputils-ping", "netbase", "ca-certificates"),
        *("less", "nano", "sudo", "python3"),
    ),
    suites=debian.SUITES,
    users=(User("user", groups=("sudo",)),),
    # What is to happen in a machine that lives for seconds or for one test is what its user does.
    run=("systemctl disable apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service",),
)


def pull(
    progress: Progress,
    *,
    suites: Sequence[str] = debian.SUITES,
    mirror: str | None = None,
    keyring: Path | None = None,
    allow_expired: bool = False,
) -> Image:
    """Build the image from the newest packages; the caller holds its lock. Raises :class:`ImageError`."""
    import dataclasses

    progress.stage(f"{NAME} is built here, in a machine: some 70 MB of packages to fetch, then a few minutes")
    recipe = dataclasses.replace(RECIPE, suites=tuple(suites))
    options = debian.Sources(recipe.suites, mirror, keyring, allow_expired)
    return build_locked(recipe, lock=None, options=options, progress=progress)
