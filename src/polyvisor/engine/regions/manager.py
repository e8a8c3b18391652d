"""Finding hot code, having it compiled, and installing it.

CPUs leave samples of where they go on when it is time to look around (every `slice` instructions).  A thread of its own
counts them; for the hottest places it looks for a region in the cache, or has one compiled.  A region is
installed by replacing the handler in the records of its entries, and forgotten, natively and at once, when its code is
written to.
"""

from __future__ import annotations

import ctypes
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from polyvisor.adl import Field
from polyvisor.dataclass import dataclass, field, replace

from .. import layout as at
from ..arena import ArenaFullError, CodeArena
from ..codepages import CodePages
from ..native import NativeCode
from .backend import Backend
from .region import (
    FUNCTION,
    MAX_TARGETS,
    QUICK_INSTRUCTIONS,
    Missing,
    Region,
    Request,
    original_symbol,
    slot_symbol,
)
from .remembered import RememberedRegions
from .variants import keep_region, kept_regions

# Samples of a place after which the cache is asked, it is compiled quickly, and then well: by how busy compilers are.
WARM, HOT, BLAZING = 1, 4, (50, 400, 1600)
# To compile a place anew gains less than what is still interpreted, and takes longer: it is worth this much of that.
_AGAIN = 0.02
# To enter and to leave a region costs as much as some ten instructions: with fewer, and no loop, it is of no use.
_SMALLEST = 6
# Instructions between samples: while much is interpreted, and when most is compiled and looking around costs more.
_SLICE, _LONG_SLICE = 1 << 14, 1 << 16
# A region is made anew, with what it jumps to, after so many samples of it being left by jumps; but not for ever.
_JUMPY, _MAX_REMAKES = 24, 6
# Seconds between looks at the samples: while they lead to something; while there are some; and at most. This thread
# shares the interpreter's lock with the devices.
_INTERVAL, _STEADY, _LONGEST = 0.005, 0.04, 0.2
# There may be a thousand copies of a machine: one that has executed no more than this since the last look, such as one
# that only keeps time, is not looked at.
_LONGEST_OF_MANY, _IDLE_OF_MANY = 2.0, 2_000_000
# Of each CPU and kind, the latest so many are looked at.
_MOST_SAMPLES = 96
# Every so many looks, what was counted loses half its weight.
_DECAY = 200
# The cache is asked so often: the other pages of a region may not be known at first.
_MAX_TRIES = 6
# Pages that are given with a request, if they are decoded; what else it needs, the compiler asks for.
_NEIGHBOURS = (-2, -1, 1, 2)
# Where pages are mapped, by the code TLBs, is looked at once in so many looks.
_MAPPED_EVERY = 2
# And at places where regions may be entered, once they are decoded.
_ENTRIES_EVERY = 6
# A region that refuses to run this often was made for a case that is over.
_REFUSALS = 10_000


@dataclass
class Stats:
    """What became of regions; ``asked`` of the compiler, ``cached`` found in the cache."""

    asked: int = 0
    compiled: int = 0
    cached: int = 0
    installed: int = 0
    stale: int = 0
    instructions: int = 0
    code_bytes: int = 0
    failed: int = 0


@dataclass
class _Place:
    """A record that samples were seen of, and what was tried there."""

    heat: int = 0
    address: int = 0
    cpu: Any = None
    tries: int = 0  # how often the cache was asked
    vain: int = 0  # how often what was compiled was of no use
    waiting: bool = False  # a compiler is at work
    hopeless: bool = False
    region: Region | None = None  # what was installed here last
    descriptor: Any = None  # its descriptor
    jumps: Counter[int] = field(default_factory=Counter)  # where it was left for, from the place
    targets: tuple[int, ...] = ()
    remakes: int = 0
    slots: dict[int, int] = field(default_factory=dict)  # of the other pages that its region was made of

    @property
    def is_idle(self) -> bool:
        """Whether nothing is lost when it is forgotten."""
        return self.region is None and not self.hopeless and not self.waiting


