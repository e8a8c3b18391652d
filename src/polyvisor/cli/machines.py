"""``polyvisor ps``, ``exec``, ``cp``, ``console``, ``logs``, ``stop``: machines that run already."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from polyvisor.guest.files import get_path, put_path
from polyvisor.guest.process import Process, shell_status
from polyvisor.vm import running
from polyvisor.vm.errors import StoppedError, VMError
from polyvisor.vm.remote import RemoteVM

from .background import remote
from .run import fail
from .terminal import ESCAPE, raw_terminal

Name = Annotated[str, typer.Argument(metavar="NAME", help="A machine, as `polyvisor ps` lists them.")]
# Exit statuses of `exec`, as those of shells and `timeout`: not found, not to be executed, out of time.
_NOT_FOUND, _NOT_EXECUTABLE, _TIMED_OUT = 127, 126, 124


@contextmanager
def errors() -> Iterator[None]:
    """Report what goes wrong in one line, and exit with status 1."""
    try:
        yield
    except (VMError, OSError, KeyError, ValueError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        fail(str(message), 1)


def ps(as_json: Annotated[bool, typer.Option("--json", help="Write JSON.")] = False) -> None:
    """List the machines that run."""
    found = []
    with errors():
        for name in running.names():
            with contextlib.suppress(VMError):  # it ended meanwhile
                found.append(RemoteVM(name).ask("status"))
    if as_json:
        print(json.dumps([{k: v for k, v in each.items() if k != "ok"} for each in found], indent=2))
        return
    table = Table("NAME", "UP", "MEMORY", "HARTS", "STATE", "PID", box=None, pad_edge=False)
    for each in found:
        state = "ready" if each["ready"] else "running"
        up = _duration(time.time() - each["started"])
        table.add_row(each["name"], up, f"{each['memory'] >> 20}M", str(each["cpus"]), state, str(each["pid"]))
    Console().print(table)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


def _check_timeout(timeout: float | None) -> None:
    if timeout is not None and not 0 <= timeout <= threading.TIMEOUT_MAX:
        fail(f"--timeout {timeout}: give seconds")


def stop(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Machines, as `polyvisor ps` lists them.")],
    force: Annotated[bool, typer.Option("--force", "-f", help="Cut the power at once.")] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds the guest has to power off; default: 10, or 60 with a root disk.")
    ] = None,
) -> None:
    """Ask guests to power off; cut the power of those that do not."""
    _check_timeout(timeout)
    with errors():
        for name in names:
            machine = RemoteVM(name)
            with contextlib.suppress(StoppedError):  # its process may end before it answers
                machine.ask("kill") if force else machine.ask("stop", timeout=timeout)


def logs(
    name: Name, follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as more is printed.")] = False
) -> None:
    """Print what a machine's console has shown."""
    with errors(), contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        machine = RemoteVM(name)
        if not follow:
            sys.stdout.buffer.write(machine.log())
            sys.stdout.flush()
            return
        connection, _ = machine.open("console", since=-(1 << 30))
        with connection:
            while data := connection.recv(1 << 16):
                sys.stdout.buffer.write(data)
                sys.stdout.flush()


def console(name: Name) -> None:
    """Be at a machine's console; Ctrl-A x leaves it, and the machine goes on."""
    with errors():
        connection, _ = RemoteVM(name).open("console", since=-2048)
        with connection, raw_terminal(0):
            _relay(connection)


def _relay(connection: socket.socket) -> None:
    """Between terminal and console, until either ends or Ctrl-A x is typed."""
    escaped = False
    inputs: list[Any] = [0, connection]
    while True:
        readable, _, _ = select.select(inputs, [], [])
        if connection in readable:
            data = connection.recv(1 << 16)
            if not data:
                return
            os.write(1, data)
        if 0 in readable:
            data = os.read(0, 4096)
            if not data:
                inputs.remove(0)
            typed = bytearray()
            for byte in data:
                if escaped:
                    escaped = False
                    if byte == ord("x"):
                        return
                    typed.append(byte if byte != ord("a") else ESCAPE)
                elif byte == ESCAPE and os.isatty(0):
                    escaped = True
                else:
                    typed.append(byte)
            connection.sendall(typed)


