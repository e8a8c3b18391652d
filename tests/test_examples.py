"""Every example runs as a user would run it."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from polyvisor import images
from support.guests import guest_image

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))
# They boot an image: with that of the tests, which needs no network.
WITH_IMAGE = ("lossy_switch",)


def test_two_machines_on_a_lossy_switch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    image = guest_image()
    monkeypatch.setattr(images, "ensure", lambda name: image)
    runpy.run_path(str(next(p for p in EXAMPLES if p.stem == "lossy_switch")), run_name="__main__")
    printed = capsys.readouterr().out
    assert "20 packets transmitted" in printed and "frames sent" in printed


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem not in WITH_IMAGE], ids=lambda p: p.stem)
def test_an_example_runs(path: Path) -> None:
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    if path.stem == "describe_a_cpu":
        lines = done.stdout.splitlines()
        result = f"halt after 904 instructions, r2 = {300 * 301 // 2}, stored {300 * 301 // 2}"
        assert lines == [f"reference: {result}", f"interpreter: {result}"]
