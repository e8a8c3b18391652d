"""``polyvisor disk``: make, show, check and convert disk images."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from polyvisor.storage.commodore.cartridge import Cartridge
from polyvisor.storage.commodore.open import open_medium
from polyvisor.storage.commodore.petscii import to_unicode
from polyvisor.storage.convert import convert as convert_disk
from polyvisor.storage.convert import create_raw
from polyvisor.storage.disk import SECTOR, Disk
from polyvisor.storage.open import FORMATS, backing_path, guess_format, open_disk
from polyvisor.storage.qcow2.create import create_qcow2
from polyvisor.storage.qcow2.image import Qcow2
from polyvisor.storage.qcow2.layout import CORRUPT, DIRTY, LAZY_REFCOUNTS
from polyvisor.storage.raw import RawFile
from polyvisor.vm.sizes import parse_size as bytes_of

from .run import fail

app = typer.Typer(help="Make, show, check and convert disk images.", no_args_is_help=True)
snapshot_app = typer.Typer(help="Keep states of a qcow2 image inside it, and go back to them.", no_args_is_help=True)
app.add_typer(snapshot_app, name="snapshot")

# The statuses of `check`.
_DAMAGED = 1
_LEAKS = 3

File = Annotated[Path, typer.Argument(metavar="FILE", help="A disk image.")]
Format = Annotated[str | None, typer.Option("--format", metavar="FORMAT", help="raw or qcow2; default: as it looks.")]
NewFormat = Annotated[str, typer.Option("--format", metavar="FORMAT", help="Of the new image: qcow2 or raw.")]
ClusterSize = Annotated[str, typer.Option("--cluster-size", help="Bytes in a cluster of qcow2, 512 to 2M.")]
Version = Annotated[int, typer.Option("--qcow2-version", min=2, max=3, help="2 for very old software.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a file that exists.")]
SnapshotName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the snapshot.")]



def parse_size(text: str, what: str = "size") -> int:
    """``10G``, ``512M`` or a number of bytes, in bytes."""
    try:
        return bytes_of(text, unit=1)
    except ValueError as error:
        fail(f"{what} {error}")


def show_size(size: int) -> str:
    """Bytes for people: ``10 GiB``."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if size >= 1 << power:
            return f"{size / (1 << power):.4g} {unit}"
    return f"{size} bytes"


