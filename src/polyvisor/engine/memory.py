"""Guest physical memory: RAM in memfds, devices beside it on one bus.

RAM is a memfd mapped shared, so its pages are taken from the host only as they are touched. Or it begins with bytes of
files, which are mapped privately: they are read as they are touched, and what is written stays here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import threading
import weakref
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

from polyvisor.dataclass import dataclass, field

PAGE_SIZE = 4096
_ZEROES_SIZE = 1 << 20
# A file of so many bytes is worth copying in two parts at once.
_WORTH_TWO = 4 << 20
# Where private RAM begins with bytes of a file, less than this is not worth a mapping of its own to be given back.
_LEAST_REMAPPED = 64 << 10
_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000


class BusError(Exception):
    """No memory or device answers at a guest physical address."""

    def __init__(self, address: int, size: int) -> None:
        super().__init__(f"no memory or device at {address:#x} ({size} bytes)")
        self.address = address
        self.size = size


class Device(Protocol):
    """What the bus asks of a memory-mapped device.

    ``offset`` is in bytes from the start of the device's window; ``size`` is 1, 2, 4 or 8; values are unsigned.
    A device answers an access it does not support by raising :class:`BusError` (the guest gets its bus fault).
    """

    def read(self, offset: int, size: int) -> int: ...

    def write(self, offset: int, size: int, value: int) -> None: ...


class Window(NamedTuple):
    """A device's range of guest physical addresses."""

    base: int
    size: int
    device: Device


@dataclass(frozen=True)
class Extent:
    """``length`` bytes at ``offset`` of RAM that begin as those at ``file_offset`` of the open file ``fd``.

    All are multiples of 4096.
    """

    offset: int
    length: int
    fd: int
    file_offset: int
    data: tuple[tuple[int, int], ...] | None = None
    """Where in RAM anything else than zeroes can be, as offsets and lengths; None: anywhere in it."""


