"""The host-target interface of bare-metal test programs: two words in memory, ``tohost`` and ``fromhost``.

What a program stores in ``tohost`` is a device (bits 63:56), a command (55:48) and a payload (RISC-V test
environment and Spike's HTIF).  Device 0 is the system-call proxy: an odd payload ends the program, an even one is
the address of eight words with a call and its arguments; device 1 is a console.
"""

from __future__ import annotations

from collections.abc import Callable

from polyvisor.engine.memory import BusError, Memory

_PAYLOAD = (1 << 48) - 1
_SYS_WRITE = 64
_SYS_EXIT = 93
_ENOSYS = (1 << 64) - 38
_LONGEST_WRITE = 1 << 20


class Htif:
    """Serves one program; :meth:`poll` looks whether it wants something."""

    def __init__(self, memory: Memory, tohost: int, fromhost: int | None, output: Callable[[bytes], None]) -> None:
        self.memory = memory
        self.tohost = tohost
        self.fromhost = fromhost
        self._output = output

    def poll(self) -> int | None:
        """Do what ``tohost`` asks, if anything; gives the exit status once the program has ended."""
        try:
            value = int.from_bytes(self.memory.read(self.tohost, 8), "little")
            if value == 0:
                return None
            device, command, payload = value >> 56, value >> 48 & 0xFF, value & _PAYLOAD
            if device == 0 and payload & 1:
                return payload >> 1
            reply = 1
            if device == 0:
                status = self._call(payload)
                if status is not None:
                    return status
            elif device == 1 and command == 1:
                self._output(bytes([payload & 0xFF]))
                reply = value & ~_PAYLOAD
            self.memory.write(self.tohost, bytes(8))
            if self.fromhost is not None and not (device == 1 and command == 0):
                self.memory.write(self.fromhost, reply.to_bytes(8, "little"))
        except BusError:
            # The program's own mistake; a word it cannot have written is no request.
            self.memory.write(self.tohost, bytes(8))
        return None

    def _call(self, address: int) -> int | None:
        """Serve the system call in memory at ``address``: write and exit; others are not implemented."""
        words = self.memory.read(address, 64)
        number, a0, a1, a2 = (int.from_bytes(words[i : i + 8], "little") for i in range(0, 32, 8))
        if number == _SYS_EXIT:
            return a0 & 0xFF
        result = _ENOSYS
        if number == _SYS_WRITE and a0 in (1, 2) and a2 <= _LONGEST_WRITE:
            self._output(self.memory.read(a1, a2))
            result = a2
        self.memory.write(address, result.to_bytes(8, "little"))
        return None
