"""``polyvisor image``: fetch, list, check and carry guest images. See also :mod:`polyvisor.cli.image_build`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polyvisor import images
from polyvisor.images import transfer

from .progress import errors, progress

app = typer.Typer(help="Fetch, build, list and check guest images.", no_args_is_help=True)

# Where packages come from, for `pull` and `build`.
Mirror = Annotated[str | None, typer.Option(help="URL of a Debian mirror; default: the one apt uses.")]
Keyring = Annotated[
    Path | None, typer.Option(help="OpenPGP keyring that must have signed the suite; default: apt's.")
]
AllowExpired = Annotated[bool, typer.Option("--allow-expired", help="Use a suite's index after its Valid-Until.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help=f"An image: {', '.join(images.KNOWN)}.")]


@app.command()
def pull(
    name: Name,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Suite to take packages from; may be given several times, the first usable one counts."),
    ] = None,
    mirror: Mirror = None,
    keyring: Keyring = None,
    allow_expired: AllowExpired = False,
    directory: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Build from the .deb and .tar files in DIR, without a network."),
    ] = None,
) -> None:
    """Fetch the newest packages of an image and build it. Interrupted downloads resume."""
    with errors():
        with progress() as shown:
            if directory is not None:
                image = images.build_from_packages(directory, name=name, progress=shown)
            else:
                options: images.Options = {"mirror": mirror, "keyring": keyring, "allow_expired": allow_expired}
                if suite:
                    options["suites"] = suite
                image = images.pull(name, progress=shown, **options)
        print(image.directory)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def describe(image: images.Image) -> dict[str, Any]:
    """What ``list`` says about an image."""
    return {
        "name": image.name,
        "version": image.version,
        "arch": image.arch,
        "kernel_version": image.kernel_version,
        "suite": image.suite,
        "created": image.created,
        "append": image.append,
        "disk": image.has_disk,
        "size": image.size,
        "directory": str(image.directory),
    }


@app.command("list")
def list_images(as_json: AsJson = False) -> None:
    """List the images that are here."""
    with errors():
        found = images.local()
    if as_json:
        print(json.dumps([describe(image) for image in found], indent=2))
        return
    table = Table("NAME", "VERSION", "ARCH", "SUITE", "CREATED", "SIZE", box=None, pad_edge=False)
    for image in found:
        suite = image.suite or "local"
        table.add_row(image.name, image.version, image.arch, suite, image.created, f"{image.size / 1e6:.1f} MB")
    Console().print(table)


@app.command()
def inspect(name: Name, as_json: AsJson = False) -> None:
    """Show what an image is made of: packages with their versions, files with their hashes, the command line."""
    with errors():
        image = images.get(name)
        try:
            lock = image.lock
            kinds = {key: lock[key] for key in ("boot", "packages") if key in lock}
            packages = sorted((each for kind in kinds.values() for each in kind), key=lambda each: str(each["name"]))
            whole = {
                **describe(image),
                "recipe": lock.get("recipe"),
                "files": lock["files"],
                "packages": [
                    {key: each[key] for key in ("name", "version", "architecture", "size", "sha256")}
                    for each in packages
                ],
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise images.ImageError(f"the lock file of image {name} cannot be read: {error}", "damaged") from error
    if as_json:
        print(json.dumps(whole, indent=2))
        return
    for key in ("name", "version", "arch", "kernel_version", "suite", "created", "append", "directory"):
        print(f"{key.replace('_', ' ')}: {whole[key]}")
    print(f"size: {image.size / 1e6:.1f} MB")
    for file, entry in whole["files"].items():
        print(f"{file}: {entry['size']} bytes, sha256 {entry['sha256']}")
    table = Table("PACKAGE", "VERSION", "ARCH", "SIZE", box=None, pad_edge=False)
    for each in whole["packages"]:
        table.add_row(each["name"], each["version"], each["architecture"], f"{each['size'] / 1e3:.0f} kB")
    Console().print(table)


@app.command()
def export(
    name: Name, target: Annotated[Path, typer.Argument(metavar="FILE.tar", help="The archive to write.")]
) -> None:
    """Write an image to a tar archive, to be imported elsewhere."""
    with errors():
        transfer.export(name, target)


@app.command("import")
def import_image(
    source: Annotated[Path, typer.Argument(metavar="FILE.tar", help="An archive that export wrote.")]
) -> None:
    """Take in an image that was exported; every file is compared with its hash."""
    with errors():
        print(transfer.import_image(source).directory)


@app.command()
def prune() -> None:
    """Delete replaced versions of images, and downloads that no image here was made of."""
    with errors():
        print(f"{images.prune() / 1e6:.1f} MB freed")


@app.command()
def path(name: Name) -> None:
    """Print the directory of an image: it holds kernel, initrd, image.json, lock.json, and disk."""
    with errors():
        print(images.get(name).directory)


@app.command()
def verify(name: Name) -> None:
    """Compare the files of an image with the hashes in its lock file."""
    with errors():
        image = images.verify(name)
        print(f"{image.name} {image.version}: all files are as they were built")


@app.command()
def remove(name: Name) -> None:
    """Delete an image, and with the last one all downloads."""
    with errors():
        images.remove(name)
