"""The ``polyvisor`` command.

Only what belongs to the command that is asked for is imported: a machine is to start at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Annotated

import typer

import polyvisor


def _image(app: typer.Typer) -> None:
    from . import image
    from .image_build import build

    image.app.command()(build)
    app.add_typer(image.app, name="image")


def _disk(app: typer.Typer) -> None:
    from . import disk

    app.add_typer(disk.app, name="disk")


def _cache(app: typer.Typer) -> None:
    from . import cache

    app.add_typer(cache.app, name="cache")


def _snapshot(app: typer.Typer) -> None:
    from . import snapshot

    app.add_typer(snapshot.app, name="snapshot")


def _run(app: typer.Typer) -> None:
    from .run import run
    from .run_machines import RunCommand

    app.command(cls=RunCommand)(run)


def _restore(app: typer.Typer) -> None:
    from . import snapshot

    app.command()(snapshot.restore)


def _record(app: typer.Typer) -> None:
    from .replay import record

    others = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
    app.command(context_settings=others)(record)


def _replay(app: typer.Typer) -> None:
    from .replay import replay

    app.command()(replay)


def _ps(app: typer.Typer) -> None:
    from . import machines

    app.command()(machines.ps)


def _exec(app: typer.Typer) -> None:
    from . import machines

    app.command("exec", context_settings={"allow_interspersed_args": False})(machines.execute)


def _cp(app: typer.Typer) -> None:
    from . import machines

    app.command("cp")(machines.copy)


def _console(app: typer.Typer) -> None:
    from . import machines

    app.command()(machines.console)


def _logs(app: typer.Typer) -> None:
    from . import machines

    app.command()(machines.logs)


def _stop(app: typer.Typer) -> None:
    from . import machines

    app.command()(machines.stop)


# In the order in which help shows them.
_COMMANDS: dict[str, Callable[[typer.Typer], None]] = {
    "run": _run, "restore": _restore, "record": _record, "replay": _replay, "ps": _ps, "exec": _exec, "cp": _cp,
    "console": _console, "logs": _logs, "stop": _stop, "image": _image, "disk": _disk, "cache": _cache,
    "snapshot": _snapshot,
}

# Commands that others work by.
_USES = {"record": ("run",)}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"polyvisor {polyvisor.__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Virtual machines described in Python."""


def make_app(arguments: Sequence[str]) -> typer.Typer:
    """The command for these arguments: with all its commands, unless they begin with the name of one."""
    app = typer.Typer(
        help="Virtual machines described in Python.", no_args_is_help=True, pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    app.callback()(options)
    asked = arguments[0] if arguments else ""
    for name in [asked, *_USES.get(asked, ())] if asked in _COMMANDS else _COMMANDS:
        _COMMANDS[name](app)
    return app


def main() -> None:
    """Entry point of the command."""
    make_app(sys.argv[1:])()
