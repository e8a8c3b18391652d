"""Random requests: every one is answered, nothing outside is touched, no descriptor is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from p9_fuzz import LAYOUTS, Fuzz

from polyvisor.storage.p9 import descriptors


@pytest.mark.parametrize(("owner", "read_only"), [("guest", False), ("host", False), ("guest", True)])
def test_random_requests(tmp_path: Path, owner: str, read_only: bool) -> None:
    before = descriptors.held()
    fuzz = Fuzz(7, tmp_path, owner, read_only)
    fuzz.run(10_000)
    fuzz.close()
    assert descriptors.held() == before
    assert min(fuzz.answers.values()) > 1500, fuzz.answers
    if not read_only:
        assert set(LAYOUTS) - fuzz.kinds == {102}, "some kind of request never succeeded"
    else:
        assert (tmp_path / "shared" / "file").read_bytes() == b"contents"
        left = sorted(path.name for path in (tmp_path / "shared").iterdir())
        assert left == ["dir", "fifo", "file", "link", "out", "socket"]
