"""Making forks: the process is copied while its machine stands still."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from polyvisor.vm.errors import ForkError, VMError
from polyvisor.vm.virtual_machine import VM

from .fork import Fork
from .life import Identity, live

# Every fork takes one, and one for requests; more are needed while something is asked of it.
_DESCRIPTORS, _SPARE_DESCRIPTORS = 2, 256

# One at a time copies the process. A copy must not keep its siblings' channels open.
_copying = threading.Lock()
_channels: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def fork(vm: VM, count: int, hostname: str | None, new_macs: bool, reseed: bool) -> list[Fork]:
    """See :meth:`VM.fork`."""
    if count < 1:
        raise ValueError(f"{count} forks: make one at least")
    agent = vm.software.agent
    if (hostname is not None or new_macs) and not agent:
        raise ForkError(f"{vm.name} has no agent to give the guest another name or other addresses")
    _allow_descriptors(count)
    made: list[Fork] = []
    try:
        with _copying, vm.copying(), _kept_from_collection():
            for number in range(count):
                name = hostname.replace("{}", str(number)) if hostname is not None else None
                made.append(_copy(vm, number, Identity(name, new_macs, reseed)))
    except _Copied as copied:
        live(vm, copied.channel, copied.identity)
    except BaseException as error:
        for each in made:
            each.kill()
        if isinstance(error, OSError) and not isinstance(error, VMError):
            raise ForkError(f"fork {len(made)} cannot be made: {error.strerror or error}") from error
        raise
    return made


@contextlib.contextmanager
def _kept_from_collection() -> Iterator[None]:
    """Looking for garbage among what is here now would make copies of all of it in every fork: it is never done there.
    """
    enabled = gc.isenabled()
    gc.disable()
    gc.freeze()
    process = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == process:
            gc.unfreeze()
        if enabled:
            gc.enable()


class _Copied(BaseException):
    """We are the copy: leave what the one who made it was doing, to go on in :func:`live`."""

    def __init__(self, channel: socket.socket, identity: Identity) -> None:
        super().__init__()
        self.channel = channel
        self.identity = identity


def _copy(vm: VM, number: int, identity: Identity) -> Fork:
    ours, theirs = socket.socketpair()
    try:
        pid = os.fork()
    except OSError:
        ours.close()
        theirs.close()
        raise
    if pid:
        theirs.close()
        _channels.add(ours)
        return Fork(f"{vm.name}-{number}", number, pid, ours, vm.timeout)
    try:
        ours.close()
        for channel in list(_channels):
            channel.close()
        vm.name = f"{vm.name}-{number}"
        vm.revive(partial(identity.give, vm))
        for call in vm.on_fork:
            call(vm, number)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    raise _Copied(theirs, identity)


def _allow_descriptors(count: int) -> None:
    """Raise the soft limit, as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    have = len(list(Path("/proc/self/fd").iterdir()))
    wanted = have + count * _DESCRIPTORS + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ForkError(f"{count} forks need {wanted} open files, and the host allows {hard} (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
