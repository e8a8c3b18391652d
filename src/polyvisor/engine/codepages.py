"""Decoded pages: for each page of RAM that code runs on, an array of records, shared by all CPUs of a machine.

Records live in slots of one arena.  Slots are aligned to their size, so a record's page is found from its
address; only the part of a slot that is used takes memory.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import struct
import threading
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, Protocol

from . import layout as at
from .hugepages import aligned_memory, use_small_pages
from .layout import Layout
from .memory import Memory, Ram
from .native import NativeCode

BEGINNING = 1
"""The mark before anything was written."""
# Runs of pages whose flags have PAGE_DIRTY, with or without the others.
_DIRTY_RUN = re.compile(b"[%s]+" % b"".join(b"\\x%02x" % flags for flags in range(8) if flags & at.PAGE_DIRTY))


class Executor(Protocol):
    """What the pages need of a CPU that runs from them."""

    def drop_writes(self) -> None:
        """Make the CPU forget its permissions to write; returns when it has, or cannot use them before it does."""

    def drop_code(self) -> None:
        """Make the CPU forget all translations, likewise."""


class CodePages:
    """The decoded pages of one machine. ``limit`` is how many pages may be decoded at a time."""

    def __init__(self, code: NativeCode, memory: Memory, limit: int = 3072) -> None:
        self.code = code
        self.layout: Layout = code.layout
        self.memory = memory
        self.limit = limit
        self.lock = threading.Lock()
        self.executors: list[Executor] = []
        # Told that all records decode again; with True, that the pages' headers are forgotten too.
        self.on_discard: Callable[[bool], None] | None = None
        self.on_activate: Callable[[], None] | None = None  # told of every newly decoded page
        self.activations = 0
        self.discards = 0
        size = self.layout.slot_size
        self._arena, offset = aligned_memory(limit * size)
        self._first = ctypes.addressof(ctypes.c_char.from_buffer(self._arena)) + offset
        self._used = 0
        self._prepared = 0  # slots, from the first, whose records are made
        self._active: list[tuple[int, int]] = []  # where each used slot's address is kept, and its page's flags
        self._template = self._records(code.decode)
        self._keep: list[Any] = []
        # For each RAM the flags of its pages, and at which mark a page was last found written.
        self._flags: list[mmap.mmap] = []
        self._written: list[array[int]] = []
        self._mark = BEGINNING
        self.descriptors = (ctypes.c_uint64 * (5 * len(memory.ram)))()
        self._descriptors_at = ctypes.addressof(self.descriptors)
        for i, ram in enumerate(memory.ram):
            self._describe(i, ram)

    def revive(self) -> None:
        """In a copy of the process (``os.fork``): take memory sparingly, as there may be many."""
        use_small_pages(self._arena)

    def _records(self, handler: int) -> bytes:
        """A slot's records that all have ``handler``, but for those behind the page's end, which are `cross`."""
        layout = self.layout
        blank = bytes(layout.record_size - 8)
        inside = (struct.pack("=Q", handler) + blank) * layout.records
        return inside + (struct.pack("=Q", self.code.cross) + blank) * layout.extra_records

    def private_slot(self, handler: int) -> tuple[Any, int]:
        """Records of a CPU's own, all with ``handler``: the object that keeps them, and their address."""
        size = self.layout.slot_size
        keep = mmap.mmap(-1, 2 * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        start = ctypes.addressof(ctypes.c_char.from_buffer(keep))
        slot = -(-start // size) * size
        blank = bytes(self.layout.record_size - 8)
        data = (struct.pack("=Q", handler) + blank) * (self.layout.records + self.layout.extra_records)
        ctypes.memmove(slot, data, len(data))
        return keep, slot

    def _describe(self, index: int, ram: Ram) -> None:
        pages = ram.size // self.layout.page_size
        slots = mmap.mmap(-1, max(8 * pages, 4096), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        flags = mmap.mmap(-1, max(pages, 4096), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        addresses = [ctypes.addressof(ctypes.c_char.from_buffer(m)) for m in (slots, flags)]
        self._keep += [slots, flags]
        self._flags.append(flags)
        self._written.append(array("I", bytes(4 * pages)))
        self.descriptors[5 * index : 5 * index + 5] = [ram.base, ram.size, ram.host, *addresses]

    def _page(self, physical: int) -> tuple[int, int, int]:
        """Host addresses of a physical page's bytes, its place for a slot, and its flags."""
        for i in range(0, len(self.descriptors), 5):
            base, size, host, slots, flags = self.descriptors[i : i + 5]
            if base <= physical < base + size:
                number = (physical - base) // self.layout.page_size
                return host + number * self.layout.page_size, slots + 8 * number, flags + number
        raise ValueError(f"{physical:#x} is not RAM")

    def activate(self, physical: int) -> None:
        """Let code be decoded on the page at ``physical``: from now on, writes to it are noticed."""
        with self.lock:
            host, place, flag = self._page(physical)
            slot = ctypes.c_uint64.from_address(place)
            flags = ctypes.c_uint8.from_address(flag)
            if slot.value and flags.value & at.PAGE_CODE:
                return
            if not slot.value and self._used == self.limit:
                self._discard_all()
            # From here on no write entry is made for the page; those that exist are dropped before any decoding.
            if self.code.change_flags(flag, at.PAGE_WRITABLE, at.PAGE_CODE) & at.PAGE_WRITABLE:
                for executor in self.executors:
                    executor.drop_writes()
            if not slot.value:
                address = self._first + self._used * self.layout.slot_size
                if self._used == self._prepared:
                    self._prepare_one()
                self._used += 1
                self._active.append((place, flag))
                self._write_header(address, host, flag, physical & ~(self.layout.page_size - 1))
                slot.value = address
                if self.on_activate is not None:
                    self.on_activate()
            else:
                header = slot.value + self.layout.header_offset
                ctypes.c_uint64.from_address(header + at.HEADER_WRITES).value = 0
            self.activations += 1

    def prepare(self, ahead: int = 64) -> None:
        """Make the records of so many pages before they are wanted: the first touch of memory takes the host long."""
        more = True
        while more:
            with self.lock:
                more = self._prepared < min(self._used + ahead, self.limit)
                if more:
                    self._prepare_one()

    def _prepare_one(self) -> None:
        ctypes.memmove(self._first + self._prepared * self.layout.slot_size, self._template, len(self._template))
        self._prepared += 1

    def close(self) -> None:
        """Give the records' memory back to the host. No CPU may run from them any more."""
        self._arena.madvise(mmap.MADV_DONTNEED)

    def is_active(self, slot: int) -> bool:
        """Whether a slot holds the records of a page, since they were last discarded. The lock is held."""
        return self._first <= slot < self._first + self._used * self.layout.slot_size

    def slots(self, first: int = 0) -> Sequence[int]:
        """The slots of the decoded pages, in the order in which they were; without the ``first``. The lock is held."""
        size = self.layout.slot_size
        return range(self._first + first * size, self._first + self._used * size, size)

    def _write_header(self, slot: int, host: int, flag: int, physical: int) -> None:
        header = slot + self.layout.header_offset
        data = struct.pack("=6Q", 0, host, flag, 0, physical, 0)
        ctypes.memmove(header, data, len(data))

    def _discard_all(self) -> None:
        """Forget all decoded pages. No CPU executes records of theirs when this returns."""
        # First no CPU can find them any more: looking for code on such a page now leads to `activate`, which waits for
        # the lock. Then those that have found some before forget them.
        for place, _ in self._active:
            ctypes.c_uint64.from_address(place).value = 0
        for executor in self.executors:
            executor.drop_code()
        for _, flag in self._active:
            self.code.change_flags(flag, at.PAGE_CODE, 0)
        if self.on_discard is not None:
            self.on_discard(True)
        self._active.clear()
        self._used = self._prepared = 0
        self.discards += 1

    def decode_again(self, cpu: Any) -> None:
        """Make everything be decoded anew, for breakpoints to come and go. While all CPUs stand still."""
        with self.lock:
            for place, _ in self._active:
                self.code.reset_page(cpu.address, ctypes.c_uint64.from_address(place).value)
            if self.on_discard is not None:
                self.on_discard(False)

    def mark(self) -> int:
        """A moment that :meth:`written_since` can be asked about. While all CPUs stand still."""
        with self.lock:
            # First, so that the next write to a page is noticed.
            for executor in self.executors:
                executor.drop_writes()
            for flags, written in zip(self._flags, self._written, strict=True):
                start = ctypes.addressof(ctypes.c_char.from_buffer(flags))
                for run in _DIRTY_RUN.finditer(flags[: len(written)]):
                    first, end = run.span()
                    # One by one, as others may set them meanwhile.
                    for page in range(first, end):
                        self.code.change_flags(start + page, at.PAGE_DIRTY, 0)
                    written[first:end] = array("I", [self._mark]) * (end - first)
            self._mark += 1
            return self._mark

    def written_since(self, mark: int) -> list[list[tuple[int, int]]]:
        """Which pages of each RAM may have changed since then: first page and number of each run.

        While all CPUs stand still. What is changed while this works may be told now, and is told the next time.
        """
        self.mark()
        found: list[list[tuple[int, int]]] = []
        for written in self._written:
            runs: list[tuple[int, int]] = []
            start = -1
            for page, when in enumerate(written):
                if when < mark:
                    if start >= 0:
                        runs.append((start, page - start))
                        start = -1
                elif start < 0:
                    start = page
            if start >= 0:
                runs.append((start, len(written) - start))
            found.append(runs)
        return found

    def wrote(self, executors: Sequence[Any], segments: Sequence[tuple[int, int]], pairs: bytes = b"") -> None:
        """RAM was written from outside the CPUs: drop what was decoded from these (address, length).

        ``pairs``: the same as integers of 64 bits, if they are at hand.
        """
        if not executors:
            return
        page = self.layout.page_size
        while segments:
            ram = self._ram_of(segments[0][0])
            count = len(segments)
            done = self.code.mark_dirty(
                ram, pairs or struct.pack(f"={2 * count}Q", *chain.from_iterable(segments)), count
            )
            if done == count:
                return
            pairs = b""
            (address, length), rest = segments[done], segments[done + 1 :]
            first = page - address % page
            if length > first:
                # Page by page, as most of them have no code.
                end = address + length
                pieces = [(at, min(page, end - at)) for at in range(address + first, end, page)]
                segments = [(address, first), *pieces, *rest]
            elif self._ram_of(address) == ram:
                self.code.external_write(executors[0].address, address, length)
                segments = rest
            else:
                segments = [(address, length), *rest]

    def _ram_of(self, physical: int) -> int:
        """The address of the descriptor of the RAM that ``physical`` is in."""
        for i in range(0, len(self.descriptors), 5):
            if 0 <= physical - self.descriptors[i] < self.descriptors[i + 1]:
                return self._descriptors_at + 8 * i
        raise ValueError(f"{physical:#x} is not RAM")
