"""Making forks: the process is copied while its machine stands still, and the forks are copies of that copy."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import socket
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

from polyvisor.vm.errors import ForkError, VMError
from polyvisor.vm.virtual_machine import VM

from .beginning import AT_ONCE, Beginning
from .fork import BEGIN, Fork, reap
from .life import Identity, live

# Threads beside the guest import these when they need them. A copy that is made in the midst of that could never do so.
for _name in ("pickle", "shutil", "subprocess", "tempfile"):
    import_module(_name)

# Every fork takes one, and one for requests; more are needed while something is asked of it.
_DESCRIPTORS, _SPARE_DESCRIPTORS = 2, 256

_LONGEST_MESSAGE = 4096
# Seconds until a process that says nothing is taken for stuck.
_PATIENCE = 120.0
_prctl = ctypes.CDLL(None).prctl
_PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 36, 37  # linux/prctl.h

# One at a time copies the process. A copy must not keep its siblings' channels open.
_copying = threading.Lock()
_channels: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def fork(
    vm: VM, count: int, hostname: str | None, new_macs: bool, reseed: bool, seed: int | None = None
) -> list[Fork]:
    """See :meth:`VM.fork`."""
    if count < 1:
        raise ValueError(f"{count} forks: make one at least")
    agent = vm.software.agent
    if (hostname is not None or new_macs) and not agent:
        raise ForkError(f"{vm.name} has no agent to give the guest another name or other addresses")
    _allow_descriptors(count)
    identities = [
        Identity(hostname.replace("{}", str(number)) if hostname is not None else None, new_macs, reseed, seed)
        for number in range(count)
    ]
    with _copying:
        beginning = Beginning()
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made: list[Fork] = []
        try:
            with theirs, control, _children_of_children():
                template = _template(vm)
                if not template:
                    control.close()
                    _multiply(vm, theirs, identities, beginning)
                theirs.close()
                try:
                    for number in range(count):
                        made.append(_made(vm, number, control))
                finally:
                    _end_template(template, control, all(each.pid != template for each in made))
        except BaseException:
            beginning.give_up()
            for each in made:
                each.kill()
            raise
        beginning.let_begin(made[AT_ONCE:])
    return made


def copy_process(
    name: str, timeout: float | None, still: contextlib.AbstractContextManager[object], revive: Callable[[], None],
    go_on: Callable[[socket.socket], None],
) -> Fork:
    """A copy of this process, made within ``still``, where ``revive`` is called in it; ``go_on`` is what it does then.

    Raises ForkError.
    """
    with _copying:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                with still, _kept_from_collection():
                    process = os.fork()
                    if not process:
                        _in_copy(partial(_prepare_copy, ours, revive))
                        raise _Copied
            except _Copied:
                _in_copy(partial(go_on, theirs))
                os._exit(0)
            except BaseException as error:
                ours.close()
                if isinstance(error, OSError) and not isinstance(error, VMError):
                    raise ForkError(f"no fork can be made: {error.strerror or error}") from error
                raise
        _channels.add(ours)
        return Fork(name, 0, process, ours, timeout)


def _prepare_copy(channel: socket.socket, revive: Callable[[], None]) -> None:
    channel.close()
    _become_copy()
    revive()


def _become_copy() -> None:
    _copying.release()  # whoever held it is not here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the parent, who ends us
    for channel in list(_channels):  # a copy must not keep those of others open
        channel.close()


# The template


def _template(vm: VM) -> int:
    """Copy this process; in the copy (0, as ``os.fork``) the machine is ready to go on, and stands still.

    Forks are copies of that one: what all must have another way than here is made so once, and stays shared.
    """
    try:
        with vm.copying(), _kept_from_collection():
            process = os.fork()
            if process:
                return process
            _in_copy(partial(_prepare, vm))
            raise _Copied
    except _Copied:
        return 0
    except OSError as error:
        if isinstance(error, VMError):
            raise
        raise ForkError(f"no fork can be made: {error.strerror or error}") from error


def _prepare(vm: VM) -> None:
    _become_copy()
    vm.revive()
    vm.pause()


def _multiply(vm: VM, control: socket.socket, identities: Sequence[Identity], beginning: Beginning) -> NoReturn:
    """In the template: make the forks, send the parent a process id and a channel for each, and end.

    One that is alone is the template itself.
    """
    alone = len(identities) == 1
    gc.freeze()
    name = vm.name
    for number, identity in enumerate(identities):
        ours, theirs = socket.socketpair()
        if number < AT_ONCE:
            ours.send(BEGIN)
        vm.name = f"{name}-{number}"
        try:
            process = 0 if alone else os.fork()
        except OSError as error:
            control.send(json.dumps({"error": error.strerror}).encode())
            break
        if not process:
            _in_copy(beginning.is_copy)
            begun: Callable[[], None] = _nothing
            if alone:  # it begins at once; and whoever hears of it may take this core from us
                begun = partial(_in_copy, partial(_tell, control, ours))
            else:
                ours.close()
                control.close()
            live(vm, number, theirs, identity, beginning, begun)
        theirs.close()
        try:
            _send(control, process, ours)
        except OSError:  # nobody wants it any more
            ours.close()
            os.waitpid(process, 0)
            break
        ours.close()
    os._exit(0)


def _nothing() -> None:
    """What there is to do for others than who is alone."""


def _tell(control: socket.socket, channel: socket.socket) -> None:
    """In the one that is alone: the parent may have it."""
    _send(control, os.getpid(), channel)
    channel.close()
    control.close()


def _send(control: socket.socket, process: int, channel: socket.socket) -> None:
    socket.send_fds(control, [json.dumps({"process": process}).encode()], [channel.fileno()])


def _in_copy(do: Callable[[], None]) -> None:
    """Do something in a copy, where nobody hears of what it raises: then the copy ends."""
    try:
        do()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


# Its parent


def _made(vm: VM, number: int, control: socket.socket) -> Fork:
    """The next fork that the template has made. Raises ForkError."""
    control.settimeout(_PATIENCE)
    try:
        data, descriptors, _, _ = socket.recv_fds(control, _LONGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
    except TimeoutError:
        raise ForkError(f"fork {number} cannot be made: the process that makes it does not answer") from None
    said: dict[str, Any] = json.loads(data) if data else {"error": "the process that makes it died"}
    if "error" in said:
        raise ForkError(f"fork {number} cannot be made: {said['error']}")
    channel = socket.socket(fileno=descriptors[0])
    _channels.add(channel)
    return Fork(f"{vm.name}-{number}", number, said["process"], channel, vm.timeout)


def _end_template(process: int, control: socket.socket, wait: bool) -> None:
    """Let it end, and ``wait`` for that; what it made and nobody has taken ends, too."""
    control.shutdown(socket.SHUT_RD)
    left: list[int] = []
    with contextlib.suppress(OSError):
        while True:
            data, descriptors, _, _ = socket.recv_fds(control, _LONGEST_MESSAGE, 1, socket.MSG_CMSG_CLOEXEC)
            for descriptor in descriptors:
                os.close(descriptor)
            if not data:
                break
            left += [each for key, each in json.loads(data).items() if key == "process"]
    for each in (process, *left) if wait else left:
        reap(each)


@contextlib.contextmanager
def _children_of_children() -> Iterator[None]:
    """Processes that our children leave behind become ours meanwhile (prctl(2)), so that we know when they end."""
    process, before = os.getpid(), ctypes.c_int(0)
    _prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(before), 0, 0, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        if os.getpid() == process:
            _prctl(_PR_SET_CHILD_SUBREAPER, before.value, 0, 0, 0)


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
    """We are the copy: leave what the one who made it was doing."""


def _allow_descriptors(count: int) -> None:
    """Raise the soft limit, as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    have = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (each fork waits for it)
    wanted = have + count * _DESCRIPTORS + _SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ForkError(f"{count} forks need {wanted} open files, and the host allows {hard} (ulimit -Hn)")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
