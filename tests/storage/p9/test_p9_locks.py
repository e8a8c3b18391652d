"""Locks: between the owners in the guest, and against programs of the host."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from p9_client import Client, P9Error, WaitingError, serve

from polyvisor.storage.p9 import locks

READ, WRITE, NONE = 0, 1, 2
SUCCESS, BLOCKED = 0, 1


def host_can(path: Path, kind: int, start: int = 0, length: int = 0) -> bool:
    """Whether another open file of the host could lock the range."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi0q", kind, os.SEEK_SET, start, length, 0))
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_owners_in_the_guest(tmp_path: Path) -> None:
    client = Client(serve(tmp_path))
    path = tmp_path / "f"
    one, two = client.create("f"), client.open("f", flags=2)
    assert client.lock(one, READ, 0, 100, process=1) == SUCCESS
    assert client.lock(two, READ, 50, 100, process=2) == SUCCESS
    assert client.lock(two, WRITE, 0, 10, process=2) == BLOCKED
    assert client.getlock(two, WRITE, 0, 10, process=2) == (READ, 0, 100, 1)
    assert client.getlock(two, WRITE, 100, 0, process=2)[0] == NONE
    assert client.getlock(two, WRITE, 120, 10, process=1) == (READ, 50, 100, 2)
    assert client.getlock(one, NONE, 0, 10)[0] == NONE
    # By another fid of the same file: the process counts.
    assert client.lock(two, NONE, 0, 20, process=1) == SUCCESS
    assert client.lock(two, WRITE, 0, 10, process=2) == SUCCESS
    assert client.lock(one, WRITE, 5, 1, process=1) == BLOCKED
    assert client.lock(one, WRITE, 5, 1, process=2) == SUCCESS
    # The host keeps what either still needs.
    assert client.lock(one, NONE, 0, 0, process=1) == SUCCESS
    assert not host_can(path, fcntl.F_WRLCK, 60, 10) and host_can(path, fcntl.F_RDLCK, 60, 10)
    assert not host_can(path, fcntl.F_RDLCK, 0, 10)
    assert host_can(path, fcntl.F_WRLCK, 10, 40)
    assert client.lock(one, NONE, 0, 0, process=2) == SUCCESS
    assert host_can(path, fcntl.F_WRLCK)


def test_waiting_for_another_owner(tmp_path: Path) -> None:
    server = serve(tmp_path)
    client = Client(server)
    one, two = client.create("f"), client.open("f", flags=2)

    def wait(process: int) -> int:
        with pytest.raises(WaitingError):
            client.lock(two, WRITE, 0, 10, process, wait=True)
        return client.tag

    client.lock(one, READ, process=1)
    tags = [wait(2), wait(3)]
    assert server.ready() == []
    with pytest.raises(P9Error) as caught:
        client.tag = tags[0] - 1
        client.lock(two, READ, process=4)
    assert caught.value.errno == errno.EBUSY, "the tag is taken"
    client.tag = tags[1]
    assert client.lock(one, NONE, process=1) == SUCCESS
    # The first gets it, the second waits on until it gives up.
    assert server.ready() == [(tags[0], struct.pack("<IBHB", 8, 53, tags[0], SUCCESS))]
    client.call(108, struct.pack("<H", 999))
    assert server.ready() == []
    client.call(108, struct.pack("<H", tags[1]))
    assert server.ready() == [(tags[1], struct.pack("<IBHI", 11, 7, tags[1], errno.EINTR))]
    # The fid may go meanwhile.
    tag = wait(3)
    client.clunk(two)
    client.lock(one, NONE, process=2)
    assert server.ready() == [(tag, struct.pack("<IBHI", 11, 7, tag, errno.EBADF))]
    two = client.open("f", flags=2)
    client.lock(one, WRITE, process=1)
    wait(2)
    assert len(server.save().waiting) == 1
    server.reset()
    assert server.ready() == []


def test_programs_of_the_host(tmp_path: Path) -> None:
    client = Client(serve(tmp_path))
    fid = client.create("f")
    # A process with POSIX locks, as lockf(3) takes them.
    program = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'r+b'); fcntl.lockf(f, fcntl.LOCK_EX, 10, 20);"
        "print(os.getpid(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "f")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout and process.stdin
    pid = int(process.stdout.readline())
    try:
        assert client.lock(fid, READ, 25, 1) == BLOCKED
        assert client.getlock(fid, READ, 0, 0) == (WRITE, 20, 10, pid)
        assert client.lock(fid, READ, 25, 1, wait=True) == BLOCKED, "the client asks again"
        assert client.lock(fid, WRITE, 0, 20) == SUCCESS
    finally:
        process.communicate()
    assert client.lock(fid, READ, 25, 1) == SUCCESS


def test_locks_end_with_the_last_fid(tmp_path: Path) -> None:
    client = Client(serve(tmp_path))
    path = tmp_path / "f"
    one, two = client.create("f"), client.open("f")
    client.lock(one, WRITE)
    client.clunk(one)
    assert not host_can(path, fcntl.F_RDLCK)
    looked = client.walk("f")
    client.clunk(two)
    assert host_can(path, fcntl.F_WRLCK)
    client.lopen(looked, 2)
    client.lock(looked, WRITE)
    client.version()
    assert host_can(path, fcntl.F_WRLCK), "a new session has no locks"


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    client = Client(serve(tmp_path))
    fid = client.open("f")
    assert client.lock(fid, WRITE) == SUCCESS, "flock(2) needs no file open for writing"
    assert not host_can(tmp_path / "f", fcntl.F_RDLCK)


def test_number_of_locks_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "MAX_LOCKS", 20)
    client = Client(serve(tmp_path))
    fid = client.create("f")
    with pytest.raises(P9Error) as caught:
        for i in range(30):
            assert client.lock(fid, READ, 2 * i, 1) == SUCCESS
    assert caught.value.errno == errno.ENOLCK
    assert client.lock(fid, NONE) == SUCCESS
    assert client.lock(fid, READ) == SUCCESS


def test_random_locks_against_a_model(tmp_path: Path) -> None:
    """Every byte's holders in a table; the host must see exactly the strongest of them."""
    rng = random.Random(3)
    client = Client(serve(tmp_path))
    fid = client.create("f")
    size = 24
    held: list[dict[int, bool]] = [{} for _ in range(size)]
    other = os.open(tmp_path / "f", os.O_RDWR)
    for _ in range(600):
        process, kind = rng.randrange(3), rng.choice([READ, READ, WRITE, NONE, NONE])
        start = rng.randrange(size)
        length = rng.randrange(1, size - start + 1)
        cells = held[start : start + length]
        blocked = kind != NONE and any(
            who != process and (writes or kind == WRITE) for cell in cells for who, writes in cell.items()
        )
        assert client.lock(fid, kind, start, length, process) == (BLOCKED if blocked else SUCCESS)
        if not blocked:
            for cell in cells:
                cell.pop(process, None)
                if kind != NONE:
                    cell[process] = kind == WRITE
        for at in rng.sample(range(size), 6):
            request = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, at, 1, 0)
            there = struct.unpack("hhqqi0q", fcntl.fcntl(other, fcntl.F_OFD_GETLK, request))[0]
            wanted = fcntl.F_UNLCK if not held[at] else fcntl.F_WRLCK if any(held[at].values()) else fcntl.F_RDLCK
            assert there == wanted
    os.close(other)
