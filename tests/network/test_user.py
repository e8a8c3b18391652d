"""The user-mode network and passt, spoken to by a small machine made of Python, over the host's loopback only."""

from __future__ import annotations

import queue
import random
import shutil
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from packets import A, packet, words

from polyvisor.network import slirp
from polyvisor.network.forward import Forward
from polyvisor.network.frame import CSUM, GSO_TCP4, Frame
from polyvisor.network.passt import PasstNetwork
from polyvisor.network.port import Port
from polyvisor.network.user import NetworkError, UserNetwork

BROADCAST = b"\xff" * 6


def have_slirp() -> bool:
    try:
        slirp.library()
    except slirp.SlirpMissingError:
        return False
    return True


needs_slirp = pytest.mark.skipif(not have_slirp(), reason="libslirp is not installed")
needs_passt = pytest.mark.skipif(shutil.which("passt") is None, reason="passt is not installed")


class Station:
    """Enough of a TCP/IP machine: ARP, DHCP, UDP, and one TCP connection. Its address is in ``ip``."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.inbox: queue.Queue[bytes] = queue.Queue()
        self.ip = bytes(4)
        self.peer = BROADCAST
        port.receive = self._receive

    def _receive(self, frame: Frame) -> None:
        data = bytes(frame)
        if data[12:14] == b"\x08\x06" and data[20:22] == b"\0\1" and data[38:42] == self.ip != bytes(4):
            self.port.send(Frame(data[6:12] + A + data[12:20] + b"\0\2" + A + self.ip + data[22:32]))
        self.inbox.put(data)

    def expect(self, what: str, matches: object, timeout: float = 30) -> bytes:
        while True:
            try:
                data = self.inbox.get(timeout=timeout)
            except queue.Empty:
                raise AssertionError(f"no {what}") from None
            if matches(data):  # type: ignore[operator]
                return data

    def ip_packet(self, protocol: int, target: bytes, payload: bytes) -> bytes:
        header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0, 64, protocol, 0) + self.ip + target
        header = header[:10] + (0xFFFF - words(header)).to_bytes(2, "big") + header[12:]
        return self.peer + A + b"\x08\x00" + header + payload

    def transport(self, protocol: int, target: bytes, header: bytes, at: int, payload: bytes) -> Frame:
        """A packet whose checksum is left to do."""
        length = len(header) + len(payload)
        partial = words(self.ip + target + struct.pack(">BBH", 0, protocol, length))
        header = header[:at] + partial.to_bytes(2, "big") + header[at + 2 :]
        frame = Frame(self.ip_packet(protocol, target, header + payload))
        frame.offload(34, at)
        return frame

    def udp(self, target: bytes, source_port: int, target_port: int, payload: bytes) -> None:
        header = struct.pack(">HHHH", source_port, target_port, 8 + len(payload), 0)
        self.port.send(self.transport(17, target, header, 6, payload))

    def expect_udp(self, port: int) -> tuple[bytes, int]:
        """Payload and source port of the next datagram to ``port``."""
        data = self.expect(
            f"datagram to {port}",
            lambda d: d[12:14] == b"\x08\x00" and d[23] == 17 and d[36:38] == port.to_bytes(2, "big"),
        )
        return data[42:], int.from_bytes(data[34:36], "big")

    def resolve(self, ip: bytes) -> None:
        self.port.send(Frame(BROADCAST + A + bytes.fromhex("08060001080006040001") + A + self.ip + bytes(6) + ip))
        self.peer = self.expect("ARP reply", lambda d: d[12:14] == b"\x08\x06" and d[20:22] == b"\0\2")[22:28]

    def dhcp(self) -> dict[int, bytes]:
        """Discover; gives the options, with the address as 0."""
        message = bytes([1, 1, 6, 0]) + b"\1\2\3\4" + bytes(20) + A + bytes(10 + 192) + b"\x63\x82\x53\x63"
        self.udp(b"\xff" * 4, 68, 67, message + bytes([53, 1, 1, 55, 4, 1, 3, 6, 12, 255]))
        data, _ = self.expect_udp(68)
        found, at = {0: data[16:20]}, 240
        while data[at] != 255:
            found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
            at += 2 + data[at + 1]
        return found

    # TCP

    def tcp(self, target: bytes, flags: int, payload: bytes = b"", size: int = 0) -> None:
        header = struct.pack(">HHIIBBHHH", 4000, self.tcp_port, self.sequence, self.acked, 5 << 4, flags, 60000, 0, 0)
        frame = self.transport(6, target, header, 16, payload)
        if size:
            frame.offload(34, 16, GSO_TCP4, size)
        self.port.send(frame)
        self.sequence = (self.sequence + len(payload) + bool(flags & 3)) & 0xFFFFFFFF

    def expect_tcp(self, what: str, flags: int = 0, payload: bool = False) -> bytes:
        def matches(data: bytes) -> bool:
            return (
                data[12:14] == b"\x08\x00" and data[23] == 6 and data[36:38] == (4000).to_bytes(2, "big")
                and data[47] & flags == flags and (not payload or self.content(data) != b"")
            )

        data = self.expect(what, matches)
        sequence = int.from_bytes(data[38:42], "big")
        self.acked = (sequence + len(self.content(data)) + bool(data[47] & 3)) & 0xFFFFFFFF
        return data

    @staticmethod
    def content(data: bytes) -> bytes:
        end = 14 + int.from_bytes(data[16:18], "big")
        return data[34 + (data[46] >> 4) * 4 : end]

    def connect(self, target: bytes, port: int) -> None:
        self.tcp_port, self.sequence, self.acked = port, 100, 0
        self.tcp(target, 2)
        self.expect_tcp("SYN and ACK", 0x12)
        self.tcp(target, 0x10)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.settimeout(30)
        yield found


def station(network: Port) -> Station:
    machine = Station(network)
    machine.ip = machine.dhcp()[0]
    return machine


@needs_slirp
@pytest.mark.parametrize(("subnet", "start"), [("10.0.2.0/24", "10.0.2."), ("192.168.77.0/26", "192.168.77.")])
def test_dhcp(subnet: str, start: str) -> None:
    network = UserNetwork(subnet=subnet, hostname="pluto")
    found = Station(network).dhcp()
    assert [socket.inet_ntoa(found[i]) for i in (0, 3, 6)] == [start + last for last in ("15", "2", "3")]
    assert found[12] == b"pluto"
    network.close()
    network.close()
    assert network.failure is None


@needs_slirp
def test_tcp_to_the_host(listener: socket.socket) -> None:
    network = UserNetwork()
    machine = station(network)
    router = network.router.packed
    machine.resolve(router)
    machine.connect(router, listener.getsockname()[1])
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(30)
        # A large segment whose checksum is left to do.
        sent = random.Random(1).randbytes(20000)
        assert network.takes & CSUM
        machine.tcp(router, 0x18, sent, 1448)
        got = b""
        while len(got) < len(sent):
            got += connection.recv(65536)
        assert got == sent
        connection.sendall(b"and back")
        answer = machine.expect_tcp("answer", payload=True)
        assert machine.content(answer) == b"and back"
        length = int.from_bytes(answer[16:18], "big")
        assert words(answer[14:34]) == 0xFFFF
        assert words(answer[26:34] + struct.pack(">BBH", 0, 6, length - 20) + answer[34 : 14 + length]) == 0xFFFF
    network.close()


@needs_slirp
def test_the_hosts_loopback_can_be_kept_from_it(listener: socket.socket) -> None:
    network = UserNetwork(host_loopback=False)
    machine = station(network)
    machine.resolve(network.router.packed)
    machine.tcp_port, machine.sequence, machine.acked = listener.getsockname()[1], 100, 0
    machine.tcp(network.router.packed, 2)
    listener.settimeout(0.5)
    with pytest.raises(TimeoutError):
        listener.accept()
    network.close()


@needs_slirp
def test_udp_and_echo() -> None:
    network = UserNetwork()
    machine = station(network)
    router = network.router.packed
    machine.resolve(router)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as host:
        host.bind(("127.0.0.1", 0))
        host.settimeout(30)
        machine.udp(router, 5000, host.getsockname()[1], b"ping")
        data, address = host.recvfrom(100)
        assert data == b"ping"
        host.sendto(b"pong", address)
        assert machine.expect_udp(5000) == (b"pong", host.getsockname()[1])
    echo = b"\x08\0\0\0\1\2\3\4data"
    echo = echo[:2] + (0xFFFF - words(echo)).to_bytes(2, "big") + echo[4:]
    machine.port.send(Frame(machine.ip_packet(1, router, echo)))
    assert machine.expect("echo", lambda d: d[12:14] == b"\x08\0" and d[23] == 1)[38:46] == b"\1\2\3\4data"
    network.close()


@needs_slirp
def test_forwards() -> None:
    network = UserNetwork(forwards=[Forward("tcp", 0, 80), Forward("udp", 0, 53)])
    machine = station(network)
    tcp, udp = network.forwards
    with socket.create_connection(("127.0.0.1", tcp.host_port), 30) as client:
        data = machine.expect("SYN", lambda d: d[12:14] == b"\x08\0" and d[23] == 6 and d[47] == 2)
        assert data[36:38] == (80).to_bytes(2, "big")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(30)
        client.sendto(b"question", ("127.0.0.1", udp.host_port))
        question, source = machine.expect_udp(53)
        assert question == b"question"
        machine.resolve(network.router.packed)
        machine.udp(network.router.packed, 53, source, b"answer")
        assert client.recv(100) == b"answer"
    network.remove_forward(tcp)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", tcp.host_port), 30)
    with pytest.raises(ValueError, match="there is no"):
        network.remove_forward(tcp)
    network.close()
    with pytest.raises(NetworkError, match="closed"):
        network.forward(udp)


@needs_slirp
def test_restricted_has_no_outside(listener: socket.socket) -> None:
    network = UserNetwork(restricted=True, forwards=[Forward("tcp", 0, 80)])
    machine = station(network)
    with socket.create_connection(("127.0.0.1", network.forwards[0].host_port), 30):
        machine.expect("SYN", lambda d: d[12:14] == b"\x08\0" and d[23] == 6 and d[47] == 2)
    with pytest.raises(ValueError, match="tcp only"):
        network.forward(Forward("udp", 0, 53))
    machine.resolve(network.router.packed)
    machine.tcp_port, machine.sequence, machine.acked = listener.getsockname()[1], 100, 0
    machine.tcp(network.router.packed, 2)
    listener.settimeout(0.5)
    with pytest.raises(TimeoutError):
        listener.accept()
    network.close()


@needs_slirp
def test_a_port_that_is_taken(listener: socket.socket) -> None:
    before = threading.active_count()
    with pytest.raises(NetworkError, match="in use"):
        UserNetwork(forwards=[Forward("tcp", listener.getsockname()[1], 80)])
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"subnet": "10.0.2.1/24"}, "subnet"), ({"subnet": "10.0.2.0/30"}, "fewer"), ({"subnet": "x"}, "subnet"),
        ({"hostname": "a b"}, "host name"), ({"hostname": "-"}, "host name"), ({"mtu": 10}, "MTU"),
        ({"mtu": 70000}, "MTU"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        UserNetwork(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [("sctp", 1, 1), ("tcp", -1, 1), ("tcp", 65536, 1), ("udp", 1, 0), ("tcp", 1, 1, "localhost")]
)
def test_impossible_forwards_are_refused(wrong: tuple[str, int, int]) -> None:
    with pytest.raises(ValueError, match=r"forward|port|address"):
        Forward(*wrong)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    slirp.library.cache_clear()
    monkeypatch.setattr(slirp.ctypes, "CDLL", missing)
    with pytest.raises(slirp.SlirpMissingError, match="install libslirp0"):
        UserNetwork()
    slirp.library.cache_clear()


@needs_slirp
def test_strange_frames_do_no_harm() -> None:
    network = UserNetwork()
    machine = station(network)
    rng = random.Random(7)
    router = network.router.packed
    machine.resolve(router)
    for round_ in range(3000):
        protocol = rng.choice([1, 2, 6, 17, 41, 58])
        payload = bytearray(rng.randbytes(rng.choice([0, 4, 8, 20, 40, 300, 1480, 9000])))
        target = rng.choice([router, b"\xff" * 4, network.nameserver.packed])
        data = bytearray(machine.ip_packet(protocol, target, payload))
        if rng.random() < 0.3:
            data[12:14] = rng.choice([b"\x08\x06", b"\x86\xdd", b"\x89\x42", b"\0\5"])
        for _ in range(rng.randrange(4)):
            data[rng.randrange(12, min(len(data), 60))] = rng.randrange(256)
        network.send(Frame(bytes(data[: rng.choice([14, 20, 34, 40, len(data), len(data), len(data)])])))
        if round_ % 200 == 0:
            machine.resolve(router)  # it keeps up
    for length in (0, 5, 13, 70000):
        network.send(Frame(bytes(length)))
    machine.resolve(router)
    assert network.failure is None
    network.close()


@needs_passt
def test_passt(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    try:
        network = PasstNetwork(forwards=[Forward("tcp", port, 80)])
    except NetworkError as error:
        pytest.skip(str(error))
    machine = Station(network)
    found = machine.dhcp()
    machine.ip, gateway = found[0], found[3]
    machine.resolve(gateway)
    machine.connect(gateway, listener.getsockname()[1])
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(30)
        machine.tcp(gateway, 0x18, b"x" * 20000, 1448)
        got = b""
        while len(got) < 20000:
            got += connection.recv(65536)
        connection.sendall(b"and back")
        assert machine.content(machine.expect_tcp("answer", payload=True)) == b"and back"
    client = socket.create_connection(("127.0.0.1", port), 30)
    machine.expect("SYN", lambda d: d[12:14] == b"\x08\0" and d[23] == 6 and d[47] == 2)
    client.close()
    network.close()
    network.close()
    assert network.failure is None


@needs_passt
def test_long_frames_that_make_no_sense_do_passt_no_harm() -> None:
    try:
        network = PasstNetwork()
    except NetworkError as error:
        pytest.skip(str(error))
    machine = Station(network)
    found = machine.dhcp()
    machine.ip, gateway = found[0], found[3]
    machine.resolve(gateway)
    # More than passt takes: to be cut, which is not possible, and not to be cut.
    data, start = packet(6, 6, bytes(65500))
    frame = Frame(data)
    frame.offload(start, 16, GSO_TCP4, 1448)
    network.send(frame)
    network.send(Frame(data))
    assert network.dropped == 2
    machine.resolve(gateway)
    network.close()
    assert network.failure is None


@needs_passt
def test_passt_says_why_it_does_not_start(listener: socket.socket) -> None:
    with pytest.raises(ValueError, match="port 0"):
        PasstNetwork(forwards=[Forward("tcp", 0, 80)])


def test_a_missing_passt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NetworkError, match="install the package passt"):
        PasstNetwork()
