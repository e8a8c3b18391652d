"""The console device, as a driver sees it."""

from __future__ import annotations

import struct
import threading
from typing import Any

import pytest

from polyvisor.devices.virtio import console as c
from polyvisor.devices.virtio.console import ConsoleDevice, Port, PortClosed
from polyvisor.devices.virtio.device import F_EVENT_IDX, F_VERSION_1
from support.virtio_guest import DATA, TABLES, Guest

WAIT = 30


class Console(Guest):
    """A driver with buffers in all receive queues, which collects what comes; ``quiet`` gives none."""

    def __init__(self, device: ConsoleDevice, features: int | None = None, quiet: bool = False) -> None:
        super().__init__(device)
        self.start(features)
        self.places: dict[tuple[int, int], int] = {}
        self.got: dict[int, bytes] = {}
        if not quiet:
            for queue in [q for q in range(len(device.queue_sizes)) if q % 2 == 0]:
                for _ in range(4):
                    self.give(queue)

    def give(self, queue: int, length: int = 64) -> None:
        head, (place,) = self.post(queue, writable=[length])
        self.places[queue, head] = place
        self.kick(queue)

    def received(self, queue: int) -> bytes:
        """What has come in a receive queue; its buffers are given again."""
        data = b""
        while used := self.used(queue):
            for head, written in used:
                data += self.peek(self.places.pop((queue, head)), written)
                self.give(queue)
        return data

    def messages(self) -> list[tuple[int, ...]]:
        found = []
        while used := self.used(c.CONTROL_RECEIVE):
            for head, written in used:
                data = self.peek(self.places.pop((c.CONTROL_RECEIVE, head)), written)
                found.append((*struct.unpack_from("<IHH", data), *([data[8:]] if data[8:] else [])))
                self.give(c.CONTROL_RECEIVE)
        return found

    def say(self, port: int, event: int, value: int = 1) -> None:
        self.request(c.CONTROL_TRANSMIT, [struct.pack("<IHH", port, event, value)])

    def send(self, queue: int, *data: bytes) -> list[tuple[int, int]]:
        self.post(queue, data)
        self.kick(queue)
        return self.used(queue)

    def begin(self, *opened: int) -> None:
        """All ports are added, and some opened."""
        self.say(0xFFFFFFFF, c.DEVICE_READY)
        self.messages()
        for index in range(len(self.device.ports)):  # type: ignore[attr-defined]
            self.say(index, c.PORT_READY)
        for index in opened:
            self.say(index, c.PORT_OPEN)
        self.messages()


def test_ports_are_introduced() -> None:
    device = ConsoleDevice([Port("org.example.one"), Port("tty", console=True)], columns=100, rows=30)
    guest = Console(device)
    assert [guest.config(0, 2), guest.config(2, 2), guest.config(4, 4)] == [100, 30, 3]
    assert guest.messages() == []
    guest.say(0xFFFFFFFF, c.DEVICE_READY)
    assert guest.messages() == [(0, c.DEVICE_ADD, 1), (1, c.DEVICE_ADD, 1), (2, c.DEVICE_ADD, 1)]
    size = struct.pack("<HH", 100, 30)
    guest.say(0, c.PORT_READY)
    assert guest.messages() == [(0, c.CONSOLE_PORT, 1), (0, c.RESIZE, 1, size), (0, c.PORT_OPEN, 1)]
    guest.say(1, c.PORT_READY)
    assert guest.messages() == [(1, c.PORT_NAME, 1, b"org.example.one"), (1, c.PORT_OPEN, 1)]
    guest.say(2, c.PORT_READY)
    assert [event for _, event, *_ in guest.messages()] == [c.CONSOLE_PORT, c.PORT_NAME, c.RESIZE, c.PORT_OPEN]


def test_a_new_size_is_told_to_consoles() -> None:
    device = ConsoleDevice([Port("data")])
    guest = Console(device)
    device.resize(90, 40)
    guest.begin()
    guest.ack()
    device.resize(132, 43)
    assert guest.messages() == [(0, c.RESIZE, 1, struct.pack("<HH", 132, 43))]
    assert [guest.config(0, 2), guest.config(2, 2)] == [132, 43] and guest.ack() & 2
    with pytest.raises(ValueError, match="70000 columns"):
        device.resize(70000, 1)


