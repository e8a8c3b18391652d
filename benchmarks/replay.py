"""What virtual time and recording cost, and whether replays are the same every time.

    python -m benchmarks.replay [--runs 3] [--replays 20] [--json FILE]

A boot of Debian and a workload with a disk and a network, on one hart: in real time, in virtual time, and recorded.
Then a recording with two harts (which run one at a time in virtual time), replayed as often as one likes: each time
memory, registers and devices are compared at every checkpoint. Times are the process's CPU time, so that other work of
the host counts less; those of a wall clock are beside them. Hot code is compiled by other processes: not in there.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import http.server
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polyvisor

DISK = 128 << 20
FILE = 8 << 20
WORKLOAD = """set -e
mke2fs -q /dev/vda > /dev/null
modprobe ext4
mkdir -p /m && mount -t ext4 /dev/vda /m
for n in 1 2 3; do dd if=/dev/zero of=/m/$n bs=64k count=200 2> /dev/null; done
wget -q -O /m/fetched http://10.0.2.2:PORT/file
sync; echo 3 > /proc/sys/vm/drop_caches
cat /m/? /m/fetched | sha256sum
head -c 20000000 /dev/zero | gzip | md5sum
n=0; while [ $n -lt 200 ]; do n=$((n+1)); ls -l /bin > /dev/null; done
"""


@contextlib.contextmanager
def file_server(directory: Path) -> Iterator[int]:
    """An HTTP server for a directory on loopback: its port."""
    handler = functools.partial(_Quiet, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def run(place: Path, port: int, **options: Any) -> dict[str, float]:
    """Boot, do the work, stop: what it took in seconds, and the instructions."""
    disk = place / "disk.raw"
    disk.write_bytes(b"")
    with disk.open("r+b") as file:
        file.truncate(DISK)
    vm = polyvisor.VM("debian", memory="256M", disks=[disk], networks=["user"], timeout=600, **options)
    wall, busy = time.monotonic(), time.process_time()
    with vm:
        vm.run(WORKLOAD.replace("PORT", str(port)), check=True)
        found = {"seconds": time.process_time() - busy, "wall": time.monotonic() - wall}
        found["instructions"] = sum(cpu.instructions for cpu in vm.cpu)
    return found


def compare(place: Path, port: int, runs: int) -> dict[str, dict[str, float]]:
    """The three ways in turn; medians."""
    modes: dict[str, dict[str, Any]] = {
        "real time": {}, "virtual time": {"virtual_time": True}, "recorded": {"record": place / "one.rec"},
    }
    samples: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
    run(place, port)  # what is compiled once, and kept
    for _ in range(runs):
        for mode, options in modes.items():
            samples[mode].append(run(place, port, **options))
    return {
        mode: {key: statistics.median(sample[key] for sample in of) for key in of[0]} for mode, of in samples.items()
    }


def repeat(place: Path, port: int, replays: int) -> dict[str, Any]:
    """Record with two harts, and replay."""
    path = place / "two.rec"
    run(place, port, cpus=2, record=path)
    same, checkpoints, seconds = 0, 0, []
    for number in range(replays):
        began = time.process_time()
        try:
            with polyvisor.replay(path, tier="jit", backwards=False) as replay:
                replay.run()
                checkpoints = replay.checked
                same += 1
        except polyvisor.DivergenceError as error:
            print(f"replay {number + 1}: {error}", file=sys.stderr)
        seconds.append(time.process_time() - began)
    return {
        "replays": replays, "same": same, "checkpoints": checkpoints, "bytes": path.stat().st_size,
        "seconds": statistics.median(seconds) if seconds else 0.0,
    }


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="What virtual time and recording cost, and that replays are the same.")
    parser.add_argument("--runs", type=int, default=3, help="of each way; 0: only replays")
    parser.add_argument("--replays", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        place = Path(directory)
        (place / "served").mkdir()
        (place / "served" / "file").write_bytes(bytes(range(256)) * (FILE // 256))
        with file_server(place / "served") as port:
            if given.runs:
                results["ways"] = compare(place, port, given.runs)
                real = results["ways"]["real time"]["seconds"]
                for mode, found in results["ways"].items():
                    print(
                        f"{mode:<13} {found['seconds']:6.2f} s of CPU time ({found['seconds'] / real:.2f} x), "
                        f"{found['wall']:6.2f} s, {found['instructions'] / 1e9:.2f} G instructions"
                    )
            if given.replays:
                found = results["replays"] = repeat(place, port, given.replays)
                print(
                    f"two harts: {found['same']} of {found['replays']} replays the same at {found['checkpoints']} "
                    f"checkpoints each; {found['seconds']:.2f} s of CPU time each, {found['bytes'] >> 20} MiB"
                )
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(results.get("replays", {}).get("same", 0) != given.replays)


if __name__ == "__main__":
    sys.exit(main())
