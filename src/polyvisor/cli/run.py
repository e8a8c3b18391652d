"""``polyvisor run``: boot an image, a kernel, or a bare-metal program, with the terminal as its console."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from polyvisor import images
from polyvisor.boards.loader import LoadError
from polyvisor.boards.virt import TIERS, VirtConfig
from polyvisor.devices.virtio.block import BlockDevice
from polyvisor.vm.gdb import GdbServer
from polyvisor.vm.machine import Machine
from polyvisor.vm.stats import collect
from polyvisor.vm.trace import start_trace

from .image import errors as image_errors
from .image import progress as image_progress
from .monitor import run_monitor
from .net import HELP as NET_HELP
from .net import NetOptions, open_capture, parse_net
from .terminal import HELP, Input, Output, cooked_terminal, raw_terminal

# The status when the guest did not end by itself, as `timeout` and shells have it.
_INTERRUPTED = 130
_UNITS = {"": 1 << 20, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_LEAST_MEMORY = 16 << 20


def fail(message: str, status: int = 2) -> NoReturn:
    """Say in one line what is wrong, and end."""
    print(f"polyvisor: {message}", file=sys.stderr)
    raise typer.Exit(status)


def parse_memory(text: str) -> int:
    """``512M``, ``2G``, ``65536K``, or a number of MiB, in bytes."""
    match = re.fullmatch(r"(\d+)\s*([kmg]?)(i?b)?", text.strip().lower())
    if match is None:
        fail(f"--memory {text!r}: give a size such as 512M or 2G")
    size = int(match[1]) * _UNITS[match[2]]
    if size < _LEAST_MEMORY:
        fail(f"--memory {text!r}: the board needs 16M at least")
    if size > 1 << 40:
        fail(f"--memory {text!r}: the board takes 1024G at most")
    return -(-size // 4096) * 4096


def parse_disk(text: str) -> Callable[[], BlockDevice]:
    """What opens the disk that ``FILE`` or ``FILE,ro`` means."""
    path, comma, mode = text.rpartition(",")
    if comma and mode in ("ro", "rw"):
        return partial(BlockDevice.open, path, mode == "ro")
    return partial(BlockDevice.open, text)


@dataclass(frozen=True)
class Software:
    """The files to load: a Linux kernel with its parts, or a bare-metal program.

    They are read when a machine starts, and not kept: a kernel's bytes are better in the guest's memory alone.
    """

    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    firmware: Path | None = None
    program: Path | None = None

    def load(self, machine: Machine) -> None:
        """Place it in a machine. Raises LoadError."""
        if self.program is not None:
            machine.board.load_program(read_file(self.program, "program"))
        elif self.kernel is not None:
            machine.board.load_linux(
                read_file(self.kernel, "kernel"),
                read_file(self.initrd, "initrd") if self.initrd else None,
                self.append,
                read_file(self.firmware, "firmware") if self.firmware else None,
            )


def read_file(path: Path, what: str) -> bytes:
    """A file's bytes, or a clear end."""
    check_file(path, what)
    return path.read_bytes()


def check_file(path: Path, what: str) -> None:
    """End with a clear line unless the file can be opened."""
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError:
        fail(f"{what} {str(path)!r}: there is no such file")
    except IsADirectoryError:
        fail(f"{what} {str(path)!r} is a directory, not a file")
    except OSError as error:
        fail(f"{what} {str(path)!r}: {error.strerror}")


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


def choose_nets(net: str, capture: Path | None) -> list[NetOptions]:
    """What ``--net`` names, none or one."""
    try:
        chosen = parse_net(net)
    except ValueError as error:
        fail(str(error))
    if chosen is None and capture is not None:
        fail("--capture goes with a network, for example: --net user --capture out.pcapng")
    return [chosen] if chosen else []


@contextlib.contextmanager
def capturing(path: Path | None, nets: list[NetOptions]) -> Iterator[None]:
    """Write what passes the networks to a file. Raises ValueError if that cannot be; says if it ended early."""
    if path is None:
        yield
        return
    with open_capture(path, nets) as capture:
        yield
    if capture.error is not None:
        print(f"polyvisor: --capture {str(path)!r} is cut short: {capture.error.strerror}", file=sys.stderr)


@dataclass(frozen=True)
class StatsWanted:
    """Whether a machine's profile is shown, and where it is written."""

    shown: bool
    to_file: Path | None