def execute(
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="The program and its arguments.")],
    tty: Annotated[
        bool, typer.Option("--tty", "-t", help="Run it on a terminal of its own, with this one's keys.")
    ] = False,
    user: Annotated[str | None, typer.Option("--user", "-u", help="User in the guest; default: root.")] = None,
    cwd: Annotated[str | None, typer.Option(help="Directory in the guest.")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="NAME=VALUE")] = None,
    timeout: Annotated[float | None, typer.Option(help="Kill it after so many seconds.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Write exit code and output as JSON.")] = False,
) -> None:
    """Run a command in a guest: its input, output and exit status are this command's.

    Options of polyvisor come before NAME; everything behind it is the guest's.
    """
    _check_timeout(timeout)
    if command[0] == "--":  # as one may write before what is the guest's
        command = command[1:]
    variables = dict(each.partition("=")[::2] for each in env or ())
    with errors():
        client = RemoteVM(name).client
        options: dict[str, Any] = {"user": user, "cwd": cwd, "env": variables}
        try:
            if as_json:
                result = client.run(command, timeout=timeout, **options)
                found = {"exit_code": result.exit_code, "stdout": result.stdout, "stderr": result.stderr}
                print(json.dumps(found, indent=2))
                raise typer.Exit(shell_status(result.exit_code))
            size = shutil.get_terminal_size()
            terminal = (size.lines, size.columns) if tty else False
            with client.start(command, tty=terminal, encoding=None, timeout=60, **options) as process:
                code = _attend(process, tty, timeout)
        except (FileNotFoundError, PermissionError) as error:
            if error.filename is None:  # it is about something else that the command needs
                fail(error.strerror or str(error), 1)
            if isinstance(error, FileNotFoundError):
                fail(f"{error.filename}: not found in the guest", _NOT_FOUND)
            fail(f"{error.filename}: cannot be executed in the guest", _NOT_EXECUTABLE)
        except TimeoutError as error:
            fail(str(error), _TIMED_OUT)
    raise typer.Exit(shell_status(code))


def _attend(process: Process, tty: bool, timeout: float | None) -> int:
    """Carry standard streams, keys and signals to and from a command; gives its exit code."""
    end = None if timeout is None else time.monotonic() + timeout
    printers = [
        threading.Thread(target=_print, args=(process, reader, fd), daemon=True)
        for reader, fd in ((process.stdout, 1), (process.stderr, 2))
    ]
    # Before anything is printed, which others may answer by a signal.
    if not tty:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda n, _: _pass_on(process, n))
    else:
        signal.signal(signal.SIGWINCH, lambda *_: _resize(process))
    for printer in printers:
        printer.start()
    threading.Thread(target=_feed, args=(process,), daemon=True).start()
    with raw_terminal(0) if tty else contextlib.nullcontext():
        while process.running:
            if end is not None and time.monotonic() > end:
                raise TimeoutError(f"the command did not end within {timeout:g} seconds")
            with contextlib.suppress(TimeoutError):
                process.wait_end(0.2)
        for printer in printers:
            printer.join()
    return process.wait()


def _pass_on(process: Process, number: int) -> None:
    threading.Thread(target=process.send_signal, args=(number,), daemon=True).start()


def _resize(process: Process) -> None:
    size = shutil.get_terminal_size()
    threading.Thread(target=process.resize, args=(size.lines, size.columns), daemon=True).start()


def _print(process: Process, reader: Any, descriptor: int) -> None:
    with contextlib.suppress(ConnectionError):
        while data := reader.read_some():
            try:
                while data:
                    data = data[os.write(descriptor, data) :]
            except OSError:  # nobody reads it, and the command would wait for ever
                process.kill()
                return


def _feed(process: Process) -> None:
    with contextlib.suppress(OSError):
        while data := os.read(0, 1 << 16):
            process.write(data)
        process.close_stdin()


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A path, or NAME:PATH in a guest.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The same.")],
) -> None:
    """Copy a file or directory between host and guest."""
    from_guest, to_guest = _split(source), _split(target)
    if bool(from_guest) == bool(to_guest):
        fail("one of the two is in a guest: polyvisor cp file NAME:/path, or polyvisor cp NAME:/path file")
    with errors():
        if to_guest:
            put_path(remote(to_guest[0]).client, Path(source), to_guest[1] or "/root/", None)
        elif from_guest:
            get_path(remote(from_guest[0]).client, from_guest[1], Path(target), None)


def _split(text: str) -> tuple[str, str] | None:
    """``NAME:PATH``; a path with a slash before its first colon is a path."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and "/" not in name else None
