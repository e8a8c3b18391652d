"""Conversations with an agent that is not there: frames in any pieces, and ends at any time."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable

import pytest

from polyvisor.guest import protocol as p
from polyvisor.guest import requests
from polyvisor.guest.client import GuestClient
from polyvisor.guest.connection import Connection
from polyvisor.guest.deadline import Deadline
from polyvisor.guest.process import Process
from polyvisor.guest.requests import frame
from polyvisor.vm.remote import SocketConnection


class Line:
    """A connection of which the test is the other end. ``room``: so many bytes can be sent."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.on_change: Callable[[], None] | None = None
        self.lock = threading.RLock()
        self.room = room
        self.sent = bytearray()
        self.at_end = False
        self.closed = False
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
        self.closed = True
        self.come(b"", end=True)

    abort = close

    def frames(self) -> list[tuple[int, bytes]]:
        found, place = [], 0
        while place < len(self.sent):
            kind, length = struct.unpack_from("<II", self.sent, place)
            found.append((kind, bytes(self.sent[place + 8 : place + 8 + length])))
            place += 8 + length
        return found


def process(
    line: Line,
    encoding: str | None = "utf-8",
    tty: bool = False,
    give_back: Callable[[Connection], None] | None = None,
) -> Process:
    return Process(line, ["cmd"], "", lambda *_: None, encoding, tty, give_back=give_back)


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
    # Also one of which more output has come than anybody takes any more.
    line = Line()
    flooded = process(line)
    for _ in range(3):
        line.come(frame(p.STDOUT, bytes(1 << 15)) * 40)
    flooded.kill()
    flooded.wait_end(0)
    assert flooded.exit_code == -signal.SIGKILL


@pytest.mark.parametrize(
    "nonsense",
    [
        struct.pack("<II", p.STDOUT, p.MAX_FRAME + 1),
        struct.pack("<II", p.STDOUT, 2**32 - 1) + bytes(100),
        frame(p.STARTED, b"abc"),
        frame(p.EXIT, bytes(5)),
        frame(p.FAILED, number(p.AT_PROGRAM)),
    ],
)
def test_an_agent_that_talks_nonsense(nonsense: bytes) -> None:
    """It is told on a thread of the machine, which must not end of it; nor is all of a huge frame waited for."""
    line = Line()
    command = process(line)
    line.come(nonsense)
    with pytest.raises(ConnectionError, match="the guest sent"):
        command.wait(1)
    line.come(bytes(1000))
    assert not command.running


def test_strange_errors_of_an_agent() -> None:
    line = Line()
    command = process(line)
    line.come(frame(p.FAILED, number(p.AT_PROGRAM) + number(2**32 - 1) + number(0)), end=True)
    with pytest.raises(OSError, match="4294967295"):
        command.wait_started(1)
    for said in (frame(p.DONE, b"abc"), frame(p.STAT, b"short"), struct.pack("<II", p.STAT, 2**31)):
        line = Line()
        client = GuestClient(lambda timeout, line=line: line)  # type: ignore[misc]
        line.come(said)
        with pytest.raises(ConnectionError, match="the guest sent"):
            client.stat("/", 1)
    line = Line()
    line.come(frame(p.DONE, number(2**32 - 1) + number(0)))
    with pytest.raises(OSError, match="4294967295"):
        GuestClient(lambda timeout: line).stat("/", 1)


def test_a_user_whose_numbers_are_none() -> None:
    line = Line()
    line.come(
        frame(p.STAT, bytes(256)) + frame(p.STDOUT, b"odd:x:one:2::/:/bin/sh\n") + frame(p.DONE, number(0) + number(0))
    )
    with pytest.raises(KeyError, match="no user 'odd'"):
        GuestClient(lambda timeout: line).user("odd", 1)


