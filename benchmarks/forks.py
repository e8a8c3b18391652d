"""Forks of a booted Debian: how long until they execute and answer, and what memory each has of its own.

    python -m benchmarks.forks [--runs 40] [--many 1000] [--memory 512M] [--json FILE]

``--runs`` forks one after the other; then ``--many`` at once, each of which answers one command.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polyvisor

# Debian's kernel 7.2 looks which memory is used up to two hundred times a second, as long as the guest runs: not here.
_QUIET = "damon_stat.enabled=0"
# Requests under way at the same time.
_AT_ONCE = 8


def private_memory() -> int:
    """Bytes that this process alone has and that differ from a file's, by /proc/self/smaps_rollup (proc(5))."""
    descriptor = os.open("/proc/self/smaps_rollup", os.O_RDONLY)
    text = os.read(descriptor, 4096)
    os.close(descriptor)
    at = text.find(b"Private_Dirty:") + 14
    return int(text[at : at + 20].split()[0]) << 10


def watch(vm: polyvisor.VM, number: int) -> None:
    """Called in each fork: note when its first instruction is executed, and what memory is its own then."""
    hart = vm.machine.board.harts[0]
    execute = hart.execute

    def first() -> object:
        vm.executed_at = time.perf_counter()  # type: ignore[attr-defined]
        vm.private_memory = private_memory()  # type: ignore[attr-defined]
        hart.execute = execute
        return execute()

    hart.execute = first  # type: ignore[assignment]


def one_by_one(vm: polyvisor.VM, runs: int) -> dict[str, list[float]]:
    """Seconds to the first instruction and to the first answer, and bytes of private memory."""
    found: dict[str, list[float]] = {"first instruction": [], "first answer": [], "private memory": []}
    for _ in range(runs):
        start = time.perf_counter()
        [fork] = vm.fork()
        fork.run("true", check=True)
        answered = time.perf_counter()
        found["first instruction"].append(fork.executed_at - start)
        found["first answer"].append(answered - start)
        found["private memory"].append(fork.private_memory)
        fork.kill()
    return found


def many(vm: polyvisor.VM, count: int) -> dict[str, float]:
    """Forks that are there at the same time."""
    free = available()
    start = time.perf_counter()
    forks = vm.fork(count)
    forked = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = list(pool.map(lambda fork: fork.run("echo $((6*7))", check=True).stdout, forks))
    answered = time.perf_counter()
    taken = free - available()
    before = [fork.private_memory for fork in forks[:: max(1, count // 50)]]
    for fork in forks:
        fork.kill()
    if answers != ["42\n"] * count:
        raise SystemExit(f"only {answers.count('42' + chr(10))} of {count} forks answered")
    return {
        "forks": count, "seconds to fork": forked - start, "seconds to answer": answered - forked,
        "private memory before": statistics.median(before), "host memory of each, after its answer": taken / count,
    }  # fmt: skip


def available() -> int:
    """Bytes of memory that the host has left."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) << 10


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.forks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--many", type=int, default=1000)
    parser.add_argument("--memory", default="512M")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with polyvisor.VM("debian", memory=options.memory, append=_QUIET, timeout=600) as vm:
        for _ in range(200):
            vm.run("true", check=True)
        vm.on_fork.append(watch)
        found = one_by_one(vm, options.runs)
        for name, values in found.items():
            scale, unit = (1 / 2**20, "MiB") if name == "private memory" else (1e3, "ms")
            low, middle, high = (scale * f(values) for f in (min, statistics.median, max))
            print(f"{name:20} {middle:8.2f} {unit} ({low:.2f} .. {high:.2f})")
        results: dict[str, object] = {**found}
        if options.many:
            results["many"] = together = many(vm, options.many)
            for what, value in together.items():
                shown = f"{value / 2**20:.2f} MiB" if "memory" in what else f"{value:.2f}"
                print(f"{what:40} {shown}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
