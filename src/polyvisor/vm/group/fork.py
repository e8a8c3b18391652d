"""Forks of a group: copies of all its machines, and of the networks between them, in one process (``os.fork``)."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

from polyvisor.vm.commands import GuestCommands
from polyvisor.vm.errors import ForkError, StoppedError, VMError
from polyvisor.vm.forks.fork import Fork
from polyvisor.vm.forks.life import ForkConversations, Identity, say_last_words, serve
from polyvisor.vm.forks.start import copy_process
from polyvisor.vm.remote import SocketConnection
from polyvisor.vm.virtual_machine import VM

from .group import Group, derived


class GroupFork:
    """A group that is a copy of another one, in a process of its own, which ends when this object or we do."""

    def __init__(self, fork: Fork, names: list[str]) -> None:
        self._fork = fork
        self.machines: dict[str, ForkedMember] = {name: ForkedMember(fork, name) for name in names}
        """By their names, those that were running."""

    @property
    def running(self) -> bool:
        """Whether any of its machines has not ended."""
        return self._fork.running

    def finish(self) -> None:
        """Cut the power of all machines, and wait until what was written is complete, such as the recording."""
        self._fork.finish()

    def kill(self) -> None:
        """Cut the power, and end the process. May be repeated."""
        self._fork.kill()

    def __enter__(self) -> GroupFork:
        return self

    def __exit__(self, *reason: object) -> None:
        self.kill()


class ForkedMember(GuestCommands):
    """A machine of a forked group: commands and files, and every other attribute of the VM there."""

    _kept_connections = 1

    def __init__(self, fork: Fork, name: str) -> None:
        self.name = name
        self.timeout = fork.timeout
        self._fork = fork

    def open_agent(self, timeout: float | None = None) -> SocketConnection:
        """A new connection to the guest's agent; waits until there is one."""
        return self._fork.open_agent(timeout, machine=self.name)

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it has ended; gives its exit code. Raises VMTimeoutError, and VMError for what it failed of."""
        try:
            return self._there.wait(timeout)  # type: ignore[no-any-return]
        except StoppedError:  # all of them
            error = self._fork.last_words(self.name).get("error")
            if error:
                raise VMError(f"{self.name}: {error}") from None
            return self.exit_code

    @property
    def exit_code(self) -> int | None:
        """The exit code, once it has ended."""
        try:
            return self._there.exit_code  # type: ignore[no-any-return]
        except StoppedError:
            return self._fork.last_words(self.name).get("exit_code")

    def _circumstances(self) -> str:
        console = self._fork.last_words(self.name).get("console") if not self._fork.running else None
        return f"; the console ends:\n{console}" if console else ""

    @property
    def _there(self) -> Any:
        return self._fork.machines[self.name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"a machine of a fork has no attribute {name!r}")
        return getattr(self._there, name)


def fork_group(group: Group, seed: int, record: str | os.PathLike[str] | None) -> GroupFork:
    """See :meth:`Group.fork`."""
    running = [vm for vm in group.machines.values() if vm.running]
    if not running:
        raise ForkError("no fork can be made: no machine of the group is running")
    identities = {
        vm.name: Identity(None, False, vm.software.agent, derived(seed, f"{vm.name} guest")) for vm in running
    }
    names = [vm.name for vm in running]
    identify = {name: partial(each.give, group.machines[name]) for name, each in identities.items()}

    def go_on(channel: socket.socket) -> None:
        group.part(seed, identify, record)
        say_last_words(running, channel, group.kill)
        for vm in running:
            vm.revived()
        serve(_Conversations(group, running, identities), running, channel)

    still, revive = group.copying(), partial(group.revive, names)
    return GroupFork(copy_process("fork of a group", running[0].timeout, still, revive, go_on), names)


class _Conversations(ForkConversations):
    """What the parent asks: of a machine that it names, or of the group's objects."""

    def __init__(self, group: Group, running: list[VM], identities: dict[str, Identity]) -> None:
        first = running[0]
        super().__init__(first, identities[first.name], group)
        self._each = {vm.name: ForkConversations(vm, identities[vm.name]) for vm in running}

    def _op_agent(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._each[request["machine"]].open_agent(connection, request)