def _shown(text: str) -> str:
    """A name that an image has inside, without what would move the terminal's cursor or cannot be printed."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


@contextmanager
def _errors() -> Iterator[None]:
    """What goes wrong with a disk, in one line."""
    try:
        yield
    except (OSError, ValueError) as error:
        fail(str(error), 1)


@contextmanager
def _opened(path: Path, read_only: bool, form: str | None = None) -> Iterator[Disk]:
    with _errors():
        disk = open_disk(path, read_only, form)
        try:
            yield disk
        finally:
            disk.close()


@contextmanager
def _qcow2(path: Path, read_only: bool) -> Iterator[Qcow2]:
    with _opened(path, read_only) as disk:
        if not isinstance(disk, Qcow2):
            fail(f"{path}: is a raw disk; only qcow2 images have snapshots", 1)
        yield disk


@app.command()
def create(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The image to make.")],
    size: Annotated[
        str | None, typer.Argument(metavar="[SIZE]", help="Such as 10G; default: that of the backing file.")
    ] = None,
    form: NewFormat = "qcow2",
    backing: Annotated[
        str | None, typer.Option(metavar="FILE", help="Start with what this image has, which must not change then.")
    ] = None,
    backing_format: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="Its format, raw or qcow2; default: as it looks.")
    ] = None,
    cluster_size: ClusterSize = "64K",
    version: Version = 3,
    force: Force = False,
) -> None:
    """Make an empty image, which takes space as it is written."""
    if form not in FORMATS:
        fail(f"--format {form!r}: there are {', '.join(FORMATS)}")
    if backing is not None and form != "qcow2":
        fail("only qcow2 images have a backing file")
    if size is None and backing is None:
        fail("say how large the disk is to be, for example 10G")
    with _errors(), ExitStack() as opened:
        if backing is not None:
            below = backing_path(file, backing)
            backing_format = backing_format or guess_format(below)
            # Locked until the image is made, with all that is below: it must be none of these.
            disk = open_disk(below, True, backing_format, shared=True)
            opened.callback(disk.close)
            bytes_wanted = disk.size if size is None else parse_size(size)
        else:
            assert size is not None
            bytes_wanted = parse_size(size)
        bytes_wanted = -(-bytes_wanted // SECTOR) * SECTOR
        if form == "raw":
            create_raw(file, bytes_wanted, replace=force)
        else:
            create_qcow2(
                file, bytes_wanted, cluster_size=parse_size(cluster_size, "--cluster-size"), version=version,
                backing=backing, backing_format=backing_format, replace=force,
            )
    over = f", over {backing} ({backing_format})" if backing is not None else ""
    print(f"{file}: {form}, {show_size(bytes_wanted)}{over}")


@app.command(name="ls")
def list_files(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A D64, T64, PRG or CRT image.")],
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Show what is on a Commodore disk or tape, or in a cartridge."""
    with _errors():
        medium = open_medium(file)
        if isinstance(medium, Cartridge):
            banks = sum(bank is not None for bank in (*medium.low, *medium.high))
            found: dict[str, Any] = {"name": medium.name, "hardware": medium.hardware.name.lower(), "banks": banks}
            lines = [f"{_shown(medium.name)}: {found['hardware'].replace('_', ' ')} cartridge, {banks * 8} KiB"]
        else:
            files = [
                {"name": to_unicode(e.name), "type": e.type.name.lower(), "blocks": e.blocks, "locked": e.locked}
                for e in medium.entries()
            ]
            found = {"name": to_unicode(medium.title), "free": medium.free, "files": files}
            lines = [f"{e['blocks']:5} {e['type']} {_shown(str(e['name']))}" for e in files]
            lines = [_shown(str(found["name"])), *lines, f"{medium.free:5} blocks free"]
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def describe(disk: Disk, path: Path) -> dict[str, Any]:
    """All there is to say about an image, for JSON."""
    found: dict[str, Any] = {
        "file": str(path), "format": "raw", "size": disk.size, "space": path.stat().st_blocks * 512,
    }
    if not isinstance(disk, Qcow2):
        return found
    header = disk.header
    return found | {
        "format": "qcow2", "version": header.version, "cluster_size": header.cluster_size,
        "refcount_bits": 1 << header.refcount_order, "compression": header.compression,
        "dirty": bool(header.incompatible & DIRTY), "corrupt": bool(header.incompatible & CORRUPT),
        "lazy_refcounts": bool(header.compatible & LAZY_REFCOUNTS),
        "backing_file": header.backing_file, "backing_format": header.backing_format,
        "backing_path": backing_path(path, header.backing_file) if header.backing_file else None,
        "snapshots": [
            {
                "id": each.identity, "name": each.name, "time": each.seconds + each.nanoseconds / 1e9,
                "size": each.disk_size, "state_size": each.state_size,
            }
            for each in disk.snapshots
        ],
    }


@app.command()
def info(
    file: File, form: Format = None, as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False
) -> None:
    """Show what an image is; it may be in use."""
    with _opened(file, True, form) as disk:
        found = describe(disk, file)
    if as_json:
        print(json.dumps(found, indent=2))
        return
    print(f"file        {found['file']}")
    print(f"format      {found['format']}" + (f" version {found['version']}" if "version" in found else ""))
    print(f"size        {show_size(found['size'])} ({found['size']} bytes)")
    print(f"space used  {show_size(found['space'])}")
    if found["format"] == "raw":
        return
    clusters, counts = show_size(found["cluster_size"]), found["refcount_bits"]
    print(f"clusters    {clusters}, {found['compression']}, {counts}-bit counts")
    if found["backing_file"]:
        print(f"backing     {_shown(found['backing_file'])} ({_shown(found['backing_format'] or 'raw, not stated')})")
    for name in ("dirty", "corrupt"):
        if found[name]:
            print(f"state       {name}")
    if found["snapshots"]:
        print(f"snapshots   {', '.join(_shown(each['name']) for each in found['snapshots'])}")


