"""One `polyvisor run`: a machine with this terminal as its console."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from polyvisor.vm import running
from polyvisor.vm.control import ControlServer
from polyvisor.vm.events import Event
from polyvisor.vm.gdb.harts import HartTarget
from polyvisor.vm.gdb.server import GdbServer
from polyvisor.vm.machine import Machine
from polyvisor.vm.stats import collect
from polyvisor.vm.trace import start_trace
from polyvisor.vm.virtual_machine import VM

from .desk import Desk, told
from .monitor import run_monitor
from .terminal import Input, Output, cooked_terminal, raw_terminal

# The status when the guest did not end by itself, as `timeout` and shells have it.
_INTERRUPTED = 130


@dataclass(frozen=True)
class Watched:
    """How the machine is looked at: every instruction written to ``trace``; a debugger on ``gdb_port``; its profile at
    the end, ``stats`` on standard error, ``stats_file`` as JSON."""

    trace: TextIO | None = None
    gdb_port: int | None = None
    stats: bool = False
    stats_file: Path | None = None


class Session:
    """The machine that ``make(on_output, progress)`` describes, and the terminal around it.

    ``background``: nobody types, and the console is printed only. ``named``: it gets the name that it has, or none.
    ``desk``: the display beside it.
    """

    def __init__(
        self,
        make: Callable[..., VM],
        watched: Watched,
        background: bool = False,
        named: bool = True,
        desk: Desk | None = None,
    ) -> None:
        self.watched = watched
        self.background = background
        self.named = named
        self.desk = desk
        self.output = Output(self._quit)
        self.quit = False
        self._compiled = 0
        self._started = time.monotonic()
        self._debugger: GdbServer | None = None
        self.vm = make(on_output=self.output.write, progress=self._progress)
        self.vm.on_machine.append(self._prepare)
        self.vm.events.on("reset", self._ended)
        self.vm.events.on("stopped", self._ended)

    def run(self) -> int:
        """Run to the end; gives the exit status. Raises what :meth:`VM.start` does, and VMError for the name."""
        keys = Input(self._send, self._ready, self._quit, self._monitor, self._screenshot, self.output.message)
        window = self.desk.window if self.desk is not None else None
        server = self._serve()
        try:
            with raw_terminal(0):
                if not self.background:
                    keys.start()
                try:
                    self.vm.start()
                    # Waking now and then lets signals through.
                    while not self.vm.has_ended(0 if window is not None else 0.2):
                        if window is not None and not window.step():
                            self._quit()
                    code = self.vm.wait() or 0
                except KeyboardInterrupt:
                    return _INTERRUPTED
                finally:
                    if not self.background:
                        keys.stop()
                    self.vm.kill()
        finally:
            server.close()
        return 0 if self.quit else min(code, 255)

    def _serve(self) -> ControlServer:
        while True:
            try:
                return ControlServer(self.vm)
            except running.TakenError:  # between its being chosen and this
                if self.named:
                    raise
                self.vm.name = running.free_name(self.vm.name)

    def _progress(self, name: str) -> None:
        self._compiled += 1
        self.output.status(f"preparing the interpreter for this host (first start only): {self._compiled} parts")

    def _prepare(self, machine: Machine) -> None:
        """A machine is about to run."""
        for device in machine.board.virtio_devices:
            if hasattr(device, "on_failure"):  # what is served by another process, which may end
                device.on_failure = lambda error: self.output.message(f"polyvisor: {error}\n")
        if self.watched.trace is not None:
            start_trace(machine, self.watched.trace)
        if self.watched.gdb_port is not None:
            self._debugger = GdbServer(HartTarget(machine), self.watched.gdb_port)
            machine.pause()
            self._debugger.start()
            self.output.message(f"waiting for gdb: target remote :{self._debugger.port}\n")
        self._started = time.monotonic()

    def _ended(self, event: Event) -> None:
        """A machine's life is over."""
        if self._debugger is not None:
            self._debugger.close()
            self._debugger = None
        if not self.watched.stats and self.watched.stats_file is None:
            return
        found = collect(self.vm.machine, self._started)
        if self.watched.stats_file is not None:
            try:
                with told(self.watched.stats_file, "--stats-json"):
                    self.watched.stats_file.write_text(json.dumps(found.to_dict(), indent=2) + "\n")
            except OSError as error:
                self.output.message(f"polyvisor: {error}\n")
        if self.watched.stats:
            self.output.message(f"{found.text()}\n")

    # Keys

    def _send(self, data: bytes) -> int:
        return self._machine.send(data) if self._machine is not None else 0

    @property
    def _machine(self) -> Machine | None:
        return self.vm.machine if self.vm.running else None

    def _ready(self) -> bool:
        """Whether the guest takes console input: a program always, a kernel once it listens to the port."""
        machine = self._machine
        return machine is not None and (self.vm.software.program is not None or machine.board.uart.listening)

    def _quit(self) -> None:
        self.quit = True
        self.vm.kill()  # while it starts, too

    def _monitor(self) -> None:
        if self._machine is None:
            return
        with cooked_terminal(0):
            self.output.message("\n")
            chosen = run_monitor(self._machine, input, self.output.message)
        if chosen == "quit":
            self._quit()
        elif chosen == "reset":
            self.vm.restart()

    def _screenshot(self) -> None:
        if self.desk is None:
            self.output.message("there is no display: start with --display window or --display headless\n")
            return
        try:
            self.output.message(f"saved what the display shows as {self.desk.save()}\n")
        except OSError as error:
            self.output.message(f"{error}\n")
