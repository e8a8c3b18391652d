"""The switch and what its links do, with clocks of the tests' own."""

from __future__ import annotations

import random
import threading

import pytest
from packets import BROADCAST, A, B, C, ethernet, packet

from polyvisor.network import switch as switch_module
from polyvisor.network.conditions import Conditions, Wire
from polyvisor.network.frame import GSO_TCP4, Frame
from polyvisor.network.offload import completed
from polyvisor.network.switch import AGEING, Switch, SwitchPort


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plug(switch: Switch, name: str) -> tuple[SwitchPort, list[Frame]]:
    port = switch.port(name)
    got: list[Frame] = []
    port.receive = got.append
    return port, got


def three(**options: object) -> tuple[Switch, list[SwitchPort], list[list[Frame]]]:
    switch = Switch(**options)  # type: ignore[arg-type]
    ports, got = zip(*(plug(switch, name) for name in "abc"), strict=True)
    return switch, list(ports), list(got)


def test_it_learns_where_stations_are() -> None:
    clock = Clock()
    switch, ports, got = three(clock=clock)
    ports[0].send(ethernet(B, A))
    assert [len(g) for g in got] == [0, 1, 1]  # nobody knows B
    ports[1].send(ethernet(A, B))
    assert [len(g) for g in got] == [1, 1, 1]
    ports[0].send(ethernet(B, A))
    assert [len(g) for g in got] == [1, 2, 1]
    assert switch.stations == {A: "a", B: "b"}
    ports[0].send(ethernet(BROADCAST, A))
    assert [len(g) for g in got] == [1, 3, 2]
    # B moves.
    ports[2].send(ethernet(A, B))
    ports[0].send(ethernet(B, A))
    assert [len(g) for g in got] == [2, 3, 3]
    clock.now += AGEING + 1
    ports[0].send(ethernet(B, A))
    assert [len(g) for g in got] == [2, 4, 4]
    assert switch.stations == {A: "a"}


def test_a_frame_for_where_it_comes_from_goes_nowhere() -> None:
    _, ports, got = three()
    ports[0].send(ethernet(B, A))
    ports[0].send(ethernet(A, B))
    assert [len(g) for g in got] == [0, 1, 1]


def test_a_flood_of_addresses_does_not_grow_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switch_module, "MAX_STATIONS", 50)
    clock = Clock()
    switch, ports, got = three(clock=clock)
    for i in range(200):
        ports[0].send(ethernet(B, b"\2" + i.to_bytes(5, "big")))
    assert len(switch.stations) == 50
    ports[1].send(ethernet(C, B))  # not learned, so flooded, which works
    ports[2].send(ethernet(B, C))
    assert len(got[1]) == 201
    clock.now += AGEING + 1
    ports[1].send(ethernet(C, B))
    assert switch.stations == {B: "b"}


def test_multicast_senders_and_short_frames() -> None:
    switch, ports, got = three()
    ports[0].send(ethernet(BROADCAST, BROADCAST))
    assert not switch.stations
    ports[0].send(Frame(b"short"))
    assert [len(g) for g in got] == [0, 1, 1] and ports[0].dropped == 1


def test_a_hub_sends_everything_everywhere() -> None:
    _, ports, got = three(hub=True)
    for _ in range(2):
        ports[0].send(ethernet(B, A))
        ports[1].send(ethernet(A, B))
    assert [len(g) for g in got] == [2, 2, 4]


def test_partitions_and_links() -> None:
    switch, ports, got = three()
    switch.partition(ports[:1], ports[1:2])
    for port, mac in zip(ports, (A, B, C), strict=True):
        port.send(ethernet(BROADCAST, mac))
    assert [len(g) for g in got] == [0, 0, 0]
    switch.partition(ports[:1])
    ports[1].send(ethernet(BROADCAST, B))
    assert [len(g) for g in got] == [0, 0, 1]
    switch.heal()
    ports[0].send(ethernet(B, A))
    assert [len(g) for g in got] == [0, 1, 1]
    told: list[bool] = []
    ports[1].link_changed = told.append
    ports[1].set_link(False)
    ports[0].send(ethernet(B, A))
    ports[1].send(ethernet(A, B))
    ports[1].set_link(True)
    ports[1].set_link(True)
    assert told == [False, True]
    assert [len(g) for g in got] == [0, 1, 1] and ports[1].dropped == 2


