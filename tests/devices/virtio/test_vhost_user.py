"""Devices with a vhost-user back end: negotiation, shadow rings, configuration, states. The back end is a test's."""

from __future__ import annotations

import copy
import random
import struct
from pathlib import Path
from typing import Any

import pytest
from test_hostile import attack
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
    answers,
    eventually,
    kinds,
    reply,
    request,
    reverse,
)
from virtio_driver import BASE, DATA, DESC, FULL, PLAIN, SIZE, Driver, every_wiring

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio.queue import DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, Chain
from polyvisor.devices.virtio.transport import INTERRUPT_CONFIG, INTERRUPT_USED
from polyvisor.devices.virtio.vhost_messages import VhostUserError
from polyvisor.devices.virtio.vhost_ring import ShadowRing, ring_bytes


@every_wiring
@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_requests_reach_the_back_end_and_answers_the_guest(back_end: Make, features: int) -> None:
    framing: list[list[int]] = []

    def serve(index: int, request: Request) -> int:
        framing.append([*map(len, request.readable), -1, *map(len, request.writable)])
        return reverse(index, request)

    server = back_end(serve)
    driver = Driver(Echo(server.path), features)
    for turn in range(40):
        data = b"request %d" % turn
        request(driver, data, 100)
        if not driver.packed:
            driver.used_event(driver.seen)
        driver.written.clear()
        driver.kick()
        assert answers(driver) == [(0, len(data))]
        assert reply(driver, len(data)) == data[::-1]
        # The engine hears of all that could have been written.
        assert {(DATA + 0x800, 1), (DATA + 0x900, 99)} <= set(driver.written)
        eventually(lambda: driver.wire.level)
        assert driver.ack() == INTERRUPT_USED
        assert framing[-1] == [len(data) // 2, len(data) - len(data) // 2, -1, 1, 99]
    driver.device.close()


def test_what_is_negotiated(back_end: Make) -> None:
    server = back_end(features=VERSION_1 | PROTOCOL_FEATURES | 1 << 3 | 1 << 28 | 1 << 29 | 1 << 34 | 1 << 55)
    device = Echo(server.path)
    assert device.features == 1 << 3 | 1 << 55
    driver = Driver(device, own=1 << 55)
    assert kinds(server) == [1, 15, 16, 3, 17]
    driver.kick()
    eventually(lambda: 18 in kinds(server))
    assert kinds(server)[5:] == [2, 5, 8, 10, 9, 13, 14, 12, 18]
    assert server.agreed == VERSION_1 | PROTOCOL_FEATURES | 1 << 55
    regions = [(region.guest, region.size) for region in server.regions]
    assert regions[0] == (BASE, SIZE) and len(regions) == 2 and regions[1][0] >= BASE + SIZE
    assert server.rings[0].size == 16 and server.rings[0].base == 0 and not server.rings[1].enabled
    # All that is answered by nothing else is acknowledged.
    assert {flags for kind, flags, _ in server.log if kind not in (1, 3, 15, 16, 17)} == {9}
    device.close()
    eventually(lambda: not server.connected.is_set())


@pytest.mark.parametrize(
    ("features", "protocol"), [(VERSION_1, 0), (VERSION_1 | PROTOCOL_FEATURES, 0), (VERSION_1 | PROTOCOL_FEATURES, MQ)]
)
def test_back_ends_with_little_of_the_protocol(back_end: Make, features: int, protocol: int) -> None:
    server = back_end(features=features, protocol=protocol)
    driver = Driver(Echo(server.path))
    request(driver, b"abc", 10)
    driver.kick()
    assert answers(driver) == [(0, 3)] and reply(driver, 3) == b"cba"
    assert all(flags == 1 for _, flags, _ in server.log)
    assert (18 in kinds(server)) == bool(features & PROTOCOL_FEATURES)
    driver.device.close()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize(
    ("options", "config_size", "says"),
    [
        ({"features": PROTOCOL_FEATURES}, 0, "does not offer VIRTIO 1"),
        ({"queues": 1}, 0, "has 1 queues; 2 are needed"),
        ({}, 8, "does not offer its configuration space"),
        ({"protocol": CONFIG, "spoil": lambda kind, data: data[:12] if kind == 24 else data}, 8, "does not answer"),
        ({"spoil": lambda kind, data: data[:8] + b"\0\0\0\x10" + data[12:]}, 0, "answers GET_FEATURES with nonsense"),
        ({"spoil": lambda kind, data: b"\2" + data[1:]}, 0, "answers GET_FEATURES with nonsense"),
        ({"spoil": lambda kind, data: data[:4] + b"\1" + data[5:]}, 0, "answers GET_FEATURES with nonsense"),
        ({"spoil": lambda kind, data: data[:8] + struct.pack("=I", 4) + data[12:16]}, 0, "GET_FEATURES with 4 bytes"),
        ({"spoil": lambda kind, data: data if kind != 3 else data[:12] + b"\1" + data[13:]}, 0, "refuses SET_OWNER"),
        ({"spoil": lambda kind, data: None if kind == 17 else data}, 0, "does not answer"),
        ({"spoil": lambda kind, data: data[:10]}, 0, "does not answer"),
    ],
)
def test_back_ends_that_cannot_be_used(
    back_end: Make, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], config_size: int, says: str
) -> None:
    monkeypatch.setattr("polyvisor.devices.virtio.vhost_session.PATIENCE", 0.3)
    server = back_end(**options)
    before = open_files()
    with pytest.raises(VhostUserError, match=f"^the back end at .*socket0 .*{says}") as caught:
        Echo(server.path, config_size)
    assert "\n" not in str(caught.value)
    eventually(lambda: not server.connected.is_set())
    eventually(lambda: open_files() <= before)


