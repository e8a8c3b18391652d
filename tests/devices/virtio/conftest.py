"""Every test here may be run over all transports and ring formats: ``pytestmark = every_wiring``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import vhost_back_end
import virtio_driver


@pytest.fixture(autouse=True)
def wiring(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> virtio_driver.Wiring:
    """How the drivers of this test reach their devices."""
    chosen: virtio_driver.Wiring = getattr(request, "param", virtio_driver.Wiring())
    monkeypatch.setattr(virtio_driver, "wiring", chosen)
    return chosen


@pytest.fixture
def back_end(tmp_path: Path) -> Iterator[vhost_back_end.Make]:
    """Makes vhost-user back ends, and ends them."""
    made: list[vhost_back_end.TestBackEnd] = []

    def make(
        serve: Callable[[int, vhost_back_end.Request], int | None] = vhost_back_end.reverse, **options: Any
    ) -> vhost_back_end.TestBackEnd:
        made.append(vhost_back_end.TestBackEnd(tmp_path / f"socket{len(made)}", serve, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()
