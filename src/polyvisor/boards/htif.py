"""The host-target interface: how bare-metal RISC-V test programs print and exit.

A program stores a 64-bit command in ``tohost``: device in bits 63..56, command in bits 55..48, payload below.
The host clears ``tohost`` when it has taken the command and answers in ``fromhost``.
Device 0 is the system call proxy, device 1 the console.
"""

from __future__ import annotations

import errno
import struct
import threading
from collections.abc import Callable

from polyvisor.engine.memory import BusError, Memory

_PAYLOAD = (1 << 48) - 1
_CONSOLE = 1
_PUTCHAR = 1
_WRITE = 64
_EXIT = 93
_MAGIC = struct.Struct("<8Q")


class Htif:
    """Serves one program. ``tohost`` and ``fromhost`` are guest physical addresses of its two 64-bit words.

    ``output`` receives what the program prints. Nothing the program writes makes :meth:`poll` raise.
    """

    def __init__(self, memory: Memory, tohost: int, fromhost: int | None, output: Callable[[bytes], None]) -> None:
        self._memory = memory
        self.tohost = tohost
        self.fromhost = fromhost
        self._output = output
        self.lock = threading.Lock()
        """Held while a command is served."""

    def poll(self) -> int | None:
        """Serve what ``tohost`` asks for. Returns the program's exit code once it has ended, None until then.

        The command that ended the program is left in ``tohost``: polling again gives the same answer.
        """
        with self.lock:
            return self._serve()

    def _serve(self) -> int | None:
        value = self._load(self.tohost)
        if not value:
            return None
        device, command, payload = value >> 56, value >> 48 & 0xFF, value & _PAYLOAD
        if device == 0 and command == 0:
            if payload & 1:
                return payload >> 1
            return self._system_call(payload)
        if device == _CONSOLE and command == _PUTCHAR:
            self._output(bytes([payload & 0xFF]))
            self._answer(value & ~_PAYLOAD)
        else:
            self._store(self.tohost, 0)
        return None

    def _system_call(self, block: int) -> int | None:
        """A system call of the Linux ABI: number, six arguments; the result replaces the number."""
        try:
            number, *arguments = _MAGIC.unpack(self._memory.read(block, _MAGIC.size))
        except BusError:
            self._store(self.tohost, 0)
            return None
        if number == _EXIT:
            return int(arguments[0]) & 0xFF
        result = self._write(*arguments[:3]) if number == _WRITE else -errno.ENOSYS
        self._store(block, result)
        self._answer(1)
        return None

    def _write(self, descriptor: int, address: int, length: int) -> int:
        if descriptor not in (1, 2):
            return -errno.EBADF
        try:
            data = self._memory.read(address, length)
        except BusError:
            return -errno.EFAULT
        if data:
            self._output(data)
        return length

    def _answer(self, value: int) -> None:
        """Take the command first: a program may wait for either word."""
        self._store(self.tohost, 0)
        if self.fromhost is not None:
            self._store(self.fromhost, value)

    def _load(self, address: int) -> int:
        try:
            return int.from_bytes(self._memory.read(address, 8), "little")
        except BusError:
            return 0

    def _store(self, address: int, value: int) -> None:
        try:
            self._memory.write(address, (value & (1 << 64) - 1).to_bytes(8, "little"))
        except BusError:
            return
