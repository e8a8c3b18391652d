"""``polyvisor run``: boot an image, a kernel, or a bare-metal program, with the terminal as its console."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO

import typer

from polyvisor import images
from polyvisor.boards.placing import LoadError
from polyvisor.boards.virt import TIERS
from polyvisor.dataclass import replace
from polyvisor.guest.process import shell_status
from polyvisor.vm import running
from polyvisor.vm.equipment import Nic
from polyvisor.vm.equipment.nic import HELP as NET_HELP
from polyvisor.vm.errors import CommandError, VMError
from polyvisor.vm.sizes import parse_memory
from polyvisor.vm.software import Software, check_file
from polyvisor.vm.virtual_machine import VM
from polyvisor.vm.window import WindowError

from .background import start_in_background
from .desk import Desk, check_writable, parse_display
from .progress import errors as image_errors
from .progress import progress as image_progress
from .reports import Reports
from .session import Session, Watched
from .terminal import HELP


def fail(message: str, status: int = 2) -> NoReturn:
    """Say in one line what is wrong, and end."""
    print(f"polyvisor: {message}", file=sys.stderr)
    raise typer.Exit(status)


def choose_software(
    target: str | None, kernel: Path | None, initrd: Path | None, append: str | None, firmware: Path | None,
    command: str | None,
) -> Software:
    """What the options name; an image is fetched if it is not here yet."""
    for path, what in ((kernel, "kernel"), (initrd, "initrd"), (firmware, "firmware")):
        if path is not None:
            check_file(path, what)
    if target is not None and (target in images.KNOWN or any(target == i.name for i in images.local())):
        with image_errors():
            with image_progress() as shown:
                image = images.ensure(target, progress=shown)
            size = shutil.get_terminal_size() if sys.stdout.isatty() else None
            line = image.command_line(run=command, winsize=(size.lines, size.columns) if size else None)
        return Software(
            kernel=kernel or image.kernel,
            initrd=initrd or image.initrd,
            append=f"{line} {append}" if append else line,
            firmware=firmware,
            agent=True,
            our_initrd=initrd is None,
            disk=image.disk,
        )
    if command is not None:
        fail("--run goes with an image, for example: polyvisor run debian --run 'uname -a'")
    if target is not None:
        if kernel is not None:
            fail(f"give either a program ({target!r}) or --kernel, not both")
        path = Path(target)
        if not path.exists() and "/" not in target and "." not in target:
            fail(f"there is no image or file {target!r}; images are: {', '.join(images.KNOWN)}")
        if initrd or append:
            fail("--initrd and --append go with a kernel, not with a bare-metal program")
        check_file(path, "program")
        return Software(program=path)
    if kernel is None:
        fail("say what to run: an image (polyvisor run debian), a program (prog.elf), or --kernel FILE")
    return Software(
        kernel=kernel,
        initrd=initrd,
        append=append if append is not None else "console=ttyS0",
        firmware=firmware,
    )


def open_trace(path: Path | None) -> contextlib.AbstractContextManager[TextIO | None]:
    """The file that ``--trace`` names, opened for writing; nothing without it."""
    if path is None:
        return contextlib.nullcontext()
    if str(path) == "-":
        return contextlib.nullcontext(sys.stderr)
    try:
        return path.open("w", buffering=1 << 16)
    except OSError as error:
        fail(f"--trace {str(path)!r}: {error.strerror}")


@contextlib.contextmanager
def capturing(path: Path | None, nic: Nic | None) -> Iterator[None]:
    """Write what passes the card to a file. Says if that ended early."""
    if path is None:
        yield
        return
    if nic is None:
        fail("--capture goes with a network, for example: --net user --capture out.pcapng")
    try:
        from polyvisor.network.capture import Capture

        capture = Capture(path)
    except OSError as error:
        fail(f"--capture {str(path)!r}: {error.strerror}")
    nic.captures.append(capture)
    with capture:
        yield
    if capture.error is not None:
        print(f"polyvisor: --capture {str(path)!r} is cut short: {capture.error.strerror}", file=sys.stderr)


def choose_desk(display: str, screenshot: Path | None) -> Desk | None:
    """The display that the options ask for; a screenshot needs one. Raises ValueError."""
    kind, size = parse_display(display)
    return None if kind == "none" and screenshot is None else Desk(kind == "window", size, screenshot)


# Options that are for labs, too.
_FOR_LABS = ("virtual_time", "seed", "schedule", "record")


def refuse_options(context: typer.Context, target: str) -> None:
    """Machines of a lab have what its file says, and nothing that options say."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.param_type_name == "option" and (source := context.get_parameter_source(parameter.name or ""))
        and source.name != "DEFAULT" and parameter.name not in _FOR_LABS
    ]
    if given:
        fail(f"{', '.join(given)}: what a lab's machines have is in its file, {target}, and not in options")


