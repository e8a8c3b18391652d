"""A server for GDB's remote serial protocol (GDB manual, appendix E), on loopback.

All-stop: when one thread stops, all do. It numbers them from 1.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading

from polyvisor.vm.errors import VMError

from .target import SIGINT, WATCHED, Halt, Target, TargetError, Watch

_INTERRUPT = b"\x03"
_PACKET_SIZE = 0x4000
_OK, _EMPTY = "OK", ""
# The kinds of watchpoints by the number in their packets.
_WATCHES = {"2": "write", "3": "read", "4": "access"}


class _Closed(Exception):  # noqa: N818  (not an error: the debugger went away)
    pass


def _wait(*descriptors: int) -> set[int]:
    """Wait until some of these can be read (poll, as select knows small descriptors only)."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll()}


def _number(text: str) -> int:
    """A number in a packet, which has no sign. Raises ValueError."""
    if text.startswith("-"):
        raise ValueError(f"{text} is below 0")
    return int(text, 16)


class GdbServer:
    """Serves one debugger at a time. The machine stands still while a debugger has stopped it.

    ``port`` 0 takes a free one; :attr:`port` says which. ``once``: when the debugger goes away, that is all, and the
    machine does not run on. Raises OSError where the port is taken.
    """

    def __init__(self, target: Target, port: int = 1234, once: bool = False) -> None:
        self._target = target
        self._once = once
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._wake_read, self._wake_write = os.pipe()
        self._waking = threading.Lock()
        self._closing = False
        self._halted: Halt | None = None
        self._last = Halt(0)
        self._breakpoints: set[int] = set()
        self._watches: set[Watch] = set()
        self._running = True
        self._current = 0
        self._buffer = b""
        self._connection: socket.socket | None = None
        self._acknowledge = True
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)

    def wait(self) -> None:
        """Wait until there is nobody left to serve."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # lets signals through

    def start(self) -> None:
        """Begin to serve."""
        self._target.on_halt = self._on_halt
        self._thread.start()

    def close(self) -> None:
        """Hang up. The machine is not touched. May be repeated."""
        if self._closing:
            return
        self._closing = True
        os.write(self._wake_write, b"x")
        if self._thread.ident is not None:
            self._thread.join(2)
        self._listener.close()
        with self._waking:
            if not self._thread.is_alive():
                os.close(self._wake_read)
                os.close(self._wake_write)
            self._wake_write = -1

    def _on_halt(self, halt: Halt) -> bool:
        """A thread stopped by itself; called by any of the machine's. Gives whether a debugger hears of it."""
        self._halted = halt
        with self._waking:
            if self._wake_write >= 0:
                os.write(self._wake_write, b"x")
        return self._connection is not None

    # The connection

    def _serve(self) -> None:
        while not self._closing:
            readable = _wait(self._listener.fileno(), self._wake_read)
            if self._wake_read in readable:
                os.read(self._wake_read, 64)
                continue
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connection, self._buffer, self._acknowledge = connection, b"", True
            with contextlib.suppress(_Closed, OSError, TargetError):
                self._halt()
                self._last = Halt(self._current)
                self._converse()
            connection.close()
            self._connection = None
            self._clear()
            if self._once:
                return
            with contextlib.suppress(TargetError):  # it has ended
                if not self._closing:
                    self._go()

    def _converse(self) -> None:
        """Answer packets until the debugger goes away."""
        while not self._closing:
            packet = self._receive()
            if packet is None:
                continue
            try:
                reply = self._answer(packet)
            except (ValueError, IndexError, KeyError, UnicodeError):
                reply = "E01"
            except (TargetError, VMError):
                reply = "E14"
            if reply is not None:
                self._send(reply)
            if packet[:1] == "D":
                raise _Closed

    def _receive(self) -> str | None:
        """The next packet; None after something else happened: a stop was reported, or the debugger asked for one."""
        while True:
            if self._buffer[:1] == _INTERRUPT:
                self._buffer = self._buffer[1:]
                if self._running:
                    self._halt()
                    self._send(self._arrive(Halt(self._current, SIGINT)))
                continue
            start, end = self._buffer.find(b"$"), self._buffer.find(b"#")
            if 0 <= start < end and len(self._buffer) >= end + 3:
                body, checksum = self._buffer[start + 1 : end], self._buffer[end + 1 : end + 3]
                self._buffer = self._buffer[end + 3 :]
                good = checksum == b"%02x" % (sum(body) & 0xFF)
                if self._acknowledge:
                    self._write(b"+" if good else b"-")
                if good:
                    return body.decode("latin-1")
                continue
            if start < 0:
                # Acknowledgements and noise.
                where = self._buffer.find(_INTERRUPT)
                self._buffer = self._buffer[where:] if where >= 0 else b""
                if where >= 0:
                    continue
            if len(self._buffer) > 4 * _PACKET_SIZE:
                raise _Closed
            assert self._connection is not None
            readable = _wait(self._connection.fileno(), self._wake_read)
            if self._wake_read in readable:
                os.read(self._wake_read, 64)
                if self._closing:
                    raise _Closed
                self._report_stop()
            if self._connection.fileno() in readable:
                data = self._connection.recv(65536)
                if not data:
                    raise _Closed
                self._buffer += data

    def _report_stop(self) -> None:
        halt, self._halted = self._halted, None
        if halt is not None and self._running:
            self._halt()
            self._send(self._arrive(halt))

    def _send(self, text: str) -> None:
        body = text.encode("latin-1")
        self._write(b"$" + body + b"#%02x" % (sum(body) & 0xFF))

    def _write(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)

    # The machine

    def _halt(self) -> None:
        if self._running:
            self._target.pause()
            self._running = False

    def _go(self) -> None:
        self._running = True
        self._halted = None
        self._target.resume()

    def _clear(self) -> None:
        """Take out what the debugger has put in."""
        with contextlib.suppress(TargetError, VMError):
            self._set_breakpoints(set())
            self._set_watches(set())

    def _set_breakpoints(self, addresses: set[int]) -> None:
        if addresses != self._breakpoints:
            self._target.set_breakpoints(addresses)
            self._breakpoints = addresses

    def _set_watches(self, watches: set[Watch]) -> None:
        if watches != self._watches:
            self._target.set_watches(watches)
            self._watches = watches

    def _reverse(self, kind: str) -> str:
        """Reverse step and reverse continue (GDB manual, "Packets", bs and bc)."""
        if not self._target.can_reverse or kind not in ("bs", "bc"):
            return _EMPTY
        return self._arrive(self._target.reverse_step() if kind == "bs" else self._target.reverse_continue())

    def _arrive(self, halt: Halt) -> str:
        """The machine has stopped here; gives what is said of it."""
        self._last, self._current = halt, halt.thread
        return self._stop_reply()

    def _stop_reply(self) -> str:
        halt = self._last
        watch = f"{WATCHED[halt.watch[0]]}:{halt.watch[1]:x};" if halt.watch is not None else ""
        history = f"replaylog:{halt.history};" if halt.history else ""
        return f"T{halt.signal:02x}thread:{halt.thread + 1:x};{watch}{history}"

    # Packets

    def _answer(self, packet: str) -> str | None:
        """The reply to a packet; None if there is none (yet). An empty one means "not supported"."""
        kind, rest, target = packet[:1], packet[1:], self._target
        match kind:
            case "?":
                return self._stop_reply()
            case "g":
                return "".join(self._read_register(n) for n in range(target.general))
            case "G" | "P" | "M" if target.sealed:
                return "E01"
            case "c" | "s" if rest and target.sealed:
                return "E01"
            case "G":
                self._write_registers(bytes.fromhex(rest))
                return _OK
            case "p":
                return self._read_register(_number(rest))
            case "P":
                number, value = rest.split("=")
                self._write_register(_number(number), bytes.fromhex(value))
                return _OK
            case "m":
                address, length = (_number(part) for part in rest.split(","))
                return target.read_memory(self._current, address, min(length, _PACKET_SIZE // 2)).hex()
            case "M":
                where, data = rest.split(":")
                target.write_memory(self._current, _number(where.split(",")[0]), bytes.fromhex(data))
                return _OK
            case "c":
                if rest:
                    target.go_on_at(self._current, _number(rest))
                self._go()
                return None
            case "s":
                if rest:
                    target.go_on_at(self._current, _number(rest))
                return self._arrive(target.step(self._current))
            case "b":
                return self._reverse(packet)
            case "Z" | "z":
                return self._breakpoint(kind == "Z", rest)
            case "H":
                return self._choose(rest[1:])
            case "T":
                return _OK if 1 <= int(rest, 16) <= len(self._target.threads) else "E01"
            case "D":
                return _OK
            case "k":
                target.stop()
                raise _Closed
            case "v":
                return self._resume(packet)
            case "q" | "Q":
                return self._query(packet)
        return _EMPTY

    def _resume(self, packet: str) -> str | None:
        if packet == "vCont?":
            return "vCont;c;C;s;S"
        if not packet.startswith("vCont;"):
            return _EMPTY
        for action in packet[6:].split(";"):
            word, _, thread = action.partition(":")
            if word[:1] in ("s", "S"):
                if thread not in ("", "-1"):
                    self._choose(thread)
                return self._arrive(self._target.step(self._current))
        self._go()
        return None

    def _choose(self, thread: str) -> str:
        number = int(thread, 16)
        if number in (-1, 0):
            return _OK
        if not 1 <= number <= len(self._target.threads):
            return "E01"
        self._current = number - 1
        return _OK

    def _breakpoint(self, insert: bool, rest: str) -> str:
        """Breakpoints and watchpoints (GDB manual, "Packets", Z0 to Z4)."""
        kind, address, length, *_ = rest.split(",")
        if kind in ("0", "1"):
            where = {_number(address)}
            self._set_breakpoints(self._breakpoints | where if insert else self._breakpoints - where)
            return _OK
        if kind not in _WATCHES or not self._target.can_watch:
            return _EMPTY
        watch = {Watch(_WATCHES[kind], _number(address), _number(length))}
        self._set_watches(self._watches | watch if insert else self._watches - watch)
        return _OK

    def _query(self, packet: str) -> str:
        name, _, rest = packet.partition(":")
        match name:
            case "qSupported":
                reverse = "ReverseStep+;ReverseContinue+;" if self._target.can_reverse else ""
                return f"PacketSize={_PACKET_SIZE:x};{reverse}qXfer:features:read+;QStartNoAckMode+;vContSupported+"
            case "QStartNoAckMode":
                self._acknowledge = False
                return _OK
            case "qXfer" if rest.startswith("features:read:target.xml:"):
                offset, length = (_number(part) for part in rest.rsplit(":", 1)[1].split(","))
                text = self._target.description
                return ("m" if offset + length < len(text) else "l") + text[offset : offset + length]
            case "qAttached":
                return "1"
            case "qC":
                return f"QC{self._current + 1:x}"
            case "qfThreadInfo":
                return "m" + ",".join(f"{number + 1:x}" for number in range(len(self._target.threads)))
            case "qsThreadInfo":
                return "l"
        if packet.startswith("qThreadExtraInfo,"):
            number = _number(packet.split(",")[1])
            return self._target.threads[number - 1].encode().hex() if number >= 1 else "E01"
        if packet.startswith("qRcmd,"):
            said = self._target.command(bytes.fromhex(packet[6:]).decode())
            return _EMPTY if said is None else said.encode().hex() or _OK
        return _EMPTY

    # Registers of the current thread

    def _read_register(self, number: int) -> str:
        size = self._target.sizes[number]
        return self._target.read_register(self._current, number).to_bytes(size, "little").hex()

    def _write_register(self, number: int, data: bytes) -> None:
        if len(data) != self._target.sizes[number]:
            raise ValueError(f"register {number} with {len(data)} bytes")
        self._target.write_register(self._current, number, int.from_bytes(data, "little"))

    def _write_registers(self, data: bytes) -> None:
        """All that `g` gives, or as many of them as there are bytes for."""
        for number, size in enumerate(self._target.sizes[: self._target.general]):
            if len(data) < size:
                return
            self._write_register(number, data[:size])
            data = data[size:]
