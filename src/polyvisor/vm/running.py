"""The machines that run on this host under this user: each has a socket in a directory that only the user can enter.

The directory is ``$POLYVISOR_RUN``, else ``polyvisor`` in ``$XDG_RUNTIME_DIR``, else ``/tmp/polyvisor-UID``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from .errors import VMError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_SUFFIX = ".sock"
# A socket's path has 107 bytes at most (unix(7)).
_MOST = 107


class TakenError(VMError):
    """A machine of that name runs already."""


def directory() -> Path:
    """Where the sockets are; made if need be. Raises VMError if others could get at it."""
    given = os.environ.get("POLYVISOR_RUN")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        path = Path(given)
    elif runtime and Path(runtime).is_dir():
        path = Path(runtime) / "polyvisor"
    else:
        path = Path(f"/tmp/polyvisor-{os.getuid()}")
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise VMError(f"{path}: {error.strerror}; set POLYVISOR_RUN to a directory of yours") from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise VMError(f"{path} can be changed by others; set POLYVISOR_RUN to a directory of yours")
    return path


def socket_path(name: str) -> Path:
    """The socket of the machine called ``name``. Raises VMError for what cannot be a name."""
    if not _NAME.fullmatch(name):
        raise VMError(f"{name!r} cannot be a machine's name: use letters, digits, '.', '_' and '-'")
    path = directory() / f"{name}{_SUFFIX}"
    if len(os.fsencode(path)) > _MOST:
        raise VMError(f"{path}: too long for a socket; set POLYVISOR_RUN to a shorter directory")
    return path


def is_alive(path: Path) -> bool:
    """Whether a machine serves this socket; what one that died left is removed."""
    try:
        return _answers(path)
    except ConnectionRefusedError:
        with _exclusive():
            return _answers_or_is_removed(path)


def listen(name: str) -> socket.socket:
    """The socket of a machine called ``name``, which nobody else gets. Raises TakenError, VMError."""
    path = socket_path(name)
    listener = socket.socket(socket.AF_UNIX)
    try:
        with _exclusive():
            if _answers_or_is_removed(path):
                raise TakenError(f"a machine called {name!r} runs already: choose another --name")
            listener.bind(str(path))
            listener.listen(64)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError) and not isinstance(error, VMError):
            raise VMError(f"{path}: {error.strerror}") from error
        raise
    return listener


@contextlib.contextmanager
def _exclusive() -> Iterator[None]:
    """One at a time makes and removes sockets: between its being made and served, one looks like a dead machine's."""
    descriptor = os.open(directory() / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _answers(path: Path) -> bool:
    """Whether a machine serves it. Raises ConnectionRefusedError if it is there and nobody does."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            raise
        except OSError:
            return False
    return True


def _answers_or_is_removed(path: Path) -> bool:
    try:
        return _answers(path)
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            path.unlink()
        return False


def read_line(connection: socket.socket, longest: int) -> bytes | None:
    """A line from a machine's socket, and nothing behind it; None if the other side ends, or goes on for too long.

    One byte at a time, because what follows the line may be for somebody else.
    """
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte or len(line) > longest:
            return None
        line += byte
    return line


def free_name(wanted: str) -> str:
    """``wanted``, or with a number behind it if such a machine runs already."""
    base = re.sub(r"[^A-Za-z0-9_.-]+", "-", wanted).strip("-.") or "vm"
    base = base[:40]
    name, number = base, 1
    while is_alive(socket_path(name)):
        number += 1
        name = f"{base}-{number}"
    return name


def names() -> list[str]:
    """The machines that run."""
    return sorted(p.name.removesuffix(_SUFFIX) for p in directory().glob(f"*{_SUFFIX}") if is_alive(p))
