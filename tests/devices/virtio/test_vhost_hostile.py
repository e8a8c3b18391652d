"""Back ends that break the protocol or die: nothing is believed, nothing hangs, and a reset finds the next one."""

from __future__ import annotations

import random
import struct
import threading
from pathlib import Path

import pytest
from vhost_back_end import (
    BACKEND_REQ,
    CONFIG,
    MQ,
    PROTOCOL_FEATURES,
    REPLY_ACK,
    VERSION_1,
    Echo,
    Make,
    Request,
    TestBackEnd,
    answers,
    eventually,
    kinds,
    reply,
    request,
    reverse,
)
from virtio_driver import DATA, Driver, every_wiring

from polyvisor.devices.virtio import mmio as t


def recovers(driver: Driver, server: TestBackEnd) -> None:
    """After a reset there is a new connection, and all is well."""
    server.serve = reverse
    driver.start(driver.features)
    request(driver, b"works", 10)
    driver.kick()
    assert answers(driver) == [(0, 5)] and reply(driver, 5) == b"skrow"
    device = driver.device
    assert isinstance(device, Echo) and device.failure is None
    device.close()


@every_wiring
@pytest.mark.parametrize(
    ("heads", "written", "count", "says"),
    [
        ([5000], 1, 1, "gives back buffer 5000"),
        ([None, None], 1, 1, "gives back 2 buffers of 1"),
        ([None], 11, 1, "wrote 11 bytes into a buffer of 10"),
        ([None], 0xFFFFFFFF, 1, "wrote 4294967295 bytes"),
        ([None], 1, 2, "gives back 2 buffers of 1"),
        ([None], 1, 0xFFFF, "gives back 65535 buffers of 1"),
        ([1 << 31], 1, 1, "gives back buffer 2147483648"),
    ],
)
def test_impossible_used_entries(
    back_end: Make, heads: list[int | None], written: int, count: int, says: str
) -> None:
    def serve(index: int, request: Request) -> None:
        for head in heads:
            server.give_back(index, request.head if head is None else head, written, count, call=False)
        server.call(index)

    server = back_end(serve)
    device = Echo(server.path)
    driver = Driver(device)
    request(driver, b"12", 10)
    before = driver.memory.read(DATA, 0x2000)
    driver.kick()
    eventually(lambda: driver.needs_reset)
    assert says in str(device.failure)
    assert driver.memory.read(DATA, 0x2000) == before and not driver.used()
    # Whoever has been given memory may have written it.
    assert (DATA + 0x900, 9) in driver.written
    recovers(driver, server)


def test_the_same_buffer_twice_among_several(back_end: Make) -> None:
    kept: list[int] = []
    server = back_end(lambda index, request: kept.append(request.head))
    device = Echo(server.path)
    driver = Driver(device)
    for i in range(2):
        request(driver, b"12", 10, 4 * i)
    driver.kick()
    eventually(lambda: len(kept) == 2)
    with server.lock:
        server.give_back(0, kept[0], 1, call=False)
        server.give_back(0, kept[0], 1)
    eventually(lambda: driver.needs_reset)
    assert "which it does not have" in str(device.failure) and not driver.used()
    recovers(driver, server)


def test_it_writes_all_over_its_rings(back_end: Make) -> None:
    """Descriptors and the available ring are not read back."""
    kept: list[int] = []
    server = back_end(lambda index, request: kept.append(request.head))
    driver = Driver(Echo(server.path))
    request(driver, b"12", 10)
    driver.kick()
    eventually(lambda: kept)
    with server.lock:
        ring = server.rings[0]
        server.at(ring.descriptors, 256, user=True)[:] = b"\xff" * 256
        server.at(ring.available, 38, user=True)[:] = b"\xff" * 38
        server.give_back(0, kept[0], 2)
    assert answers(driver) == [(0, 2)]
    recovers(driver, server)


def test_it_cannot_shorten_the_memory_of_the_rings(back_end: Make) -> None:
    server = back_end()
    driver = Driver(Echo(server.path))
    driver.kick()
    eventually(lambda: len(server.regions) == 2)
    with pytest.raises(OSError, match="not permitted"):
        server.regions[1].memory.resize(4096)
    recovers(driver, server)


def test_it_reports_an_error(back_end: Make) -> None:
    server = back_end(lambda index, request: server.report_error(index))
    device = Echo(server.path)
    driver = Driver(device)
    request(driver, b"12", 10)
    driver.kick()
    eventually(lambda: driver.needs_reset)
    assert "reports an error" in str(device.failure)
    recovers(driver, server)


