"""The console device: consoles and named byte streams (VIRTIO 1.2, section 5.3).

Bytes go through two bounded buffers for each port. Input waits until the driver gives receive buffers; while the output
buffer is full, the driver's transmit buffers stay with the device, which makes the guest wait.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, QueueError, Segment, gather, length_of, scatter, split

QUEUE_SIZE = 128
CONTROL_QUEUE_SIZE = 64
MAX_PORTS = 32
MAX_NAME_BYTES = 255
LIMIT = 1 << 18

# Feature bits (5.3.3).
F_SIZE = 1 << 0
F_MULTIPORT = 1 << 1
F_EMERG_WRITE = 1 << 2

# Queues (5.3.2): those of port 0 come first, then the control queues, then two for each further port.
CONTROL_RECEIVE = 2
CONTROL_TRANSMIT = 3

# Control messages (5.3.6.2).
DEVICE_READY = 0
DEVICE_ADD = 1
DEVICE_REMOVE = 2
PORT_READY = 3
CONSOLE_PORT = 4
RESIZE = 5
PORT_OPEN = 6
PORT_NAME = 7

# struct virtio_console_config (5.3.4): columns, rows, ports, emergency write.
_CONFIG = struct.Struct("<HHII")
_EMERGENCY_AT = 8
# struct virtio_console_control: port, event, value.
_CONTROL = struct.Struct("<IHH")
_SIZE = struct.Struct("<HH")
# What is due is sent in this order, and PORT_OPEN after it.
_ORDER = (DEVICE_ADD, CONSOLE_PORT, PORT_NAME, RESIZE)
# Bytes that a port's functions are told of at one go, where a call counts as some, too; the rest waits until the driver
# acknowledges an interrupt. Linux cannot do that while it waits for a buffer of a console: those are much shorter.
_TURN = 1 << 20
_CALL = 64


class PortClosed(ConnectionError):  # noqa: N818
    """The host's side of a port is closed, or the device is."""


@dataclass
class PortState:
    """What the driver said of a port, what it is to be told, and the bytes on their way."""

    ready: int = 0
    """1 after PORT_READY."""
    guest_open: int = 0
    host_open: int = 1
    messages: int = 0
    """Bit ``n``: control message ``n`` is due."""
    opens: list[int] = field(default_factory=list)
    """Values of the PORT_OPEN messages that are due, oldest first."""
    closing: int = 0
    """1 if the host has closed the port, which the driver is told when all input has been delivered."""
    input: bytearray = field(default_factory=bytearray)
    """From the host, not in the guest yet."""
    output: bytearray = field(default_factory=bytearray)
    """From the guest, not with the host yet."""
    held: Chain | None = None
    """A transmit buffer of which the first part was taken: the rest."""


@dataclass
class ConsoleState:
    """``ready``: the driver said DEVICE_READY; sizes are in characters, 0 if unknown."""

    ready: int = 0
    columns: int = 0
    rows: int = 0
    ports: list[PortState] = field(default_factory=list)


def _change(values: list[int], value: int) -> None:
    """Note a change to ``value``. At most two are kept, so that a pair that cancels is still seen, and no more."""
    if not values or values[-1] != value:
        values.append(value)
    if len(values) > 2:
        del values[:2]


# The port whose function this thread is in.
_calling = threading.local()


