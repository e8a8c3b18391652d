"""Compile the C programs, for the guest and for the host, with the compiler of the package ziglang."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polyvisor.cachedir import cache_root

from .errors import SuiteError

SOURCES = Path(__file__).parent / "programs"
# No contraction to fused multiply-add, so that each machine rounds the same; static, so that a kernel is enough.
# Aligned, so that it is not chance whether a hot loop lies across the end of a page, which is slow to emulate: calls.c
# measures jumps between pages on purpose.
FLAGS = (
    *("-static", "-s", "-O2", "-std=gnu11", "-ffp-contract=off", "-fno-sanitize=undefined"),
    *("-falign-functions=1024", "-Wall", "-Wextra", "-Werror"),
)
GUEST = ("-target", "riscv64-linux-musl", "-mcpu=generic_rv64+m+a+f+d+c")


def host_target() -> tuple[str, ...]:
    """The compiler's options for this machine: the common instruction set of its architecture."""
    return ("-target", f"{platform.machine()}-linux-musl")


def work_directory() -> Path:
    """Where the suite keeps what it builds."""
    return cache_root() / "benchmarks"


def compiler_version() -> str:
    """The version of ziglang. Raises :class:`SuiteError` when it is not installed."""
    if importlib.util.find_spec("ziglang") is None:
        raise SuiteError("the compiler for the guest programs is missing: pip install ziglang (or '.[bench]')")
    return importlib.metadata.version("ziglang")


def build(
    names: Iterable[str], target: tuple[str, ...], progress: Callable[[str], None] = lambda text: None
) -> dict[str, Path]:
    """The executables of the C programs ``names`` (without ".c"). What was built before is used again."""
    wanted = sorted(set(names))
    if not wanted:
        return {}
    digest = hashlib.sha256("\0".join((compiler_version(), *target, *FLAGS)).encode())
    digest.update((SOURCES / "bench.h").read_bytes())
    outputs: dict[str, Path] = {}
    for name in wanted:
        each = digest.copy()
        each.update((SOURCES / f"{name}.c").read_bytes())
        outputs[name] = work_directory() / "programs" / f"{name}-{target[1]}-{each.hexdigest()[:16]}"
    missing = [name for name in wanted if not outputs[name].exists()]
    if missing:
        progress(f"compiling {len(missing)} programs for {target[1]}")
        # The first one makes the compiler build its C library; the others would all wait for that.
        _compile(missing[0], target, outputs[missing[0]])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda name: _compile(name, target, outputs[name]), missing[1:]))
    return outputs


def _compile(name: str, target: tuple[str, ...], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment.setdefault("ZIG_GLOBAL_CACHE_DIR", str(work_directory() / "zig"))
    environment.setdefault("ZIG_LOCAL_CACHE_DIR", str(work_directory() / "zig"))
    with tempfile.TemporaryDirectory(dir=output.parent) as directory:
        made = Path(directory, name)
        command = [sys.executable, "-m", "ziglang", "cc", *target, *FLAGS, str(SOURCES / f"{name}.c"), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode or not made.exists():
            raise SuiteError(f"{name}.c does not compile for {target[1]}: {done.stderr.strip()[-2000:]}")
        made.replace(output)