def test_without_multiport_there_is_port_0() -> None:
    opened: list[bool] = []
    device = ConsoleDevice(console=Port(console=True, on_open=opened.append))
    assert device.console.write(b"early") == 5
    guest = Console(device, F_VERSION_1 | c.F_SIZE)
    assert guest.received(0) == b"early" and opened == [True] and device.console.guest_open
    assert guest.send(1, b"hel", b"lo") == [(0, 0)]
    assert device.console.read(0) == b"hello"
    device.resize(10, 10)
    guest.say(0xFFFFFFFF, c.DEVICE_READY)
    assert guest.messages() == [] and not guest.needs_reset


def test_input_waits_for_the_port_to_be_opened_and_for_buffers() -> None:
    port = Port("data")
    device = ConsoleDevice([port])
    guest = Console(device)
    port.write(bytes(range(200)))
    guest.begin()
    assert guest.received(4) == b"" and port.waiting == 200
    guest.say(1, c.PORT_OPEN)
    assert guest.received(4) == bytes(range(200)) and port.waiting == 0


def test_input_is_bounded() -> None:
    port = Port("data", limit=100)
    guest = Console(ConsoleDevice([port]), quiet=True)
    guest.give(c.CONTROL_RECEIVE)
    guest.begin(1)
    assert port.write(bytes(60), 0) == 60 and port.write(bytes(60), 0) == 40 and port.write(b"x", 0.01) == 0
    done: list[int] = []
    writer = threading.Thread(target=lambda: done.append(port.write(bytes(range(250)))))
    writer.start()
    got = b""
    for _ in range(6):
        guest.give(4)
        got += guest.received(4)
    writer.join(WAIT)
    assert done == [250] and got[100:] == bytes(range(250))[: len(got) - 100]


def test_output_is_bounded_and_nothing_is_lost() -> None:
    port = Port("data", limit=100)
    guest = Console(ConsoleDevice([port]))
    guest.begin(1)
    text = bytes(i & 0xFF for i in range(800))
    for i in range(8):
        guest.post(5, [text[100 * i : 100 * i + 30], text[100 * i + 30 : 100 * i + 100]])
    guest.kick(5)
    assert len(guest.used(5)) == 1  # the others wait
    assert port.read(0, size=7) == text[:7]
    got = text[:7]
    while len(got) < 800:
        got += port.read(0)
    assert got == text and len(guest.used(5)) == 7
    with pytest.raises(TimeoutError):
        port.read(0)


def test_a_console_without_a_reader_keeps_the_newest() -> None:
    device = ConsoleDevice(console=Port(console=True, limit=10))
    guest = Console(device)
    guest.begin(0)
    guest.send(1, bytes(20))
    assert guest.send(1, b"0123456789abcdef", b"X")[0][1] == 0
    assert device.console.read(0) == b"789abcdefX"


def test_functions_are_called_in_order() -> None:
    calls: list[Any] = []
    port = Port("data", on_data=calls.append, on_open=calls.append, limit=8)
    guest = Console(ConsoleDevice([port]))
    guest.begin(1)
    assert calls == [True] and port.guest_open
    assert len(guest.send(5, b"0123456789", b"abcdefgh")) == 1
    guest.say(1, c.PORT_OPEN, 0)
    assert calls == [True, b"01234567", b"89abcdef", b"gh", False]
    with pytest.raises(ValueError, match="on_data"):
        port.read()


def test_a_function_that_fails_is_the_machines_failure_and_blocks_nothing() -> None:
    calls: list[bytes] = []

    def on_data(data: bytes) -> None:
        calls.append(data)
        if data == b"zero":
            raise ZeroDivisionError

    guest = Console(ConsoleDevice([Port("data", on_data=on_data)]))
    guest.begin(1)
    with pytest.raises(ZeroDivisionError):
        guest.send(5, b"zero")
    guest.send(5, b"one")
    assert calls == [b"zero", b"one"]


def test_a_reader_sees_the_end() -> None:
    port = Port("data")
    guest = Console(ConsoleDevice([port]))
    guest.begin(1)
    guest.send(5, b"last")
    guest.say(1, c.PORT_OPEN, 0)
    assert [port.read(0), port.read(0)] == [b"last", b""]
    with pytest.raises(TimeoutError):
        port.read(0)
    assert not port.wait_open(0)
    guest.say(1, c.PORT_OPEN, 1)
    assert port.wait_open(0)
    guest.set_status(0)
    assert not port.guest_open and port.read(0) == b""


