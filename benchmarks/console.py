"""What a program of the suite says, and a guest whose first process runs programs on request (see guest.py)."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .errors import SuiteError


@dataclass(frozen=True)
class Outcome:
    """One run of one program: what it computed, seconds by the host's clock, and seconds by the guest's if it told."""

    result: str
    wall: float
    guest: float | None = None


class Reader:
    """Takes the lines of one program, each with the time of its arrival, and makes an outcome of them."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._ended = 0.0
        self._result: str | None = None
        self._seconds: float | None = None

    def line(self, text: str, now: float) -> None:
        """One line of output; what is none of ours is passed over."""
        if text == "begin" and self._began is None:
            self._began = now
        elif self._began is not None and self._result is None and (match := re.fullmatch(r"result (\w+)", text)):
            self._result, self._ended = match[1], now
        elif self._result is not None and (match := re.fullmatch(r"seconds ([0-9.]+)", text)):
            self._seconds = float(match[1])

    def outcome(self, status: int) -> Outcome:
        """The whole, when the program has ended with ``status``. Raises :class:`SuiteError`."""
        if status:
            raise SuiteError(f"it ended with status {status}")
        if self._began is None or self._result is None:
            raise SuiteError("it printed no result")
        return Outcome(self._result, self._ended - self._began, self._seconds)


class Lines:
    """The lines that a process writes to a pipe, with the time at which each arrived."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._waiting: list[tuple[float, str]] = []
        self._partial = b""
        self.tail = b""

    def next(self, deadline: float) -> tuple[float, str]:
        """The next line. Raises :class:`SuiteError` at the end of the output and at the deadline (perf_counter)."""
        while not self._waiting:
            left = deadline - time.perf_counter()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise SuiteError("it took too long")
            data = os.read(self._descriptor, 65536)
            now = time.perf_counter()
            if not data:
                raise SuiteError("the machine ended")
            self.tail = (self.tail + data)[-2000:]
            *whole, self._partial = (self._partial + data).split(b"\n")
            self._waiting = [(now, line.decode(errors="replace").strip("\r")) for line in whole]
        return self._waiting.pop(0)


class Guest:
    """A running machine. Use as a context manager: leaving it ends the machine."""

    def __init__(self, command: Sequence[str], boot_timeout: float = 300) -> None:
        self._number = 0
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
        assert self._process.stdout is not None
        self._lines = Lines(self._process.stdout.fileno())
        try:
            self.harts = int(self._wait(r"@ready (\d+)", time.perf_counter() + boot_timeout)[1])
        except BaseException as error:
            self.close(kill=True)
            if isinstance(error, SuiteError):
                raise SuiteError(f"{command[0]} does not boot: {error}\n{self.console()}") from error
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _wait(
        self, pattern: str, deadline: float, other: Callable[[str, float], None] = lambda text, now: None
    ) -> re.Match[str]:
        while True:
            now, text = self._lines.next(deadline)
            if match := re.fullmatch(pattern, text):
                return match
            other(text, now)

    def _send(self, text: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(text.encode())
        except BrokenPipeError as error:
            raise SuiteError("the machine ended") from error

    def run(self, command: Sequence[str], timeout: float) -> Outcome:
        """Run a program of the guest. Raises :class:`SuiteError`; after that the machine is in an unknown state."""
        self.begin(command)
        return self.finish(timeout)

    def begin(self, command: Sequence[str]) -> None:
        """Start a program; :meth:`finish` waits for it."""
        self._number += 1
        self._send(f"{self._number} {' '.join(command)}\n")

    def finish(self, timeout: float) -> Outcome:
        """Wait for the program that was begun. Raises as :meth:`run` does."""
        reader = Reader()
        deadline = time.perf_counter() + timeout
        self._wait(f"@start {self._number}", deadline)
        status = int(self._wait(rf"@done {self._number} (\d+)", deadline, reader.line)[1])
        return reader.outcome(status)

    def console(self) -> str:
        """The last of what the machine printed."""
        return self._lines.tail.decode(errors="replace").replace("\r", "")

    def close(self, kill: bool = False) -> None:
        """End the machine: ask it to power off, and where that does not help, kill it."""
        if not kill and self._process.poll() is None:
            with contextlib.suppress(SuiteError, subprocess.TimeoutExpired):
                self._send("0 off\n")
                self._process.wait(10)
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()


def run_natively(command: Sequence[str], timeout: float) -> Outcome:
    """Run a program on the host. Raises :class:`SuiteError`."""
    reader = Reader()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        lines = Lines(process.stdout.fileno())
        deadline = time.perf_counter() + timeout
        try:
            while True:
                try:
                    now, text = lines.next(deadline)
                except SuiteError:
                    if time.perf_counter() >= deadline:
                        raise
                    break  # the end of its output
                reader.line(text, now)
        finally:
            if time.perf_counter() >= deadline:
                process.kill()
    outcome = reader.outcome(process.returncode)
    # Its clock is the host's, and on the host "begin" and "result" may be so close that they arrive together.
    return outcome if outcome.guest is None else replace(outcome, wall=outcome.guest)
