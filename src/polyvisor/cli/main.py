"""The ``polyvisor`` command.

Only what belongs to the command that is asked for is imported: a machine is to start at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

import polyvisor

from .run_machines import RunCommand

# Modules with commands of their own, by the word they come behind; and commands: module, function, and how typer is to
# take them. In the order in which help shows them.
_GROUPS = {"image": "image_build", "disk": "disk", "cache": "cache", "snapshot": "snapshot"}
_ALL_ELSE = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
_COMMANDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "run": ("run", "run", {"cls": RunCommand}),
    "restore": ("snapshot", "restore", {}),
    "record": ("replay", "record", {"context_settings": _ALL_ELSE}),
    "replay": ("replay", "replay", {}),
    "ps": ("machines", "ps", {}),
    "exec": ("machines", "execute", {"context_settings": {"allow_interspersed_args": False}}),
    "cp": ("machines", "copy", {}),
    "console": ("machines", "console", {}),
    "logs": ("machines", "logs", {}),
    "stop": ("machines", "stop", {}),
}
# Commands that others work by.
_USES = {"record": ("run",)}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"polyvisor {polyvisor.__version__}")
        raise typer.Exit


def _options(
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
    app.callback()(_options)
    known = [*_COMMANDS, *_GROUPS]
    asked = arguments[0] if arguments else ""
    for name in [asked, *_USES.get(asked, ())] if asked in known else known:
        if name in _GROUPS:
            app.add_typer(import_module(f".{_GROUPS[name]}", __package__).app, name=name)
        else:
            module, function, options = _COMMANDS[name]
            app.command(name, **options)(getattr(import_module(f".{module}", __package__), function))
    return app


def main() -> None:
    """Entry point of the command."""
    make_app(sys.argv[1:])()
