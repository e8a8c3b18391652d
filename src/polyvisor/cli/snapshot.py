"""``polyvisor snapshot`` and ``polyvisor restore``: machines that are kept, and go on later."""

from __future__ import annotations

import json
import sys
import threading
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polyvisor.boards.placing import LoadError
from polyvisor.vm import running
from polyvisor.vm.equipment.nic import HELP as NET_HELP
from polyvisor.vm.errors import SnapshotError, VMError
from polyvisor.vm.remote import RemoteVM
from polyvisor.vm.snapshot import store
from polyvisor.vm.snapshot.disk_state import DiskState
from polyvisor.vm.snapshot.restore import restored_vm
from polyvisor.vm.snapshot.store import Snapshot
from polyvisor.vm.virtual_machine import VM

from .background import start_in_background
from .machines import errors
from .run import fail
from .session import Session, Watched

app = typer.Typer(help="Machines that are kept, and go on later.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="SNAPSHOT", help="A snapshot's name, or its file.")]
Json = Annotated[bool, typer.Option("--json", help="Write JSON.")]


def _describe(found: Snapshot) -> dict[str, Any]:
    values = dict(vars(found))
    values["path"], values["parent"] = str(found.path), str(found.parent) if found.parent is not None else None
    return values


@app.command("list")
def list_snapshots(as_json: Json = False) -> None:
    """List the snapshots that have names."""
    good: list[Snapshot] = []
    bad: list[str] = []
    with errors():
        for path in store.paths():
            try:
                good.append(store.find(path))
            except SnapshotError as error:
                bad.append(str(error))
    if as_json:
        print(json.dumps([_describe(each) for each in good], indent=2))
    else:
        table = Table("NAME", "OF", "MEMORY", "HARTS", "SIZE", "BASE", "CREATED", box=None, pad_edge=False)
        for each in good:
            parent = each.parent.name.removesuffix(store.SUFFIX) if each.parent is not None else ""
            size = f"{each.stored / 1e6:.1f} MB"
            table.add_row(each.name, each.vm, f"{each.memory >> 20}M", str(each.cpus), size, parent, each.created)
        Console().print(table)
    for line in bad:
        print(f"polyvisor: {line}", file=sys.stderr)


@app.command()
def inspect(name: Name, as_json: Json = False) -> None:
    """Show what is in a snapshot."""
    with errors():
        file = store.open_file(name)
        found = Snapshot.of(file)
        disks = file.take(list[DiskState], "disks")
    values = _describe(found)
    values["by"] = str(file.document.get("by", ""))
    values["disks"] = [{"path": each.path, "format": each.format, "size": each.size} for each in disks]
    if as_json:
        # Registers of harts and devices, too; what are bytes is left out.
        for key in ("vm", "shape", "board", "virtio"):
            values[key] = _without_bytes(file.document.get(key))
        print(json.dumps(values, indent=2))
        return
    for key in ("name", "path", "created", "by", "vm", "what", "cpus", "parent"):
        if values[key] is not None:
            print(f"{key}: {values[key]}")
    print(f"memory: {found.memory >> 20}M, of which {found.stored / 1e6:.1f} MB are stored here")
    for each in disks:
        print(f"disk: {each.path} ({each.format}, {each.size / 1e6:.0f} MB)")


def _without_bytes(value: Any) -> Any:
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, dict):
        return {key: _without_bytes(each) for key, each in value.items()}
    return [_without_bytes(each) for each in value] if isinstance(value, list) else value


@app.command()
def save(
    name: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="What to call it, or a file.")],
    machine: Annotated[str, typer.Argument(metavar="NAME", help="A machine, as `polyvisor ps` lists them.")],
    base: Annotated[
        str | None, typer.Option(metavar="SNAPSHOT", help="Save only what changed since that was taken or restored.")
    ] = None,
) -> None:
    """Save a machine that runs. It goes on."""
    with errors():
        wanted = None if base is None else str(store.path_of(base))
        answer = RemoteVM(machine).ask("snapshot", path=str(store.path_of(name)), base=wanted)
        found = store.find(answer["path"])
        print(f"{found.path}: {found.stored / 1e6:.1f} MB")


@app.command()
def check(name: Name) -> None:
    """Compare a snapshot, and those it is based on, with their checksums."""
    with errors():
        store.find(name).check()
        print(f"{name}: all is as it was saved")


@app.command()
def delete(names: Annotated[list[str], typer.Argument(metavar="SNAPSHOT...", help="Names, or files.")]) -> None:
    """Delete snapshots; those that others are based on are not."""
    with errors():
        for name in names:
            store.delete(name)


def restore(
    snapshot: Name,
    net: Annotated[
        list[str] | None, typer.Option(metavar="NETWORK", help=f"For each card, if not as it was: {NET_HELP}")
    ] = None,
    share: Annotated[
        list[str] | None, typer.Option(metavar="DIR[:TAG][,ro]", help="For each shared directory, if not as it was.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What `polyvisor ps` and the like call it; default: after the snapshot.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Let it run in the background, and print its name when it is ready.")
    ] = False,
    background: Annotated[bool, typer.Option("--background", hidden=True)] = False,
) -> None:
    """Let a machine go on from a snapshot; this terminal is its console. Any number may, of one snapshot."""
    try:
        named = name is not None
        file = store.open_file(snapshot)
        name = name or running.free_name(file.path.name.removesuffix(store.SUFFIX))
        if detach and not background:
            raise typer.Exit(start_in_background(name, sys.argv[1:]))

        def make(**callbacks: Any) -> VM:
            return restored_vm(snapshot, name=name, networks=net, shares=share, **callbacks)[0]

        status = Session(make, Watched(), background, named).run()
    except (LoadError, OSError, ValueError, VMError) as error:
        fail(str(error))
    if threading.active_count() > 1:
        sys.stdout.flush()
    raise typer.Exit(status)

