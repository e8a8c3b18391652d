"""Machines in the background: started by one command, reached by others."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from polyvisor.vm import running
from polyvisor.vm.errors import VMError
from polyvisor.vm.remote import RemoteVM

_LONGEST = 300.0  # seconds a boot may take, first start and download included
_LONGEST_END = 5.0  # seconds a machine that broke may take to say why


def start_in_background(name: str, arguments: list[str]) -> int:
    """Run ``polyvisor`` with ``arguments`` in a process that outlives this one; returns when its guest is ready.

    The first of them is the command, ``run``. Prints the name of the machine, or what went wrong; gives the exit
    status. Raises VMError.
    """
    if running.is_alive(running.socket_path(name)):
        raise running.TakenError(f"a machine called {name!r} runs already: choose another --name")
    # First, because behind `--` they would be no options; a --name behind them is the same.
    words = [arguments[0], "--background", "--name", name, *arguments[1:]]
    with tempfile.NamedTemporaryFile(prefix="polyvisor-", suffix=".err") as errors:
        child = subprocess.Popen(
            [sys.executable, "-m", "polyvisor", *words], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=errors, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_ready(name, child)
        except VMError:
            # It may have said more itself, if it ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_LONGEST_END)
            if child.returncode is None:
                raise
            text = Path(errors.name).read_text(errors="replace").strip()
            print(text or f"polyvisor: {name} ended at once, with status {child.returncode}", file=sys.stderr)
            return child.returncode or 1
    print(name)
    return 0


def _wait_ready(name: str, child: subprocess.Popen[bytes]) -> None:
    """Until the machine that ``child`` runs is there and its guest's agent answers. Raises VMError."""
    end = time.monotonic() + _LONGEST
    while True:
        if child.poll() is not None:
            raise VMError(f"{name} ended")
        if time.monotonic() > end:
            child.terminate()
            raise VMError(f"{name} did not start within {_LONGEST:g} seconds")
        with contextlib.suppress(VMError):  # it is not there yet
            machine = RemoteVM(name)
            status = machine.ask("status")
            if status["pid"] == child.pid:
                break
        time.sleep(0.02)
    if status["agent"]:
        machine.ask("wait_ready", timeout=max(1.0, end - time.monotonic()))


def remote(name: str) -> RemoteVM:
    """The running machine called ``name``. Raises VMError."""
    if not name:
        there = running.names()
        if len(there) != 1:
            raise VMError(f"say which machine: {', '.join(there)}" if there else "no machine is running")
        name = there[0]
    return RemoteVM(name)
