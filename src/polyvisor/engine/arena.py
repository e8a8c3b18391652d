"""Memory for linked code: written through one mapping and executed through another, so no page is ever both."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping

from .objects import ALIGN, Unit


class ArenaFullError(Exception):
    """There is no room left."""


class CodeArena:
    """``size`` bytes of room for code; what is not used takes no memory."""

    def __init__(self, size: int = 256 << 20) -> None:
        self.size = size
        descriptor = os.memfd_create("polyvisor-code", os.MFD_CLOEXEC)
        try:
            os.ftruncate(descriptor, size)
            self._writable = mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [
                ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
            ]
            libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
            address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_EXEC, mmap.MAP_SHARED, descriptor, 0)
            if address in (None, ctypes.c_void_p(-1).value):
                raise OSError(ctypes.get_errno(), "the host allows no memory for compiled code")
        finally:
            os.close(descriptor)
        self._libc = libc
        self.address: int = address
        self.used = 0

    def add(self, unit: Unit, symbols: Mapping[str, int]) -> int:
        """Link a unit; gives its address. Raises ArenaFullError, and KeyError for a symbol that is not there."""
        start = -(-self.used // ALIGN) * ALIGN
        if start + len(unit.code) > self.size:
            raise ArenaFullError
        self._put(start, unit.link(self.address + start, symbols))
        return self.address + start

    def add_code(self, code: bytes) -> int:
        """The address of machine code that runs wherever it is. Raises ArenaFullError."""
        return self.add(Unit(code, {}, (), ()), {})

    def _put(self, start: int, code: bytes | bytearray) -> None:
        self._writable[start : start + len(code)] = code
        self.used = start + len(code)
        self._synchronise(self.address + start, len(code))

    def _synchronise(self, address: int, length: int) -> None:
        """Make new code visible to instruction fetches; x86-64 does so by itself."""
        if os.uname().machine in ("aarch64", "arm64"):
            clear = getattr(ctypes.CDLL("libgcc_s.so.1"), "__clear_cache", None)
            if clear is not None:
                clear(ctypes.c_void_p(address), ctypes.c_void_p(address + length))

    def clear(self) -> None:
        """Forget all code. Nobody may be executing any."""
        self.used = 0

    def close(self) -> None:
        """Give the memory back. Nobody may be executing any of it."""
        if self.address:
            self._libc.munmap(self.address, self.size)
            self.address = 0
            self._writable.close()
