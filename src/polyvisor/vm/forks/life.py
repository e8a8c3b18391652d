"""What a fork does in its process: it goes on, answers its parent, and ends with it."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
import traceback
from functools import partial
from typing import Any, NoReturn

from polyvisor.network.frame import random_mac
from polyvisor.vm.control import Conversations, seconds
from polyvisor.vm.errors import CommandError, VMError
from polyvisor.vm.interfaces import SET_MAC
from polyvisor.vm.virtual_machine import VM

from .beginning import Beginning
from .remote_object import Server

# Seconds for answers that are under way when the machine has ended.
_LAST_WORDS = 1.0
# Seconds between looks whether the machine computes so much that it is worth compiling: after each request, growing.
_LOOK, _LONGEST_LOOK = 0.05, 2.0


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
                vm.run(SET_MAC, env={"MAC": old, "NEW": nic.mac}, check=True)


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


def live(vm: VM, number: int, channel: socket.socket, identity: Identity, beginning: Beginning) -> NoReturn:
    """Begin when the parent says so or asks for something, then serve it until either ends.

    It sends a connection over ``channel`` for each request. When the guest has been given its identity, or has no agent
    to give it by, ``beginning`` is told.
    """
    descriptors = _receive(channel)
    try:
        vm.part(partial(identity.give, vm))
        for call in vm.on_fork:
            call(vm, number)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)
    vm.events.on("ready", lambda event: beginning.report())
    vm.events.on("stopped", lambda event: _say_last_words(vm, channel))
    talk = _Conversations(vm, identity)
    vm.resume()
    vm.revived()
    if not vm.software.agent:
        beginning.report()
    asked = select.poll()
    asked.register(channel, select.POLLIN)
    looked_after = False
    while True:
        for descriptor in descriptors:
            talk.begin(socket.socket(fileno=descriptor))
        pause = _LOOK
        while not looked_after and not asked.poll(pause * 1000):
            looked_after = vm.machine.board.compile_if_worth()
            pause = min(pause * 2, _LONGEST_LOOK)
        descriptors = _receive(channel)


def _receive(channel: socket.socket) -> list[int]:
    """The descriptors that the parent has sent; ends when it has nothing more to say."""
    data, descriptors, _, _ = socket.recv_fds(channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not data:
        os._exit(0)
    return descriptors


def _say_last_words(vm: VM, channel: socket.socket) -> None:
    # In a thread of its own: those whose answers it waits for may wait for this one.
    threading.Thread(target=_tell_end, args=(vm, channel), name="last words", daemon=True).start()


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
