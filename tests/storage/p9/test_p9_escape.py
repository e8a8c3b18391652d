"""Nothing a client sends, and nothing that is renamed meanwhile, leads out of the shared directory."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from p9_client import ROOT, Client, P9Error, s, serve

from polyvisor.storage.p9 import descriptors, fids

O_TRUNC, O_EXCL = 0o1000, 0o200
SECRET = b"the secret outside"


def refused(number: int | set[int], call: Callable[..., object], *arguments: object, **named: object) -> None:
    with pytest.raises(P9Error) as caught:
        call(*arguments, **named)
    assert caught.value.errno in ({number} if isinstance(number, int) else number), caught.value


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    path = tmp_path / "outside"
    (path / "sub").mkdir(parents=True)
    (path / "secret").write_bytes(SECRET)
    return path


@pytest.fixture
def client(tmp_path: Path, outside: Path) -> Client:
    shared = tmp_path / "shared"
    (shared / "d").mkdir(parents=True)
    (shared / "dir").symlink_to(outside)
    (shared / "file").symlink_to(outside / "secret")
    (shared / "up").symlink_to("..")
    (shared / "new").symlink_to(outside / "made")
    return Client(serve(shared))


def exchange(one: Path, other: Path) -> None:
    """Exchange two names at once (renameat2(2), RENAME_EXCHANGE)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), ctypes.c_uint(2)):
        raise OSError(ctypes.get_errno(), "renameat2")


def snapshot(path: Path) -> list[tuple[str, int, int, bytes]]:
    found = []
    for each in sorted([path, *path.rglob("*")]):
        st = each.lstat()
        found.append((str(each), st.st_mode, st.st_nlink, each.read_bytes() if each.is_file() else b""))
    return found


def test_symbolic_links_are_never_followed(client: Client, outside: Path) -> None:
    before = snapshot(outside)
    for link in ("dir", "up"):
        refused(errno.ENOENT, client.walk, link, "secret")
        base = client.walk(link)
        for call in (
            lambda base=base: client.walk("sub", base=base),
            lambda base=base: client.walk("..", base=base),
            lambda base=base: client.create("x", base=base),
            lambda base=base: client.mkdir("x", base=base),
            lambda base=base: client.symlink("x", "y", base=base),
            lambda base=base: client.mknod("x", stat.S_IFREG | 0o600, base=base),
            lambda base=base: client.link(client.walk("d"), "x", base=base),
            lambda base=base: client.renameat("secret", "x", base=base),
            lambda base=base: client.renameat("d", "x", new_base=base),
            lambda base=base: client.rename(client.walk("d"), "x", base=base),
            lambda base=base: client.unlinkat("secret", base=base),
            lambda base=base: client.unlinkat("sub", 0x200, base=base),
            lambda base=base: client.lopen(base),
        ):
            refused({errno.ENOTDIR, errno.ELOOP, errno.ENOENT, errno.EPERM}, call)
    for flags in (0, 1, 2, 2 | O_TRUNC):
        refused(errno.ELOOP, client.open, "file", flags=flags)
        refused(errno.ELOOP, client.create, "file", flags=flags)
        refused(errno.ELOOP, client.create, "new", flags=flags)
        refused(errno.EEXIST, client.create, "new", flags=flags | O_EXCL)
    link = client.walk("file")
    refused(errno.EINVAL, client.setattr, link, size=0)
    refused(errno.EOPNOTSUPP, client.setattr, link, mode=0o777)
    client.setattr(link, mtime=(1, 0), atime=(1, 0))
    refused({errno.EPERM, errno.EOPNOTSUPP, errno.ENODATA}, client.setxattr, link, "user.x", b"1")
    client.link(link, "d2")
    assert client.readlink(client.walk("d2")) == os.fsencode(outside / "secret")
    client.unlinkat("dir")
    refused(errno.ENOTDIR, client.unlinkat, "up", 0x200)
    assert snapshot(outside) == before
    assert (outside / "secret").stat().st_mtime != 1


@pytest.mark.parametrize("name", [b"", b".", b"..", b"/", b"../outside", b"d/x", b"/etc", b"x\0y", b"\0"])
def test_names_that_are_paths_are_refused(client: Client, outside: Path, name: bytes) -> None:
    before = snapshot(outside.parent)
    d = client.walk("d")
    for call in (
        lambda: client.create(name),
        lambda: client.create(name, base=d),
        lambda: client.mkdir(name, base=d),
        lambda: client.symlink(name, "x", base=d),
        lambda: client.mknod(name, stat.S_IFREG | 0o600, base=d),  # type: ignore[arg-type]
        lambda: client.link(client.walk("file"), name, base=d),
        lambda: client.renameat(name, "x", base=d),
        lambda: client.renameat("file", name, new_base=d),
        lambda: client.rename(client.walk("file"), name, base=d),
        lambda: client.unlinkat(name, base=d),
        lambda: client.unlinkat(name, 0x200, base=d),
    ):
        refused(errno.EINVAL, call)
    if name != b"..":
        refused(errno.EINVAL, client.walk, name, base=d)
    assert snapshot(outside.parent) == before


