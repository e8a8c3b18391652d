from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
from fake_mirror import Server

from conftest import Record
from polyvisor.images import ImageError, fetch
from polyvisor.images.errors import storage_errors
from polyvisor.images.fetch import Fetcher

DATA = bytes(range(256)) * 4096
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def fetcher(server: Server, cache: Path, record: Record, monkeypatch: pytest.MonkeyPatch) -> Fetcher:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    server.files["pool/a+b.deb"] = DATA
    return Fetcher(server.url, cache, record)


def get(fetcher: Fetcher, path: str = "pool/a+b.deb") -> bytes:
    return fetcher.file(path, size=len(DATA), sha256=SHA256).read_bytes()


def test_fetched_once(fetcher: Fetcher, server: Server, record: Record) -> None:
    assert get(fetcher) == DATA
    assert get(fetcher) == DATA
    assert server.log == [("pool/a+b.deb", None)]
    assert record.transfers[-1] == ("a+b.deb", len(DATA), len(DATA))


def test_resumes_after_a_lost_connection(fetcher: Fetcher, server: Server) -> None:
    server.cut["pool/a+b.deb"] = 300_000
    assert get(fetcher) == DATA
    assert server.log == [("pool/a+b.deb", None), ("pool/a+b.deb", "bytes=300000-")]


def test_resumes_in_a_later_run(fetcher: Fetcher, server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{SHA256}.part").write_bytes(DATA[:1000])
    assert get(fetcher) == DATA
    assert server.log == [("pool/a+b.deb", "bytes=1000-")]
    assert [path.name for path in cache.iterdir()] == [SHA256]


def test_a_server_without_ranges(fetcher: Fetcher, server: Server) -> None:
    server.ranges = False
    server.cut["pool/a+b.deb"] = 300_000
    assert get(fetcher) == DATA


def test_a_bad_part_is_fetched_again(fetcher: Fetcher, server: Server, cache: Path) -> None:
    cache.mkdir()
    (cache / f"{SHA256}.part").write_bytes(b"x" * 1000)
    assert get(fetcher) == DATA
    assert [wanted for _, wanted in server.log] == ["bytes=1000-", None]


def test_corrupt(fetcher: Fetcher, server: Server, cache: Path) -> None:
    server.files["pool/a+b.deb"] = DATA[:-1] + b"x"
    with pytest.raises(ImageError) as caught:
        get(fetcher)
    assert caught.value.kind == "corrupt"
    assert not list(cache.iterdir())


def test_another_size_is_not_downloaded(fetcher: Fetcher, server: Server, cache: Path) -> None:
    server.files["pool/a+b.deb"] = DATA[:-1]
    with pytest.raises(ImageError) as caught:
        get(fetcher)
    assert caught.value.kind == "corrupt"
    assert len(server.log) == 1 and not list(cache.iterdir())


def test_missing_and_unreachable(fetcher: Fetcher, server: Server, cache: Path, record: Record) -> None:
    with pytest.raises(ImageError, match="404") as caught:
        get(fetcher, "pool/nothing")
    assert caught.value.kind == "missing"
    closed = Fetcher("http://127.0.0.1:9/debian", cache, record)
    with pytest.raises(ImageError, match="check the network") as caught:
        closed.small("InRelease")
    assert caught.value.kind == "network"


@pytest.mark.parametrize(
    ("number", "kind", "advice"),
    [
        (errno.ENOSPC, "space", "free some"),
        (errno.EDQUOT, "space", "POLYVISOR_CACHE"),
        (errno.EROFS, "storage", "POLYVISOR_CACHE"),
        (errno.EIO, "storage", "cannot use"),
    ],
)
def test_storage_errors(number: int, kind: str, advice: str) -> None:
    with pytest.raises(ImageError, match=advice) as caught, storage_errors(Path("/somewhere")):
        raise OSError(number, "text")
    assert caught.value.kind == kind
    assert "\n" not in str(caught.value)


def test_unwritable_cache(server: Server, tmp_path: Path, record: Record) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a directory")
    with pytest.raises(ImageError) as caught:
        Fetcher(server.url, blocked / "downloads", record).file("x", size=1, sha256="0" * 64)
    assert caught.value.kind == "storage"