def test_no_back_end_at_all(tmp_path: Path) -> None:
    with pytest.raises(VhostUserError, match=r"at .*nowhere cannot be reached: No such file or directory"):
        Echo(tmp_path / "nowhere")
    with pytest.raises(VhostUserError, match=r"cannot be reached: .*too long"):
        Echo(tmp_path / ("x" * 200))
    with pytest.raises(ValueError, match="configuration space of 257 bytes"):
        Echo(tmp_path / "nowhere", 257)


@every_wiring
def test_buffers_come_back_in_any_order(back_end: Make) -> None:
    kept: list[int] = []
    server = back_end(lambda index, request: kept.append(request.head))
    driver = Driver(Echo(server.path))
    if driver.packed:
        driver.offered.default_factory = lambda: [4]  # all are of that length, whatever their order
    for i in range(4):
        request(driver, b"12", 10, first=4 * i, at=DATA + 0x1000 * i)
    driver.kick()
    eventually(lambda: len(kept) == 4)
    assert not driver.used()
    with server.lock:
        for number, written in ((2, 5), (0, 0), (3, 10)):
            server.give_back(0, kept[number], written, call=False)
        server.call(0)
    assert answers(driver, 3) == [(8, 5), (0, 0), (12, 10)]
    with server.lock:
        server.give_back(0, kept[1], 1)
    assert answers(driver) == [(4, 1)]
    driver.device.close()


def test_buffers_that_find_no_room_wait_for_some(back_end: Make) -> None:
    kept: list[int] = []
    server = back_end(lambda index, request: kept.append(request.head))
    driver = Driver(Echo(server.path, sizes=(8, 8)), size=8)
    for i in range(8):  # each takes three descriptors of eight in the shadow ring, one in the guest's
        where = DATA + 0x1000 * i
        table = DATA + 0x10000 + 0x100 * i
        parts = [(where, 1, False), (where + 1, 1, False), (where + 0x800, 4, True)]
        driver.memory.write(where, bytes([i, i]))
        driver.offer(driver.indirect(parts, i, table))
    driver.kick()
    for turn in range(8):
        eventually(lambda turn=turn: len(kept) > turn)
        assert len(kept) - turn <= 2
        with server.lock:
            server.give_back(0, kept[turn], 1)
        assert answers(driver) == [(turn, 1)]
    driver.device.close()


def test_a_buffer_of_nothing(back_end: Make) -> None:
    server = back_end()
    driver = Driver(Echo(server.path))
    driver.offer(driver.chain([(DATA, 0, False), (DATA, 0, True)]))
    driver.kick()
    assert answers(driver) == [(0, 0)]
    driver.device.close()


def test_a_ring_for_longer_than_its_counters() -> None:
    """Against a back end in a few lines; every position of ring and counters is passed."""
    rng = random.Random(3)
    view = memoryview(bytearray(ring_bytes(8)))
    ring = ShadowRing(view, 0x1000, 8)
    words = view.cast("H")
    available, used = (ring.available - 0x1000) // 2, (ring.used - 0x1000) // 2
    seen = done = 0
    held: list[int] = []
    expected: dict[int, Chain] = {}
    for turn in range(80_000):
        chain = Chain(turn, [(turn, 1)] * rng.randrange(3), [(turn, 5)])
        if ring.put(chain):
            ring.publish()
            assert words[available + 1] == (seen + 1) & 0xFFFF
            held.append(words[available + 2 + seen % 8])
            expected[held[-1]] = chain
            at = 16 * held[-1]
            parts = []
            while True:
                address, length, flags, following = struct.unpack_from("<QIHH", view, at)
                parts.append((address, length, flags & DESC_F_WRITE))
                assert not flags & DESC_F_INDIRECT
                if not flags & DESC_F_NEXT:
                    break
                at = 16 * following
            assert parts == [(turn, 1, 0)] * len(chain.readable) + [(turn, 5, DESC_F_WRITE)]
            seen = seen + 1 & 0xFFFF
            continue
        assert held  # an empty ring has room
        while held and rng.random() < 0.8:
            head = held.pop(rng.randrange(len(held)))
            struct.pack_into("<II", view, ring.used - 0x1000 + 4 + 8 * (done % 8), head, 5)
            done = done + 1 & 0xFFFF
            words[used + 1] = done
            assert ring.take() == [(expected.pop(head), 5)]
    assert ring.held == [expected[head] for head in held]


