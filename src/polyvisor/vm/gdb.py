"""A server for GDB's remote serial protocol (GDB manual, appendix E), on loopback.

All-stop: when one hart stops, all do. Harts are threads, numbered from 1.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, runtime_checkable

from polyvisor.adl import Trap
from polyvisor.boards.virt import Virt
from polyvisor.engine.hart import Hart
from polyvisor.engine.memory import BusError
from polyvisor.isa.riscv.debug import REGISTERS, TARGET_XML

from .errors import VMError
from .inspect import physical_pieces

_SIGINT, _SIGTRAP = 2, 5
_INTERRUPT = b"\x03"
_PACKET_SIZE = 0x4000
_OK, _EMPTY = "OK", ""


class _Closed(Exception):  # noqa: N818  (not an error: the debugger went away)
    pass


def _wait(*descriptors: int) -> set[int]:
    """Wait until some of these can be read (poll, as select knows small descriptors only)."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poller.poll()}


class Target(Protocol):
    """The machine that is debugged: a :class:`~polyvisor.vm.machine.Machine`, or a replay."""

    can_reverse: bool
    sealed: bool
    """Whether registers and memory may not be changed."""
    history: str
    """What is to be added to the reply when it has stopped, of the ends of a recording."""
    on_break: Callable[[Hart], None] | None

    @property
    def board(self) -> Virt:
        """Its harts and memory."""

    def pause(self) -> None:
        """Make all harts stand still."""

    def resume(self) -> None:
        """Let them run."""

    def stop(self) -> None:
        """End it."""

    def step(self, hart: Hart) -> Hart:
        """Execute an instruction, if possible of ``hart``; gives the hart that did."""

    def set_breakpoints(self, addresses: Iterable[int]) -> None:
        """Where harts stop; while all stand still. Raises ValueError."""


@runtime_checkable
class ReversibleTarget(Protocol):
    """One that can go back; each gives the hart it is at."""

    def reverse_step(self) -> Hart:
        """One instruction back."""

    def reverse_continue(self) -> Hart:
        """Back to a breakpoint, or to the beginning."""


