"""The graphics device, driven as section 5.7 says."""

from __future__ import annotations

import struct

import pytest
from virtio_driver import DATA, FULL, PLAIN, Driver

from polyvisor.devices.display import Cursor, Display, Rect
from polyvisor.devices.virtio import gpu as g
from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import transport
from polyvisor.devices.virtio.gpu import GpuDevice

REQUEST = DATA
RESPONSE = DATA + 0x8000
GUEST_PIXELS = DATA + 0x10000
BGRX = 2


class GpuDriver(Driver):
    """Sends commands and gives the answers."""

    def use(self, queue: int) -> None:
        """Send what follows to this queue of the same device."""
        self.queue = queue
        self.set(t.QUEUE_SEL, queue)
        self.set(t.QUEUE_READY, 0)
        self.set_up_queue()

    def command(self, kind: int, form: str = "", *values: int, more: bytes = b"") -> tuple[int, bytes]:
        """The type of the response and what follows its header."""
        request = struct.pack("<IIQIB3x", kind, g.FLAG_FENCE, 0x1122334455667788, 5, 0)
        request += struct.pack("<" + form, *values) + more
        self.memory.write(REQUEST, request)
        self.memory.write(RESPONSE, b"\xee" * 0x1000)
        self.offer(self.chain([(REQUEST, len(request), False), (RESPONSE, 0x1000, True)]))
        self.kick()
        ((_, written),) = self.used()
        answer, flags, fence, context, ring = struct.unpack("<IIQIB3x", self.memory.read(RESPONSE, 24))
        assert (flags, fence, context, ring) == (g.FLAG_FENCE, 0x1122334455667788, 5, 0)
        assert self.memory.read(RESPONSE + written, 1) == b"\xee"
        return answer, self.memory.read(RESPONSE + 24, written - 24)

    def do(self, kind: int, form: str, *values: int, more: bytes = b"") -> int:
        answer, data = self.command(kind, form, *values, more=more)
        assert not data
        return answer

    def create(self, name: int, width: int, height: int, pixel_format: int = BGRX) -> int:
        return self.do(g.RESOURCE_CREATE_2D, "4I", name, pixel_format, width, height)

    def attach(self, name: int, *ranges: tuple[int, int], count: int | None = None) -> int:
        more = b"".join(struct.pack("<QI4x", *each) for each in ranges)
        return self.do(g.RESOURCE_ATTACH_BACKING, "2I", name, len(ranges) if count is None else count, more=more)

    def scanout(self, index: int, name: int, *rect: int) -> int:
        return self.do(g.SET_SCANOUT, "6I", *rect, index, name)

    def transfer(self, name: int, rect: tuple[int, int, int, int], offset: int) -> int:
        return self.do(g.TRANSFER_TO_HOST_2D, "4IQI4x", *rect, offset, name)

    def flush(self, name: int, *rect: int) -> int:
        return self.do(g.RESOURCE_FLUSH, "5I4x", *rect, name)


def words(*colours: int) -> bytes:
    return struct.pack(f"<{len(colours)}I", *colours)


def picture(width: int, height: int, seed: int = 0) -> bytes:
    return words(*((seed << 16) + (y << 8) + x for y in range(height) for x in range(width)))


@pytest.fixture
def display() -> Display:
    return Display(64, 48)


@pytest.fixture
def driver(display: Display) -> GpuDriver:
    return GpuDriver(GpuDevice(display))


@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_a_picture_reaches_the_display(display: Display, features: int) -> None:
    driver = GpuDriver(GpuDevice(display), features)
    assert driver.reg(t.DEVICE_ID) == 16
    pixels = picture(10, 6)
    driver.memory.write(GUEST_PIXELS, pixels)
    assert driver.create(7, 10, 6) == g.OK_NODATA
    assert driver.attach(7, (GUEST_PIXELS, len(pixels))) == g.OK_NODATA
    assert driver.scanout(0, 7, 0, 0, 10, 6) == g.OK_NODATA
    assert display.size == (10, 6) and not any(display.frame().pixels)
    assert driver.transfer(7, (0, 0, 10, 6), 0) == g.OK_NODATA
    assert not any(display.frame().pixels)
    assert driver.flush(7, 0, 0, 10, 6) == g.OK_NODATA
    assert display.frame().pixels == pixels
    # Off, and gone with the resource.
    assert driver.scanout(0, 0, 0, 0, 0, 0) == g.OK_NODATA
    assert display.size == (64, 48) and not display.active
    assert driver.scanout(0, 7, 0, 0, 10, 6) == g.OK_NODATA
    assert display.frame().pixels == pixels
    assert driver.do(g.RESOURCE_UNREF, "I4x", 7) == g.OK_NODATA
    assert not display.active
    assert driver.do(g.RESOURCE_UNREF, "I4x", 7) == g.ERR_INVALID_RESOURCE_ID
    assert driver.device.state.memory == 0