@dataclass
class _Installed:
    """What native code refers to as long as pages have links to it."""

    descriptor: Any
    links: list[Any] = field(default_factory=list)
    handler: int = 0
    cpu: Any = None
    quick: bool = False
    later: list[int] = field(default_factory=list)  # records to be entered at too, as soon as they are decoded


class Regions:
    """The compiled regions of one machine. ``cache`` keeps them between runs."""

    def __init__(self, code: NativeCode, pages: CodePages, backend: Backend) -> None:
        self.code = code
        self.pages = pages
        self.layout = code.layout
        self.backend = backend
        self.stats = Stats()
        self.arena = CodeArena()
        self.lock = threading.RLock()
        self._cpus: list[Any] = []
        self._seen: dict[int, int] = {}
        self._seen_jumps: dict[int, int] = {}
        self._places: dict[int, _Place] = {}
        self._waiting: dict[int, _Place] = {}  # those that are compiled for
        # Where regions are entered: the place that each is of, and whether it was made quickly.
        self._entries: dict[int, tuple[int, bool]] = {}
        self._mapped: dict[int, int] = {}
        self._unfinished: list[_Installed] = []
        self._installed: list[_Installed] = []
        self._finished: list[tuple[int, _Place, Request, Region | Missing | None, int]] = []
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._looks = 0
        self._longest, self._idle = _LONGEST, 0
        self._forgotten = False
        self._remembered = RememberedRegions(code.cache, self._content)
        self._remembered_of = {code: self._remembered}
        self._decoded = 0  # of how many decoded pages the remembered regions were asked for
        self._likely = {
            n: m.likely for n, m in code.layout.members.items() if isinstance(m, Field) and m.likely is not None
        }
        pages.on_discard = self.forget_all
        pages.on_activate = self._wake.set

    # Life

    def watch(self, cpu: Any) -> None:
        """Take samples of a CPU."""
        self._seen[len(self._cpus)] = int(cpu.engine.sample_count)
        self._seen_jumps[len(self._cpus)] = int(cpu.engine.jump_count) >> at.JUMP_SAMPLE_BITS
        self._cpus.append(cpu)

    def start(self) -> None:
        """Begin to compile beside the guest."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._main, name="regions", daemon=True)
            self._thread.start()

    def revive(self, backend: Backend) -> None:
        """In a copy of the process (``os.fork``), which has none of its threads: be ready to :meth:`start` again.

        The lock is held, as it was when the process was copied.
        """
        self.backend = backend
        self.arena.fork()
        # What was being compiled is so for the other process.
        self._finished.clear()
        for place in self._waiting.values():
            place.waiting = False
        self._waiting.clear()
        self._stop, self._wake = threading.Event(), threading.Event()
        self.pages.on_activate = self._wake.set
        self._longest, self._idle = _LONGEST_OF_MANY, _IDLE_OF_MANY
        self._thread = None

    def close(self) -> None:
        """End. No CPU may be running."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
        for remembered in self._remembered_of.values():
            remembered.save(everything=True)
        self.pages.on_discard = self.pages.on_activate = None
        self.arena.close()

    def _main(self) -> None:
        interval, looked_at = _INTERVAL, -self._idle
        while not self._stop.wait(_INTERVAL):
            self._wake.wait(interval - _INTERVAL)
            self._wake.clear()
            if self._idle:
                retired = sum(int(cpu.engine.retired) for cpu in self._cpus)
                if retired < looked_at + self._idle:
                    interval = min(interval * 1.5, self._longest)
                    continue
                looked_at = retired
            if not self._idle:
                self.pages.prepare()
            before = self.stats.asked, self.stats.installed
            sampled = self.look()
            if before != (self.stats.asked, self.stats.installed):
                interval = _INTERVAL
            else:
                interval = min(interval * 1.5, _STEADY if sampled else self._longest)

    # Samples

    def look(self) -> bool:
        """Read new samples, and do what they suggest; gives whether there were any."""
        with self.lock:
            if self._forgotten:
                self._forgotten = False
                self._places.clear()
                self._entries.clear()
                self._unfinished.clear()
                self._mapped.clear()
                self._remembered.forget()
                self._decoded = 0
                # Samples of what was forgotten name records that are no more.
                for number, cpu in enumerate(self._cpus):
                    self._seen[number] = int(cpu.engine.sample_count)
                    self._seen_jumps[number] = int(cpu.engine.jump_count) >> at.JUMP_SAMPLE_BITS
            self._finish()
            self._looks += 1
            if self._looks % _DECAY == 0:
                for record in [r for r, p in self._places.items() if p.heat <= 1 and p.is_idle]:
                    del self._places[record]
                for place in self._places.values():
                    place.heat //= 2
                if len(self._mapped) > 4096:
                    self._mapped.clear()
            self._remember()
            found = self._count()
            if found:
                self._act(found)
            return bool(found)

    def _remember(self) -> None:
        """Install regions that pages had in earlier runs, and keep those of this one."""
        with self.pages.lock:
            slots = self.pages.slots(self._decoded)
        self._decoded += len(slots)
        self._remembered.decoded(slots)
        self._remembered.look_up()
        if self._remembered.waiting and self._looks % _MAPPED_EVERY == 0:
            self._remembered.try_some(self._mapped_now(), self._install_remembered)
        self._remembered.save()
        if self._looks % _ENTRIES_EVERY == 0:
            self._finish_entries()

    def _mapped_now(self) -> dict[int, int]:
        """The slots that CPUs have in their code TLBs, and their virtual addresses."""
        entries = at.CODE_TLB_SIZE * self.code.architecture.contexts
        found: dict[int, int] = {}
        for cpu in self._cpus:
            # The hart goes on filling it: a pair may be of two entries.
            table = struct.unpack(
                f"={2 * entries}Q",
                ctypes.string_at(cpu.address + self.layout.code_tlb_offset, entries * at.CODE_TLB_ENTRY),
            )
            found.update(zip(table[1::2], table[0::2], strict=True))
        with self.pages.lock:
            return {s: page for s, page in found.items() if page != at.NO_TAG and self.pages.is_active(s)}

    def _install_remembered(self, slot: int, page: int, region: Region) -> bool | None:
        record = slot + (region.request.entry << self.layout.shift)
        if ctypes.c_uint64.from_address(record).value == self.code.decode:
            return None
        if self._compiled_at(record):
            return True
        cpu = next((c for c in self._cpus if self._fits(region.assumed, c)), None)
        if cpu is None:
            return False
        place = self._places.setdefault(record, _Place())
        place.address, place.cpu = page + region.request.entry, cpu
        return self._adopt(record, place, region)

    def _count(self) -> list[int]:
        """The records of new samples."""
        found: dict[int, None] = {}
        for number, cpu in enumerate(self._cpus):
            engine = cpu.engine
            count = int(engine.sample_count)
            first = max(self._seen[number], count - _MOST_SAMPLES)
            self._seen[number] = count
            compiled = 0
            for record, address in self._ring(cpu, "sample_records", "sample_addresses", first, count):
                self._mapped[address & -self.layout.page_size] = self._slot(record)
                if self._compiled_at(record):
                    compiled += 1
                    # It may be a loop in the region of another place.
                    owner = self._entries.get(record, (record, False))[0]
                    address -= (record - owner) >> self.layout.shift
                    record = owner
                seen = self._heat(record, address, cpu)
                found[record] = None
                if seen.region is not None:
                    # Where it had no room to go on is as hot, but may never be seen: samples are taken at jumps.
                    for offset in seen.region.ends:
                        # In the same page: what follows its records in their slot is something else.
                        if 0 <= seen.region.request.entry + offset < self.layout.page_size:
                            other = record + (offset << self.layout.shift)
                            self._heat(other, address + offset, cpu)
                            found[other] = None
            if count > first:
                engine.slice = _LONG_SLICE if compiled * 2 > count - first else _SLICE
            count = int(engine.jump_count) >> at.JUMP_SAMPLE_BITS
            first = max(self._seen_jumps[number], count - _MOST_SAMPLES)
            self._seen_jumps[number] = count
            for record, address in self._ring(cpu, "jump_records", "jump_addresses", first, count):
                place = self._places.get(record)
                if place is not None and place.region is not None:
                    place.jumps[address - place.address] += 1
                    found[record] = None
        return list(found)

    def _ring(self, cpu: Any, records: str, addresses: str, first: int, count: int) -> Iterator[tuple[int, int]]:
        """Of two rings of samples, those with numbers from ``first`` to ``count - 1``."""
        if first == count:
            return
        both = [
            struct.unpack(f"={at.SAMPLES}Q", ctypes.string_at(cpu.address + self.layout.offset(name), at.SAMPLES * 8))
            for name in (records, addresses)
        ]
        for i in range(first, count):
            yield both[0][i % at.SAMPLES], both[1][i % at.SAMPLES]

    def _heat(self, record: int, address: int, cpu: Any) -> _Place:
        """Note that a place was seen."""
        place = self._places.setdefault(record, _Place())
        place.heat += 1
        place.address, place.cpu = address, cpu
        return place

    def _act(self, records: list[int]) -> None:
        """Do what is worth most at these places, as far as the compilers have room."""
        wanted: list[tuple[float, int]] = []
        for record in sorted(records, key=lambda r: -self._places[r].heat):
            place = self._places[record]
            if place.waiting or place.hopeless or place.heat < WARM:
                continue
            if self._compiled_at(record):
                wanted.append((place.heat * _AGAIN, record))
                continue
            if place.tries < _MAX_TRIES:
                place.tries += 1
                if self._from_cache(record, place):
                    continue
            if place.heat >= HOT << min(place.vain, 12):
                wanted.append((place.heat, record))
        for _, record in sorted(wanted, reverse=True):
            place = self._places[record]
            if not self._compiled_at(record):
                # Quickly at first, however hot it is: meanwhile it is interpreted.
                if self.backend.room(quick=True) > 0:
                    request = self.request(record, place.address, place.cpu, True, (), place.slots)
                    self._submit(record, place, replace(request, final=True))
            elif self.backend.room(quick=False) > 0 and self._could_be_better(record, place):
                if place.region is not None and place.region.request.quick and self._from_cache(record, place, True):
                    continue
                # What it was left for before is in it already.
                targets = [*self._targets(place), *place.targets][:MAX_TARGETS]
                place.targets = tuple(dict.fromkeys(targets))
                place.remakes += 1
                place.jumps.clear()
                request = self.request(record, place.address, place.cpu, False, place.targets, place.slots)
                self._submit(record, place, replace(request, remakes=place.remakes))

    def _could_be_better(self, record: int, place: _Place) -> bool:
        """Whether what is installed should be replaced by a region that is made of more, or with more care."""
        region = place.region
        if region is None or place.remakes >= _MAX_REMAKES or place.heat < BLAZING[self.backend.pressure]:
            return False
        if place.descriptor is not None and place.descriptor[at.REGION_REFUSALS // 8] > _REFUSALS:
            return True
        if region.request.quick:
            return True
        if sum(place.jumps.values()) < _JUMPY << place.remakes:
            return False
        if self._targets(place):
            return True
        place.jumps.clear()
        return False

    def _targets(self, place: _Place) -> list[int]:
        """Where the region of a place is often left for though it was not known before: offsets from the place."""
        total = sum(place.jumps.values())
        return [
            offset for offset, count in place.jumps.most_common(MAX_TARGETS)
            if count * 16 >= total and offset not in place.targets
        ]

    def _compiled_at(self, record: int) -> bool:
        handler = ctypes.c_uint64.from_address(record).value
        if handler == self.code.decode:
            return True  # nothing to be had before it is decoded again
        return self.arena.holds(handler)

    # Compiling

    def _slot(self, record: int) -> int:
        return record & ~(self.layout.slot_size - 1)

    def _header(self, slot: int, field_: int) -> int:
        return ctypes.c_uint64.from_address(slot + self.layout.header_offset + field_).value

    def _content(self, slot: int) -> bytes:
        """A page's bytes."""
        return ctypes.string_at(self._header(slot, at.HEADER_HOST), self.layout.page_size)

    def _page(self, slot: int) -> tuple[bytes, int]:
        """A page's bytes, and which of its units were executed."""
        layout = self.layout
        content = self._content(slot)
        words = layout.record_size // 8
        handlers = (ctypes.c_uint64 * (layout.records * words)).from_address(slot)[::words]
        decode = self.code.decode
        executed = "".join(["0" if h == decode else "1" for h in reversed(handlers)])
        return content, int(executed, 2)

    def _slot_of(self, cpu: Any, page: int) -> int | None:
        """The records of the page at a virtual address, as far as a CPU's code TLB or a sample has it."""
        bits = self.code.architecture.page_bits
        table = int(cpu.engine.code_tlb)
        if table:
            entry = table + (page >> bits & (at.CODE_TLB_SIZE - 1)) * at.CODE_TLB_ENTRY
            tag, slot = (ctypes.c_uint64 * 2).from_address(entry)
            scratch = int(cpu.engine.scratch)
            # While a CPU is reset, it has neither for a moment.
            if tag == page and slot and scratch and slot != scratch:
                return slot
        # Where it was when it was last sampled: a guess, which the region makes sure of.
        return self._mapped.get(page)

    def _assumed(self, cpu: Any) -> dict[str, tuple[int, int]]:
        """What a region may take for granted, as it is so now."""
        return {
            name: (mask, value) for name, (mask, value) in self._likely.items()
            if int(getattr(cpu.state, name)) & mask == value
        }

    def request(
        self, record: int, address: int, cpu: Any, quick: bool = False, targets: Sequence[int] = (),
        slots: dict[int, int] | None = None,
    ) -> Request:
        """What to compile for a record, with the pages around; ``slots`` is told where those are decoded."""
        layout = self.layout
        slot = self._slot(record)
        entry = (record - slot) >> layout.shift
        found = {0: slot}
        for delta in _NEIGHBOURS:
            near = self._slot_of(cpu, (address - entry + delta * layout.page_size) % 2**64)
            if near is not None:
                found[delta] = near
        pages = {delta: self._page(each) for delta, each in found.items()}
        if slots is not None:
            slots.update((delta, each) for delta, each in found.items() if delta)
        limit = QUICK_INSTRUCTIONS if quick else at.REGION_INSTRUCTIONS
        origin = address if self.code.architecture.absolute else None
        return Request(
            entry, pages, tuple(targets), self._assumed(cpu), limit, quick, hooks=self.code.hooks, origin=origin
        )

    def _submit(self, record: int, place: _Place, request: Request) -> None:
        place.waiting = True
        self._waiting[record] = place
        self.stats.asked += 1
        discards = self.pages.discards

        def done(result: Region | Missing | None) -> None:
            self._finished.append((record, place, request, result, discards))
            self._wake.set()

        self.backend.submit(request, done)

    def _finish(self) -> None:
        """Take what the compilers have finished."""
        while self._finished:
            record, place, request, result, discards = self._finished.pop(0)
            place.waiting = False
            self._waiting.pop(record, None)
            if discards != self.pages.discards or request.hooks is not self.code.hooks:
                continue
            if isinstance(result, Missing):
                pages = dict(request.pages)
                here = place.address - request.entry
                for delta in result.pages:
                    slot = self._slot_of(place.cpu, (here + delta * self.layout.page_size) % 2**64)
                    if slot is not None:
                        pages[delta] = self._page(slot)
                        place.slots[delta] = slot
                self._submit(record, place, replace(request, pages=pages, final=True))
            elif result is None:
                place.hopeless = True
                self.stats.failed += 1
            elif result.instructions < _SMALLEST and not result.loops:
                place.vain += 1
            else:
                self.stats.compiled += 1
                keep_region(self.code.cache, request.pages[0][0], result)
                descriptor = self.install(record, place.address, place.cpu, result, place.slots)
                if descriptor is not None:
                    place.region, place.descriptor = result, descriptor

    def compile_now(self, record: int, address: int, cpu: Any, compile_: Callable[[Request], Any]) -> bool:
        """Compile and install a region at a record at once; gives whether there is one. For tests."""
        with self.lock:
            request = self.request(record, address, cpu)
            result = compile_(request)
            if isinstance(result, Missing):
                here = address - request.entry
                pages = dict(request.pages)
                for delta in result.pages:
                    slot = self._slot_of(cpu, (here + delta * self.layout.page_size) % 2**64)
                    if slot is not None:
                        pages[delta] = self._page(slot)
                result = compile_(replace(request, pages=pages, final=True))
            return isinstance(result, Region) and self.install(record, address, cpu, result) is not None

    # The cache

    def _from_cache(self, record: int, place: _Place, well: bool = False) -> bool:
        """Install a region from the cache, if one fits; ``well``: not one that was made quickly."""
        slot = self._slot(record)
        content = self._content(slot)
        entry = (record - slot) >> self.layout.shift
        variants = kept_regions(self.code.cache, content, entry)
        if not variants:
            place.tries = _MAX_TRIES
        for region in variants:
            if (well and region.request.quick) or not self._fits(region.assumed, place.cpu):
                continue
            if self._adopt(record, place, region):
                return True
        return False

    def _adopt(self, record: int, place: _Place, region: Region) -> bool:
        """Install a region that was compiled before; gives whether it fits."""
        descriptor = self.install(record, place.address, place.cpu, region)
        if descriptor is None:
            return False
        self.stats.cached += 1
        place.region, place.descriptor = region, descriptor
        place.targets, place.remakes = region.request.targets, region.request.remakes
        return True

    def _fits(self, assumed: Mapping[str, tuple[int, int]], cpu: Any) -> bool:
        return all(int(getattr(cpu.state, n)) & mask == value for n, (mask, value) in assumed.items())

    # Installing

    def install(
        self, record: int, address: int, cpu: Any, region: Region, known: Mapping[int, int] | None = None
    ) -> Any:
        """Make a region run at ``record``, the instruction at ``address``; gives its descriptor, if it fits there.

        ``known`` are the slots of other pages as they were when it was compiled.
        """
        layout = self.layout
        with self.pages.lock:
            if any(c.breakpoints for c in self._cpus):
                return None
            first = self._slot(record)
            entry = (record - first) >> layout.shift
            here = address - entry
            if region.request.origin not in (None, address):
                return None
            slots: dict[int, int] = {}
            for delta in region.pages:
                slot = first if delta == 0 else (known or {}).get(delta)
                if slot is None:
                    slot = self._slot_of(cpu, (here + delta * layout.page_size) % 2**64)
                if slot is None or not self.pages.is_active(slot):
                    self.stats.stale += 1
                    return None
                slots[delta] = slot
            if not self._same_code(region, slots):
                self.stats.stale += 1
                return None
            records = [record + (offset << layout.shift) for offset, _ in region.entries]
            descriptor = (ctypes.c_uint64 * (at.REGION_RECORDS // 8 + len(records)))(1, 0, len(records), *records)
            place = ctypes.addressof(descriptor)
            symbols = dict(self.code.region_symbols)
            symbols["refusals"] = place + at.REGION_REFUSALS
            for offset, index in region.entries:
                symbols[original_symbol(offset)] = int(self.code.table[index]) or self.code.decode
            for delta, slot in slots.items():
                symbols[slot_symbol(delta)] = slot
            try:
                handler = self.arena.add(region.unit, symbols) + region.unit.symbols[FUNCTION]
            except ArenaFullError:
                self._start_over()
                return None
            installed = _Installed(descriptor)
            part = layout.page_size // at.PAGE_PARTS
            for delta, slot in slots.items():
                mask = 0
                for page, start, code in region.footprint:
                    if page == delta:
                        for n in range(start // part, (start + len(code) - 1) // part + 1):
                            mask |= 1 << n
                link = (ctypes.c_uint64 * 3)(0, place, mask)
                installed.links.append(link)
                self.code.link_region(cpu.address, slot, ctypes.addressof(link))
            self._installed.append(installed)
            # From here on, a write to its code makes it invalid; what was written before shows now.
            if not self._same_code(region, slots):
                self.code.forget_region(place, self.code.decode)
                self.stats.stale += 1
                return None
            if not self.code.install_region(cpu.address, records[0], place, handler):
                return None
            self._entries[record] = record, region.request.quick
            installed.handler, installed.cpu, installed.quick = handler, cpu, region.request.quick
            installed.later = records[1:]
            self._enter_elsewhere(installed)
            if installed.later:
                self._unfinished.append(installed)
            self.stats.installed += 1
            self.stats.instructions += region.instructions
            self.stats.code_bytes += len(region.unit.code)
            self._remembered.note(first, region)
            return descriptor

    def _enter_elsewhere(self, installed: _Installed) -> None:
        """Let a region be entered in other places too, as far as they are decoded by now. The pages' lock is held."""
        place, record = ctypes.addressof(installed.descriptor), installed.descriptor[at.REGION_RECORDS // 8]
        later: list[int] = []
        if ctypes.c_uint64.from_address(record).value != installed.handler:
            installed.later = later  # there is a better one by now
        for other in installed.later:
            if ctypes.c_uint64.from_address(other).value == self.code.decode:
                later.append(other)
                continue
            owner, worse = self._entries.get(other, (0, False))
            if self._compiled_at(other) and owner != record and (installed.quick or not worse):
                continue
            if self.code.install_region(installed.cpu.address, other, place, installed.handler):
                self._entries[other] = record, installed.quick
        installed.later = later

    def _finish_entries(self) -> None:
        """Look for places that were not decoded when their regions were installed."""
        with self.pages.lock:
            for installed in self._unfinished:
                if installed.descriptor[0]:
                    self._enter_elsewhere(installed)
            self._unfinished = [each for each in self._unfinished if each.descriptor[0] and each.later]

    def _same_code(self, region: Region, slots: Mapping[int, int]) -> bool:
        return all(
            ctypes.string_at(self._header(slots[delta], at.HEADER_HOST) + start, len(code)) == code
            for delta, start, code in region.footprint
        )

    # Forgetting

    def forget_all(self, pages_too: bool = False) -> None:
        """Forget all regions, as breakpoints come or go; ``pages_too``: no page links to them any more either.

        The pages' lock is held.
        """
        for installed in self._installed:
            self.code.forget_region(ctypes.addressof(installed.descriptor), self.code.decode)
        if pages_too:
            self._installed.clear()
        self._forgotten = True

    def change_code(self, code: NativeCode) -> None:
        """From now on, regions are made for other native code. No CPU is running, and everything decodes again."""
        with self.lock:
            self.code = code
            with self.pages.lock:
                self.forget_all()
            self._remembered.forget()
            if code not in self._remembered_of:
                self._remembered_of[code] = RememberedRegions(code.cache, self._content)
            self._remembered = self._remembered_of[code]
            self.arena.clear()

    def _start_over(self) -> None:
        """There is no room for more code: forget all, and begin anew once nobody executes any."""
        self.forget_all()
        for cpu in self._cpus:
            cpu.drop_code()
        self.arena.clear()