def run(
    context: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[IMAGE|PROGRAM|LAB]",
            help="An image such as debian, a bare-metal ELF file, or a lab.toml; c64: see `polyvisor run c64 --help`.",
        ),
    ] = None,
    kernel: Annotated[Path | None, typer.Option(help="Linux kernel: a RISC-V Image, Image.gz or vmlinux.")] = None,
    initrd: Annotated[Path | None, typer.Option(help="Initial RAM file system.")] = None,
    append: Annotated[str | None, typer.Option(help="Kernel command line (added to an image's own).")] = None,
    firmware: Annotated[
        Path | None, typer.Option(help="Machine-mode firmware, such as OpenSBI's fw_dynamic.bin; default: built in.")
    ] = None,
    memory: Annotated[str, typer.Option("--memory", "-m", help="RAM, for example 512M or 2G.")] = "512M",
    cpus: Annotated[int, typer.Option("--cpus", "-c", min=1, max=64, help="Number of harts.")] = 1,
    disk: Annotated[
        list[str] | None,
        typer.Option(help="Disk: FILE[,ro][,snapshot][,format=raw|qcow2]. May be given several times."),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="FILE.qcow2", help="Keep what is written to the image's own disk there; made if need be."),
    ] = None,
    pci: Annotated[bool, typer.Option("--pci", help="Put the virtio devices on a PCI bus.")] = False,
    share: Annotated[
        list[str] | None,
        typer.Option(
            metavar="DIR[:TAG][,ro][,via=virtiofs]",
            help="Share a directory: images mount it at /mnt/TAG (/mnt/host), or at /PATH with DIR:/PATH.",
        ),
    ] = None,
    net: Annotated[str, typer.Option(metavar="NETWORK", help=NET_HELP)] = "none",
    capture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what passes the network to this file, as pcapng.")
    ] = None,
    command: Annotated[
        str | None, typer.Option("--run", help="Run this shell command in the image, then exit with its status.")
    ] = None,
    tier: Annotated[str, typer.Option(help=f"Engine: {', '.join(TIERS)}.")] = "jit",
    virtual_time: Annotated[
        bool, typer.Option("--virtual-time", help="Time follows executed instructions, not the host's clock.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --virtual-time: makes all random numbers that the guest gets.")
    ] = None,
    schedule: Annotated[
        int | None, typer.Option(min=0, help="With --virtual-time: makes how long which hart runs, else all the same.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Record the run, in virtual time, for `polyvisor replay`.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Write every executed instruction to this file (- for standard error); slow.")
    ] = None,
    gdb: Annotated[
        int | None, typer.Option(metavar="PORT", min=0, max=65535, help="Wait for gdb on this port of loopback.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What `polyvisor ps` and the like call it; default: after what it runs.")
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Let it run in the background, and print its name when it is ready.")
    ] = False,
    background: Annotated[bool, typer.Option("--background", hidden=True)] = False,
    no_reboot: Annotated[bool, typer.Option("--no-reboot", help="End when the guest restarts.")] = False,
    display: Annotated[
        str, typer.Option(metavar="KIND", help="A display: window, headless or none; window,1280x800 gives a size.")
    ] = "none",
    screenshot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="When it has ended, save what the display showed, as PNG.")
    ] = None,
    coverage: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write which lines of a program were executed: lcov, or (.xml) Cobertura."),
    ] = None,
    profile: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write where its time went: a flame graph (.svg), or stacks.")
    ] = None,
    syscalls: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write every system call to this file (- for standard error).")
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="When it has ended, show where its time went.")] = False,
    stats_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the same to this file, as JSON.")
    ] = None,
) -> None:
    """Boot an image, a kernel or a program; this terminal is its console. Ctrl-A h shows the keys."""
    if target == "c64":
        fail("the options of a Commodore 64 come after its name: polyvisor run c64 --help")
    if tier not in TIERS:
        fail(f"--tier {tier!r}: there are {', '.join(TIERS)}")
    try:
        size = parse_memory(memory)
    except ValueError as error:
        fail(f"--memory {error}")
    software = None
    try:
        if target is not None and target.endswith(".toml"):
            refuse_options(context, target)
            from .lab import run_lab

            raise typer.Exit(run_lab(Path(target), virtual_time, seed, schedule, record))
        nic, desk = Nic.parse(net), choose_desk(display, screenshot)
        software = choose_software(target, kernel, initrd, append, firmware, command)
        if nic and command is not None:
            software = replace(software, append=f"{software.append} polyvisor.net=wait")
        named = name is not None
        name = name or running.free_name(Path(target).stem.replace(":", "-") if target else "kernel")
        if detach and not background:
            raise typer.Exit(start_in_background(name, sys.argv[1:]))
        if stats_json is not None:
            check_writable(stats_json, "--stats-json")
        around = desk.opened(f"polyvisor {name}") if desk is not None else contextlib.nullcontext()
        reports = Reports(coverage, profile, syscalls)
        with open_trace(trace) as file, capturing(capture, nic), around, reports:

            def make(**callbacks: Any) -> VM:
                vm = VM(
                    software=software, name=name, memory=size, cpus=cpus, tier=tier, virtual_time=virtual_time,
                    disks=disk or (), shares=share or (), networks=[nic] if nic else (),
                    display=desk.screen if desk else None, bus="pci" if pci else "mmio", reboot=not no_reboot,
                    keep=keep, seed=seed, schedule=schedule, record=record, **callbacks,
                )
                reports.attach(vm)
                return vm

            status = Session(make, Watched(file, gdb, stats, stats_json), background, named, desk).run()
    except LoadError as error:
        fail(f"{software.name}: {error}" if software else str(error))
    except images.ImageError as error:
        fail(str(error), 1)
    except CommandError as error:
        fail(str(error), shell_status(error.result.exit_code))
    except (OSError, ValueError, VMError, WindowError) as error:
        fail(str(error))
    if threading.active_count() > 1:
        sys.stdout.flush()
    raise typer.Exit(status)


run.__doc__ = f"{run.__doc__}\n\n\b{HELP}"
