"""``polyvisor image``: fetch, list and check guest images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Column, Table

from polyvisor import images

app = typer.Typer(help="Fetch, list and check guest images.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help=f"An image: {', '.join(images.KNOWN)}.")]


class LineProgress:
    """Progress as one line per stage, for logs."""

    def stage(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def transfer(self, name: str, done: int, total: int) -> None:
        pass


class BarProgress:
    """Progress as lines with a bar below for the file that is being fetched, for terminals."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def stage(self, text: str) -> None:
        self._bars.console.print(escape(text), highlight=False)

    def transfer(self, name: str, done: int, total: int) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(escape(name.split("_")[0]), total=total)
        self._bars.update(self._tasks[name], completed=done)
        if done == total:
            self._bars.remove_task(self._tasks.pop(name))


@contextmanager
def progress() -> Iterator[images.Progress]:
    """What to pass as ``progress`` to :mod:`polyvisor.images`: bars on a terminal, else one line per stage."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield LineProgress()
        return
    one_line = Column(no_wrap=True)
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=32)),
        BarColumn(bar_width=20),
        DownloadColumn(table_column=one_line),
        TransferSpeedColumn(table_column=one_line),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        yield BarProgress(bars)


@contextmanager
def errors() -> Iterator[None]:
    """Report an ImageError in one line on stderr, and exit with status 1."""
    try:
        yield
    except images.ImageError as error:
        print(f"polyvisor: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


@app.command()
def pull(
    name: Name,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="Suite to take packages from; may be given several times, the first usable one counts."),
    ] = None,
    mirror: Annotated[str | None, typer.Option(help="URL of a Debian mirror; default: the one apt uses.")] = None,
    keyring: Annotated[
        Path | None, typer.Option(help="OpenPGP keyring that must have signed the suite; default: apt's.")
    ] = None,
    allow_expired: Annotated[
        bool, typer.Option("--allow-expired", help="Use a suite's index after its Valid-Until.")
    ] = False,
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


@app.command("list")
def list_images() -> None:
    """List the images that are here."""
    table = Table("NAME", "VERSION", "ARCH", "SUITE", "CREATED", "SIZE", box=None, pad_edge=False)
    for image in images.local():
        size = sum(path.stat().st_size for path in (image.kernel, image.initrd))
        suite = image.suite or "local"
        table.add_row(image.name, image.version, image.arch, suite, image.created, f"{size / 1e6:.1f} MB")
    Console().print(table)


@app.command()
def path(name: Name) -> None:
    """Print the directory of an image: it holds kernel, initrd, image.json and lock.json."""
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
