"""The network device, driven as section 5.1.6 says."""

from __future__ import annotations

import random
import struct
import threading

import pytest
from net_driver import BUFFERS, CONTROL, HEADER, MAC, RX, SPACE, TX, NetDriver, Wire
from virtio_driver import BASE, SIZE

from polyvisor.devices.virtio import mmio as t
from polyvisor.devices.virtio import net, net_control, transport
from polyvisor.network.frame import CSUM, EVERYTHING, GSO_TCP4, GSO_TCP6, Frame, parse_mac
from polyvisor.network.switch import Switch

ME = parse_mac(MAC)
PEER = b"\x52\x54\0\0\0\2"
ALL = 2**64 - 1


def frame(length: int = 60, target: bytes = ME, kind: bytes = b"\x88\xb5") -> bytes:
    return (target + PEER + kind + random.Random(length).randbytes(length))[:length]


def tcp(length: int) -> bytes:
    """Enough of a TCP packet for a header of 54 bytes."""
    return ME + PEER + b"\x08\x00" + b"\x45" + bytes(19) + bytes(12) + b"\x50" + bytes(7) + bytes(length - 54)


def large(length: int, size: int) -> Frame:
    data = tcp(length)
    made = Frame(data[:256], [memoryview(data)[256:1000], memoryview(data)[1000:]])
    made.offload(34, 16, GSO_TCP4, size)
    return made


# Configuration


def test_configuration() -> None:
    driver = NetDriver(mtu=9000)
    assert driver.reg(t.DEVICE_ID) == 1
    config = bytes(driver.mmio.read(t.CONFIG + i, 1) for i in range(12))
    assert config == ME + struct.pack("<HHH", net.S_LINK_UP, 1, 9000)
    assert driver.features & net.F_MTU and not offered() & net.F_MTU


def offered() -> int:
    return net.NetDevice(Wire()).features


def test_the_link_goes_down_and_up() -> None:
    driver = NetDriver()
    generation = driver.reg(t.CONFIG_GENERATION)
    driver.port.set_link(False)
    assert driver.mmio.read(t.CONFIG + 6, 2) == 0
    assert driver.ack() == transport.INTERRUPT_CONFIG and driver.reg(t.CONFIG_GENERATION) != generation
    driver.transmit(frame())
    assert driver.port.frames == [] and driver.rings[TX].used() == [(0, 0)]
    driver.port.set_link(True)
    assert driver.mmio.read(t.CONFIG + 6, 2) == net.S_LINK_UP


def test_it_can_be_asked_to_announce_itself() -> None:
    driver = NetDriver()
    driver.net.announce()
    assert driver.mmio.read(t.CONFIG + 6, 2) == net.S_LINK_UP | net.S_ANNOUNCE
    assert driver.ack() == transport.INTERRUPT_CONFIG
    assert driver.command(net_control.CTRL_ANNOUNCE, net_control.CTRL_ANNOUNCE_ACK, b"") == net_control.OK
    assert driver.mmio.read(t.CONFIG + 6, 2) == net.S_LINK_UP


@pytest.mark.parametrize("wrong", [{"mac": "1:2"}, {"mac": "03:00:00:00:00:00"}, {"mtu": 60}, {"mtu": 65536}])
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"MAC|MTU"):
        net.NetDevice(Wire(), **wrong)  # type: ignore[arg-type]
    assert net.random_mac() != net.random_mac()


def test_closing_unplugs() -> None:
    driver = NetDriver()
    receive = driver.port.receive
    driver.net.close()
    assert driver.port.closed
    driver.room(2048)
    receive(Frame(frame()))
    driver.transmit(frame())
    assert driver.rings[RX].used() == [] and driver.port.frames == []


# Sending


@pytest.mark.parametrize("length", [14, 60, 1514, 2048, 2049, 9000, 60000])
@pytest.mark.parametrize("cuts", [(), (12,), (5, 20, 30), (12, 14, 40)])
def test_frames_are_sent(length: int, cuts: tuple[int, ...]) -> None:
    driver = NetDriver()
    data = frame(length)
    driver.transmit(data, cuts=tuple(cut for cut in cuts if cut < length + 12))
    (sent,) = driver.port.frames
    assert bytes(sent) == data and not sent.needs and not sent.valid
    assert driver.rings[TX].used() == [(0, 0)]