def test_closing_comes_after_the_bytes() -> None:
    port = Port("data")
    guest = Console(ConsoleDevice([port]), quiet=True)
    for _ in range(8):
        guest.give(c.CONTROL_RECEIVE)
    guest.begin(1)
    port.write(b"x" * 100)
    port.close()
    assert guest.messages() == []
    with pytest.raises(PortClosed):
        port.write(b"y")
    guest.give(4)
    assert guest.messages() == []
    guest.give(4)
    assert guest.messages() == [(1, c.PORT_OPEN, 0)]
    # What comes for nobody is dropped.
    assert len(guest.send(5, b"who reads this?")) == 1
    assert port.read(0) == b""
    port.open()
    assert guest.messages() == [(1, c.PORT_OPEN, 1)] and port.host_open
    port.close()
    port.open()
    assert guest.messages() == [(1, c.PORT_OPEN, 0), (1, c.PORT_OPEN, 1)]


def test_emergency_write() -> None:
    device = ConsoleDevice()
    guest = Guest(device)
    for size, value in ((4, 0x41), (1, 0x42), (2, 0x4443)):
        guest.set_config(8, size, value)
    guest.set_config(9, 1, 0x5A)
    guest.set_config(8, 8, 0x45)  # not inside the configuration space
    assert device.console.read(0) == b"ABC" and guest.config(8, 4) == 0


def test_messages_without_buffers_do_not_pile_up() -> None:
    port = Port("data")
    device = ConsoleDevice([port])
    guest = Console(device, quiet=True)
    guest.say(0, c.DEVICE_READY)
    for _ in range(100):
        guest.say(1, c.PORT_READY)
        port.close()
        port.open()
        device.resize(1, 2)
    for _ in range(10):
        guest.give(c.CONTROL_RECEIVE)
    assert len(guest.messages()) < 8


def test_an_echo_neither_loses_bytes_nor_keeps_many() -> None:
    most = 0

    def echo(data: bytes) -> None:
        nonlocal most
        assert port.write(data) == len(data)
        most = max(most, port.waiting)

    port = Port("echo", on_data=echo, limit=64)
    guest = Console(ConsoleDevice([port]))
    guest.begin(1)
    sent = got = b""
    waiting = 0
    while len(sent) < 5000:
        while waiting < 8:
            part = bytes((len(sent) + i) & 0xFF for i in range(100))
            guest.post(5, [part])
            sent += part
            waiting += 1
        guest.kick(5)
        got += guest.received(4)
        waiting -= len(guest.used(5))
        guest.ack()
    while more := guest.received(4):
        got += more
        guest.ack()
    assert got == sent and 64 < most <= 2 * 64


def test_functions_of_consoles_never_make_the_guest_wait() -> None:
    """Linux waits for a console with interrupts off, so it would never take the input that is too much."""
    taken: list[int] = []
    port = Port(console=True, on_data=lambda data: taken.append(port.write(data)), limit=10)
    guest = Console(ConsoleDevice(console=port), quiet=True)
    guest.begin(0)
    assert len(guest.send(1, bytes(3000), bytes(3000))) == 1
    assert sum(taken) == 10 and len(taken) == 600


def test_one_notification_does_not_keep_a_hart_for_long() -> None:
    total = 0

    def on_data(data: bytes) -> None:
        nonlocal total
        total += len(data)

    guest = Console(ConsoleDevice([Port("data", on_data=on_data)]))
    guest.begin(1)
    size = 15 * 4096
    for _ in range(16):
        guest.indirect(5, [(DATA, size, False)] * 64, 0, TABLES)
        guest.offer(5, 0)
    guest.kick(5)
    first = total
    assert 0 < first < 4 << 20
    while guest.ack() & 1:
        pass
    assert total == 16 * 64 * size and len(guest.used(5)) == 16


def test_a_function_may_wait_for_a_thread_that_writes() -> None:
    """Functions are called without the lock that `write` needs."""
    lock = threading.Lock()
    inside, written = threading.Event(), threading.Event()

    def on_data(data: bytes) -> None:
        inside.set()
        assert written.wait(WAIT)
        with lock:
            pass

    def write() -> None:
        assert inside.wait(WAIT)
        with lock:
            other.write(b"x")
        written.set()

    port, other = Port("a", on_data=on_data), Port("b")
    guest = Console(ConsoleDevice([port, other]))
    guest.begin(1, 2)
    writer = threading.Thread(target=write)
    writer.start()
    guest.send(5, b"go")
    writer.join(WAIT)
    assert written.is_set() and guest.received(6) == b"x"


def test_several_threads_write_and_the_bytes_of_each_stay_in_order() -> None:
    seen = bytearray()
    port = Port("data", limit=50, on_data=seen.extend)
    guest = Console(ConsoleDevice([port]))
    guest.begin(1)
    threads = [
        threading.Thread(target=lambda k=k: [port.write(bytes([k, i])) for i in range(200)]) for k in range(3)
    ]
    for thread in threads:
        thread.start()
    got = b""
    while any(thread.is_alive() for thread in threads) or port.waiting:
        got += guest.received(4)
    for thread in threads:
        thread.join(WAIT)
    got += guest.received(4)
    pairs = list(zip(got[::2], got[1::2], strict=True))
    for k in range(3):
        assert [i for who, i in pairs if who == k] == list(range(200))


