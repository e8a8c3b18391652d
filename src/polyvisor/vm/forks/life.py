"""What a fork does in its process: it goes on, answers its parent, and ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from typing import Any, NoReturn

from polyvisor.network.frame import random_mac
from polyvisor.vm.control import Conversations, seconds
from polyvisor.vm.errors import CommandError, VMError
from polyvisor.vm.virtual_machine import VM

from .remote_object import Server

# Seconds for answers that are under way when the machine has ended.
_LAST_WORDS = 1.0
_SET_MAC = """
for device in /sys/class/net/*; do
    read -r mac < "$device/address" && [ "$mac" = "$OLD" ] || continue
    ip link set "${device##*/}" address "$NEW"
done
"""


class Identity:
    """What makes a fork another machine than the others; asked of its guest's agent."""

    def __init__(self, hostname: str | None, new_macs: bool, reseed: bool) -> None:
        self._hostname = hostname
        self._new_macs = new_macs
        self._reseed = reseed
        self.error: BaseException | None = None
        """Why the guest does not have it."""

    def give(self, vm: VM) -> None:
        """Let the guest have it."""
        try:
            self._give(vm)
        except (OSError, VMError, CommandError) as error:
            self.error = error

    def _give(self, vm: VM) -> None:
        if self._reseed:
            vm.client.reseed(os.urandom(64), timeout=vm.timeout)
        if self._hostname is not None:
            vm.run(["hostname", self._hostname], check=True)
        if self._new_macs:
            for nic in vm.networks:
                old, nic.mac = nic.mac, random_mac()
                vm.run(_SET_MAC, env={"OLD": old, "NEW": nic.mac}, check=True)


class _Conversations(Conversations):
    """Besides what others may ask of a machine: whatever the parent wants of the objects here."""

    def __init__(self, vm: VM, identity: Identity) -> None:
        super().__init__(vm)
        self._server = Server(vm)
        self._identity = identity

    def _op_agent(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._vm.wait_ready(seconds(request))
        if self._identity.error is not None:
            raise VMError(f"the fork could not be made another machine: {self._identity.error}")
        super()._op_agent(connection, request)

    def _op_object(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._answer(connection, ok=True)
        with contextlib.suppress(EOFError):
            self._server.serve(connection)


def live(vm: VM, channel: socket.socket, identity: Identity) -> NoReturn:
    """Serve the parent, who sends a connection over ``channel`` for each request, until either ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's is for the parent, who ends us
    vm.revived()
    talk = _Conversations(vm, identity)
    threading.Thread(target=_tell_end, args=(vm, channel), name="last words", daemon=True).start()
    while True:
        data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not data:
            os._exit(0)
        for descriptor in descriptors:
            talk.begin(socket.socket(fileno=descriptor))


def _tell_end(vm: VM, channel: socket.socket) -> None:
    error = ""
    try:
        vm.wait()
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}"
    said = {"exit_code": vm.exit_code, "console": vm.console.tail(), "error": error}
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps(said).encode() + b"\n")
    end = time.monotonic() + _LAST_WORDS
    for thread in threading.enumerate():
        if thread.name.startswith("control"):
            thread.join(max(0.0, end - time.monotonic()))
    os._exit(0)