def test_a_connection_that_is_closed_while_nobody_takes_what_comes() -> None:
    """Its thread ends, and the end is told."""
    ours, theirs = socket.socketpair()
    with theirs:
        connection = SocketConnection(ours)
        ended = threading.Event()
        connection.on_change = lambda: ended.set() if connection._ended else None
        theirs.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.send(bytes(1 << 16))
                time.sleep(0.001)
        connection.abort()
        assert ended.wait(20)


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
    quiet = requests.run(["ls"], {}, "", None, None, False, has_input=False, quiet=True)
    assert struct.unpack_from("<I", quiet, 8) == (p.AS_AGENT | p.NO_INPUT | p.QUIET,)
    request = requests.run(["ls", "-l"], {"PATH": "/a::/b"}, "/dir", requests.User(1, 2, (3, 4)), (5, 6), True)
    kind, length, *numbers = struct.unpack_from("<2I9I2I", request)
    assert kind == p.RUN and length == len(request) - 8
    assert numbers == [p.TTY | p.DETACHED, 1, 2, 2, 2, 1, 3, 5, 6, 3, 4]
    strings = request[8 + 44 :].split(b"\0")
    assert strings == [b"/dir", b"/a/ls", b"./ls", b"/b/ls", b"ls", b"-l", b"PATH=/a::/b", b""]


# Connections for several requests


EXIT_AND_GO_ON = frame(p.EXIT, number(0) + number(1))


def test_a_connection_is_given_back_when_the_command_has_ended() -> None:
    line, kept = Line(), []
    command = process(line, give_back=kept.append)
    line.come(frame(p.STARTED, number(9)) + frame(p.STDOUT, b"said"))
    assert not kept
    line.come(EXIT_AND_GO_ON)
    assert kept == [line] and line.on_change is None
    # It is somebody else's now: what comes, and whether it goes on, is no more of this command's business.
    line.come(frame(p.STDOUT, b"of another"))
    assert command.stdout.read() == "said" and command.wait(0) == 0
    with pytest.raises(BrokenPipeError):
        command.write("late")
    command.close_stdin()
    command.kill()
    with command:
        pass
    assert not line.sent and not line.closed and kept == [line]
    assert line.take_received() == frame(p.STDOUT, b"of another")


@pytest.mark.parametrize("said", [frame(p.EXIT, number(0) * 2), EXIT_AND_GO_ON + b"more"])
def test_a_connection_that_the_agent_ends_is_not_given_back(said: bytes) -> None:
    line, kept = Line(), []
    process(line, give_back=kept.append)
    line.come(frame(p.STARTED, number(9)) + said)
    assert line.closed and not kept


def test_what_cannot_be_started_gives_the_connection_back() -> None:
    line, kept = Line(), []
    command = process(line, give_back=kept.append)
    line.come(frame(p.FAILED, number(p.AT_PROGRAM) + number(2) + number(1)))
    with pytest.raises(FileNotFoundError, match="cmd"):
        command.wait_started(0)
    assert kept == [line]


