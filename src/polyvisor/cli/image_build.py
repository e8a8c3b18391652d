"""``polyvisor image build``: images with a root file system, from a recipe or from options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .image import AllowExpired, Keyring, Mirror, app
from .progress import errors, progress


@app.command()
def build(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|NAME", help="A recipe (FILE.toml), debian:full, or a name for a new image.")
    ],
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite to take packages from; if repeated, the first usable one counts.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="PACKAGE,...", help="Packages to install; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PACKAGE,...", help="Packages that must not be in it; may be repeated.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="What is in it anyway: required (the default), essential, none.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="Size of the root disk, for example 2G.")] = None,
    file: Annotated[
        list[str] | None, typer.Option(metavar="HOST:GUEST", help="Copy a file into it; may be repeated.")
    ] = None,
    command: Annotated[
        list[str] | None, typer.Option("--run", metavar="COMMAND", help="Run this in it as root; may be repeated.")
    ] = None,
    user: Annotated[
        list[str] | None, typer.Option(help="A user, who needs no password on the console; may be repeated.")
    ] = None,
    hostname: Annotated[str | None, typer.Option(help="What it calls itself.")] = None,
    lock: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Build exactly what this lock file names; if it is not there, write it afterwards."
        ),
    ] = None,
    cpus: Annotated[
        int, typer.Option("--cpus", "-c", min=1, max=64, help="Harts of the machine that builds.")
    ] = 1,
    mirror: Mirror = None,
    keyring: Keyring = None,
    allow_expired: AllowExpired = False,
) -> None:
    """Build an image with a root file system, in a machine: Debian packages, users, files, commands."""
    with errors():
        # Only now: what builds images needs many libraries, and every start of the command reads this file.
        from polyvisor.builder.build import build as build_image
        from polyvisor.images import debian

        from .recipes import recipe_from

        recipe = recipe_from(
            target, suites=suite or (), include=include or (), exclude=exclude or (), base=base, size=size,
            files=file or (), commands=command or (), users=user or (), hostname=hostname,
        )
        options = debian.Sources(recipe.suites, mirror, keyring, allow_expired)
        with progress() as shown:
            image = build_image(recipe, lock=lock, options=options, progress=shown, cpus=cpus)
        print(image.directory)
