"""Requests to the agent, as bytes of :mod:`polyvisor.guest.protocol`, and what comes back."""

from __future__ import annotations

import errno
import os
import posixpath
import struct
from collections.abc import Mapping, Sequence

from polyvisor.dataclass import dataclass

from . import protocol as p

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_ENVIRONMENT = {"PATH": DEFAULT_PATH, "HOME": "/root", "USER": "root", "LOGNAME": "root", "LANG": "C.UTF-8"}


@dataclass(frozen=True)
class User:
    """Whom a command runs as: numbers, and the name and home directory that its environment tells."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"
    shell: str = "/bin/sh"


@dataclass(frozen=True)
class FileStatus:
    """What a guest says of a file: ``mode`` with its type bits, ``size`` in bytes, ``mtime`` in seconds since 1970."""

    mode: int
    size: int
    uid: int
    gid: int
    mtime: float


def frame(kind: int, payload: bytes | memoryview = b"") -> bytes:
    """A frame."""
    return struct.pack("<II", kind, len(payload)) + payload


def take_frame(received: bytearray) -> tuple[int, bytes] | None:
    """Take the first frame out of what was received: its kind and payload; None if it is not whole yet.

    Raises ValueError for one that is longer than the agent's are.
    """
    if len(received) < p.HEADER_SIZE:
        return None
    kind, length = struct.unpack_from("<II", received)
    if length > p.MAX_FRAME:
        raise ValueError(f"the guest sent a frame of {length} bytes")
    end = p.HEADER_SIZE + length
    if len(received) < end:
        return None
    payload = bytes(memoryview(received)[p.HEADER_SIZE : end])
    del received[:end]
    return kind, payload


def _strings(strings: Sequence[str], what: str) -> bytes:
    for text in strings:
        if "\0" in text:
            raise ValueError(f"{what} {text!r} contains a NUL character")
    return b"".join(text.encode("utf-8", "surrogateescape") + b"\0" for text in strings)


def _numbers(*numbers: int) -> bytes:
    """Numbers as the agent reads them. Raises ValueError for those that do not fit."""
    try:
        return struct.pack(f"<{len(numbers)}I", *numbers)
    except struct.error as error:
        raise ValueError(f"{', '.join(map(str, numbers))}: a number below 0 or above {2**32 - 1}") from error


def _path(path: str) -> bytes:
    raw = _strings([path], "the path")
    if len(raw) > p.MAX_PATH:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return raw


def run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    directory: str,
    user: User | None,
    terminal: tuple[int, int] | None,
    detached: bool,
    has_input: bool = True,
    quiet: bool = False,
) -> bytes:
    """RUN. ``terminal`` is (rows, columns), or None for pipes. Raises ValueError for what no program can be given."""
    if not arguments or not arguments[0]:
        raise ValueError("a command needs at least the name of a program")
    for name in environment:
        if not name or "=" in name:
            raise ValueError(f"{name!r} cannot be the name of a variable")
    name = arguments[0]
    paths = [name]
    if "/" not in name:
        paths = [posixpath.join(d or ".", name) for d in environment.get("PATH", DEFAULT_PATH).split(":")]
    flags = (p.TTY if terminal else 0) | (p.AS_AGENT if user is None else 0) | (p.DETACHED if detached else 0)
    flags |= (0 if has_input or terminal else p.NO_INPUT) | (p.QUIET if quiet else 0)
    groups = user.groups if user else ()
    rows, columns = terminal or (0, 0)
    payload = _numbers(
        flags, user.uid if user else 0, user.gid if user else 0, len(groups), len(arguments), len(environment),
        len(paths), rows, columns, *groups,
    )  # fmt: skip
    payload += _strings([directory], "the directory") + _strings(paths, "the path")
    payload += _strings(arguments, "the argument")
    payload += _strings([f"{key}={value}" for key, value in environment.items()], "the variable")
    if len(payload) > p.MAX_REQUEST or len(arguments) + len(environment) > p.MAX_STRINGS:
        raise ValueError("the command with its arguments and environment is too long: put it into a file")
    return frame(p.RUN, payload)


def read_file(path: str) -> bytes:
    """READ_FILE."""
    return frame(p.READ_FILE, _path(path))


def write_file(path: str, mode: int | None, append: bool, exclusive: bool) -> bytes:
    """WRITE_FILE; without a ``mode``, a new file gets 0666 less the agent's umask."""
    flags = (p.APPEND if append else 0) | (p.EXCLUSIVE if exclusive else 0) | (p.SET_MODE if mode is not None else 0)
    return frame(p.WRITE_FILE, _numbers(0o666 if mode is None else mode, flags) + _path(path))


def numbers(payload: bytes, count: int) -> tuple[int, ...]:
    """The numbers that a frame consists of. Raises ValueError if there are not so many."""
    if len(payload) != 4 * count:
        raise ValueError(f"the guest sent a frame of {len(payload)} bytes for {count} numbers")
    return struct.unpack(f"<{count}I", payload)


def path_status(path: str) -> bytes:
    """STATUS."""
    return frame(p.STATUS, _path(path))


def reseed(data: bytes) -> bytes:
    """RESEED; all bits of ``data`` count as random."""
    return frame(p.RESEED, _numbers(8 * len(data), len(data)) + data)


def kill(process: int, signal: int) -> bytes:
    """KILL."""
    return frame(p.KILL, _numbers(process, signal))


def resize(rows: int, columns: int) -> bytes:
    """RESIZE."""
    return frame(p.RESIZE, _numbers(rows, columns))


def error_text(number: int) -> str:
    """What an error number of the guest's means; it may be any number."""
    return os.strerror(number) if number < 1 << 31 else f"Unknown error {number}"


def start_error(stage: int, number: int, arguments: Sequence[str], directory: str) -> OSError:
    """What FAILED says, as the exception that fits."""
    text = error_text(number)
    if stage == p.AT_PROGRAM:
        return OSError(number, text, arguments[0])
    if stage == p.AT_DIRECTORY:
        return OSError(number, text, directory)
    what = {p.AT_TERMINAL: "open a terminal", p.AT_USER: "change to the user"}.get(stage, "make a process")
    return OSError(number, f"cannot {what} in the guest: {text}")


def status(payload: bytes) -> FileStatus:
    """STAT: struct statx (statx(2)). Raises ValueError for what is too short."""
    if len(payload) < 124:
        raise ValueError(f"the guest sent a status of {len(payload)} bytes")
    uid, gid, mode = struct.unpack_from("<IIH", payload, 20)
    (size,) = struct.unpack_from("<Q", payload, 40)
    seconds, nanoseconds = struct.unpack_from("<qI", payload, 112)
    return FileStatus(mode, size, uid, gid, seconds + nanoseconds / 1e9)