class SlowLine(Line):
    """Sends when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.sending, self.go_on = threading.Event(), threading.Event()

    def send(self, data: bytes, timeout: float | None = None) -> None:
        self.sending.set()
        assert self.go_on.wait(10)
        super().send(data)


def test_a_connection_is_not_given_back_while_something_is_sent() -> None:
    """What is sent belongs to this command; the next one must not get it."""
    line, kept = SlowLine(), []
    command = process(line, give_back=kept.append)
    failed: list[BaseException] = []

    def write() -> None:
        try:
            command.write(b"x" * 3 * p.MAX_FRAME)
        except BrokenPipeError as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    assert line.sending.wait(10)
    line.come(EXIT_AND_GO_ON)
    assert command.wait(0) == 0 and not kept
    line.go_on.set()
    thread.join(10)
    assert kept == [line] and failed and len(line.frames()) == 1  # whole


def test_a_connection_with_a_part_of_a_frame_is_not_given_back() -> None:
    line, kept = Line(room=100), []
    command = process(line, give_back=kept.append)
    with pytest.raises(TimeoutError):
        command.write(b"x" * 1000, 0.01)
    line.come(EXIT_AND_GO_ON)
    assert line.closed and not kept


def test_a_client_keeps_some_connections_and_none_that_has_ended() -> None:
    lines: list[Line] = []

    def connect(timeout: float | None) -> Line:
        lines.append(Line())
        return lines[-1]

    client = GuestClient(connect, 2)
    commands = [client._begin(["cmd"], True, Deadline(0)) for _ in range(3)]
    for line in lines:
        line.come(EXIT_AND_GO_ON)
    assert [line.closed for line in lines] == [False, False, True] and all(c.wait(0) == 0 for c in commands)
    lines[1].come(b"unasked")  # nothing may come before the next request
    lines[0].come(b"", end=True)
    client._begin(["cmd"], True, Deadline(0))
    assert len(lines) == 4 and lines[0].closed and lines[1].closed
    lines[3].come(EXIT_AND_GO_ON)
    client._begin(["cmd"], True, Deadline(0))
    assert len(lines) == 4 and [kind for kind, _ in lines[3].frames()] == [p.RUN] * 2


def test_a_connection_that_ends_before_it_has_a_request_is_replaced() -> None:
    class Ended(Line):
        def send(self, data: bytes, timeout: float | None = None) -> None:
            if self.sent:
                raise BrokenPipeError
            super().send(data)

    lines: list[Line] = []

    def connect(timeout: float | None) -> Line:
        lines.append(Ended())
        return lines[-1]

    client = GuestClient(connect, 2)
    for count in (1, 2):
        client._begin(["cmd"], True, Deadline(0))
        assert len(lines) == count and [kind for kind, _ in lines[-1].frames()] == [p.RUN]
        lines[-1].come(EXIT_AND_GO_ON)


def test_files_and_commands_share_connections() -> None:
    lines: list[Line] = []

    def connect(timeout: float | None) -> Line:
        lines.append(Line())
        lines[-1].come(frame(p.DONE, number(2) + number(1)))
        return lines[-1]

    client = GuestClient(connect, 1)
    with pytest.raises(FileNotFoundError):
        client.stat("/x", 0)
    line = lines[0]
    assert not line.closed
    client._begin(["cmd"], True, Deadline(0))
    line.come(frame(p.FAILED, number(p.AT_PROGRAM) + number(2) + number(1)))
    assert [kind for kind, _ in line.frames()] == [p.STATUS, p.RUN] and len(lines) == 1


# A guest that lies


LIES = [
    struct.pack("<II", p.STDOUT, 2**32 - 1), frame(p.STDOUT, b"x" * (p.MAX_FRAME + 1)), frame(p.STARTED, b""),
    frame(p.EXIT, b"1"), frame(p.EXIT, number(1)), frame(p.FAILED, b"x" * 11),
]  # fmt: skip


@pytest.mark.parametrize("lie", LIES, ids=range(len(LIES)))
def test_frames_that_make_no_sense_break_the_connection_and_nothing_else(lie: bytes) -> None:
    line = Line()
    command = process(line)
    line.come(frame(p.STARTED, number(9)) + lie)
    with pytest.raises(ConnectionError, match="the guest sent"):
        command.wait(0)
    assert line.closed


@pytest.mark.parametrize("lie", [frame(p.DONE), frame(p.STAT, b"short"), struct.pack("<II", p.STAT, 2**31)])
def test_the_same_of_files(lie: bytes) -> None:
    line = Line()
    line.come(lie)
    with pytest.raises(ConnectionError, match="the guest sent"):
        GuestClient(lambda timeout: line, 1).stat("/x", 0)
    assert line.closed


def test_error_numbers_may_be_any() -> None:
    line = Line()
    command = process(line)
    line.come(frame(p.FAILED, number(77) + number(2**32 - 1) + number(0)))
    with pytest.raises(OSError, match="Unknown error 4294967295"):
        command.wait(0)
    assert command.exit_code is None
