"""The benchmark suite: the same programs under polyvisor, under QEMU (TCG) and on the host, in turn.

Times are the host's, taken when a program's output arrives; every machine must compute the same. The ratio is QEMU's
time through polyvisor's: above 1, polyvisor is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from polyvisor import images

from . import boot, report, runner
from .build import GUEST, build, compiler_version
from .catalogue import GROUPS, Program, select
from .errors import SuiteError
from .guest import write_initramfs
from .packages import real_programs

MACHINES = ("polyvisor", "qemu", "native")
QEMU = "qemu-system-riscv64"


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = partial(str.split, sep=",")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="rounds (default: 3)")
    parser.add_argument(
        "--warm-up", type=int, default=2, metavar="N", dest="warm_ups",
        help="rounds before, in which polyvisor fills its cache of compiled code; 0 measures first runs (default: 2)",
    )
    parser.add_argument("--groups", type=names, default=[], metavar="NAMES", help=f"of {','.join(GROUPS)}")
    parser.add_argument("--only", type=names, default=[], metavar="NAMES", help="programs; patterns such as chase*")
    machines = ",".join(MACHINES)
    parser.add_argument("--machines", type=names, default=list(MACHINES), metavar="NAMES", help=f"of {machines}")
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="harts (default: 1; the group harts has 2)")
    parser.add_argument("--memory", default="512M", help="guest memory (default: 512M)")
    parser.add_argument("--scale", type=float, default=1.0, help="this much of the usual work (default: 1)")
    parser.add_argument("--timeout", type=float, default=600, metavar="SECONDS", help="for one run (default: 600)")
    parser.add_argument("--tier", help="polyvisor's tier (default: polyvisor's choice)")
    parser.add_argument("--image", default="debian", help="image with the kernel and busybox (default: debian)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--list", action="store_true", help="show the programs and end")
    options = parser.parse_args(given)
    if unknown := [machine for machine in options.machines if machine not in MACHINES]:
        parser.error(f"unknown machine {unknown[0]!r}; there are {', '.join(MACHINES)}")
    if options.runs < 1 or options.cpus < 1 or options.scale <= 0 or options.warm_ups < 0:
        parser.error("--runs, --cpus and --scale must be positive, and --warm-up must not be negative")
    return options


class Terminal:
    """What is going on, in one line that is overwritten; nothing where standard error is no terminal."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()

    def __call__(self, text: str) -> None:
        """Show this."""
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Leave an empty line."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def qemu_version(qemu: str) -> str:
    """The first line of what it says about itself."""
    done = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("\n")[0]


def processor() -> str:
    """The host's processor, as Linux calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def without_real(programs: Sequence[Program], why: object) -> list[Program]:
    """The programs that need no package of Debian, after saying why the others are skipped."""
    skipped = [program.name for program in programs if program.group == "real"]
    print(f"skipped: {', '.join(skipped)}: {why}", file=sys.stderr)
    return [program for program in programs if program.group != "real"]


def measure(options: argparse.Namespace, programs: Sequence[Program], terminal: Terminal) -> int:
    """Build, run, report; the exit status."""
    qemu = None
    if "qemu" in options.machines:
        qemu = shutil.which(QEMU)
        if qemu is None:
            raise SuiteError(
                f"{QEMU} is missing: install it (Debian: qemu-system-misc or qemu-system-riscv), or do without it: "
                "--machines polyvisor,native"
            )
    about: dict[str, object] = {"host": f"{os.cpu_count()} x {processor()}", "python": platform.python_version()}
    if any(program.compiled for program in programs):
        about["ziglang"] = compiler_version()
    boot.compile_sources()
    image = images.ensure(options.image)
    about["kernel"] = image.version
    real = None
    if any(program.group == "real" for program in programs):
        try:
            real, about["debian"] = real_programs(terminal)
        except SuiteError as error:
            terminal.clear()
            programs = without_real(programs, error)
            if not programs:
                return 1
    try:
        about["polyvisor"] = version("polyvisor")
    except PackageNotFoundError:
        about["polyvisor"] = "not installed"
    if qemu:
        about["qemu"] = qemu_version(qemu)
    about |= {name: getattr(options, name) for name in ("runs", "warm_ups", "cpus", "memory", "scale", "tier")}
    binaries = build([program.binary for program in programs if program.compiled], GUEST, terminal)
    with tempfile.TemporaryDirectory() as directory:
        initrd = Path(directory, "initrd")
        if any(program.group != "boot" for program in programs):
            write_initramfs(initrd, image, binaries, real)
        results = runner.run(_plan(options, programs, image, initrd, qemu), terminal)
    terminal.clear()
    table = report.rows(programs, results.outcomes)
    if options.json:
        document = report.as_json(table, results.outcomes, about, results.failures)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    print(f"{about['host']}; Python {about['python']}; kernel {about['kernel']}; {about.get('qemu', 'without QEMU')}")
    print(f"{options.runs} rounds, {options.cpus} harts, {options.memory}: median (least..greatest)\n")
    print(report.text(table, results.outcomes))
    for failure in results.failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if results.failures else 0


def _plan(
    options: argparse.Namespace, programs: Sequence[Program], image: images.Image, initrd: Path, qemu: str | None
) -> runner.Plan:
    def commands(initrd: Path, append: str) -> dict[str, Callable[[int], list[str]]]:
        found: dict[str, Callable[[int], list[str]]] = {}
        if "polyvisor" in options.machines:
            tier = ["--tier", options.tier] if options.tier else []
            found["polyvisor"] = lambda cpus: boot.polyvisor_command(
                image.kernel, initrd, append, options.memory, cpus, tier
            )
        if qemu:
            found["qemu"] = lambda cpus: boot.qemu_command(qemu, image.kernel, initrd, append, options.memory, cpus)
        return found

    return runner.Plan(
        programs=programs,
        commands=commands(initrd, image.append),
        boots=commands(image.initrd, image.command_line(run=boot.COMMAND)),
        native="native" in options.machines,
        runs=options.runs,
        cpus=options.cpus,
        scale=options.scale,
        timeout=options.timeout,
        warm_ups=options.warm_ups,
    )


def main(given: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0, 1 when something failed or differed, 2 for bad arguments."""
    options = arguments(given)
    terminal = Terminal()
    try:
        programs = select(options.groups, options.only)
        if options.list:
            for program in programs:
                print(f"{program.group:8} {program.name:11} {program.about}")
            return 0
        if not programs:
            raise SuiteError("no program is in these groups and has such a name; --list shows them")
        return measure(options, programs, terminal)
    except (SuiteError, images.ImageError) as error:
        terminal.clear()
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        terminal.clear()
        return 130
