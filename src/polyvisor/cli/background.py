"""Machines in the background: started by one command, reached by others."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from polyvisor.vm import running
from polyvisor.vm.errors import VMError
from polyvisor.vm.remote import RemoteVM

_LONGEST = 300.0  # seconds a boot may take, first start and download included


def start_in_background(name: str, arguments: list[str]) -> int:
    """Run ``polyvisor`` with ``arguments`` in a process that outlives this one; returns when its guest is ready.

    The first of them is the command, ``run``. Prints the name of the machine, or what went wrong; gives the exit
    status. Raises VMError.
    """
    # First, because behind `--` they would be no options; a --name behind them is the same.
    words = [arguments[0], "--background", "--name", name, *arguments[1:]]
    command = [sys.executable, "-m", "polyvisor", *words]
    with tempfile.NamedTemporaryFile(prefix="polyvisor-", suffix=".err") as errors:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
            cwd=os.getcwd(),  # noqa: PTH109
        )
        path = running.socket_path(name)
        end = time.monotonic() + _LONGEST
        while time.monotonic() < end:
            if child.poll() is not None:
                text = Path(errors.name).read_text(errors="replace").strip()
                print(text or f"polyvisor: {name} ended at once, with status {child.returncode}", file=sys.stderr)
                return child.returncode or 1
            if path.exists() and running.is_alive(path):
                break
            time.sleep(0.02)
        else:
            child.terminate()
            raise VMError(f"{name} did not start within {_LONGEST:g} seconds")
        machine = RemoteVM(name)
        if machine.ask("status")["agent"]:
            machine.ask("wait_ready", timeout=max(1.0, end - time.monotonic()))
    print(name)
    return 0


def remote(name: str) -> RemoteVM:
    """The running machine called ``name``. Raises VMError."""
    if not name:
        there = running.names()
        if len(there) != 1:
            raise VMError(f"say which machine: {', '.join(there)}" if there else "no machine is running")
        name = there[0]
    return RemoteVM(name)
