"""What an image will be made of, to the byte: a recipe's packages, chosen and locked."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from polyvisor.images import ImageError, Progress, debian, store
from polyvisor.images.fetch import Fetcher
from polyvisor.images.repository import Package
from polyvisor.images.resolver import Candidate, Relation, Universe, install_order, parse_relations, resolve

from .recipe import Recipe

FORMAT = 2
"""Of lock files; those of images without a disk have format 1."""
PROCEDURE = 1
"""Changes with everything that makes other disks of the same packages and the same recipe."""
_TOOLS = ("e2fsprogs",)
_NAMESPACE = uuid.UUID("3c2c7b9e-6a51-4f0a-9d0e-64a3f2f3a2c5")
_LISTS = ("boot", "tools", "packages")
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_PACKAGE_FIELDS = {"name": str, "version": str, "architecture": str, "path": str, "size": int, "sha256": str}


@dataclass(frozen=True)
class Plan:
    """A recipe with the packages it comes to; ``lock`` is all of that, as it goes to the lock file.

    ``made``: what a lock file says about the files that were made of it before; nothing in a new plan.

    Its keys: ``format``, ``procedure``, ``recipe``, ``suite``, ``release`` and ``epoch`` (seconds since 1970, the time
    that the build takes place at as far as its results can tell); lists of packages ``boot`` (kernel and busybox),
    ``tools`` (what makes the file system) and ``packages``; names of packages ``essential`` (installed first),
    ``batches`` (then these, one list after the other) and ``automatic`` (there as dependencies only).
    """

    recipe: Recipe
    lock: dict[str, Any]
    made: Mapping[str, Any] = field(default_factory=dict)

    def differences(self, files: Mapping[str, Any]) -> list[str]:
        """The names of files that did not come out as they did before."""
        return [name for name in sorted(self.made.keys() & files.keys()) if self.made[name] != files[name]]

    def packages(self, kind: str) -> list[Package]:
        """The packages of a list of the lock."""
        return [
            Package(**{key: each[key] for key in _PACKAGE_FIELDS}, depends=()) for each in self.lock[kind]
        ]

    @property
    def seed(self) -> str:
        """A hash of the whole plan."""
        return hashlib.sha256(json.dumps(self.lock, sort_keys=True).encode()).hexdigest()

    def uuid(self, what: str) -> str:
        """A UUID that only this plan gives."""
        return str(uuid.uuid5(_NAMESPACE, f"{what} {self.seed}"))

    def fetch(self, options: debian.Sources, progress: Progress) -> dict[str, Path]:
        """Fetch all packages, those that are not here; gives files by their hashes. Raises :class:`ImageError`."""
        unique = {each.sha256: each for kind in _LISTS for each in self.packages(kind)}
        here = [sha256 for sha256, each in unique.items() if _is_here(each)]
        fetcher: Fetcher
        if len(here) == len(unique):
            fetcher = Fetcher("", store.downloads(), progress)  # nothing to fetch needs no mirror
        else:
            fetcher, _ = debian.make_fetcher(options, progress)
        missing = [each for sha256, each in unique.items() if sha256 not in here]
        try:
            debian.fetch_files(fetcher, missing, progress)
        except ImageError as error:
            if error.kind == "missing":
                raise ImageError(
                    f"{error}; a mirror has only the newest packages: give --mirror one that keeps old ones, or build "
                    "without the lock file",
                    "missing",
                ) from error
            raise
        return {
            sha256: fetcher.file(each.path, size=each.size, sha256=sha256) for sha256, each in unique.items()
        }


def _is_here(package: Package) -> bool:
    path = store.downloads() / package.sha256
    return path.exists() and path.stat().st_size == package.size


def make_plan(recipe: Recipe, options: debian.Sources, progress: Progress) -> Plan:
    """Choose the newest packages for a recipe, of the first suite that can be used, and fetch them.

    Raises :class:`ImageError`.
    """
    chosen: dict[str, Any] = {}
    identity = recipe.identity()  # reads the recipe's files: one that is missing is told before anything is fetched

    def choose(index: Path) -> list[Package]:
        progress.stage("choosing packages")
        chosen.clear()
        chosen.update(choose_packages(recipe, index))
        return list({each.sha256: each for kind in _LISTS for each in chosen[kind]}.values())

    fetched = debian.fetch(
        debian.Sources(recipe.suites, options.mirror, options.keyring, options.allow_expired), choose, progress
    )
    origin = fetched.origin()
    lock = {
        "format": FORMAT,
        "procedure": PROCEDURE,
        "recipe": identity,
        "suite": origin["suite"],
        "release": origin["release"],
        "epoch": int(parsedate_to_datetime(fetched.index.date.replace("UTC", "+0000")).timestamp()),
        **{key: [debian.locked(each) for each in chosen[key]] for key in _LISTS},
        **{key: chosen[key] for key in ("essential", "batches", "automatic")},
    }
    return Plan(recipe, lock)


def choose_packages(recipe: Recipe, index: Path) -> dict[str, Any]:
    """What of a lock file follows from a ``Packages.xz``. Raises :class:`ImageError`."""
    universe = Universe.open(index)
    base: list[str] = []
    if recipe.base != "none":
        base += universe.essential()
    if recipe.base == "required":
        base += universe.with_priority("required")
    base = [name for name in dict.fromkeys(base) if name not in recipe.exclude]
    packages = resolve(universe, [*recipe.packages, *base], recipe.exclude)
    essential = _closure(packages, [each.name for each in packages if each.essential])
    rest = [each for each in packages if each.name not in essential]
    wanted = {parse_relations(text)[0][0].name for text in recipe.packages} | set(base)
    return {
        "boot": debian.boot_packages(index),
        "tools": [each.package for each in resolve(universe, _TOOLS)],
        "packages": [each.package for each in packages],
        "essential": sorted(essential),
        "batches": [[each.name for each in batch] for batch in install_order(rest)],
        "automatic": [each.name for each in packages if each.name not in wanted],
    }


def _closure(packages: Sequence[Candidate], names: Iterable[str]) -> set[str]:
    """``names`` and what of ``packages`` they depend on."""
    by_name = {each.name: each for each in packages}
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        found.add(name)
        for group in (*by_name[name].pre_depends, *by_name[name].depends):
            queue += _satisfying(packages, group)
    return found


def _satisfying(packages: Sequence[Candidate], group: Sequence[Relation]) -> list[str]:
    return [each.name for relation in group for each in packages if each.satisfies(relation)][:1]


def read_plan(path: Path, recipe: Recipe) -> Plan:
    """The plan in a lock file, for the recipe that it was made for. Raises :class:`ImageError` ("usage")."""
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise ImageError(f"lock file {path}: {error.strerror}", "usage") from error
    except ValueError as error:
        raise ImageError(f"lock file {path} is not JSON: {error}", "usage") from error
    why = _check_lock(fields, recipe)
    if why:
        raise ImageError(f"lock file {path}: {why}", "usage")
    made = fields.pop("files", {})
    return Plan(recipe, fields, made if isinstance(made, dict) else {})


def _check_lock(fields: Any, recipe: Recipe) -> str:
    """What is wrong with it; empty when nothing is."""
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        return "it is not one of an image with a disk"
    if fields.get("procedure") != PROCEDURE:
        return (
            f"it was made for build procedure {fields.get('procedure')!r}, this polyvisor has {PROCEDURE}: use the "
            "version of polyvisor that made it, or build without the lock file"
        )
    if fields.get("recipe") != recipe.identity():
        return "the recipe (or a file that it names) has changed since: build without the lock file, to a new one"
    try:
        for kind in _LISTS:
            for each in fields[kind]:
                if any(type(each[key]) is not wanted for key, wanted in _PACKAGE_FIELDS.items()):
                    return f"an entry of {kind!r} is damaged"
                if not _NAME.fullmatch(each["name"]):
                    return f"{each['name']!r} is not the name of a package"
        names = {each["name"] for each in fields["packages"]}
        listed = [*fields["essential"], *(name for batch in fields["batches"] for name in batch)]
        good = sorted(listed) == sorted(names) and set(fields["automatic"]) <= names and type(fields["epoch"]) is int
    except (KeyError, TypeError):
        good = False
    return "" if good else "it is damaged"


def same(plan: Plan, lock: Mapping[str, Any]) -> bool:
    """Whether an image with this lock file is what the plan would give."""
    keys = ("format", "procedure", "recipe", "boot", "tools", "packages")
    return all(lock.get(key) == plan.lock[key] for key in keys)
