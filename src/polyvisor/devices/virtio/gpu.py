"""The graphics device, 2D only (VIRTIO 1.2, section 5.7): it draws on a :class:`~polyvisor.devices.display.Display`."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from polyvisor.devices.display import BYTES_PER_PIXEL, Cursor, Display, Rect
from polyvisor.devices.edid import edid
from polyvisor.devices.virtio.device import VirtioDevice
from polyvisor.devices.virtio.queue import Chain, Segment, gather, length_of, scatter, split
from polyvisor.engine.memory import Memory
from polyvisor.engine.outside import Plain

CONTROL_QUEUE, CURSOR_QUEUE = 0, 1
QUEUE_SIZES = (64, 16)
MAX_SCANOUTS = 16
MAX_SIDE = 16384
"""The most pixels in a row of a resource, and the most rows."""
MAX_ENTRIES = 16384
"""The most ranges of guest memory behind a resource."""
MAX_MEMORY = 256 << 20
CURSOR_SIDE = 64
"""Width and height of a cursor (5.7.6.10)."""

F_EDID = 1 << 1
EVENT_DISPLAY = 1 << 0

# Control types (5.7.6.7).
GET_DISPLAY_INFO = 0x0100
RESOURCE_CREATE_2D = 0x0101
RESOURCE_UNREF = 0x0102
SET_SCANOUT = 0x0103
RESOURCE_FLUSH = 0x0104
TRANSFER_TO_HOST_2D = 0x0105
RESOURCE_ATTACH_BACKING = 0x0106
RESOURCE_DETACH_BACKING = 0x0107
GET_EDID = 0x010A
UPDATE_CURSOR = 0x0300
MOVE_CURSOR = 0x0301
OK_NODATA = 0x1100
OK_DISPLAY_INFO = 0x1101
OK_EDID = 0x1104
ERR_UNSPEC = 0x1200
ERR_OUT_OF_MEMORY = 0x1201
ERR_INVALID_SCANOUT_ID = 0x1202
ERR_INVALID_RESOURCE_ID = 0x1203
ERR_INVALID_PARAMETER = 0x1205

FLAG_FENCE = 1 << 0

# Where blue, green, red and alpha are in a pixel of each format (5.7.6.8); without alpha all is opaque.
FORMATS: dict[int, tuple[int, int, int, int | None]] = {
    1: (0, 1, 2, 3),
    2: (0, 1, 2, None),
    3: (3, 2, 1, 0),
    4: (3, 2, 1, None),
    67: (2, 1, 0, 3),
    68: (1, 2, 3, None),
    121: (1, 2, 3, 0),
    134: (2, 1, 0, None),
}

_HEADER = struct.Struct("<IIQIB3x")
_CONFIG = struct.Struct("<4I")
_DISPLAY = struct.Struct("<6I")
_ENTRY = struct.Struct("<QI4x")
_CREATE = struct.Struct("<4I")
_RESOURCE = struct.Struct("<I4x")
_SCANOUT = struct.Struct("<6I")
_FLUSH = struct.Struct("<5I4x")
_TRANSFER = struct.Struct("<4IQI4x")
_ATTACH = struct.Struct("<2I")
_CURSOR = struct.Struct("<Iii4x3I4x")
_EDID_BYTES = 1024
_NOTHING = Rect(0, 0, 0, 0)
# What a range of guest memory, or a resource beside its pixels, takes on the host, generously.
_ENTRY_COST = 128
_RESOURCE_COST = 1024
# Bytes moved at one go, where each piece counts as some, too. After the command that makes it more, the others wait
# until the driver acknowledges an interrupt.
_TURN = 64 << 20
_PIECE = 1024


@dataclass
class Resource:
    """A picture on the host, and the guest memory it is filled from."""

    format: int
    width: int
    height: int
    pixels: bytearray
    """Rows without gaps, in ``format``."""
    backing: list[Segment] | None = None
    starts: list[int] = field(default_factory=list)
    """For each range of ``backing``: how many bytes are before it."""

    @property
    def stride(self) -> int:
        """Bytes a row."""
        return BYTES_PER_PIXEL * self.width

    def contains(self, rect: Rect) -> bool:
        """Whether all of ``rect`` is in the picture, and it is not empty."""
        return (
            rect.width > 0
            and rect.height > 0
            and rect.x + rect.width <= self.width
            and rect.y + rect.height <= self.height
        )


@dataclass
class Scanout:
    """What a screen shows: a part of a resource. ``resource`` 0 is none."""

    resource: int = 0
    rect: Rect = _NOTHING
    cursor: Cursor | None = None
    cursor_x: int = 0
    cursor_y: int = 0

    @property
    def size(self) -> int:
        """Bytes that the picture takes on the host, beside the resource."""
        return BYTES_PER_PIXEL * self.rect.width * self.rect.height


@dataclass
class GpuState:
    """All that the driver made."""

    scanouts: list[Scanout]
    events: int = 0
    """``events_read`` (5.7.4)."""
    resources: dict[int, Resource] = field(default_factory=dict)
    memory: int = 0
    """Bytes that the resources take on the host."""


class _RequestError(Exception):
    """The request ends with this response."""

    def __init__(self, response: int) -> None:
        super().__init__(response)
        self.response = response


class _Command:
    """A request of the driver: its header (5.7.6.7), and what follows it."""

    def __init__(self, memory: Memory, readable: list[Segment]) -> None:
        self._memory, self._rest = memory, readable
        # Too short for a header: no command at all, which is answered as an unknown one.
        self.kind = self.flags = self.fence = self.context = self.ring = 0
        if length_of(readable) >= _HEADER.size:
            self.kind, self.flags, self.fence, self.context, self.ring = self.take(_HEADER)

    def take(self, form: struct.Struct) -> tuple[Any, ...]:
        """The next fields. Raises _RequestError if the request ends before."""
        return form.unpack(self.take_bytes(form.size))

    def take_bytes(self, count: int) -> bytes:
        """The next bytes. Raises _RequestError if there are fewer."""
        taken, self._rest = split(self._rest, count)
        if length_of(taken) < count:
            raise _RequestError(ERR_INVALID_PARAMETER)
        return gather(self._memory, taken)


_Handler = Callable[[_Command], tuple[int, bytes]]


class GpuDevice(VirtioDevice):
    """Draws on ``displays``, one for each scanout. The resources of the guest take ``max_memory`` bytes at most.

    So do the pictures on the displays.

    There is no 3D, and there are no blob resources.
    """

    device_id = 16

    def __init__(self, *displays: Display, max_memory: int = MAX_MEMORY) -> None:
        """Raises ValueError without a display, with more than 16, or if one belongs to another device."""
        if not 1 <= len(displays) <= MAX_SCANOUTS:
            raise ValueError(f"{len(displays)} displays; a graphics device takes 1 to {MAX_SCANOUTS}")
        self.displays = displays
        self.preferred = [display.preferred_size for display in displays]
        """The sizes that the driver is told to be best."""
        self.max_memory = max_memory
        self._state = GpuState([Scanout() for _ in displays])
        self._work = 0
        self._unplug: list[Callable[[], None]] = []
        super().__init__(F_EDID, QUEUE_SIZES, self._state)
        try:
            for display in displays:
                self._unplug.append(display.plug(self._resized))
        except ValueError:
            self.close()
            raise
        for display in displays:
            if display.active:
                display.switch_off()  # the last picture of another machine

    @property
    def state(self) -> GpuState:
        """All that the driver made."""
        return self._state

    @state.setter
    def state(self, state: GpuState) -> None:
        """Go on from ``state``, with the picture that it has."""
        before, self._state = self._state, state
        if not self._unplug:
            return  # the displays are another's
        for index, scanout in enumerate(state.scanouts):
            if scanout.resource:
                self._show(index)
            elif before.scanouts[index].resource:
                self.displays[index].switch_off()
            self._show_cursor(index)

    def config(self) -> bytes:
        """struct virtio_gpu_config: events_read, events_clear, num_scanouts, num_capsets."""
        return _CONFIG.pack(self._state.events, 0, len(self.displays), 0)

    def write_config(self, offset: int, data: bytes) -> None:
        """Only ``events_clear`` can be written: its bits are cleared in ``events_read``."""
        if offset == 4 and len(data) == 4:
            self._state.events &= ~int.from_bytes(data, "little")

    def reset(self) -> None:
        """Forget all resources; the screens go black."""
        self.state = GpuState([Scanout() for _ in self.displays])

    def close(self) -> None:
        """Leave the displays, with the pictures they have."""
        while self._unplug:
            self._unplug.pop()()

    def notify(self, index: int) -> None:
        """Execute all commands. Raises QueueError."""
        self._work = 0
        self.serve(index, self._control if index == CONTROL_QUEUE else self._cursor, self._rested)
        if not self._rested() and self.link.queues[index].has_more():
            self.link.resume_later(index)

    def _rested(self) -> bool:
        return self._work < _TURN

    def _resized(self) -> None:
        """A display prefers another size: have the driver ask (5.7.5)."""
        sizes = [display.preferred_size for display in self.displays]
        if self.source is not None:
            self.source.post("resized", *(length for size in sizes for length in size))
        else:
            self._prefer(sizes)

    def enter(self, operation: str, arguments: Sequence[Plain]) -> None:
        """Displays prefer other sizes, in virtual time."""
        lengths = [int(each) for each in arguments]  # type: ignore[arg-type]
        sizes = list(zip(lengths[::2], lengths[1::2], strict=True))
        if self.source is not None and self.source.repeats:
            for display, size in zip(self.displays, sizes, strict=True):
                display.resize(*size)
        self._prefer(sizes)

    def _prefer(self, sizes: list[tuple[int, int]]) -> None:
        with self.lock:
            self.preferred = sizes
            self._state.events |= EVENT_DISPLAY
            if self._link is not None:
                self.link.config_changed()

    # Commands

    def _control(self, chain: Chain) -> int:
        return self._execute(chain, self._do)

    def _cursor(self, chain: Chain) -> int:
        return self._execute(chain, self._do_cursor)

    def _execute(self, chain: Chain, do: _Handler) -> int:
        """Execute a command and write the response; returns the bytes written."""
        command = _Command(self.link.memory, chain.readable)
        try:
            response, data = do(command)
        except _RequestError as error:
            response, data = error.response, b""
        # A fenced command is over when it is answered (5.7.6.7): all is done at once here.
        fenced = command.flags & FLAG_FENCE
        header = _HEADER.pack(response, fenced, command.fence if fenced else 0, command.context, 0)
        return scatter(self.link.memory, chain.writable, header + data)

    def _do(self, command: _Command) -> tuple[int, bytes]:
        kind = command.kind
        if kind == TRANSFER_TO_HOST_2D:
            x, y, width, height, offset, name = command.take(_TRANSFER)
            self._transfer(self._resource(name), Rect(x, y, width, height), offset)
        elif kind == RESOURCE_FLUSH:
            x, y, width, height, name = command.take(_FLUSH)
            self._flush(name, Rect(x, y, width, height))
        elif kind == SET_SCANOUT:
            x, y, width, height, index, name = command.take(_SCANOUT)
            self._set_scanout(index, name, Rect(x, y, width, height))
        elif kind == RESOURCE_CREATE_2D:
            self._create(*command.take(_CREATE))
        elif kind == RESOURCE_UNREF:
            self._unref(*command.take(_RESOURCE))
        elif kind == RESOURCE_ATTACH_BACKING:
            name, count = command.take(_ATTACH)
            self._attach(self._resource(name), count, command)
        elif kind == RESOURCE_DETACH_BACKING:
            self._detach(self._resource(*command.take(_RESOURCE)))
        elif kind == GET_DISPLAY_INFO:
            return OK_DISPLAY_INFO, self._display_info()
        elif kind == GET_EDID and self.link.features & F_EDID:
            index, _ = command.take(_ATTACH)
            self._scanout(index)
            width, height = self.preferred[index]
            block = edid(width, height, serial=index)
            return OK_EDID, struct.pack("<II", len(block), 0) + block.ljust(_EDID_BYTES, b"\0")
        else:
            raise _RequestError(ERR_UNSPEC)
        return OK_NODATA, b""

    def _do_cursor(self, command: _Command) -> tuple[int, bytes]:
        if command.kind not in (UPDATE_CURSOR, MOVE_CURSOR):
            raise _RequestError(ERR_UNSPEC)
        index, x, y, name, hot_x, hot_y = command.take(_CURSOR)
        scanout = self._scanout(index)
        if command.kind == UPDATE_CURSOR:
            scanout.cursor = self._make_cursor(name, hot_x, hot_y) if name else None
        # Linux puts the corner of the image here, not the place it points at.
        scanout.cursor_x, scanout.cursor_y = x, y
        self._show_cursor(index)
        return OK_NODATA, b""

    def _resource(self, name: int) -> Resource:
        """Raises _RequestError if there is no such resource."""
        resource = self._state.resources.get(name)
        if resource is None:
            raise _RequestError(ERR_INVALID_RESOURCE_ID)
        return resource

    def _scanout(self, index: int) -> Scanout:
        """Raises _RequestError if there is no such scanout."""
        if index >= len(self.displays):
            raise _RequestError(ERR_INVALID_SCANOUT_ID)
        return self._state.scanouts[index]

    def _take_memory(self, size: int) -> None:
        """Count bytes that a resource takes on the host. Raises _RequestError if they are too many."""
        if self._state.memory + size > self.max_memory:
            raise _RequestError(ERR_OUT_OF_MEMORY)
        self._state.memory += size

    # Resources

    def _create(self, name: int, pixel_format: int, width: int, height: int) -> None:
        if not name or name in self._state.resources:
            raise _RequestError(ERR_INVALID_RESOURCE_ID)
        if pixel_format not in FORMATS or not (1 <= width <= MAX_SIDE and 1 <= height <= MAX_SIDE):
            raise _RequestError(ERR_INVALID_PARAMETER)
        size = BYTES_PER_PIXEL * width * height
        self._take_memory(size + _RESOURCE_COST)
        self._work += size
        self._state.resources[name] = Resource(pixel_format, width, height, bytearray(size))

    def _unref(self, name: int) -> None:
        self._resource(name)
        for index, scanout in enumerate(self._state.scanouts):
            if scanout.resource == name:
                self._switch_off(index)
        resource = self._state.resources.pop(name)
        self._detach(resource)
        self._state.memory -= len(resource.pixels) + _RESOURCE_COST

    def _attach(self, resource: Resource, count: int, command: _Command) -> None:
        if resource.backing is not None:
            raise _RequestError(ERR_UNSPEC)
        if count > MAX_ENTRIES:
            raise _RequestError(ERR_INVALID_PARAMETER)
        entries = [entry for entry in _ENTRY.iter_unpack(command.take_bytes(_ENTRY.size * count)) if entry[1]]
        if not all(self.link.memory.is_ram(*entry) for entry in entries):
            raise _RequestError(ERR_INVALID_PARAMETER)
        self._take_memory(_ENTRY_COST * len(entries))
        resource.backing = entries
        resource.starts = list(accumulate((length for _, length in entries), initial=0))[:-1]

    def _detach(self, resource: Resource) -> None:
        self._state.memory -= _ENTRY_COST * len(resource.backing or ())
        resource.backing, resource.starts = None, []

    def _transfer(self, resource: Resource, rect: Rect, offset: int) -> None:
        """Fill ``rect`` from guest memory: its first pixel is at ``offset`` there, rows are as long as the resource's.

        Raises _RequestError if it reaches beyond the picture or the guest memory behind it (5.7.6.8).
        """
        if not resource.contains(rect):
            raise _RequestError(ERR_INVALID_PARAMETER)
        if not resource.backing:
            raise _RequestError(ERR_UNSPEC)
        stride, row = resource.stride, BYTES_PER_PIXEL * rect.width
        end = offset + stride * (rect.height - 1) + row
        if end > resource.starts[-1] + resource.backing[-1][1]:
            raise _RequestError(ERR_INVALID_PARAMETER)
        at = stride * rect.y + BYTES_PER_PIXEL * rect.x
        pieces = [(at, offset, row * rect.height)] if row == stride else [
            (at + line, offset + line, row) for line in range(0, stride * rect.height, stride)
        ]
        into = memoryview(resource.pixels)
        self._work += row * rect.height
        for at, start, length in pieces:
            for address, part in self._behind(resource, start, length):
                self._work += _PIECE
                into[at : at + part] = self.link.memory.view(address, part)
                at += part

    @staticmethod
    def _behind(resource: Resource, start: int, length: int) -> Iterator[Segment]:
        """The guest memory behind ``length`` bytes of the backing from ``start`` on, which is inside."""
        assert resource.backing is not None
        index = bisect_right(resource.starts, start) - 1
        while length:
            address, size = resource.backing[index]
            skip = start - resource.starts[index]
            part = min(length, size - skip)
            yield address + skip, part
            start += part
            length -= part
            index += 1

    # Screens

    def _display_info(self) -> bytes:
        """struct virtio_gpu_resp_display_info without its header; there are 16 scanouts, most of them disabled."""
        modes = [_DISPLAY.pack(0, 0, *size, 1, 0) for size in self.preferred]
        return b"".join(modes).ljust(_DISPLAY.size * MAX_SCANOUTS, b"\0")

    def _set_scanout(self, index: int, name: int, rect: Rect) -> None:
        scanout = self._scanout(index)
        if not name:
            self._switch_off(index)
            return
        if not self._resource(name).contains(rect):
            raise _RequestError(ERR_INVALID_PARAMETER)
        # The displays have pictures of their own; together they may be as large as the resources.
        others = sum(each.size for each in self._state.scanouts if each is not scanout)
        if others + BYTES_PER_PIXEL * rect.width * rect.height > self.max_memory:
            raise _RequestError(ERR_OUT_OF_MEMORY)
        scanout.resource, scanout.rect = name, rect
        self._show(index)

    def _switch_off(self, index: int) -> None:
        scanout = self._state.scanouts[index]
        if scanout.resource:
            scanout.resource, scanout.rect = 0, _NOTHING
            self.displays[index].switch_off()

    def _flush(self, name: int, rect: Rect) -> None:
        resource = self._resource(name)
        if not resource.contains(rect):
            raise _RequestError(ERR_INVALID_PARAMETER)
        for index, scanout in enumerate(self._state.scanouts):
            if scanout.resource == name:
                shown = scanout.rect
                left, top = max(rect.x, shown.x), max(rect.y, shown.y)
                right = min(rect.x + rect.width, shown.x + shown.width)
                bottom = min(rect.y + rect.height, shown.y + shown.height)
                if left < right and top < bottom:
                    self._draw(index, resource, Rect(left, top, right - left, bottom - top))

    def _show(self, index: int) -> None:
        """Set the mode of a screen, and draw all of it."""
        scanout = self._state.scanouts[index]
        self.displays[index].set_mode(scanout.rect.width, scanout.rect.height)
        self._draw(index, self._state.resources[scanout.resource], scanout.rect)

    def _draw(self, index: int, resource: Resource, rect: Rect) -> None:
        """Copy ``rect`` of the resource, which is on the screen, to it."""
        shown = self._state.scanouts[index].rect
        stride = resource.stride
        start = stride * rect.y + BYTES_PER_PIXEL * rect.x
        row = BYTES_PER_PIXEL * rect.width
        pixels = memoryview(resource.pixels)[start : start + stride * (rect.height - 1) + row]
        self._work += row * rect.height + _PIECE * rect.height
        if FORMATS[resource.format][:3] != (0, 1, 2):
            # Only what is drawn is made anew, not all of the rows.
            rows = [pixels[at : at + row] for at in range(0, len(pixels), stride)]
            pixels, stride = memoryview(_reorder(b"".join(rows), resource.format)), row
        to = Rect(rect.x - shown.x, rect.y - shown.y, rect.width, rect.height)
        self.displays[index].draw(to, pixels, stride)

    def _make_cursor(self, name: int, hot_x: int, hot_y: int) -> Cursor:
        resource = self._resource(name)
        if (resource.width, resource.height) != (CURSOR_SIDE, CURSOR_SIDE):
            raise _RequestError(ERR_INVALID_PARAMETER)
        pixels = _reorder(bytes(resource.pixels), resource.format)
        return Cursor(CURSOR_SIDE, CURSOR_SIDE, pixels, min(hot_x, CURSOR_SIDE - 1), min(hot_y, CURSOR_SIDE - 1))

    def _show_cursor(self, index: int) -> None:
        scanout, display = self._state.scanouts[index], self.displays[index]
        display.set_cursor(scanout.cursor, scanout.cursor_x, scanout.cursor_y)


def _reorder(pixels: bytes, pixel_format: int) -> bytes:
    """Pixels of ``pixel_format`` as blue, green, red, alpha."""
    out = bytearray(b"\xff") * len(pixels)
    for channel, source in enumerate(FORMATS[pixel_format]):
        if source is not None:
            out[channel::BYTES_PER_PIXEL] = pixels[source::BYTES_PER_PIXEL]
    return bytes(out)