def test_offloads_go_with_the_frame() -> None:
    driver = NetDriver()
    driver.transmit(tcp(9000), HEADER.pack(1, GSO_TCP4, 54, 1448, 34, 16, 0))
    (sent,) = driver.port.frames
    assert (sent.gso_type, sent.gso_size, sent.csum_start, sent.csum_offset) == (GSO_TCP4, 1448, 34, 16)


@pytest.mark.parametrize(
    ("own", "length", "header"),
    [
        (ALL, 13, bytes(12)),
        (ALL, 0, bytes(12)),
        (ALL, 0, bytes(5)),
        (ALL, 66000, bytes(12)),
        (ALL, 900, HEADER.pack(1, 0, 0, 0, 34, 1000, 0)),
        (ALL, 900, HEADER.pack(0, GSO_TCP4, 54, 100, 34, 16, 0)),
        (ALL, 900, HEADER.pack(1, GSO_TCP4, 54, 0, 34, 16, 0)),
        (ALL, 900, HEADER.pack(1, 77, 54, 100, 34, 16, 0)),
        (0, 900, HEADER.pack(1, 0, 0, 0, 34, 16, 0)),
        (net.F_CSUM, 900, HEADER.pack(1, GSO_TCP4, 54, 100, 34, 16, 0)),
        (net.F_CSUM | net.F_HOST_TSO4, 900, HEADER.pack(1, GSO_TCP6, 54, 100, 34, 16, 0)),
    ],
)
def test_impossible_frames_are_dropped(own: int, length: int, header: bytes) -> None:
    driver = NetDriver(own=offered() & own)
    driver.transmit(tcp(length) if length >= 54 else frame(length), header)
    assert driver.port.frames == [] and driver.net.dropped_sent == 1
    assert driver.rings[TX].used() == [(0, 0)] and not driver.needs_reset
    driver.transmit(frame())
    assert len(driver.port.frames) == 1


def test_many_frames_are_sent_in_turns() -> None:
    driver = NetDriver(size=256)
    ring = driver.rings[TX]
    for i in range(256):
        driver.memory.write(BUFFERS + 128 * i, bytes(12) + frame(60 + i % 8))
        ring.offer([(BUFFERS + 128 * i, 72 + i % 8, False)])
    ring.kick()
    assert [sent.length for sent in driver.port.frames] == [60 + i % 8 for i in range(256)]
    assert [head for head, _ in ring.used()] == list(range(256))


def test_a_driver_that_never_stops_sending_is_stopped() -> None:
    driver = NetDriver()
    ring = driver.rings[TX]
    driver.memory.write(BUFFERS, bytes(12) + frame())

    def more(sent: Frame) -> None:
        ring.offer([(BUFFERS, 72, False)])

    driver.port._send = more  # type: ignore[method-assign]
    ring.offer([(BUFFERS, 72, False)])
    ring.kick()
    assert driver.port.sent < 20000 and len(ring.used()) == driver.port.sent
    # The rest is sent when the interrupt is acknowledged.
    before = driver.port.sent
    assert driver.ack() & transport.INTERRUPT_USED
    assert driver.port.sent > before


def test_a_reset_while_frames_are_on_their_way() -> None:
    driver = NetDriver()
    driver.port._send = lambda sent: driver.set(t.STATUS, 0)  # type: ignore[method-assign]
    driver.transmit(frame())
    assert driver.reg(t.STATUS) == 0 and driver.rings[TX].used() == []
    driver.start(driver.features)
    assert driver.rings[TX].used() == []
    driver.port._send = driver.port.frames.append  # type: ignore[method-assign]
    driver.transmit(frame())
    assert len(driver.port.frames) == 1 and driver.rings[TX].used() == [(0, 0)]


# Receiving


def receive(driver: NetDriver, sent: Frame) -> None:
    driver.port.deliver(sent)