def test_parts_and_scattered_memory(driver: GpuDriver, display: Display) -> None:
    pixels = picture(8, 8)
    # Ranges of odd sizes, out of order, with an empty one: pixels and rows are cut in the middle.
    cuts = [0, 3, 50, 50, 61, 200, 256]
    places = [GUEST_PIXELS + 0x1000 * (9 - i) for i in range(6)]
    for start, end, place in zip(cuts, cuts[1:], places, strict=False):
        driver.memory.write(place, pixels[start:end])
    driver.create(1, 8, 8)
    ranges = [(place, end - start) for start, end, place in zip(cuts, cuts[1:], places, strict=False)]
    assert driver.attach(1, *ranges) == g.OK_NODATA
    driver.scanout(0, 1, 0, 0, 8, 8)
    driver.transfer(1, (0, 0, 8, 8), 0)
    driver.flush(1, 0, 0, 8, 8)
    assert display.frame().pixels == pixels
    # The offset says where the first pixel is; rows are as far apart as in the resource.
    driver.transfer(1, (1, 2, 3, 4), 4 * (8 * 1 + 4))
    expected = bytearray(pixels)
    for row in range(4):
        to, source = 4 * (8 * (2 + row) + 1), 4 * (8 * (1 + row) + 4)
        expected[to : to + 12] = pixels[source : source + 12]
    seen: list[Rect] = []
    display.listen(seen.append)
    driver.flush(1, 1, 2, 3, 4)
    assert display.frame().pixels == expected
    assert seen == [Rect(1, 2, 3, 4)]
    # Only what was flushed is shown.
    driver.transfer(1, (0, 0, 8, 8), 0)
    driver.flush(1, 0, 0, 8, 3)
    assert display.frame().pixels == pixels[:96] + expected[96:]


def test_a_screen_shows_a_part_of_a_resource() -> None:
    displays = Display(8, 8), Display(8, 8)
    driver = GpuDriver(GpuDevice(*displays))
    pixels = picture(8, 4)
    driver.memory.write(GUEST_PIXELS, pixels)
    driver.create(1, 8, 4)
    driver.attach(1, (GUEST_PIXELS, 128))
    driver.transfer(1, (0, 0, 8, 4), 0)
    driver.scanout(0, 1, 0, 0, 4, 4)
    driver.scanout(1, 1, 4, 1, 4, 2)
    left, right = (display.frame() for display in displays)
    assert left.pixels == b"".join(pixels[32 * y : 32 * y + 16] for y in range(4))
    assert (right.width, right.height) == (4, 2)
    assert right.pixels == b"".join(pixels[32 * y + 16 : 32 * y + 32] for y in (1, 2))
    seen: list[tuple[int, Rect]] = []
    for index, display in enumerate(displays):
        display.listen(lambda rect, index=index: seen.append((index, rect)))
    driver.flush(1, 3, 0, 3, 4)
    assert seen == [(0, Rect(3, 0, 1, 4)), (1, Rect(0, 0, 2, 2))]
    driver.flush(1, 0, 3, 8, 1)
    assert seen[2:] == [(0, Rect(0, 3, 4, 1))]


@pytest.mark.parametrize(
    ("pixel_format", "memory"),
    [
        (1, "332211ff"), (2, "33221100"), (3, "ff112233"), (4, "00112233"),
        (67, "112233ff"), (68, "00332211"), (121, "ff332211"), (134, "11223300"),
    ],
)
def test_formats(driver: GpuDriver, display: Display, pixel_format: int, memory: str) -> None:
    driver.memory.write(GUEST_PIXELS, bytes(8) + bytes.fromhex(memory) + bytes(4))
    driver.create(1, 2, 2, pixel_format)
    driver.attach(1, (GUEST_PIXELS, 16))
    driver.transfer(1, (0, 0, 2, 2), 0)
    driver.scanout(0, 1, 0, 0, 2, 2)
    driver.flush(1, 0, 0, 2, 2)
    frame = display.frame()
    assert frame.pixel(0, 1) == (0x11, 0x22, 0x33)
    assert frame.pixel(1, 1) == frame.pixel(0, 0) == (0, 0, 0)