def test_the_parent_of_the_shared_directory_is_itself(client: Client, outside: Path) -> None:
    inode = client.getattr(ROOT).qid
    for names in (("..",), ("..", "..", ".."), ("d", "..", ".."), ("d", "..", "d", "..", "..")):
        assert client.stat(*names).qid == inode
    refused(errno.ENOENT, client.walk, "..", "outside")
    # A directory that the host moved out of it has no parent at all.
    d = client.walk("d")
    (outside.parent / "shared" / "d").rename(outside / "d")
    refused(errno.ENOENT, client.walk, "..", base=d)
    refused(errno.ENOENT, client.remove, client.walk(base=d))
    refused(errno.ENOENT, client.rename, d, "back")


def test_special_files_of_the_host_are_not_opened(client: Client, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    os.mkfifo(shared / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(shared / "socket"))
    names = ["fifo", "socket"]
    if os.geteuid() == 0:
        try:
            os.mknod(shared / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))
            names.append("device")
        except PermissionError:
            pass
    for name in names:
        for flags in (0, 1, 2, O_TRUNC):
            refused(errno.EOPNOTSUPP, client.open, name, flags=flags)
            refused(errno.EOPNOTSUPP, client.create, name, flags=flags)
        fid = client.walk(name)
        refused(errno.EINVAL, client.setattr, fid, size=0)
        refused(errno.EBADF, client.read, fid, 0, 1)
        refused(errno.EBADF, client.lock, fid, 0)
        client.setattr(fid, mode=0o600, mtime=(1, 0))
    assert stat.S_ISFIFO(client.stat("fifo").mode) and stat.S_ISSOCK(client.stat("socket").mode)


def test_what_the_host_renames_meanwhile_does_not_lead_out(client: Client, outside: Path) -> None:
    """The host makes one name a directory and a link to the outside in turn, as fast as it can."""
    shared = outside.parent / "shared"
    (shared / "swap").mkdir()
    (shared / "swap" / "secret").write_bytes(b"inside")
    (shared / "trap").symlink_to(outside)
    before = snapshot(outside)
    ended = threading.Event()
    swaps = 0

    def swap() -> None:
        nonlocal swaps
        while not ended.is_set():
            exchange(shared / "swap", shared / "trap")
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen: dict[str, int] = {}

    def attempt(name: str, call: Callable[[], object]) -> None:
        try:
            call()
            seen[name] = seen.get(name, 0) + 1
        except P9Error:
            pass

    def read() -> None:
        assert client.read(client.open("swap", "secret"), 0, 99) == b"inside"

    def make() -> None:
        base = client.walk("swap")
        client.clunk(client.create("x", base=base))
        client.unlinkat("x", base=base)

    def move() -> None:
        base = client.walk("swap")
        attempt("mkdir", lambda: client.mkdir("y", base=base))
        client.rename(client.walk("y", base=base), "z", base=base)
        client.remove(client.walk("z", base=base))

    def climb() -> None:
        fid = client.walk("swap", "..")
        assert client.getattr(fid).qid[2] == shared.stat().st_ino

    try:
        for _ in range(400):
            for call in (read, make, move, climb):
                attempt(call.__name__, call)
            client.version()
            client.attach(ROOT)
    finally:
        ended.set()
        thread.join()
    assert snapshot(outside) == before
    assert swaps > 10 and min(seen[name] for name in ("read", "make", "climb")) > 10, (swaps, seen)