class Port:
    """A byte stream between the guest and Python; :class:`ConsoleDevice` takes it. Any thread may call all methods.

    The guest has it at ``/dev/virtio-ports/NAME`` (where there is no udev: ``/dev/vportNpM``, whose name is in
    ``/sys/class/virtio-ports``), as ``hvcN`` if it is a console.

    ``on_data(data)`` is called with what the guest writes, ``on_open(is_open)`` when it opens and closes the port: on
    the threads of harts, one call at a time for a port, in order, and without a lock of the device's. The guest waits
    when it writes faster than they return. They may call any method of any port, though not wait long; what they
    :meth:`write` is taken at once, and while that is more than the other port's ``limit``, they are called no more.
    (The functions of a console must not make the guest wait for that, so they write no more than there is room for.)
    An exception they raise ends the machine.

    Without ``on_data``, :meth:`read` gets what the guest writes; when ``limit`` bytes wait for that, the guest waits,
    except on a console: there the newest ``limit`` bytes are kept, because kernels cannot wait for a console.
    """

    def __init__(
        self,
        name: str = "",
        *,
        console: bool = False,
        on_data: Callable[[bytes], object] | None = None,
        on_open: Callable[[bool], object] | None = None,
        limit: int = LIMIT,
    ) -> None:
        """``limit``: bytes kept in each direction. Raises ValueError for that, or a name that cannot be a file's."""
        encoded = name.encode("utf-8", "surrogateescape")
        if not name and not console:
            raise ValueError("a port that is no console needs a name")
        if len(encoded) > MAX_NAME_BYTES or "/" in name or not name.isprintable() or name in (".", ".."):
            raise ValueError(f"port name {name!r}: must be printable, without '/', {MAX_NAME_BYTES} bytes at most")
        if limit <= 0:
            raise ValueError(f"port {name!r}: a limit of {limit} bytes")
        self.name = name
        self.console = console
        self.limit = limit
        self._encoded = encoded
        self._on_data = on_data
        self._on_open = on_open
        self._device: ConsoleDevice | None = None
        self._index = 0
        # Calls of on_open that are due, and whether a thread is calling one of the functions now.
        self._changes: list[int] = []
        self._busy = False
        self._ended = False
        # Ports with too much input, to which this port's functions wrote it; and the other way round.
        self._waits_for: set[Port] = set()
        self._makes_wait: set[Port] = set()

    def _owner(self) -> ConsoleDevice:
        if self._device is None:
            raise ValueError(f"port {self.name!r} belongs to no console device")
        return self._device

    @property
    def _state(self) -> PortState:
        return self._owner().state.ports[self._index]

    @property
    def guest_open(self) -> bool:
        """Whether a program of the guest (for a console: its driver) has the port open."""
        return bool(self._state.guest_open)

    @property
    def host_open(self) -> bool:
        """Whether the host's side is open; it is from the start."""
        return bool(self._state.host_open)

    @property
    def waiting(self) -> int:
        """How many written bytes the guest has not taken yet."""
        return len(self._state.input)

    def write(self, data: bytes | bytearray | memoryview, timeout: float | None = None) -> int:
        """Send bytes to the guest; returns how many were taken, which is all unless ``timeout`` seconds have passed.

        Waits while ``limit`` bytes are waiting for the guest: before it has opened the port, too, they are kept.
        Raises PortClosed.
        """
        device = self._owner()
        data = bytes(data)
        source: Port | None = getattr(_calling, "port", None)
        if source is not None:
            return device.write_at_once(self, data, source)
        end = None if timeout is None else time.monotonic() + timeout
        done = 0
        while True:
            with device.hosting():
                done += device.queue_input(self, data[done : done + self.limit], self.limit)
                if done == len(data):
                    return done
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return done
                device.changed.wait_for(lambda: self.waiting < self.limit or not device.is_open(self), left)

    def read(self, timeout: float | None = None, size: int = -1) -> bytes:
        """What the guest has written, up to ``size`` bytes; waits until there is some.

        b"" is the end: the guest has closed the port and all it wrote was read, or the host's side is closed. After
        the former one may read on, to wait until the guest has opened the port again and written. Raises
        TimeoutError after ``timeout`` seconds without a byte; ValueError if the port has ``on_data``.
        """
        device = self._owner()
        if self._on_data is not None:
            raise ValueError(f"port {self.name!r} gives what it receives to its on_data")
        with device.hosting():
            if not device.changed.wait_for(
                lambda: self._state.output or self._ended or not device.is_open(self), timeout
            ):
                raise TimeoutError(f"port {self.name!r}: the guest wrote nothing for {timeout} seconds")
            output = self._state.output
            data = bytes(output if size < 0 else output[:size])
            del output[: len(data)]
            if not data and size:
                self._ended = False
            device.resume(self)
        return data

    def wait_open(self, timeout: float | None = None) -> bool:
        """Wait until the guest has the port open, ``timeout`` seconds at most; gives whether it has."""
        device = self._owner()
        with device.lock:
            device.changed.wait_for(lambda: self.guest_open or device.closed, timeout)
            return self.guest_open

    def open(self) -> None:
        """Open the host's side again after :meth:`close`. Raises PortClosed if the device is closed."""
        self._owner().set_host_open(self, True)

    def close(self) -> None:
        """Close the host's side: the guest reads what was written and then the end of the file.

        What it writes from now on is dropped (Linux makes the writer wait instead, until the port is open again).
        """
        self._owner().set_host_open(self, False)


