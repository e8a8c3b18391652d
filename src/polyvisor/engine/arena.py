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
        self.used = 0
        self._shared = False
        self._older: list[tuple[int, int]] = []
        self._map()

    def _map(self) -> None:
        size = self.size
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

    def holds(self, address: int) -> bool:
        """Whether code at an address is of this arena, or one it was forked from."""
        return self.address <= address < self.address + self.size or any(
            first <= address < first + size for first, size in self._older
        )

    def share(self) -> None:
        """Copies of this process (``os.fork``) are to execute the code that is here now, too: it stays as it is."""
        self._shared = True

    def fork(self) -> None:
        """In a copy of the process: leave the code as it is, and put new code into memory of this process alone."""
        self._older.append((self.address, self.size))
        self._writable.close()
        self.address = self.used = 0
        self._shared = False

    def add(self, unit: Unit, symbols: Mapping[str, int]) -> int:
        """Link a unit; gives its address. Raises ArenaFullError, and KeyError for a symbol that is not there."""
        if not self.address:
            self._map()
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
        if self._shared:
            # Others are.
            self._shared = False
            self._libc.munmap(ctypes.c_void_p(self.address), ctypes.c_size_t(self.size))
            self._writable.close()
            self._map()

    def close(self) -> None:
        """Give the memory back. Nobody may be executing any of it."""
        if self.address:
            self._libc.munmap(self.address, self.size)
            self.address = 0
            self._writable.close()
