"""Devices under polyvisor and QEMU (TCG), in turn: the same guest, the same kernel, the same files behind them.

    python -m benchmarks.devices [--runs 3] [--only block,network,command] [--json FILE]

block: a virtio disk read from start to end, and 4 KiB at random places, past the guest's page cache. network: a TCP
stream between two machines, through a switch of ours in one process, through ``-netdev socket`` of two QEMUs. command:
``vm.run("true")``, for which QEMU has no counterpart.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import polyvisor
from polyvisor import images
from polyvisor.images import cpio
from polyvisor.network.switch import Switch
from polyvisor.vm.equipment import Nic

from . import boot
from .build import GUEST, build
from .console import Guest, Outcome, Reader
from .errors import SuiteError
from .guest import INIT
from .suite import QEMU, Terminal, processor, qemu_version

DISK = 256 << 20
# What each test moves: name, program, its amount, and how to show it for so many seconds.
BLOCK = {
    "blkread": (4, lambda amount, seconds: f"{amount * DISK / seconds / 1e6:.0f} MB/s"),
    "blkrandom": (20_000, lambda amount, seconds: f"{amount / seconds:.0f} reads/s"),
}
STREAM = 512  # MiB
PROGRAMS = (*BLOCK, "netstream")
_DRIVERS = "modprobe -q -a virtio_mmio virtio_blk virtio_net\n[ -n \"$ADDRESS\" ] && ip addr add $ADDRESS dev eth0\n"
_UP = "ip link set lo up; [ -e /sys/class/net/eth0 ] && ip link set eth0 up\n"


def initramfs(image: images.Image, programs: dict[str, Path]) -> bytes:
    """The image's, whose first process is the suite's with the devices' drivers; ADDRESS is on the command line."""
    start = INIT.replace('echo "@ready', f'{_DRIVERS}{_UP}echo "@ready')
    added = [cpio.file("init", start.encode(), 0o755)]
    added += [cpio.file(f"bench/{name}", path.read_bytes(), 0o755) for name, path in programs.items()]
    stream = io.BytesIO()
    cpio.write(stream, added)
    whole = image.initrd.read_bytes()
    return whole + bytes(-len(whole) % 512) + stream.getvalue()


class Bench:
    """What all tests need."""

    def __init__(self, directory: Path, qemu: str | None, terminal: Terminal) -> None:
        self.directory = directory
        self.qemu = qemu
        self.tell = terminal
        self.image = images.ensure("debian")
        self.programs = build(PROGRAMS, GUEST, terminal)
        self.initrd = directory / "initrd"
        self.initrd.write_bytes(initramfs(self.image, self.programs))
        self.times: dict[str, dict[str, list[float]]] = {}

    def note(self, name: str, machine: str, seconds: float) -> None:
        """One measurement."""
        self.times.setdefault(name, {}).setdefault(machine, []).append(seconds)

    def command(self, machine: str, ours: list[str], theirs: list[str], append: str = "") -> list[str]:
        """Start a guest with more options, in either machine."""
        line = f"{self.image.append} {append}"
        if machine == "qemu":
            assert self.qemu is not None
            return [*boot.qemu_command(self.qemu, self.image.kernel, self.initrd, line, "256M", 1), *theirs]
        return boot.polyvisor_command(self.image.kernel, self.initrd, line, "256M", 1, ours)

    @property
    def machines(self) -> list[str]:
        """Those that are here."""
        return ["polyvisor", "qemu"] if self.qemu else ["polyvisor"]


def block(bench: Bench, runs: int) -> None:
    """Reads of a raw disk."""
    disk = bench.directory / "disk"
    rng = random.Random(1)
    with disk.open("wb") as file:
        for _ in range(DISK >> 20):
            file.write(rng.randbytes(1 << 20))
    drive = f"file={disk},format=raw,if=none,id=disk,readonly=on"
    theirs = ["-drive", drive, "-device", "virtio-blk-device,drive=disk"]
    results: dict[str, set[str]] = {}
    with contextlib.ExitStack() as stack:
        guests = {
            machine: stack.enter_context(Guest(bench.command(machine, ["--disk", f"{disk},ro"], theirs)))
            for machine in bench.machines
        }
        for turn in range(runs + 1):
            for name, (amount, _) in BLOCK.items():
                for machine, guest in guests.items():
                    bench.tell(f"{name} on {machine}, round {turn} of {runs}")
                    outcome = guest.run([name, str(amount)], 600)
                    results.setdefault(name, set()).add(outcome.result)
                    if turn:  # the first fills caches, ours of compiled code and the host's of the file
                        bench.note(name, machine, outcome.guest or outcome.wall)
    if wrong := [name for name, found in results.items() if len(found) > 1]:
        raise SuiteError(f"{wrong[0]}: the machines read different things")