class ConsoleDevice(VirtioDevice):
    """A console (port 0, ``hvc0`` in Linux) and further ``ports``; the methods that take a port are for :class:`Port`.

    ``columns`` and ``rows`` are the size of the consoles' window, 0 if it is not known. A driver without
    VIRTIO_CONSOLE_F_MULTIPORT has port 0 only.
    """

    device_id = 3
    state: ConsoleState

    def __init__(
        self, ports: Sequence[Port] = (), console: Port | None = None, columns: int = 80, rows: int = 24
    ) -> None:
        """``console`` is port 0, by default one to read from. Raises ValueError for names or ports given twice."""
        self.console = console or Port(console=True)
        if not self.console.console:
            raise ValueError("port 0 must be a console")
        self.ports = (self.console, *ports)
        if len(self.ports) > MAX_PORTS:
            raise ValueError(f"{len(self.ports)} ports: a console device has at most {MAX_PORTS}")
        names = [port.name for port in self.ports if port.name]
        if len(set(names)) < len(names):
            raise ValueError(f"ports of the same name: {', '.join(sorted(names))}")
        _check_size(columns, rows)
        data = (QUEUE_SIZE, QUEUE_SIZE)
        queues = (*data, CONTROL_QUEUE_SIZE, CONTROL_QUEUE_SIZE, *data * len(ports))
        state = ConsoleState(columns=columns, rows=rows, ports=[PortState() for _ in self.ports])
        super().__init__(F_SIZE | F_MULTIPORT | F_EMERG_WRITE, queues, state)
        self.closed = False
        # Signalled when bytes or openings of any port change.
        self.changed = threading.Condition(self.lock)
        # Ports whose functions are to be called, and those that may go on because another's input has shrunk.
        self._due: set[Port] = set()
        self._relieved: set[tuple[Port, Port]] = set()
        for index, port in enumerate(self.ports):
            if port._device is not None:
                raise ValueError(f"port {port.name!r} belongs to a console device already")
            port._device, port._index = self, index

    # The driver

    def config(self) -> bytes:
        """struct virtio_console_config."""
        return _CONFIG.pack(self.state.columns, self.state.rows, len(self.ports), 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """Emergency write (5.3.4): the lowest byte is printed on port 0, whatever the state of the driver."""
        if offset <= _EMERGENCY_AT < offset + len(data) and self._room(self.console):
            at = _EMERGENCY_AT - offset
            self._arrived(self.console, data[at : at + 1])

    def notify(self, index: int) -> None:
        """Move what can be moved now. Raises QueueError."""
        if index == CONTROL_TRANSMIT:
            self.serve(index, self._control)
        elif index != CONTROL_RECEIVE:
            port = self.ports[0 if index < CONTROL_RECEIVE else index // 2 - 1]
            if not self._multiport:
                # There are no messages that would say so.
                self._set_guest_open(port, 1)
            if index % 2:
                self._take(port)
            else:
                self._feed(port)
        self._send_messages()

    def reset(self) -> None:
        """Forget the driver. Bytes of the host that it has not got yet are kept for the next one."""
        self.state.ready = 0
        for port, state in zip(self.ports, self.state.ports, strict=True):
            state.ready = state.messages = 0
            state.opens = []
            state.held = None
            self._set_guest_open(port, 0)

    def restored(self) -> None:
        """Forget what was to be told to the ports' functions. Raises ValueError for the state of other ports."""
        if len(self.state.ports) != len(self.ports):
            raise ValueError(f"state of {len(self.state.ports)} console ports for {len(self.ports)}")
        self._due.clear()
        self._relieved.clear()
        for port, state in zip(self.ports, self.state.ports, strict=True):
            port._changes = []
            port._waits_for.clear()
            port._makes_wait.clear()
            port._ended = not state.guest_open
        self.changed.notify_all()

    def reconnected(self) -> None:
        """Tell the ports' functions of what the guest has open, and has written."""
        for port, state in zip(self.ports, self.state.ports, strict=True):
            if port._on_open is not None and state.guest_open:
                port._changes = [1]
            if port._changes or (port._on_data is not None and state.output):
                self._due.add(port)
                self._call_later(port)

    def close(self) -> None:
        """End all waiting; ports raise PortClosed, or read as ended, from now on."""
        with self.lock:
            self.closed = True
            self.changed.notify_all()

    @property
    def _running(self) -> bool:
        return self._link is not None and self._link.running

    @property
    def _multiport(self) -> bool:
        return bool(self.link.features & F_MULTIPORT)

    # Control messages

    def resize(self, columns: int, rows: int) -> None:
        """The window of the consoles has a new size, in characters up to 65535. Raises ValueError."""
        _check_size(columns, rows)
        with self.hosting():
            self.state.columns, self.state.rows = columns, rows
            if self._link is None:
                return
            for port, state in zip(self.ports, self.state.ports, strict=True):
                if port.console and state.ready:
                    state.messages |= 1 << RESIZE
            self.link.config_changed()
            self._send_messages()

    def _control(self, chain: Chain) -> int:
        """A message of the driver; what makes no sense is ignored."""
        data = gather(self.link.memory, split(chain.readable, _CONTROL.size)[0])
        if len(data) < _CONTROL.size or not self._multiport:
            return 0
        index, event, value = _CONTROL.unpack(data)
        if event == DEVICE_READY:
            self.state.ready = int(value == 1)
            for state in self.state.ports:
                state.messages = self.state.ready << DEVICE_ADD
                state.ready, state.opens = 0, []
        elif index < len(self.ports) and self.state.ready:
            port, state = self.ports[index], self.state.ports[index]
            if event == PORT_READY:
                state.ready = int(value == 1)
                state.messages = 0
                state.opens = [1] if state.ready and (state.host_open or state.closing) else []
                if state.ready:
                    state.messages |= bool(port.name) << PORT_NAME
                    state.messages |= port.console << CONSOLE_PORT
                    state.messages |= (port.console and self.state.columns > 0) << RESIZE
            elif event == PORT_OPEN:
                self._set_guest_open(port, int(value == 1))
                self._feed(port)
        return 0

    def _send_messages(self) -> None:
        """Send what is due, as far as the driver has given buffers. Raises QueueError."""
        if self._running and self._multiport and self._message_due():
            self.serve(CONTROL_RECEIVE, self._put_message, self._message_due)

    def _message_due(self) -> bool:
        return any(state.messages or state.opens for state in self.state.ports)

    def _put_message(self, chain: Chain) -> int:
        index, state = next((i, s) for i, s in enumerate(self.state.ports) if s.messages or s.opens)
        value, more = 1, b""
        event = next((event for event in _ORDER if state.messages >> event & 1), PORT_OPEN)
        state.messages &= ~(1 << event)
        if event == PORT_OPEN:
            value = state.opens.pop(0)
        elif event == PORT_NAME:
            more = self.ports[index]._encoded
        elif event == RESIZE:
            more = _SIZE.pack(self.state.columns, self.state.rows)
        return scatter(self.link.memory, chain.writable, _CONTROL.pack(index, event, value) + more)

    # From the host to the guest

    def is_open(self, port: Port) -> bool:
        """Whether the host's side of ``port`` can be used."""
        return not self.closed and port.host_open

    def queue_input(self, port: Port, data: bytes, limit: int) -> int:
        """Take bytes for the guest as long as fewer than ``limit`` wait; returns how many. In :meth:`hosting`.

        Raises PortClosed.
        """
        if not self.is_open(port):
            raise PortClosed(f"port {port.name!r} is closed")
        state = port._state
        taken = data[: max(limit - len(state.input), 0)]
        state.input += taken
        if taken and self._running:
            try:
                self._feed(port)
                self._send_messages()
            except QueueError:  # the bytes were taken all the same
                self.link.fail()
        return len(taken)

    def write_at_once(self, port: Port, data: bytes, source: Port) -> int:
        """Take bytes that a function of ``source`` wrote, which waits if they are too many; returns how many."""
        with self.hosting():
            limit = port.limit if source.console else port.waiting + len(data)
            data = data[: self.queue_input(port, data, limit)]
            if port.waiting > port.limit:
                port._makes_wait.add(source)
                source._waits_for.add(port)
        return len(data)

    def set_host_open(self, port: Port, is_open: bool) -> None:
        """Open or close the host's side of ``port``. Raises PortClosed if the device is closed."""
        with self.hosting():
            if self.closed and is_open:
                raise PortClosed(f"port {port.name!r} is closed")
            state = port._state
            if state.host_open == is_open:
                return
            state.host_open = int(is_open)
            if not is_open and state.input:
                state.closing = 1
            else:
                if state.closing:
                    state.closing = 0
                    self._tell_open(state, 0)
                self._tell_open(state, int(is_open))
            self.changed.notify_all()
            if self._running:
                self._take(port)
                self._send_messages()

    def _tell_open(self, state: PortState, value: int) -> None:
        if state.ready:
            _change(state.opens, value)

    def _feed(self, port: Port) -> None:
        """Give the guest what it has room for. Raises QueueError."""
        state = port._state
        before = len(state.input)
        self.serve(self._queue(port), partial(self._fill, state), lambda: bool(state.input and state.guest_open))
        if len(state.input) == before:
            return
        if state.closing and not state.input:
            state.closing = 0
            self._tell_open(state, 0)
        if len(state.input) < port.limit:
            self.changed.notify_all()
        if len(state.input) <= port.limit and port._makes_wait:
            self._relieved |= {(source, port) for source in port._makes_wait}
            port._makes_wait.clear()

    def _fill(self, state: PortState, chain: Chain) -> int:
        count = scatter(self.link.memory, chain.writable, bytes(state.input[: length_of(chain.writable)]))
        del state.input[:count]
        return count

    def _queue(self, port: Port) -> int:
        """The port's receive queue; the next one is its transmit queue."""
        return 2 * port._index + 2 if port._index else 0

    # From the guest to the host

    def resume(self, port: Port) -> None:
        """There is room for output again. In :meth:`hosting`."""
        if self._running:
            self._take(port)

    def _set_guest_open(self, port: Port, value: int) -> None:
        state = port._state
        if state.guest_open == value:
            return
        state.guest_open = value
        port._ended = not value
        if port._on_open is not None:
            _change(port._changes, value)
            self._due.add(port)
        self.changed.notify_all()

    def _room(self, port: Port) -> int:
        """How many bytes of output there is room for; without bound where bytes are dropped."""
        if self._drops(port):
            return 1 << 32
        return 0 if port._waits_for else max(port.limit - len(port._state.output), 0)

    def _drops(self, port: Port) -> bool:
        return not self.is_open(port) or (port.console and port._on_data is None)

    def _take(self, port: Port) -> None:
        """Take from the driver what there is room for. Raises QueueError."""
        state = port._state
        index = self._queue(port) + 1
        queue = self.link.queues[index]
        if state.held is not None and self._room(port):
            held, state.held = state.held, None
            if self._receive(port, held) is None:
                return
            queue.push(held, 0)
            if queue.should_interrupt():
                self.link.interrupt()
        self.serve(index, partial(self._receive, port), lambda: state.held is None and self._room(port) > 0)

    def _receive(self, port: Port, chain: Chain) -> int | None:
        """Take a transmit buffer, or its first part, and then keep the rest."""
        segments = chain.readable
        if not self.is_open(port):
            return 0
        if self._drops(port):
            segments = split(segments, max(length_of(segments) - port.limit, 0))[1]
            rest: list[Segment] = []
        else:
            segments, rest = split(segments, self._room(port))
        self._arrived(port, gather(self.link.memory, segments))
        if rest:
            port._state.held = Chain(chain.head, rest)
            return None
        return 0

    def _arrived(self, port: Port, data: bytes) -> None:
        output = port._state.output
        output += data
        if port._on_data is not None:
            self._due.add(port)
        else:
            del output[: max(len(output) - port.limit, 0)]
        self.changed.notify_all()

    # What is done without the lock

    @contextmanager
    def hosting(self) -> Iterator[None]:
        """As :meth:`guard`, for threads of the host: it calls no function of a port, but has a hart do so."""
        with self.lock:
            try:
                yield
            except QueueError:
                self.link.fail()
            for port in self._due:
                self._call_later(port)
        self._relieve()

    def unlocked(self) -> None:
        """Call the functions of the ports with something to tell."""
        self._relieve()
        if self._due:
            for port in self.ports:
                if port in self._due:
                    self._deliver(port)

    def _relieve(self) -> None:
        """Let those ports go on whose functions wrote more than there was room for, where there is room now."""
        while self._relieved:
            try:
                source, target = self._relieved.pop()
            except KeyError:  # another thread was faster
                return
            source._waits_for.discard(target)
            device = source._owner()
            with device.lock:
                device._due.add(source)
                device._call_later(source)

    def _call_later(self, port: Port) -> None:
        """Have a hart continue with the output of ``port``."""
        if self._running:
            self.link.resume_later(self._queue(port) + 1)

    def _deliver(self, port: Port) -> None:
        """Call the functions of ``port`` while there is something to tell, unless another thread does already."""
        with self.lock:
            if port._busy:
                return
            port._busy = True
        before = getattr(_calling, "port", None)
        _calling.port = port
        try:
            told = 0
            while told < _TURN:
                with self.lock:
                    call, size = self._next_call(port)
                    if call is None:
                        # In the same step, or what comes now would be left to nobody.
                        self._due.discard(port)
                        port._busy = False
                        return
                call()
                told += _CALL + size
                with self.lock:
                    self._go_on(port)
        except BaseException:
            port._busy = False
            raise
        finally:
            _calling.port = before
        with self.lock:
            port._busy = False
            self._call_later(port)

    def _next_call(self, port: Port) -> tuple[Callable[[], object] | None, int]:
        """What is to be called next, and with how many bytes: openings come before what was written, closings after."""
        state = port._state
        if port._waits_for:
            return None, 0
        if port._on_data is not None and state.output and port._changes[:1] != [1]:
            data = bytes(state.output)
            state.output.clear()
            return partial(port._on_data, data), len(data)
        if port._on_open is not None and port._changes:
            return partial(port._on_open, bool(port._changes.pop(0))), 0
        return None, 0

    def _go_on(self, port: Port) -> None:
        """Take what waited for the room that there is now."""
        try:
            self.resume(port)
        except QueueError:
            self.link.fail()


def _check_size(columns: int, rows: int) -> None:
    if not 0 <= columns < 1 << 16 or not 0 <= rows < 1 << 16:
        raise ValueError(f"a window of {columns} columns and {rows} rows")
