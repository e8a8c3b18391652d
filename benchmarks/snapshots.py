"""How long snapshots take: saving a booted guest, restoring it, and the first command in it.

    python -m benchmarks.snapshots [--runs 10] [--memory 512M] [--json FILE]

save: all of a guest that has booted and idles, to a new file; changes: what one command changed, on top of that.
start: from ``VM.restore`` until the guest executes, in a process that has imported all and loaded the interpreter;
command: the same until ``vm.run("true")`` has answered; process: the same in a new Python process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import polyvisor
from polyvisor.vm.snapshot.restore import restored_vm

from . import boot
from .suite import Terminal, processor

# Until what a guest still does after it has booted is done, in seconds.
_IDLE = 3.0
_ONE_COMMAND = "import sys, polyvisor; vm = polyvisor.VM.restore(sys.argv[1]); vm.run('true'); vm.kill()"


def timed(times: list[float], action: Callable[[], object]) -> object:
    """Do it, and note the seconds."""
    start = time.perf_counter()
    result = action()
    times.append(time.perf_counter() - start)
    return result


def measure(directory: Path, memory: str, runs: int, tell: Terminal) -> tuple[dict[str, list[float]], int]:
    """Seconds by what was measured, and the bytes that the whole snapshot has."""
    times: dict[str, list[float]] = {name: [] for name in ("save", "changes", "start", "command", "process")}
    path = directory / "whole.pvsnap"
    tell("boot")
    with polyvisor.VM("debian", memory=memory) as vm:
        time.sleep(_IDLE)
        for turn in range(runs):
            tell(f"save, round {turn + 1} of {runs}")
            path.unlink(missing_ok=True)
            timed(times["save"], partial(vm.snapshot, path))
            vm.run("true")
            changes = directory / "changes.pvsnap"
            timed(times["changes"], partial(vm.snapshot, changes, base=path))
            changes.unlink()
        path.unlink()
        stored = vm.snapshot(path).stored
    for turn in range(runs + 1):
        tell(f"restore, round {turn} of {runs}")
        start = time.perf_counter()
        vm, _ = restored_vm(path)
        vm.start()
        started = time.perf_counter()
        vm.run("true")
        answered = time.perf_counter()
        vm.kill()
        if turn:  # the first loads the interpreter
            times["start"].append(started - start)
            times["command"].append(answered - start)
    for turn in range(runs):
        tell(f"process, round {turn + 1} of {runs}")
        command = [sys.executable, "-c", _ONE_COMMAND, str(path)]
        timed(times["process"], partial(subprocess.run, command, check=True))
    return times, stored


def main() -> int:
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="rounds (default: 10)")
    parser.add_argument("--memory", default="512M", help="of the guest (default: 512M)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    options = parser.parse_args()
    terminal = Terminal()
    boot.compile_sources()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as directory:
        try:
            times, stored = measure(Path(directory), options.memory, options.runs, terminal)
        except polyvisor.VMError as error:
            terminal.clear()
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1
    terminal.clear()
    print(f"{os.cpu_count()} x {processor()}; {options.memory}, of which {stored / 1e6:.0f} MB are stored")
    for name, found in times.items():
        middle, least, most = statistics.median(found) * 1e3, min(found) * 1e3, max(found) * 1e3
        print(f"{name:10} {middle:.0f} ms ({most:.0f} .. {least:.0f})")
    if options.json:
        options.json.write_text(json.dumps(times, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
