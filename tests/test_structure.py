"""The layout is the architecture: imports go one way, and the tree is clean."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "polyvisor"
LAYERS = ("adl", "isa", "engine", "devices", "boards", "vm", "images", "host", "cli")
MODULES = sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The polyvisor packages a module imports, directly."""
    package = path.relative_to(SOURCE).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ("polyvisor", *package)[: len(package) + 2 - node.level]
                names = [".".join((*base, *filter(None, [node.module])))]
            else:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {parts[1] for name in names if (parts := name.split("."))[0] == "polyvisor" and len(parts) > 1}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_layer_imports_only_from_those_above_it(path: Path) -> None:
    layer = path.relative_to(SOURCE).parts[0]
    if layer not in LAYERS:
        return  # the package's own __init__ and __main__
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    if layer == "images":
        allowed = {"images"}
    wrong = (imported(path) & set(LAYERS)) - allowed
    assert not wrong, f"{path.relative_to(ROOT)} imports from {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_public_things_are_documented(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if not tree.body:
        return
    missing = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            described = isinstance(node, ast.FunctionDef) and bool(node.decorator_list)
            if not described and not ast.get_docstring(node):
                missing.append(node.name)
    assert not missing, f"{path.relative_to(ROOT)}: no docstring for {', '.join(missing)}"


def test_files_have_one_subject() -> None:
    # The front end is one evaluator; it is to be split where its calls begin.
    known = {"adl/frontend.py": 1100}
    for path in MODULES:
        name = str(path.relative_to(SOURCE))
        lines = len(path.read_text().splitlines())
        assert lines <= known.get(name, 700), f"{name} has {lines} lines; is it two files?"


def test_nothing_names_a_package_registry() -> None:
    hosts = re.compile(r"deb\.debian\.org|ftp\.\w+\.debian\.org|pypi\.org|files\.pythonhosted|registry\.npmjs")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path == Path(__file__) or not path.is_file():
            continue
        found = hosts.search(path.read_text(errors="replace"))
        assert not found, f"{name} names {found and found.group()}"


@pytest.mark.parametrize(
    "command", [["ruff", "check", "src", "tests", "benchmarks", "examples"], ["mypy"]], ids=lambda c: str(c[0])
)
def test_the_tree_passes(command: list[str]) -> None:
    if importlib.util.find_spec(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
