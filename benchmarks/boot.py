"""Boot the same kernel and initramfs under polyvisor and QEMU (TCG), in turn, and compare wall times.

    python benchmarks/boot.py [--runs 5] [--image debian] [--cpus 1] [--json]

Measured is the time from starting the process to the first line that user space prints.  Warm: the handlers are in
the on-disk cache; cold (``--cold``): an empty cache directory each time.  ``python -m benchmarks --groups boot`` does
the same as a part of the suite.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import polyvisor
from polyvisor import images

MARK = b"user space is here"
COMMAND = f"echo {MARK.decode()}"


def compile_sources() -> None:
    """Compile polyvisor's Python sources, as ``pip install`` does; an editable install leaves that to the first start,
    and where Python may not write bytecode, to every one."""
    compileall.compile_dir(Path(polyvisor.__file__).parent, quiet=2)


class BootError(Exception):
    """User space was not reached."""


def polyvisor_command(
    kernel: Path, initrd: Path, append: str, memory: str, cpus: int, options: Sequence[str] = ()
) -> list[str]:
    """Start this polyvisor with that kernel, the console on the standard streams."""
    return [
        sys.executable, "-m", "polyvisor", "run", "--kernel", str(kernel), "--initrd", str(initrd),
        "--append", append, "--memory", memory, "--cpus", str(cpus), *options,
    ]


def qemu_command(qemu: str, kernel: Path, initrd: Path, append: str, memory: str, cpus: int) -> list[str]:
    """Start QEMU's ``virt`` board with that kernel, the console on the standard streams."""
    return [
        qemu, "-M", "virt", "-m", memory, "-smp", str(cpus), "-nographic", "-no-reboot",
        "-kernel", str(kernel), "-initrd", str(initrd), "-append", append,
    ]


def time_to_mark(command: list[str], environment: dict[str, str], timeout: float) -> float:
    """Seconds from the start of ``command`` until it prints the mark. Raises :class:`BootError`."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    assert process.stdout is not None
    seen = b""
    try:
        while MARK not in seen:
            data = os.read(process.stdout.fileno(), 65536)
            if not data or time.perf_counter() - start > timeout:
                raise BootError(f"{command[0]} did not get to user space:\n{seen[-2000:].decode(errors='replace')}")
            seen += data
        return time.perf_counter() - start
    finally:
        process.kill()
        process.wait()


def boot_once(command: list[str], timeout: float, cold: bool = False) -> float:
    """:func:`time_to_mark`; ``cold``: with an empty cache of compiled code."""
    with tempfile.TemporaryDirectory() as empty:
        return time_to_mark(command, dict(os.environ, **({"POLYVISOR_CACHE": empty} if cold else {})), timeout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--image", default="debian")
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--cold", action="store_true", help="start with an empty cache of compiled code each time")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    compile_sources()
    image = images.ensure(options.image)
    line = image.command_line(run=COMMAND)
    qemu = shutil.which("qemu-system-riscv64")
    ours = polyvisor_command(image.kernel, image.initrd, line, options.memory, options.cpus)
    peer = qemu_command(qemu or "", image.kernel, image.initrd, line, options.memory, options.cpus)
    times: dict[str, list[float]] = {"polyvisor": [], "qemu": []}
    try:
        for run in range(options.runs + 1):
            taken = boot_once(ours, 300, options.cold)
            if run:  # the first one warms up caches, ours and the host's
                times["polyvisor"].append(taken)
            if qemu:
                taken = boot_once(peer, 300)
                if run:
                    times["qemu"].append(taken)
            if run and sys.stderr.isatty():
                print(f"run {run} of {options.runs}", file=sys.stderr)
    except BootError as error:
        raise SystemExit(str(error)) from error
    report(times, options, qemu, Path(image.kernel))


def report(times: dict[str, list[float]], options: argparse.Namespace, qemu: str | None, kernel: Path) -> None:
    result: dict[str, object] = {"cpus": options.cpus, "cold": options.cold, "kernel_bytes": kernel.stat().st_size}
    for name, seconds in times.items():
        if seconds:
            result[name] = {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}
    if qemu:
        version = subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
        result["qemu_version"] = version
        pairs = [a / b for a, b in zip(times["polyvisor"], times["qemu"], strict=True)]
        result["ratio"] = {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}
    if options.json:
        print(json.dumps(result, indent=2))
        return
    cold = ", cold cache" if options.cold else ""
    print(f"boot to first user-space output, {options.runs} runs, {options.cpus} CPU(s){cold}")
    for name in ("polyvisor", "qemu", "ratio"):
        if isinstance(values := result.get(name), dict):
            unit = "" if name == "ratio" else " s"
            print(f"  {name:10} {values['median']:.2f}{unit}  ({values['min']:.2f} .. {values['max']:.2f})")
    print(f"  {result.get('qemu_version', 'QEMU is not installed')}")


if __name__ == "__main__":
    main()