@app.command()
def check(
    file: File,
    repair: Annotated[bool, typer.Option("--repair", help="Correct counts and flags, and free lost clusters.")] = False,
) -> None:
    """Check the tables of a qcow2 image. Status 0: it is fine; 1: it is damaged; 3: it only takes too much space."""
    with _opened(file, not repair) as disk:
        if not isinstance(disk, Qcow2):
            print(f"{file}: a raw disk has nothing to check")
            return
        report = disk.examine()
        if repair and (report.errors or report.leaks):
            if not report.repairable:
                fail(f"{file}: is damaged, and cannot be repaired: {report.errors[0]}", _DAMAGED)
            disk.repair()
            print(f"{file}: repaired {len(report.errors)} errors and {report.leaks} lost clusters")
            report = disk.examine()
    for error in report.errors:
        print(f"{file}: {error}")
    if report.leaks:
        print(f"{file}: {report.leaks} clusters are counted as used and are not")
    share = 100 * report.allocated / max(1, report.clusters)
    print(f"{report.allocated} of {report.clusters} clusters written ({share:.1f}%), {report.compressed} compressed")
    if report.errors:
        raise typer.Exit(_DAMAGED)
    if report.leaks:
        raise typer.Exit(_LEAKS)


@contextmanager
def _progress(path: Path, size: int) -> Iterator[Callable[[int], None]]:
    """What to tell how many bytes are done: it draws a bar on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(escape(path.name), total=size)
        yield lambda done: bars.update(task, completed=done)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A disk image.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The image to make.")],
    form: NewFormat = "qcow2",
    source_format: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="Of the source, raw or qcow2; default: as it looks.")
    ] = None,
    snapshot: Annotated[
        str | None, typer.Option(metavar="NAME", help="Copy what this snapshot of the source has.")
    ] = None,
    cluster_size: ClusterSize = "64K",
    version: Version = 3,
    force: Force = False,
) -> None:
    """Copy a disk, with all its backing files have, to a new image."""
    with _errors():
        disk = open_disk(source, True, source_format, shared=True)
        try:
            if snapshot is not None:
                if not isinstance(disk, Qcow2):
                    fail(f"{source}: is a raw disk; only qcow2 images have snapshots", 1)
                disk.look_at_snapshot(snapshot)
            with _progress(target, disk.size) as progress:
                convert_disk(
                    disk, target, form, cluster_size=parse_size(cluster_size, "--cluster-size"), version=version,
                    replace=force, progress=progress,
                )
        finally:
            disk.close()


@app.command()
def resize(
    file: File,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="Such as 20G, or +5G.")],
    form: Format = None,
) -> None:
    """Make a disk larger; what is new reads as zeroes."""
    wanted = parse_size(size.removeprefix("+"))
    with _opened(file, False, form) as disk:
        wanted = -(-(wanted + (disk.size if size.startswith("+") else 0)) // SECTOR) * SECTOR
        if wanted < disk.size:
            fail(f"{file}: the disk has {disk.size} bytes; making it smaller is not supported", 1)
        assert isinstance(disk, RawFile | Qcow2)
        disk.resize(wanted)
        print(f"{file}: {show_size(wanted)}")


@snapshot_app.command("create")
def snapshot_create(file: File, name: SnapshotName) -> None:
    """Keep the disk's content under a name."""
    with _qcow2(file, False) as disk:
        disk.snapshot(name)


@snapshot_app.command("list")
def snapshot_list(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False
) -> None:
    """List the snapshots of an image."""
    with _qcow2(file, True) as disk:
        found = describe(disk, file)["snapshots"]
    if as_json:
        print(json.dumps(found, indent=2))
        return
    table = Table("ID", "NAME", "CREATED", "DISK", "STATE", box=None, pad_edge=False)
    for each in found:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each["time"]))
        sizes = [show_size(each[key]) if each[key] else "-" for key in ("size", "state_size")]
        table.add_row(escape(_shown(each["id"])), escape(_shown(each["name"])), when, *sizes)
    Console().print(table)


@snapshot_app.command("apply")
def snapshot_apply(file: File, name: SnapshotName) -> None:
    """Let the disk be as it was; what it has now is lost."""
    with _qcow2(file, False) as disk:
        disk.apply_snapshot(name)


@snapshot_app.command("delete")
def snapshot_delete(file: File, name: SnapshotName) -> None:
    """Forget a snapshot."""
    with _qcow2(file, False) as disk:
        disk.delete_snapshot(name)
