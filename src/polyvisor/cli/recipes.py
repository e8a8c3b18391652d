"""Recipes as the command line gives them: a file, a name, and options that change them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyvisor import images
from polyvisor.builder.builtin import NAME as FULL
from polyvisor.builder.builtin import RECIPE as FULL_RECIPE
from polyvisor.builder.recipe import Recipe, User, parse_file, read_recipe, size_in_bytes
from polyvisor.images import ImageError

_ADDED = ("packages", "exclude", "users", "files", "run")


def choose_recipe(target: str) -> Recipe:
    """The recipe in a file, or of an image that is known, or an empty one of that name. Raises ImageError."""
    if target.endswith(".toml") or "/" in target or Path(target).is_file():
        return read_recipe(Path(target))
    if target == FULL:
        return FULL_RECIPE
    if target in images.KNOWN:
        raise ImageError(f"{target} has no root disk and is not built: polyvisor image pull {target}", "usage")
    return Recipe(target)


def _names(values: Sequence[str]) -> tuple[str, ...]:
    """``a,b`` and ``c`` given one after the other."""
    return tuple(name.strip() for value in values for name in value.split(",") if name.strip())


def change_recipe(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with what the options say: those of one value replace, those of several add."""
    for key, value in changes.items():
        if value:
            new: Any = (*getattr(recipe, key), *value) if key in _ADDED else value
            recipe = dataclasses.replace(recipe, **{key: new})
    return recipe


def recipe_from(
    target: str, *, suites: Sequence[str], include: Sequence[str], exclude: Sequence[str], base: str | None,
    size: str | None, files: Sequence[str], commands: Sequence[str], users: Sequence[str], hostname: str | None,
) -> Recipe:
    """What the arguments of ``polyvisor image build`` describe. Raises ImageError."""
    return change_recipe(
        choose_recipe(target),
        suites=_names(suites),
        packages=_names(include),
        exclude=_names(exclude),
        base=base,
        size=size_in_bytes(size) if size is not None else None,
        files=tuple(map(parse_file, files)),
        run=tuple(commands),
        users=tuple(map(User, users)),
        hostname=hostname,
    )
