"""Where vhost-user back ends come from: one that listens at a socket, or a program that is started for a device."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from polyvisor.devices.virtio.vhost_messages import VhostUserError
from polyvisor.storage.raw import reason

_STOP_SECONDS = 5.0
_LAST_WORDS_SECONDS = 1.0
_LINES = 20
_LONGEST_LINE = 500


class BackEnd(Protocol):
    """What a :class:`~polyvisor.devices.virtio.vhost_user.VhostUserDevice` asks of where its back end comes from."""

    def connect(self) -> socket.socket:
        """A new connection, after the last one ended. Raises VhostUserError."""
        ...

    def explain(self, error: VhostUserError) -> VhostUserError:
        """What to tell the user of ``error``, by which a connection failed or ended. A back end of ours is over."""
        ...

    def close(self) -> None:
        """End a back end of ours. May be repeated."""
        ...


class ListeningBackEnd:
    """A back end, whoever started it, that listens at the Unix socket ``path``."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)

    def connect(self) -> socket.socket:
        """Connect to the socket. Raises VhostUserError."""
        connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connected.settimeout(_STOP_SECONDS)
            connected.connect(self._path)
        except (OSError, ValueError) as error:
            connected.close()
            raise VhostUserError(f"cannot be reached: {reason(error)}") from error
        return connected

    def explain(self, error: VhostUserError) -> VhostUserError:
        """Say which back end it is."""
        return VhostUserError(f"the back end at {self._path} {error}")

    def close(self) -> None:
        """Nothing here is ours."""


class BackEndProcess:
    """A program that is a back end for one connection: it gets a listening socket by its option ``--fd``.

    ``name`` is what messages call it. It ends when the connection does; it is killed if not.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self._name = name
        self._command = list(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._said: deque[str] = deque(maxlen=_LINES)

    @property
    def pid(self) -> int | None:
        """The running program's process."""
        return self._process.pid if self._process is not None else None

    def connect(self) -> socket.socket:
        """Start the program. Raises VhostUserError."""
        self.close()
        # Nobody else can connect: the socket has a name only in a directory of ours, and that no longer than needed.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, contextlib.ExitStack() as stack:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stack.callback(connected.close)
            try:
                with tempfile.TemporaryDirectory(prefix="polyvisor-") as directory:
                    path = str(Path(directory) / "s")
                    listener.bind(path)
                    listener.listen(1)
                    connected.connect(path)
                self._process = subprocess.Popen(
                    [*self._command, f"--fd={listener.fileno()}"], pass_fds=(listener.fileno(),),
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                    start_new_session=True,  # keys that interrupt us are not meant for it
                )
            except OSError as error:
                raise VhostUserError(f"cannot be started: {error.strerror or error}") from error
            stack.pop_all()
        self._said.clear()
        self._reader = threading.Thread(target=self._listen, args=(self._process,), name="back-end", daemon=True)
        self._reader.start()
        return connected

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Keep the last of what the program says, so that it never waits for a reader."""
        assert process.stderr is not None
        with process.stderr as stream, contextlib.suppress(OSError, ValueError):
            while line := stream.readline(_LONGEST_LINE):
                if text := "".join(filter(str.isprintable, line.decode(errors="replace"))).strip():
                    self._said.append(text)

    def explain(self, error: VhostUserError) -> VhostUserError:
        """Say which program it is, how it ended, and what it said last."""
        reason = str(error)
        if self._process is not None:
            try:
                status = self._process.wait(_LAST_WORDS_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
            else:
                reason = f"ended with status {status}"
                if status < 0:
                    with contextlib.suppress(ValueError):
                        reason = f"was ended by {signal.Signals(-status).name}"
            if self._reader is not None:
                self._reader.join(_LAST_WORDS_SECONDS)
            if self._said:
                reason += f": {self._said[-1]}"
        return VhostUserError(f"{self._name} {reason}")

    def close(self) -> None:
        """Wait some seconds for the program, whose connection is closed, then end it. May be repeated."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if self._reader is not None:
            self._reader.join(_STOP_SECONDS)
