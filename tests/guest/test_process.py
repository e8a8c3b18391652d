"""Conversations with an agent that is not there: frames in any pieces, and ends at any time."""

from __future__ import annotations

import random
import signal
import struct
import threading
import time
from collections.abc import Callable

import pytest

from polyvisor.guest import protocol as p
from polyvisor.guest import requests
from polyvisor.guest.client import GuestClient
from polyvisor.guest.process import Process
from polyvisor.guest.requests import frame


class Line:
    """A connection of which the test is the other end. ``room``: so many bytes can be sent."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.on_change: Callable[[], None] | None = None
        self.lock = threading.RLock()
        self.room = room
        self.sent = bytearray()
        self.at_end = False
        self._incoming = bytearray()

    def come(self, data: bytes, end: bool = False) -> None:
        with self.lock:
            self._incoming += data
            self._end = end
            self.at_end = end and not self._incoming
            if self.on_change:
                self.on_change()

    def take_received(self, count: int = 1 << 30) -> bytes:
        data = bytes(self._incoming[:count])
        del self._incoming[:count]
        self.at_end = self.at_end or (getattr(self, "_end", False) and not self._incoming)
        return data

    def send(self, data: bytes, timeout: float | None = None) -> None:
        for byte in range(0, len(data), 16):
            part = data[byte : byte + 16]
            if len(self.sent) + len(part) > self.room:
                if timeout is None:
                    pytest.fail("waits for ever")
                time.sleep(min(timeout, 0.05))
                raise TimeoutError("no room")
            self.sent += part
            time.sleep(0)

    def close(self) -> None:
        self.come(b"", end=True)

    abort = close

    def frames(self) -> list[tuple[int, bytes]]:
        found, place = [], 0
        while place < len(self.sent):
            kind, length = struct.unpack_from("<II", self.sent, place)
            found.append((kind, bytes(self.sent[place + 8 : place + 8 + length])))
            place += 8 + length
        return found


def process(line: Line, encoding: str | None = "utf-8", tty: bool = False) -> Process:
    return Process(line, ["cmd"], "", lambda *_: None, encoding, tty)


def number(value: int) -> bytes:
    return struct.pack("<I", value)


def test_frames_come_in_any_pieces() -> None:
    rng = random.Random(1)
    said = frame(p.STARTED, number(9)) + b"".join(
        frame(kind, "äöü\nß".encode()[:cut]) + frame(kind, "äöü\nß".encode()[cut:])
        for kind in (p.STDOUT, p.STDERR) for cut in range(9)
    ) + frame(p.EXIT, number(5 << 8) + number(0))  # fmt: skip
    for _ in range(20):
        line = Line()
        command = process(line)
        place = 0
        while place < len(said):
            step = rng.choice([1, 2, 7, 100])
            line.come(said[place : place + step])
            place += step
        assert command.pid == 9 and command.wait(0) == 5
        assert command.stdout.read() == "äöü\nß" * 9 == command.stderr.read()


def test_lines() -> None:
    line = Line()
    command = process(line, None)
    line.come(frame(p.STDOUT, b"one\ntw") + frame(p.STDOUT, b"o\n\nrest"))
    assert [command.stdout.readline(0) for _ in range(3)] == [b"one\n", b"two\n", b"\n"]
    with pytest.raises(TimeoutError):
        command.stdout.readline(0)
    line.come(frame(p.STDOUT, b" of it") + frame(p.EXIT, number(9) + number(0)), end=True)
    assert command.stdout.readline(0) == b"rest of it" and command.stdout.readline(0) == b""
    assert command.exit_code == -9


def test_an_end_before_the_end() -> None:
    line = Line()
    command = process(line)
    line.come(frame(p.STARTED, number(9)) + frame(p.STDOUT, b"some"), end=True)
    assert command.stdout.read_some(0) == "some"
    for call in (command.wait, command.stdout.read_some, command.stdout.readline, command.stdout.read):
        with pytest.raises(ConnectionError, match="ended before the command"):
            call(1)
    killed = process(Line())
    killed.kill()
    assert killed.wait(0) == -signal.SIGKILL


def test_input_that_is_not_taken_ends_in_time_and_nothing_follows_it() -> None:
    line = Line(room=100)
    command = process(line)
    with pytest.raises(TimeoutError, match="did not read its input"):
        command.write(b"x" * 1000, 0.01)
    sent = len(line.sent)
    line.room = 1 << 30
    with pytest.raises(BrokenPipeError):
        command.write(b"y")
    command.close_stdin()
    assert len(line.sent) == sent


@pytest.mark.parametrize("room", [108, 112, 128])
def test_the_end_of_the_input_is_not_waited_for_without_end(room: int) -> None:
    line = Line(room=room)
    command = process(line)
    with pytest.raises(TimeoutError):
        command.communicate(b"x" * 100, 0.01)


def test_frames_of_several_threads_do_not_mix() -> None:
    line = Line()
    command = process(line)
    threads = [threading.Thread(target=command.write, args=(bytes([n]) * 5000,)) for n in range(8)]
    threads += [threading.Thread(target=command.resize, args=(n, n)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line.frames()) == sorted(
        [(p.STDIN, bytes([n]) * 5000) for n in range(8)] + [(p.RESIZE, number(n) * 2) for n in range(8)]
    )


@pytest.mark.parametrize(("typed", "end"), [(b"", b"\x04"), (b"line\n", b"\x04"), (b"no line", b"\x04\x04")])
def test_the_end_of_input_is_typed_on_a_terminal(typed: bytes, end: bytes) -> None:
    line = Line()
    command = process(line, tty=True)
    command.write(typed)
    command.close_stdin()
    assert b"".join(data for kind, data in line.frames() if kind == p.STDIN) == typed + end


def test_what_the_agent_says_of_files() -> None:
    line = Line()
    client = GuestClient(lambda timeout: line)
    line.come(frame(p.DONE, number(2) + number(0)))
    with pytest.raises(FileNotFoundError, match="/x"):
        client.read_file("/x", 0)
    line = Line()
    line.come(frame(p.STARTED, number(1)))
    with pytest.raises(ConnectionError, match="kind 33"):
        client.read_file("/x", 0)
    line = Line()
    with pytest.raises(TimeoutError, match="within 0 seconds"):
        client.read_file("/x", 0)


def test_requests_are_as_the_protocol_says() -> None:
    request = requests.run(["ls", "-l"], {"PATH": "/a::/b"}, "/dir", requests.User(1, 2, (3, 4)), (5, 6), True)
    kind, length, *numbers = struct.unpack_from("<2I9I2I", request)
    assert kind == p.RUN and length == len(request) - 8
    assert numbers == [p.TTY | p.DETACHED, 1, 2, 2, 2, 1, 3, 5, 6, 3, 4]
    strings = request[8 + 44 :].split(b"\0")
    assert strings == [b"/dir", b"/a/ls", b"./ls", b"/b/ls", b"ls", b"-l", b"PATH=/a::/b", b""]
