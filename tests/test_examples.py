"""Every example runs as a user would run it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyvisor.builder.recipe import read_recipe
from support.guests import guest_image, image_cache

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SUITES = sorted(path for path in EXAMPLES.iterdir() if path.is_dir() and any(path.glob("test_*.py")))
MAKE_FILES = {"screenshot": b"\x89PNG", "c64_picture": b"\x89PNG", "hook_heatmap": b"\x89PNG", "hook_profile": b"<svg"}
LAST_LINES = {
    "describe_a_cpu": "interpreter: halt after 904 instructions, r2 = 45150, stored 45150",
    "stack_machine": "jit: halt after 300000004 instructions, 3672921601",
    "run_commands": "banner: Linux version",
    "async_machines": "[55, 5050, 500500]",
    "snapshots": "and on from there: 101",
    "forks": "the machine: a b c",
    "replay": "there and back: True",
    "search": "both machines are the same again: True",
    "screenshot": "640 by 400 pixels: {result}",
    "c64_picture": "384 by 272 pixels, 16 colours: {result}",
    "c64_who_writes": "c019  e6 fb     inc $fb",
    "hook_counters": "plausible: True",
    "hook_syscalls": "openat: True",
    "hook_profile": "written to {result}",
    "hook_heatmap": "written to {result}",
    "hook_cache": "larger is better: True",
}
# Takes a program; `tests/vm/test_analysis.py` has one, and runs it.
WITH_PROGRAMS = ("hook_coverage",)
SLOW = ("hook_cache", "hook_heatmap", "hook_profile", "search")


def run(text: str, *command: str) -> str:
    """Run an example; one that boots machines finds the tests' image."""
    environment = dict(os.environ)
    if "describe_a_cpu" not in text:
        guest_image()
        environment["POLYVISOR_CACHE"] = str(image_cache())
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


PROGRAMS = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] if path.stem in SLOW else [])
    for path in sorted(EXAMPLES.glob("*.py")) if path.stem not in WITH_PROGRAMS
]


@pytest.mark.parametrize("path", PROGRAMS)
def test_an_example_runs(path: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    lines = run(path.stem, str(path), *([str(result)] if path.stem in MAKE_FILES else ())).splitlines()
    if path.stem == "lossy_switch":
        assert lines[-1].endswith("frames sent") and any("20 packets transmitted" in line for line in lines)
    else:
        assert lines[-1] == LAST_LINES[path.stem].format(result=result)
    if path.stem in MAKE_FILES:
        assert result.read_bytes().startswith(MAKE_FILES[path.stem])
    if path.stem == "describe_a_cpu":
        assert lines[0].removeprefix("reference: ") == lines[1].removeprefix("interpreter: ")


@pytest.mark.parametrize("path", SUITES, ids=lambda p: p.name)
def test_an_example_with_tests_passes(path: Path) -> None:
    assert " passed" in run(path.name, "-m", "pytest", "-p", "no:cacheprovider", str(path))


@pytest.mark.parametrize("path", [*PROGRAMS, *(p for s in SUITES for p in s.glob("*.py"))], ids=lambda p: p.stem)
def test_examples_are_short(path: Path) -> None:
    assert path.stem in ("describe_a_cpu", "stack_machine") or len(path.read_text().splitlines()) < 40


def test_the_recipe_is_one() -> None:
    recipe = read_recipe(EXAMPLES / "web_server.toml")
    assert recipe.identity()["name"] == "example:web"
