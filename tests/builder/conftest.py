"""The made-up mirror of the tests of images, for those of images that are built from one."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "images"))