def test_display_info_edid_and_events() -> None:
    displays = Display(640, 480), Display(800, 600)
    driver = GpuDriver(GpuDevice(*displays))
    assert [driver.mmio.read(t.CONFIG + at, 4) for at in (0, 4, 8, 12)] == [0, 0, 2, 0]
    answer, data = driver.command(g.GET_DISPLAY_INFO)
    assert answer == g.OK_DISPLAY_INFO and len(data) == 16 * 24
    assert [struct.unpack_from("<6I", data, 24 * i) for i in range(3)] == [
        (0, 0, 640, 480, 1, 0), (0, 0, 800, 600, 1, 0), (0,) * 6
    ]
    answer, data = driver.command(g.GET_EDID, "I4x", 1)
    assert answer == g.OK_EDID and len(data) == 8 + 1024
    assert struct.unpack_from("<II", data) == (128, 0)
    assert data[8 + 56] == 800 & 0xFF and sum(data[8:136]) % 256 == 0 and not any(data[136:])
    driver.ack()
    generation = driver.reg(t.CONFIG_GENERATION)
    displays[1].resize(1000, 700)
    assert driver.ack() == transport.INTERRUPT_CONFIG and driver.reg(t.CONFIG_GENERATION) != generation
    assert driver.mmio.read(t.CONFIG, 4) == g.EVENT_DISPLAY
    driver.mmio.write(t.CONFIG, 4, 0)
    assert driver.mmio.read(t.CONFIG, 4) == g.EVENT_DISPLAY
    driver.mmio.write(t.CONFIG + 4, 4, g.EVENT_DISPLAY)
    assert driver.mmio.read(t.CONFIG, 4) == 0
    _, data = driver.command(g.GET_DISPLAY_INFO)
    assert struct.unpack_from("<6I", data, 24) == (0, 0, 1000, 700, 1, 0)


def test_edid_is_a_feature(display: Display) -> None:
    assert GpuDriver(GpuDevice(display), own=0).do(g.GET_EDID, "I4x", 0) == g.ERR_UNSPEC


def test_the_pointer(display: Display) -> None:
    driver = GpuDriver(GpuDevice(display))
    driver.memory.write(GUEST_PIXELS, words(*[0x80112233] * 4096))
    driver.create(9, 64, 64, 1)
    driver.attach(9, (GUEST_PIXELS, 16384))
    driver.transfer(9, (0, 0, 64, 64), 0)
    driver.create(1, 64, 48)
    driver.scanout(0, 1, 0, 0, 64, 48)
    # Now the cursor queue, in the same device.
    device, state = driver.device, driver.device.state
    driver.use(g.CURSOR_QUEUE)
    assert driver.do(g.UPDATE_CURSOR, "Iii4x3I4x", 0, 5, -6, 9, 3, 70) == g.OK_NODATA
    assert display.cursor == (Cursor(64, 64, words(*[0x80112233] * 4096), 3, 63), 5, -6)
    assert driver.do(g.MOVE_CURSOR, "Iii4x3I4x", 0, 60, 40, 0, 0, 0) == g.OK_NODATA
    assert display.cursor is not None and display.cursor[1:] == (60, 40)
    assert driver.do(g.UPDATE_CURSOR, "Iii4x3I4x", 0, 0, 0, 1, 0, 0) == g.ERR_INVALID_PARAMETER  # not 64 by 64
    assert driver.do(g.UPDATE_CURSOR, "Iii4x3I4x", 0, 0, 0, 8, 0, 0) == g.ERR_INVALID_RESOURCE_ID
    assert driver.do(g.MOVE_CURSOR, "Iii4x3I4x", 1, 0, 0, 0, 0, 0) == g.ERR_INVALID_SCANOUT_ID
    assert driver.do(g.GET_DISPLAY_INFO, "") == g.ERR_UNSPEC
    # Linux gives no room for a response here.
    request = struct.pack("<IIQIB3x", g.UPDATE_CURSOR, 0, 0, 0, 0) + struct.pack("<Iii4x3I4x", 0, 1, 2, 0, 0, 0)
    driver.memory.write(REQUEST, request)
    driver.offer(driver.chain([(REQUEST, len(request), False)]))
    driver.kick()
    assert driver.used() == [(0, 0)]
    assert display.cursor is None
    assert device.state is state


