"""Drivers that do anything: the device must not raise, hang, or write where no buffer is, and works after a reset.

Short in the tests (``tests/devices/virtio/test_device_fuzz.py``); as long as one likes by command::

    python -m tests.support.device_fuzz --device block --bus pci --packed --operations 1_000_000 --seed 7

The same seed does the same again. What a device's requests look like is in `device_grammars`; a new device needs a
`Grammar` there. The PCI host bridge has a fuzzer of its own, `pci_fuzz`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import random
import signal
import struct
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from polyvisor.devices.pci import function as pci
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import pci as vp
from polyvisor.devices.virtio import transport
from polyvisor.devices.virtio.device import F_EVENT_IDX, F_INDIRECT_DESC, F_RING_PACKED, F_VERSION_1
from polyvisor.engine.memory import BusError
from polyvisor.vm.snapshot.codec import from_plain, to_plain

from .device_grammars import GRAMMARS
from .grammar import EDGES, Grammar
from .pci_registers import BAR, SLOT, WINDOW, PciRegisters
from .virtio_guest import AREA, AVAIL_AT, DATA, RING_STRIDE, RINGS, TABLES, Guest

# One operation in so many is looked at byte by byte, and after so many the device must work.
WATCH = 50
PROVE = 1000
# A device that runs for so many seconds without touching memory is stuck.
PATIENCE = 60

_DESCRIPTOR = struct.Struct("<QIHH")
_REGISTERS = sorted(
    {value for name, value in vars(t).items() if name.isupper() and isinstance(value, int) and 4 <= value < t.CONFIG}
    - {transport.ACKNOWLEDGE}
)
_REGISTERS = [offset & ~3 for offset in _REGISTERS]
_FLAGS = (0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 0xFFFF, 0x80, 0x81, 0x82, 0x8000, 0x8002, 0x8080)
# Where a PCI function's registers are: the common configuration, ISR, configuration and notifications.
_BAR_OFFSETS = (*range(0, vp.COMMON_SIZE), vp.ISR_AT, vp.DEVICE_AT, *range(vp.NOTIFY_AT, vp.NOTIFY_AT + 16, 4))
_CONFIG_OFFSETS = (*range(0, 0x40, 2), *range(0x40, 0xA0), 0xFF, 0x100, 0xFFC)


class Failure(AssertionError):  # noqa: N818
    """The device did what it should not."""


@dataclasses.dataclass
class Result:
    """What was done; ``resets`` counts the times that the device said it needs one."""

    operations: int = 0
    requests: int = 0
    answered: int = 0
    resets: int = 0
    proofs: int = 0


class Fuzzer:
    """Operations on one device, all from one random number generator."""

    def __init__(self, grammar: Grammar, seed: int, bus: str = "mmio", packed: bool = False) -> None:
        self.grammar = grammar
        self.rng = random.Random(seed)
        grammar.begin(self.rng)
        self.guest = Guest(grammar.device(), bus=bus, packed=packed)
        self.guest.watch_writes(grammar.popped, grammar.may_write)
        self.random = self.rng.random
        self.bits = self.rng.getrandbits
        self.queues = len(self.guest.device.queue_sizes)
        self.log: deque[tuple[object, ...]] = deque(maxlen=12)
        self.result = Result()
        # Where the driver thinks its rings are: (descriptors, available, used).
        self.rings: list[tuple[int, int, int]] = []
        self.operations: list[tuple[int, Callable[[], None]]] = [
            (50, self.request),
            (6, self.acknowledge),
            (6, self.host),
            (4, self.scribble),
            (5, self.kick),
            (3, self.raw_heads),
            (4, self.register),
            (4, self.configuration),
            (1, self.indices),
            (1, self.status_game),
            (1, self.queue_game),
            (1, self.restore),
        ]
        if bus == "pci":
            self.operations += [(2, self.raw_register), (1, self.bus_game)]
        self.choices = [operation for weight, operation in self.operations for _ in range(weight)]
        self.start()

    def below(self, n: int) -> int:
        return int(self.random() * n)

    def pick(self, values: Any) -> Any:
        return values[int(self.random() * len(values))]

    # A run

    def run(self, operations: int) -> Result:
        """Raises Failure."""
        done = 0
        guest = self.guest
        try:
            with _watchdog(PATIENCE) as rearm:
                while done < operations:
                    if done % PROVE == 0:
                        rearm()
                        self.prove()
                    guest.memory.steps = 0
                    guest.written.clear()
                    operation = self.next_operation()
                    if done % WATCH:
                        operation()
                    else:
                        self.watched(operation)
                    done += 1
                self.prove()
        except Exception as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            recent = "\n".join(f"    {entry}" for entry in self.log)
            raise Failure(f"{self.grammar.name}: {error!r} in operation {done}, after\n{recent}") from error
        self.result.operations += done
        return self.result

    def next_operation(self) -> Callable[[], None]:
        if self.guest.needs_reset and self.random() < 0.5:
            self.result.resets += 1
            return self.start
        if self.random() < 0.002:
            return self.start
        return self.choices[int(self.random() * len(self.choices))]

    def watched(self, operation: Callable[[], None]) -> None:
        """All bytes that change are told to the engine, and none do after the device said that it needs a reset."""
        guest = self.guest
        stopped = guest.needs_reset and operation not in (self.start, self.bus_game)
        areas = [guest.areas[base] for base in (RINGS, DATA)]
        before = [bytes(area.buffer) for area in areas]
        poke, own = guest.poke, []

        def noted(address: int, data: bytes) -> None:
            own.append((address, len(data)))
            poke(address, data)

        guest.poke = noted  # type: ignore[method-assign]
        try:
            operation()
        finally:
            del guest.poke
        for area, old in zip(areas, before, strict=True):
            now = bytearray(area.buffer)
            for address, length in (*own, *guest.written):
                start = address - area.base
                if 0 <= start < AREA:
                    now[start : start + length] = old[start : start + length]
            if now[:AREA] != old:
                raise Failure("memory changed without a word to the engine")
        if stopped and guest.written:
            raise Failure("the device needs a reset and went on all the same")
        self.grammar.check()

    def prove(self) -> None:
        """The device works after a reset, its state can be kept, and nothing was written where no buffer is."""
        guest = self.guest
        guest.check_canaries()
        self.grammar.check()
        copy.deepcopy(guest.mmio.state)
        to_plain(guest.mmio.state)
        guest.memory.steps = 0
        guest.start(size=16)
        self.grammar.works(guest)
        self.result.proofs += 1
        self.start()

    # Beginnings

    def start(self) -> None:
        """A new life of the driver, mostly with sound rings."""
        guest, chance = self.guest, self.random()
        features = F_VERSION_1 | (guest.device.features & self.bits(64) if chance < 0.4 else guest.device.features)
        features |= (F_EVENT_IDX | F_INDIRECT_DESC) & self.bits(64) if chance < 0.8 else F_EVENT_IDX | F_INDIRECT_DESC
        sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 16, 16, 64)
        if guest.offers_packed and self.random() < 0.95:
            features |= F_RING_PACKED
            sizes += (3, 11)
        size = self.pick(sizes)
        self.log.append(("start", hex(features), size))
        if not guest.negotiate(features):
            raise Failure(f"features {features:#x} were refused")
        guest.set_up_queues(size)
        self.rings = list(map(guest.places, range(self.queues)))
        if self.random() < 0.1:
            for index in range(self.queues):
                self.misplace(index)
        guest.set_status(15)
        self.grammar.started(guest, self.random() < 0.9)

    def misplace(self, index: int) -> None:
        """Set a queue up anew, with rings anywhere."""
        guest = self.guest
        if self.random() < 0.7:
            guest.set(t.QUEUE_SEL, index)
            guest.set(t.QUEUE_READY, 0)
        desc, avail, used = (self.ring_address() for _ in range(3))
        if self.random() < 0.9:
            desc, avail, used = desc & ~15, avail & (~3 if guest.packed else ~1), used & ~3
        size = self.pick((guest.size, guest.size, 1, 2, 16, 64, 256, 3, 0, self.bits(16)))
        self.log.append(("queue", index, size, hex(desc), hex(avail), hex(used)))
        guest.set_queue(index, size, desc, avail, used)

    def ring_address(self) -> int:
        chance = self.random()
        if chance < 0.5:
            return self.pick(self.rings)[self.below(3)] + self.pick((0, 0, 4, 16, 64, -16))
        return self.address(64)

    # Places and contents

    def address(self, length: int) -> int:
        """Where a buffer may be: rarely over the rings, at an edge or nowhere. It never begins in a canary."""
        chance = self.random()
        if chance < 0.9:
            return self.guest.space(length)
        if chance < 0.94:
            return RINGS + self.below(self.queues * RING_STRIDE)
        if chance < 0.96:
            return TABLES + 16 * self.below(64)
        if chance < 0.98:
            return self.pick((RINGS, DATA)) + AREA - self.below(length + 2) - 1
        return self.pick((0, RINGS - 16, DATA + AREA, self.bits(64), 2**64 - 1, 2**64 - length & 2**64 - 1))

    def broken(self, content: bytes) -> bytes:
        """``content`` with something else in it, or longer, or shorter."""
        chance, size = self.random(), len(content)
        if not size or chance < 0.1:
            return content + self.rng.randbytes(self.below(20))
        if chance < 0.3:
            return content[: self.below(size)]
        at, width = self.below(size), self.pick((1, 2, 4, 4, 8))
        at = at // width * width
        value = self.pick(EDGES) if chance < 0.8 else self.bits(64)
        return (content[:at] + (value & (1 << 8 * width) - 1).to_bytes(width, "little") + content[at + width :])[:size]

    # Operations

    def request(self) -> None:
        """A request that makes sense, mostly."""
        guest = self.guest
        queue, readable, writable = self.grammar.request(guest)
        self.result.requests += 1
        if self.random() < 0.3 and readable:
            at = self.below(len(readable))
            readable[at] = self.broken(readable[at])
        if self.random() < 0.1 and writable:
            writable[self.below(len(writable))] = self.pick((0, 1, 7, 100, 4096, 2 * AREA, 2**32 - 1))
        segments: list[tuple[int, int, bool]] = []
        for content in readable:
            if len(content) > 1 and self.random() < 0.15:
                cut = self.below(len(content))
                pieces = [content[:cut], content[cut:]]
            else:
                pieces = [content]
            for piece in pieces:
                place = self.address(len(piece))
                guest.poke(place, piece)
                segments.append((place, len(piece), False))
        for length in writable:
            if length > 1 and self.random() < 0.15:
                cut = self.below(length)
                segments.append((self.address(cut), cut, True))
                length -= cut
            segments.append((self.address(length), length, True))
        self.break_up(segments)
        head = self.below(guest.size)
        if self.random() < 0.35:
            table = TABLES + 16 * self.below(256)
            guest.indirect(queue, segments, head, table)
            places = [table + 16 * i for i in range(len(segments))]
        else:
            guest.chain(queue, segments, head)
            places = [guest.ring(queue) + 16 * ((head + i) % guest.size) for i in range(len(segments))]
        if self.random() < 0.06 and places:
            self.spoil(self.pick(places))
        self.log.append(("request", queue, head, segments))
        guest.offer(queue, head)
        if self.random() < 0.8:
            guest.kick(queue)
            self.result.answered += 1

    def break_up(self, segments: list[tuple[int, int, bool]]) -> None:
        """Sometimes: another order, a part too few or twice."""
        chance = self.random()
        if chance > 0.06 or not segments:
            return
        if chance < 0.02:
            self.rng.shuffle(segments)
        elif chance < 0.04:
            del segments[self.below(len(segments))]
        else:
            segments.append(self.pick(segments))

    def spoil(self, place: int) -> None:
        """Change one field of the descriptor at ``place``."""
        offset, size = self.pick(((0, 8), (8, 4), (12, 2), (14, 2), (14, 2)))
        if offset == 0:
            value = self.address(64)
        elif offset == 12:
            value = self.pick(_FLAGS)
        else:
            value = self.pick(EDGES) if self.random() < 0.5 else self.below(2 * self.guest.size)
        self.log.append(("spoil", hex(place), offset, hex(value)))
        self.guest.poke(place + offset, (value & (1 << 8 * size) - 1).to_bytes(size, "little"))

    def scribble(self) -> None:
        """Change what the device may be looking at: descriptors, tables, rings, requests."""
        queue = self.below(self.queues)
        desc, avail, used = self.rings[queue] if self.rings else (RINGS,) * 3
        for _ in range(1 + self.below(4)):
            chance = self.random()
            index = self.below(self.guest.size)
            if chance < 0.6:
                at = desc + 16 * index if chance < 0.35 else TABLES + 16 * self.below(128)
                following = self.pick((index, index + 1, 0, self.below(self.guest.size), self.bits(16))) & 0xFFFF
                length = self.pick((16, 32, 1, 0, 512, 64, self.bits(8), self.bits(32)))
                where = TABLES + 16 * self.below(64) if self.random() < 0.3 else self.address(min(length, AREA))
                self.guest.poke(at, _DESCRIPTOR.pack(where, length, self.pick(_FLAGS), following))
            elif chance < 0.8:
                self.guest.poke(self.pick((avail, used)) + 2 * self.below(36), self.bits(16).to_bytes(2, "little"))
            else:
                self.guest.poke(DATA + self.below(AREA), self.pick(EDGES).to_bytes(8, "little"))
        self.log.append(("scribble", queue))

    def indices(self) -> None:
        """The available index jumps, or the place where an interrupt is wanted."""
        queue = self.below(self.queues)
        if self.guest.packed:
            self.packed_position(queue)
            return
        value = self.bits(16) if self.random() < 0.3 else self.guest.avail[queue] + self.below(20) - 8 & 0xFFFF
        at = self.guest.ring(queue) + AVAIL_AT
        if self.random() < 0.5:
            at += 2 + 2 * self.guest.size
        self.guest.poke(at + 2, value.to_bytes(2, "little"))
        if at == self.guest.ring(queue) + AVAIL_AT:
            self.guest.avail[queue] = value
        self.log.append(("index", queue, value))
        self.guest.kick(queue)

    def packed_position(self, queue: int) -> None:
        """The same in a packed ring: the driver goes on elsewhere, or wants to hear of another descriptor."""
        guest = self.guest
        if self.random() < 0.3:
            guest.avail[queue] = self.below(2 * guest.size)
        else:
            event = self.below(guest.size) | self.pick((0, 0x8000)) if self.random() < 0.8 else self.bits(16)
            guest.poke(guest.places(queue)[1], (event | self.pick((0, 1, 2, 2, 3)) << 16).to_bytes(4, "little"))
        self.log.append(("position", queue, guest.avail[queue]))
        guest.kick(queue)

    def raw_heads(self) -> None:
        """Offer whatever the descriptors say by now."""
        queue = self.below(self.queues)
        for _ in range(1 + self.below(3)):
            self.guest.offer(queue, self.below(self.guest.size) if self.random() < 0.95 else self.bits(16))
        self.log.append(("heads", queue))
        self.guest.kick(queue)

    def kick(self) -> None:
        queue = self.pick((self.below(self.queues), self.below(self.queues), self.queues, self.bits(32)))
        self.log.append(("kick", queue))
        self.guest.kick(queue)

    def acknowledge(self) -> None:
        self.log.append(("acknowledge",))
        self.guest.ack()

    def host(self) -> None:
        """What the host does with the device meanwhile."""
        self.log.append(("host",))
        self.grammar.host()

    def register(self) -> None:
        """Any register, rarely as it should be accessed."""
        offset = self.pick(_REGISTERS) + (self.bits(3) if self.random() < 0.1 else 0)
        size = 4 if self.random() < 0.9 or self.guest.bus == "pci" else self.pick((1, 2, 4, 8, 3, 0, 16))
        self._access(offset, size)

    def configuration(self) -> None:
        size = self.pick((1, 2, 4, 8))
        offset = size * self.below(80 // size) if self.random() < 0.9 else self.bits(12)
        if self.random() < 0.7 and (field := self.grammar.field()) is not None:
            offset, size = field
        self._access(t.CONFIG + offset, size)

    def _access(self, offset: int, size: int) -> None:
        write = self.random() < 0.6
        value = self.pick(EDGES) & (1 << 8 * size) - 1
        self.log.append(("write" if write else "read", hex(offset), size, hex(value)))
        try:
            if write:
                self.guest.mmio.write(offset, size, value)
            else:
                got = self.guest.mmio.read(offset, size)
                if not 0 <= got < 1 << 8 * size:
                    raise Failure(f"{got:#x} read from a register of {size} bytes")
        except BusError:
            if self.guest.bus == "pci":
                raise  # there, nothing is an error

    def raw_register(self) -> None:
        """Any access to the PCI function's memory range, or to registers by way of configuration space (4.1.4.9)."""
        assert isinstance(self.guest.mmio, PciRegisters)
        host, size = self.guest.mmio.host, self.pick((1, 2, 4, 4, 8))
        offset = self.pick(_BAR_OFFSETS) if self.random() < 0.9 else self.below(vp.BAR_SIZE + 8)
        value = self.pick(EDGES) & (1 << 8 * size) - 1
        write = self.random() < 0.5
        self.log.append(("raw", write, hex(offset), size, hex(value)))
        if self.random() < 0.5:
            space, at = host.memory, BAR - WINDOW + offset
        else:
            access = SLOT << 15 | self.guest.mmio.capabilities[vp.CAP_PCI]
            length = size if self.random() < 0.8 else self.bits(32)
            bar = 0 if self.random() < 0.95 else self.bits(8)
            for field, width, content in ((4, 1, bar), (8, 4, offset), (12, 4, length)):
                host.ecam.write(access + field, width, content)
            space, at = host.ecam, access + 16
        if write:
            space.write(at, size, value)
        elif not 0 <= space.read(at, size) < 1 << 8 * size:
            raise Failure(f"too much was read from {offset:#x}")

    def bus_game(self) -> None:
        """Other things happen while the function's configuration space is not as it should be."""
        assert isinstance(self.guest.mmio, PciRegisters)
        ecam = self.guest.mmio.host.ecam
        for _ in range(1 + self.below(3)):
            size, chance = self.pick((1, 2, 4)), self.random()
            if chance < 0.4:
                offset, size, value = pci.COMMAND, 2, self.pick((0, 2, 4, 6, 0x402, 0x406, 0xFFFF))
            elif chance < 0.6:
                value = self.pick((0, 0xFFFFFFFF, BAR + 0x4000, BAR - 0x2000, WINDOW, DATA & 0xFFFFFFFF, self.bits(32)))
                offset, size = pci.BARS, 4
            else:
                offset, value = self.pick(_CONFIG_OFFSETS), self.pick(EDGES) & (1 << 8 * size) - 1
            self.log.append(("pci", hex(offset), size, hex(value)))
            ecam.write(SLOT << 15 | offset, size, value)
            self.pick((self.request, self.kick, self.host, self.acknowledge, self.register, self.raw_register))()
        self.guest.set_up_bus()

    def status_game(self) -> None:
        value = self.pick((0, 1, 3, 4, 7, 11, 15, 64, 128, 143, 255, self.bits(8)))
        self.log.append(("status", value))
        self.guest.set_status(value)

    def queue_game(self) -> None:
        self.misplace(self.below(self.queues))

    def restore(self) -> None:
        """Go on from the state as plain data, as a restored machine does, mostly with another world around it."""
        elsewhere = self.random() < 0.7
        self.log.append(("restore", elsewhere))
        mmio, device = self.guest.mmio, self.guest.device
        with device.guard():
            if device.obstacle() is not None:
                mmio.state = copy.deepcopy(mmio.state)
                return
            plain = to_plain(mmio.state)
            mmio.state = from_plain(type(mmio.state), plain, "", mmio.state)
            device.restored()
            # (Fids of files that have no name any more are lost.)
            if self.grammar.name != "9p" and to_plain(mmio.state) != plain:
                raise Failure("the state is another when it was set")
            if elsewhere:
                device.reconnected()

    def close(self) -> None:
        self.guest.close()
        self.grammar.end()


