"""The server as a client sees it: files, directories, links, attributes."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from p9_client import NO_FID, ROOT, Client, P9Error, s, serve

from polyvisor.storage.p9 import descriptors
from polyvisor.storage.p9.errors import ShareError
from polyvisor.storage.p9.server import MAX_MESSAGE

O_TRUNC, O_EXCL, O_APPEND, O_DIRECTORY = 0o1000, 0o200, 0o2000, 0o200000


@pytest.fixture(params=["guest", "host"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Client]:
    before = descriptors.held()
    server = serve(tmp_path, owner=request.param)
    yield Client(server, pieces=3)
    server.close()
    assert descriptors.held() == before, "descriptors were lost"


def refused(number: int, call: Callable[..., object], *arguments: object, **named: object) -> None:
    with pytest.raises(P9Error) as caught:
        call(*arguments, **named)
    assert caught.value.errno == number, caught.value


def listing(path: Path) -> list[bytes]:
    return sorted(os.fsencode(each.name) for each in path.iterdir())


def test_version_and_attach(tmp_path: Path) -> None:
    client = Client(serve(tmp_path), attach=False)
    refused(errno.EPROTO, client.attach, ROOT)
    assert client.version(8192, b"9P2000.u") == (8192, b"unknown")
    refused(errno.EPROTO, client.attach, ROOT)
    refused(errno.EMSGSIZE, client.version, 100)
    assert client.version(1 << 30) == (MAX_MESSAGE, b"9P2000.L")
    assert client.version(8192) == (8192, b"9P2000.L")
    assert client.attach(ROOT)[0] == 0x80
    refused(errno.EBADF, client.attach, ROOT)
    refused(errno.EBADF, client.attach, NO_FID)
    refused(errno.EOPNOTSUPP, client.call, 102, b"")
    # A new session forgets the old one.
    client.version(8192)
    refused(errno.EBADF, client.walk)


def test_attach_below_the_root(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "out").symlink_to("/etc")
    assert client.attach(7, aname="/a//b/")[2] == (tmp_path / "a" / "b").stat().st_ino
    refused(errno.EINVAL, client.attach, 8, aname="a/../..")
    refused(errno.ENOTDIR, client.attach, 8, aname="a/out/passwd")


def test_walk(client: Client, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "f").write_text("hello")
    new = client.fid()
    qids = client.walk_to(ROOT, new, "a", "b", "f")
    assert [q[0] for q in qids] == [0x80, 0x80, 0]
    assert qids[2][2] == (tmp_path / "a" / "b" / "f").stat().st_ino
    assert client.getattr(new).size == 5
    # Part of the way gives the qids but no fid; nothing at all is an error.
    other = client.fid()
    assert len(client.walk_to(ROOT, other, "a", "none", "f")) == 1
    refused(errno.EBADF, client.getattr, other)
    refused(errno.ENOENT, client.walk_to, ROOT, other, "none", "f")
    refused(errno.ENOTDIR, client.walk_to, new, other, "x")
    # In place, and onto itself.
    assert len(client.walk_to(ROOT, ROOT, "a", "none")) == 1
    assert client.getattr(ROOT).qid[2] == tmp_path.stat().st_ino
    base = client.walk()
    client.walk_to(base, base, "a", "b")
    assert client.getattr(base).qid[2] == (tmp_path / "a" / "b").stat().st_ino
    refused(errno.EBADF, client.walk_to, ROOT, new)
    refused(errno.EBADF, client.walk_to, ROOT, NO_FID)
    refused(errno.EINVAL, client.walk_to, ROOT, other, *["a"] * 17)
    for _ in range(2):
        client.walk_to(base, base, "..")
    assert client.getattr(base).qid[2] == tmp_path.stat().st_ino


def test_contents(client: Client, tmp_path: Path) -> None:
    fid = client.create("f", flags=2)
    data = random.Random(1).randbytes(300_001)
    assert client.write(fid, 0, data) == len(data)
    assert (tmp_path / "f").read_bytes() == data
    assert client.read(fid, 1000, 200_000) == data[1000:201_000]
    assert client.read(fid, 300_000, 100) == data[300_000:]
    assert client.read(fid, 1 << 40, 100) == client.read(fid, 2**64 - 1, 100) == b""
    assert client.read(fid, 0, 0) == b""
    assert client.write(fid, 5 << 30, b"far") == 3
    assert client.getattr(fid).size == (5 << 30) + 3
    assert client.getattr(fid).blocks < 10_000
    refused(errno.EFBIG, client.write, fid, 2**63 - 2, b"far")
    client.setattr(fid, size=10)
    assert (tmp_path / "f").read_bytes() == data[:10]
    client.call(50, struct.pack("<II", fid, 0))
    client.call(50, struct.pack("<II", fid, 1))
    client.call(50, struct.pack("<I", fid))
    client.clunk(fid)
    refused(errno.EBADF, client.read, fid, 0, 1)
    fid = client.open("f")
    refused(errno.EBADF, client.write, fid, 0, b"x")
    refused(errno.EBADF, client.lopen, fid)
    client.clunk(fid)
    fid = client.open("f", flags=1 | O_TRUNC | O_APPEND)
    refused(errno.EBADF, client.read, fid, 0, 1)
    # The client's offset counts, though it said that it appends.
    assert client.write(fid, 3, b"x") == 1
    assert client.write(fid, 0, b"abc") == 3
    assert (tmp_path / "f").read_bytes() == b"abcx"
    unopened = client.walk("f")
    refused(errno.EBADF, client.read, unopened, 0, 1)
    refused(errno.EINVAL, client.lopen, unopened, 3)
    refused(errno.ENOTDIR, client.lopen, unopened, O_DIRECTORY)
    refused(errno.EISDIR, client.open, flags=1)
    directory = client.open()
    refused(errno.EISDIR, client.read, directory, 0, 10)


def test_version_of_a_qid_follows_the_contents(client: Client, tmp_path: Path) -> None:
    fid = client.create("f")
    seen = {client.getattr(fid).qid[1]}
    for i in range(1, 4):
        os.utime(tmp_path / "f", ns=(0, i * 1_000_000))
        seen.add(client.getattr(fid).qid[1])
    assert len(seen) == 4
    os.utime(tmp_path / "f", ns=(0, 0))
    assert client.getattr(fid).qid[1] != 0


def test_create(client: Client, tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        client.clunk(client.create("f", mode=0o666))
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o666
    (tmp_path / "f").write_text("old")
    refused(errno.EEXIST, client.create, "f", flags=2 | O_EXCL)
    fid = client.create("f", flags=2)
    assert client.read(fid, 0, 10) == b"old"
    fid = client.create("f", flags=2 | O_TRUNC)
    assert client.read(fid, 0, 10) == b""
    # What could not be opened for writing later can be when it is new.
    fid = client.create("ro", flags=2, mode=0o400)
    assert client.write(fid, 0, b"x") == 1
    assert client.stat("ro").mode == stat.S_IFREG | 0o400
    refused(errno.EINVAL, client.create, "")
    refused(errno.ENAMETOOLONG, client.create, "x" * 256)
    (tmp_path / "d").mkdir()
    refused(errno.EISDIR, client.create, "d")
    refused(errno.EEXIST, client.create, "d", flags=2 | O_EXCL)


def test_directories(client: Client, tmp_path: Path) -> None:
    kind, _, inode = client.mkdir("d", 0o750)
    assert kind == 0x80 and inode == (tmp_path / "d").stat().st_ino
    assert client.stat("d").mode == stat.S_IFDIR | 0o750
    wanted = [b"f%05d%s" % (i, b"x" * (i % 200)) for i in range(1500)]
    for name in wanted:
        (tmp_path / "d" / os.fsdecode(name)).touch()
    for count in (300, 5000, 60_000, 1_000_000):
        assert client.names("d", count=count) == wanted
    fid = client.open("d")
    refused(errno.EINVAL, client.readdir, fid, 0, 20)
    entries = {entry[3]: entry for entry in client.readdir(fid)}
    assert entries[b"."][0][::2] == (0x80, inode)
    assert entries[b".."][0][2] == tmp_path.stat().st_ino
    assert entries[b".."][2] == 4
    # Removing while reading loses nothing, and entries of before are not read again.
    offset, seen = 0, []
    while part := client.readdir(fid, offset, 2000):
        for entry in part:
            if entry[3] not in (b".", b".."):
                seen.append(entry[3])
                client.unlinkat(entry[3], base=fid)
        offset = part[-1][1]
    assert sorted(seen) == wanted
    root = client.open()
    dots = {entry[3]: entry for entry in client.readdir(root)}
    assert dots[b".."][0][2] == tmp_path.stat().st_ino, "the host's directory above is not named"
    refused(errno.EISDIR, client.unlinkat, "d")
    (tmp_path / "d" / "f").touch()
    refused(errno.ENOTEMPTY, client.unlinkat, "d", 0x200)
    (tmp_path / "d" / "f").unlink()
    refused(errno.EINVAL, client.unlinkat, "d", 0x1200)
    client.unlinkat("d", 0x200)
    assert not (tmp_path / "d").exists()


def test_names_of_any_bytes(client: Client, tmp_path: Path) -> None:
    for name in (b"\xff\xfe", "ä€".encode(), b"new\nline", b" ", b"-rf", b"..."):
        client.clunk(client.create(name))
        assert name in listing(tmp_path)
        client.clunk(client.walk(name))
    assert len(client.names()) == 6


def test_links(client: Client, tmp_path: Path) -> None:
    assert client.symlink("l", "/etc/passwd")[0] == 0x02
    fid = client.walk("l")
    assert client.readlink(fid) == b"/etc/passwd"
    assert client.getattr(fid).mode == stat.S_IFLNK | 0o777
    refused(errno.ELOOP, client.lopen, fid)
    refused(errno.EINVAL, client.readlink, ROOT)
    refused(errno.EINVAL, client.symlink, "m", b"a\0b")
    refused(errno.ENOENT, client.symlink, "m", b"")
    (tmp_path / "f").write_text("x")
    f = client.walk("f")
    client.link(f, "g")
    assert client.getattr(f).nlink == 2
    client.link(fid, "l2")
    assert (tmp_path / "l2").is_symlink() and (tmp_path / "l2").lstat().st_nlink == 2
    refused(errno.EEXIST, client.link, f, "g")
    copy = client.walk(base=fid)
    assert client.readlink(copy) == b"/etc/passwd"


def test_renaming(client: Client, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "f").write_text("one")
    (tmp_path / "b" / "g").write_text("two")
    a, b = client.walk("a"), client.walk("b")
    held = client.open("b", "g")
    client.renameat("f", "g", a, b)
    assert (tmp_path / "b" / "g").read_text() == "one"
    assert client.read(held, 0, 9) == b"two", "what was replaced stays readable"
    assert client.getattr(held).nlink == 0
    # By fid alone.
    fid = client.walk("b", "g")
    client.rename(fid, "h", a)
    assert (tmp_path / "a" / "h").read_text() == "one"
    client.rename(fid, "i", a)
    assert (tmp_path / "a" / "i").exists() and not (tmp_path / "a" / "h").exists()
    refused(errno.EBUSY, client.rename, client.walk(), "x")
    refused(errno.ENOENT, client.rename, held, "x")
    # Below a directory that was renamed.
    inner = client.walk("a", "i")
    client.renameat("a", "z")
    assert client.getattr(inner).size == 3
    client.remove(inner)
    assert not (tmp_path / "z" / "i").exists()
    refused(errno.EBADF, client.clunk, inner)
    client.remove(client.walk("z"))
    assert listing(tmp_path) == [b"b"]
    gone = client.walk("b")
    client.unlinkat("b", 0x200)
    refused(errno.ENOENT, client.remove, gone)


def test_files_unlinked_while_open(client: Client, tmp_path: Path) -> None:
    fid = client.create("f")
    looked = client.walk("f")
    client.unlinkat("f")
    assert client.write(fid, 0, b"still") == 5
    assert client.getattr(looked).size == 5
    client.setattr(looked, size=2, mode=0o600)
    client.lopen(looked)
    assert client.read(looked, 0, 9) == b"st"


def test_times_and_permissions(client: Client, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    fid = client.walk("f")
    client.setattr(fid, atime=(5, 6), mtime=(2**64 - 3, 999_999_999))
    found = (tmp_path / "f").stat()
    assert (found.st_atime_ns, found.st_mtime_ns) == (5_000_000_006, -2_000_000_001)
    assert client.getattr(fid).mtime == (2**64 - 3, 999_999_999)
    client.setattr(fid, mtime=(7, 0))
    assert client.getattr(fid).atime == (5, 6)
    client.setattr(fid, now=0x20)
    assert client.getattr(fid).mtime[0] > 10**9 and client.getattr(fid).atime == (5, 6)
    client.setattr(fid, now=0x30)
    assert client.getattr(fid).atime[0] > 10**9
    refused(errno.EINVAL, client.setattr, fid, atime=(0, 10**9))
    client.setattr(fid, atime=(2**63 - 1, 0))
    assert client.getattr(fid).atime[0] > 10**9, "the host takes its latest time"
    client.setattr(fid, mode=0o640)
    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == 0o640
    refused(errno.EISDIR, client.setattr, ROOT, size=0)
    link = client.walk("l") if client.symlink("l", "f") else 0
    refused(errno.EOPNOTSUPP, client.setattr, link, mode=0o600)
    client.setattr(link, mtime=(9, 0), atime=(9, 0))
    assert (tmp_path / "l").lstat().st_mtime == 9 and (tmp_path / "f").stat().st_mtime != 9
    refused(errno.EINVAL, client.setattr, link, size=0)


def test_statfs(client: Client, tmp_path: Path) -> None:
    body = client.call(8, struct.pack("<I", ROOT))
    kind, size, blocks = struct.unpack_from("<IIQ", body)
    there = os.statvfs(tmp_path)
    assert (kind, size, blocks) == (0x01021997, there.f_frsize, there.f_blocks)


def test_extended_attributes(client: Client, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    try:
        os.setxattr(tmp_path / "f", "user.there", b"1")
    except OSError:
        pytest.skip("no extended attributes here")
    fid = client.walk("f")
    client.setxattr(fid, "user.x", b"some value")
    client.setxattr(fid, "user.empty", b"")
    assert client.getxattr(fid, "user.x") == b"some value" == os.getxattr(tmp_path / "f", "user.x")
    names = client.getxattr(fid, "").split(b"\0")
    assert {b"user.x", b"user.there", b"user.empty"} <= set(names)
    refused(errno.ENODATA, client.getxattr, fid, "user.none")
    refused(errno.EEXIST, client.setxattr, fid, "user.x", b"y", os.XATTR_CREATE)
    client.setxattr(fid, "user.x", b"", os.XATTR_REPLACE)
    refused(errno.ENODATA, client.getxattr, fid, "user.x")
    refused(errno.EPERM, client.setxattr, fid, "user.polyvisor.owner", b"uid=0 gid=0 mode=4755 rdev=0:0")
    refused(errno.ENODATA, client.getxattr, fid, "user.polyvisor.owner")
    # Less written than was announced, more, or in the wrong place.
    new = client.walk("f")
    client.call(32, struct.pack("<I", new) + s("user.y") + struct.pack("<QI", 10, 0))
    refused(errno.EINVAL, client.write, new, 0, b"12345678901")
    assert client.write(new, 0, b"123") == 3
    refused(errno.EINVAL, client.write, new, 0, b"123")
    refused(errno.EBADF, client.read, new, 0, 3)
    refused(errno.EBADF, client.getattr, new)
    refused(errno.EINVAL, client.clunk, new)
    refused(errno.EBADF, client.clunk, new)
    new = client.walk("f")
    refused(errno.E2BIG, client.call, 32, struct.pack("<I", new) + s("user.y") + struct.pack("<QI", 1 << 17, 0))
    refused(errno.EINVAL, client.call, 32, struct.pack("<I", new) + s("user.y") + struct.pack("<QI", 1, 8))


def test_read_only(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").write_text("text")
    (tmp_path / "d" / "l").symlink_to("f")
    os.utime(tmp_path / "f", (1, 1))
    client = Client(serve(tmp_path, read_only=True))
    fid = client.walk("f")
    for call in (
        lambda: client.open("f", flags=1),
        lambda: client.open("f", flags=2),
        lambda: client.open("f", flags=O_TRUNC),
        lambda: client.create("f"),
        lambda: client.create("new"),
        lambda: client.mkdir("new"),
        lambda: client.symlink("new", "f"),
        lambda: client.mknod("new", stat.S_IFIFO | 0o600),
        lambda: client.link(fid, "new"),
        lambda: client.renameat("f", "new"),
        lambda: client.rename(fid, "new"),
        lambda: client.unlinkat("f"),
        lambda: client.unlinkat("d", 0x200),
        lambda: client.remove(client.walk("f")),
        lambda: client.setattr(fid, mode=0o600),
        lambda: client.setattr(fid, uid=5),
        lambda: client.setattr(fid, size=0),
        lambda: client.setattr(fid, mtime=(1, 1)),
        lambda: client.setattr(fid, now=0x30),
        lambda: client.setxattr(fid, "user.x", b"1"),
        lambda: client.setxattr(fid, "user.x", b"", os.XATTR_REPLACE),
    ):
        refused(errno.EROFS, call)
    assert client.read(client.open("f"), 0, 10) == b"text"
    assert client.names() == [b"d", b"f"]
    assert (tmp_path / "f").read_text() == "text" and listing(tmp_path) == [b"d", b"f"]


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    for path, owner, says in (
        (tmp_path / "f", "guest", "is not a directory"),
        (tmp_path / "none", "guest", "No such file"),
        (Path("a\0b"), "guest", "null"),
        (tmp_path, "nobody", "there is no owner"),
    ):
        with pytest.raises(ShareError, match=says) as caught:
            serve(path, owner=owner)
        assert "\n" not in str(caught.value)


def test_a_session_is_saved_and_restored(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    server = serve(tmp_path)
    client = Client(server)
    writer = client.create("f", flags=2 | O_TRUNC)
    client.write(writer, 0, b"before")
    directory = client.open("d")
    gone = client.create("gone")
    client.unlinkat("gone")
    replaced = client.create("replaced")
    half = client.walk("f")
    client.call(32, struct.pack("<I", half) + s("user.y") + struct.pack("<QI", 4, 0))
    client.write(half, 0, b"ab")
    state = server.save()
    server.close()
    (tmp_path / "replaced").rename(tmp_path / "away")
    (tmp_path / "replaced").touch()
    server = serve(tmp_path)
    server.restore(state)
    client.server = server
    assert client.read(writer, 0, 9) == b"before"
    assert client.write(writer, 6, b" after") == 6
    assert len(client.readdir(directory)) == 2
    refused(errno.ESTALE, client.getattr, gone)
    refused(errno.ESTALE, client.getattr, replaced)
    assert server.save().stale == sorted((gone, replaced))
    client.clunk(gone)
    refused(errno.EBADF, client.getattr, gone)
    assert client.write(half, 2, b"cd") == 2
    client.clunk(half)
    assert client.getxattr(client.walk("f"), "user.y") == b"abcd"
    server.close()


def test_locks_are_held_again_and_a_copy_of_the_directory_will_do(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    server = serve(tmp_path / "one")
    client = Client(server)
    writer = client.create("f", flags=2)
    client.write(writer, 0, b"contents")
    lock = struct.pack("<IBIQQI", writer, 1, 0, 2, 5, 77) + s("me")
    assert client.call(52, lock) == bytes([0])
    state = server.save()
    server.close()
    for place in ("one", "two"):
        if place == "two":
            shutil.copytree(tmp_path / "one", tmp_path / "two")
        server = serve(tmp_path / place)
        server.restore(state)
        client.server = server
        assert client.read(writer, 0, 9) == b"contents"
        with (tmp_path / place / "f").open("r+b") as other:
            request = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, 3, 1, 0)
            with pytest.raises(BlockingIOError):
                fcntl.fcntl(other, fcntl.F_OFD_SETLK, request)
        server.close()