def test_a_path_that_is_out_of_date_is_noticed(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a file known by its fid alone is called is asked of the host, and may have changed since."""
    for name in ("one", "other"):
        client.clunk(client.create(name))
    fid = client.walk("one")
    monkeypatch.setattr(client.server.tree, "names", lambda fd: (b"other",))
    refused(errno.ENOENT, client.rename, fid, "x")
    refused(errno.ENOENT, client.remove, fid)
    monkeypatch.setattr(client.server.tree, "names", lambda fd: (b"dir", b"secret"))
    refused(errno.ENOTDIR, client.rename, client.walk("one"), "x")
    assert {b"one", b"other"} <= set(client.names())


def test_descriptors_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(serve(tmp_path))
    monkeypatch.setattr(fids, "MAX_FIDS", 50)
    for _ in range(49):
        client.walk()
    refused(errno.ENFILE, client.walk)
    refused(errno.ENFILE, client.attach, 9)
    client.version()
    client.attach(ROOT)
    limit = descriptors.held()
    monkeypatch.setattr(descriptors.resource, "getrlimit", lambda what: (limit * 4 // 3, 1 << 20))
    refused(errno.ENFILE, client.walk)
    refused(errno.ENFILE, client.create, "f")
    assert not (tmp_path / "f").exists()
    monkeypatch.undo()
    client.walk()


def test_attributes_held_are_limited(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fids, "MAX_ATTRIBUTES", 3)
    held = descriptors.held()
    for _ in range(5):
        for kind in (0, 1, 0):
            fid = client.walk("d")
            if kind:
                client.call(32, struct.pack("<I", fid) + s("user.y") + struct.pack("<QI", 4, 0))
            else:
                client.call(30, struct.pack("<II", fid, client.fid()) + s(""))
        refused(errno.ENOSPC, client.getxattr, fid, "")
        client.version()
        client.attach(ROOT)
    assert descriptors.held() == held


def test_malformed_requests_get_an_error(client: Client) -> None:
    def header(kind: int, length: int) -> bytes:
        return struct.pack("<IBH", length, kind, 5)

    def error(message: bytes, room: int = 100) -> int:
        reply = client.raw(message, room)
        assert reply[4] == 7, reply
        number: int = struct.unpack("<I", reply[7:])[0]
        return number

    fid = struct.pack("<I", ROOT)
    assert error(header(120, 12) + fid) == errno.EBADMSG  # longer than what came
    assert error(header(120, 6) + fid) == errno.EBADMSG
    assert error(header(120, 0) + fid) == errno.EBADMSG
    assert error(header(120, 2**32 - 1) + fid) == errno.EBADMSG
    assert error(header(120, 12) + fid + b"x") == errno.EBADMSG  # a byte too many
    assert error(header(120, 10) + fid) == errno.EBADMSG
    for kind in range(256):
        if kind not in (100, 108):
            assert error(header(kind, 7)) in (errno.EBADMSG, errno.EOPNOTSUPP, errno.EPROTO)
    assert error(header(110, 19) + fid + struct.pack("<IH", 9, 1) + b"\xff\xff") == errno.EBADMSG
    write = header(118, 23 + 4) + struct.pack("<IQI", ROOT, 0, 5) + b"abcd"
    assert error(write) == errno.EBADMSG
    assert error(header(116, 24) + struct.pack("<IQI", ROOT, 0, 5) + b"x") == errno.EBADMSG
    # No room for the reply, and less than that.
    assert error(header(24, 19) + fid + bytes(8), room=40) == errno.EMSGSIZE
    for request, room in ((b"", 100), (b"123456", 100), (header(120, 11) + fid, 10)):
        with pytest.raises(ValueError, match="bytes"):
            client.raw(request, room)
    client.version(4096)
    assert error(header(118, 5000) + struct.pack("<IQI", ROOT, 0, 4977) + bytes(4977)) == errno.EMSGSIZE
    client.attach(ROOT)
    fid_of_file = client.create("f")
    client.write(fid_of_file, 0, bytes(4000))
    client.write(fid_of_file, 4000, bytes(4000))
    reply = client.raw(header(116, 23) + struct.pack("<IQI", fid_of_file, 0, 2**32 - 1), room=10_000)
    assert len(reply) == 4096, "a reply keeps to the message size, too"
    reply = client.raw(header(116, 23) + struct.pack("<IQI", fid_of_file, 0, 2**32 - 1), room=1000)
    assert len(reply) == 1000
    assert client.call(108, struct.pack("<H", 5)) == b""
    # The same tag again and again is nothing special, as one request ends before the next.
    for _ in range(3):
        assert client.raw(header(24, 19) + fid + bytes(8))[4] == 25


def test_bad_values_get_an_error(client: Client) -> None:
    fid = client.create("f")
    d = client.open("d")
    refused(errno.EINVAL, client.readdir, d, 2**63)
    refused({errno.EINVAL, errno.ENOENT, errno.ENOTDIR}, client.readdir, fid, 0)
    refused(errno.EBADF, client.readdir, client.walk("d"), 0)
    client.setattr(fid, uid=2**32 - 1)  # says nothing
    refused(errno.EFBIG, client.setattr, fid, size=2**63)
    refused({errno.EFBIG, errno.EINVAL}, client.setattr, fid, size=2**63 - 1)
    refused(errno.EINVAL, client.lock, fid, 7)
    refused(errno.EINVAL, client.lock, fid, 1, 2**63, 1)
    refused(errno.EINVAL, client.lock, fid, 1, 1, 2**64 - 1)
    refused(errno.EINVAL, client.lock, client.open("d"), 0)
    refused(errno.EINVAL, client.mknod, "n", 0o170000)
    refused(errno.EINVAL, client.mknod, "n", stat.S_IFDIR | 0o700)
    refused(errno.EINVAL, client.mknod, "n", stat.S_IFCHR | 0o700, 1 << 12, 0)
    refused(errno.EINVAL, client.getxattr, fid, "user.a\0b")
    refused({errno.EOPNOTSUPP, errno.ENODATA}, client.getxattr, fid, "x" * 255)
    refused(errno.EINVAL, client.getxattr, fid, "user." + "x" * 300)
    refused(errno.EBADF, client.call, 32, struct.pack("<I", fid) + s("user.y") + struct.pack("<QI", 1, 0))
