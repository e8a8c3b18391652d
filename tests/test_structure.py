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
LAYERS = (
    *("adl", "isa", "engine", "storage", "network", "devices", "boards"),
    *("images", "guest", "vm", "builder", "host", "cli"),
)
# They know nothing of machines.
ALONE = ("storage", "network", "images")
MODULES = sorted(SOURCE.rglob("*.py"))
# What `Primitives`, `Executor`, `Device`, `Emitter` and `Progress` document for all who implement them.
DOCUMENTED_ELSEWHERE = frozenset(
    """
    load store atomic compare_exchange phys_load phys_store phys_compare_exchange fence flush_tlb flush_tlb_page
    flush_code clock instructions encoding leave wait cpus cycle stall cycles has signal flush_others connect read write
    run step stop poke reset retired stage transfer emit_return emit_raise begin_block
    """.split()
)


def imports_of(text: str, path: Path) -> set[str]:
    """The polyvisor packages that the module ``text`` at ``path`` imports, directly."""
    package = path.relative_to(SOURCE).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = ("polyvisor", *package)[: len(package) + 2 - node.level]
                start = ".".join((*base, *filter(None, [node.module])))
                names = [f"{start}.{alias.name}" for alias in node.names]
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
    if layer in ALONE:
        allowed = {layer}
    wrong = (imports_of(path.read_text(), path) & set(LAYERS)) - allowed
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


def undocumented_methods(tree: ast.Module) -> list[str]:
    """The public methods that say nothing: neither where they are, nor by taking part in a pattern that explains them.

    Exempt are operations (``op_...``, which `adl.ssa.Op` documents), setters, and methods that the class or a class
    beside it (a base, a protocol) has documented under the same name.
    """
    classes = [n for n in tree.body if isinstance(n, ast.ClassDef)]
    methods = [(c.name, m) for c in classes for m in c.body if isinstance(m, ast.FunctionDef)]
    known = {m.name for _, m in methods if ast.get_docstring(m)} | DOCUMENTED_ELSEWHERE
    return [
        f"{owner}.{m.name}"
        for owner, m in methods
        if not owner.startswith("_") and not m.name.startswith(("_", "op_")) and m.name not in known
    ]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_public_methods_are_documented(path: Path) -> None:
    missing = undocumented_methods(ast.parse(path.read_text()))
    assert not missing, f"{path.relative_to(ROOT)}: no docstring for {', '.join(missing)}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        text = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.S)
        for target in re.findall(r"\]\(([^)#]+)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_every_page_is_listed_and_begins_with_something_to_try() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "index.md" or f"]({page.name})" in index, f"docs/index.md does not list {page.name}"
        lines = [line for line in page.read_text().splitlines() if line.strip()]
        assert lines[0].startswith("# ") and lines[1].startswith("```"), f"{page.name} does not begin with a snippet"


def test_every_package_has_a_place_among_the_layers() -> None:
    packages = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    assert packages <= set(LAYERS), "add the package to LAYERS, and to docs/architecture.md"


@pytest.mark.parametrize(
    ("module", "text", "layers"),
    [
        ("engine/x.py", "from .. import boards", {"boards"}),
        ("engine/x.py", "from ..boards import virt", {"boards"}),
        ("isa/riscv/x.py", "from ...engine.cpu import Cpu", {"engine"}),
        ("isa/riscv/x.py", "from ..riscv import base", {"isa"}),
        ("adl/x.py", "def f():\n    import polyvisor.vm.machine", {"vm"}),
        ("adl/x.py", "from polyvisor import cli, isa", {"cli", "isa"}),
    ],
)
def test_the_rule_sees_every_way_to_import(module: str, text: str, layers: set[str]) -> None:
    assert imports_of(text, SOURCE / module) & set(LAYERS) == layers


def test_files_have_one_subject() -> None:
    # The front end is one evaluator; it is to be split where its calls begin.
    known = {"adl/frontend.py": 1150}
    for path in MODULES:
        name = str(path.relative_to(SOURCE))
        lines = len(path.read_text().splitlines())
        assert lines <= known.get(name, 700), f"{name} has {lines} lines; is it two files?"


def test_nothing_names_a_package_registry() -> None:
    hosts = re.compile(
        r"(deb|ftp(\.\w+)?|security|snapshot|archive)\.debian\.org|\bpypi\.(org|io)|files\.pythonhosted|registry\.npmjs"
        r"|(static\.)?crates\.io|rubygems\.org|proxy\.golang\.org|repo1?\.maven|archive\.ubuntu\.com|conda\.anaconda"
    )
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
