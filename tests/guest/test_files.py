"""Copies out of a guest whose ``tar`` sends whatever it likes."""

from __future__ import annotations

import io
import tarfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyvisor.guest.files import get_path


def archive(*members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
        for member in members:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
    return stream.getvalue()


def member(name: str, **fields: Any) -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(found, field, value)
    return found


class Client:
    """Answers as an agent does where the directory ``/d`` is, of which ``tar`` prints ``data``."""

    def __init__(self, data: bytes) -> None:
        pieces = [data]
        self.process = SimpleNamespace(
            stdout=SimpleNamespace(read_some=lambda timeout: pieces.pop(0) if pieces else b""), wait=lambda timeout: 0
        )

    def stat(self, path: str, timeout: float | None) -> Any:
        return SimpleNamespace(mode=0o40755)

    def start(self, command: object, **options: object) -> Client:
        return self

    def __enter__(self) -> Any:
        return self.process

    def __exit__(self, *reason: object) -> None:
        pass


@pytest.mark.parametrize(
    "data",
    [
        archive(member("./a", type=tarfile.LNKTYPE, linkname="./missing")),
        archive(member("./a", type=tarfile.LNKTYPE, linkname="../outside")),
        archive(member("./a\0b", size=3)),
        archive(member("./a", size=3, pax_headers={"path": "./a\0b"})),
        archive(member("./a", size=3, pax_headers={"size": "x"})),
        archive(member("./a", size=3, pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})),
        archive(member("./a", size=3, pax_headers={"mtime": "1" * 40})),
        archive(member("./a", size=3, pax_headers={"mtime": "nan"})),
        archive(member("../a", size=3)),
        archive(member("./" + "a" * 300, size=3)),
        archive(member("./a", size=3), member("./a/b", size=3)),
        archive(member("./a", size=3))[:700],
        b"\x1f\x8b no archive" * 100,
        archive(member("./a", type=tarfile.SYMTYPE, linkname="b"), member("./a/b", type=tarfile.SYMTYPE, linkname="c")),
        archive(member("./a", type=tarfile.SYMTYPE, linkname="b\0c")),
        archive(member("./no/a", type=tarfile.SYMTYPE, linkname="b")),
    ],
)
def test_archives_that_cannot_be_unpacked(data: bytes, tmp_path: Path) -> None:
    client: Any = Client(data)
    try:
        get_path(client, "/d", tmp_path / "c", 1)
    except OSError as error:
        assert "\n" not in str(error)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["c"])


def test_a_copy_is_not_writable_by_others(tmp_path: Path) -> None:
    status = SimpleNamespace(mode=0o100767)
    client: Any = SimpleNamespace(
        stat=lambda path, timeout: status, open_file=lambda path, timeout: nullcontext((status, iter([b"data"])))
    )
    copy = get_path(client, "/tmp/file", tmp_path / "copy", 1)
    assert copy.read_bytes() == b"data" and copy.stat().st_mode & 0o777 == 0o745
