"""Every example runs as a user would run it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polyvisor.builder.recipe import read_recipe

DIRECTORY = Path(__file__).resolve().parents[1] / "examples"
EXAMPLES = sorted(DIRECTORY.glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if path.stem == "describe_a_cpu":
        lines = done.stdout.splitlines()
        result = f"halt after 904 instructions, r2 = {300 * 301 // 2}, stored {300 * 301 // 2}"
        assert lines == [f"reference: {result}", f"interpreter: {result}"]


@pytest.mark.parametrize("path", sorted(DIRECTORY.glob("*.toml")), ids=lambda p: p.stem)
def test_a_recipe_is_one(path: Path) -> None:
    assert read_recipe(path).identity()["name"].startswith("example:")
