"""Owners and special files: kept beside the files, or the host's own."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from p9_client import Client, P9Error, serve

RECORD = "user.polyvisor.owner"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="root's rights are needed to change owners")


@pytest.fixture
def attributes(tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.x", b"")
    except OSError:
        pytest.skip("no extended attributes here")


def host_mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_everything_is_roots_until_it_is_given_away(attributes: None, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("#!/bin/sh")
    client = Client(serve(tmp_path))
    fid = client.walk("f")
    assert (client.getattr(fid).uid, client.getattr(fid).gid) == (0, 0)
    client.setattr(fid, uid=1000)
    client.setattr(fid, gid=50)
    client.setattr(fid, mode=0o755)
    found = client.getattr(fid)
    assert (found.mode, found.uid, found.gid) == (stat.S_IFREG | 0o755, 1000, 50)
    there = (tmp_path / "f").stat()
    assert (there.st_uid, there.st_gid, stat.S_IMODE(there.st_mode)) == (os.geteuid(), os.getegid(), 0o755)
    # It is still so for the next client, and after a rename.
    (tmp_path / "f").rename(tmp_path / "g")
    assert Client(serve(tmp_path)).stat("g").uid == 1000
    client.setattr(fid, uid=0, gid=0)
    assert RECORD not in os.listxattr(tmp_path / "g"), "nothing is left where nothing is to be said"
    client.symlink("l", "f")
    client.setattr(client.walk("l"), uid=5)
    assert client.stat("l").uid == 0


def test_who_makes_a_file_owns_it(attributes: None, tmp_path: Path) -> None:
    client = Client(serve(tmp_path), uid=1000)
    client.create("f", mode=0o400, gid=7)
    client.mkdir("d", mode=0o500, gid=7)
    for name, mode in (("f", stat.S_IFREG | 0o400), ("d", stat.S_IFDIR | 0o500)):
        found = client.stat(name)
        assert (found.mode, found.uid, found.gid) == (mode, 1000, 7)
        assert host_mode(tmp_path / name) == mode & 0o777


def test_set_id_bits_stay_in_the_guest(attributes: None, tmp_path: Path) -> None:
    (tmp_path / "host").touch()
    (tmp_path / "host").chmod(0o4755)
    (tmp_path / "team").mkdir()
    (tmp_path / "team").chmod(0o2775)
    client = Client(serve(tmp_path))
    assert client.stat("host").mode == stat.S_IFREG | 0o755
    fid = client.create("f", mode=0o4711)
    assert client.getattr(fid).mode == stat.S_IFREG | 0o4711
    assert host_mode(tmp_path / "f") == 0o711
    client.setattr(fid, mode=0o6755)
    assert client.getattr(fid).mode == stat.S_IFREG | 0o6755
    assert host_mode(tmp_path / "f") == 0o755
    client.mkdir("tmp", 0o1777)
    assert client.stat("tmp").mode == stat.S_IFDIR | 0o1777
    assert host_mode(tmp_path / "tmp") == 0o777
    client.setattr(client.walk("team"), mode=0o700)
    assert host_mode(tmp_path / "team") == 0o2700, "how the host passes groups on is the host's affair"


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [(stat.S_IFCHR, (5, 700)), (stat.S_IFBLK, (259, 3)), (stat.S_IFIFO, (0, 0)), (stat.S_IFSOCK, (0, 0))],
    ids=["chr", "blk", "fifo", "sock"],
)
def test_special_files_are_made_for_the_guest_only(
    attributes: None, tmp_path: Path, kind: int, numbers: tuple[int, int]
) -> None:
    client = Client(serve(tmp_path))
    client.mknod("n", kind | 0o640, *numbers)
    (tmp_path / "plain").touch()
    there = (tmp_path / "n").lstat()
    assert stat.S_ISREG(there.st_mode) and there.st_size == 0
    found = client.stat("n")
    assert found.mode == kind | 0o640
    assert found.rdev == os.makedev(*numbers)
    kinds = {entry[3]: entry[2] for entry in client.readdir(client.open())}
    assert kinds[b"n"] == kind >> 12 and kinds[b"plain"] == 8
    client.setattr(client.walk("n"), mode=0o600, uid=4)
    assert (client.stat("n").mode, client.stat("n").uid) == (kind | 0o600, 4)
    client.unlinkat("n")


@pytest.mark.parametrize(
    "value",
    [b"", b"rubbish", b"uid=1 gid=1 mode=99 rdev=0:0", b"uid=9999999999 gid=1 mode=0 rdev=0:0",
     b"uid=1 gid=1 mode=040000 rdev=0:0", b"uid=1 gid=1 mode=120000 rdev=0:0", b"uid=1 gid=1 mode=0 rdev=0:0\n"],
)
def test_records_that_make_no_sense_are_none(attributes: None, tmp_path: Path, value: bytes) -> None:
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", RECORD, value)
    found = Client(serve(tmp_path)).stat("f")
    assert (found.uid, stat.S_IFMT(found.mode)) == (0, stat.S_IFREG)


def test_without_extended_attributes_only_root_owns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*arguments: object, **named: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    for name in ("getxattr", "setxattr", "removexattr"):
        monkeypatch.setattr(os, name, unsupported)
    client = Client(serve(tmp_path))
    fid = client.create("f", mode=0o751)
    client.setattr(fid, uid=0, gid=0, mode=0o644)
    assert client.getattr(fid).mode == stat.S_IFREG | 0o644
    for call in (
        lambda: client.setattr(fid, uid=5),
        lambda: client.setattr(fid, mode=0o4755),
        lambda: client.mknod("n", stat.S_IFCHR | 0o600, 1, 3),
        lambda: Client(serve(tmp_path), uid=5).create("g"),
    ):
        with pytest.raises(P9Error) as caught:
            call()
        assert caught.value.errno == errno.EPERM
    assert [path.name for path in tmp_path.iterdir()] == ["f"], "what could not be finished is not left behind"


def test_attributes_with_a_meaning_on_the_host_are_refused(tmp_path: Path) -> None:
    client = Client(serve(tmp_path))
    client.clunk(client.create("f"))
    fid = client.walk("f")
    for name in ("security.capability", "trusted.x", "system.posix_acl_access"):
        for call in (lambda name=name: client.getxattr(fid, name), lambda name=name: client.setxattr(fid, name, b"x")):
            with pytest.raises(P9Error) as caught:
                call()
            assert caught.value.errno == errno.EOPNOTSUPP


def test_owners_of_the_host_are_shown_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "f").chmod(0o4750)
    client = Client(serve(tmp_path, owner="host"))
    found = client.stat("f")
    assert (found.mode, found.uid, found.gid) == (stat.S_IFREG | 0o4750, os.geteuid(), os.getegid())
    client.mknod("fifo", stat.S_IFIFO | 0o600)
    assert (tmp_path / "fifo").is_fifo()
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        with pytest.raises(P9Error) as caught:
            client.mknod("n", kind | 0o666, 1, 3)
        assert caught.value.errno == errno.EPERM


@AS_ROOT
def test_root_of_the_host_gives_files_away(tmp_path: Path) -> None:
    client = Client(serve(tmp_path, owner="host"), uid=1000)
    client.create("f", mode=0o4600, gid=7)
    client.mkdir("d", gid=7)
    client.symlink("l", "x")
    client.setattr(client.walk("d"), uid=1001)
    for name, uid, gid in (("f", 1000, 7), ("d", 1001, 7), ("l", 1000, 0)):
        there = (tmp_path / name).lstat()
        assert (there.st_uid, there.st_gid) == (uid, gid) == (client.stat(name).uid, client.stat(name).gid)
    assert host_mode(tmp_path / "f") == 0o4600


@AS_ROOT
def test_an_ordinary_user_gets_no_further_than_the_host_lets_him(attributes: None, tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    (tmp_path / "roots").write_text("x")
    (tmp_path / "roots").chmod(0o600)
    clients = [Client(serve(tmp_path)), Client(serve(tmp_path, owner="host"))]
    os.setegid(65534)
    os.seteuid(65534)
    try:
        for i, client in enumerate(clients):
            for call in (
                lambda client=client: client.open("roots"),
                lambda client=client: client.setattr(client.walk("roots"), mode=0o666),
            ):
                with pytest.raises(P9Error) as caught:
                    call()
                assert caught.value.errno in (errno.EACCES, errno.EPERM)
            fid = client.create(f"mine{i}", mode=0o600)
            assert client.getattr(fid).uid == (65534 if i else 0)
        clients[0].setattr(clients[0].walk("mine0"), uid=12)
        with pytest.raises(P9Error):
            clients[1].setattr(clients[1].walk("mine1"), uid=12)
    finally:
        os.seteuid(0)
        os.setegid(0)
    assert clients[0].stat("mine0").uid == 12
    assert (tmp_path / "mine0").stat().st_uid == (tmp_path / "mine1").stat().st_uid == 65534
