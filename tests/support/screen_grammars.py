"""What drivers of the graphics device and of the input devices say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import ClassVar

from polyvisor.devices.display import BYTES_PER_PIXEL, Display
from polyvisor.devices.input import BUTTONS, EV_KEY, EV_LED, EV_REP, InputSource, Keyboard, Tablet
from polyvisor.devices.keys import KEYS
from polyvisor.devices.virtio import gpu as g
from polyvisor.devices.virtio import input as i
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.gpu import GpuDevice
from polyvisor.devices.virtio.input import InputDevice

from .grammar import EDGES, Grammar, Request
from .virtio_guest import AREA, DATA, RINGS, Guest

_MAX_MEMORY = 1 << 20
_HEADER = struct.Struct("<IIQIB3x")
_USEFUL = (
    *(g.SET_SCANOUT, g.SET_SCANOUT, g.RESOURCE_CREATE_2D, g.RESOURCE_CREATE_2D, g.RESOURCE_ATTACH_BACKING),
    *(g.RESOURCE_ATTACH_BACKING, g.RESOURCE_DETACH_BACKING, g.RESOURCE_UNREF, g.GET_EDID, g.GET_DISPLAY_INFO),
    *[g.RESOURCE_FLUSH] * 4, *[g.TRANSFER_TO_HOST_2D] * 4, g.UPDATE_CURSOR, g.MOVE_CURSOR,
)


class Gpu(Grammar):
    name = "gpu"
    fields = ((0, 4), (4, 4), (4, 4), (8, 4), (12, 4))

    def device(self) -> VirtioDevice:
        self.displays = Display(16, 16), Display(8, 300)
        self.made = GpuDevice(*self.displays, max_memory=_MAX_MEMORY)
        return self.made

    def command(self, kind: int, *fields: int, form: str = "", more: bytes = b"") -> bytes:
        """A header, and the fields of a command in ``form``."""
        return _HEADER.pack(kind, self.below(4), self.below(1 << 32), 0, 0) + struct.pack("<" + form, *fields) + more

    def rect(self) -> tuple[int, int, int, int]:
        return self.below(5), self.below(5), self.below(9), self.pick((0, 1, 4, 8, 60))

    def number(self) -> int:
        return self.pick(EDGES) & 2**32 - 1

    def request(self, guest: Guest) -> Request:
        kind = self.pick(_USEFUL) if self.random() < 0.95 else self.pick((0, 0xFF, 0x108, 0x109, 0x10B, 0x302, 0x1100))
        cursor = kind in (g.UPDATE_CURSOR, g.MOVE_CURSOR)
        queue = g.CURSOR_QUEUE if cursor == (self.random() < 0.95) else g.CONTROL_QUEUE
        return queue, self.pieces(self.body(kind)), [self.pick((24, 24, 408, 1056, 10))]

    def pieces(self, data: bytes) -> list[bytes]:
        return [data[:24], data[24:]] if len(data) > 24 and self.random() < 0.3 else [data]

    def body(self, kind: int) -> bytes:
        name = self.pick((0, 1, 1, 1, 2, 2, 3, 4, 5))
        if kind == g.RESOURCE_CREATE_2D:
            width = self.pick((8, 12, 64, 64, 64, 200, 400, g.MAX_SIDE))
            height = self.pick((width, width, width, 1, self.number()))
            return self.command(kind, name, self.pick((*g.FORMATS, 5)), width, height, form="4I")
        if kind == g.RESOURCE_ATTACH_BACKING:
            count = self.pick((0, 1, 1, 3, 40, 300))
            sizes = [self.pick((0, 1, 100, 5000, 8, 4096)) for _ in range(count)]
            places = [(DATA + self.below(AREA - size), size) for size in sizes]
            if self.random() < 0.1:
                places.append(self.pick(((DATA + AREA - 8, 16), (0, 1), (DATA, 2**32 - 1), (2**64 - 8, 16))))
                count += 1
            entries = b"".join(struct.pack("<QI4x", *place) for place in places)
            return self.command(kind, name, count if self.random() < 0.97 else self.number(), form="2I", more=entries)
        if kind == g.TRANSFER_TO_HOST_2D:
            offset = self.pick((0, 0, 0, 4 * self.below(64), self.below(5000), 2**64 - 1))
            return self.command(kind, *self.rect(), offset, name, form="4IQI4x")
        if kind == g.SET_SCANOUT:
            rect = self.rect() if self.random() < 0.5 else (0, 0, *(self.pick((64, 16, 8, 400)),) * 2)
            return self.command(kind, *rect, self.pick((0, 0, 1, 1, 2)), name, form="6I")
        if kind == g.RESOURCE_FLUSH:
            rect = self.rect() if self.random() < 0.5 else (0, 0, 8, 8)
            return self.command(kind, *rect, name, form="5I4x")
        if kind in (g.UPDATE_CURSOR, g.MOVE_CURSOR):
            place = self.pick((0, 5, 100, 2**31, 2**32 - 1, 2**32 - 70)), self.pick((0, 7, self.number()))
            fields = (self.pick((0, 1, 2)), *place, name, self.number(), self.below(70))
            return self.command(kind, *fields, form="3I4x3I4x")
        return self.command(kind, name if kind != g.GET_EDID else self.below(3), self.number(), form="2I")

    def started(self, guest: Guest, polite: bool) -> None:
        if polite:
            for name, side, *sizes in ((1, 8, 100, 1, 99), (2, 64, 4096, 12288)):
                entries = b"".join(struct.pack("<QI4x", DATA + self.below(16), size) for size in sizes)
                for data in (
                    self.command(g.RESOURCE_CREATE_2D, name, self.pick(tuple(g.FORMATS)), side, side, form="4I"),
                    self.command(g.RESOURCE_ATTACH_BACKING, name, len(sizes), form="2I", more=entries),
                    self.command(g.SET_SCANOUT, 0, 0, side, side, name - 1, name, form="6I"),
                ):
                    guest.post(g.CONTROL_QUEUE, [data], [24])
                    guest.kick(g.CONTROL_QUEUE)

            guest.post(g.CONTROL_QUEUE, [self.command(g.RESOURCE_CREATE_2D, 3, 1, 8, 8, form="4I")], [24])

    def host(self) -> None:
        display = self.pick(self.displays)
        if self.random() < 0.5:
            display.resize(1 + self.below(64), 1 + self.below(300))
        else:
            display.screenshot()

    def works(self, guest: Guest) -> None:
        display = self.displays[0]
        pixels = bytes(range(64)) * 4
        guest.poke(RINGS + AREA - 256, pixels)
        entry = struct.pack("<QI4x", RINGS + AREA - 256, 256)
        for data in (
            self.command(g.RESOURCE_CREATE_2D, 9, 2, 8, 8, form="4I"),
            self.command(g.RESOURCE_ATTACH_BACKING, 9, 1, form="2I", more=entry),
            self.command(g.TRANSFER_TO_HOST_2D, 0, 0, 8, 8, 0, 9, form="4IQI4x"),
            self.command(g.SET_SCANOUT, 0, 0, 8, 8, 0, 9, form="6I"),
            self.command(g.RESOURCE_FLUSH, 0, 0, 8, 8, 9, form="5I4x"),
        ):
            answer = guest.request(g.CONTROL_QUEUE, [data], [24])
            assert struct.unpack_from("<I", answer)[0] == g.OK_NODATA
        assert display.active and display.frame().pixels == pixels
        moved = self.command(g.MOVE_CURSOR, 0, 3, 4, 0, 0, 0, form="3I4x3I4x")
        assert struct.unpack_from("<I", guest.request(g.CURSOR_QUEUE, [moved], [24]))[0] == g.OK_NODATA

    def check(self) -> None:
        state = self.made.state
        used = sum(
            len(r.pixels) + g._RESOURCE_COST + g._ENTRY_COST * len(r.backing or ()) for r in state.resources.values()
        )
        assert state.memory == used <= _MAX_MEMORY
        backing = [entry for resource in state.resources.values() for entry in resource.backing or ()]
        assert all(self.made.link.memory.is_ram(*entry) for entry in backing)
        for scanout, display in zip(state.scanouts, self.displays, strict=True):
            assert display.active == bool(scanout.resource)
            if scanout.resource:
                assert state.resources[scanout.resource].contains(scanout.rect)
                assert display.size == (scanout.rect.width, scanout.rect.height)
            frame = display.frame(cursor=True)
            assert len(frame.pixels) == BYTES_PER_PIXEL * frame.width * frame.height
        assert sum(scanout.size for scanout in state.scanouts) <= _MAX_MEMORY


class _Input(Grammar):
    """``source`` is what the device passes on; `act` does something with it that may raise TimeoutError."""

    fields = ((0, 1), (1, 1), (0, 2), (2, 1), (8, 8), (8, 4), (20, 4), (135, 1))
    source: InputSource
    key: ClassVar[int]
    """What `hello` presses and releases."""

    def plug(self, source: InputSource) -> VirtioDevice:
        self.source = source
        self.made = InputDevice(source)
        return self.made

    def act(self) -> None:
        raise NotImplementedError

    def hello(self) -> None:
        raise NotImplementedError

    def request(self, guest: Guest) -> Request:
        if self.random() < 0.1:
            select = self.pick((i.CFG_ID_NAME, i.CFG_ID_DEVIDS, i.CFG_EV_BITS, i.CFG_ABS_INFO, i.CFG_PROP_BITS))
            guest.set_config(0, 1, select)
            guest.set_config(1, 1, self.pick((0, 1, EV_KEY, EV_LED, EV_REP, self.below(256))))
            guest.config(0, 8)
        if self.random() < 0.3:
            count = self.pick((1, 1, 2, 100))
            return i.STATUS_QUEUE, [b"".join(self.event() for _ in range(count))], []
        return i.EVENT_QUEUE, [], [self.pick((8, 8, 8, 8, 8, 16, 4096))]

    def event(self) -> bytes:
        kind = self.pick((EV_LED, EV_LED, EV_REP, EV_KEY, 0xFFFF))
        return struct.pack("<HHI", kind, self.pick((0, 1, 2, 3, 500)), self.pick((0, 1, 2**31, 2**32 - 1)))

    def started(self, guest: Guest, polite: bool) -> None:
        if polite:
            for _ in range(guest.size // 2):
                guest.post(i.EVENT_QUEUE, [], [8])
            guest.kick(i.EVENT_QUEUE)

    def host(self) -> None:
        with suppress(TimeoutError):
            for _ in range(self.pick((1, 1, 4, 400))):
                self.act()

    def select(self, guest: Guest, select: int, subsel: int) -> bytes:
        guest.set_config(0, 1, select)
        guest.set_config(1, 1, subsel)
        size = guest.config(2, 1)
        return bytes(guest.config(8 + at, 1) for at in range(size))

    def works(self, guest: Guest) -> None:
        assert self.select(guest, i.CFG_ID_NAME, 0) == self.source.profile.name.encode()
        assert not self.select(guest, i.CFG_ID_NAME, 1) and not self.select(guest, 99, 0)
        self.places: dict[int, list[int]] = {}
        self.left = 0
        self.source.release_all()
        for _ in range(100):
            if not self.made.state.waiting:
                break
            self.events(guest, lambda: None)
        pressed, released = struct.pack("<HHi", EV_KEY, self.key, 1), struct.pack("<HHi", EV_KEY, self.key, 0)
        assert self.events(guest, self.hello) == [pressed, bytes(8), released, bytes(8)]

    def events(self, guest: Guest, act: Callable[[], None]) -> list[bytes]:
        """What the driver gets in up to 8 buffers while ``act`` runs."""
        places = dict(guest.post(i.EVENT_QUEUE, [], [8]) for _ in range(8 - self.left))
        self.places.update(places)
        guest.kick(i.EVENT_QUEUE)
        act()
        guest.ack()
        found = [guest.peek(self.places.pop(head)[0], size) for head, size in guest.used(i.EVENT_QUEUE)]
        self.left = len(self.places)
        return found

    def check(self) -> None:
        state = self.made.state
        assert len(state.waiting) <= i.MAX_WAITING + 2 * len(KEYS) + 8
        assert 0 <= state.select < 256 and 0 <= state.subsel < 256


class Keys(_Input):
    name = "keyboard"
    key = KEYS["a"]

    def device(self) -> VirtioDevice:
        self.keyboard = Keyboard()
        return self.plug(self.keyboard)

    def act(self) -> None:
        chance, key = self.random(), self.pick(("a", "b", "shift", "f1"))
        if chance < 0.3:
            self.keyboard.press(key, timeout=0)
        elif chance < 0.6:
            self.keyboard.down(key, timeout=0)
        elif chance < 0.9:
            self.keyboard.up(key)
        else:
            self.keyboard.release_all()

    def hello(self) -> None:
        self.keyboard.press("a", timeout=0)

    def check(self) -> None:
        super().check()
        assert self.keyboard.leds <= {"num lock", "caps lock", "scroll lock"}


class Pointer(_Input):
    name = "tablet"
    key = BUTTONS["left"]

    def device(self) -> VirtioDevice:
        self.tablet = Tablet(Display(100, 100))
        return self.plug(self.tablet)

    def act(self) -> None:
        chance = self.random()
        if chance < 0.5:
            self.tablet.move(self.below(100), self.below(100), timeout=0)
        elif chance < 0.7:
            self.tablet.scroll(self.pick((0, 1, -1, 2**31 - 1)), self.pick((0, 1)), timeout=0)
        elif chance < 0.9:
            self.tablet.click(self.pick(tuple(BUTTONS)), timeout=0)
        else:
            self.tablet.down("left", timeout=0)

    def hello(self) -> None:
        self.tablet.click("left", timeout=0)
