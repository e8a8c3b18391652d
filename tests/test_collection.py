"""What lasts is not looked at for garbage, and the collector is afterwards as it was before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from polyvisor.collection import Lasting


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    enabled = gc.isenabled()
    yield
    gc.unfreeze()
    (gc.enable if enabled else gc.disable)()


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


def test_nobody_looks_meanwhile_or_at_once_afterwards() -> None:
    gc.enable()
    before = collections()
    with Lasting():
        made = [[number] for number in range(100_000)]
    assert collections() == before
    assert gc.isenabled()
    assert gc.get_count()[0] < 1000
    assert len(made) == 100_000
    assert gc.get_freeze_count() == 0


def test_garbage_is_found_by_a_full_collection() -> None:
    gc.enable()
    gc.collect()
    with Lasting():
        for _ in range(10):
            ring: list[object] = []
            ring.append(ring)
    del ring
    assert gc.collect() >= 10


def test_what_is_off_or_frozen_stays_so() -> None:
    gc.disable()
    with Lasting():
        pass
    assert not gc.isenabled()
    gc.enable()
    gc.freeze()
    frozen = gc.get_freeze_count()
    with pytest.raises(KeyError), Lasting():
        raise KeyError
    assert gc.get_freeze_count() >= frozen > 0
    assert gc.isenabled()
