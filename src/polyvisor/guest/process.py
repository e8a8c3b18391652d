"""A command that runs in the guest, seen from the host."""

from __future__ import annotations

import codecs
import signal as signals
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import protocol as p
from . import requests
from .connection import Connection
from .deadline import Deadline

# More than this is not taken from the guest until some is read: then the command has to wait.
_LIMIT = 1 << 20


def shell_status(exit_code: int) -> int:
    """An exit code as shells have it: 128 + N for a process that signal N ended."""
    return 128 - exit_code if exit_code < 0 else exit_code


class Process:
    """A command in the guest: its input, output and end. Made by ``vm.start(...)``.

    Use it as a context manager: leaving the block kills what still runs. All methods may be called from any thread;
    those that wait take a ``timeout`` in seconds and raise TimeoutError. What they wait for may also never come:
    then ConnectionError says that the guest ended or broke the connection.
    """

    def __init__(
        self,
        connection: Connection,
        arguments: Sequence[str],
        directory: str,
        kill: Callable[[int, int, float | None], None],
        encoding: str | None,
        tty: bool = False,
        has_input: bool = True,
        give_back: Callable[[Connection], None] | None = None,
    ) -> None:
        self.args = tuple(arguments)
        self.pid = 0
        """Its number in the guest, which is that of its process group too."""
        self.exit_code: int | None = None
        """None while it runs; -N if signal N ended it."""
        self.on_change: Callable[[], None] | None = None
        """Called, with a lock held, when there is new output or an end; must not wait."""
        self.encoding = encoding
        self._connection = connection
        self._directory = directory
        self._kill = kill
        self._give_back = give_back
        self._again = False  # the connection takes another request
        self._parted = False  # the connection is not ours any more
        self._error: Exception | None = None
        self._unparsed = bytearray()
        self._changed = threading.Condition(connection.lock)
        self._unlimited = False
        self._killed = False
        self._tty = tty
        self._has_input = has_input
        self._sending = threading.Lock()  # frames are sent one after the other
        self._cut_short = False  # a frame was sent in part
        self._at_line_start = True  # of what a terminal was sent
        self.stdout = Reader(self, encoding)
        """What it prints: ``read``, ``readline``, iteration over lines."""
        self.stderr = Reader(self, encoding)
        connection.on_change = self._receive
        with connection.lock:
            self._receive()

    # What comes

    def _receive(self) -> None:
        """Sort what has come; with the lock held."""
        # Of one that was killed, all that is still on its way must be taken to see the end, read or not.
        whole = self._unlimited or self._killed
        while self.running and (whole or self.stdout.waiting + self.stderr.waiting < _LIMIT):
            data = self._connection.take_received()
            if not data:
                break
            self._unparsed += data
            try:
                self._parse()
            except ValueError as error:
                self._error = ConnectionError(str(error))
        if self.running and self._connection.at_end:
            if self._killed:
                self.exit_code = -signals.SIGKILL
            else:
                self._error = ConnectionError("the guest ended before the command did")
        self._part()
        self._changed.notify_all()
        if self.on_change is not None:
            self.on_change()

    def _parse(self) -> None:
        """Raises ValueError for what makes no sense."""
        while self.running and (frame := requests.take_frame(self._unparsed)) is not None:
            self._frame(*frame)

    def _part(self) -> None:
        """Once the command is over, give the connection back, or end it; with the lock held, does not wait.

        Not while something is being sent: that belongs to this command, not to the next one. Whoever sends calls again.
        """
        if self.running or self._parted or not self._sending.acquire(blocking=False):
            return
        self._parted = True
        self._sending.release()
        self._connection.on_change = None
        if self._again and self._give_back is not None and not (self._killed or self._cut_short or self._unparsed):
            self._give_back(self._connection)
        else:
            self._connection.close()

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == p.STDOUT:
            self.stdout.feed(payload)
        elif kind == p.STDERR:
            self.stderr.feed(payload)
        elif kind == p.STARTED:
            (self.pid,) = requests.numbers(payload, 1)
        elif kind == p.FAILED:
            stage, number, again = requests.numbers(payload, 3)
            self._again = again == 1
            self._error = requests.start_error(stage, number, self.args, self._directory)
        elif kind == p.EXIT:
            status, again = requests.numbers(payload, 2)
            self._again = again == 1
            ended_by = status & 0x7F
            self.stdout.end()
            self.stderr.end()
            self.exit_code = -ended_by if ended_by else status >> 8 & 0xFF

    def _wait(self, condition: Callable[[], Any], timeout: float | None, what: str) -> None:
        """With the lock held: until ``condition``, or an end after which it will never be."""
        if not self._changed.wait_for(lambda: condition() or self._error is not None, timeout):
            raise TimeoutError(f"{what} within {timeout:g} seconds: {self.shown}")
        if not condition() and self._error is not None:
            raise self._error

    @property
    def shown(self) -> str:
        """The command in short, for messages."""
        text = " ".join(self.args[2:] if self.args[:2] == ("/bin/sh", "-c") else self.args)
        return text if len(text) <= 60 else text[:57] + "..."

    # For users

    @property
    def running(self) -> bool:
        """Whether it has not ended, as far as is known."""
        return self.exit_code is None and self._error is None

    def wait_started(self, timeout: float | None = None) -> None:
        """Wait until the program runs. Raises OSError if it cannot be started, for example FileNotFoundError."""
        with self._changed:
            self._wait(lambda: self.pid or self.exit_code is not None, timeout, "the command did not start")

    def write(self, data: str | bytes, timeout: float | None = None) -> None:
        """Send input; waits while the command does not read.

        Raises BrokenPipeError when it has ended; TimeoutError, after which a part of it may have been sent and nothing
        more can be.
        """
        if not self._has_input:
            raise BrokenPipeError("the command was started without input")
        raw = data.encode(self.encoding or "utf-8") if isinstance(data, str) else bytes(data)
        frames = [requests.frame(p.STDIN, raw[at : at + p.MAX_FRAME]) for at in range(0, len(raw), p.MAX_FRAME)]
        self._send(frames, timeout)
        if raw:
            self._at_line_start = raw.endswith(b"\n")

    def close_stdin(self, timeout: float | None = None) -> None:
        """The command sees the end of its input; on a terminal, as if Ctrl-D were typed."""
        if not self._has_input:
            return
        try:
            if self._tty:
                # In the middle of a line, the first one only hands over what was typed (termios(3), VEOF).
                self.write(b"\x04" if self._at_line_start else b"\x04\x04", timeout)
            else:
                self._send([requests.frame(p.STDIN_END)], timeout)
        except BrokenPipeError:
            return  # it has ended

    def resize(self, rows: int, columns: int, timeout: float | None = None) -> None:
        """Tell a command on a terminal that the window has another size."""
        try:
            self._send([requests.resize(rows, columns)], timeout)
        except BrokenPipeError:
            return

    def _send(self, frames: Sequence[bytes], timeout: float | None) -> None:
        deadline = Deadline(timeout)
        message = "the command did not read its input"
        if not self._sending.acquire(timeout=-1 if timeout is None else timeout):
            raise TimeoutError(f"{message} within {timeout:g} seconds: {self.shown}")
        try:
            if self._cut_short:
                raise BrokenPipeError("the command did not take all of what it was sent before")
            for frame in frames:
                if not self.running:
                    raise BrokenPipeError("the command has ended")
                self._connection.send(frame, deadline.left())
        except TimeoutError as error:
            self._cut_short = True
            raise TimeoutError(f"{message} within {timeout:g} seconds: {self.shown}") from error
        finally:
            with self._changed:
                self._sending.release()
                self._part()

    def send_signal(self, signal: int, timeout: float | None = None) -> None:
        """Send a signal (the guest's number, for example ``signal.SIGTERM``) to the command and its children."""
        self.wait_started(timeout)
        if self.running:
            self._kill(self.pid, int(signal), timeout)

    def terminate(self, timeout: float | None = None) -> None:
        """Ask it to end, by SIGTERM."""
        self.send_signal(signals.SIGTERM, timeout)

    def kill(self) -> None:
        """End it and what it started at once, and the connection with it; may be repeated."""
        with self._changed:
            if not self._parted:
                self._killed = True
                self._connection.abort()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it ends; gives its exit code. Output that nobody reads is kept meanwhile."""
        with self._changed:
            self._unlimited = True
            self._receive()
            self._wait(lambda: self.exit_code is not None, timeout, "the command did not end")
            assert self.exit_code is not None
            return self.exit_code

    def wait_end(self, timeout: float | None = None) -> None:
        """Wait until it ends, while others read its output. Raises TimeoutError."""
        with self._changed:
            self._wait(lambda: self.exit_code is not None, timeout, "the command did not end")

    def communicate(self, input: str | bytes | None = None, timeout: float | None = None) -> None:
        """Send all of ``input`` and its end, while output is kept, then wait until it ends."""
        deadline = Deadline(timeout)
        with self._changed:
            self._unlimited = True
            self._receive()
        try:
            if input:
                self.write(input, timeout)
        except BrokenPipeError:
            pass  # a command need not read its input
        self.close_stdin(deadline.left())
        self.wait(deadline.left())

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *reason: object) -> None:
        self.kill()  # which leaves the connection of a command that has ended alone, unless it is still sent to

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self.shown!r}: {'running' if self.running else self.exit_code}>"


class Reader:
    """What a command prints on one of its streams: text, or bytes if the process has no encoding."""

    def __init__(self, process: Process, encoding: str | None) -> None:
        self._process = process
        self._decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding else None
        self._data: Any = "" if encoding else b""
        self._start = 0  # of what was not read yet, in `_data`
        self._pieces: list[Any] = []  # what comes behind it
        self.waiting = 0
        """How much is there to be read: characters or bytes."""

    def feed(self, data: bytes) -> None:
        """New output has come."""
        self._add(self._decoder.decode(data) if self._decoder else data)

    def end(self) -> None:
        """No more output comes."""
        if self._decoder:
            self._add(self._decoder.decode(b"", final=True))

    def _add(self, piece: Any) -> None:
        if piece:
            self._pieces.append(piece)
            self.waiting += len(piece)

    def _join(self) -> Any:
        """All there is in one piece, from `_start` on."""
        if self._pieces:
            self._data = self._data[:0].join([self._data[self._start :], *self._pieces])
            self._start = 0
            self._pieces.clear()
        return self._data

    def _take(self, count: int) -> Any:
        data = self._join()
        taken = data[self._start : self._start + count]
        self._start += len(taken)
        self.waiting -= len(taken)
        if not self.waiting:
            self._data, self._start = data[:0], 0
        self._process._receive()
        return taken

    @property
    def _ended(self) -> bool:
        return self._process.exit_code is not None

    def read_some(self, timeout: float | None = None) -> Any:
        """What there is, as soon as there is something; nothing at the end."""
        with self._process._changed:
            self._process._wait(lambda: self.waiting or self._ended, timeout, "the command printed nothing")
            return self._take(self.waiting)

    def read(self, timeout: float | None = None) -> Any:
        """All that comes until the command ends."""
        self._process.wait(timeout)
        with self._process._changed:
            return self._take(self.waiting)

    def readline(self, timeout: float | None = None) -> Any:
        """The next line with its newline; at the end what is left, which may be nothing.

        A line of more than a mebibyte comes in parts.
        """
        newline = "\n" if self._decoder else b"\n"
        searched = 0  # characters behind `_start` in which there is none

        def length() -> int:
            """Of the line, or 0."""
            nonlocal searched
            data = self._join()
            found: int = data.find(newline, self._start + searched)
            if found < 0:
                searched = self.waiting
                return 0
            return found + 1 - self._start

        with self._process._changed:
            ready = lambda: length() or self._ended or self.waiting >= _LIMIT  # noqa: E731
            self._process._wait(ready, timeout, "the command printed no whole line")
            return self._take(length() or self.waiting)

    def __iter__(self) -> Iterator[Any]:
        while line := self.readline():
            yield line
