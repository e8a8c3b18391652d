"""Every example runs as a user would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyvisor.builder.recipe import read_recipe
from polyvisor.cachedir import cache_root
from support.guests import guest_image

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
# These boot an image, that of the tests; of these again some are called with the file they make.
WITH_LINUX = ("lossy_switch", "screenshot")
MAKE_FILES = ("screenshot",)


def cache_with_image(directory: Path) -> Path:
    """A cache with the image of the tests, and compiled code that is there already."""
    cache = directory / "cache"
    cache.mkdir()
    (cache / "images").symlink_to(guest_image().directory.parents[1])
    (cache_root() / "handlers").mkdir(parents=True, exist_ok=True)
    (cache / "handlers").symlink_to(cache_root() / "handlers")
    return cache


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    arguments: list[str] = []
    environment = dict(os.environ)
    if path.stem in WITH_LINUX:
        environment["POLYVISOR_CACHE"] = str(cache_with_image(tmp_path))
    if path.stem in MAKE_FILES:
        arguments = [str(tmp_path / "result")]
    done = subprocess.run(
        [sys.executable, str(path), *arguments], capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    if path.stem == "lossy_switch":
        assert "20 packets transmitted" in done.stdout and "frames sent" in done.stdout
    if path.stem == "screenshot":
        assert (tmp_path / "result").read_bytes().startswith(b"\x89PNG")
        assert done.stdout == f"640 by 400 pixels: {tmp_path / 'result'}\n"
    if path.stem == "describe_a_cpu":
        lines = done.stdout.splitlines()
        result = f"halt after 904 instructions, r2 = {300 * 301 // 2}, stored {300 * 301 // 2}"
        assert lines == [f"reference: {result}", f"interpreter: {result}"]


def test_the_recipe_is_one() -> None:
    recipe = read_recipe(EXAMPLES[0].with_name("web_server.toml"))
    assert recipe.identity()["name"] == "example:web"
