"""``polyvisor run`` for machines that have options of their own, which follow their name."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand


class RunCommand(TyperCommand):
    """``run``, but where the first word is the name of such a machine."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of ``run``, or of the machine's own command, which then is the one that is invoked."""
        if args[:1] == ["c64"]:
            return _c64().make_context(f"{info_name} c64", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


def _c64() -> Any:
    # Not before it is wanted: describing a machine takes time.
    from .c64 import run_c64

    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(run_c64)
    return typer.main.get_command(app)
