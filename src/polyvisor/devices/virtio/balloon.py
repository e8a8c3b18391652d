"""The memory balloon (VIRTIO 1.2, section 5.5): pages that the guest does without go back to the host."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, QueueError, Segment, gather, length_of, split
from polyvisor.engine.memory import PAGE_SIZE
from polyvisor.engine.outside import Plain

QUEUE_SIZE = 128

# Feature bits (5.5.3). FREE_PAGE_HINT is for migration and not offered; MUST_TELL_HOST is not needed, because a page
# that was given back can be used again at any time.
F_STATS_VQ = 1 << 1
F_DEFLATE_ON_OOM = 1 << 2
F_PAGE_POISON = 1 << 4
F_PAGE_REPORTING = 1 << 5

# Queues (5.5.2).
INFLATE = 0
DEFLATE = 1
STATS = 2

# struct virtio_balloon_config (5.5.4): pages asked for, pages there are, command of free page hints, poison.
_CONFIG = struct.Struct("<4I")
_MAX_PAGES = 2**32 - 1
_PAGE_NUMBER_BYTES = 4
# Page numbers in a buffer (Linux sends 256), and pages and ranges given back at one go.
MAX_PAGE_NUMBERS = 16384
_TURN = 16384

# struct virtio_balloon_stat (5.5.6.3): tag, value. Memory is in bytes.
_STATISTIC = struct.Struct("<HQ")
_STATISTICS = (
    *("swap_in", "swap_out", "major_faults", "minor_faults", "free_memory", "total_memory", "available_memory"),
    *("disk_caches", "hugetlb_allocations", "hugetlb_failures"),
)
_MAX_STATISTICS = 64


@dataclass
class BalloonState:
    """Sizes in pages of 4096 bytes."""

    target: int = 0
    """What the host asks for."""
    actual: int = 0
    """What the driver says the balloon has."""
    poison: int = 0
    """What the driver says its free pages are filled with, 32 bits; counts if PAGE_POISON was negotiated."""
    statistics: Chain | None = None
    """The statistics buffer, which the device gives back to ask for new ones."""


class BalloonDevice(VirtioDevice):
    """Set :attr:`target` and the guest gives up that much memory, or takes it back; :meth:`wait` until it has.

    The guest's free pages leave the host's memory too, without a balloon, as the guest reports them.
    Any thread may call all methods. With ``deflate_on_oom`` a guest out of memory takes pages back before it ends
    programs;
    Linux then counts the balloon as used memory, else as memory that is not there.
    """

    device_id = 5
    state: BalloonState

    def __init__(self, deflate_on_oom: bool = True) -> None:
        features = F_STATS_VQ | F_PAGE_POISON | F_PAGE_REPORTING | deflate_on_oom * F_DEFLATE_ON_OOM
        super().__init__(features, (QUEUE_SIZE,) * 5, BalloonState())
        self._changed = threading.Condition(self.lock)
        self._statistics: dict[str, int] = {}
        self._arrivals = 0
        self._closed = False
        self._work = 0

    # For the host

    @property
    def target(self) -> int:
        """How many bytes of its memory the guest is to give up, a multiple of 4096; setting others is a ValueError."""
        return self.state.target * PAGE_SIZE

    @target.setter
    def target(self, size: int) -> None:
        pages, odd = divmod(size, PAGE_SIZE)
        if odd or not 0 <= pages <= _MAX_PAGES:
            raise ValueError(f"a balloon of {size} bytes: must be a multiple of {PAGE_SIZE}, up to 16 TiB")
        if self.source is not None:
            self.source.post("target", pages)
        else:
            self._set_target(pages)

    def _set_target(self, pages: int) -> None:
        with self.guard():
            if pages != self.state.target:
                self.state.target = pages
                if self._link is not None:
                    self._link.config_changed()

    @property
    def actual(self) -> int:
        """How many bytes the guest has given up, as its driver says."""
        return self.state.actual * PAGE_SIZE

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the balloon has its target size, ``timeout`` seconds at most; gives whether it has.

        It may never: a guest gives up no more than it can spare.
        """
        with self.lock:
            self._changed.wait_for(lambda: self.state.actual == self.state.target or self._closed, timeout)
            return self.state.actual == self.state.target

    def statistics(self, timeout: float | None = 10) -> dict[str, int]:
        """The guest's memory statistics as they are now, those that it knows.

        In bytes: ``swap_in``, ``swap_out`` (since it started), ``free_memory``, ``total_memory``, ``available_memory``,
        ``disk_caches``; numbers: ``major_faults``, ``minor_faults``, ``hugetlb_allocations``, ``hugetlb_failures``.
        Raises TimeoutError if the guest does not answer within ``timeout`` seconds, or has no driver for it.
        """
        answered = False
        with self.guard():
            if self.source is not None:
                before = self._arrivals
                self.source.post("ask")
            else:
                before = self._ask()
            self._changed.wait_for(lambda: self._arrivals != before or self._closed, timeout)
            answered = self._arrivals != before
        if not answered:
            raise TimeoutError(f"the guest gave no memory statistics within {timeout} seconds")
        return dict(self._statistics)

    def enter(self, operation: str, arguments: Sequence[Plain]) -> None:
        """Do what the host asked for, in virtual time."""
        if operation == "target":
            self._set_target(int(arguments[0]))  # type: ignore[arg-type]
        else:
            with self.guard():
                self._ask()

    def close(self) -> None:
        """End all waiting."""
        with self.lock:
            self._closed = True
            self._changed.notify_all()

    # The driver

    def config(self) -> bytes:
        """struct virtio_balloon_config."""
        return _CONFIG.pack(self.state.target, self.state.actual, 0, self.state.poison)

    def write_config(self, offset: int, data: bytes) -> None:
        """``actual`` and ``poison_val`` are the driver's."""
        config = bytearray(self.config())
        config[offset : offset + len(data)] = data
        _, self.state.actual, _, self.state.poison = _CONFIG.unpack(config)
        self._changed.notify_all()

    def notify(self, index: int) -> None:
        """Do what is in the queue. Raises QueueError."""
        self._work = 0
        if index == INFLATE:
            self.serve(index, self._inflate, self._rested)
        elif index == DEFLATE:
            # The pages read as zeroes until the guest writes to them.
            self.serve(index, lambda chain: 0)
        elif index == STATS and self.link.features & F_STATS_VQ:
            self.serve(index, self._arrived)
        elif self.link.features & F_PAGE_REPORTING:
            # reporting_vq is number 4, but drivers (Linux) count only those queues that were negotiated.
            self.serve(index, self._report, self._rested)
        if not self._rested() and self.link.queues[index].has_more():
            self.link.resume_later(index)

    def reset(self) -> None:
        """The balloon is empty; the target stays, for the next driver."""
        self.state.actual = self.state.poison = 0
        self.state.statistics = None
        self._changed.notify_all()

    def restored(self) -> None:
        """Whoever waits looks again."""
        self._changed.notify_all()

    def _rested(self) -> bool:
        return self._work < _TURN

    def _inflate(self, chain: Chain) -> int:
        """Give the pages back whose numbers are in the buffer; numbers of what is not RAM are ignored (5.5.6.1)."""
        size = length_of(chain.readable)
        if size > MAX_PAGE_NUMBERS * _PAGE_NUMBER_BYTES:
            raise QueueError(f"{size} bytes of page numbers at a time")
        data = gather(self.link.memory, chain.readable)
        count = len(data) // _PAGE_NUMBER_BYTES
        self._work += count
        for address, length in _runs(set(struct.unpack_from(f"<{count}I", data))):
            self._discard(address, length)
        return 0

    def _discard(self, address: int, length: int) -> None:
        memory = self.link.memory
        if memory.is_ram(address, length):
            memory.discard(address, length)
        elif length > PAGE_SIZE:
            for page in range(address, address + length, PAGE_SIZE):
                self._discard(page, PAGE_SIZE)

    def _report(self, chain: Chain) -> int:
        """Give back the whole pages in a buffer of free ones (5.5.6.7).

        They read as zeroes or as before; so not if the driver expects to find something else in them (5.5.6.7.2).
        """
        if not (self.link.features & F_PAGE_POISON and self.state.poison):
            for address, length in chain.writable:
                start = -(-address // PAGE_SIZE) * PAGE_SIZE
                end = (address + length) // PAGE_SIZE * PAGE_SIZE
                if start < end:
                    self.link.memory.discard(start, end - start)
                    self._work += 64
        return 0

    # Statistics

    def _ask(self) -> int:
        """Ask for new statistics, if that can be done now; returns how many times they had come before."""
        link = self._link
        if link is not None and link.running and link.features & F_STATS_VQ:
            if self.state.statistics is None:
                # Linux puts its first buffer there before DRIVER_OK, when no notification counts.
                self.serve(STATS, self._arrived)
            if (chain := self.state.statistics) is not None:
                before, self.state.statistics = self._arrivals, None
                queue = link.queues[STATS]
                queue.push(chain, 0)
                if queue.should_interrupt():
                    link.interrupt()
                return before
        return self._arrivals

    def _arrived(self, chain: Chain) -> int | None:
        """Statistics came; the buffer is kept until new ones are wanted (5.5.6.3)."""
        data = gather(self.link.memory, split(chain.readable, _STATISTIC.size * _MAX_STATISTICS)[0])
        whole = data[: len(data) // _STATISTIC.size * _STATISTIC.size]
        found = {tag: value for tag, value in _STATISTIC.iter_unpack(whole) if tag < len(_STATISTICS)}
        self._statistics = {_STATISTICS[tag]: found[tag] for tag in sorted(found)}
        self._arrivals += 1
        self._changed.notify_all()
        if self.state.statistics is not None:
            return 0
        self.state.statistics = chain
        return None


def _runs(pages: Iterable[int]) -> Iterable[Segment]:
    """Page numbers as few ranges of addresses."""
    start = end = -1
    for page in sorted(pages):
        if page != end:
            if start >= 0:
                yield start * PAGE_SIZE, (end - start) * PAGE_SIZE
            start = page
        end = page + 1
    if start >= 0:
        yield start * PAGE_SIZE, (end - start) * PAGE_SIZE