class Session:
    """One `run`: the machine, restarted when the guest asks for a reset, and the terminal around it."""

    def __init__(
        self,
        software: Software,
        config: VirtConfig,
        no_reboot: bool,
        trace: TextIO | None = None,
        gdb_port: int | None = None,
        stats: StatsWanted | None = None,
    ) -> None:
        self.software = software
        self.config = config
        self.no_reboot = no_reboot
        self.trace = trace
        self.gdb_port = gdb_port
        self.stats = stats
        self.output = Output(self._quit)
        self.machine: Machine | None = None
        self.quit = False
        self.reset = False

    def run(self) -> int:
        """Run to the end; gives the exit status."""
        keys = Input(self._send, self._ready, self._quit, self._monitor, self.output.message)
        with raw_terminal(0):
            keys.start()
            try:
                while True:
                    status = self._run_once()
                    if status is not None:
                        return status
            except KeyboardInterrupt:
                return _INTERRUPTED
            finally:
                keys.stop()
                if self.machine is not None:
                    self.machine.close()

    def _run_once(self) -> int | None:
        """One life of the machine; None if it is to start again."""
        compiled = 0

        def progress(name: str) -> None:
            nonlocal compiled
            compiled += 1
            self.output.status(f"preparing the interpreter for this host (first start only): {compiled} parts")

        self.reset = False
        machine = Machine(self.config, self.output.write, progress)
        try:
            self.software.load(machine)
        except (LoadError, typer.Exit):
            machine.close()
            raise
        self.machine = machine
        if self.trace is not None:
            start_trace(machine, self.trace)
        debugger = None
        if self.gdb_port is not None:
            debugger = GdbServer(machine, self.gdb_port)
            machine.pause()
            debugger.start()
            self.output.message(f"waiting for gdb: target remote :{debugger.port}\n")
        started = time.monotonic()
        machine.start()
        # Waking now and then lets signals through.
        while not machine.wait(0.2):
            pass
        if debugger is not None:
            debugger.close()
        machine.close()
        self._show_stats(machine, started)
        if self.quit:
            return 0
        if self.reset or (machine.reset_requested and not self.no_reboot):
            return None
        code = machine.exit_code or 0
        return code if code <= 255 else 255

    def _show_stats(self, machine: Machine, started: float) -> None:
        if self.stats is None:
            return
        found = collect(machine, started)
        if self.stats.to_file is not None:
            self.stats.to_file.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
        if self.stats.shown:
            self.output.message(f"{found.text()}\n")

    def _send(self, data: bytes) -> int:
        return self.machine.send(data) if self.machine is not None else 0

    def _ready(self) -> bool:
        """Whether the guest takes console input: a program always, a kernel once it listens to the port."""
        if self.machine is None:
            return False
        return self.software.program is not None or self.machine.board.uart.listening

    def _quit(self) -> None:
        self.quit = True
        if self.machine is not None:
            self.machine.stop()

    def _monitor(self) -> None:
        if self.machine is None:
            return
        with cooked_terminal(0):
            self.output.message("\n")
            chosen = run_monitor(self.machine, input, self.output.message)
        if chosen == "quit":
            self._quit()
        elif chosen == "reset":
            self.reset = True
            self.machine.stop()


def run(
    target: Annotated[
        str | None, typer.Argument(metavar="[IMAGE|PROGRAM]", help="An image such as debian, or a bare-metal ELF file.")
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
        list[str] | None, typer.Option(help="Raw disk image: FILE or FILE,ro. May be given several times.")
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
    trace: Annotated[
        Path | None, typer.Option(help="Write every executed instruction to this file (- for standard error); slow.")
    ] = None,
    gdb: Annotated[
        int | None, typer.Option(metavar="PORT", min=0, max=65535, help="Wait for gdb on this port of loopback.")
    ] = None,
    no_reboot: Annotated[bool, typer.Option("--no-reboot", help="End when the guest restarts.")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="When it has ended, show where its time went.")] = False,
    stats_json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the same to this file, as JSON.")
    ] = None,
) -> None:
    """Boot an image, a kernel or a program; this terminal is its console. Ctrl-A h shows the keys."""
    if tier not in TIERS:
        fail(f"--tier {tier!r}: there are {', '.join(TIERS)}")
    size = parse_memory(memory)
    nets = choose_nets(net, capture)
    software = choose_software(target, kernel, initrd, append, firmware, command)
    if nets and command is not None:
        software = replace(software, append=f"{software.append} polyvisor.net=wait")
    config = VirtConfig(
        memory=size, cpus=cpus, devices=(*map(parse_disk, disk or ()), *(each.make for each in nets)), tier=tier,
        virtual_time=virtual_time,
    )
    try:
        with open_trace(trace) as file, capturing(capture, nets):
            wanted = StatsWanted(stats, stats_json) if stats or stats_json is not None else None
            status = Session(software, config, no_reboot, file, gdb, wanted).run()
    except LoadError as error:
        fail(f"{software.program or software.kernel}: {error}")
    except (OSError, ValueError) as error:
        fail(str(error))
    if threading.active_count() > 1:
        sys.stdout.flush()
    raise typer.Exit(status)


run.__doc__ = f"{run.__doc__}\n\n\b{HELP}"
