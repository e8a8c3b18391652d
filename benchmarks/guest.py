"""The initramfs of the suite: the image's busybox, our programs, those of Debian, and a first process that runs them.

The first process prints ``@ready HARTS``, then reads lines ``NUMBER PROGRAM ARGUMENT...`` from the console. For each it
prints ``@start NUMBER``, what the program prints, and ``@done NUMBER STATUS``. ``0 off`` ends the machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from polyvisor.images import Image, cpio

from .build import SOURCES

INIT = r"""#!/bin/sh
export PATH=/usr/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
cd /tmp
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -onlcr
echo "@ready $(nproc)"
while read -r number name arguments; do
    [ "$name" = off ] && break
    echo "@start $number"
    "/bench/$name" $arguments </dev/null
    echo "@done $number $?"
done
poweroff -f
"""


def corpus(size: int = 4 << 20) -> bytes:
    """Text of made-up words, the common ones more often: the same bytes everywhere."""
    state = 2463534242
    words: list[bytes] = []

    def number() -> int:
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        return state >> 33

    for _ in range(4000):
        words.append(bytes(b"etaoinshrdlucmfwypvb"[number() % 20] for _ in range(2 + number() % 8)))
    out = bytearray()
    while len(out) < size:
        first, second = number() % 4000, number() % 4000
        out += words[first * second // 4000]
        out += b"\n" if number() % 12 == 0 else b" "
    return bytes(out[:size])


def write_initramfs(
    path: Path, image: Image, programs: Mapping[str, Path], real: Iterable[cpio.Entry] | None
) -> None:
    """Write the archive to ``path``. ``programs`` are compiled ones by name; ``real`` is None where Debian's are not
    to be had."""
    entries = {
        entry.name: entry
        for entry in cpio.read(image.initrd.read_bytes())
        # Everything that the console and these programs need is built into the kernel.
        if not entry.name.startswith("usr/lib/modules")
    }
    entries["init"] = cpio.file("init", INIT.encode(), 0o755)
    for name, file in programs.items():
        entries[f"bench/{name}"] = cpio.file(f"bench/{name}", file.read_bytes(), 0o755)
    if real is not None:
        for entry in real:
            entries[entry.name] = entry
        for script in sorted(SOURCES.glob("*.sh")):
            name = f"bench/{script.stem}"
            entries[name] = cpio.file(name, script.read_bytes(), 0o755)
        for data in (*sorted(SOURCES.glob("*.py")), *sorted(SOURCES.glob("*.sql"))):
            entries[f"bench/{data.name}"] = cpio.file(f"bench/{data.name}", data.read_bytes())
        entries["bench/corpus"] = cpio.file("bench/corpus", corpus())
    with path.open("wb") as stream:
        cpio.write(stream, entries.values())
