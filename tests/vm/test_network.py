"""Linux and its own driver on our networks."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyvisor.boards.virt import VirtConfig
from polyvisor.devices.virtio.net import NetDevice
from polyvisor.network import slirp
from polyvisor.network.capture import Capture
from polyvisor.network.conditions import Conditions
from polyvisor.network.forward import Forward
from polyvisor.network.port import Port
from polyvisor.network.switch import Switch
from polyvisor.network.user import UserNetwork
from polyvisor.vm.machine import Machine
from support.guests import guest_image


class Guest:
    """A booted image with a network card, and its shell."""

    def __init__(self, port: Port, run: str | None = None, words: str = "") -> None:
        self.seen = bytearray()
        self.devices: list[NetDevice] = []

        def make() -> NetDevice:
            self.devices.append(NetDevice(port))
            return self.devices[-1]

        image = guest_image()
        self.machine = Machine(VirtConfig(memory=256 << 20, devices=(make,)), self.seen.extend)
        line = f"{image.command_line(run=run)} {words}"
        self.machine.board.load_linux(image.kernel.read_bytes(), image.initrd.read_bytes(), line)
        self.machine.start()
        self.commands = 0

    def expect(self, text: bytes, timeout: float = 60) -> bytes:
        end = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < end, f"no {text!r} in {bytes(self.seen[-2000:])!r}"
            assert not self.machine.wait(0.01), bytes(self.seen[-2000:])
        return bytes(self.seen)

    def shell(self, command: str) -> str:
        """Run a command; gives its output, and the command's echo."""
        self.commands += 1
        self.seen.clear()
        self.machine.send(f"{command}; echo do''ne{self.commands}\n".encode())
        return self.expect(b"done%d" % self.commands).decode(errors="replace")


@pytest.fixture
def host() -> Iterator[tuple[int, dict[str, Callable[[], bytes]]]]:
    """A web server on the host's loopback: its port, and what it answers."""
    pages: dict[str, Callable[[], bytes]] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = pages[self.path]()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port, pages
        server.shutdown()
        thread.join()


def test_linux_reaches_the_host_and_is_reached(host: tuple[int, dict[str, Callable[[], bytes]]]) -> None:
    try:
        slirp.library()
    except slirp.SlirpMissingError as error:
        pytest.skip(str(error))
    port, pages = host
    network = UserNetwork(forwards=[Forward("tcp", 0, 80)], hostname="pluto")
    found: list[bytes] = []

    def fetch() -> bytes:
        url = f"http://127.0.0.1:{network.forwards[0].host_port}/page"
        with urllib.request.urlopen(url, timeout=60) as answer:
            found.append(answer.read())
        return b""

    pages["/hello"] = lambda: b"hello from the host\n" * 5000
    pages["/fetch"] = fetch
    router = f"http://10.0.2.2:{port}"
    command = f"""
        ip -4 addr show eth0; cat /etc/resolv.conf; ping -c 1 10.0.2.2 | tail -2
        wget -qO- {router}/hello | md5sum
        head -c 100000 /dev/zero | tr '\\0' x > /tmp/page; httpd -p 80 -h /tmp
        wget -qO /dev/null {router}/fetch; exit 3
    """
    guest = Guest(network, command, "polyvisor.net=wait")
    with guest.machine as machine:
        assert machine.wait(90), bytes(guest.seen)
        assert machine.exit_code == 3, bytes(guest.seen)
    text = guest.seen.decode()
    assert "inet 10.0.2.15/24" in text and "nameserver 10.0.2.3" in text and "1 packets received" in text
    assert hashlib.md5(pages["/hello"]()).hexdigest() in text
    assert found == [b"x" * 100000]
    assert network.failure is None and guest.devices[0].dropped_sent == 0


def test_two_linuxes_on_a_switch(tmp_path: Path) -> None:
    with Switch() as switch, Capture(tmp_path / "a.pcapng") as capture:
        ports = [switch.port("a"), switch.port("b")]
        guests = [Guest(port) for port in ports]
        try:
            a, b = guests
            for number, guest in enumerate(guests, 1):
                guest.expect(b"# ")
                guest.shell(f"ip addr add 10.0.0.{number}/24 dev eth0")
            assert "2 packets received" in a.shell("ping -c 2 -i 0.2 -W 5 10.0.0.2")
            capture.attach(switch)
            assert "1 packets received" in b.shell("ping -c 1 -W 5 10.0.0.1")
            assert capture.packets >= 2
            switch.partition(ports[:1])
            assert " 0 packets received" in a.shell("ping -c 1 -W 1 10.0.0.2")
            switch.heal()
            assert "1 packets received" in a.shell("ping -c 1 -W 5 10.0.0.2")
            # Large segments, and many frames, cut and put together by two kernels.
            b.machine.send(b"nc -l -p 5000 | md5sum > /tmp/sum\n")
            a.shell("head -c 300000 /bin/busybox > /tmp/data; sleep 0.3; nc 10.0.0.2 5000 < /tmp/data")
            sums = a.shell("md5sum < /tmp/data").split(), b.shell("cat /tmp/sum").split()
            assert [word for word in sums[0] if len(word) == 32] == [word for word in sums[1] if len(word) == 32]
            # With losses too.
            ports[0].set_conditions(Conditions(loss=0.1, delay=0.002, jitter=0.001))
            b.machine.send(b"nc -l -p 5000 | md5sum > /tmp/sum\n")
            a.shell("sleep 0.3; nc 10.0.0.2 5000 < /tmp/data")
            assert [word for word in b.shell("cat /tmp/sum").split() if len(word) == 32] == [
                word for word in sums[0] if len(word) == 32
            ]
            assert ports[0].lost > 0
            ports[1].set_link(False)
            assert "carrier0" in b.shell("sleep 0.1; echo carrier$(cat /sys/class/net/eth0/carrier)")
            ports[1].set_link(True)
            assert "carrier1" in b.shell("sleep 0.1; echo carrier$(cat /sys/class/net/eth0/carrier)")
            assert all(guest.devices[0].dropped_sent == 0 for guest in guests)
        finally:
            for guest in guests:
                guest.machine.close()
