"""Graphics drivers that send anything at all: the device must not raise, hang, or take more memory than it may."""

from __future__ import annotations

import random
import struct

import pytest
from test_gpu import GUEST_PIXELS, REQUEST, RESPONSE, GpuDriver
from test_hostile import attack
from virtio_driver import BASE, DATA, FULL, PLAIN, SIZE, TABLES

from polyvisor.devices.display import BYTES_PER_PIXEL, Display, Rect
from polyvisor.devices.virtio import gpu as g
from polyvisor.devices.virtio.gpu import GpuDevice

MAX_MEMORY = 1 << 20
KINDS = [*range(0x0FF, 0x10D), 0x2FF, g.UPDATE_CURSOR, g.MOVE_CURSOR, 0x302, g.OK_NODATA, 0, 2**32 - 1]

USEFUL = [
    *(g.SET_SCANOUT, g.RESOURCE_CREATE_2D, g.RESOURCE_CREATE_2D, g.RESOURCE_ATTACH_BACKING, g.UPDATE_CURSOR),
    *[g.RESOURCE_FLUSH] * 3, *[g.TRANSFER_TO_HOST_2D] * 3,
]


def value(rng: random.Random) -> int:
    return rng.choice([0, 1, 1, 2, 2, 3, 4, 8, 63, 64, 65, rng.randrange(300), 2**31, 2**32 - 1, rng.getrandbits(32)])


def request(rng: random.Random) -> bytes:
    """A command with parameters that are often nearly right."""
    def rect() -> list[int]:
        return [rng.randrange(5), rng.randrange(5), rng.randrange(9), rng.randrange(9)]

    kind = rng.choice(KINDS if rng.random() < 0.2 else USEFUL)
    header = struct.pack("<IIQIB3x", kind, rng.getrandbits(2), rng.getrandbits(64), value(rng), 0)
    name = rng.choice([0, 1, 1, 2, 2, 3, 4])
    if rng.random() < 0.1:
        body = struct.pack("<8I", *(value(rng) for _ in range(8)))
    elif kind == g.RESOURCE_CREATE_2D:
        side = rng.choice([8, 12, 64, 64, 200, g.MAX_SIDE])
        body = struct.pack("<4I", name, rng.choice([*g.FORMATS, 5]), side, rng.choice([side, side, 1, 2**31]))
    elif kind == g.RESOURCE_ATTACH_BACKING:
        count = rng.choice([0, 1, 3, 40, 500])
        body = struct.pack("<2I", name, rng.choice([count] * 6 + [count + 1, 2**32 - 1]))
        for _ in range(count):
            where = rng.choice([GUEST_PIXELS + rng.randrange(5000)] * 2000 + [BASE + SIZE - 8, 0, rng.getrandbits(64)])
            body += struct.pack("<QI4x", where, rng.choice([0, 1, 100, 5000, 8] * 10 + [2**32 - 1]))
    elif kind == g.TRANSFER_TO_HOST_2D:
        offset = rng.choice([0, 0, rng.randrange(5000), 2**64 - rng.randrange(1, 5000), rng.getrandbits(64)])
        body = struct.pack("<4IQI4x", *rect(), offset, name)
    elif kind == g.SET_SCANOUT:
        body = struct.pack("<6I", *rect(), rng.randrange(3), name)
    elif kind == g.RESOURCE_FLUSH:
        body = struct.pack("<5I4x", *rect(), name)
    elif kind == g.UPDATE_CURSOR:
        body = struct.pack("<I2I4x3I4x", rng.randrange(3), value(rng), value(rng), name, value(rng), value(rng))
    else:
        body = struct.pack("<2I", name, value(rng))
    whole = header + body
    return whole[: rng.randrange(len(whole))] if rng.random() < 0.05 else whole


def check(device: GpuDevice, displays: tuple[Display, ...]) -> None:
    """What must be so after any command."""
    state = device.state
    used = sum(
        len(r.pixels) + g._RESOURCE_COST + g._ENTRY_COST * len(r.backing or ()) for r in state.resources.values()
    )
    assert state.memory == used <= MAX_MEMORY
    for scanout, display in zip(state.scanouts, displays, strict=True):
        assert display.active == bool(scanout.resource)
        if scanout.resource:
            assert state.resources[scanout.resource].contains(scanout.rect)
            assert display.size == (scanout.rect.width, scanout.rect.height)
        frame = display.frame(cursor=True)
        assert len(frame.pixels) == BYTES_PER_PIXEL * frame.width * frame.height
    assert sum(scanout.size for scanout in state.scanouts) <= MAX_MEMORY


def test_any_command() -> None:
    rng = random.Random(1)
    displays = Display(16, 16), Display(8, 300)
    seen: list[tuple[Rect, tuple[int, int]]] = []
    displays[0].listen(lambda rect: seen.append((rect, displays[0].size)))
    device = GpuDevice(*displays, max_memory=MAX_MEMORY)
    driver = GpuDriver(device)
    answers = set()
    for _ in range(6000):
        data = request(rng)
        # Both queues' commands, on resources that both know.
        if rng.random() < 0.1:
            driver.use(rng.choice([g.CURSOR_QUEUE, g.CONTROL_QUEUE]))
        driver.memory.write(REQUEST, data)
        driver.offer(driver.chain([(REQUEST, len(data), False), (RESPONSE, 0x1000, True)]))
        driver.kick()
        assert len(driver.used()) == 1 and not driver.needs_reset
        answers.add(driver.get(RESPONSE, "I"))
        check(device, displays)
    for rect, (width, height) in seen:
        assert rect.width and rect.height and rect.x + rect.width <= width and rect.y + rect.height <= height
    assert len(seen) > 100 and {g.OK_NODATA, g.ERR_OUT_OF_MEMORY, g.ERR_INVALID_PARAMETER} <= answers


@pytest.mark.parametrize("features", [PLAIN, FULL])
@pytest.mark.parametrize("queue", [g.CONTROL_QUEUE, g.CURSOR_QUEUE])
def test_any_rings(features: int, queue: int) -> None:
    rng = random.Random(7)
    displays = Display(16, 16), Display(32, 32)
    device = GpuDevice(*displays, max_memory=MAX_MEMORY)
    driver = GpuDriver(device, features, queue=queue)
    failures = 0
    for _ in range(2000):
        if rng.random() < 0.3:
            data = request(rng)
            driver.memory.write(DATA + 16 * rng.randrange(64), data)
            driver.memory.write(TABLES, struct.pack("<QIHH", DATA, len(data), 1, 1))
        attack(driver, rng)
        failures += driver.needs_reset
        check(device, displays)
    assert 20 < failures < 2000
    driver.size = 16
    driver.start(features)
    driver.use(g.CONTROL_QUEUE)
    assert driver.command(g.GET_DISPLAY_INFO)[0] == g.OK_DISPLAY_INFO