@contextmanager
def _watchdog(seconds: int) -> Iterator[Callable[[], None]]:
    """Raise Failure in what runs longer than ``seconds`` after the last call of what this gives; in main threads."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def expired(number: int, frame: object) -> None:
        raise Failure(f"the device is stuck: {PROVE} operations took {seconds} seconds")

    before = signal.signal(signal.SIGALRM, expired)
    try:
        yield lambda: (signal.alarm(seconds), None)[1]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def fuzz(name: str, operations: int, seed: int, bus: str = "mmio", packed: bool = False) -> Result:
    """Raises Failure."""
    fuzzer = Fuzzer(GRAMMARS[name](), seed, bus, packed)
    try:
        return fuzzer.run(operations)
    finally:
        fuzzer.close()


def main() -> int:
    parser = argparse.ArgumentParser(description="Let hostile drivers loose on the virtio devices.")
    parser.add_argument("--device", choices=sorted(GRAMMARS), action="append", help="one or more; all by default")
    parser.add_argument("--operations", type=int, default=100_000, help="for each device")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bus", choices=("mmio", "pci"), default="mmio")
    parser.add_argument("--packed", action="store_true", help="offer packed rings")
    given = parser.parse_args()
    failed = 0
    for name in given.device or sorted(GRAMMARS):
        started = time.process_time()
        try:
            result = fuzz(name, given.operations, given.seed, given.bus, given.packed)
        except Failure as failure:
            failed += 1
            print(f"{name}: seed {given.seed}: {failure}\n    caused by {failure.__cause__!r}", flush=True)
            continue
        rate = result.operations / (time.process_time() - started)
        print(
            f"{name}: {result.operations:,} operations, {rate:,.0f} a second of CPU time, "
            f"{result.requests:,} requests, {result.resets:,} resets asked for, {result.proofs:,} times found working",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