def test_reset_forgets_and_the_state_can_be_put_back(driver: GpuDriver, display: Display) -> None:
    pixels = picture(4, 4)
    driver.memory.write(GUEST_PIXELS, pixels)
    driver.create(1, 4, 4)
    driver.attach(1, (GUEST_PIXELS, 64))
    driver.transfer(1, (0, 0, 4, 4), 0)
    driver.scanout(0, 1, 0, 0, 4, 4)
    kept = driver.device.state
    driver.set(t.STATUS, 0)
    assert not display.active and driver.device.state.resources == {}
    driver.device.state = kept
    assert display.frame().pixels == pixels
    driver.device.close()
    assert display.frame().pixels == pixels
    after = GpuDevice(display)
    assert not display.active
    with pytest.raises(ValueError, match="another device"):
        GpuDevice(Display(), display)
    after.close()


def test_a_device_has_one_to_sixteen_displays() -> None:
    for count in (0, 17):
        with pytest.raises(ValueError, match="1 to 16"):
            GpuDevice(*(Display(16, 16) for _ in range(count)))


@pytest.mark.parametrize(
    ("width", "height", "pixel_format"),
    [(0, 1, 1), (1, 0, 1), (g.MAX_SIDE + 1, 1, 1), (1, 2**32 - 1, 1), (4, 4, 0), (4, 4, 5), (4, 4, 2**32 - 1)],
)
def test_impossible_resources(driver: GpuDriver, width: int, height: int, pixel_format: int) -> None:
    assert driver.create(1, width, height, pixel_format) == g.ERR_INVALID_PARAMETER


def test_mistakes_are_answered(driver: GpuDriver, display: Display) -> None:
    assert driver.create(0, 4, 4) == g.ERR_INVALID_RESOURCE_ID
    assert driver.create(1, 4, 4) == g.OK_NODATA
    assert driver.create(1, 4, 4) == g.ERR_INVALID_RESOURCE_ID
    assert driver.transfer(1, (0, 0, 4, 4), 0) == g.ERR_UNSPEC  # nothing attached
    for ranges, count in [
        ([(0x1000, 64)], None),  # not RAM
        ([(GUEST_PIXELS, 64), (2**64 - 32, 64)], None),
        ([(GUEST_PIXELS, 2**32 - 1)], None),
        ([(GUEST_PIXELS, 64)], 2),  # fewer than said
        ([], g.MAX_ENTRIES + 1),
        ([], 2**32 - 1),
    ]:
        assert driver.attach(1, *ranges, count=count) == g.ERR_INVALID_PARAMETER
    assert driver.attach(1, (GUEST_PIXELS, 60), (GUEST_PIXELS, 0)) == g.OK_NODATA
    assert driver.attach(1, (GUEST_PIXELS, 64)) == g.ERR_UNSPEC
    for rect, offset in [
        ((0, 0, 4, 4), 0),  # four bytes beyond the backing
        ((0, 0, 1, 1), 57),
        ((0, 0, 1, 1), 2**64 - 4),
        ((0, 0, 5, 1), 0),
        ((0, 0, 0, 1), 0),
        ((0, 0, 1, 0), 0),
        ((3, 3, 2**32 - 1, 2**32 - 1), 0),
        ((2**32 - 1, 0, 2, 1), 0),
    ]:
        assert driver.transfer(1, rect, offset) == g.ERR_INVALID_PARAMETER, (rect, offset)
    assert driver.transfer(1, (0, 0, 3, 4), 0) == g.OK_NODATA
    assert driver.transfer(2, (0, 0, 1, 1), 0) == g.ERR_INVALID_RESOURCE_ID
    assert driver.scanout(1, 1, 0, 0, 4, 4) == g.ERR_INVALID_SCANOUT_ID
    assert driver.scanout(0, 2, 0, 0, 4, 4) == g.ERR_INVALID_RESOURCE_ID
    for rect in [(0, 0, 5, 4), (1, 0, 4, 4), (0, 0, 0, 0), (0, 2**32 - 1, 4, 4)]:
        assert driver.scanout(0, 1, *rect) == g.ERR_INVALID_PARAMETER
        assert driver.flush(1, *rect) == g.ERR_INVALID_PARAMETER
    assert driver.flush(2, 0, 0, 1, 1) == g.ERR_INVALID_RESOURCE_ID
    assert driver.do(g.RESOURCE_DETACH_BACKING, "I4x", 1) == g.OK_NODATA
    assert driver.do(g.RESOURCE_DETACH_BACKING, "I4x", 2) == g.ERR_INVALID_RESOURCE_ID
    assert driver.transfer(1, (0, 0, 1, 1), 0) == g.ERR_UNSPEC
    assert driver.do(g.GET_EDID, "I4x", 1) == g.ERR_INVALID_SCANOUT_ID
    assert driver.do(g.RESOURCE_CREATE_2D, "3I", 5, 1, 4) == g.ERR_INVALID_PARAMETER  # cut short
    for unknown in (0, 0x108, 0x10C, 0x200, g.UPDATE_CURSOR, g.OK_NODATA, 2**32 - 1):
        assert driver.do(unknown, "8I", *range(8)) == g.ERR_UNSPEC
    assert not display.active and not driver.needs_reset