def test_harts_and_threads_at_once() -> None:
    """Several harts notify, threads read and write, functions write to other ports: nothing hangs or is lost."""
    size, seen = 40_000, bytearray()
    echo = Port("echo", on_data=lambda data: echo.write(data), limit=300)
    sink = Port("sink", on_data=seen.extend, limit=100)
    plain = Port("plain", limit=200)
    guest = Console(ConsoleDevice([echo, sink, plain]))
    guest.begin(1, 2, 3)
    driver = threading.RLock()  # the driver's own, of its rings
    text = bytes(range(256)) * (size // 256 + 1)
    text = text[:size]
    got = {4: bytearray(), 8: bytearray()}
    sent = dict.fromkeys((5, 7, 9), 0)
    waiting = dict.fromkeys((5, 7, 9), 0)
    read = bytearray()
    errors: list[BaseException] = []
    stop = threading.Event()

    def hart() -> None:
        try:
            while not stop.is_set():
                with driver:
                    for queue in sent:
                        waiting[queue] -= len(guest.used(queue))
                        while waiting[queue] < 8 and sent[queue] < size:
                            part = text[sent[queue] : sent[queue] + 150]
                            guest.post(queue, [part])
                            sent[queue] += len(part)
                            waiting[queue] += 1
                    for queue, data in got.items():
                        data += guest.received(queue)
                for queue in sent:
                    guest.kick(queue)
                guest.ack()
        except BaseException as error:
            errors.append(error)

    def reader() -> None:
        while len(read) < size:
            read.extend(plain.read(WAIT, size=77))

    harts = [threading.Thread(target=hart) for _ in range(3)]
    others = [threading.Thread(target=reader), threading.Thread(target=lambda: plain.write(text, WAIT))]
    for thread in (*harts, *others):
        thread.start()
    for thread in others:
        thread.join(WAIT)
    for _ in range(100 * WAIT):
        if errors or (len(got[4]) == len(got[8]) == len(seen) == size):
            break
        stop.wait(0.01)
    stop.set()
    for thread in harts:
        thread.join(WAIT)
    assert not errors and not any(thread.is_alive() for thread in (*harts, *others))
    assert read == text and seen == text and got[4] == text and got[8] == text


def test_the_end_of_the_device_ends_waiting() -> None:
    port = Port("data", limit=4)
    device = ConsoleDevice([port])
    found: list[object] = []

    def write() -> None:
        try:
            port.write(b"too much")
        except PortClosed:
            found.append("closed")

    threads = [threading.Thread(target=write), threading.Thread(target=lambda: found.append(port.read()))]
    for thread in threads:
        thread.start()
    device.close()
    for thread in threads:
        thread.join(WAIT)
    assert sorted(map(str, found)) == ["b''", "closed"]
    with pytest.raises(PortClosed):
        port.open()


@pytest.mark.parametrize("features", [0, F_EVENT_IDX])
def test_messages_that_make_no_sense(features: int) -> None:
    device = ConsoleDevice([Port("data")])
    guest = Console(device, F_VERSION_1 | c.F_MULTIPORT | features)
    guest.say(1, c.PORT_OPEN)  # before DEVICE_READY
    guest.begin()
    for data in (b"", b"\0\0", struct.pack("<IHH", 2, c.PORT_OPEN, 1), struct.pack("<IHH", 1, 77, 1), bytes(64)):
        guest.request(c.CONTROL_TRANSMIT, [data])
    assert guest.messages() == [] and not guest.needs_reset and not device.ports[1].guest_open


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Port(), "needs a name"),
        (lambda: Port("a/b"), "'/'"),
        (lambda: Port("a\0"), "printable"),
        (lambda: Port("x" * 256), "255"),
        (lambda: Port("x", limit=0), "limit of 0"),
        (lambda: ConsoleDevice([Port("x"), Port("x")]), "same name: x, x"),
        (lambda: ConsoleDevice(console=Port("x")), "must be a console"),
        (lambda: ConsoleDevice([Port(str(i)) for i in range(32)]), "33 ports"),
        (lambda: ConsoleDevice(columns=-1), "window"),
        (lambda: Port("x").write(b"x"), "belongs to no"),
    ],
)
def test_mistakes(make: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make()