class GdbServer:
    """Serves one debugger at a time. The machine stands still while a debugger has stopped it.

    ``port`` 0 takes a free one; :attr:`port` says which. ``once``: when the debugger goes away, that is all, and the
    machine does not run on. Raises OSError where the port is taken.
    """

    def __init__(self, machine: Target, port: int = 1234, once: bool = False) -> None:
        self._machine = machine
        self._once = once
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        self._wake_read, self._wake_write = os.pipe()
        self._waking = threading.Lock()
        self._closing = False
        self._stopped_hart: Hart | None = None
        self._breakpoints: set[int] = set()
        self._running = True
        self._current = 0
        self._buffer = b""
        self._connection: socket.socket | None = None
        self._acknowledge = True
        self._thread = threading.Thread(target=self._serve, name="gdb", daemon=True)

    @property
    def _harts(self) -> Sequence[Hart]:
        return self._machine.board.harts

    def wait(self) -> None:
        """Wait until there is nobody left to serve."""
        while self._thread.is_alive():
            self._thread.join(0.2)  # lets signals through

    def start(self) -> None:
        """Begin to serve."""
        self._machine.on_break = self._on_break
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

    def _on_break(self, hart: Hart) -> None:
        """A hart reached a breakpoint, in its thread."""
        self._stopped_hart = hart
        with self._waking:
            if self._wake_write >= 0:
                os.write(self._wake_write, b"x")

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
            self._halt()
            with contextlib.suppress(_Closed, OSError):
                self._converse()
            connection.close()
            self._connection = None
            self._set_breakpoints(set())
            if self._once:
                return
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
            except (BusError, Trap, VMError):
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
                    self._send(self._stop_reply(_SIGINT, self._harts[self._current]))
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
        hart, self._stopped_hart = self._stopped_hart, None
        if hart is not None and self._running:
            self._halt()
            self._current = hart.hart_id
            self._send(self._stop_reply(_SIGTRAP, hart))

    def _send(self, text: str) -> None:
        body = text.encode("latin-1")
        self._write(b"$" + body + b"#%02x" % (sum(body) & 0xFF))

    def _write(self, data: bytes) -> None:
        assert self._connection is not None
        self._connection.sendall(data)

    # The machine

    def _halt(self) -> None:
        if self._running:
            self._machine.pause()
            self._running = False

    def _go(self) -> None:
        self._running = True
        self._stopped_hart = None
        self._machine.resume()

    def _set_breakpoints(self, addresses: set[int]) -> None:
        if addresses != self._breakpoints:
            self._machine.set_breakpoints(addresses)
            self._breakpoints = addresses

    def _stop_reply(self, signal: int, hart: Hart) -> str:
        return f"T{signal:02x}thread:{hart.hart_id + 1:x};{self._machine.history}"

    def _step(self) -> str:
        return self._arrive(self._machine.step(self._harts[self._current]))

    def _reverse(self, kind: str) -> str:
        """Reverse step and reverse continue (GDB manual, "Packets", bs and bc)."""
        if not isinstance(self._machine, ReversibleTarget):
            return _EMPTY
        if kind == "bs":
            return self._arrive(self._machine.reverse_step())
        return self._arrive(self._machine.reverse_continue())

    def _arrive(self, hart: Hart) -> str:
        self._current = hart.hart_id
        return self._stop_reply(_SIGTRAP, hart)

    # Packets

    def _answer(self, packet: str) -> str | None:
        """The reply to a packet; None if there is none (yet). An empty one means "not supported"."""
        kind, rest = packet[0], packet[1:]
        match kind:
            case "?":
                return self._stop_reply(_SIGTRAP, self._harts[self._current])
            case "g":
                return "".join(self._read_register(n) for n in range(33))
            case "G" | "P" | "M" if self._machine.sealed:
                return "E01"
            case "c" | "s" if rest and self._machine.sealed:
                return "E01"
            case "G":
                for n in range(min(33, len(rest) // 16)):
                    self._write_register(n, rest[16 * n : 16 * n + 16])
                return _OK
            case "p":
                return self._read_register(int(rest, 16))
            case "P":
                number, value = rest.split("=")
                self._write_register(int(number, 16), value)
                return _OK
            case "m":
                address, length = (int(part, 16) for part in rest.split(","))
                return self._read_memory(address, min(length, _PACKET_SIZE // 2)).hex()
            case "M":
                where, data = rest.split(":")
                self._write_memory(int(where.split(",")[0], 16), bytes.fromhex(data))
                return _OK
            case "c":
                if rest:
                    self._harts[self._current].state.pc = int(rest, 16)
                self._go()
                return None
            case "s":
                if rest:
                    self._harts[self._current].state.pc = int(rest, 16)
                return self._step()
            case "b":
                return self._reverse(packet)
            case "Z" | "z":
                return self._breakpoint(kind == "Z", rest)
            case "H":
                return self._choose(rest[1:])
            case "T":
                return _OK if 1 <= int(rest, 16) <= len(self._harts) else "E01"
            case "D":
                return _OK
            case "k":
                self._machine.stop()
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
                return self._step()
        self._go()
        return None

    def _choose(self, thread: str) -> str:
        number = int(thread, 16)
        if number in (-1, 0):
            return _OK
        if not 1 <= number <= len(self._harts):
            return "E01"
        self._current = number - 1
        return _OK

    def _breakpoint(self, insert: bool, rest: str) -> str:
        kind, address, *_ = rest.split(",")
        if kind not in ("0", "1"):
            return _EMPTY
        where = {int(address, 16)}
        self._set_breakpoints(self._breakpoints | where if insert else self._breakpoints - where)
        return _OK

    def _query(self, packet: str) -> str:
        name, _, rest = packet.partition(":")
        match name:
            case "qSupported":
                reverse = "ReverseStep+;ReverseContinue+;" if self._machine.can_reverse else ""
                return f"PacketSize={_PACKET_SIZE:x};{reverse}qXfer:features:read+;QStartNoAckMode+;vContSupported+"
            case "QStartNoAckMode":
                self._acknowledge = False
                return _OK
            case "qXfer" if rest.startswith("features:read:target.xml:"):
                offset, length = (int(part, 16) for part in rest.rsplit(":", 1)[1].split(","))
                part = TARGET_XML[offset : offset + length]
                return ("m" if offset + length < len(TARGET_XML) else "l") + part
            case "qAttached":
                return "1"
            case "qC":
                return f"QC{self._current + 1:x}"
            case "qfThreadInfo":
                return "m" + ",".join(f"{h.hart_id + 1:x}" for h in self._harts)
            case "qsThreadInfo":
                return "l"
        if packet.startswith("qThreadExtraInfo,"):
            hart = self._harts[int(packet.split(",")[1], 16) - 1]
            return f"hart {hart.hart_id}, {'started' if hart.started else 'stopped'}".encode().hex()
        return _EMPTY

    # Registers and memory of the current hart

    def _read_register(self, number: int) -> str:
        state = self._harts[self._current].state
        _, member, index = REGISTERS[number]
        value = int(getattr(state, member)) if index is None else int(getattr(state, member)[index])
        return value.to_bytes(8, "little").hex()

    def _write_register(self, number: int, digits: str) -> None:
        state = self._harts[self._current].state
        value = int.from_bytes(bytes.fromhex(digits), "little")
        _, member, index = REGISTERS[number]
        if index is None:
            setattr(state, member, value)
        else:
            getattr(state, member)[index] = value

    def _pieces(self, address: int, length: int) -> list[tuple[int, int]]:
        return list(physical_pieces(self._harts[self._current], address, length))

    def _read_memory(self, address: int, length: int) -> bytes:
        memory = self._machine.board.memory
        return b"".join(memory.read(*piece) for piece in self._pieces(address, length))

    def _write_memory(self, address: int, data: bytes) -> None:
        for physical, length in self._pieces(address, len(data)):
            self._machine.board.memory.write(physical, data[:length])
            data = data[length:]
