"""Every test here may be run over all transports and ring formats: ``pytestmark = every_wiring``."""

from __future__ import annotations

import pytest
import virtio_driver


@pytest.fixture(autouse=True)
def wiring(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> virtio_driver.Wiring:
    """How the drivers of this test reach their devices."""
    chosen: virtio_driver.Wiring = getattr(request, "param", virtio_driver.Wiring())
    monkeypatch.setattr(virtio_driver, "wiring", chosen)
    return chosen
