"""``polyvisor record`` and ``polyvisor replay``: runs that can be repeated bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from polyvisor.boards.virt import TIERS
from polyvisor.vm.errors import VMError
from polyvisor.vm.gdb import GdbServer
from polyvisor.vm.replay.debug import ReplayTarget
from polyvisor.vm.replay.replay import DivergenceError, Replay

from .run import fail
from .terminal import Output

# What a replay that differs from its recording ends with.
_DIFFERS = 1


def record(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to record to.")],
) -> None:
    """Run a machine as `polyvisor run` does, with the same options, and record it to FILE.

    The machine is in virtual time. `polyvisor replay FILE` repeats the run.
    """
    group = context.parent
    assert group is not None
    command = group.command.commands["run"]  # type: ignore[attr-defined]
    arguments = ["--record", str(file), *context.args]
    with command.make_context("record", arguments, parent=group) as inner:
        command.invoke(inner)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A recording.")],
    check: Annotated[
        bool, typer.Option("--check", help="Do not show the console: say whether the run is the same, or where not.")
    ] = False,
    until: Annotated[
        int | None, typer.Option("--until", metavar="COUNT", min=0, help="Stop when so many instructions are executed.")
    ] = None,
    tier: Annotated[str, typer.Option(help="Engine: jit, interpreter.")] = "jit",
    gdb: Annotated[
        int | None,
        typer.Option(metavar="PORT", min=0, max=65535, help="Wait for gdb on this port, which can go backwards too."),
    ] = None,
) -> None:
    """Repeat a recorded run: the console shows again what it showed. Nothing else of the run is needed.

    It ends with the guest's exit status, or with 1 where the run differs from the recording.
    """
    if tier not in TIERS:
        fail(f"--tier {tier!r}: there are {', '.join(TIERS)}")
    output = Output(lambda: machine.interrupt())
    try:
        with Replay(file, tier=tier, on_output=None if check else output.write, backwards=gdb is not None) as machine:
            try:
                if gdb is not None:
                    _debug(machine, gdb)
                else:
                    machine.run(until)
            except DivergenceError as error:
                fail(str(error), _DIFFERS)
            if check:
                ending = {"lost": "; its end is missing", "cut": "; it was cut off there"}.get(machine.how, "")
                print(f"the same at {machine.checked} checkpoints, to {machine.count:,} instructions{ending}")
            code = machine.exit_code or 0 if machine.ended and gdb is None else 0
    except (OSError, VMError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not check:
        raise typer.Exit(min(code, 255))


def _debug(machine: Replay, port: int) -> None:
    """Serve gdb until it goes away."""
    target = ReplayTarget(machine)
    server = GdbServer(target, port, once=True)
    print(f"waiting for gdb: target remote :{server.port}", file=sys.stderr)
    server.start()
    try:
        server.wait()
    finally:
        target.pause()
        server.close()
    if target.failure is not None:
        raise target.failure
