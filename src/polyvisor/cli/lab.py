"""``polyvisor run lab.toml``: several machines, their consoles line by line under their names."""

from __future__ import annotations

import contextlib
import sys
import threading
from pathlib import Path

from rich.console import Console

from polyvisor.guest.process import shell_status
from polyvisor.vm.control import ControlServer
from polyvisor.vm.lab import Lab
from polyvisor.vm.virtual_machine import VM

_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red")


class Lines:
    """What several machines print, in whole lines with a name before each."""

    def __init__(self, names: list[str]) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._width = max(map(len, names))
        self._colours = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
        self._parts: dict[str, bytes] = dict.fromkeys(names, b"")
        self._lock = threading.Lock()

    def feed(self, name: str, data: bytes) -> None:
        """A machine printed ``data``."""
        with self._lock:
            *lines, self._parts[name] = (self._parts[name] + data.replace(b"\r", b"")).split(b"\n")
            for line in lines:
                self._print(name, line.decode(errors="replace"))

    def say(self, name: str, text: str) -> None:
        """Something of our own about a machine."""
        with self._lock:
            self._print(name, text)

    def _print(self, name: str, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._console.print(f"[{self._colours[name]}]{name:>{self._width}} |[/] ", end="")
            self._console.out(line, highlight=False)


def run_lab(
    path: Path, virtual_time: bool = False, seed: int | None = None, schedule: int | None = None,
    record: Path | None = None,
) -> int:
    """Run a lab until its commands have ended, or else its machines; gives the exit status.

    The options count before what the file says. Raises ValueError, OSError, VMError, SetupError, ImageError with a
    line for the user.
    """
    lab = Lab.load(path)
    lab.virtual_time = lab.virtual_time or virtual_time
    lab.seed = lab.seed if seed is None else seed
    lab.schedule = lab.schedule if schedule is None else schedule
    lab.record = record
    lines = Lines(list(lab.plans))
    servers: list[ControlServer] = []

    def prepare(vm: VM) -> None:
        servers.append(ControlServer(vm))

    lab.on_output = lines.feed
    lab.on_machine = prepare
    try:
        lab.start()
        lab.boot()
        if any(plan.run is not None for plan in lab.plans.values()):
            return _commands(lab, lines)
        if sys.stderr.isatty():
            print("all machines are ready; Ctrl-C stops them", file=sys.stderr)
        for vm in lab.machines.values():
            # Waking now and then lets signals through.
            while not vm.has_ended(0.2):
                pass
        return max((vm.exit_code or 0 for vm in lab.machines.values()), default=0)
    except KeyboardInterrupt:
        return 130
    finally:
        lab.stop()
        for server in servers:
            server.close()


def _commands(lab: Lab, lines: Lines) -> int:
    """Run what is to be run; the status is that of the first that failed, in the file's order."""
    results = lab.run(lines.say)
    status = 0
    for name in lab.plans:
        result = results.get(name)
        if isinstance(result, Exception):
            lines.say(name, f"polyvisor: {result}")
            status = status or 1
        elif result is not None and result.exit_code:
            lines.say(name, f"polyvisor: exit code {result.exit_code}")
            status = status or shell_status(result.exit_code)
    sys.stdout.flush()
    return min(status, 255)

