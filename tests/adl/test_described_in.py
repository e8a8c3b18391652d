"""Descriptions in modules that are imported when somebody looks."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyvisor.adl import Architecture

ROOT = """
from polyvisor.adl import Architecture

toy = Architecture("toy", reasons=["odd"])
toy.described_in("toy_parts", "first", "second")
"""
FIRST = """
from . import toy

toy.kind("thing", ("a", "b"))


@toy.instruction("00000001", "one")
def one(cpu):
    pass


@toy.hook("poll")
def poll(cpu):
    pass
"""
SECOND = """
import time
from . import toy

time.sleep(0.05)


@toy.instruction("00000010", "two")
def two(cpu):
    pass
"""


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    package = tmp_path / "toy_parts"
    package.mkdir()
    for name, text in (("__init__", ROOT), ("first", FIRST), ("second", SECOND)):
        (package / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "toy_parts"]:
        del sys.modules[name]


def toy() -> Architecture:
    made: Architecture = importlib.import_module("toy_parts").toy
    return made


@pytest.mark.parametrize("attribute", ["instructions", "kinds", "hooks", "modifiers", "tree"])
def test_modules_are_imported_when_the_description_is_looked_at(parts: None, attribute: str) -> None:
    described = toy()
    assert described.package == "toy_parts" and described.unit == 1
    assert "toy_parts.first" not in sys.modules
    getattr(described, attribute)
    assert [each.name for each in described.instructions] == ["one", "two"]
    assert "poll" in described.hooks and described.reasons == ["odd"] and "thing" in described.kinds
    with pytest.raises(AttributeError, match="an architecture has no colour"):
        _ = described.colour  # type: ignore[attr-defined]


def test_the_order_is_that_of_the_modules_whichever_comes_first(parts: None) -> None:
    described = toy()
    importlib.import_module("toy_parts.second")
    assert [function.name for function in described.functions()[:2]] == ["one", "two"]
    assert [each.name for each in described.instructions] == ["one", "two"]
    variant = described.variant("other")
    assert variant.package is None and [each.name for each in variant.instructions] == ["one", "two"]


def test_who_looks_meanwhile_waits_for_all_of_it(parts: None) -> None:
    described = toy()
    found: list[tuple[int, bool]] = []
    threads = [
        threading.Thread(target=lambda: found.append((len(described.instructions), "poll" in described.hooks)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == [(2, True)] * 4
