"""Where polyvisor keeps what it can make or fetch again (images, downloads, compiled code), and what it cannot."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """The cache directory, which need not exist: POLYVISOR_CACHE, or polyvisor in XDG_CACHE_HOME or ~/.cache."""
    if given := os.environ.get("POLYVISOR_CACHE"):
        return Path(given)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "polyvisor"
    return Path.home() / ".cache" / "polyvisor"


def data_root() -> Path:
    """The directory for what is the user's, which need not exist: POLYVISOR_DATA, or polyvisor in XDG_DATA_HOME or
    ~/.local/share."""
    if given := os.environ.get("POLYVISOR_DATA"):
        return Path(given)
    if base := os.environ.get("XDG_DATA_HOME"):
        return Path(base) / "polyvisor"
    return Path.home() / ".local" / "share" / "polyvisor"
