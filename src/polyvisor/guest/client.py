"""Talking to the agent: running commands in the guest and moving files, over any connection that leads to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from polyvisor.dataclass import dataclass

from . import protocol as p
from . import requests
from .connection import Connection, IdleConnections
from .deadline import Deadline
from .process import Process
from .requests import DEFAULT_ENVIRONMENT, FileStatus, User

_CHUNK = p.MAX_FRAME


@dataclass(frozen=True)
class Result:
    """How a command ended: ``exit_code`` (-N after signal N), and what it printed, as text or bytes."""

    args: tuple[str, ...]
    exit_code: int
    stdout: Any
    stderr: Any

    @property
    def ok(self) -> bool:
        """Whether it ended with status 0."""
        return self.exit_code == 0

    def check(self) -> Result:
        """This result, if the command succeeded. Raises CommandError."""
        if not self.ok:
            raise CommandError(self)
        return self


class CommandError(Exception):
    """A command in the guest failed; ``result`` is all that is known of it."""

    def __init__(self, result: Result) -> None:
        self.result = result
        how = f"was ended by signal {-result.exit_code}" if result.exit_code < 0 else f"gave {result.exit_code}"
        command = " ".join(result.args[2:] if result.args[:2] == ("/bin/sh", "-c") else result.args)
        last = result.stderr if isinstance(result.stderr, str) else bytes(result.stderr).decode(errors="replace")
        lines = last.strip().splitlines()
        super().__init__(f"command {command!r} {how}{': ' + lines[-1] if lines else ''}")


class GuestClient:
    """Requests to the agent of one guest. ``connect(timeout)`` makes a connection to it.

    ``keep`` connections at most stay open for further requests, which spares the guest the work for new ones. Methods
    take a ``timeout`` in seconds, for all of what they do, and raise TimeoutError; ConnectionError when the guest is
    gone.
    """

    def __init__(self, connect: Callable[[float | None], Connection], keep: int = 0) -> None:
        self._connect = connect
        self._idle = IdleConnections(keep)

    # Commands

    def start(
        self,
        command: str | Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        tty: bool | tuple[int, int] = False,
        encoding: str | None = "utf-8",
        detached: bool = False,
        has_input: bool = True,
        timeout: float | None = None,
    ) -> Process:
        """Start a command: a string is given to the guest's /bin/sh, a sequence is run as it is.

        ``env`` is added to a login's usual variables; ``user``: a name or number of the guest's; ``tty``: on a terminal
        of its own, with 24 rows and 80 columns or those given, where standard error is the same as standard output;
        ``encoding`` None: output is bytes; ``detached``: it goes on when nobody listens to it any more; ``has_input``
        False: it reads the end at once. Raises OSError if it cannot be started, such as FileNotFoundError; ValueError
        for what no command can be.
        """
        deadline = Deadline(timeout)
        process = self._begin(
            command, False, deadline,
            env=env, cwd=cwd, user=user, tty=tty, encoding=encoding, detached=detached, has_input=has_input,
        )  # fmt: skip
        try:
            process.wait_started(deadline.left())
        except BaseException:
            process.kill()
            raise
        return process

    def _begin(
        self,
        command: str | Sequence[str],
        quiet: bool,
        deadline: Deadline,
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | int | None = None,
        tty: bool | tuple[int, int] = False,
        encoding: str | None = "utf-8",
        detached: bool = False,
        has_input: bool = True,
    ) -> Process:
        """Ask for a command; ``quiet``: the guest is not to say that it has started."""
        arguments = ["/bin/sh", "-c", command] if isinstance(command, str) else [str(word) for word in command]
        who = self.user(user, deadline.left()) if user is not None else None
        environment = dict(DEFAULT_ENVIRONMENT)
        if who is not None:
            environment |= {"HOME": who.home, "USER": who.name, "LOGNAME": who.name, "SHELL": who.shell}
        if tty:
            environment["TERM"] = "xterm-256color"
        environment |= env or {}
        size = (24, 80) if tty is True else tty or None
        request = requests.run(arguments, environment, cwd or "", who, size, detached, has_input, quiet)
        return Process(
            self._ask(request, deadline), arguments, cwd or "", self.kill, encoding, bool(tty), has_input or bool(tty),
            self._idle.give,
        )  # fmt: skip

    def run(
        self,
        command: str | Sequence[str],
        *,
        input: str | bytes | None = None,
        check: bool = False,
        on_start: Callable[[Process], object] | None = None,
        timeout: float | None = None,
        **options: Any,
    ) -> Result:
        """Run a command to its end; ``on_start`` gets it while it runs. ``options`` are those of :meth:`start`.

        Raises CommandError with ``check`` if it fails; TimeoutError, after which it has been killed.
        """
        deadline = Deadline(timeout)
        with self._begin(command, on_start is None, deadline, has_input=bool(input), **options) as process:
            if on_start is not None:
                process.wait_started(deadline.left())
                on_start(process)
            try:
                process.communicate(input, deadline.left())
            except TimeoutError as error:
                raise TimeoutError(f"the command did not end within {timeout:g} seconds: {process.shown}") from error
            result = Result(process.args, process.wait(), process.stdout.read(), process.stderr.read())
        return result.check() if check else result

    def kill(self, process: int, signal: int, timeout: float | None = None) -> None:
        """Send a signal to a process group; one that is gone is no error."""
        with self._conversation(requests.kill(process, signal), None, timeout) as talk:
            try:
                talk.receive(p.DONE)
            except ProcessLookupError:
                return

    def reseed(self, data: bytes, timeout: float | None = None) -> None:
        """Let the kernel's random numbers depend on ``data`` (a multiple of 4 bytes) at once. Raises OSError."""
        with self._conversation(requests.reseed(data), None, timeout) as talk:
            talk.receive(p.DONE)

    # Files

    def read_file(self, path: str, timeout: float | None = None) -> bytes:
        """The contents of a file. Raises OSError, such as FileNotFoundError."""
        with self.open_file(path, timeout) as (_, pieces):
            return b"".join(pieces)

    def open_file(self, path: str, timeout: float | None = None) -> _Opened:
        """A context manager that gives the file's status and its contents in pieces. Raises OSError."""
        return _Opened(self._conversation(requests.read_file(path), path, timeout))

    def stat(self, path: str, timeout: float | None = None) -> FileStatus:
        """The status of a file or directory; symbolic links are followed. Raises OSError."""
        with self._conversation(requests.path_status(path), path, timeout) as talk:
            status = talk.status()
            talk.again = True
            return status

    def write_file(
        self,
        path: str,
        data: bytes | Iterator[bytes],
        *,
        mode: int | None = None,
        append: bool = False,
        exclusive: bool = False,
        timeout: float | None = None,
    ) -> None:
        """Write a file, with ``mode`` as its permissions if given; ``exclusive``: it must not be there.

        Raises OSError, for example when there is no room: then a part of the file is there.
        """
        request = requests.write_file(path, mode, append, exclusive)
        with self._conversation(request, path, timeout) as talk:
            for piece in (data,) if isinstance(data, bytes | bytearray | memoryview) else data:
                view = memoryview(piece)
                for start in range(0, len(view), _CHUNK):
                    if not talk.send(requests.frame(p.STDIN, view[start : start + _CHUNK])):
                        break  # what it says tells why
            talk.send(requests.frame(p.STDIN_END))
            talk.receive(p.DONE)

    def user(self, user: str | int, timeout: float | None = None) -> User:
        """A user by the guest's /etc/passwd and /etc/group. Raises KeyError for a name that is not there."""
        rows = [line.split(":") for line in self.read_file("/etc/passwd", timeout).decode(errors="replace").split("\n")]
        for row in rows:
            if len(row) >= 7 and (row[0] == user or row[2] == str(user)) and row[2].isdecimal() and row[3].isdecimal():
                name, uid, gid = row[0], int(row[2]), int(row[3])
                return User(uid, gid, self._groups(name, gid, timeout), name, row[5] or "/", row[6] or "/bin/sh")
        if isinstance(user, int) or user.isdigit():
            return User(int(user), int(user))
        raise KeyError(f"the guest has no user {user!r}")

    def _groups(self, name: str, gid: int, timeout: float | None) -> tuple[int, ...]:
        found = {gid}
        try:
            text = self.read_file("/etc/group", timeout).decode(errors="replace")
        except FileNotFoundError:
            text = ""
        for line in text.split("\n"):
            row = line.split(":")
            if len(row) >= 4 and name in row[3].split(",") and row[2].isdigit():
                found.add(int(row[2]))
        return tuple(sorted(found))

    # Conversations

    def _ask(self, request: bytes, deadline: Deadline) -> Connection:
        """Send a request on a connection that is open already, or on a new one; gives the connection."""
        while (connection := self._idle.take()) is not None:
            if _send(connection, request, deadline):
                return connection
            connection.abort()  # it has ended just now; nobody has seen the whole request
        connection = self._connect(deadline.left())
        _send(connection, request, deadline)
        return connection

    def _conversation(self, request: bytes, path: str | None, timeout: float | None) -> _Conversation:
        deadline = Deadline(timeout)
        return _Conversation(self._ask(request, deadline), path, deadline, timeout, self._idle.give)