def test_unplugging_and_names() -> None:
    switch, ports, got = three()
    with pytest.raises(ValueError, match="'a' already"):
        switch.port("a")
    ports[1].send(ethernet(A, B))
    ports[1].close()
    ports[0].send(ethernet(B, A))
    assert len(got[1]) == 0 and len(got[2]) == 2
    assert switch.port("b").name == "b" and switch.port().name != switch.port().name
    switch.close()
    switch.close()
    with pytest.raises(ValueError, match="closed"):
        switch.port("d")


def test_switches_can_be_connected() -> None:
    left, right = Switch(), Switch()
    port_a, got_a = plug(left, "a")
    port_b, got_b = plug(right, "b")
    left.attach(right.port("left"), "right")
    port_a.send(ethernet(B, A))
    port_b.send(ethernet(A, B))
    assert len(got_a) == len(got_b) == 1
    assert left.stations == {A: "a", B: "right"} and right.stations == {A: "left", B: "b"}


def test_an_answer_may_come_before_send_returns() -> None:
    _, ports, got = three()
    ports[1].receive = lambda frame: ports[1].send(ethernet(A, B))
    ports[0].send(ethernet(B, A))
    assert len(got[0]) == 1


def test_both_directions_at_once() -> None:
    _, ports, got = three()

    def run(port: SwitchPort, target: bytes, source: bytes) -> None:
        for _ in range(2000):
            port.send(ethernet(target, source))

    threads = [
        threading.Thread(target=run, args=arguments, daemon=True)
        for arguments in ((ports[0], B, A), (ports[1], A, B), (ports[2], A, C))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(got[0]) == 4000 and 2000 <= len(got[1]) <= 2001 + 2000


# What links do


def fates(seed: str, conditions: Conditions, count: int = 1000) -> list[list[tuple[float, bytes]]]:
    wire = Wire(seed)
    wire.conditions = conditions
    result = []
    for i in range(count):
        planned = wire.plan(ethernet(B, A, i.to_bytes(4, "big") * 12), i * 0.001)
        for at, _ in planned:
            if at:
                wire.arrived()
        result.append([(at, bytes(frame)) for at, frame in planned])
    return result


def test_a_seed_decides() -> None:
    conditions = Conditions(loss=0.1, duplicate=0.1, corrupt=0.1, reorder=0.1, delay=0.01, jitter=0.005)
    first = fates("1/a", conditions)
    assert first == fates("1/a", conditions) != fates("2/a", conditions)


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_loss(p: float) -> None:
    lost = sum(not fate for fate in fates("x", Conditions(loss=p)))
    assert lost == 0 if not p else lost == 1000 if p == 1 else 150 < lost < 250


def test_duplicates() -> None:
    twice = sum(len(fate) == 2 for fate in fates("x", Conditions(duplicate=0.3)))
    assert 230 < twice < 370


def test_corruption_changes_one_bit_behind_the_addresses() -> None:
    changed = 0
    for i, fate in enumerate(fates("x", Conditions(corrupt=0.5))):
        ((at, data),) = fate
        sent = bytes(ethernet(B, A, i.to_bytes(4, "big") * 12))
        difference = int.from_bytes(sent, "big") ^ int.from_bytes(data, "big")
        assert difference.bit_count() <= 1 and data[:14] == sent[:14] and at == 0
        changed += bool(difference)
    assert 400 < changed < 600


def test_corruption_is_not_hidden_by_a_checksum_that_is_completed_later() -> None:
    data, transport = packet(4, 17, b"hello world")
    frame = Frame(data)
    frame.offload(transport, 6)
    wire = Wire("x")
    wire.conditions = Conditions(corrupt=1)
    ((_, damaged),) = wire.plan(frame, 0.0)
    right = int.from_bytes(bytes(completed(frame)), "big")
    assert not damaged.needs and not damaged.valid
    assert (int.from_bytes(bytes(damaged), "big") ^ right).bit_count() == 1


def test_delay_and_jitter_keep_the_order() -> None:
    times = [fate[0][0] for fate in fates("x", Conditions(delay=0.05, jitter=0.02))]
    assert times == sorted(times)
    delays = [at - i * 0.001 for i, at in enumerate(times)]
    assert min(delays) >= 0.03 and max(delays) <= 0.07 + 1e-9 and max(delays) - min(delays) > 0.005


def test_reordering_lets_others_pass() -> None:
    times = [fate[0][0] or i * 0.001 for i, fate in enumerate(fates("x", Conditions(reorder=0.1)))]
    late = sum(at > i * 0.001 + 0.009 for i, at in enumerate(times))
    assert 60 < late < 140


def test_bandwidth_and_its_queue() -> None:
    wire = Wire("x")
    wire.conditions = Conditions(bandwidth=8000, queue=5)  # 1000 bytes a second
    frame = ethernet(B, A, bytes(462))  # and 24 of the wire: half a second
    times = [planned[0][0] for planned in (wire.plan(frame, 10.0) for _ in range(8)) if planned]
    assert times == [10.5, 11.0, 11.5, 12.0, 12.5] and wire.lost == 3


def test_each_segment_of_a_large_frame_has_its_own_fate() -> None:
    data, transport = packet(4, 6, bytes(50000))
    frame = Frame(data)
    frame.offload(transport, 16, GSO_TCP4, 1000)
    wire = Wire("x")
    wire.conditions = Conditions(loss=0.5)
    assert 10 < len(wire.plan(frame, 0.0)) < 40
    wire.conditions = Conditions(delay=1)
    ((at, whole),) = wire.plan(frame, 0.0)
    assert at == 1 and whole.gso_type == GSO_TCP4


@pytest.mark.parametrize(
    "wrong",
    [{"loss": 1.5}, {"loss": -0.1}, {"delay": -1}, {"jitter": 1.0}, {"queue": 0}, {"bandwidth": float("nan")}],
)
def test_impossible_conditions_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Conditions(**wrong)  # type: ignore[arg-type]


def test_late_frames_are_delivered_by_the_switch_in_their_order() -> None:
    with Switch() as switch:
        (a, _), (b, got) = plug(switch, "a"), plug(switch, "b")
        done = threading.Event()
        threads = set()

        def receive(frame: Frame) -> None:
            got.append(frame)
            threads.add(threading.current_thread())
            if len(got) == 30:
                done.set()

        b.receive = receive
        a.outgoing = Conditions(delay=0.002)
        b.incoming = Conditions(delay=0.001, jitter=0.001)
        for i in range(30):
            a.send(ethernet(B, A, bytes([i])))
        assert done.wait(60)
        assert [frame.head[14] for frame in got] == list(range(30))
        assert len(threads) == 1 and threading.current_thread() not in threads
        a.set_conditions(None)
        b.set_conditions(None)
        a.send(ethernet(B, A))
        assert len(got) == 31
        a.outgoing = Conditions(delay=1000)
        a.send(ethernet(B, A))
        assert a.lost == 0


def test_a_failing_receiver_does_not_end_the_switch(caplog: pytest.LogCaptureFixture) -> None:
    with Switch() as switch:
        (a, _), (b, _) = plug(switch, "a"), plug(switch, "b")
        done = threading.Event()

        def receive(frame: Frame) -> None:
            if frame.head[14]:
                done.set()
            else:
                raise RuntimeError("no")

        b.receive = receive
        a.outgoing = Conditions(delay=0.001)
        a.send(ethernet(B, A, b"\0"))
        a.send(ethernet(B, A, b"\1"))
        assert done.wait(60)
    assert "a receiver failed" in caplog.text


def test_hostile_senders() -> None:
    rng = random.Random(1)
    _, ports, _ = three()
    for port in ports:
        port.set_conditions(Conditions(loss=0.1, duplicate=0.1, corrupt=0.1))
    for _ in range(3000):
        port = rng.choice(ports)
        port.send(Frame(rng.randbytes(rng.choice([0, 1, 5, 6, 13, 14, 15, 60, 1500]))))
