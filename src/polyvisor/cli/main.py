"""The ``polyvisor`` command."""

from __future__ import annotations

from typing import Annotated

import typer

import polyvisor

from . import cache, disk, image, machines, snapshot
from .image_build import build
from .replay import record, replay
from .run import run
from .run_machines import RunCommand

app = typer.Typer(
    help="Virtual machines described in Python.", no_args_is_help=True, pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
image.app.command()(build)
app.add_typer(image.app, name="image")
app.add_typer(disk.app, name="disk")
app.add_typer(cache.app, name="cache")
app.add_typer(snapshot.app, name="snapshot")
app.command(cls=RunCommand)(run)
app.command()(snapshot.restore)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(record)
app.command()(replay)
app.command()(machines.ps)
app.command("exec", context_settings={"allow_interspersed_args": False})(machines.execute)
app.command("cp")(machines.copy)
app.command()(machines.console)
app.command()(machines.logs)
app.command()(machines.stop)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"polyvisor {polyvisor.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Virtual machines described in Python."""


def main() -> None:
    """Entry point of the command."""
    app()