def test_requests_without_a_header_or_room(driver: GpuDriver) -> None:
    driver.memory.write(REQUEST, struct.pack("<IIQI", g.GET_DISPLAY_INFO, 1, 7, 7))
    driver.offer(driver.chain([(REQUEST, 20, False), (RESPONSE, 64, True)]))
    driver.offer(driver.chain([(RESPONSE, 64, True)], first=2))
    driver.offer(driver.chain([(REQUEST, 24, False)], first=3))
    driver.offer(driver.chain([(REQUEST, 24, False), (RESPONSE + 64, 6, True)], first=4))
    driver.kick()
    assert driver.used() == [(0, 24), (2, 24), (3, 0), (4, 6)]
    assert driver.get(RESPONSE, "I") == g.ERR_UNSPEC


def test_memory_is_bounded(display: Display) -> None:
    driver = GpuDriver(GpuDevice(display, max_memory=1 << 20))
    assert driver.create(1, 512, 500) == g.OK_NODATA
    assert driver.create(2, 64, 64) == g.OK_NODATA
    assert driver.create(3, 64, 64) == g.ERR_OUT_OF_MEMORY
    assert driver.do(g.RESOURCE_UNREF, "I4x", 2) == g.OK_NODATA
    # Small ones count too, and what they are backed with.
    names = 0
    while driver.create(10 + names, 1, 1) == g.OK_NODATA:
        names += 1
    assert 4 <= names <= 24
    for name in range(10, 10 + names):
        driver.do(g.RESOURCE_UNREF, "I4x", name)
    assert driver.attach(1, *[(GUEST_PIXELS, 16)] * 300) == g.ERR_OUT_OF_MEMORY
    assert driver.attach(1, *[(GUEST_PIXELS, 16)] * 100) == g.OK_NODATA
    driver.do(g.RESOURCE_DETACH_BACKING, "I4x", 1)
    driver.do(g.RESOURCE_UNREF, "I4x", 1)
    assert driver.device.state.memory == 0
    assert driver.create(1, g.MAX_SIDE, g.MAX_SIDE) == g.ERR_OUT_OF_MEMORY


def test_large_pictures_are_not_on_many_displays() -> None:
    driver = GpuDriver(GpuDevice(*(Display() for _ in range(3)), max_memory=1 << 20))
    assert driver.create(1, 500, 250) == g.OK_NODATA
    assert [driver.scanout(index, 1, 0, 0, 500, 250) for index in range(3)] == [g.OK_NODATA] * 2 + [g.ERR_OUT_OF_MEMORY]
    assert driver.scanout(1, 1, 0, 0, 500, 250) == g.OK_NODATA
    assert driver.scanout(0, 0, 0, 0, 0, 0) == g.OK_NODATA
    assert driver.scanout(2, 1, 0, 0, 500, 250) == g.OK_NODATA


def test_devices_with_default_limits_refuse_a_gigabyte(driver: GpuDriver) -> None:
    assert driver.create(1, g.MAX_SIDE, g.MAX_SIDE) == g.ERR_OUT_OF_MEMORY
