"""``polyvisor record`` and ``polyvisor replay``: runs that can be repeated bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from polyvisor.boards.virt import TIERS
from polyvisor.vm.errors import VMError
from polyvisor.vm.gdb.harts import HartTarget
from polyvisor.vm.gdb.server import GdbServer
from polyvisor.vm.replay.debug import ReplayTarget
from polyvisor.vm.replay.format import Reader
from polyvisor.vm.replay.replay import DivergenceError, Replay
from polyvisor.vm.replay.together import GroupReplay

from .lab import Lines
from .run import fail
from .terminal import Output

# What a replay that differs from its recording ends with.
_DIFFERS = 1


def record(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to record to.")],
) -> None:
    """Run a machine or a lab as `polyvisor run` does, with the same options, and record it to FILE.

    It is in virtual time. `polyvisor replay FILE` repeats the run.
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
    machine: Annotated[
        str | None, typer.Option("--machine", metavar="NAME", help="Only this one, of a lab's.")
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
    try:
        names = _names(file)
        if machine is None and len(names) > 1:
            if gdb is not None or until is not None:
                fail(f"--gdb and --until go with one machine: give --machine NAME; there are {', '.join(names)}")
            code = _replay_all(file, names, check, tier)
        else:
            code = _replay_one(file, machine, check, tier, until, gdb)
    except DivergenceError as error:
        fail(str(error), _DIFFERS)
    except (OSError, VMError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    if not check:
        raise typer.Exit(min(code, 255))


def _names(file: Path) -> list[str]:
    reader = Reader(file)
    reader.close()
    return reader.names


def _replay_one(file: Path, name: str | None, check: bool, tier: str, until: int | None, gdb: int | None) -> int:
    output = Output(lambda: machine.interrupt())
    shown = None if check else output.write
    with Replay(file, tier=tier, on_output=shown, backwards=gdb is not None, machine=name) as machine:
        if gdb is not None:
            _debug(machine, gdb)
        else:
            machine.run(until)
        if check:
            print(_same(machine))
        return machine.exit_code or 0 if machine.ended and gdb is None else 0


def _same(machine: Replay) -> str:
    ending = {"lost": "; its end is missing", "cut": "; it was cut off there"}.get(machine.how, "")
    return f"the same at {machine.checked} checkpoints, to {machine.count:,} instructions{ending}"


def _replay_all(file: Path, names: list[str], check: bool, tier: str) -> int:
    lines = Lines(names)
    with GroupReplay(file, tier=tier, on_output=None if check else lines.feed, backwards=False) as group:
        group.run()
        if check:
            for name, machine in group.machines.items():
                print(f"{name}: {_same(machine)}")
        return max(machine.exit_code or 0 for machine in group.machines.values())


def _debug(machine: Replay, port: int) -> None:
    """Serve gdb until it goes away."""
    target = ReplayTarget(machine)
    server = GdbServer(HartTarget(target), port, once=True)
    print(f"waiting for gdb: target remote :{server.port}", file=sys.stderr)
    server.start()
    try:
        server.wait()
    finally:
        target.pause()
        server.close()
    if target.failure is not None:
        raise target.failure
