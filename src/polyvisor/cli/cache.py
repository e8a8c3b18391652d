"""``polyvisor cache``: what compiled code is kept, and removing it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from polyvisor.engine import codecache
from polyvisor.engine.objectcode import cache_key
from polyvisor.isa.riscv import rv64

from .run import fail

app = typer.Typer(help="Show and clear the compiled code that is kept between runs.", invoke_without_command=True)


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


@app.callback()
def show(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False,
) -> None:
    """Show what compiled code is kept: per description and host, the number of units of each kind and their size."""
    if context.invoked_subcommand is not None:
        return
    current = cache_key(rv64)
    kept = codecache.contents()
    total, limit = sum(c.size for c in kept), codecache.size_limit()
    if as_json:
        keys = [
            {
                "key": c.key, "current": c.key == current, "bytes": c.size,
                "kinds": {kind: {"count": n, "bytes": size} for kind, (n, size) in c.kinds.items()},
            }
            for c in kept
        ]
        found = {"path": str(codecache.code_root()), "bytes": total, "limit": limit, "keys": keys}
        print(json.dumps(found, indent=2))
        return
    print(f"{codecache.code_root()}: {_mebibytes(total)} of at most {_mebibytes(limit)}")
    for c in kept:
        kinds = ", ".join(f"{n} {kind}{'s' if n != 1 else ''}" for kind, (n, _) in c.kinds.items())
        print(f"  {c.key}  {_mebibytes(c.size):>10}  {kinds}{'  (in use)' if c.key == current else ''}")


@app.command()
def clear() -> None:
    """Remove all compiled code (not the images)."""
    try:
        size = codecache.clear()
    except OSError as error:
        fail(f"{codecache.code_root()}: {error.strerror}")
    print(f"removed {_mebibytes(size)} of compiled code")
