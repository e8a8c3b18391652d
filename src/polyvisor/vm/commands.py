"""What one asks the guest's agent for: commands and files."""

from __future__ import annotations

import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import StoppedError, VMError, VMTimeoutError

if TYPE_CHECKING:
    from polyvisor.guest.client import GuestClient, Result
    from polyvisor.guest.connection import Connection
    from polyvisor.guest.process import Process


DEFAULT = object()
"""Stands for the machine's own timeout."""


class GuestCommands(ABC):
    """Commands and files in the guest of a machine, by its agent. All methods may be called from any thread.

    They take a ``timeout`` in seconds, None for no limit; without one :attr:`timeout` counts.
    """

    name: str
    timeout: float | None
    _kept_connections = 4  # to the agent, for further requests; each is a small process in the guest

    @cached_property
    def client(self) -> GuestClient:
        """Requests to the guest's agent, without this object's default timeout."""
        from polyvisor.guest.client import GuestClient

        machine = weakref.ref(self)  # which is not kept by what it has

        def connect(timeout: float | None) -> Connection:
            found = machine()
            if found is None:
                raise StoppedError("the machine is gone")
            return found.open_agent(timeout)

        return GuestClient(connect, self._kept_connections)

    @abstractmethod
    def open_agent(self, timeout: float | None = None) -> Connection:
        """A new connection to the guest's agent; waits until there is one."""

    @abstractmethod
    def _circumstances(self) -> str:
        """What there is to say of a connection that was lost, behind the error; may raise what the machine died of."""

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Errors of the connection become errors of the machine."""
        try:
            yield
        except VMError:
            raise
        except TimeoutError as error:
            raise VMTimeoutError(f"{self.name}: {error}") from error
        except ConnectionError as error:
            raise StoppedError(f"{self.name}: {error}{self._circumstances()}") from error

    def _limit(self, timeout: float | object | None) -> float | None:
        return self.timeout if timeout is DEFAULT else timeout  # type: ignore[return-value]

    def run(self, command: str | Sequence[str], *, timeout: float | object | None = DEFAULT, **options: Any) -> Result:
        """Run a command in the guest to its end; gives its exit code and output.

        A string is given to /bin/sh, a sequence is run as it is. Options: ``input``, ``check`` (raise CommandError if
        it fails), ``env``, ``cwd``, ``user``, ``tty``, ``encoding`` (None for bytes). A command that takes too long is
        killed, and VMTimeoutError raised.
        """
        with self._errors():
            return self.client.run(command, timeout=self._limit(timeout), **options)

    def popen(
        self, command: str | Sequence[str], *, timeout: float | object | None = DEFAULT, **options: Any
    ) -> Process:
        """Start a command in the guest and do not wait for it. Options as for :meth:`run`, but ``input`` and ``check``;
        ``timeout`` is for the start alone.
        """
        with self._errors():
            return self.client.start(command, timeout=self._limit(timeout), **options)

    def read_file(self, path: str, timeout: float | object | None = DEFAULT) -> bytes:
        """The contents of a file in the guest. Raises OSError, for example FileNotFoundError."""
        with self._errors():
            return self.client.read_file(path, self._limit(timeout))

    def write_file(
        self, path: str, data: str | bytes, timeout: float | object | None = DEFAULT, **options: Any
    ) -> None:
        """Write a file in the guest; options: ``mode``, ``append``, ``exclusive``. Raises OSError."""
        raw = data.encode() if isinstance(data, str) else data
        with self._errors():
            self.client.write_file(path, raw, timeout=self._limit(timeout), **options)

    def put(
        self, source: str | os.PathLike[str], target: str, timeout: float | object | None = DEFAULT
    ) -> None:
        """Copy a file or directory of the host into the guest, with its permissions.

        ``target`` is the copy's name; or the directory to copy into, if it is there already or ends in a slash.
        Owners become root. Raises OSError. Directories need ``tar`` in the guest, which busybox has too.
        """
        with self._errors():
            from polyvisor.guest.files import put_path

            put_path(self.client, Path(source), target, self._limit(timeout))

    def get(
        self, source: str, target: str | os.PathLike[str] = ".", timeout: float | object | None = DEFAULT
    ) -> Path:
        """Copy a file or directory of the guest to the host; gives the copy's path. See :meth:`put`."""
        with self._errors():
            from polyvisor.guest.files import get_path

            return get_path(self.client, source, Path(target), self._limit(timeout))