@pytest.mark.parametrize("own", [ALL, ALL & ~net.F_MRG_RXBUF])
def test_frames_are_received(own: int) -> None:
    driver = NetDriver(own=offered() & own)
    places = [driver.room(2048) for _ in range(3)]
    for i in range(3):
        receive(driver, Frame(frame(60 + i), valid=i == 1))
    assert driver.rings[RX].used() == [(i, 72 + i) for i in range(3)]
    for i, (address, _) in enumerate(places):
        data = driver.memory.read(address, 72 + i)
        assert HEADER.unpack(data[:12]) == (2 if i == 1 else 0, 0, 0, 0, 0, 0, 1)
        assert data[12:] == frame(60 + i)
    assert driver.ack() == transport.INTERRUPT_USED


@pytest.mark.parametrize("size", [64, 100, 1536, 4096])
def test_a_large_segment_takes_many_buffers(size: int) -> None:
    driver = NetDriver(size=256)
    sent = large(10000, 1448)
    places = [driver.room(size) for _ in range(200)]
    receive(driver, sent)
    used = driver.rings[RX].used()
    count = -(-10012 // size)
    assert [written for _, written in used] == [size] * (count - 1) + [10012 - size * (count - 1)]
    data = b"".join(driver.memory.read(places[head][0], written) for head, written in used)
    assert HEADER.unpack(data[:12]) == (1, GSO_TCP4, 54, 1448, 34, 16, count)
    assert data[12:] == bytes(sent)
    # What was written is known, and only that.
    written = {a for a, n in driver.written for a in range(a, a + n)}
    for head, length in used:
        address = places[head][0]
        assert set(range(address, address + length)) <= written and address + size not in written


def test_buffers_side_by_side() -> None:
    driver = NetDriver(size=256)
    for i in range(20):
        driver.rings[RX].offer([(BUFFERS + 600 * i, 600, True)])
    sent = large(10000, 1448)
    receive(driver, sent)
    assert driver.memory.read(BUFFERS, 10012)[12:] == bytes(sent)


def test_without_offloads_segments_and_checksums_are_ours() -> None:
    driver = NetDriver(own=net.F_MRG_RXBUF, size=256)
    for _ in range(20):
        driver.room(2048)
    receive(driver, large(10000, 1000))
    used = driver.rings[RX].used()
    assert len(used) == -(-(10000 - 54) // 1000)
    assert all(written <= 12 + 1054 for _, written in used)


def test_a_driver_changes_what_it_takes() -> None:
    driver = NetDriver(size=256)
    for _ in range(60):
        driver.room(2048)
    offloads = (net_control.CTRL_GUEST_OFFLOADS, net_control.CTRL_GUEST_OFFLOADS_SET)
    receive(driver, large(3000, 1000))
    assert len(driver.rings[RX].used()) == 2
    assert driver.command(*offloads, struct.pack("<Q", net.F_GUEST_CSUM)) == net_control.OK
    receive(driver, large(3000, 1000))
    assert len(driver.rings[RX].used()) == 3
    assert driver.command(*offloads, struct.pack("<Q", net.F_GUEST_CSUM | net.F_GUEST_TSO4)) == net_control.OK
    receive(driver, large(3000, 1000))
    assert len(driver.rings[RX].used()) == 2
    assert driver.command(*offloads, struct.pack("<Q", 1 << 40)) == net_control.ERR


def test_frames_wait_for_buffers_then_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(net, "MAX_BACKLOG", 5)
    driver = NetDriver()
    driver.rings[RX].kick()
    for i in range(8):
        receive(driver, Frame(frame(60 + i)))
    assert driver.net.dropped_received == 3
    for i in range(5):
        driver.room(2048)
        assert driver.rings[RX].wants_kick()
        driver.rings[RX].kick()
        assert driver.rings[RX].used() == [(i, 72 + i)]
    driver.room(2048, kick=True)
    assert driver.rings[RX].used() == []


def test_a_frame_waits_for_enough_buffers() -> None:
    driver = NetDriver()
    sent = large(5000, 1000)
    for _ in range(3):
        driver.room(1024)
    receive(driver, sent)
    assert driver.rings[RX].used() == []
    driver.room(1024)
    assert driver.rings[RX].wants_kick()
    driver.rings[RX].kick()
    assert driver.rings[RX].used() == []
    driver.room(1024)
    assert driver.rings[RX].wants_kick()
    driver.rings[RX].kick()
    assert [n for _, n in driver.rings[RX].used()] == [1024] * 4 + [5012 - 4096]


def test_the_backlog_is_bounded_in_bytes() -> None:
    driver = NetDriver()
    for _ in range(200):
        receive(driver, large(60000, 1448))
    assert driver.net.dropped_received >= 200 - net.MAX_BACKLOG_BYTES // 60000
    assert driver.net._backlog_bytes <= net.MAX_BACKLOG_BYTES


@pytest.mark.parametrize("own", [ALL, ALL & ~net.F_MRG_RXBUF])
def test_frames_that_never_fit_are_dropped(own: int) -> None:
    driver = NetDriver(own=offered() & own, size=8)
    for _ in range(8):
        driver.room(100)
    receive(driver, large(5000, 1000))
    receive(driver, Frame(frame(60)))
    assert driver.net.dropped_received == 1
    assert driver.rings[RX].used() == [(0, 72)]


def test_nothing_is_received_before_the_driver_runs() -> None:
    port = Wire()
    device = net.NetDevice(port, MAC)
    port.deliver(Frame(frame()))
    driver = NetDriver()
    driver.room(2048)
    driver.set(t.STATUS, 0)
    driver.port.deliver(Frame(frame()))
    assert device.dropped_received == driver.net.dropped_received == 0
    driver.start(driver.features)
    driver.room(2048, kick=True)
    assert driver.rings[RX].used() == []


# Filters


def passes(driver: NetDriver, data: bytes) -> bool:
    driver.room(2048)
    receive(driver, Frame(data))
    got = bool(driver.rings[RX].used())
    if not got:
        receive(driver, Frame(frame()))  # uses the buffer up
        driver.rings[RX].used()
    return got


def test_the_filter() -> None:
    driver = NetDriver()
    other, group, everybody = b"\x52\x54\0\0\0\x99", b"\1\0\x5e\0\0\1", b"\xff" * 6

    def found() -> list[bool]:
        return [passes(driver, frame(60, target)) for target in (ME, other, group, everybody)]

    def mode(command: int, value: int) -> None:
        assert driver.command(net_control.CTRL_RX, command, bytes([value])) == net_control.OK

    assert found() == [True, True, True, True]
    mode(0, 0)
    assert found() == [True, False, False, True]
    mode(1, 1)
    assert found() == [True, False, True, True]
    mode(1, 0)
    table = struct.pack("<I", 1) + other + struct.pack("<I", 1) + group
    assert driver.command(net_control.CTRL_MAC, net_control.CTRL_MAC_TABLE_SET, table) == net_control.OK
    assert found() == [True, True, True, True]
    assert driver.command(net_control.CTRL_MAC, 0, table[:-1]) == net_control.ERR
    assert driver.command(net_control.CTRL_MAC, 0, struct.pack("<II", 0, 0)) == net_control.OK
    assert found() == [True, False, False, True]
    many = struct.pack("<I", 65) + other * 65 + struct.pack("<I", 0)
    assert driver.command(net_control.CTRL_MAC, 0, many.replace(other, PEER)) == net_control.OK
    assert found() == [True, True, False, True]
    assert driver.command(net_control.CTRL_MAC, 0, struct.pack("<II", 0, 0)) == net_control.OK
    mode(5, 1)
    assert found() == [True, False, False, False]
    mode(5, 0)
    assert driver.command(net_control.CTRL_MAC, net_control.CTRL_MAC_ADDR_SET, other) == net_control.OK
    assert [passes(driver, frame(60, other)), passes(driver, frame(60, group))] == [True, False]
    driver.set(t.STATUS, 0)
    driver.start(driver.features)
    assert found() == [True, True, True, True]


def test_vlans() -> None:
    driver = NetDriver()
    driver.command(net_control.CTRL_RX, 0, b"\0")
    tagged = b"\x81\x00\x20\x07\x08\x00"
    assert not passes(driver, frame(60, kind=tagged))
    assert driver.command(net_control.CTRL_VLAN, 0, b"\7\0") == net_control.OK
    assert passes(driver, frame(60, kind=tagged))
    assert driver.command(net_control.CTRL_VLAN, 1, b"\7\0") == net_control.OK
    assert not passes(driver, frame(60, kind=tagged))
    assert driver.command(net_control.CTRL_VLAN, 0, b"\0\x10") == net_control.ERR


def test_unknown_and_short_commands_fail() -> None:
    driver = NetDriver()
    for kind in range(8):
        for command in range(8):
            assert driver.command(kind, command, b"") in (net_control.OK, net_control.ERR)
    assert driver.command(net_control.CTRL_RX, 6, b"\1") == net_control.ERR
    assert driver.command(99, 0, bytes(10)) == net_control.ERR
    driver.rings[CONTROL].offer([(BUFFERS, 3, False)])
    driver.rings[CONTROL].kick()
    assert driver.needs_reset


def test_features_that_were_not_negotiated_give_no_commands() -> None:
    driver = NetDriver(own=net_control.F_CTRL_VQ)
    for kind in range(6):
        assert driver.command(kind, 0, bytes(16)) == net_control.ERR


# Hostile, and several threads


def test_hostile_driver() -> None:
    rng = random.Random(4)
    driver = NetDriver(size=16)
    resets = 0
    for _ in range(4000):
        ring = driver.rings[rng.choice([RX, RX, TX, TX, CONTROL])]
        parts = []
        for _ in range(rng.randrange(1, 5)):
            address = rng.choice(
                [BUFFERS + rng.randrange(SPACE), BUFFERS + rng.randrange(SPACE), ring.table, ring.avail,
                 ring.used_ring, BASE + SIZE - rng.randrange(99), rng.getrandbits(64)]
            )  # fmt: skip
            writable = ring.index == RX if rng.random() < 0.9 else rng.random() < 0.5
            length = rng.choice([0, 12, 14, 60, 100, 1514, 3000, 20000, rng.choice([9, 9, 9, rng.getrandbits(32)])])
            parts.append((address, length, writable))
        driver.memory.write(
            BUFFERS + rng.randrange(SPACE),
            HEADER.pack(rng.choice([0, 1]), rng.choice([0, 1, 4, 5, 0x81, 9]), 54, rng.choice([0, 1, 100, 1448]),
                        rng.choice([34, 14, 0, 60000]), rng.choice([16, 6, 60000]), 0) + tcp(100),
        )  # fmt: skip
        ring.offer(parts)
        if rng.random() < 0.02:
            driver.put(ring.avail + 2, "H", rng.getrandbits(16))
        ring.kick()
        receive(driver, rng.choice([Frame(frame(60)), Frame(frame(1514)), large(9000, 1448), Frame(b"")]))
        driver.ack()
        if driver.needs_reset:
            resets += 1
            driver.start(driver.features if rng.random() < 0.5 else driver.features & (~rng.getrandbits(57) | 1 << 32))
    assert 20 < resets < 4000
    driver.start(offered() | 1 << 32)
    driver.port.frames.clear()
    driver.transmit(frame())
    assert [bytes(sent) for sent in driver.port.frames] == [frame()]


def test_two_machines_send_to_each_other_at_once() -> None:
    """The one takes the other's lock, and the other way round: they must not wait for each other."""
    switch = Switch()
    drivers = []
    for name in "ab":
        driver = NetDriver(size=256)
        device = driver.net
        port = switch.port(name)
        port.receive = device.receive
        device.port = port
        drivers.append(driver)

    def run(driver: NetDriver) -> None:
        for _ in range(300):
            driver.room(2048, kick=True)
            driver.transmit(frame(60, b"\xff" * 6))
            driver.ack()

    threads = [threading.Thread(target=run, args=(driver,), daemon=True) for driver in drivers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "they wait for each other"
    for driver in drivers:
        assert not driver.needs_reset
        assert driver.net.port.received == 300
        assert len(driver.rings[RX].used()) >= 200


def test_what_a_port_takes_decides_what_is_done_before() -> None:
    driver = NetDriver()
    driver.port.takes = CSUM  # type: ignore[misc]
    driver.transmit(tcp(3054), HEADER.pack(1, GSO_TCP4, 54, 1000, 34, 16, 0))
    assert [(sent.length, sent.needs) for sent in driver.port.frames] == [(1054, CSUM)] * 3
    assert Wire.takes == EVERYTHING
