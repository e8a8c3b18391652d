"""The outside for machines, without privileges: a TCP/IP stack in this process (libslirp).

What machines send becomes ordinary sockets of this process, so they reach what it reaches.
"""

from __future__ import annotations

import ctypes
import heapq
import ipaddress
import os
import re
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

from . import slirp
from .forward import Forward
from .frame import CSUM, ECN, ETHERNET_HEADER, MAX_FRAME, TSO4, TSO6, Frame
from .offload import completed
from .port import Port

MAX_WAITING = 1024
"""Frames that wait for the stack; more are dropped."""
MIN_MTU = 576
MAX_MTU = 65520

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_EVENTS = (
    (slirp.POLL_IN, select.POLLIN), (slirp.POLL_OUT, select.POLLOUT), (slirp.POLL_PRI, select.POLLPRI),
    (slirp.POLL_ERR, select.POLLERR), (slirp.POLL_HUP, select.POLLHUP),
)
_ATTEMPTS = 8


class NetworkError(OSError):
    """The host does not give what is asked for; the message is one line for the user."""


class UserNetwork(Port):
    """A network of its own with a router to the outside: TCP, UDP, and echo where the host lets users ping.

    In ``subnet`` (10.0.2.0/24) the router, which is the host too, has the second address (10.0.2.2), the DNS forwarder
    the third, and DHCP gives out the fifteenth and later ones. With ``ipv6`` there is a prefix (fec0::/64) beside.
    ``restricted``: nothing but TCP forwards. ``host_loopback``: the router's address leads to what listens on the
    host's loopback. ``mtu`` is that of what the stack sends. Several machines can share it over a switch.

    One thread owns the stack; all calls may come from any thread. It ends with :meth:`close`.
    """

    # The stack takes TCP segments of any size, but wants their checksums.
    takes = CSUM | TSO4 | TSO6 | ECN

    def __init__(
        self,
        *,
        forwards: Sequence[Forward] = (),
        restricted: bool = False,
        subnet: str = "10.0.2.0/24",
        hostname: str | None = None,
        ipv6: bool = True,
        host_loopback: bool = True,
        mtu: int = 1500,
        name: str = "user",
    ) -> None:
        """Raises ValueError for an impossible setting, SlirpMissingError, and NetworkError if a port is taken."""
        super().__init__(name)
        self.subnet = _subnet(subnet)
        if not MIN_MTU <= mtu <= MAX_MTU:
            raise ValueError(f"MTU {mtu}: must be from {MIN_MTU} to {MAX_MTU}")
        if hostname is not None and not _NAME.fullmatch(hostname):
            raise ValueError(f"host name {hostname!r}: letters, digits and hyphens, 63 at most")
        self.router = self.subnet[2]
        self.nameserver = self.subnet[3]
        self.first_lease = self.subnet[15]
        self._restricted = restricted
        self.forwards: list[Forward] = []
        """The port forwards there are, with the host's ports that were chosen."""
        self.failure: BaseException | None = None
        """What ended the thread, if that was an error."""
        self._lib = slirp.library()
        self._waiting: deque[Frame] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._timers: dict[int, _Timer] = {}
        self._due: list[tuple[int, int]] = []
        self._next_timer = 1
        self._polled: list[int] = []
        self._found: list[int] = []
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._woken = False
        self._closing = False
        self._lock = threading.Lock()
        self._config = self._make_config(restricted, hostname, ipv6, host_loopback, mtu)
        self._make_callbacks()
        self._stack = self._lib.slirp_new(ctypes.byref(self._config), ctypes.byref(self._callbacks), None)
        if not self._stack:
            os.close(self._wake_fd)
            raise NetworkError("libslirp could not make a network")
        self._thread = threading.Thread(target=self._main, name="network", daemon=True)
        self._thread.start()
        try:
            for forward in forwards:
                self.forward(forward)
        except BaseException:
            self.close()
            raise

    def _make_config(
        self, restricted: bool, hostname: str | None, ipv6: bool, host_loopback: bool, mtu: int
    ) -> slirp.Config:
        config = slirp.Config(version=1)
        config.restricted = int(restricted)
        config.in_enabled = True
        config.vnetwork = _in_addr(self.subnet.network_address)
        config.vnetmask = _in_addr(self.subnet.netmask)
        config.vhost = _in_addr(self.router)
        config.vnameserver = _in_addr(self.nameserver)
        config.vdhcp_start = _in_addr(self.first_lease)
        config.in6_enabled = ipv6
        for field, address in (("vprefix_addr6", "fec0::"), ("vhost6", "fec0::2"), ("vnameserver6", "fec0::3")):
            setattr(config, field, slirp.In6Addr.from_buffer_copy(ipaddress.IPv6Address(address).packed))
        config.vprefix_len = 64
        config.vhostname = hostname.encode() if hostname else None
        config.if_mtu = mtu
        config.if_mru = MAX_MTU
        config.disable_host_loopback = not host_loopback
        return config

    def _make_callbacks(self) -> None:
        self._callbacks = slirp.Callbacks(
            slirp.SEND_PACKET(self._from_stack),
            slirp.GUEST_ERROR(lambda message, opaque: None),
            slirp.CLOCK(lambda opaque: time.monotonic_ns()),
            slirp.TIMER_NEW(self._timer_new),
            slirp.TIMER_FREE(self._timer_free),
            slirp.TIMER_MOD(self._timer_mod),
            slirp.POLL_FD(lambda fd, opaque: None),
            slirp.POLL_FD(lambda fd, opaque: None),
            slirp.NOTIFY(lambda opaque: None),
        )
        self._add_poll = slirp.ADD_POLL(self._want)
        self._get_revents = slirp.GET_REVENTS(lambda index, opaque: self._found[index] if index >= 0 else 0)

    # From other threads

    def _send(self, frame: Frame) -> None:
        if self._closing or len(self._waiting) >= MAX_WAITING or not ETHERNET_HEADER <= frame.length <= MAX_FRAME:
            self.dropped += 1
            return
        self._waiting.append(completed(frame).kept())
        self._wake()

    def _wake(self) -> None:
        if self._woken:
            return
        with self._lock:
            if self._wake_fd >= 0:
                self._woken = True
                os.eventfd_write(self._wake_fd, 1)

    def _call(self, function: Callable[[], Any]) -> Any:
        """Have the thread call something that uses the stack; gives its result. Raises what it raises."""
        if threading.current_thread() is self._thread:
            return function()
        future: Future[Any] = Future()
        with self._lock:
            if self._closing:
                raise NetworkError("the network is closed")
            self._calls.append((function, future))
        self._wake()
        return future.result()

    def forward(self, forward: Forward) -> Forward:
        """Add a port forward; gives it with the host's port that it has. Raises NetworkError if that is taken.

        Raises ValueError for UDP in a restricted network, out of which libslirp lets no answers.
        """
        if self._restricted and forward.protocol == "udp":
            raise ValueError("a restricted network can forward tcp only")
        for attempt in range(_ATTEMPTS):
            port = forward.host_port or _free_port(forward)
            made = Forward(forward.protocol, port, forward.guest_port, forward.host, forward.guest)
            reason = self._call(partial(self._add_forward, made))
            if reason is None:
                self.forwards.append(made)
                return made
            if forward.host_port or attempt == _ATTEMPTS - 1:
                break
        raise NetworkError(f"cannot listen on {forward.protocol} port {port} of {forward.host}: {reason}")

    def _add_forward(self, forward: Forward) -> str | None:
        """Gives why it failed, None if it did not."""
        guest = ipaddress.IPv4Address(forward.guest) if forward.guest else self.first_lease
        ctypes.set_errno(0)
        status = self._lib.slirp_add_hostfwd(
            self._stack, int(forward.protocol == "udp"), _in_addr(ipaddress.IPv4Address(forward.host)),
            forward.host_port, _in_addr(guest), forward.guest_port,
        )
        return _why_not(forward) if status else None

    def remove_forward(self, forward: Forward) -> None:
        """Remove a forward that is there; connections go on. Raises ValueError if it is not."""
        if forward not in self.forwards:
            raise ValueError(f"there is no {forward}")
        self.forwards.remove(forward)
        host = _in_addr(ipaddress.IPv4Address(forward.host))
        is_udp = int(forward.protocol == "udp")
        self._call(lambda: self._lib.slirp_remove_hostfwd(self._stack, is_udp, host, forward.host_port))

    def close(self) -> None:
        """End all connections and the thread. May be repeated."""
        super().close()
        with self._lock:
            self._closing = True
        self._woken = False
        self._wake()
        if threading.current_thread() is self._thread:
            return
        self._thread.join()
        with self._lock:
            if self._wake_fd >= 0:
                os.close(self._wake_fd)
                self._wake_fd = -1

    # The thread

    def _main(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except BaseException as error:
            self.failure = error
        finally:
            with self._lock:
                self._closing = True
            self._lib.slirp_cleanup(self._stack)
            self._waiting.clear()
            while self._calls:
                self._calls.popleft()[1].set_exception(NetworkError("the network is closed"))

    def _turn(self) -> None:
        """Give the stack what there is for it, and wait for more."""
        while self._waiting:
            frame = self._waiting.popleft()
            data = bytes(frame)
            self._lib.slirp_input(self._stack, data, len(data))
        while self._calls:
            function, future = self._calls.popleft()
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
        timeout = ctypes.c_uint32(slirp.NO_TIMEOUT)
        poll = self._poll = select.poll()
        self._polled.clear()
        self._wanted: dict[int, int] = {}
        self._lib.slirp_pollfds_fill(self._stack, ctypes.byref(timeout), self._add_poll, None)
        for fd, events in self._wanted.items():
            poll.register(fd, events)
        poll.register(self._wake_fd, select.POLLIN)
        wait = None if timeout.value == slirp.NO_TIMEOUT else timeout.value
        if self._due:
            until = max(0, self._due[0][0] - time.monotonic_ns() // 1_000_000)
            wait = until if wait is None else min(wait, until)
        try:
            ready = dict(poll.poll(wait))
        except InterruptedError:
            ready = {}
        if ready.pop(self._wake_fd, 0):
            os.eventfd_read(self._wake_fd)
            self._woken = False
        self._found = [_from_host(ready.get(fd, 0)) for fd in self._polled]
        self._lib.slirp_pollfds_poll(self._stack, 0, self._get_revents, None)
        self._run_timers()

    def _want(self, fd: int, events: int, opaque: int | None) -> int:
        """The stack wants to know of ``events`` of a socket; gives the number it asks by later."""
        host = 0
        for theirs, ours in _EVENTS[:3]:
            if events & theirs:
                host |= ours
        self._wanted[fd] = self._wanted.get(fd, 0) | host
        self._polled.append(fd)
        return len(self._polled) - 1

    def _from_stack(self, data: int, length: int, opaque: int | None) -> int:
        # Nothing is held here but the thread, and `receive` only queues what it answers.
        try:
            self.deliver(Frame(ctypes.string_at(data, length), valid=True))
        except Exception as error:
            self.failure = error
            self._closing = True
        return length

    # The stack's timers, in milliseconds of its clock

    def _timer_new(self, function: int, argument: int | None, opaque: int | None) -> int:
        number = self._next_timer
        self._next_timer += 1
        self._timers[number] = _Timer(slirp.TIMER_EXPIRED(function), argument)
        return number

    def _timer_free(self, number: int, opaque: int | None) -> None:
        self._timers.pop(number, None)

    def _timer_mod(self, number: int, at: int, opaque: int | None) -> None:
        if number in self._timers:
            self._timers[number].at = at
            heapq.heappush(self._due, (at, number))

    def _run_timers(self) -> None:
        now = time.monotonic_ns() // 1_000_000
        while self._due and self._due[0][0] <= now:
            at, number = heapq.heappop(self._due)
            timer = self._timers.get(number)
            if timer is not None and timer.at == at:
                timer.at = -1
                timer.function(timer.argument)


@dataclass
class _Timer:
    function: Callable[[int | None], None]
    argument: int | None
    at: int = -1


def _from_host(events: int) -> int:
    found = 0
    for theirs, ours in _EVENTS:
        if events & ours:
            found |= theirs
    return found


def _subnet(text: str) -> ipaddress.IPv4Network:
    try:
        subnet = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ValueError(f"subnet {text!r}: {error}") from None
    if subnet.prefixlen > 27:
        raise ValueError(f"subnet {text!r}: has fewer than 32 addresses")
    return subnet


def _in_addr(address: ipaddress.IPv4Address) -> slirp.InAddr:
    return slirp.InAddr.from_buffer_copy(address.packed)


def _socket_for(forward: Forward) -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM if forward.protocol == "udp" else socket.SOCK_STREAM)


def _free_port(forward: Forward) -> int:
    """A port of the host that nobody uses now. Raises NetworkError."""
    try:
        with _socket_for(forward) as probe:
            probe.bind((forward.host, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise NetworkError(f"cannot listen on {forward.host}: {error.strerror}") from error


def _why_not(forward: Forward) -> str:
    """Why the host does not let us listen; libslirp does not say."""
    try:
        with _socket_for(forward) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((forward.host, forward.host_port))
            if forward.protocol == "tcp":
                probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return "libslirp refuses it"