def _send(connection: Connection, data: bytes, deadline: Deadline) -> bool:
    """Send; gives whether the guest took it. Raises TimeoutError, after which the connection is broken."""
    try:
        connection.send(data, deadline.left())
    except BrokenPipeError:
        return False
    except BaseException:
        connection.abort()
        raise
    return True


class _Opened:
    """See :meth:`GuestClient.open_file`."""

    def __init__(self, talk: _Conversation) -> None:
        self._talk = talk

    def __enter__(self) -> tuple[FileStatus, Iterator[bytes]]:
        try:
            status = self._talk.status()
        except BaseException as error:
            self._talk.__exit__(type(error))
            raise
        return status, self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        while True:
            kind, payload = self._talk.next()
            if kind == p.DONE:
                self._talk.check(payload)
                return
            yield payload

    def __exit__(self, *reason: object) -> None:
        self._talk.__exit__(*reason)


class _Conversation:
    """One request and what is said about it, before ``deadline``; ``again``: the connection takes another one."""

    def __init__(
        self,
        connection: Connection,
        path: str | None,
        deadline: Deadline,
        timeout: float | None,
        give_back: Callable[[Connection], None],
    ) -> None:
        self.again = False
        self._connection = connection
        self._give_back = give_back
        self._path = path
        self._deadline = deadline
        self._timeout = timeout
        self._changed = threading.Condition(connection.lock)
        self._unparsed = bytearray()
        with connection.lock:
            connection.on_change = self._changed.notify_all

    def send(self, data: bytes) -> bool:
        """Send; gives whether the guest took it."""
        return _send(self._connection, data, self._deadline)

    def next(self) -> tuple[int, bytes]:
        """The next frame's kind and payload. Raises ConnectionError and TimeoutError."""
        with self._changed:
            while True:
                try:
                    frame = requests.take_frame(self._unparsed)
                except ValueError as error:
                    raise ConnectionError(str(error)) from error
                if frame is not None:
                    return frame
                data = self._connection.take_received()
                self._unparsed += data
                if data:
                    continue
                if self._connection.at_end:
                    raise ConnectionError("the guest ended before it answered")
                left = self._deadline.left()
                if not self._changed.wait(left) and left is not None and left <= 0:
                    raise TimeoutError(f"the guest did not answer within {self._timeout:g} seconds")

    def receive(self, wanted: int) -> bytes:
        """The payload of the next frame, which must be of kind ``wanted``. Raises OSError as DONE says."""
        kind, payload = self.next()
        if kind == p.DONE:
            self.check(payload)
        if kind != wanted:
            raise ConnectionError(f"the agent answered with a frame of kind {kind}")
        return payload

    def status(self) -> FileStatus:
        """What STAT says, which is to come next. Raises OSError as DONE says."""
        payload = self.receive(p.STAT)
        try:
            return requests.status(payload)
        except ValueError as error:
            raise ConnectionError(str(error)) from error

    def check(self, payload: bytes) -> None:
        """Raise OSError if DONE says that something failed."""
        try:
            number, again = requests.numbers(payload, 2)
        except ValueError as error:
            raise ConnectionError(str(error)) from error
        self.again = again == 1
        if number:
            raise OSError(number, requests.error_text(number), self._path)

    def __enter__(self) -> _Conversation:
        return self

    def __exit__(self, *reason: object) -> None:
        if self.again and not self._unparsed:
            self._give_back(self._connection)
        elif reason and reason[0] is not None:
            self._connection.abort()
        else:
            self._connection.close()