def test_a_reset_takes_everything_back(back_end: Make) -> None:
    kept: list[int] = []
    server = back_end(lambda index, request: kept.append(request.head))
    driver = Driver(Echo(server.path))
    request(driver, b"12", 10)
    driver.kick()
    eventually(lambda: kept)
    driver.written.clear()
    driver.set(t.STATUS, 0)
    assert kinds(server)[-1] == 11 and (DATA + 0x900, 9) in driver.written
    before = driver.memory.read(DESC, 0x4000)
    server.serve = reverse
    driver.start(driver.features)
    request(driver, b"again", 10)
    driver.kick()
    assert answers(driver) == [(0, 5)] and reply(driver, 5) == b"niaga"
    assert before and kinds(server).count(5) == 2 and kinds(server).count(3) == 1
    driver.device.close()


def test_a_reset_does_not_wait_for_ever(back_end: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyvisor.devices.virtio.vhost_session.PATIENCE", 0.3)
    server = back_end(lambda index, request: None)
    device = Echo(server.path)
    driver = Driver(device)
    request(driver, b"12", 10)
    driver.kick()
    server.spoil = lambda kind, answer: None
    driver.set(t.STATUS, 0)
    assert "does not answer" in str(device.failure)
    server.spoil, server.serve = (lambda kind, answer: answer), reverse
    driver.start(driver.features)
    request(driver, b"34", 10)
    driver.kick()
    assert answers(driver) == [(0, 2)] and device.failure is None
    device.close()


def test_the_configuration_is_the_back_ends(back_end: Make) -> None:
    server = back_end(config=bytearray(b"0123456789"), protocol=MQ | REPLY_ACK | CONFIG | BACKEND_REQ)
    device = Echo(server.path, 10)
    driver = Driver(device)
    assert [driver.mmio.read(t.CONFIG + i, 1) for i in range(10)] == list(b"0123456789")
    driver.mmio.write(t.CONFIG + 2, 4, int.from_bytes(b"abcd", "little"))
    assert server.config == b"01abcd6789" and device.config() == b"01abcd6789"
    generation = driver.reg(t.CONFIG_GENERATION)
    eventually(lambda: server.channel)
    reply = server.change_config(b"9876543210")
    assert struct.unpack("=IIIQ", reply) == (2, 5, 8, 0)
    eventually(lambda: driver.wire.level)
    assert driver.ack() == INTERRUPT_CONFIG and driver.reg(t.CONFIG_GENERATION) != generation
    assert device.config() == b"9876543210"
    server.change_config(b"x" * 10, need_reply=False)
    eventually(lambda: device.config() == b"x" * 10)
    # What it refuses to be written is no reason to end.
    server.spoil = lambda kind, data: data[:12] + b"\1" + data[13:] if kind == 25 else data
    driver.mmio.write(t.CONFIG, 1, 0)
    assert device.failure is None
    device.close()


def test_a_state_is_gone_on_from(back_end: Make, tmp_path: Path) -> None:
    kept: list[bytes] = []
    first = back_end(lambda index, request: kept.append(bytes(request.readable[0])))
    driver = Driver(Echo(first.path))
    for i in range(2):
        request(driver, b"ab%d" % i, 10, first=4 * i, at=DATA + 0x1000 * i)
    driver.kick()
    eventually(lambda: len(kept) == 2)
    state = copy.deepcopy(driver.mmio.state)
    assert [len(chains) for chains in state.device.held] == [2, 0]
    driver.device.close()
    second = back_end()
    other = Driver(Echo(second.path))
    other.set(t.STATUS, 0)
    other.memory.write(BASE, driver.memory.read(BASE, SIZE))
    other.mmio.state = state
    assert sorted(answers(other, 2)) == [(0, 3), (4, 3)]
    assert reply(other, 3) == b"0ba" and reply(other, 3, DATA + 0x1000) == b"1ba"
    other.device.close()


@every_wiring
@pytest.mark.parametrize("features", [PLAIN, FULL])
def test_hostile_drivers(back_end: Make, features: int) -> None:
    """Whatever they do, the back end sees buffers in guest memory only, and the device works after a reset."""
    rng = random.Random(7)
    server = back_end()
    device = Echo(server.path)
    driver = Driver(device, features)
    failures = 0
    for _ in range(400):
        attack(driver, rng)
        failures += driver.needs_reset
    assert 20 < failures < 400
    assert not server.errors and device.failure is None
    driver.size = 16
    driver.start(features)
    request(driver, b"fine", 10)
    driver.kick()
    assert answers(driver) == [(0, 4)] and reply(driver, 4) == b"enif"
    device.close()
