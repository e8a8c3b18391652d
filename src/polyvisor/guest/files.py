"""Copying files and directories between host and guest, by the agent."""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from .client import GuestClient
from .deadline import Deadline
from .process import Process

_CHUNK = 256 << 10
# What tarfile raises of archives that make no sense, beside OSErrors.
_NO_ARCHIVE = (tarfile.TarError, ArithmeticError, LookupError, TypeError, ValueError)


def put_path(client: GuestClient, source: Path, target: str, timeout: float | None) -> str:
    """Copy a file or directory into the guest; gives the copy's path there.

    ``target`` is the copy's name, or a directory to copy into if it is one already or ends in a slash. Permissions are
    copied; owners become root; of directories, times too. Raises OSError.
    """
    deadline = Deadline(timeout)
    mode = source.stat().st_mode
    if target.endswith("/") or _is_directory(client, target, deadline):
        name = source.name if source.name not in ("", "..") else source.resolve().name
        target = posixpath.join(target, name)
    if stat.S_ISDIR(mode):
        _put_directory(client, source.resolve(), target, deadline)
    elif stat.S_ISREG(mode):
        with source.open("rb") as file:
            pieces = iter(lambda: file.read(_CHUNK), b"")
            client.write_file(target, pieces, mode=stat.S_IMODE(mode), timeout=deadline.left())
    else:
        raise OSError(f"{source}: neither a file nor a directory")
    return target


def get_path(client: GuestClient, source: str, target: Path, timeout: float | None) -> Path:
    """Copy a file or directory of the guest to the host; gives the copy's path. See :func:`put_path`.

    Nothing is written outside the target, whatever the guest says. Device nodes and the like are left out.
    """
    deadline = Deadline(timeout)
    name = posixpath.basename(posixpath.normpath(source))
    if target.is_dir():
        target = target / name
    if _is_directory(client, source, deadline):
        _get_directory(client, source, target, deadline)
        return target
    # Under another name until it is whole.
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
    try:
        with os.fdopen(descriptor, "wb") as file, client.open_file(source, deadline.left()) as (status, pieces):
            for piece in pieces:
                file.write(piece)
            os.fchmod(file.fileno(), status.mode & 0o755)  # as of what tar brings: not writable by others
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def _is_directory(client: GuestClient, path: str, deadline: Deadline) -> bool:
    try:
        return stat.S_ISDIR(client.stat(path, deadline.left()).mode)
    except FileNotFoundError:
        return False


def _root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def _put_directory(client: GuestClient, source: Path, target: str, deadline: Deadline) -> None:
    command = ["/bin/sh", "-c", 'mkdir -p -- "$1" && exec tar -x -f - -C "$1"', "sh", target]
    with client.start(command, timeout=deadline.left()) as process:
        try:
            stream: Any = _Input(process, deadline)
            # The one kind of archive whose names of any length and alphabet busybox reads.
            with tarfile.open(mode="w|", fileobj=stream, bufsize=_CHUNK, format=tarfile.GNU_FORMAT) as archive:
                archive.add(source, ".", filter=_root)
        except BrokenPipeError:
            pass  # what it printed says why
        process.close_stdin()
        _check(process, target, deadline)


def _get_directory(client: GuestClient, source: str, target: Path, deadline: Deadline) -> None:
    if target.exists():
        raise FileExistsError(17, "exists already", str(target))
    whole = Path(tempfile.mkdtemp(dir=target.parent.resolve(), prefix=f".{target.name[:100]}."))
    try:
        command = ["tar", "-c", "-f", "-", "-C", source, "."]
        with client.start(command, encoding=None, timeout=deadline.left()) as process:
            stream: Any = _Output(process, deadline)
            with tarfile.open(mode="r|", fileobj=stream, bufsize=_CHUNK) as archive:
                links = []
                for member in archive:
                    if member.issym():
                        links.append(member)
                    elif member.isfile() or member.isdir() or member.islnk():
                        archive.extract(member, whole, filter="data")
            _check(process, source, deadline)
        for member in links:
            _make_link(whole, member)
        # As for what is in it: its owner may do all, others may not write.
        whole.chmod(client.stat(source, deadline.left()).mode & 0o755 | 0o700)
        whole.rename(target)
    except _NO_ARCHIVE as error:
        raise OSError(f"{source}: what came from the guest cannot be unpacked here: {error}") from error
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def _make_link(root: Path, member: tarfile.TarInfo) -> None:
    """Make a symbolic link that is in an archive, when all else is there: so nothing was written through it.

    It may lead anywhere, as it did in the guest. Raises OSError if it is not to be inside ``root`` itself.
    """
    place = Path(os.path.normpath(root / member.name))
    if not place.is_relative_to(root) or place.parent.resolve() != place.parent or place.is_symlink():
        raise OSError(f"{member.name}: a link that would be outside of its directory")
    place.symlink_to(member.linkname)


def _check(process: Process, path: str, deadline: Deadline) -> None:
    if process.wait(deadline.left()) != 0:
        text = process.stderr.read()
        lines = (text if isinstance(text, str) else text.decode(errors="replace")).strip().splitlines()
        raise OSError(f"{path}: {lines[-1] if lines else 'tar failed in the guest'}")


class _Input:
    """A file that a tar archive is written to."""

    def __init__(self, process: Process, deadline: Deadline) -> None:
        self._process = process
        self._deadline = deadline

    def write(self, data: bytes) -> int:
        self._process.write(data, self._deadline.left())
        return len(data)


class _Output:
    """A file that a tar archive is read from."""

    def __init__(self, process: Process, deadline: Deadline) -> None:
        self._process = process
        self._deadline = deadline
        self._rest: Any = b""

    def read(self, count: int) -> bytes:
        pieces = [self._rest]
        have = len(self._rest)
        while have < count:
            piece = self._process.stdout.read_some(self._deadline.left())
            if not piece:
                break
            pieces.append(piece)
            have += len(piece)
        data = b"".join(pieces)
        self._rest = data[count:]
        return data[:count]