def network(bench: Bench, runs: int) -> None:
    """A TCP stream between two machines of a kind."""
    with contextlib.ExitStack() as stack:
        streams: dict[str, Callable[[], Outcome]] = {"polyvisor": stack.enter_context(_ours(bench))}
        if bench.qemu:
            streams["qemu"] = stack.enter_context(_theirs(bench))
        for turn in range(runs + 1):
            for machine, stream in streams.items():
                bench.tell(f"stream on {machine}, round {turn} of {runs}")
                outcome = stream()
                if turn:
                    bench.note("stream", machine, outcome.guest or outcome.wall)


@contextlib.contextmanager
def _ours(bench: Bench) -> Iterator[Callable[[], Outcome]]:
    with Switch() as switch:
        nics = [Nic(switch, address=f"10.0.0.{n}/24") for n in (1, 2)]
        with (
            polyvisor.VM("debian", memory="256M", networks=[nics[0]]) as sender,
            polyvisor.VM("debian", memory="256M", networks=[nics[1]]) as receiver,
        ):
            for vm in (sender, receiver):
                vm.put(bench.programs["netstream"], "/bin/netstream")

            def stream() -> Outcome:
                with receiver.popen(["netstream", str(STREAM)]) as process:
                    reader = Reader()
                    result = sender.run(["netstream", str(STREAM), "10.0.0.2"], timeout=600)
                    for line in result.stdout.splitlines():
                        reader.line(line, time.perf_counter())
                    process.wait(60)
                    return reader.outcome(result.exit_code)

            yield stream


@contextlib.contextmanager
def _theirs(bench: Bench) -> Iterator[Callable[[], Outcome]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ends = (f"socket,id=n,listen=127.0.0.1:{port}", f"socket,id=n,connect=127.0.0.1:{port}")
    with contextlib.ExitStack() as stack:
        receiver, sender = (
            stack.enter_context(
                Guest(
                    bench.command(
                        "qemu", [], ["-netdev", end, "-device", f"virtio-net-device,netdev=n,mac=52:54:00:00:00:0{n}"],
                        f"ADDRESS=10.0.0.{n}/24",
                    )
                )
            )
            for n, end in zip((2, 1), ends, strict=True)
        )

        def stream() -> Outcome:
            receiver.begin(["netstream", str(STREAM)])
            outcome = sender.run(["netstream", str(STREAM), "10.0.0.2"], 600)
            receiver.finish(60)
            return outcome

        yield stream


def command(bench: Bench, runs: int) -> None:
    """The round trip of a command."""
    with polyvisor.VM("debian", memory="256M") as vm:
        for _ in range(200):
            vm.run("true")
        for _ in range(100 * runs):
            start = time.perf_counter()
            vm.run("true")
            bench.note('vm.run("true")', "polyvisor", time.perf_counter() - start)


TESTS = {"block": block, "network": network, "command": command}


def _shown(name: str, seconds: float) -> str:
    if name in BLOCK:
        amount, show = BLOCK[name]
        return show(amount, seconds)
    return f"{STREAM * (1 << 20) / seconds / 1e6:.0f} MB/s" if name == "stream" else f"{seconds * 1000:.2f} ms"


def main() -> int:
    """The command; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="rounds (default: 3), after one that does not count")
    parser.add_argument("--only", default=",".join(TESTS), help=f"of {','.join(TESTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := [name for name in wanted if name not in TESTS]:
        parser.error(f"unknown test {unknown[0]!r}; there are {', '.join(TESTS)}")
    terminal = Terminal()
    qemu = shutil.which(QEMU)
    boot.compile_sources()
    with tempfile.TemporaryDirectory() as directory:
        try:
            bench = Bench(Path(directory), qemu, terminal)
            for name in wanted:
                TESTS[name](bench, options.runs)
        except (SuiteError, images.ImageError, polyvisor.VMError) as error:
            terminal.clear()
            print(f"benchmarks: {error}", file=sys.stderr)
            return 1
    terminal.clear()
    print(f"{os.cpu_count()} x {processor()}; {qemu_version(qemu) if qemu else 'without QEMU'}")
    for name, machines in bench.times.items():
        cells = []
        for machine, times in machines.items():
            middle, least, most = statistics.median(times), min(times), max(times)
            cells.append(f"{machine} {_shown(name, middle)} ({_shown(name, most)} .. {_shown(name, least)})")
        ratio = ""
        if "qemu" in machines:
            ratio = f"; ratio {statistics.median(machines['qemu']) / statistics.median(machines['polyvisor']):.2f}"
        print(f"{name:15} {', '.join(cells)}{ratio}")
    if options.json:
        options.json.write_text(json.dumps(bench.times, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
