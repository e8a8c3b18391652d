"""Captures, read by a small reader of the tests' own and by tshark where it is installed."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packets import A, B, check, ethernet, packet

from polyvisor.network.capture import Capture
from polyvisor.network.frame import GSO_TCP4, Frame
from polyvisor.network.switch import Switch


@dataclass
class Packet:
    interface: int
    time: int
    data: bytes
    outbound: bool


@dataclass
class Parsed:
    """A pcapng file, read as the draft says; anything wrong raises."""

    interfaces: list[str] = field(default_factory=list)
    packets: list[Packet] = field(default_factory=list)


def options(data: bytes) -> dict[int, bytes]:
    found, at = {}, 0
    while True:
        code, length = struct.unpack_from("<HH", data, at)
        if code == 0:
            assert length == 0 and at + 4 == len(data)
            return found
        found[code] = data[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4


def parse(path: Path) -> Parsed:
    data, at, parsed = path.read_bytes(), 0, Parsed()
    while at < len(data):
        kind, length = struct.unpack_from("<II", data, at)
        assert length % 4 == 0 and length >= 12 and at + length <= len(data)
        assert struct.unpack_from("<I", data, at + length - 4)[0] == length
        body = data[at + 8 : at + length - 4]
        if at == 0:
            assert kind == 0x0A0D0D0A
            assert struct.unpack_from("<IHHq", body) == (0x1A2B3C4D, 1, 0, -1)
            options(body[16:])
        elif kind == 1:
            assert struct.unpack_from("<HHI", body) == (1, 0, 0)
            found = options(body[8:])
            assert found[9] == b"\x09"  # nanoseconds
            parsed.interfaces.append(found[2].decode())
        else:
            assert kind == 6
            interface, high, low, captured, original = struct.unpack_from("<5I", body)
            assert captured == original and interface < len(parsed.interfaces)
            flags = options(body[20 + (captured + 3) // 4 * 4 :])[2]
            parsed.packets.append(
                Packet(interface, high << 32 | low, body[20 : 20 + captured], struct.unpack("<I", flags)[0] & 3 == 2)
            )
        at += length
    return parsed


def large() -> tuple[Frame, int]:
    data, transport = packet(4, 6, bytes(range(256)) * 20)
    frame = Frame(data)
    frame.offload(transport, 16, GSO_TCP4, 1448)
    return frame, transport


def test_a_port_is_captured_while_it_runs(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    times = iter(range(1_700_000_000_000_000_000, 2**63, 7))
    switch = Switch()
    a, b = switch.port("a"), switch.port("b")
    with Capture(path, lambda: next(times)) as capture:
        assert parse(path).interfaces == []
        a.send(ethernet(B, A))
        detach = capture.attach(a)
        a.send(ethernet(B, A, b"one"))
        assert [p.data for p in parse(path).packets] == [bytes(ethernet(B, A, b"one"))]
        b.send(ethernet(A, B, b"four"))
        detach()
        a.send(ethernet(B, A, b"two"))
        parsed = parse(path)
        assert parsed.interfaces == ["a"] and capture.packets == 2
        assert [(p.data[14:], p.outbound, p.time) for p in parsed.packets] == [
            (b"one", True, 1_700_000_000_000_000_000), (b"four", False, 1_700_000_000_000_000_007)
        ]


def test_a_switch_is_captured(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    switch = Switch()
    a, b = switch.port("a"), switch.port("the other")
    with Capture(path) as capture:
        capture.attach(switch)
        b.send(ethernet(A, B))
        a.send(ethernet(B, A))
        b.send(ethernet(A, B))
    a.send(ethernet(B, A))
    capture.close()
    parsed = parse(path)
    assert [parsed.interfaces[p.interface] for p in parsed.packets] == ["the other", "a", "the other"]


def test_large_segments_are_what_a_wire_would_carry(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    port = Switch().port("a")
    frame, transport = large()
    with Capture(path) as capture:
        capture.attach(port, "wan")
        port.send(frame)
    parsed = parse(path)
    assert parsed.interfaces == ["wan"] and len(parsed.packets) == 4
    assert b"".join(check(p.data, 4, 6, transport)[0] for p in parsed.packets) == bytes(range(256)) * 20


def test_several_threads(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    switch = Switch()
    with Capture(path) as capture:
        capture.attach(switch)
        ports = [switch.port() for _ in range(4)]

        def run(number: int) -> None:
            for i in range(100):
                ports[number].send(ethernet(B, A, bytes([number, i])))

        threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    parsed = parse(path)
    assert sorted(p.data[14:] for p in parsed.packets) == sorted(bytes([n, i]) for n in range(4) for i in range(100))
    assert sorted(parsed.interfaces) == sorted(port.name for port in ports)


def test_a_full_disk_leaves_whole_blocks(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    port = Switch().port("a")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with Capture(path) as capture:
            capture.attach(port)
            for _ in range(20):
                port.send(ethernet(B, A, bytes(100)))
            assert capture.error is not None
            assert port.dropped == 0 and port.sent == 20
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    parsed = parse(path)
    assert len(parsed.packets) == capture.packets > 3
    assert path.stat().st_size < 1000


def test_a_pipe_whose_reader_goes_away(tmp_path: Path) -> None:
    read, write = os.pipe()
    port = Switch().port("a")
    with Capture(f"/proc/self/fd/{write}") as capture:
        capture.attach(port)
        port.send(ethernet(B, A))
        assert len(os.read(read, 65536)) > 100
        os.close(read)
        os.close(write)
        port.send(ethernet(B, A))
        assert isinstance(capture.error, BrokenPipeError)


def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(OSError, match="directory"):
        Capture("/nonexistent/a.pcapng")
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="space"):
            Capture("/dev/full")


@pytest.mark.skipif(shutil.which("tshark") is None, reason="tshark is not installed")
def test_wireshark_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.pcapng"
    port = Switch().port("a")
    with Capture(path) as capture:
        capture.attach(port)
        port.send(large()[0])
        data, transport = packet(6, 17, b"hello")
        frame = Frame(data)
        frame.offload(transport, 6)
        port.send(frame)
    fields = ["frame.interface_name", "tcp.checksum.status", "udp.checksum.status", "ip.checksum.status", "frame.len"]
    checks = ["tcp.check_checksum", "udp.check_checksum", "ip.check_checksum"]
    done = subprocess.run(
        ["tshark", "-r", str(path), "-Tfields", *(x for f in fields for x in ("-e", f)),
         *(x for c in checks for x in ("-o", f"{c}:TRUE"))],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[:4] for row in rows] == [["a", "1", "", "1"]] * 4 + [["a", "", "1", ""]], done.stderr
    assert [int(row[4]) for row in rows[:2]] == [14 + 20 + 32 + 1448] * 2