@dataclass(frozen=True)
class Ram:
    """A range of guest physical memory; ``host`` is the address of its first byte in this process."""

    base: int
    size: int
    fd: int
    """The memfd that has its bytes; -1 where they are private to this process."""
    buffer: mmap.mmap
    host: int
    extents: tuple[Extent, ...] = ()
    """What private RAM began with; the files may be closed by now."""

    @property
    def end(self) -> int:
        """The address behind its last byte."""
        return self.base + self.size

    @cached_property
    def began(self) -> list[tuple[int, int]]:
        """Where private RAM began with anything but zeroes: start and end of each piece, in order and apart."""
        pieces = [run for each in self.extents for run in each.data or ((each.offset, each.length),)]
        found: list[tuple[int, int]] = []
        for start, length in sorted(pieces):
            if found and start <= found[-1][1]:
                found[-1] = (found[-1][0], max(found[-1][1], start + length))
            else:
                found.append((start, start + length))
        return found

    @cached_property
    def view(self) -> memoryview:
        """All of it, writable."""
        return memoryview(self.buffer)

    def copy_in(self, offset: int, fd: int, start: int, length: int) -> None:
        """Copy bytes of a file to ``offset`` in it. Raises OSError, and EOFError if the file ends before."""
        done = 0
        with contextlib.suppress(OSError):
            # By way of the memfd, without a fault for each page; opened again for a position of its own. What the
            # host cannot do, or not from this file, is done below, or fails there again.
            own = os.open(f"/proc/self/fd/{self.fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.lseek(own, offset, os.SEEK_SET)
                while done < length and (count := os.sendfile(own, fd, start + done, length - done)):
                    done += count
            finally:
                os.close(own)
        while done < length:
            count = os.preadv(fd, [self.view[offset + done : offset + length]], start + done)
            if not count:
                raise EOFError("the file was cut off while it was loaded")
            done += count


@dataclass
class Memory:
    """The guest physical address space.

    ``on_write`` is called as ``on_write(address, length)`` *after* bytes were written from outside the CPUs
    (a device's DMA, a loader), so that the engine can drop code decoded from them and note dirty pages; ``on_writes``,
    if there is one, is called with the arguments of :meth:`wrote_all` instead.
    """

    ram: list[Ram] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    on_write: Callable[[int, int], None] | None = None
    on_writes: Callable[[Sequence[tuple[int, int]], bytes], None] | None = None
    _closers: list[Callable[[], object]] = field(default_factory=list, repr=False)

    def add_ram(self, base: int, size: int, name: str = "ram", contents: Sequence[Extent] | None = None) -> Ram:
        """Map ``size`` bytes of RAM at ``base``; both are multiples of 4096.

        It begins with zeroes; with ``contents`` also with bytes of files, which can be closed then, and must not change
        while the RAM is used. Raises ValueError for extents outside the RAM or their files, OSError.
        """
        if base % PAGE_SIZE or size % PAGE_SIZE or size <= 0:
            raise ValueError(f"RAM of {size:#x} bytes at {base:#x}: base and size must be multiples of {PAGE_SIZE}")
        self._check_free(base, size)
        ram = self._shared(base, size, name) if contents is None else _private(base, size, tuple(contents))
        self.ram.append(ram)
        self.ram.sort(key=lambda r: r.base)
        return ram

    def _shared(self, base: int, size: int, name: str) -> Ram:
        fd = os.memfd_create(f"polyvisor-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._closers.append(weakref.finalize(self, os.close, fd))
        os.ftruncate(fd, size)
        # Who is given the memory must not be able to take it away from under us.
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        buffer = mmap.mmap(fd, size, mmap.MAP_SHARED)
        return Ram(base, size, fd, buffer, ctypes.addressof(ctypes.c_char.from_buffer(buffer)))

    def add_device(self, base: int, size: int, device: Device) -> Window:
        """Let ``device`` answer at ``base`` ... ``base + size - 1``."""
        self._check_free(base, size)
        window = Window(base, size, device)
        self.windows.append(window)
        self.windows.sort(key=lambda w: w.base)
        return window

    def _check_free(self, base: int, size: int) -> None:
        taken = [(r.base, r.size) for r in self.ram] + [(w.base, w.size) for w in self.windows]
        for start, length in taken:
            if base < start + length and start < base + size:
                raise ValueError(f"{base:#x}..{base + size - 1:#x} overlaps {start:#x} of {length:#x} bytes")

    def _find(self, address: int, length: int) -> tuple[Ram, int]:
        for ram in self.ram:
            if ram.base <= address and address + length <= ram.end:
                return ram, address - ram.base
        raise BusError(address, length)

    def is_ram(self, address: int, length: int = 1) -> bool:
        """Whether all ``length`` bytes at ``address`` are RAM of one range."""
        return any(ram.base <= address and address + length <= ram.end for ram in self.ram)

    def view(self, address: int, length: int) -> memoryview:
        """A writable view of RAM. Who writes through it calls :meth:`wrote` afterwards. Raises BusError."""
        ram, offset = self._find(address, length)
        return ram.view[offset : offset + length]

    def views(self, segments: Sequence[tuple[int, int]]) -> list[memoryview]:
        """A :meth:`view` of each (address, length). Raises BusError."""
        if not segments:
            return []
        ram, _ = self._find(*segments[0])
        whole, base, end = ram.view, ram.base, ram.end
        return [
            whole[address - base : address - base + length]
            if base <= address and address + length <= end
            else self.view(address, length)
            for address, length in segments
        ]

    def read(self, address: int, length: int) -> bytes:
        """Bytes of RAM, as a device's DMA sees them. Raises BusError outside RAM."""
        ram, offset = self._find(address, length)
        return ram.buffer[offset : offset + length]

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes of RAM, as a device's DMA or a loader does. Raises BusError outside RAM."""
        ram, offset = self._find(address, len(data))
        ram.buffer[offset : offset + len(data)] = data
        self.wrote(address, len(data))

    def write_file(self, address: int, fd: int, length: int) -> None:
        """Write the first ``length`` bytes of an open file, which the host copies by itself, a large one in two parts.

        Raises BusError outside RAM, OSError, and EOFError if the file has less.
        """
        ram, offset = self._find(address, length)
        if length < _WORTH_TWO:
            ram.copy_in(offset, fd, 0, length)
        else:
            half = length // 2 & -PAGE_SIZE
            failures: list[BaseException] = []

            def copy_rest() -> None:
                try:
                    ram.copy_in(offset + half, fd, half, length - half)
                except BaseException as error:
                    failures.append(error)

            other = threading.Thread(target=copy_rest, name="copy")
            other.start()
            try:
                ram.copy_in(offset, fd, 0, half)
            finally:
                other.join()
            if failures:
                raise failures[0]
        self.wrote(address, length)

    def wrote(self, address: int, length: int) -> None:
        """Tell the engine that ``length`` bytes at ``address`` were changed through a :meth:`view`."""
        if self.on_write is not None and length:
            self.on_write(address, length)

    def wrote_all(self, segments: Sequence[tuple[int, int]], pairs: bytes = b"") -> None:
        """As :meth:`wrote`, of several (address, length); ``pairs``: the same as 64-bit integers, if at hand."""
        if self.on_writes is not None:
            self.on_writes(segments, pairs)
        else:
            for address, length in segments:
                self.wrote(address, length)

    def discard(self, address: int, length: int) -> None:
        """Give whole pages of RAM back to the host; they read as zeroes until they are written again.

        ``address`` and ``length`` are multiples of 4096 (else ValueError). Raises BusError outside RAM.
        """
        if address % PAGE_SIZE or length % PAGE_SIZE or length < 0:
            raise ValueError(f"{length:#x} bytes at {address:#x}: not whole pages of {PAGE_SIZE} bytes")
        ram, offset = self._find(address, length)
        if not length:
            return
        try:
            if ram.fd < 0:
                _discard_private(ram, offset, length)
            else:
                # A hole in the memfd: the harts' TLBs stay right, because the mapping itself does not change.
                ram.buffer.madvise(mmap.MADV_REMOVE, offset, length)
        except OSError:  # the host's kernel cannot; the guest must see zeroes all the same
            for start in range(offset, offset + length, _ZEROES_SIZE):
                end = min(start + _ZEROES_SIZE, offset + length)
                ram.buffer[start:end] = bytes(end - start)
        # Zeroes are a change: pages become dirty, and code decoded from them is dropped.
        self.wrote(address, length)

    def device_at(self, address: int, size: int) -> tuple[Device, int]:
        """The device that answers at ``address`` and the offset in its window. Raises BusError."""
        index = bisect_right(self.windows, address, key=lambda w: w.base) - 1
        if index >= 0:
            window = self.windows[index]
            if address + size <= window.base + window.size:
                return window.device, address - window.base
        raise BusError(address, size)

    def make_private(self) -> None:
        """Make RAM private to this process, which other processes of it are copies of from now on (``os.fork``).

        Addresses and contents stay; nothing is copied. While nobody writes. Raises OSError.
        """
        for index, ram in enumerate(self.ram):
            if ram.fd >= 0:
                _map_over(ram.host, ram.size, 0, ram.fd, 0)
                whole = Extent(0, ram.size, -1, 0)
                self.ram[index] = Ram(ram.base, ram.size, -1, ram.buffer, ram.host, (whole,))
        while self._closers:
            self._closers.pop()()

    def close(self) -> None:
        """Give the RAM back to the host; the object must not be used afterwards."""
        for ram in self.ram:
            # The mapping itself goes with the last view of it, which may be later.
            with contextlib.suppress(OSError):
                ram.buffer.madvise(mmap.MADV_REMOVE if ram.fd >= 0 else mmap.MADV_DONTNEED)
        for closer in self._closers:
            closer()
        self.ram.clear()
        self.windows.clear()


# Private RAM


def _private(base: int, size: int, contents: tuple[Extent, ...]) -> Ram:
    for extent in contents:
        if any(value % PAGE_SIZE for value in (extent.offset, extent.length, extent.file_offset)):
            raise ValueError(f"{extent}: not whole pages of {PAGE_SIZE} bytes")
        if extent.length <= 0 or extent.offset < 0 or extent.offset + extent.length > size:
            raise ValueError(f"{extent}: outside of RAM of {size:#x} bytes")
        # Behind a file's end there would be no bytes but a signal.
        if extent.file_offset < 0 or extent.file_offset + extent.length > os.fstat(extent.fd).st_size:
            raise ValueError(f"{extent}: outside of the file")
    buffer = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    host = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    for extent in contents:
        _map_over(host + extent.offset, extent.length, 0, extent.fd, extent.file_offset)
    return Ram(base, size, -1, buffer, host, contents)


def _map_over(address: int, length: int, flags: int, fd: int, offset: int) -> None:
    """Put a private mapping in the place of what is mapped there: nobody sees anything else. Raises OSError."""
    place = ctypes.CDLL(None, use_errno=True).mmap
    place.restype = ctypes.c_void_p
    found = place(
        *(ctypes.c_void_p(address), ctypes.c_size_t(length), mmap.PROT_READ | mmap.PROT_WRITE),
        *(mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE | flags, fd, ctypes.c_long(offset)),
    )
    if found != address:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _discard_private(ram: Ram, offset: int, length: int) -> None:
    """Let pages read as zeroes. Raises OSError if that cannot be done without writing."""
    after = bisect_right(ram.began, offset, key=lambda piece: piece[1])
    if after == len(ram.began) or ram.began[after][0] >= offset + length:
        ram.buffer.madvise(mmap.MADV_DONTNEED, offset, length)
    elif length >= _LEAST_REMAPPED:
        # Of a private mapping of a file, that would bring the file's bytes back.
        _map_over(ram.host + offset, length, mmap.MAP_ANONYMOUS, -1, 0)
    else:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
