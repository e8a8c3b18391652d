"""A command that runs in the guest, seen from the host."""

from __future__ import annotations

import codecs
import signal as signals
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import protocol as p
from . import requests
from .connection import Connection

# More than this is not taken from the guest until some is read: then the command has to wait.
_LIMIT = 1 << 20


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
        self._error: Exception | None = None
        self._unparsed = bytearray()
        self._changed = threading.Condition(connection.lock)
        self._unlimited = False
        self._killed = False
        self.stdout = Reader(self, encoding)
        """What it prints: ``read``, ``readline``, iteration over lines."""
        self.stderr = Reader(self, encoding)
        connection.on_change = self._receive
        with connection.lock:
            self._receive()

    # What comes

    def _receive(self) -> None:
        """Sort what has come; with the lock held."""
        while self._unlimited or self.stdout.waiting + self.stderr.waiting < _LIMIT:
            data = self._connection.take_received()
            if not data:
                break
            self._unparsed += data
            self._parse()
        if self._connection.at_end and self.exit_code is None and self._error is None:
            if self._killed:
                self.exit_code = -signals.SIGKILL
            else:
                self._error = ConnectionError("the guest ended before the command did")
        self._changed.notify_all()
        if self.on_change is not None:
            self.on_change()

    def _parse(self) -> None:
        place = 0
        while len(self._unparsed) - place >= p.HEADER_SIZE:
            kind, length = struct.unpack_from("<II", self._unparsed, place)
            end = place + p.HEADER_SIZE + length
            if len(self._unparsed) < end:
                break
            self._frame(kind, bytes(memoryview(self._unparsed)[place + p.HEADER_SIZE : end]))
            place = end
        del self._unparsed[:place]

    def _frame(self, kind: int, payload: bytes) -> None:
        if kind == p.STDOUT:
            self.stdout.feed(payload)
        elif kind == p.STDERR:
            self.stderr.feed(payload)
        elif kind == p.STARTED:
            (self.pid,) = struct.unpack("<I", payload)
        elif kind == p.FAILED:
            stage, number = struct.unpack("<II", payload)
            self._error = requests.start_error(stage, number, self.args, self._directory)
        elif kind == p.EXIT:
            (status,) = struct.unpack("<I", payload)
            ended_by = status & 0x7F
            self.exit_code = -ended_by if ended_by else status >> 8 & 0xFF

    def _wait(self, condition: Callable[[], Any], timeout: float | None, what: str) -> None:
        """With the lock held: until ``condition``, or an end after which it will never be."""
        if not self._changed.wait_for(lambda: condition() or self._error is not None, timeout):
            raise TimeoutError(f"{what} within {timeout:g} seconds: {self._shown}")
        if not condition() and self._error is not None:
            raise self._error

    @property
    def _shown(self) -> str:
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
        """Send input; waits while the command does not read. Raises BrokenPipeError when it has ended."""
        raw = data.encode(self.encoding or "utf-8") if isinstance(data, str) else bytes(data)
        for start in range(0, len(raw), p.MAX_FRAME):
            self._connection.send(requests.frame(p.STDIN, raw[start : start + p.MAX_FRAME]), timeout)

    def close_stdin(self) -> None:
        """The command sees the end of its input."""
        try:
            self._connection.send(requests.frame(p.STDIN_END))
        except BrokenPipeError:
            return  # it has ended

    def resize(self, rows: int, columns: int) -> None:
        """Tell a command on a terminal that the window has another size."""
        try:
            self._connection.send(requests.resize(rows, columns))
        except BrokenPipeError:
            return

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
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            self._unlimited = True
            self._receive()
        if input:
            try:
                self.write(input, timeout)
            except BrokenPipeError:
                pass  # a command need not read its input
            except TimeoutError as error:
                raise TimeoutError(f"the command did not read its input within {timeout:g} seconds") from error
        self.close_stdin()
        self.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *reason: object) -> None:
        if self.running:
            self.kill()
        else:
            self._connection.close()

    def __repr__(self) -> str:
        return f"<Process {self.pid} {self._shown!r}: {'running' if self.running else self.exit_code}>"


class Reader:
    """What a command prints on one of its streams: text, or bytes if the process has no encoding."""

    def __init__(self, process: Process, encoding: str | None) -> None:
        self._process = process
        self._decoder = codecs.getincrementaldecoder(encoding)("replace") if encoding else None
        self._data: Any = "" if encoding else b""
        self._pieces: list[Any] = []
        self.waiting = 0
        """How much is there to be read: characters or bytes."""

    def feed(self, data: bytes) -> None:
        """New output has come."""
        piece = self._decoder.decode(data) if self._decoder else data
        if piece:
            self._pieces.append(piece)
            self.waiting += len(piece)

    def _join(self) -> Any:
        """All there is, in one piece."""
        if self._pieces:
            self._data = self._data[:0].join([self._data, *self._pieces])
            self._pieces.clear()
        return self._data

    def _take(self, count: int) -> Any:
        data = self._join()
        taken, self._data = data[:count], data[count:]
        self.waiting -= len(taken)
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
        """The next line with its newline; at the end what is left, which may be nothing."""
        newline = "\n" if self._decoder else b"\n"
        searched = 0

        def there() -> bool:
            nonlocal searched
            data = self._join()
            found = newline in data[searched:]
            searched = searched if found else len(data)
            return found or self._ended or self.waiting >= _LIMIT

        with self._process._changed:
            self._process._wait(there, timeout, "the command printed no whole line")
            end = self._join().find(newline, searched)
            return self._take(end + 1 if end >= 0 else self.waiting)

    def __iter__(self) -> Iterator[Any]:
        while line := self.readline():
            yield line
