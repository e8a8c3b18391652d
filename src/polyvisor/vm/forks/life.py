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
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn

from polyvisor.devices.virtio.rng import SeededEntropy
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

    def __init__(self, hostname: str | None, new_macs: bool, reseed: bool, seed: int | None = None) -> None:
        """``seed``: makes the random numbers that the guest's are to be made from; None: they are the host's."""
        self._hostname = hostname
        self._new_macs = new_macs
        self._reseed = reseed
        self._seed = seed
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
            entropy = os.urandom(64) if self._seed is None else SeededEntropy(self._seed)(64)
            vm.client.reseed(entropy, timeout=vm.timeout)
        if self._hostname is not None:
            vm.run(["hostname", self._hostname], check=True)
        if self._new_macs:
            for nic in vm.networks:
                old, nic.mac = nic.mac, random_mac()
                vm.run(SET_MAC, env={"MAC": old, "NEW": nic.mac}, check=True)


class ForkConversations(Conversations):
    """Besides what others may ask of a machine: whatever the parent wants of the objects here, ``root`` being one."""

    def __init__(self, vm: VM, identity: Identity, root: Any = None) -> None:
        super().__init__(vm)
        self._server = Server(root or vm)
        self._identity = identity

    def open_agent(self, connection: socket.socket, request: dict[str, Any]) -> None:
        """Let the parent talk to the guest's agent, when the guest is another machine. Raises VMError."""
        self._op_agent(connection, request)

    def _op_agent(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._vm.wait_ready(seconds(request))
        if self._identity.error is not None:
            raise VMError(f"the fork could not be made another machine: {self._identity.error}")
        super()._op_agent(connection, request)

    def _op_object(self, connection: socket.socket, request: dict[str, Any]) -> None:
        self._answer(connection, ok=True)
        with contextlib.suppress(EOFError):
            self._server.serve(connection)


def live(
    vm: VM, number: int, channel: socket.socket, identity: Identity, beginning: Beginning, begun: Callable[[], None]
) -> NoReturn:
    """Begin when the parent says so or asks for something, call ``begun``, then serve it until either ends.

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
    vm.events.on("stopped", lambda event: say_last_words([vm], channel))
    talk = ForkConversations(vm, identity)
    vm.resume()
    vm.revived()
    begun()
    if not vm.software.agent:
        beginning.report()
    serve(talk, [vm], channel, descriptors)


def serve(talk: Conversations, vms: Sequence[VM], channel: socket.socket, descriptors: Sequence[int] = ()) -> NoReturn:
    """Answer who is at the other ends of ``descriptors``, and of those that the parent sends, until it ends."""
    asked = select.poll()
    asked.register(channel, select.POLLIN)
    left = [vm.machine.board for vm in vms]  # that compile nothing yet
    while True:
        for descriptor in descriptors:
            talk.begin(socket.socket(fileno=descriptor))
        pause = _LOOK
        while left and not asked.poll(pause * 1000):
            left = [board for board in left if not board.compile_if_worth()]
            pause = min(pause * 2, _LONGEST_LOOK)
        descriptors = _receive(channel)


def _receive(channel: socket.socket) -> list[int]:
    """The descriptors that the parent has sent; ends when it has nothing more to say."""
    data, descriptors, _, _ = socket.recv_fds(channel, 1, 1, socket.MSG_CMSG_CLOEXEC)
    if not data:
        os._exit(0)
    return descriptors


def say_last_words(
    vms: Sequence[VM], channel: socket.socket, finish: Callable[[], None] = lambda: None
) -> None:
    """When all machines have ended, call ``finish``, tell the parent how they did, and end; does not wait for that."""
    # In a thread of its own: those whose answers it waits for may wait for this one.
    threading.Thread(target=_tell_end, args=(vms, channel, finish), name="last words", daemon=True).start()


def _tell_end(vms: Sequence[VM], channel: socket.socket, finish: Callable[[], None]) -> None:
    each = {}
    for vm in vms:
        error = ""
        try:
            vm.wait()
        except BaseException as failure:
            error = f"{type(failure).__name__}: {failure}"
        each[vm.name] = {"exit_code": vm.exit_code, "console": vm.console.tail(), "error": error}
    said: dict[str, Any] = dict(each[vms[0].name])
    try:
        finish()
    except VMError as failure:
        said["error"] = said["error"] or str(failure)
    if len(each) > 1:
        said["machines"] = each
    with contextlib.suppress(OSError):
        channel.sendall(json.dumps(said).encode() + b"\n")
    end = time.monotonic() + _LAST_WORDS
    for thread in threading.enumerate():
        if thread.name.startswith("control"):
            thread.join(max(0.0, end - time.monotonic()))
    os._exit(0)