@pytest.mark.parametrize(
    "message",
    [struct.pack("=III", 2, 1, 4) + b"1234", struct.pack("=III", 1, 1, 0), struct.pack("=III", 2, 2, 0), b"123"],
)
def test_it_asks_for_what_it_may_not(back_end: Make, message: bytes) -> None:
    server = back_end(config=bytearray(4), protocol=MQ | REPLY_ACK | CONFIG | BACKEND_REQ)
    device = Echo(server.path, 4)
    driver = Driver(device)
    eventually(lambda: server.channel)
    # Taken once: when the device gives up, the server's own thread forgets it.
    channel = server.channel
    assert channel is not None
    channel.sendall(message)
    if len(message) < 12:
        channel.close()
        server.channel = None
    eventually(lambda: device.failure)
    recovers(driver, server)


@every_wiring
def test_it_dies_with_requests(back_end: Make) -> None:
    kept: list[int] = []
    server = back_end(lambda index, request: kept.append(request.head))
    device = Echo(server.path)
    told: list[str] = []
    device.on_failure = lambda error: told.append(str(error))
    driver = Driver(device)
    request(driver, b"12", 10)
    driver.kick()
    eventually(lambda: kept)
    server.die()
    eventually(lambda: driver.needs_reset and told)
    assert told == [str(device.failure)] == [f"the back end at {server.path} ended the connection"]
    recovers(driver, server)


def test_it_dies_with_nothing_to_do(back_end: Make) -> None:
    server = back_end()
    device = Echo(server.path)
    driver = Driver(device)
    server.die()
    eventually(lambda: device.failure)
    assert not driver.needs_reset
    request(driver, b"12", 10)
    driver.kick()
    assert driver.needs_reset
    recovers(driver, server)


def test_what_it_did_before_it_died_is_not_lost(back_end: Make) -> None:
    def serve(index: int, request: Request) -> None:
        server.give_back(index, request.head, request.fill(b"last"), call=False)
        server.die()

    server = back_end(serve)
    driver = Driver(Echo(server.path))
    request(driver, b"12", 10)
    driver.kick()
    assert answers(driver) == [(0, 4)] and reply(driver, 4) == b"last"
    recovers(driver, server)


def test_there_is_no_next_one(back_end: Make, tmp_path: Path) -> None:
    server = back_end()
    device = Echo(server.path)
    driver = Driver(device)
    server.path.unlink()
    server.die()
    eventually(lambda: device.failure)
    for _ in range(2):
        driver.start(driver.features)
        request(driver, b"12", 10)
        driver.kick()
        assert driver.needs_reset and "cannot be reached" in str(device.failure)
    assert driver.reg(t.DEVICE_ID) == 42
    device.close()
    device.close()


def test_the_next_one_can_do_less(back_end: Make) -> None:
    server = back_end(features=VERSION_1 | PROTOCOL_FEATURES | 1)
    device = Echo(server.path)
    driver = Driver(device)
    server.features ^= 1
    server.die()
    eventually(lambda: device.failure)
    driver.start(driver.features)
    request(driver, b"12", 10)
    driver.kick()
    assert driver.needs_reset and "no longer offers" in str(device.failure)
    device.close()


@pytest.mark.parametrize("refused", [2, 5, 8, 9, 10, 12, 13, 14, 18])
def test_it_refuses_a_step(back_end: Make, refused: int) -> None:
    server = back_end(spoil=lambda kind, data: data[:-1] + b"\1" if kind == refused else data)
    device = Echo(server.path)
    told: list[str] = []
    device.on_failure = lambda error: told.append(str(error))
    driver = Driver(device)
    request(driver, b"12", 10)
    driver.kick()
    assert told == [str(device.failure)]
    assert driver.needs_reset and "refuses SET_" in str(device.failure)
    assert refused in kinds(server)
    server.spoil = lambda kind, data: data
    recovers(driver, server)


@every_wiring
def test_deaths_and_resets_at_any_time(back_end: Make) -> None:
    """While other harts kick and acknowledge: nothing is stuck, and nothing is raised."""
    rng = random.Random(4)
    server = back_end(features=VERSION_1 | PROTOCOL_FEATURES)
    driver = Driver(Echo(server.path))
    ended = threading.Event()
    errors: list[BaseException] = []

    def hart() -> None:
        try:
            while not ended.wait(0.0005):
                driver.mmio.write(t.QUEUE_NOTIFY, 4, 0)
                driver.ack()
                driver.reg(t.STATUS)
        except BaseException as error:
            errors.append(error)

    harts = [threading.Thread(target=hart) for _ in range(2)]
    for thread in harts:
        thread.start()
    try:
        for _ in range(150):
            for i in range(3):
                request(driver, rng.randbytes(rng.randrange(2, 50)), 100, 4 * i, DATA + 0x1000 * i)
            driver.kick()
            happens = rng.random()
            if happens < 0.3:
                server.die()
            if happens > 0.2:
                driver.used()
                driver.set(t.STATUS, 0)
                driver.start(driver.features)
    finally:
        ended.set()
        for thread in harts:
            thread.join(30)
    assert not errors and not any(thread.is_alive() for thread in harts)
    recovers(driver, server)
