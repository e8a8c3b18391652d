"""How many files the shares of this process may hold open, all together.

Every fid of a client is a descriptor of ours. A guest must not take so many that nothing else can be opened.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable

_WANTED = 1 << 16
_lock = threading.Lock()
_held = 0


def raise_limit() -> None:
    """Raise this process's soft limit of open files towards 65536, as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _WANTED:
        return
    wanted = _WANTED if hard == resource.RLIM_INFINITY else min(_WANTED, hard)
    if wanted > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def take(make: Callable[[], int]) -> int:
    """The descriptor that ``make`` opens, counted until :func:`give` closes it. Raises OSError; ENFILE if too many.

    Shares get three quarters of the process's limit.
    """
    global _held
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    with _lock:
        if soft != resource.RLIM_INFINITY and _held >= soft - soft // 4:
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        _held += 1
    try:
        return make()
    except BaseException:
        with _lock:
            _held -= 1
        raise


def give(fd: int) -> None:
    """Close what :func:`take` gave."""
    global _held
    with _lock:
        _held -= 1
    os.close(fd)


def held() -> int:
    """How many descriptors shares hold now."""
    return _held
