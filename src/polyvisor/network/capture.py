"""Captures of frames as pcapng files (draft-ietf-opsawg-pcapng), for Wireshark and tcpdump."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import Self

from .frame import Frame, FrameError
from .offload import adapted
from .port import Port
from .switch import Switch, SwitchPort

# Block types and options (sections 4.1, 4.2, 4.3, 3.5).
_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_ENHANCED_PACKET = 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_LINKTYPE_ETHERNET = 1
_SHB_USERAPPL = 4
_IF_NAME = 2
_IF_TSRESOL = 9
_EPB_FLAGS = 2
_INBOUND = 1
_OUTBOUND = 2
_NANOSECONDS = 9


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


_END_OF_OPTIONS = bytes(4)
_PACKET_HEAD = struct.Struct("<7I")


class Capture:
    """A pcapng file of what passes the ports and switches that it is attached to, in the order in which it does.

    The file is well-formed after every frame: a block is written whole or not at all. Checksums that machines left to
    their devices are filled in, and large segments are cut, as they would be on a wire. ``clock`` gives nanoseconds
    since 1970. When the file cannot be written any more, ``error`` says why, and the machines go on.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Callable[[], int] = time.time_ns) -> None:
        """Make the file, or empty it. Raises OSError; a pipe is opened when there is a reader."""
        self.error: OSError | None = None
        self.packets = 0
        """Frames in the file."""
        self._clock = clock
        self._lock = threading.Lock()
        self._interfaces = 0
        self._detachers: list[Callable[[], None]] = []
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        self._size = 0
        options = _option(_SHB_USERAPPL, b"polyvisor") + _END_OF_OPTIONS
        self._write(_block(_SECTION, struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1) + options))
        if self.error is not None:
            os.close(self._file)
            raise self.error

    def attach(self, what: Port | Switch, name: str = "") -> Callable[[], None]:
        """Capture from now on; gives what ends it.

        A port's frames are those its machine sends and gets. A switch's are those it forwards, each once, on an
        interface for each port; what links do to frames on their way to machines comes later.
        """
        detach = self._attach_switch(what) if isinstance(what, Switch) else self._attach_port(what, name)
        with self._lock:
            self._detachers.append(detach)
        return detach

    def _attach_port(self, port: Port, name: str) -> Callable[[], None]:
        interface = self._interface(name or port.name or "net")

        def tap(frame: Frame, outgoing: bool) -> None:
            self._packet(interface, frame, _OUTBOUND if outgoing else _INBOUND)

        port.add_tap(tap)
        return lambda: port.remove_tap(tap)

    def _attach_switch(self, switch: Switch) -> Callable[[], None]:
        interfaces: dict[SwitchPort, int] = {}
        describing = threading.Lock()

        def tap(frame: Frame, source: SwitchPort) -> None:
            interface = interfaces.get(source)
            if interface is None:
                with describing:
                    if source not in interfaces:
                        interfaces[source] = self._interface(source.name)
                    interface = interfaces[source]
            self._packet(interface, frame, _INBOUND)

        switch.add_tap(tap)
        return lambda: switch.remove_tap(tap)

    def _interface(self, name: str) -> int:
        """Describe one more interface; gives its number."""
        options = _option(_IF_NAME, name.encode()) + _option(_IF_TSRESOL, bytes([_NANOSECONDS])) + _END_OF_OPTIONS
        with self._lock:
            self._write(_block(_INTERFACE, struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, 0) + options))
            self._interfaces += 1
            return self._interfaces - 1

    def _packet(self, interface: int, frame: Frame, direction: int) -> None:
        try:
            parts = adapted(frame, 0)
        except FrameError:
            return
        with self._lock:
            now = self._clock()
            for part in parts:
                data = bytes(part)
                tail = bytes(-len(data) % 4) + _option(_EPB_FLAGS, struct.pack("<I", direction)) + _END_OF_OPTIONS
                length = _PACKET_HEAD.size + len(data) + len(tail) + 4
                head = _PACKET_HEAD.pack(
                    _ENHANCED_PACKET, length, interface, now >> 32, now & 0xFFFFFFFF, len(data), len(data)
                )
                if self._write(b"".join((head, data, tail, struct.pack("<I", length)))):
                    self.packets += 1

    def _write(self, block: bytes) -> bool:
        """Append a block. When there is no room for all of it, take back what was written, and give up."""
        if self.error is not None or self._file < 0:
            return False
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self.error = error
            with contextlib.suppress(OSError):  # a pipe has no length
                os.ftruncate(self._file, self._size)
            return False
        self._size += len(block)
        return True

    def close(self) -> None:
        """Capture no more, and close the file. May be repeated."""
        with self._lock:
            detachers, self._detachers = self._detachers, []
        for detach in detachers:
            detach()
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
